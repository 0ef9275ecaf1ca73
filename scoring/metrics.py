"""Classification metrics for Yes/No predictions, with intervals that know rows share premises.

A prediction row is a dict: `label` 0|1, `prediction` 0|1|None (None: no answer), `premise_id`, `structure_id`,
`num_variables`, `template`, and for `compare` also `input`. The positive class is 1 (Yes, valid).

An unanswered row is never right: it is counted as the class opposite to its label, a false positive where the label is
0 and a false negative where it is 1. Any ratio with a zero denominator is 0: recall without positive rows, precision
with nothing predicted positive, MCC with one class absent from labels or predictions. So balanced accuracy is at most
0.5 where the labels hold one class only. A resample without the labels that a score needs is left out of its interval.

Rows of one premise are answered right or wrong together, so intervals resample premises (clusters), not rows. They are
percentile intervals: rough below some 30 clusters, and of zero width for a single cluster, which carries no information
about the spread between clusters.

Rows may also hold `probability`, the model's probability of Yes: then the scores of it that need no threshold (AUROC,
average precision), its losses (Brier, log loss in nats) and its expected calibration error stand beside the others.
The first four come from scikit-learn; in the resamples, thousands of them, from array formulas that the tests hold
against it. AUROC and average precision are None where the labels hold one class only; a resample of one class is left
out of their intervals. Calibration is measured in 10 bins of equal width, the same for every model and all rows, so
that models are compared in the same bins: expected calibration error = sum over bins of share of rows times |share of
Yes - mean probability| (Guo et al. 2017, arXiv 1706.04599, here for the probability of the positive class).

Rows may hold `means` too, numbers by name of which the mean over rows is a score: `exact_trace` and `pass@k` of
predictions.py. These get values and intervals beside the others.

All counts are held as (..., 4) arrays in the order tn, fp, fn, tp; n is the number of rows, C of clusters, R of
resamples (1: the data themselves).
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from causal.vocabulary import RELATION_OF
from dataset.report import perfect_reasoner

SCORES = ("f1", "accuracy", "balanced_accuracy", "mcc", "precision", "recall")
COMPARED_SCORES = {  # with their names in tables
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "mcc": "MCC",
}
PROBABILITY_SCORES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier",
    "log_loss": "log loss",
    "ece": "ECE",
}
BASELINE_NAMES = {"majority": "majority answer", "always_yes": "always Yes"}
ONE_CLASS = "auroc and average_precision are null: the labels hold one class only"
NUM_BINS = 10
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


def probability_metrics(labels: Sequence[int], probabilities: Sequence[float]) -> dict:
    """PROBABILITY_SCORES of the probabilities of Yes; `note` says why the ranking scores are None where they are.

    A probability of exactly 0 or 1 counts as one float64 step away from it in the log loss. Raises ValueError for no
    rows, unequal lengths, a label that is not 0|1, a probability outside [0, 1].
    """
    from sklearn import metrics as sk  # seconds to import, and training reads this module without probabilities

    y, p = _labels_and_probabilities(labels, probabilities)
    both = 0 < y.sum() < len(y)
    return {
        "auroc": float(sk.roc_auc_score(y, p)) if both else None,
        "average_precision": float(sk.average_precision_score(y, p)) if both else None,
        "brier": float(sk.brier_score_loss(y, p, labels=[0, 1])),
        "log_loss": float(sk.log_loss(y, p, labels=[0, 1])),
        "ece": float(weighted_probability_scores(np.ones((1, len(y))), y, p)["ece"][0]),
        **({} if both else {"note": ONE_CLASS}),
    }


def constant_probability(labels: Sequence[int]) -> dict:
    """`probability_metrics` of a model that knows the share of Yes and nothing else."""
    return probability_metrics(labels, [sum(labels) / len(labels)] * len(labels))


def calibration_bins(
    rows: Sequence[Mapping],
    cluster: str = "premise_id",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[dict]:
    """The reliability diagram: a dict for each of the NUM_BINS bins that holds rows, by rising probability.

    `low` < probability <= `high` (the first bin holds 0 too), `n` rows, `mean_probability`, `frequency` of Yes and its
    clustered `interval`.
    """
    y, p = _labels_and_probabilities(*_probability_columns(rows))
    of_row, num_clusters = _cluster_index(rows, cluster)
    bins = _bin_of(p)
    counts = np.zeros((num_clusters, 2 * NUM_BINS))  # rows of each bin, then those of them that are Yes
    np.add.at(counts, (of_row, bins), 1)
    np.add.at(counts, (of_row, NUM_BINS + bins), y)
    resampled = _resampled_sums(counts, num_resamples, seed)
    held, yes = resampled[:, :NUM_BINS], resampled[:, NUM_BINS:]
    frequencies = np.where(held > 0, _ratio(yes, held), np.nan)
    return [
        {
            "low": b / NUM_BINS,
            "high": (b + 1) / NUM_BINS,
            "n": int((bins == b).sum()),
            "mean_probability": float(p[bins == b].mean()),
            "frequency": float(y[bins == b].mean()),
            **_intervals({"interval": frequencies[:, b]}, confidence),
        }
        for b in np.unique(bins).tolist()
    ]


def clustered_bootstrap(
    rows: Sequence[Mapping],
    cluster: str = "premise_id",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, list[float]]:
    """Percentile intervals {score: [low, high]} from resampling clusters with replacement.

    Those of PROBABILITY_SCORES too if the rows have probabilities; None where every resample holds one class only.
    Raises ValueError for no rows, a row without the cluster column, num_resamples < 1, confidence outside (0, 1).
    """
    counts = _cluster_counts(rows, cluster)
    scores = _resampled_scores(_resampled_sums(counts, num_resamples, seed), counts.sum(axis=0))
    if has_probabilities(rows):
        scores |= _resampled_probability_scores(rows, cluster, num_resamples, seed)
    return _intervals(scores, confidence)


def mean_scores(
    rows: Sequence[Mapping],
    cluster: str = "premise_id",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, dict]:
    """{name: mean and clustered `interval`} of the numbers in the rows' `means`; empty if they have none.

    Raises ValueError for rows whose names differ.
    """
    sums = _mean_sums(rows, *_cluster_index(rows, cluster))
    names = list(rows[0].get("means", {}))
    if not names:
        return {}
    resampled = _resampled_sums(sums, num_resamples, seed)
    intervals = _intervals(
        {name: _ratio(resampled[:, k], resampled[:, -1]) for k, name in enumerate(names)}, confidence
    )
    totals = sums.sum(axis=0)
    return {name: {"mean": totals[k] / totals[-1], "interval": intervals[name]} for k, name in enumerate(names)}


def _mean_sums(rows: Sequence[Mapping], of_row: np.ndarray, num_clusters: int) -> np.ndarray:
    """Sums (C, k + 1) of the k numbers in the rows' `means`, and of rows, over the rows of each cluster."""
    names = list(rows[0].get("means", {}))
    if any(list(row.get("means", {})) != names for row in rows):
        raise ValueError(f"not all rows have the means {', '.join(names) or '(none)'}: give every row the same")
    sums = np.zeros((num_clusters, len(names) + 1))
    np.add.at(sums, of_row, [[*row.get("means", {}).values(), 1.0] for row in rows])
    return sums


