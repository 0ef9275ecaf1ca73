"""Audit of a file's labels: every row read by its text alone, and its label compared with the exact one.

Three files are written: audit.jsonl, one line a row whose label is wrong, with the proof (every member of the premise's
equivalence class, unless there are more than MAX_LISTED, and, where the label should be 0, a member in which the claim
fails); problems.jsonl, one line a row
that has no exact label (unparsable, contradictory, unsatisfiable, underdetermined) or no usable label of its own, and
where a premise has no class, which pairs lack a separating set; summary.json.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from causal import wording
from causal.claims import MAX_LISTED, RELATIONS, counterexample, exact_label
from causal.classes import NoClassError, Premise, class_size, markov_equivalence_class, undecided_pairs
from causal.graphs import DAG, dag_edges
from causal.omissions import omission, unsaid_limit
from dataset.sources import check_columns, read_label

FILES = ("audit.jsonl", "problems.jsonl", "summary.json")
PROBLEMS = ("unparsable", "contradictory", "unsatisfiable", "underdetermined", "label")
MAX_MISSING = 20  # independences that are named of those that a premise may have left out


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
        exact, n = exact_label(premise, claim), len(premise.variables)
    except NoClassError as error:
        return {"row": number, "problem": error.kind, "reason": str(error), **left_out(premise)}
    except wording.Corr2CauseError as error:
        problem = "contradictory" if isinstance(error, wording.ContradictionError) else "unparsable"
        return {"row": number, "problem": problem, "reason": str(error)}
    found = {"row": number, "given": given, "exact": exact, "num_variables": n, "relation": claim.relation}
    if given != exact:
        found["hypothesis"] = wording.split_input(record["input"])[1]
        found["class_size"] = class_size(premise)
        listed = markov_equivalence_class(premise) if found["class_size"] <= MAX_LISTED else None
        found["members"] = listed and [named_edges(dag, premise) for dag in listed]
        found["counterexample"] = None if exact else named_edges(counterexample(premise, claim), premise)
    return found


def left_out(premise: Premise) -> dict:
    """What a premise without a class may lack. `lacking`: the pairs without a separating set, by which they would be
    adjacent, and with one a graph could fit (None: no such few pairs are found); `missing`: independences to be added,
    MAX_MISSING of `num_missing`; `unsaid_limit`: the size beyond which no set is listed, if saying so is enough."""

    def named(pairs: Iterable[tuple[int, int]]) -> list[list[str]]:
        return [[premise.variables[v] for v in pair] for pair in pairs]

    undecided = undecided_pairs(premise)
    if undecided:
        return {"lacking": named(undecided)}
    found = omission(premise)
    missing = () if found is None else found.missing
    return {
        "lacking": found and named(found.pairs),
        "missing": [wording.write_independence(stated, premise.variables) for stated in missing[:MAX_MISSING]],
        "num_missing": len(missing),
        "unsaid_limit": unsaid_limit(premise),
    }


def audit(records: Iterable[dict]) -> Iterator[dict]:
    """`audit_record` of every record. Raises ValueError if the first one lacks a column."""
    for index, record in enumerate(records):
        if index == 0:
            check_columns(record)
        yield audit_record(int(record["row"].removeprefix("row ")), record)


def write_audit(records: Iterable[dict], directory: Path) -> dict:
    """Writes FILES into `directory`; the summary: counts of rows, wrong labels and problems, by N and relation."""
    cells: dict[tuple[int, str], Counter] = {}
    problems: Counter = Counter()
    lacking = 0
    with (directory / "audit.jsonl").open("w") as wrong_file, (directory / "problems.jsonl").open("w") as problem_file:
        for found in audit(records):
            if "problem" in found:
                problems[found["problem"]] += 1
                lacking += bool(found.get("lacking"))
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
        "lacking_separating_sets": lacking,
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
    if summary["lacking_separating_sets"]:
        lacking = f"{summary['lacking_separating_sets']:,} rows lack a separating set of some pairs"
        lines.append(f"{lacking}: problems.jsonl names them")
    lines += ["", f"{'N':>2}  {'relation':<12}{'rows':>9}{'exact 1':>9}{'0, is 1':>9}{'1, is 0':>9}"]
    for cell in summary["by_num_variables_and_relation"]:
        numbers = "".join(f"{cell[column]:>9,}" for column in columns)
        lines.append(f"{cell['num_variables']:>2}  {cell['relation']:<12}{numbers}")
    return "\n".join(lines)
