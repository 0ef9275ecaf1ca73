"""Classification metrics for Yes/No predictions, with intervals that know rows share premises.

A prediction row is a dict: `label` 0|1, `prediction` 0|1|None (None: no answer), `premise_id`, `structure_id`,
`num_variables`, `template`, and for `compare` also `input`. The positive class is 1 (Yes, valid).

An unanswered row is never right: it is counted as the class opposite to its label, a false positive where the label is
0 and a false negative where it is 1. Any ratio with a zero denominator is 0: recall without positive rows, precision
with nothing predicted positive, MCC with one class absent from labels or predictions. So balanced accuracy is at most
0.5 where the labels hold one class only.

Rows of one premise are answered right or wrong together, so intervals resample premises (clusters), not rows. They are
percentile intervals: rough below some 30 clusters, and of zero width for a single cluster, which carries no information
about the spread between clusters.

All counts are held as (..., 4) arrays in the order tn, fp, fn, tp; C is the number of clusters.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

from corr2cause import RELATION_OF

SCORES = ("f1", "accuracy", "balanced_accuracy", "mcc", "precision", "recall")
COMPARED_SCORES = ("f1", "accuracy", "balanced_accuracy", "mcc")
_ONE_ROW = np.eye(4, dtype=np.int64)
_WEIGHTS_AT_ONCE = 2**22  # resampling weights held in memory at a time (32 MiB)


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


def clustered_bootstrap(
    rows: Sequence[Mapping],
    cluster: str = "premise_id",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, list[float]]:
    """Percentile intervals {score: [low, high]} from resampling clusters with replacement.

    Raises ValueError for no rows, a row without the cluster column, num_resamples < 1, confidence outside (0, 1).
    """
    resampled = _resampled_sums(_cluster_counts(rows, cluster), num_resamples, seed)
    return _intervals(_scores(resampled), confidence)


def report(
    rows: Sequence[Mapping],
    cluster: str = "premise_id",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict:
    """Everything about one model's predictions, ready for JSON: overall, baselines, and by size and relation.

    Each summary holds the metrics, their `intervals` and `num_clusters`. Rows without a template are left out of
    `by_relation`. Raises ValueError for bad rows and unknown templates.
    """

    def summary(selected: Sequence[Mapping]) -> dict:
        return {
            **classification_metrics(*_columns(selected)),
            "intervals": clustered_bootstrap(selected, cluster, num_resamples, seed, confidence),
            "num_clusters": len({row[cluster] for row in selected}),
        }

    sizes = _groups(rows, [row.get("num_variables") for row in rows])
    relations = _groups(rows, [_relation(row) for row in rows])
    return {
        "num_rows": len(rows),
        "num_clusters": len({_cluster_of(i, row, cluster) for i, row in enumerate(rows)}),
        "cluster": cluster,
        "confidence": confidence,
        "num_resamples": num_resamples,
        "overall": summary(rows),
        "baselines": baselines(_columns(rows)[0]),
        "by_num_variables": {str(size): summary(sizes[size]) for size in sorted(sizes)},
        "by_relation": {name: summary(relations[name]) for name in sorted(relations)},
    }


def compare(
    rows_a: Sequence[Mapping],
    rows_b: Sequence[Mapping],
    cluster: str = "premise_id",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict:
    """Paired comparison of two models on the same rows, matched by `input`; differences are b - a.

    Each resample draws one set of clusters for both models. `mcnemar` is the exact two-sided test on the rows that only
    one model has right; it takes rows as independent, so where it disagrees with the intervals, trust the intervals.
    Raises ValueError if inputs or labels differ.
    """
    rows_a, rows_b = _paired(rows_a, rows_b)
    # b's rows take a's clusters, so that one set of weights resamples both.
    in_clusters_of_a = [{**b, cluster: a.get(cluster)} for a, b in zip(rows_a, rows_b, strict=True)]
    counts = np.concatenate([_cluster_counts(rows_a, cluster), _cluster_counts(in_clusters_of_a, cluster)], axis=1)
    resampled = _resampled_sums(counts, num_resamples, seed)
    scores_a, scores_b = _scores(resampled[:, :4]), _scores(resampled[:, 4:])
    differences = {name: scores_b[name] - scores_a[name] for name in COMPARED_SCORES}
    metrics_a, metrics_b = (classification_metrics(*_columns(rows)) for rows in (rows_a, rows_b))
    return {
        "num_rows": len(rows_a),
        "num_clusters": len(counts),
        "cluster": cluster,
        "confidence": confidence,
        "a": metrics_a,
        "b": metrics_b,
        "difference": {name: metrics_b[name] - metrics_a[name] for name in COMPARED_SCORES},
        "intervals": _intervals(differences, confidence),
        "mcnemar": _mcnemar(rows_a, rows_b),
    }


def format_table(entries: Iterable[tuple[str, Mapping]]) -> str:
    """A plain text table, a line for each (name, metrics of `classification_metrics`); `intervals` are optional."""
    header = ("", "F1", "balanced acc.", "accuracy", "MCC", "unanswered")
    lines = [header, *(_table_line(name, metrics) for name, metrics in entries)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _table_line(name: str, metrics: Mapping) -> tuple[str, ...]:
    def with_interval(score: str) -> str:
        interval = metrics.get("intervals", {}).get(score)
        return f"{metrics[score]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")

    return (
        name,
        with_interval("f1"),
        with_interval("balanced_accuracy"),
        f"{metrics['accuracy']:.3f}",
        f"{metrics['mcc']:.3f}",
        f"{metrics['unanswered_rate']:.1%}",
    )


def _row_counts(index: int, label: int, prediction: int | None) -> np.ndarray:
    """One row as counts (4,): a one at 2 * label + counted prediction."""
    if label not in (0, 1):
        raise ValueError(f"row {index}: label is {label!r}, must be 0 or 1: check the `label` column")
    if prediction not in (0, 1, None):
        raise ValueError(f"row {index}: prediction is {prediction!r}, must be 0, 1 or None (no answer)")
    counted = 1 - int(label) if prediction is None else int(prediction)
    return _ONE_ROW[2 * int(label) + counted]


def _scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (...) of counts (..., 4)."""
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    spread = np.sqrt((tp + fp) * (tn + fn) * ((tp + fn) * (tn + fp)))
    return {
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "accuracy": _ratio(tp + tn, tn + fp + fn + tp),
        "balanced_accuracy": (recall + specificity) / 2,
        "mcc": _ratio(tp * tn - fp * fn, spread),
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator > 0)