def main_rows(rows: list[dict]) -> list[dict]:
    """Those of the first split, of which the scores are."""
    return [row for row in rows if row.get("split") == rows[0].get("split")]


def has_probabilities(rows: Sequence[Mapping]) -> bool:
    """Whether the rows have `probability`. Raises ValueError if some have it and others have not."""
    count = sum(row.get("probability") is not None for row in rows)
    if 0 < count < len(rows):
        raise ValueError(f"{count} of {len(rows)} rows have a probability: give it for every row or for none")
    return count > 0


def report(
    rows: Sequence[Mapping],
    cluster: str = "premise_id",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict:
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
    resampling = (cluster, num_resamples, seed, confidence)

    def summary(selected: Sequence[Mapping]) -> dict:
        return {
            **classification_metrics(*_columns(selected)),
            **(probability_metrics(*_probability_columns(selected)) if scored else {}),
            "intervals": clustered_bootstrap(selected, *resampling),
            "means": mean_scores(selected, *resampling),
            "num_clusters": len({row[cluster] for row in selected}),
        }

    def difference(others: Sequence[Mapping]) -> dict:
        if others is rows or [_told(row) for row in others] != [_told(row) for row in rows]:
            return {}
        paired = compare(*([{**row, "input": k} for k, row in enumerate(part)] for part in (rows, others)), *resampling)
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
        more["calibration"] = calibration_bins(rows, *resampling)
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
    cluster: str = "premise_id",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict:
    """Paired comparison of two models on the same rows, matched by `input`; differences are b - a.

    Each resample draws one set of clusters for both models. `mcnemar` is the exact two-sided test on the rows that only
    one model has right; it takes rows as independent, so where it disagrees with the intervals, trust the intervals.
    Where both models have probabilities, PROBABILITY_SCORES are compared too, those that exist; and of `means` those
    that both have, whose differences are in `means`. Raises ValueError if inputs or labels differ.
    """
    rows_a, rows_b = _paired(rows_a, rows_b)
    # b's rows take a's clusters, so that one set of weights resamples both.
    in_clusters_of_a = [{**b, cluster: a.get(cluster)} for a, b in zip(rows_a, rows_b, strict=True)]
    scored = has_probabilities(rows_a) and has_probabilities(rows_b)
    counts = np.concatenate([_cluster_counts(rows_a, cluster), _cluster_counts(in_clusters_of_a, cluster)], axis=1)
    resampled = _resampled_sums(counts, num_resamples, seed)
    whole = counts.sum(axis=0)
    scores_a, scores_b = (_resampled_scores(resampled[:, k : k + 4], whole[k : k + 4]) for k in (0, 4))
    differences = {name: scores_b[name] - scores_a[name] for name in COMPARED_SCORES}
    metrics_a, metrics_b = (classification_metrics(*_columns(rows)) for rows in (rows_a, rows_b))
    if scored:
        for rows, figures in ((rows_a, metrics_a), (rows_b, metrics_b)):
            figures |= probability_metrics(*_probability_columns(rows))
        more_a, more_b = (
            _resampled_probability_scores(rows, cluster, num_resamples, seed) for rows in (rows_a, in_clusters_of_a)
        )
        differences |= {name: more_b[name] - more_a[name] for name in more_a if metrics_a[name] is not None}
    changes = [
        {**a, "means": {k: b["means"][k] - value for k, value in a.get("means", {}).items() if k in b.get("means", {})}}
        for a, b in zip(rows_a, rows_b, strict=True)
    ]
    return {
        "num_rows": len(rows_a),
        "num_clusters": len(counts),
        "cluster": cluster,
        "confidence": confidence,
        "means": mean_scores(changes, cluster, num_resamples, seed, confidence),
        "a": metrics_a,
        "b": metrics_b,
        "difference": {name: metrics_b[name] - metrics_a[name] for name in differences},
        "intervals": _intervals(differences, confidence),
        "mcnemar": _mcnemar(rows_a, rows_b),
    }


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


def weighted_probability_scores(weights: np.ndarray, y: np.ndarray, p: np.ndarray) -> dict[str, np.ndarray]:
    """PROBABILITY_SCORES (R,) of labels y and probabilities p (n,), every row counted `weights` (R, n) times.

    A row of weights with one class only has AUROC and average precision nan.
    """
    order = np.argsort(-p, kind="stable")
    starts = np.flatnonzero(np.diff(p[order], prepend=np.inf))  # rows of equal probability are ranked together
    by_rank = weights[:, order]
    positives = np.add.reduceat(by_rank * y[order], starts, axis=1)  # (R, distinct probabilities), highest first
    everyone = np.add.reduceat(by_rank, starts, axis=1)
    found, retrieved = positives.cumsum(axis=1), everyone.cumsum(axis=1)
    yes, total = found[:, -1], retrieved[:, -1]
    no = total - yes
    # A negative is beaten by the positives above it, and by half of its equals.
    wins = ((everyone - positives) * (found - positives / 2)).sum(axis=1)
    precision = _ratio(found, retrieved)
    both = (yes > 0) & (no > 0)
    losses = weights @ np.stack([(y - p) ** 2, _log_losses(y, p)], axis=1)  # (R, 2)
    gaps = weights @ ((y - p)[:, None] * np.eye(NUM_BINS)[_bin_of(p)])  # (R, bins)
    return {
        "auroc": np.where(both, _ratio(wins, yes * no), np.nan),
        "average_precision": np.where(both, _ratio((positives * precision).sum(axis=1), yes), np.nan),
        "brier": losses[:, 0] / total,
        "log_loss": losses[:, 1] / total,
        "ece": np.abs(gaps).sum(axis=1) / total,
    }


def _log_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    epsilon = np.finfo(np.float64).eps
    return -np.log(np.clip(np.where(y == 1, p, 1 - p), epsilon, 1 - epsilon))


def _bin_of(p: np.ndarray) -> np.ndarray:
    """The bin (n,) of each probability; bin b holds b / NUM_BINS < p <= (b + 1) / NUM_BINS, bin 0 also 0."""
    return np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], p)


