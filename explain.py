"""One row explained: independences, equivalence class, reasoning, answer, and why; on the console and as a figure.

    python explain.py "Premise: Suppose there is ...\\nHypothesis: A directly causes B." --style full
    python explain.py "Premise: ...\\nHypothesis: ..." --model reasoner
    python explain.py 7 --dataset data/tiny --split test --figure class.svg

Libraries that take seconds to import (datasets, torch, matplotlib) are only imported by the options that need them.
"""

import argparse
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from causal.graphs import Claim, Corr2CauseError, Premise, holds, markov_equivalence_class
from causal.reasoning import STYLES, trace
from causal.wording import (
    class_edges,
    member_edges,
    parse_input,
    released_order,
    split_input,
    write_independence,
)
from runtime.files import check_writable, naming
from runtime.settings import check

SUFFIXES = (".png", ".svg", ".pdf")


def explain(text: str, style: str = "compact", given_label: int | None = None) -> str:
    """What the oracle knows of one input text, in sections: claim, independences, class, reasoning, answer and why.

    `style` is that of the reasoning; a `given_label` is mentioned if it is wrong. Raises Corr2CauseError for a text
    that cannot be read, a premise that no graph fits and an unknown style.
    """
    premise, claim = parse_input(text)
    names, members = premise.variables, markov_equivalence_class(premise)
    stated = sorted(premise.independences, key=released_order)
    steps = trace(premise, claim, style).splitlines()
    failing = [number for number, dag in enumerate(members) if not holds(dag, claim)]
    exact = int(not failing)
    if exact:
        why = ["The claim holds in every member of the class."]
    else:
        share = f"{len(failing):,} of {_count(members, 'member')}"
        why = [f"The claim fails in {share} of the class, for example in member {failing[0] + 1}:"]
        why += [f"  {line}" for line in _wrapped(member_edges(members[failing[0]], names))]
    if given_label not in (None, exact):
        why += [f"The given label is {given_label} ({_answer(given_label)}), which is wrong."]
    legend = " ('->': as in every member, '-': members differ)"
    return "\n\n".join((
        _section("Claim", [split_input(text)[1]]),
        _section(f"Independences: {len(stated)}", [write_independence(statement, names) for statement in stated]),
        _section(f"Class: {_count(members, 'member')}" + legend, _wrapped(class_edges(premise))),
        _section(f"Reasoning ({style})", steps[:-1]),  # the last step is the answer
        _section(f"Answer: {_answer(exact)}", why),
    ))  # fmt: skip


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join((title, *(f"  {line}" for line in lines)))


def _count(things: Sequence, noun: str) -> str:
    return f"{len(things):,} {noun}{'s' * (len(things) != 1)}"


def _answer(label: int) -> str:
    return ("No", "Yes")[label]


def _wrapped(edges: Sequence[str]) -> list[str]:
    """A list of edges as lines, each of which holds whole edges."""
    whole = (edge.replace(" ", "\0") for edge in edges)
    lines = textwrap.wrap(", ".join(whole), 100, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines] or ["no edges"]


def asked(model: str, text: str) -> str:
    """What a model says of the text, sentence by sentence, as a section. Raises ValueError as `asking.ask` does."""
    from scoring import asking  # torch and transformers: seconds

    sentences, whole = asking.marked(asking.ask(model, text), text)
    return "\n\n".join((
        _section(f"Reasoning of {model}, on {asking.familiarity(model, text)}", sentences),
        _section(f"Answer of {model}", whole),
    ))  # fmt: skip


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
    parser.add_argument(
        "row",
        metavar="TEXT|ROW",
        nargs="?",
        help=r"'Premise: ...\nHypothesis: ...' (\n may be typed literally), or a row's 0-based number in --dataset",
    )
    parser.add_argument("--dataset", metavar="DIR", help="directory that preprocess.py wrote, which has the row")
    parser.add_argument("--split", help="its split; default test")
    parser.add_argument("--style", choices=STYLES, default="compact", help="of the reasoning: compact or full")
    parser.add_argument("--model", metavar="DIR", help="a model to ask too: its sentences are marked; reasoner ships")
    parser.add_argument("--figure", metavar="FILE", type=Path, help="draw the class and its members (.png, .svg, .pdf)")
    parser.add_argument(
        "--overwrite", nargs="?", const="true", default="false", choices=("true", "false"), help="replace the figure"
    )
    arguments = parser.parse_args(argv)
    usage = r"'Premise: ...\nHypothesis: ...', or a row number and --dataset DIR"
    check(arguments.row is not None, f"nothing to do; give {usage}")
    if arguments.dataset is None:
        check(not arguments.row.strip().isdigit(), f"row {arguments.row}: a row number needs --dataset")
        check(arguments.split is None, "--split: is of a dataset; name one with --dataset")
    if arguments.figure is not None:
        check_figure(arguments.figure, arguments.overwrite == "true")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the explanation and writes the figure; status 0, or 2 after one line that says what to change."""
    try:
        arguments = parse(argv)
        text, label = arguments.row.replace("\\n", "\n"), None
        if arguments.dataset is not None:
            split = arguments.split or "test"
            text, label = read_row(arguments.row, arguments.dataset, split)
        try:
            explanation = explain(text, arguments.style, label)
            if arguments.model is not None:
                explanation += f"\n\n{asked(arguments.model, text)}"
        except Corr2CauseError as error:
            where = f"row {arguments.row}" if arguments.dataset else "the text"
            raise ValueError(f"{where}: {error}") from None
        if arguments.dataset is not None:
            print(f"Row {arguments.row} of {arguments.dataset}, split {split}\n")
        print(explanation)
        if arguments.figure is not None:
            write_figure(*parse_input(text), arguments.figure)
            print(f"\nFigure: {arguments.figure}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
