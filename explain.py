"""Questions explained: independences, class, exact reasoning, answer and why; and a model's own reasoning, checked.

    python explain.py "Premise: Suppose there is ...\\nHypothesis: A directly causes B." --style full
    python explain.py 7 --dataset data/tiny --split test --figure class.svg --model none
    python explain.py --interactive --model models/mine_grpo
    python explain.py --serve

The model is by default the small reasoner that ships. What is exact is printed before it is loaded: libraries that take
seconds to import (datasets, torch, matplotlib, gradio) are only imported by what needs them.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import re
import socket
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from causal.claims import Claim, examine
from causal.classes import Premise
from causal.graphs import Corr2CauseError
from causal.reasoning import STYLES, trace
from causal.wording import (
    class_edges,
    member_edges,
    parse_input,
    released_order,
    split_input,
    write_independence,
)
from runtime.ending import in_a_line
from runtime.files import check_writable, naming
from runtime.settings import check

if TYPE_CHECKING:
    from scoring.asking import Respondent

SUFFIXES = (".png", ".svg", ".pdf")
REASONER = Path(__file__).parent / "reasoner"
PAGE_REQUIREMENTS = "requirements-page.txt"
HOST, PORT = "127.0.0.1", 7860  # of the page: this machine alone


def explain(text: str, style: str = "compact", given_label: int | None = None) -> str:
    """What the oracle knows of one input text, in sections: claim, independences, class, reasoning, answer and why.

    `style` is that of the reasoning; a `given_label` is mentioned if it is wrong. Raises Corr2CauseError for a text
    that cannot be read, a premise that no graph fits and an unknown style.
    """
    premise, claim = parse_input(text)
    names, found = premise.variables, examine(premise, claim)
    stated = sorted(premise.independences, key=released_order)
    steps = trace(premise, claim, style).splitlines()
    exact, members = int(not any(found.failing)), f"member{'s' * (found.size != 1)}"
    if exact:
        why = ["The claim holds in every member of the class."]
    else:
        first = found.failing.index(True)
        why = [f"The claim fails in {found.extent} {members} of the class, for example in member {first + 1}:"]
        why += [f"  {line}" for line in _wrapped(member_edges(found.members[first], names))]
    if given_label not in (None, exact):
        why += [f"The given label is {given_label} ({_answer(given_label)}), which is wrong."]
    legend = " ('->': as in every member, '-': members differ)"
    return "\n\n".join((
        _section("Claim", [split_input(text)[1]]),
        _section(f"Independences: {len(stated)}", [write_independence(statement, names) for statement in stated]),
        _section(f"Class: {found.size:,} {members}{legend}", _wrapped(class_edges(premise))),
        _section(f"Reasoning ({style})", steps[:-1]),  # the last step is the answer
        _section(f"Answer: {_answer(exact)}", why),
    ))  # fmt: skip


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join((title, *(f"  {line}" for line in lines)))


def _answer(label: int) -> str:
    return ("No", "Yes")[label]


def _wrapped(edges: Sequence[str]) -> list[str]:
    """A list of edges as lines, each of which holds whole edges."""
    whole = (edge.replace(" ", "\0") for edge in edges)
    lines = textwrap.wrap(", ".join(whole), 100, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines] or ["no edges"]


def asked(respondent: "Respondent", text: str) -> str:
    """What a model says of the text, sentence by sentence, in sections; where the text does not fit into it, why."""
    from scoring.asking import marked

    try:
        found = marked(respondent.ask(text), text)
    except ValueError as error:
        return _section(f"Reasoning of {respondent.name}: none", [str(error)])
    return "\n\n".join((
        _section(
            f"Reasoning of {respondent.name}, on {respondent.familiarity(text)}",
            [f"{mark:<12}{sentence.text}" for mark, sentence in found.sentences],
        ),
        _section(
            f"Answer of {respondent.name}: {found.answer}; the true answer: {found.true}",
            [f"{found.verdict}; of its sentences {found.counts}"],
        ),
    ))  # fmt: skip


def load(model: str) -> "Respondent | None":
    """The model that is asked; of none, None. Raises ValueError if it cannot be loaded."""
    if model == "none":
        return None
    from scoring import asking  # torch and transformers: seconds

    return asking.load(model)


# ---------------------------------------------------------------- questions that are typed


def typed_lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, line by line."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    prompt = ""
    if sys.stdin.isatty():
        import readline  # noqa: F401  without it a terminal cuts lines after 4,095 characters

        print("'Premise: ...', then 'Hypothesis: ...', on one line or two; an empty line asks, quit ends.")
        prompt = "> "
    with contextlib.suppress(EOFError):
        while True:
            yield input(prompt)


def questions(lines: Iterable[str]) -> Iterator[str]:
    """The texts that the lines ask: each ends with an empty line, or is whole on one; `quit` or the end ends all."""
    gathered = []
    for line in lines:
        if line.strip() == "quit":
            break
        if line.strip():
            gathered.append(line)
        if gathered and (not line.strip() or "Premise:" in line and "Hypothesis:" in line):
            yield unescaped("\n".join(gathered))
            gathered = []
    if gathered:
        yield unescaped("\n".join(gathered))


def unescaped(text: str) -> str:
    r"""The text with line breaks for those typed as \n."""
    return text.replace("\\n", "\n")


def converse(texts: Iterable[str], style: str, respondent: "Respondent | None") -> None:
    """Explains every text; one that cannot be is one line on stderr."""
    for text in texts:
        try:
            print(explain(text, style), flush=True)
        except Corr2CauseError as error:
            print(f"error: the text: {error}", file=sys.stderr, flush=True)
            continue
        if respondent is not None:
            print(f"\n{asked(respondent, text)}")
        print(flush=True)


# ---------------------------------------------------------------- a dataset's row, a figure's file


def read_row(number: str, directory: str, split: str) -> tuple[str, int]:
    """The input text and the given label of a dataset's row. Raises ValueError, naming the option that is wrong."""
    check(
        re.fullmatch("[0-9]{1,18}", number) is not None,
        f"row {number[:60]!r}: with --dataset, give the 0-based number of a row",
    )
    remedy = "write one with preprocess.py --output_dir, or name another"
    is_dataset = (Path(directory) / "dataset_dict.json").is_file()
    check(is_dataset, f"--dataset {directory}: not a dataset of preprocess.py; {remedy}")
    from dataset.reading import load_split  # seconds

    try:
        rows = load_split(directory, split, texts=False)
    except ValueError as error:
        raise ValueError(f"--dataset, --split: {error}") from None
    check({"input", "given_label"} <= {*rows.column_names}, f"--dataset {directory}: no rows of Corr2Cause; {remedy}")
    place = f"split {split} of {directory}"
    check(int(number) < len(rows), f"row {number}: {place} has {len(rows):,} rows; use 0 to {len(rows) - 1}")
    row = rows[int(number)]
    return row["input"], row["given_label"]