def _cluster_counts(rows: Sequence[Mapping], cluster: str) -> np.ndarray:
    """Counts (C, 4), clusters in order of first appearance."""
    counts: dict[object, np.ndarray] = {}
    for index, row in enumerate(rows):
        key = _cluster_of(index, row, cluster)
        counts[key] = counts.get(key, 0) + _row_counts(index, row["label"], row["prediction"])
    if not counts:
        raise ValueError("no rows to resample: check the split and its filters")
    return np.stack(list(counts.values()))


def _cluster_of(index: int, row: Mapping, cluster: str) -> object:
    if row.get(cluster) is None:
        raise ValueError(f"row {index} has no {cluster!r}: name a column that every row has as `cluster`")
    return row[cluster]


def _resampled_sums(counts: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Sums (num_resamples, k) of counts (C, k) over C clusters drawn with replacement, as multinomial weights."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}, must be at least 1 (2000 is usual)")
    num_clusters = len(counts)
    rng = np.random.default_rng(seed)
    chance = np.full(num_clusters, 1 / num_clusters)
    chunk = max(1, _WEIGHTS_AT_ONCE // num_clusters)
    sizes = [min(chunk, num_resamples - start) for start in range(0, num_resamples, chunk)]
    return np.concatenate([rng.multinomial(num_clusters, chance, size=size) @ counts for size in sizes])


def _intervals(resampled: Mapping[str, np.ndarray], confidence: float) -> dict[str, list[float]]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, must lie between 0 and 1 (0.95 is usual)")
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {name: [float(end) for end in np.quantile(values, ends)] for name, values in resampled.items()}


def _columns(rows: Sequence[Mapping]) -> tuple[list, list]:
    return [row["label"] for row in rows], [row["prediction"] for row in rows]


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
