"""Classification metrics for Yes/No predictions, with intervals that know rows share premises.

A prediction row is a dict: `label` 0|1, `prediction` 0|1|None (None: no answer), `premise_id`, `structure_id`,
`num_variables`, `template`, and for `compare` also `input`. The positive class is 1 (Yes, valid).

An unanswered row is never right: it is counted as the class opposite to its label, a false positive where the label is
0 and a false negative where it is 1. Any ratio with a zero denominator is 0: recall without positive rows, precision
with nothing predicted positive, MCC with one class absent from labels or predictions. So balanced accuracy is at most
0.5 where the labels hold one class only. A resample without the labels that a score needs is left out of its interval.

Rows of one premise are answered right or wrong together, so intervals resample premises (clusters), not rows
(resampling.py). Rows may also hold `probability`, the model's probability of Yes: then the scores of it stand beside
the others (probabilities.py). Rows may hold `means` too, numbers by name of which the mean over rows is a score:
`exact_trace` and `pass@k` of predictions.py. These get values and intervals beside the others.

All counts are held as (..., 4) arrays in the order tn, fp, fn, tp; n is the number of rows, C of clusters, R of
resamples (1: the data themselves).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from causal.vocabulary import RELATION_OF
from dataset.report import perfect_reasoner
from scoring.probabilities import (
    calibration_bins,
    check_label,
    constant_probability,
    has_probabilities,
    probability_columns,
    probability_metrics,
    resampled_probability_scores,
)
from scoring.resampling import DEFAULT, Bootstrap, ratio

SCORES = ("f1", "accuracy", "balanced_accuracy", "mcc", "precision", "recall")
COMPARED_SCORES = {  # with their names in tables
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "mcc": "MCC",
}
BASELINE_NAMES = {"majority": "majority answer", "always_yes": "always Yes"}
_ONE_ROW = np.eye(4, dtype=np.int64)


def classification_metrics(labels: Sequence[int], predictions: Sequence[int | None]) -> dict:
    """Scores of one set of predictions; `predicted_yes_rate` is the share of all rows that are answered Yes.

    Raises ValueError for no rows, unequal lengths, a label that is not 0|1, a prediction that is not 0|1|None.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels but {len(predictions)} predictions: give one (or None) for each row")
    if len(labels) == 0:
        raise ValueError("no rows to score: check the split and its filters")
    counts = sum(_row_counts(i, label, p) for i, (label, p) in enumerate(zip(labels, predictions, strict=True)))
    tn, fp, fn, tp = (int(c) for c in counts)
    return {
        **{name: float(value) for name, value in _scores(counts).items()},
        "unanswered_rate": sum(p is None for p in predictions) / len(labels),
        "predicted_yes_rate": sum(p == 1 for p in predictions) / len(labels),
        "confusion_matrix": [[tn, fp], [fn, tp]],
        "n": len(labels),
    }


def baselines(labels: Sequence[int]) -> dict[str, dict]:
    """Metrics of the two constant answers: the more frequent label (No on a tie) and always Yes."""
    majority = int(2 * sum(labels) > len(labels))
    constants = {"majority": majority, "always_yes": 1}
    return {name: classification_metrics(labels, [answer] * len(labels)) for name, answer in constants.items()}


def clustered_bootstrap(rows: Sequence[Mapping], bootstrap: Bootstrap = DEFAULT) -> dict[str, list[float]]:
    """Percentile intervals {score: [low, high]} from resampling clusters with replacement.

    Those of PROBABILITY_SCORES too if the rows have probabilities; None where every resample holds one class only.
    Raises ValueError for no rows and a row without the cluster column.
    """
    counts = _cluster_counts(rows, bootstrap)
    scores = _resampled_scores(bootstrap.sums(counts), counts.sum(axis=0))
    if has_probabilities(rows):
        scores |= resampled_probability_scores(rows, bootstrap)
    return bootstrap.intervals(scores)


def mean_scores(rows: Sequence[Mapping], bootstrap: Bootstrap = DEFAULT) -> dict[str, dict]:
    """{name: mean and clustered `interval`} of the numbers in the rows' `means`; empty if they have none.

    Raises ValueError for rows whose names differ.
    """
    sums = _mean_sums(rows, *bootstrap.clusters(rows))
    names, totals = list(rows[0].get("means", {})), sums.sum(axis=0)
    number = {name: k for k, name in enumerate(names) if totals[len(names) + k]}
    if not number:
        return {}
    resampled = bootstrap.sums(sums)
    with np.errstate(invalid="ignore"):  # a resample without a row that has it
        means = {name: resampled[:, k] / resampled[:, len(names) + k] for name, k in number.items()}
    intervals = bootstrap.intervals(means)
    return {
        name: {"mean": totals[k] / totals[len(names) + k], "interval": intervals[name]} for name, k in number.items()
    }


def _mean_sums(rows: Sequence[Mapping], of_row: np.ndarray, num_clusters: int) -> np.ndarray:
    """Sums (C, 2k) of the k numbers in the rows' `means`, and of the rows that have each, over those of a cluster."""
    names = list(rows[0].get("means", {}))
    if any(list(row.get("means", {})) != names for row in rows):
        raise ValueError(f"not all rows have the means {', '.join(names) or '(none)'}: give every row the same")
    values = np.array([list(row.get("means", {}).values()) for row in rows], dtype=float)  # nan for None
    sums = np.zeros((num_clusters, 2 * len(names)))
    np.add.at(sums, of_row, np.concatenate([np.nan_to_num(values), ~np.isnan(values)], axis=1))
    return sums


def main_rows(rows: list[dict]) -> list[dict]:
    """Those of the first split, of which the scores are."""
    return [row for row in rows if row.get("split") == rows[0].get("split")]


def report(rows: Sequence[Mapping], bootstrap: Bootstrap = DEFAULT) -> dict:
    """Everything about one model's predictions, ready for JSON: overall, baselines, and by size and relation.

    Each summary holds the metrics, their `intervals` and `num_clusters`. Rows without a template are left out of
    `by_relation`. Where rows have a `split`, everything is about the first one's; if they have several, `by_split` has
    a summary of each, and where another is the first in other words (`_told`, row by row), the paired `difference`
    from that with its `difference_intervals`. Rows that say whether the training had their structure, `seen`, are told
    apart in `by_seen`. Rows with both a `given_label` and an `exact_label` get `given_labels`, where these
    differ: what a perfect reasoner scores on the given ones, and whether these are the ones `scored`. Rows with a
    `probability` also get PROBABILITY_SCORES, their `constant_probability` baseline and the bins of `calibration`.
    Raises ValueError for bad rows and unknown templates.
    """
    scored = has_probabilities(rows)
    splits = _groups(rows, [row.get("split") for row in rows])
    rows = next(iter(splits.values()), rows)

    def summary(selected: Sequence[Mapping]) -> dict:
        return {
            **classification_metrics(*_columns(selected)),
            **(probability_metrics(*probability_columns(selected)) if scored else {}),
            "intervals": clustered_bootstrap(selected, bootstrap),
            "means": mean_scores(selected, bootstrap),
            "num_clusters": bootstrap.clusters(selected)[1],
        }

    def difference(others: Sequence[Mapping]) -> dict:
        if others is rows or [_told(row) for row in others] != [_told(row) for row in rows]:
            return {}
        paired = compare(*([{**row, "input": k} for k, row in enumerate(part)] for part in (rows, others)), bootstrap)
        return {"difference": paired["difference"], "difference_intervals": paired["intervals"]}

    sizes = _groups(rows, [row.get("num_variables") for row in rows])
    relations = _groups(rows, [_relation(row) for row in rows])
    more = {}
    if {"given_label", "exact_label"} <= rows[0].keys():
        ceiling = perfect_reasoner((row["given_label"], row["exact_label"]) for row in rows)
        if ceiling["wrong"]:
            more["given_labels"] = ceiling | {"scored": all(row["label"] == row["given_label"] for row in rows)}
    if rows[0].get("seen") is not None:
        known = _groups(rows, ["seen" if row["seen"] else "unseen" for row in rows])
        more["by_seen"] = {name: summary(known[name]) for name in sorted(known)}
    if len(splits) > 1:
        more["by_split"] = {name: summary(part) | difference(part) for name, part in splits.items()}
    if scored:
        more["constant_probability"] = constant_probability(_columns(rows)[0])
        more["calibration"] = calibration_bins(rows, bootstrap)
    return {
        "num_rows": len(rows),
        "num_clusters": bootstrap.clusters(rows)[1],
        "cluster": bootstrap.cluster,
        "confidence": bootstrap.confidence,
        "num_resamples": bootstrap.num_resamples,
        "overall": summary(rows),
        "baselines": baselines(_columns(rows)[0]),
        "by_num_variables": {str(size): summary(sizes[size]) for size in sorted(sizes)},
        "by_relation": {name: summary(relations[name]) for name in sorted(relations)},
        **more,
    }


