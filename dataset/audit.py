"""Audit of a file's labels: every row read by its text alone, and its label compared with the exact one.

Three files are written: audit.jsonl, one line a row whose label is wrong, with the proof (every member of the premise's
equivalence class and, where the label should be 0, a member in which the claim fails); problems.jsonl, one line a row
that has no exact label (unparsable, contradictory, unsatisfiable) or no usable label of its own; summary.json.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from causal import wording
from causal.graphs import (
    DAG,
    RELATIONS,
    Premise,
    UnsatisfiableError,
    counterexample,
    dag_edges,
    exact_label,
    markov_equivalence_class,
)
from dataset.sources import check_columns, read_label

FILES = ("audit.jsonl", "problems.jsonl", "summary.json")
PROBLEMS = ("unparsable", "contradictory", "unsatisfiable", "label")


def named_edges(dag: DAG, premise: Premise) -> list[list[str]]:
    """The edges of a member of the class as [cause, effect] pairs of names."""
    return [[premise.variables[u], premise.variables[v]] for u, v in dag_edges(dag)]


def audit_record(number: int, record: dict) -> dict:
    """What is found in one record: a `problem` with its `reason`; or given and exact label, and if they differ, why."""
    try:
        given = read_label(record)
    except ValueError as error:
        return {"row": number, "problem": "label", "reason": str(error)}
    try:
        premise, claim = wording.parse_input(record["input"])
        members = markov_equivalence_class(premise)
    except wording.Corr2CauseError as error:
        kinds = {UnsatisfiableError: "unsatisfiable", wording.ContradictionError: "contradictory"}
        return {"row": number, "problem": kinds.get(type(error), "unparsable"), "reason": str(error)}
    exact, n = exact_label(members, claim), len(premise.variables)
    found = {"row": number, "given": given, "exact": exact, "num_variables": n, "relation": claim.relation}
    if given != exact:
        found["hypothesis"] = wording.split_input(record["input"])[1]
        found["members"] = [named_edges(dag, premise) for dag in members]
        found["counterexample"] = None if exact else named_edges(counterexample(members, claim), premise)
    return found


def audit(records: Iterable[dict]) -> Iterator[dict]:
    """`audit_record` of every record. Raises ValueError if the first one lacks a column."""
    for number, record in enumerate(records):
        if number == 0:
            check_columns(record)
        yield audit_record(number, record)


def write_audit(records: Iterable[dict], directory: Path) -> dict:
    """Writes FILES into `directory`; the summary: counts of rows, wrong labels and problems, by N and relation."""
    cells: dict[tuple[int, str], Counter] = {}
    problems: Counter = Counter()
    with (directory / "audit.jsonl").open("w") as wrong_file, (directory / "problems.jsonl").open("w") as problem_file:
        for found in audit(records):
            if "problem" in found:
                problems[found["problem"]] += 1
                problem_file.write(json.dumps(found) + "\n")
                continue
            cell = cells.setdefault((found["num_variables"], found["relation"]), Counter())
            change = f"{found['given']} to {found['exact']}" if "members" in found else "right"
            cell.update(["rows", change, f"exact_{found['exact']}"])
            if "members" in found:
                wrong_file.write(json.dumps(found) + "\n")
    order = sorted(cells, key=lambda cell: (cell[0], RELATIONS.index(cell[1])))
    counts = {"rows": "rows", "exact_1": "exact_1", "wrong_0_to_1": "0 to 1", "wrong_1_to_0": "1 to 0"}
    by_cell = [
        {"num_variables": n, "relation": relation} | {name: cells[n, relation][key] for name, key in counts.items()}
        for n, relation in order
    ]
    summary = {
        "rows": sum(cell["rows"] for cell in by_cell) + sum(problems.values()),
        "audited": sum(cell["rows"] for cell in by_cell),
        "wrong": sum(cell["wrong_0_to_1"] + cell["wrong_1_to_0"] for cell in by_cell),
        "problems": {kind: problems[kind] for kind in PROBLEMS},
        "by_num_variables_and_relation": by_cell,
    }
    (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def audit_table(summary: dict) -> str:
    """The summary as the console shows it."""
    columns = ("rows", "exact_1", "wrong_0_to_1", "wrong_1_to_0")
    lines = [
        f"{summary['rows']:,} rows, {summary['audited']:,} with an exact label, {summary['wrong']:,} of them wrong"
    ]
    lines += [f"{count:,} rows {kind}" for kind, count in summary["problems"].items() if count]
    lines += ["", f"{'N':>2}  {'relation':<12}{'rows':>9}{'exact 1':>9}{'0, is 1':>9}{'1, is 0':>9}"]
    for cell in summary["by_num_variables_and_relation"]:
        numbers = "".join(f"{cell[column]:>9,}" for column in columns)
        lines.append(f"{cell['num_variables']:>2}  {cell['relation']:<12}{numbers}")
    return "\n".join(lines)
