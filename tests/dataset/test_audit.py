"""The audit: every wrong label found and proved by networkx, and nothing else; problems named with their row."""

import csv
import json
import random
import sys
from collections import Counter

import networkx as nx
import pytest
from brute_force import nx_d_separations, nx_holds, parsed, rows

import preprocess
from causal import wording as c
from causal.classes import Premise, markov_equivalence_class, premise_of
from causal.rows import generate_rows
from dataset.audit import FILES, audit_table, write_audit

GOOD = rows(4)[100]["input"]
NONE = GOOD.split(" All")[0] + " All the statistical relations among these 4 variables are as follows: "


def audit(tmp_path, records):
    numbered = [record | {"row": f"row {i}"} for i, record in enumerate(records)]
    summary = write_audit(numbered, tmp_path)
    lines = {
        name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("audit.jsonl", "problems.jsonl")
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    return lines["audit.jsonl"], lines["problems.jsonl"], summary


def test_the_released_mistakes_are_found_and_proved(tmp_path):
    released = [row for n in (3, 4, 5) for row in generate_rows(n, labels="released")]
    exact = [row["label"] for n in (3, 4, 5) for row in rows(n)]
    wrong, problems, summary = audit(tmp_path, [{"input": row["input"], "label": row["label"]} for row in released])
    assert not problems and summary["rows"] == summary["audited"] == len(released) == 9330
    assert summary["wrong"] == len(wrong) == 207
    assert [entry["row"] for entry in wrong] == [
        i for i, (row, label) in enumerate(zip(released, exact, strict=True)) if row["label"] != label
    ]
    for entry in wrong:
        premise, claim = parsed(released[entry["row"]])
        assert (entry["given"], entry["exact"]) == (released[entry["row"]]["label"], exact[entry["row"]])
        members = [graph_of(edges, premise) for edges in entry["members"]]
        assert all(nx_d_separations(member) == premise.independences for member in members)
        assert len(members) == len(markov_equivalence_class(premise))
        assert all(nx_holds(member, claim) for member in members) == entry["exact"]
        if entry["exact"]:
            assert entry["counterexample"] is None
        else:
            assert entry["counterexample"] in entry["members"]
            assert not nx_holds(graph_of(entry["counterexample"], premise), claim)


def graph_of(edges, premise):
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(premise.variables)))
    graph.add_edges_from((premise.variables.index(u), premise.variables.index(v)) for u, v in edges)
    return graph


def test_counts_by_size_and_relation(tmp_path):
    sample = random.Random(0).sample([*rows(3), *rows(4)], 300)
    flipped = [{"input": row["input"], "label": row["label"] ^ (i % 7 == 0)} for i, row in enumerate(sample)]
    wrong, _, summary = audit(tmp_path, flipped)
    cells = {(cell["num_variables"], cell["relation"]): cell for cell in summary["by_num_variables_and_relation"]}
    relation = {id(row): c.RELATION_OF[row["template"]] for row in sample}
    total = Counter((row["num_variables"], relation[id(row)]) for row in sample)
    ones = Counter((row["num_variables"], relation[id(row)]) for row in sample if row["label"])
    off = Counter((row["num_variables"], relation[id(row)], row["label"]) for row in sample[::7])
    assert set(cells) == set(total) and summary["wrong"] == len(wrong) == len(sample[::7])
    for cell, counts in cells.items():
        assert counts["rows"] == total[cell] and counts["exact_1"] == ones[cell]
        assert (counts["wrong_0_to_1"], counts["wrong_1_to_0"]) == (off[(*cell, 1)], off[(*cell, 0)])


@pytest.mark.parametrize(
    ("record", "problem", "reason"),
    [
        ({"input": GOOD, "label": 2}, "label", "row 1: label is 2"),
        ({"input": GOOD}, "label", "row 1: no column label"),
        ({"input": "Hello", "label": 0}, "unparsable", "expected 'Premise: "),
        ({"input": None, "label": 0}, "unparsable", "NoneType, not text"),
        (
            {"input": GOOD.replace("Hypothesis:", "Hypothesis: not"), "label": 0},
            "unparsable",
            "cannot read the hypothesis",
        ),
        ({"input": GOOD.replace("A correlates with B. ", ""), "label": 0}, "unparsable", "leaves A and B neither"),
        (
            {"input": GOOD.replace("\n", " A is independent of B.\n"), "label": 0},
            "contradictory",
            "leaves A and B both correlated and independent",
        ),
        (
            {"input": GOOD.replace("\n", " A and B are independent given C and D.\n"), "label": 1},
            "unsatisfiable",
            "no graph satisfies the premise over A, B, C, D",
        ),
    ],
)
def test_rows_without_an_exact_label_are_named_and_never_guessed(tmp_path, record, problem, reason):
    assert "A correlates with B. " in GOOD and "However" in GOOD
    good = {"input": GOOD, "label": rows(4)[100]["label"]}
    wrong, problems, summary = audit(tmp_path, [good, record, good])
    assert not wrong and [(entry["row"], entry["problem"]) for entry in problems] == [(1, problem)]
    assert reason in problems[0]["reason"]
    assert (summary["rows"], summary["audited"], summary["problems"][problem]) == (3, 2, 1)