def grouped_summaries(results: dict) -> dict[str, dict]:
    """`report`'s summaries by label: of all rows, seen structures and others, every N, relation and split."""
    sizes = {f"N = {size}": summary for size, summary in results["by_num_variables"].items()}
    splits = dict(list(results.get("by_split", {}).items())[1:])  # the first is what all the others are about
    known = {f"structures {name}": summary for name, summary in results.get("by_seen", {}).items()}
    groups = {
        "all": results["overall"],
        **(known if len(known) > 1 else {}),
        **sizes,
        **results["by_relation"],
        **splits,
    }
    return {f"{label} ({summary['n']:,} rows)": summary for label, summary in groups.items()}


def compare(
    rows_a: Sequence[Mapping],
    rows_b: Sequence[Mapping],
    bootstrap: Bootstrap = DEFAULT,
) -> dict:
    """Paired comparison of two models on the same rows, matched by `input`; differences are b - a.

    Each resample draws one set of clusters for both models. `mcnemar` is the exact two-sided test on the rows that only
    one model has right; it takes rows as independent, so where it disagrees with the intervals, trust the intervals.
    Where both models have probabilities, PROBABILITY_SCORES are compared too, those that exist; and of `means` those
    that both have, whose differences are in `means`. Raises ValueError if inputs or labels differ.
    """
    rows_a, rows_b = _paired(rows_a, rows_b)
    # b's rows take a's clusters, so that one set of weights resamples both.
    column = bootstrap.cluster
    in_clusters_of_a = [{**b, column: a.get(column)} for a, b in zip(rows_a, rows_b, strict=True)]
    scored = has_probabilities(rows_a) and has_probabilities(rows_b)
    counts = np.concatenate([_cluster_counts(rows, bootstrap) for rows in (rows_a, in_clusters_of_a)], axis=1)
    resampled = bootstrap.sums(counts)
    whole = counts.sum(axis=0)
    scores_a, scores_b = (_resampled_scores(resampled[:, k : k + 4], whole[k : k + 4]) for k in (0, 4))
    differences = {name: scores_b[name] - scores_a[name] for name in COMPARED_SCORES}
    metrics_a, metrics_b = (classification_metrics(*_columns(rows)) for rows in (rows_a, rows_b))
    if scored:
        for rows, figures in ((rows_a, metrics_a), (rows_b, metrics_b)):
            figures |= probability_metrics(*probability_columns(rows))
        more_a, more_b = (resampled_probability_scores(rows, bootstrap) for rows in (rows_a, in_clusters_of_a))
        differences |= {name: more_b[name] - more_a[name] for name in more_a if metrics_a[name] is not None}
    changes = [{**a, "means": _changes(a, b)} for a, b in zip(rows_a, rows_b, strict=True)]
    return {
        "num_rows": len(rows_a),
        "num_clusters": len(counts),
        "cluster": bootstrap.cluster,
        "confidence": bootstrap.confidence,
        "means": mean_scores(changes, bootstrap),
        "a": metrics_a,
        "b": metrics_b,
        "difference": {name: metrics_b[name] - metrics_a[name] for name in differences},
        "intervals": bootstrap.intervals(differences),
        "mcnemar": _mcnemar(rows_a, rows_b),
    }


def _changes(a: Mapping, b: Mapping) -> dict[str, float | None]:
    """b - a of each of `means` that both rows have."""
    pairs = {
        name: (value, b["means"][name]) for name, value in a.get("means", {}).items() if name in b.get("means", {})
    }
    return {name: None if None in pair else pair[1] - pair[0] for name, pair in pairs.items()}


def compare_relations(
    rows_a: Sequence[Mapping], rows_b: Sequence[Mapping], bootstrap: Bootstrap = DEFAULT
) -> dict[str, dict]:
    """`compare` of the rows of each relation by itself: what rises as a whole may fall for one of them.

    Relations are those of `rows_a`; rows without a template are left out. Raises ValueError as `compare` does, and for
    an unknown template.
    """
    of_relation = _groups(rows_a, [_relation(row) for row in rows_a])
    inputs = {name: {row["input"] for row in of_relation[name]} for name in sorted(of_relation)}
    return {
        name: compare(of_relation[name], [row for row in rows_b if row["input"] in asked], bootstrap)
        for name, asked in inputs.items()
    }


def _row_counts(index: int, label: int, prediction: int | None) -> np.ndarray:
    """One row as counts (4,): a one at 2 * label + counted prediction."""
    check_label(index, label)
    if prediction not in (0, 1, None):
        raise ValueError(f"row {index}: prediction is {prediction!r}, must be 0, 1 or None (no answer)")
    counted = 1 - int(label) if prediction is None else int(prediction)
    return _ONE_ROW[2 * int(label) + counted]


