"""The explanation of one row: sections, figures, errors of one line."""

import importlib.util
import io
import os
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from brute_force import rows
from datasets import Dataset, DatasetDict

from causal import wording as c
from causal.claims import MAX_LISTED, holds
from causal.classes import LETTERS, Premise, markov_equivalence_class, premise_of
from causal.graphs import d_separations, dag_edges
from causal.reasoning import STYLES, is_right, read_step, trace
from explain import explain, main, questions
from scoring import asking

GOOD = (
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B."
)

ROOT = Path(__file__).parents[2]
COLLIDER = f"Premise: {GOOD}\nHypothesis: There exists at least one collider (i.e., common effect) of A and B."


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory) -> Path:
    """All rows of N = 3 as split test; the given label of row 7 is wrong, and row 9 contradicts itself."""
    made = [row | {"prompt": row["input"], "response": "Answer: No"} for row in rows(3)]
    made[7] |= {"given_label": 1 - made[7]["exact"]}
    made[9] |= {"input": COLLIDER.replace("\nHypo", " A correlates with B.\nHypo")}
    path = tmp_path_factory.mktemp("explain") / "data"
    DatasetDict({"test": Dataset.from_list(made), "other": Dataset.from_list(made[:3])}).save_to_disk(path)
    return path


def sections(text: str) -> dict[str, list[str]]:
    """The lines of every section of an explanation, by its title."""
    return {lines[0]: lines[1:] for lines in (part.splitlines() for part in text.strip().split("\n\n"))}