def test_pairs_that_lack_a_separating_set_are_named(tmp_path):
    """A chain of five without the sets that part A and C; and small sets that leave a pair open."""
    chain, ring = premise_of((0, 1, 2, 4, 8)), premise_of((0, 1, 10, 1), 1)
    lost = {stated for stated in chain.independences if stated[:2] == (0, 2)}
    small = {stated for stated in chain.independences if stated[2].bit_count() < 2}
    records = [
        {"input": c.write_input(c.write_premise(premise), "A directly causes B."), "label": 0}
        for premise in (
            Premise(chain.variables, chain.independences - lost),
            Premise(chain.variables, frozenset(small)),
            ring,
            chain,
        )
    ]
    _, problems, summary = audit(tmp_path, records)
    assert [entry["problem"] for entry in problems] == ["unsatisfiable", "unsatisfiable", "underdetermined"]
    first, second, third = problems
    assert first["lacking"] == [["A", "C"]] and first["num_missing"] == len(lost) == len(first["missing"])
    assert "A and C are independent given B." in first["missing"] and first["unsaid_limit"] is None
    assert second["lacking"] == [] and second["unsaid_limit"] == 1
    assert second["num_missing"] == len(chain.independences) - len(small)
    assert ["A", "C"] in third["lacking"]
    assert summary["problems"]["underdetermined"] == 1 and summary["lacking_separating_sets"] == 2
    assert "2 rows lack a separating set of some pairs" in audit_table(summary)


def test_a_class_too_large_to_list_is_counted(tmp_path):
    text = c.write_input(c.write_premise(premise_of(tuple((1 << v) - 1 for v in range(8)))), "A directly causes B.")
    (entry,), _, _ = audit(tmp_path, [{"input": text, "label": 1}])
    assert (entry["class_size"], entry["members"]) == (40320, None)
    assert ["B", "A"] in entry["counterexample"] and len(entry["counterexample"]) == 28


def test_the_text_alone_counts(tmp_path):
    """Other columns may be missing or wrong."""
    record = {"input": GOOD, "label": 1 - rows(4)[100]["label"], "num_variables": 9, "template": "?"}
    wrong, _, _ = audit(tmp_path, [record])
    assert [entry["row"] for entry in wrong] == [0]


def test_the_command_writes_three_files_and_overwrites_only_its_own(monkeypatch, tmp_path, capsys):
    path, out = tmp_path / "rows.csv", tmp_path / "out"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("input", "label"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(generate_rows(4, labels="released"))
    command = ["preprocess.py", "--audit", str(path), "--output_dir", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    preprocess.main()
    assert {entry.name for entry in out.iterdir()} == set(FILES)
    assert "720 rows, 720 with an exact label, 7 of them wrong" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not empty"):
        preprocess.main()
    monkeypatch.setattr(sys, "argv", [*command, "--overwrite", "true"])
    preprocess.main()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="files that are not of this script"):
        preprocess.main()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("input,label\n", [], "audit: .*rows.csv: no rows in it"),
        (
            "input,label\nx,1\n",
            ["--labels", "given", "--seed", "2"],
            "labels, seed: an audit reads the rows of its file",
        ),
    ],
)
def test_what_an_audit_does_not_read_is_refused(tmp_path, monkeypatch, text, options, message):
    (tmp_path / "rows.csv").write_text(text)
    words = ["x", "--audit", str(tmp_path / "rows.csv"), "--output_dir", str(tmp_path / "out"), *options]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(ValueError, match=message):
        preprocess.main()
    assert not (tmp_path / "out").exists()


def test_rows_are_numbered_as_in_the_file(tmp_path, monkeypatch):
    """An empty one, as spreadsheets leave, counts."""
    (tmp_path / "rows.csv").write_text("input,label\n,\nnonsense,1\n")
    monkeypatch.setattr(
        sys, "argv", ["x", "--audit", str(tmp_path / "rows.csv"), "--output_dir", str(tmp_path / "out")]
    )
    preprocess.main()
    assert json.loads((tmp_path / "out" / "problems.jsonl").read_text())["row"] == 1


def test_a_file_without_the_columns_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\nx,1\n")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["x", "--audit", str(tmp_path / "rows.csv"), "--output_dir", str(out)])
    with pytest.raises(ValueError, match="row 0: no column input; the columns are text, label"):
        preprocess.main()
    assert not out.exists()
