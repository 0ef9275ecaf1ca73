"""The explanation of one row: sections, figures, errors of one line."""

import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from brute_force import rows
from datasets import Dataset, DatasetDict

from causal import graphs as g
from causal import wording as c
from causal.reasoning import STYLES, is_right, read_step, trace
from explain import explain, main

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
    assert main([COLLIDER.replace("\n", "\\n")]) == 0
    out = capsys.readouterr().out
    found = sections(out)
    legend = "('->': as in every member, '-': members differ)"
    assert list(found) == [
        "Claim", "Independences: 1", f"Class: 1 member {legend}", "Reasoning (compact)", "Answer: Yes"
    ]  # fmt: skip
    assert found["Independences: 1"] == ["  A is independent of B."]
    assert found[f"Class: 1 member {legend}"] == ["  A -> C, B -> C"]
    assert found["Answer: Yes"] == ["  The claim holds in every member of the class."]
    assert main([COLLIDER]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("style", STYLES)
def test_explained_reasoning_and_counterexample_are_exact(style):
    for row in random.Random(5).sample(rows(4), 60):
        premise, hypothesis = c.parse_premise(row["premise"]), row["hypothesis"]
        claim, members = c.parse_hypothesis(hypothesis, premise.variables), g.markov_equivalence_class(premise)
        found = sections(explain(row["input"], style))
        steps = [line.strip() for line in found[f"Reasoning ({style})"]]
        answer = "Yes" if row["exact"] else "No"
        assert [*steps, f"Answer: {answer}"] == trace(premise, claim, style).splitlines()
        why = found[f"Answer: {answer}"]
        if row["exact"]:
            assert why == ["  The claim holds in every member of the class."]
            continue
        failing = sum(not g.holds(dag, claim) for dag in members)
        named = re.fullmatch(rf"  The claim fails in {failing} of {len(members)} members? .+ member (\d+):", why[0])
        member = members[int(named[1]) - 1]
        assert not g.holds(member, claim)
        edges = {tuple(map(premise.variables.index, edge)) for edge in re.findall(r"(\w) -> (\w)", why[1])}
        assert edges == set(g.dag_edges(member))


def test_a_row_of_a_dataset_is_explained_by_its_number_and_a_wrong_given_label_is_said(small_dataset, capsys):
    for number in (0, 7):
        row = rows(3)[number]
        assert main([str(number), "--dataset", str(small_dataset)]) == 0
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
    asked = [COLLIDER, "--figure", str(file)]
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


def test_a_model_is_asked_and_every_sentence_of_its_is_marked(capsys):
    """The reasoner that ships: whatever it says, the marks are those of the checker."""
    verdicts = set()
    for row in random.Random(1).sample(rows(3) + rows(4), 4):
        assert main([row["input"], "--model", str(ROOT / "reasoner")]) == 0
        found = sections(capsys.readouterr().out)
        (said,) = (lines for title, lines in found.items() if title.startswith("Reasoning of "))
        premise, claim = c.parse_input(row["input"])
        marks = Counter()
        for mark, sentence in (line.split(maxsplit=1) for line in said):
            step = read_step(sentence, premise.variables)
            right = step is not None and is_right(step, premise, claim)
            assert mark in ("missing", "unread" if step is None else "right" if right else "wrong")
            marks[mark] += 1
        said = [line for line in said if not line.startswith("  missing")]
        answer = {"Answer: Yes": 1, "Answer: No": 0}.get(said[-1].split(maxsplit=1)[-1])
        verdict = "no answer" if answer is None else "right" if answer == row["exact"] else "wrong"
        (whole,) = found[f"Answer of {ROOT / 'reasoner'}"]
        counts = f"{marks['right']} right, {marks['wrong']} wrong, {marks['unread']} unreadable, "
        assert whole.startswith(f"  {verdict}; of its sentences {counts}")
        verdicts.add(answer)
    assert verdicts & {0, 1}


BAD_OPTIONS = [
    ("", "nothing to do; give 'Premise"),
    ("--explian x", "unrecognized arguments: --explian; --help lists"),
    ("x --style verbose", "--style: invalid choice"),
    ("Premise:x", "the text: expected 'Premise: "),
    ("3", "row 3: a row number needs --dataset"),
    ("x --split test", "--split: .* name one with --dataset"),
    ("x --dataset DATA", "row 'x': .* 0-based number of a row"),
    ("-1 --dataset DATA", "row '-1': .* 0-based number of a row"),
    ("90 --dataset DATA", "row 90: split test of .* has 90 rows; use 0 to 89"),
    ("9 --dataset DATA", "row 9: the premise states .* twice|row 9: .* out of place"),
    ("3 --dataset DATA --split dev", "--split: .* has test, other"),
    ("x --model", "--model: expected one argument"),
    ("0 --dataset DATA --model TMP", "model .*: no safetensors weights in it"),
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


def test_a_full_disk_leaves_the_old_figure(tmp_path, capsys, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, file, **options):
        Path(file).write_text("half")
        raise OSError(28, "No space left on device")

    file = tmp_path / "class.png"
    file.write_text("old")
    monkeypatch.setattr(Figure, "savefig", fail)
    assert main([COLLIDER, "--figure", str(file), "--overwrite"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: --figure {file}: cannot be written (No space left on device); name another\n"
    )
    assert file.read_text() == "old" and [*tmp_path.iterdir()] == [file]


def test_the_command_needs_no_slow_library_for_a_text():
    """Nor for options that are wrong: a dataset is only looked into when all else is right."""
    slow = "torch transformers datasets matplotlib".split()
    for options, status in ([COLLIDER], 0), (["3", "--dataset", "none"], 2), (["3", "--figure", "x.gif"], 2):
        code = f"import sys, explain; status = explain.main({[*options]!r})\n"
        code += f"print(status, [name for name in {slow!r} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
        assert done.stdout.splitlines()[-1] == f"{status} []", done.stderr
    command = [sys.executable, "explain.py", COLLIDER]
    assert "\nAnswer: Yes\n" in subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout
