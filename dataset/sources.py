"""Rows of Corr2Cause from the hub or a file: read as they are, then parsed, with the exact label beside the given one.

A record is what the source holds, with `row`, its name in messages: the 0-based number (in its split, where the source
has splits). A parsed row has the dataset's columns, and `exact`: the oracle's label, None where no graph satisfies the
premise.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from causal import wording
from causal.claims import SYMMETRIC, Claim
from causal.classes import pdag
from causal.rows import exact_labeller, premise_columns
from runtime.settings import check

HUB_NAME = "causal-nlp/corr2cause"
HUB_CONFIGS = ("default", "perturbation_by_paraphrasing", "perturbation_by_refactorization")
LABEL_2 = "label_2_as_0"  # marks a record of the hub whose label was 2
FOLLOWS = ("1", "1.0", "true", "yes", "entailment")  # what a file may call its labels: any case, - or space for _
FOLLOWS_NOT = ("0", "0.0", "false", "no", "not_entailment", "non_entailment", "neutral", "contradiction")


def read_hub(hub_config: str) -> Iterator[dict]:
    """The records of every split, each with its `split`. Raises ValueError if the hub cannot be reached."""
    from datasets import load_dataset

    try:
        splits = load_dataset(HUB_NAME, hub_config)
    except Exception as error:  # offline, blocked, moved: the libraries raise a dozen types for it
        reason = f"cannot load {HUB_NAME} ({hub_config}): {' '.join(str(error).split())[:200]}"
        remedy = "without a network use --source FILE.csv (columns input and label) or --source generate"
        raise ValueError(f"source hub: {reason}; {remedy}") from None
    for split, records in splits.items():
        for i, record in enumerate(records):
            # The paraphrased test set has labels 1, 0 and 2, which is a 0 too (causalNLP/corr2cause, issue 3).
            label = {"label": 0, LABEL_2: True} if record.get("label") == 2 else {}
            yield record | label | {"split": split, "row": f"row {i} of {split}"}


def read_file(path: Path, setting: str) -> Iterator[dict]:
    """Records of a .csv, .json or .jsonl file in UTF-8, UTF-16 or UTF-32. Raises ValueError naming the fault.

    A .csv may have its columns apart by commas, semicolons or tabs, a .json hold a list or an object a line.
    """
    suffix = path.suffix.lower()
    check(suffix in (".csv", ".json", ".jsonl"), f"{setting}: {path} is no .csv, .json or .jsonl file")
    check(path.is_file(), f"{setting}: {path}: no such file")
    kind, line = suffix[1:].upper(), 0
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))  # by its mark, or by which bytes are 0
    layout = "" if kind == "CSV" else ", a list of objects or an object a line"
    try:
        with path.open(newline="", encoding=encoding) as file:
            for number, record in enumerate(_csv_records(file) if kind == "CSV" else _json_records(file)):
                line = number + 1
                if record is None:
                    continue
                check(isinstance(record, dict), f"{setting}: {path}: row {number} is no object; expected one a row")
                yield record | {"row": f"row {number}"}
    except (csv.Error, json.JSONDecodeError, UnicodeError, _Malformed) as error:
        at = f", after {line} rows" if line else ""
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(f"{setting}: {path}{at}: not valid {kind} in {name}{layout}: {error}") from None


class _Malformed(Exception):
    """What is no row of a file, in words."""


def _csv_records(file: TextIO) -> Iterator[dict | None]:
    """The rows under their header, without the nameless columns that spreadsheets leave behind; None for an empty one,
    which counts as a row in the others' numbers."""
    csv.field_size_limit(sys.maxsize)  # of N = 10 a premise may have half a million characters
    header = file.readline()
    file.seek(0)
    records = csv.DictReader(file, strict=True, delimiter=max(",;\t", key=header.count))
    names = [name for name in records.fieldnames or [] if name.strip()]
    _check_distinct(names)
    for record in records:
        more = record.pop(None, [])
        if any(more):
            raise _Malformed(f"a row has more cells than the header: {more}")
        yield {name: record[name] for name in names} if any(record.values()) else None


def _json_records(file: TextIO) -> Iterable:
    """The objects of a list, or those of the lines."""
    first = next((character for character in iter(lambda: file.read(1), "") if not character.isspace()), "")
    file.seek(0)
    if first == "[" and file.name.lower().endswith(".json"):
        return json.load(file, object_pairs_hook=_object)
    return (json.loads(text, object_pairs_hook=_object) for text in file if text.strip())


def _object(pairs: list[tuple]) -> dict:
    _check_distinct([name for name, _ in pairs])
    return dict(pairs)


def _check_distinct(names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise _Malformed(f"{', '.join(twice)} is there twice; keep one")


@lru_cache(maxsize=8192)
def _of_premise(text: str) -> tuple[dict, Callable[[Claim], int | None]]:
    """The columns that a premise's rows share, and their exact labels: once a premise, which has up to 270 rows."""
    premise = wording.parse_premise(text)
    return premise_columns(premise, text), exact_labeller(premise)


def parse_row(record: dict) -> dict:
    """The task's columns of one record, and its label as `exact`. Raises Corr2CauseError if it cannot be read."""
    premise_text, hypothesis = wording.split_input(record["input"])
    shared, exact = _of_premise(premise_text)
    claim, template = wording.read_hypothesis(hypothesis, wording.parse_premise(premise_text).variables)
    n = record.get("num_variables")
    n = shared["num_variables"] if n in (None, "") else n
    if str(n).removesuffix(".0") != str(shared["num_variables"]):
        raise wording.Corr2CauseError(f"num_variables is {n}, but the premise has {shared['num_variables']}")
    kept = {key: record.get(key) for key in ("row", "split", LABEL_2)}
    texts = {"input": wording.write_input(premise_text, hypothesis), "hypothesis": hypothesis}
    return {**kept, **shared, **texts, "template": template, "exact": exact(claim)}


def check_columns(record: dict, columns: Sequence[str] = ("input", "label")) -> None:
    """Raises ValueError naming the row unless the record has these columns, with one value each."""
    missing = [column for column in columns if column not in record]
    found = ", ".join(str(column) for column in record if column != "row")
    check(not missing, f"{record['row']}: no column {' and '.join(missing)}; the columns are {found}")
    one = not any(isinstance(record[column], list | dict) for column in columns)
    check(one, f"{record['row']}: the file has columns, not rows; write it with orient='records'")


def read_label(record: dict) -> int:
    """The record's label, in any of the forms FOLLOWS and FOLLOWS_NOT. Raises ValueError naming the row for another, or
    for none."""
    check_columns(record)
    given = re.sub("[ -]", "_", str(record["label"]).strip().lower())
    known = f"use 1 (the hypothesis follows) or 0 (it does not); {', '.join(FOLLOWS[2:])} and their opposites are read"
    check(given in FOLLOWS + FOLLOWS_NOT, f"{record['row']}: label is {record['label']!r}; {known}")
    return int(given in FOLLOWS)


def label_records(
    records: Iterable[dict], labels: str, skip_unparsable: bool, given: bool = True
) -> tuple[list[dict], list[dict]]:
    """Records as rows with the task's columns, `label` (exact, or the given one) and `given_label`; and {row, reason}
    of those without an exact label. Not `given`, records need no label, and the exact one stands in its place.

    Raises ValueError naming the row for a missing column, a label that is not 0 or 1, unless it is to be skipped an
    input that cannot be read or has no exact label, and with given labels for an input that has two.
    """
    rows, unlabelled = [], []
    for record in records:
        check_columns(record, ("input",))
        own = read_label(record) if given or labels == "given" else None
        try:
            row = parse_row(record)
            if labels == "exact" and row["exact"] is None:
                pdag(wording.parse_premise(row["premise"]))  # says why
        except wording.Corr2CauseError as error:
            check(skip_unparsable, f"{record['row']}: {error} (--skip_unparsable true leaves such rows out)")
            unlabelled.append({"row": record["row"], "reason": str(error)})
            continue
        label = row["exact"] if labels == "exact" else own
        rows.append(row | {"label": label, "given_label": label if own is None else own})
    if labels == "given":
        check_agreement(rows)
    return rows, unlabelled


def claim_of(row: dict) -> tuple:
    """What a row asks, in whatever words: its premise, the relation, and the names of the two variables."""
    premise, claim = wording.parse_claim(row["premise"], row["hypothesis"])
    names = premise.variables[claim.i], premise.variables[claim.j]
    return row["premise_id"], claim.relation, *(sorted(names) if claim.relation in SYMMETRIC else names)


def check_agreement(rows: list[dict]) -> None:
    """ValueError naming two rows that make one claim of one premise, in whatever words, and have two labels."""
    first: dict[tuple, dict] = {}
    for row in rows:
        other = first.setdefault(claim_of(row), row)
        agree = other["given_label"] == row["given_label"]
        check(agree, f"{other['row']} and {row['row']}: one input with two labels; use labels exact, or mend the file")