def _scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (...) of counts (..., 4)."""
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    recall, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    spread = np.sqrt((tp + fp) * (tn + fn) * ((tp + fn) * (tn + fp)))
    return {
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "accuracy": ratio(tp + tn, tn + fp + fn + tp),
        "balanced_accuracy": (recall + specificity) / 2,
        "mcc": ratio(tp * tn - fp * fn, spread),
        "precision": ratio(tp, tp + fp),
        "recall": recall,
    }


def _resampled_scores(resampled: np.ndarray, whole: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (R,) of resampled counts (R, 4); nan where a resample lacks what its score needs and the `whole` (4,) has.

    F1 needs a Yes among labels or answers, precision one among answers, recall one among labels, balanced accuracy and
    MCC both labels.
    """

    def exists(counts: np.ndarray) -> dict[str, np.ndarray]:
        tn, fp, fn, tp = np.moveaxis(counts, -1, 0)
        yes, both = tp + fn > 0, (tp + fn > 0) & (tn + fp > 0)
        return {
            "f1": tp + fn + fp > 0,
            "precision": tp + fp > 0,
            "recall": yes,
            "balanced_accuracy": both,
            "mcc": both,
        }

    scores, here, there = _scores(resampled), exists(resampled), exists(whole)
    return scores | {name: np.where(there[name] & ~here[name], np.nan, scores[name]) for name in here}


def _cluster_counts(rows: Sequence[Mapping], bootstrap: Bootstrap) -> np.ndarray:
    """Counts (C, 4), clusters in order of first appearance."""
    of_row, num_clusters = bootstrap.clusters(rows)
    counts = np.zeros((num_clusters, 4), dtype=np.int64)
    np.add.at(counts, of_row, [_row_counts(i, row["label"], row["prediction"]) for i, row in enumerate(rows)])
    return counts


def _columns(rows: Sequence[Mapping]) -> tuple[list, list]:
    return [row["label"] for row in rows], [row["prediction"] for row in rows]


def _told(row: Mapping) -> tuple:
    """What other words, letters and orders of a row leave as it is."""
    return row["label"], row.get("structure_id"), row.get("num_variables")


def _relation(row: Mapping) -> str | None:
    template = row.get("template")
    if template is None or template == "" or (isinstance(template, float) and math.isnan(template)):
        return None
    if template not in RELATION_OF:
        raise ValueError(f"unknown template {template!r}: expected one of {', '.join(RELATION_OF)}")
    return RELATION_OF[template]


def _groups(rows: Sequence[Mapping], keys: Sequence) -> dict:
    """Rows by key, without those whose key is None."""
    groups: dict = {}
    for row, key in zip(rows, keys, strict=True):
        if key is not None:
            groups.setdefault(key, []).append(row)
    return groups


def _paired(rows_a: Sequence[Mapping], rows_b: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """Both row lists sorted by input (equal inputs keep their order), checked to be the same rows."""
    inputs_a, inputs_b = (Counter(row["input"] for row in rows) for rows in (rows_a, rows_b))
    only_a, only_b = inputs_a - inputs_b, inputs_b - inputs_a
    if only_a or only_b:
        example = next(iter(only_a or only_b))
        raise ValueError(
            f"the inputs differ: {only_a.total()} rows only in the first, {only_b.total()} only in the second "
            f"(such as {example[-80:]!r}): evaluate both models on the same dataset and split"
        )
    rows_a, rows_b = (sorted(rows, key=lambda row: row["input"]) for rows in (rows_a, rows_b))
    for a, b in zip(rows_a, rows_b, strict=True):
        if a["label"] != b["label"]:
            raise ValueError(
                f"the labels differ: {a['label']} and {b['label']} for {a['input'][-80:]!r}: "
                "evaluate both models on the same labels (released or exact)"
            )
    return rows_a, rows_b


def _mcnemar(rows_a: Sequence[Mapping], rows_b: Sequence[Mapping]) -> dict:
    from scipy.stats import binomtest  # a second to import, and training has nothing to compare

    right = Counter(
        (a["prediction"] == a["label"], b["prediction"] == b["label"]) for a, b in zip(rows_a, rows_b, strict=True)
    )
    only_a, only_b = right[True, False], right[False, True]
    discordant = only_a + only_b
    return {
        "both_right": right[True, True],
        "only_a_right": only_a,
        "only_b_right": only_b,
        "both_wrong": right[False, False],
        "p_value": float(binomtest(only_a, discordant).pvalue) if discordant else 1.0,
    }