def check_figure(path: Path, overwrite: bool) -> None:
    """Raises ValueError unless a figure can be written to the file."""
    option = f"--figure {path}"
    check(path.suffix.lower() in SUFFIXES, f"{option}: name a file that ends in {', '.join(SUFFIXES)}")
    with naming(option):
        check(not path.is_dir(), f"{option}: is a folder; name a file in it")
        check(overwrite or not path.exists(), f"{option}: exists; name another, or set --overwrite true")
        check(path.parent.is_dir(), f"{option}: there is no folder {path.parent}; make it, or name another")
    check_writable(path.parent, option)


def write_figure(premise: Premise, claim: Claim, path: Path) -> None:
    """Writes `class_figure` to the file, whole or not at all. Raises ValueError if it cannot be written."""
    from causal.drawing import class_figure  # matplotlib: half a second

    with naming(f"--figure {path}"), tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        new = Path(folder) / path.name
        class_figure(premise, claim).savefig(new, dpi=150)
        os.replace(new, path)


# ---------------------------------------------------------------- command line


def _raise(message: str):
    raise ValueError(f"{message}; --help lists the options")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Raises ValueError for what they cannot be, or cannot be together."""
    parser = argparse.ArgumentParser(
        prog="explain.py", description="Explain the answer to one Corr2Cause row.", allow_abbrev=False
    )
    parser.error = _raise
    switch = {"nargs": "?", "const": "true", "default": "false", "choices": ("true", "false")}
    parser.add_argument(
        "row",
        metavar="TEXT|ROW",
        nargs="?",
        help=r"'Premise: ...\nHypothesis: ...' (\n may be typed literally), or a row's 0-based number in --dataset",
    )
    parser.add_argument("--interactive", **switch, help="read questions, one after another, and explain each")
    parser.add_argument("--serve", **switch, help=f"the same as a page on this machine ({PAGE_REQUIREMENTS})")
    parser.add_argument("--port", type=int, help=f"of the page; default {PORT}")
    parser.add_argument("--dataset", metavar="DIR", help="directory that preprocess.py wrote, which has the row")
    parser.add_argument("--split", help="its split; default test")
    parser.add_argument("--style", choices=STYLES, default="compact", help="of the reasoning: compact or full")
    parser.add_argument(
        "--model",
        metavar="DIR",
        default=os.path.relpath(REASONER),
        help="asked too, each of its sentences marked; default the reasoner that ships; none leaves it out",
    )
    parser.add_argument("--figure", metavar="FILE", type=Path, help="draw the class and its members (.png, .svg, .pdf)")
    parser.add_argument("--overwrite", **switch, help="replace the figure")
    arguments = parser.parse_args(argv)
    for name in ("interactive", "serve", "overwrite"):
        setattr(arguments, name, getattr(arguments, name) == "true")
    asks = next((name for name in ("serve", "interactive") if getattr(arguments, name)), None)
    check(arguments.port is None or arguments.serve, "--port: is of the page; add --serve")
    if asks is None:
        usage = r"'Premise: ...\nHypothesis: ...', a row number and --dataset DIR, --interactive or --serve"
        check(arguments.row is not None, f"nothing to do; give {usage}")
    else:
        given = {"TEXT": arguments.row, "--dataset": arguments.dataset, "--figure": arguments.figure}
        given["--interactive"] = asks == "serve" and arguments.interactive or None
        too_much = [name for name, value in given.items() if value is not None]
        check(not too_much, f"--{asks} asks for the questions itself; leave out {', '.join(too_much)}")
    if arguments.dataset is None:
        is_number = arguments.row is not None and arguments.row.strip().isdigit()
        check(not is_number, f"row {arguments.row}: a row number needs --dataset")
        check(arguments.split is None, "--split: is of a dataset; name one with --dataset")
    if arguments.figure is not None:
        check_figure(arguments.figure, arguments.overwrite)
    if arguments.serve:
        installed = importlib.util.find_spec("gradio") is not None
        check(installed, f"--serve: needs gradio; pip install -r {PAGE_REQUIREMENTS}")
        arguments.port = PORT if arguments.port is None else arguments.port
        check_port(arguments.port)
    return arguments


def check_port(port: int) -> None:
    """Raises ValueError unless the page can be served there."""
    check(0 < port < 65536, f"--port {port}: give 1 to 65535")
    try:
        with socket.create_server((HOST, port)):  # may be used again at once, as the page's own server may
            pass
    except OSError as error:
        raise ValueError(f"--port {port}: cannot be listened on ({os.strerror(error.errno)}); name another") from None


def explain_one(arguments: argparse.Namespace) -> None:
    """Prints the explanation of the text or row, then what the model says of it; writes the figure."""
    text, label, where = unescaped(arguments.row), None, "the text"
    if arguments.dataset is not None:
        split, where = arguments.split or "test", f"row {arguments.row}"
        text, label = read_row(arguments.row, arguments.dataset, split)
    try:
        explanation = explain(text, arguments.style, label)
    except Corr2CauseError as error:
        raise ValueError(f"{where}: {error}") from None
    if arguments.dataset is not None:
        print(f"Row {arguments.row} of {arguments.dataset}, split {split}\n")
    print(explanation, flush=True)
    if arguments.figure is not None:
        write_figure(*parse_input(text), arguments.figure)
        print(f"\nFigure: {arguments.figure}", flush=True)
    respondent = load(arguments.model)
    if respondent is not None:
        print(f"\n{asked(respondent, text)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Explains what is asked; status 0, or 2 after one line that says what to change."""
    try:
        arguments = parse(argv)
        if arguments.serve:
            from scoring.page import serve

            serve(load(arguments.model), arguments.style, HOST, arguments.port)
        elif arguments.interactive:
            with contextlib.suppress(KeyboardInterrupt):
                converse(questions(typed_lines()), arguments.style, load(arguments.model))
        else:
            explain_one(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written as Python ends
    except (ValueError, OSError) as error:
        print(f"error: {in_a_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