def test_explain_prints_what_is_known_in_sections(capsys):
    assert main([COLLIDER.replace("\n", "\\n"), "--model", "none"]) == 0
    out = capsys.readouterr().out
    found = sections(out)
    legend = "('->': as in every member, '-': members differ)"
    assert list(found) == [
        "Claim", "Independences: 1", f"Class: 1 member {legend}", "Reasoning (compact)", "Answer: Yes"
    ]  # fmt: skip
    assert found["Independences: 1"] == ["  A is independent of B."]
    assert found[f"Class: 1 member {legend}"] == ["  A -> C, B -> C"]
    assert found["Answer: Yes"] == ["  The claim holds in every member of the class."]
    assert main([COLLIDER, "--model", "none"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("style", STYLES)
def test_explained_reasoning_and_counterexample_are_exact(style):
    for row in random.Random(5).sample(rows(4), 60):
        premise, hypothesis = c.parse_premise(row["premise"]), row["hypothesis"]
        claim, members = c.parse_hypothesis(hypothesis, premise.variables), markov_equivalence_class(premise)
        found = sections(explain(row["input"], style))
        steps = [line.strip() for line in found[f"Reasoning ({style})"]]
        answer = "Yes" if row["exact"] else "No"
        assert [*steps, f"Answer: {answer}"] == trace(premise, claim, style).splitlines()
        why = found[f"Answer: {answer}"]
        if row["exact"]:
            assert why == ["  The claim holds in every member of the class."]
            continue
        failing = sum(not holds(dag, claim) for dag in members)
        named = re.fullmatch(rf"  The claim fails in {failing} of {len(members)} members? .+ member (\d+):", why[0])
        member = members[int(named[1]) - 1]
        assert not holds(member, claim)
        edges = {tuple(map(premise.variables.index, edge)) for edge in re.findall(r"(\w) -> (\w)", why[1])}
        assert edges == set(dag_edges(member))


def test_a_class_too_large_to_list_is_counted_and_drawn_in_part(tmp_path, capsys):
    text = c.write_premise(premise_of(tuple((1 << v) - 1 for v in range(10))))
    asked = f"Premise: {text}\nHypothesis: There exists at least one confounder (i.e., common cause) of A and B."
    assert main([asked, "--figure", str(tmp_path / "class.svg")]) == 0
    out = capsys.readouterr().out
    assert "\nClass: 3,628,800 members (" in out
    share, edges = re.search(r"fails in at least ([\d,]+) of 3,628,800 members .+:\n((?: .+\n)+)", out).groups()
    assert 1 <= int(share.replace(",", "")) <= MAX_LISTED + 1 and edges.count("->") == 45
    figure = (tmp_path / "class.svg").read_text()
    assert "<svg" in figure


def test_what_small_sets_leave_open_is_one_line(capsys):
    text = c.write_premise(premise_of((0, 1, 10, 1), 1))
    assert main([f"Premise: {text}\nHypothesis: A directly causes B."]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "leaves open whether A and B (and 4 more pairs) are adjacent" in error


def test_a_row_of_a_dataset_is_explained_by_its_number_and_a_wrong_given_label_is_said(small_dataset, capsys):
    for number in (0, 7):
        row = rows(3)[number]
        assert main([str(number), "--dataset", str(small_dataset), "--model", "none"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"Row {number} of {small_dataset}, split test\n\nClaim\n  {row['hypothesis']}\n")
        wrong = 1 - row["exact"]
        said = f"The given label is {wrong} ({('No', 'Yes')[wrong]}), which is wrong."
        assert (said in out) == (number == 7) and ("given label" in out) == (number == 7)
    assert main(["2", "--dataset", str(small_dataset), "--split", "other", "--style", "full"]) == 0
    assert "split other" in capsys.readouterr().out


@pytest.mark.parametrize("suffix, begins", [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_a_figure_is_written_and_replaced_only_if_asked(suffix, begins, tmp_path, capsys):
    file = tmp_path / f"class{suffix}"
    asked = [COLLIDER, "--model", "none", "--figure", str(file)]
    assert main(asked) == 0
    assert capsys.readouterr().out.endswith(f"\nFigure: {file}\n")
    assert file.read_bytes().startswith(begins)
    file.write_text("mine")
    assert main(asked) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "--figure" in captured.err and "--overwrite true" in captured.err
    assert file.read_text() == "mine"
    assert main([*asked, "--overwrite"]) == main([*asked, "--overwrite", "true"]) == 0
    assert file.read_bytes().startswith(begins) and [*tmp_path.iterdir()] == [file]


def test_the_reasoner_is_asked_by_default_and_every_sentence_of_its_is_marked(capsys, tmp_path, monkeypatch):
    """Whatever it says, from whatever folder it is asked: the marks are those of the checker."""
    verdicts = set()
    asked = random.Random(1).sample(rows(3) + rows(4), 4)
    for folder, row in zip((ROOT, ROOT / "docs", tmp_path, ROOT), asked, strict=True):
        monkeypatch.chdir(folder)
        assert main([row["input"]]) == 0
        name = os.path.relpath(ROOT / "reasoner")
        found = sections(capsys.readouterr().out)
        (said,) = (lines for title, lines in found.items() if title.startswith(f"Reasoning of {name}, on a graph that"))
        premise, claim = c.parse_input(row["input"])
        marks = Counter()
        for mark, sentence in (line.split(maxsplit=1) for line in said):
            step = read_step(sentence, premise.variables)
            right = step is not None and is_right(step, premise, claim)
            assert mark in ("missing", "unreadable" if step is None else "right" if right else "wrong")
            marks[mark] += 1
        said = [line for line in said if not line.startswith("  missing")]
        last = said[-1].split(maxsplit=1)[-1]
        answer = last.removeprefix("Answer: ") if last in ("Answer: Yes", "Answer: No") else "none"
        exact = ("No", "Yes")[row["exact"]]
        (whole,) = found[f"Answer of {name}: {answer}; the true answer: {exact}"]
        verdict = "no answer" if answer == "none" else "right" if answer == exact else "wrong"
        counts = f"{marks['right']} right, {marks['wrong']} wrong, {marks['unreadable']} unreadable, "
        assert whole.startswith(f"  {verdict}; of its sentences {counts}")
        verdicts.add(answer)
    assert verdicts & {"Yes", "No"}


def test_a_question_that_does_not_fit_into_the_model_is_explained_without_it(capsys):
    """Eight variables that nothing connects: all of their independences are more than the reasoner can read."""
    premise = Premise(LETTERS[:8], d_separations((0,) * 8))
    assert main([c.write_input(c.write_premise(premise), "A directly causes B.")]) == 0
    captured = capsys.readouterr()
    assert "\nAnswer: No\n" in captured.out and captured.err == ""
    (why,) = sections(captured.out)["Reasoning of reasoner: none"]
    assert re.match("  sequences of up to .* tokens: the model takes 4096; ", why)


# ---------------------------------------------------------------- questions that are typed


def test_questions_end_with_an_empty_line_or_are_whole_on_one():
    premise, hypothesis = COLLIDER.split("\n")
    typed = COLLIDER.replace("\n", "\\n")
    assert [*questions([typed, premise, hypothesis, "", "", typed])] == [COLLIDER] * 3
    assert [*questions(["", premise, hypothesis])] == [COLLIDER]  # the last without an empty line
    assert [*questions([typed, " quit ", typed])] == [COLLIDER]
    wrapped = [premise[:60], premise[60:], hypothesis, ""]
    assert [explain(text) for text in questions(wrapped)] == [explain(COLLIDER)]
    assert [*questions([])] == [*questions(["", "quit"])] == []


def test_interactive_keeps_asking_one_model_and_a_bad_question_is_one_line(capsys, monkeypatch):
    loaded = []
    monkeypatch.setattr(asking, "load", lambda model, load=asking.load: loaded.append(model) or load(model))
    bad = "Premise: it rains.\n\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{COLLIDER}\n\n{bad}{COLLIDER}\n\n"))
    assert main(["--interactive"]) == 0
    captured = capsys.readouterr()
    first, second, rest = captured.out.split("Claim\n")[1:] + [""]
    assert first == second and rest == "" and "Answer of reasoner: " in first
    assert re.fullmatch("error: the text: expected 'Premise: .*\n", captured.err)
    assert loaded == ["reasoner"]


def test_interactive_reads_a_pipe_of_any_bytes():
    command = [sys.executable, "explain.py", "--interactive", "--model", "none"]
    typed = b"\xff\xfe\n\n" + COLLIDER.encode() + b"\n"
    done = subprocess.run(command, cwd=ROOT, input=typed, capture_output=True)
    assert (
        done.returncode == 0
        and done.stderr.startswith(b"error: the text: expected")
        and b"\nAnswer: Yes\n" in done.stdout
    )


def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "explain.py", COLLIDER, "--model", "none"]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **quiet)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 0)


BAD_OPTIONS = [
    ("", "nothing to do; give 'Premise"),
    ("--explian x", "unrecognized arguments: --explian; --help lists"),
    ("x --style verbose", "--style: invalid choice"),
    ("Premise:x", "the text: expected 'Premise: "),
    ("3", "row 3: a row number needs --dataset"),
    ("x --interactive", "--interactive asks for the questions itself; leave out TEXT"),
    ("--interactive --model TMP", "model .*: no safetensors weights in it"),
    ("--interactive --dataset DATA --figure TMP/x.png", "--interactive .* leave out --dataset, --figure"),
    ("--serve --interactive x", "--interactive: invalid choice"),
    ("--serve --interactive", "--serve asks for the questions itself; leave out --interactive"),
    ("x --port 8000", "--port: is of the page; add --serve"),
    ("x --split test", "--split: .* name one with --dataset"),
    ("x --dataset DATA", "row 'x': .* 0-based number of a row"),
    ("-1 --dataset DATA", "row '-1': .* 0-based number of a row"),
    ("90 --dataset DATA", "row 90: split test of .* has 90 rows; use 0 to 89"),
    ("9 --dataset DATA", "row 9: the premise states .* twice|row 9: .* out of place"),
    ("3 --dataset DATA --split dev", "--split: .* has test, other"),
    ("x --model", "--model: expected one argument"),
    ("3 --dataset TMP", "--dataset .*: not a dataset of preprocess.py; write one"),
    ("3 --dataset TMP/none", "--dataset .*: not a dataset of preprocess.py; write one"),
    ("x --figure TMP/class.gif", "--figure .*: name a file that ends in .png, .svg, .pdf"),
    ("x --figure TMP/class", "--figure .*: name a file that ends in"),
    ("x --figure TMP/folder.png", "--figure .*: is a folder; name a file in it"),
    ("x --figure TMP/none/class.png", "--figure .*: there is no folder .*/none; make it"),
    ("x --figure TMP/file.png/class.png", "--figure .*: there is no folder .*; make it"),
    ("x --figure /proc/class.png", "--figure .*: cannot be written .*; name another"),
]


@pytest.mark.parametrize("options, message", BAD_OPTIONS)
def test_errors_are_one_line_that_names_the_option_and_exit_status_2(options, message, small_dataset, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.png").touch()
    options = options.replace("DATA", str(small_dataset)).replace("TMP", str(tmp_path))
    assert main(options.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert re.match(f"error: .*(?:{message})", captured.err)


def test_a_model_that_cannot_be_loaded_is_named_after_what_is_exact(tmp_path, capsys):
    assert main([COLLIDER, "--model", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out.endswith("The claim holds in every member of the class.\n")
    assert re.fullmatch("error: model .*: no safetensors weights in it; .*\n", captured.err)


def test_the_page_needs_its_library_and_a_port_that_is_free(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--serve"]) == 2
    assert capsys.readouterr().err == "error: --serve: needs gradio; pip install -r requirements-page.txt\n"
    assert (ROOT / "requirements-page.txt").is_file()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for given, said in (
            (port, "cannot be listened on \\(Address.* name another"),
            (0, "give 1 to"),
            (70000, "give 1 to"),
        ):
            assert main(["--serve", "--port", str(given)]) == 2
            assert re.match(f"error: --port {given}: {said}", capsys.readouterr().err)


def test_a_full_disk_leaves_the_old_figure(tmp_path, capsys, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, file, **options):
        Path(file).write_text("half")
        raise OSError(28, "No space left on device")

    file = tmp_path / "class.png"
    file.write_text("old")
    monkeypatch.setattr(Figure, "savefig", fail)
    assert main([COLLIDER, "--model", "none", "--figure", str(file), "--overwrite"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: --figure {file}: cannot be written (No space left on device); name another\n"
    )
    assert file.read_text() == "old" and [*tmp_path.iterdir()] == [file]


def test_the_command_needs_no_slow_library_for_a_text():
    """Nor for options that are wrong: a dataset is only looked into when all else is right."""
    slow = "torch transformers datasets matplotlib".split()
    for options, status in (
        ([COLLIDER, "--model", "none"], 0),
        (["3", "--dataset", "none"], 2),
        (["3", "--figure", "x.gif"], 2),
    ):
        code = f"import sys, explain; status = explain.main({[*options]!r})\n"
        code += f"print(status, [name for name in {slow!r} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
        assert done.stdout.splitlines()[-1] == f"{status} []", done.stderr
    command = [sys.executable, "explain.py", COLLIDER, "--model", "none"]
    assert "\nAnswer: Yes\n" in subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout
