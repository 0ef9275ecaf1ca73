"""report.json: what a dataset holds, how its splits overlap, how long its texts are; and how the console shows it."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from itertools import combinations

import numpy as np

from dataset.sources import HUB_NAME, LABEL_2
from dataset.splits import label_weights, relation_of

HASHED = ("input", "label", "given_label", "template", "prompt", "response")  # the others follow from the input
OVER_LONG_SHARE = 0.05  # beyond it, what is left out changes what the dataset measures


def perfect_reasoner(labels: Iterable[tuple[int, int | None]]) -> dict:
    """What the exact labels score against the given ones, of (given, exact) pairs: above that, a model has learned the
    mistakes. And how many labels are wrong.

    Rows without an exact label are left out. F1 is None where neither has a Yes, the accuracy without rows.
    """
    count = Counter(pair for pair in labels if pair[1] is not None)
    rows, wrong, yes = count.total(), count[0, 1] + count[1, 0], 2 * count[1, 1]
    return {
        "rows": rows,
        "wrong_0_to_1": count[0, 1],
        "wrong_1_to_0": count[1, 0],
        "wrong": wrong,
        "f1": yes / (yes + wrong) if yes + wrong else None,
        "accuracy": 1 - wrong / rows if rows else None,
    }


def split_figures(rows: list[dict]) -> dict:
    """Counts of one split. `cells`: [N, relation, rows, rows of label 1]; `label_weights`: what class_weights takes;
    `perfect_reasoner`: what the exact labels score against the given ones."""
    cells: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        cell = cells.setdefault((row["num_variables"], relation_of(row)), [0, 0])
        cell[0] += 1
        cell[1] += row["label"]
    return {
        "rows": len(rows),
        "label_1": sum(row["label"] for row in rows),
        "label_weights": label_weights(rows),
        **{f"{key}s": len({row[f"{key}_id"] for row in rows}) for key in ("premise", "structure")},
        **{key: dict(sorted(Counter(str(row[key]) for row in rows).items())) for key in ("num_variables", "template")},
        "cells": [[*cell, *counts] for cell, counts in sorted(cells.items())],
        "perfect_reasoner": perfect_reasoner((row["given_label"], row["exact"]) for row in rows),
    }


def overlaps(splits: dict[str, list[dict]]) -> dict[str, dict[str, int]]:
    """How many premises and structures two splits have in common."""
    keys = ("premise", "structure")
    ids = {name: {key: {row[f"{key}_id"] for row in rows} for key in keys} for name, rows in splits.items()}
    return {f"{a}/{b}": {f"{k}s": len(ids[a][k] & ids[b][k]) for k in keys} for a, b in combinations(splits, 2)}


def token_figures(rows: list[dict]) -> dict[str, dict[str, int]]:
    lengths = np.array([row["tokens"] for row in rows])  # (rows, 2)
    counts = {"prompt": lengths[:, 0], "response": lengths[:, 1], "total": lengths.sum(axis=1)}
    points = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    figures = {part: np.percentile(values, list(points.values()), method="higher") for part, values in counts.items()}
    found = {part: dict(zip(points, map(int, values), strict=True)) for part, values in figures.items()}
    return {part: {"mean": round(float(counts[part].mean()))} | found[part] for part in counts}


def hash_of_rows(splits: dict[str, list[dict]], columns: dict) -> str:
    """SHA-256 over the columns HASHED of all rows, split by split."""
    digest = hashlib.sha256()
    hashed = [column for column in HASHED if column in columns]
    for name, row in ((name, row) for name, rows in splits.items() for row in rows):
        digest.update("\x1f".join([name, *(str(row[column]) for column in hashed), ""]).encode())
    return digest.hexdigest()


def make_report(splits: dict, columns: dict, config: dict, source_rows: list[dict], left_out: dict) -> dict:
    """What report.json says; `config` and `left_out` are part of it: unparsable, over_long, and where there is such,
    asked_in_grpo, as_in_test, teacher, corrections."""
    wrong = [row for row in source_rows if row["exact"] is not None and row["given_label"] != row["exact"]]
    first_wrong = [{key: row[key] for key in ("row", "given_label", "exact")} for row in wrong[:10]]
    report = {
        "source": f"{HUB_NAME} ({config['hub_config']})" if config["source"] == "hub" else config["source"],
        "source_rows": len(source_rows) + len(left_out["unparsable"]),
        "seed": config["seed"],
        "dataset_hash": hash_of_rows(splits, columns),
        "splits": {name: split_figures(rows) for name, rows in splits.items()},
        "overlap": overlaps(splits),
        "given_label_not_exact": {"rows": len(wrong), "first": first_wrong},
        LABEL_2: sum(bool(row.get(LABEL_2)) for row in source_rows),
        "without_exact_label": sum(row["exact"] is None for row in source_rows),
        **left_out,
    }
    if not config["raw"]:
        first = next(iter(splits.values()))[0]
        report["tokens"] = {name: token_figures(rows) for name, rows in splits.items()}
        report["first_example"] = {key: first[key] for key in ("row", "prompt", "response")}
    return report | {"config": config}


def summary(report: dict) -> str:
    """The report as the console shows it."""
    wrong, labels = report["given_label_not_exact"]["rows"], report["config"]["labels"]
    lines = [f"source {report['source']}: {report['source_rows']:,} rows; seed {report['seed']}"]
    lines.append(f"labels {labels}; {wrong:,} rows were given a label that is not the exact one")
    if wrong:
        parts = ((name, split["perfect_reasoner"]) for name, split in report["splits"].items() if "_" not in name)
        scores = ", ".join(f"{name} {found['f1']:.3f}" for name, found in parts if found["f1"] is not None)
        lines.append(f"F1 of a perfect reasoner on the labels as given: {scores}")
    if report[LABEL_2]:
        lines.append(
            f"{report[LABEL_2]:,} rows of the hub have label 2, which is read as 0: the hypothesis does not follow"
        )
    if report["without_exact_label"]:
        reason = "no graph satisfies their premise, or it leaves open which"
        lines.append(f"{report['without_exact_label']:,} rows have no exact label: {reason}")
    if report["unparsable"]:
        lines.append(f"left out: {len(report['unparsable']):,} rows without a label (report.json says which and why)")
    if report.get("asked_in_grpo"):
        lines.append(f"left out: {report['asked_in_grpo']:,} rows of train that ask what a row of grpo asks")
    if "teacher" in report:
        fates = ", ".join(f"{fate.replace('_', ' ')} {count:,}" for fate, count in report["teacher"].items())
        lines.append(f"teacher completions: {fates}; rows of train without one are left out")
    if "corrections" in report:
        fates = ", ".join(f"{fate} {count:,}" for fate, count in report["corrections"].items())
        lines.append(f"the model's traces: {fates}")
    width = max(map(len, ["validation", *report["splits"]])) + 1
    lines += ["", f"{'split':<{width}}{'rows':>9}{'label 1':>9}{'premises':>10}{'structures':>12}   rows by variables"]
    for name, split in report["splits"].items():
        sizes = ", ".join(f"N={n}: {rows:,}" for n, rows in split["num_variables"].items())
        share = f"{split['label_1'] / split['rows']:.1%}"
        numbers = f"{split['rows']:>9,}{share:>9}{split['premises']:>10,}{split['structures']:>12,}"
        lines.append(f"{name:<{width}}{numbers}   {sizes}")
    for kind, count in report.get("as_in_test", {}).items():
        lines.append(f"test_{kind}: {count:,} rows are as in test, for there is nothing to change")
    overlap = {
        pair: n for pair, n in report["overlap"].items() if "_" not in pair
    }  # of test's perturbations: report.json
    shared = "; ".join(f"{pair} {n['premises']:,}, {n['structures']:,}" for pair, n in overlap.items())
    lines.append(f"premises, structures in two splits: {shared or 'there is only one split'}")
    weights = report["splits"].get("train", {}).get("label_weights")
    lines.append(f"class_weights that balance train: {weights or 'none, it has one class only'}")
    return "\n".join(lines + (chat_summary(report) if "tokens" in report else []))


def chat_summary(report: dict) -> list[str]:
    long, example, max_length = report["over_long"], report["first_example"], report["config"]["max_length"]
    name, tokens = next(iter(report["tokens"].items()))  # train, where there is one
    lines = ["", f"{'tokens of ' + name:<22}" + "".join(f"{point:>9}" for point in tokens["total"])]
    lines += [f"{part:<22}" + "".join(f"{n:>9,}" for n in points.values()) for part, points in tokens.items()]
    lines.append(f"left out: {len(long):,} rows over max_length {max_length:,} (report.json names them)")
    share = len(long) / (len(long) + sum(split["rows"] for split in report["splits"].values()))
    if share > OVER_LONG_SHARE:
        need = max(row["tokens"] for row in long)
        lines.append(f"warning: that is {share:.1%} of the rows, the longest; --max_length {need} would keep them all")
    lines += ["", f"first example ({example['row']}):", "---- prompt", example["prompt"]]
    return [*lines, "---- response", example["response"], "----"]