def _resampled_probability_scores(
    rows: Sequence[Mapping], cluster: str, num_resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """PROBABILITY_SCORES (num_resamples,) over the resamples that `_resampled_sums` draws."""
    y, p = _labels_and_probabilities(*_probability_columns(rows))
    of_row, num_clusters = _cluster_index(rows, cluster)
    chunks = [
        weighted_probability_scores(weights[:, of_row].astype(np.float64), y, p)
        for weights in _resampling_weights(num_clusters, num_resamples, seed, at_once=len(rows))
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in PROBABILITY_SCORES}


def _labels_and_probabilities(labels: Sequence[int], probabilities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both (n,) in float64; ValueError for what is neither."""
    if len(labels) != len(probabilities):
        raise ValueError(f"{len(labels)} labels but {len(probabilities)} probabilities: give one for each row")
    if len(labels) == 0:
        raise ValueError("no rows to score: check the split and its filters")
    for index, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        _row_counts(index, label, None)
        if not 0 <= probability <= 1:
            raise ValueError(f"row {index}: probability is {probability!r}, must lie between 0 and 1")
    return np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)


def _probability_columns(rows: Sequence[Mapping]) -> tuple[list, list]:
    return [row["label"] for row in rows], [row["probability"] for row in rows]


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


def _cluster_index(rows: Sequence[Mapping], cluster: str) -> tuple[np.ndarray, int]:
    """The number (n,) of each row's cluster, in order of first appearance, and how many there are."""
    numbers: dict[object, int] = {}
    of_row = [numbers.setdefault(_cluster_of(i, row, cluster), len(numbers)) for i, row in enumerate(rows)]
    return np.array(of_row), len(numbers)


def _cluster_of(index: int, row: Mapping, cluster: str) -> object:
    if row.get(cluster) is None:
        raise ValueError(f"row {index} has no {cluster!r}: name a column that every row has as `cluster`")
    return row[cluster]


def _resampled_sums(counts: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Sums (num_resamples, k) of counts (C, k) over C clusters drawn with replacement, as multinomial weights."""
    weights = _resampling_weights(len(counts), num_resamples, seed, at_once=len(counts))
    return np.concatenate([chunk @ counts for chunk in weights])


def _resampling_weights(num_clusters: int, num_resamples: int, seed: int, at_once: int) -> Iterator[np.ndarray]:
    """How often each resample draws each cluster, (R, C), in chunks that the caller can widen to (R, at_once).

    The draws are a function of the first three arguments: whatever is resampled with them is resampled alike.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}, must be at least 1 (2000 is usual)")
    rng = np.random.default_rng(seed)
    chance = np.full(num_clusters, 1 / num_clusters)
    chunk = max(1, _WEIGHTS_AT_ONCE // at_once)
    for start in range(0, num_resamples, chunk):
        yield rng.multinomial(num_clusters, chance, size=min(chunk, num_resamples - start))


def _intervals(resampled: Mapping[str, np.ndarray], confidence: float) -> dict[str, list[float] | None]:
    """The quantiles of each score's resamples, without those (nan) for which it does not exist; None if that is all."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, must lie between 0 and 1 (0.95 is usual)")
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {}
    for name, values in resampled.items():
        values = values[~np.isnan(values)]
        intervals[name] = [float(end) for end in np.quantile(values, ends)] if len(values) else None
    return intervals


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
