"""Scores of a model's probabilities of Yes, and how far they can be believed.

The scores that need no threshold (AUROC, average precision), the losses (Brier, log loss in nats) and the expected
calibration error. The first four come from scikit-learn; in resamples, thousands of them, from array formulas that the
tests hold against it. AUROC and average precision are None where the labels hold one class only; a resample of one
class is left out of their intervals. Calibration is measured in 10 bins of equal width, the same for every model and
all rows, so that models are compared in the same bins: expected calibration error = sum over bins of share of rows
times |share of Yes - mean probability| (Guo et al. 2017, arXiv 1706.04599, here for the probability of the positive
class).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from scoring.resampling import DEFAULT, Bootstrap, ratio

PROBABILITY_SCORES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier",
    "log_loss": "log loss",
    "ece": "ECE",
}
ONE_CLASS = "auroc and average_precision are null: the labels hold one class only"
NUM_BINS = 10


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


def calibration_bins(rows: Sequence[Mapping], bootstrap: Bootstrap = DEFAULT) -> list[dict]:
    """The reliability diagram: a dict for each of the NUM_BINS bins that holds rows, by rising probability.

    `low` < probability <= `high` (the first bin holds 0 too), `n` rows, `mean_probability`, `frequency` of Yes and its
    clustered `interval`.
    """
    y, p = _labels_and_probabilities(*probability_columns(rows))
    of_row, num_clusters = bootstrap.clusters(rows)
    bins = _bin_of(p)
    counts = np.zeros((num_clusters, 2 * NUM_BINS))  # rows of each bin, then those of them that are Yes
    np.add.at(counts, (of_row, bins), 1)
    np.add.at(counts, (of_row, NUM_BINS + bins), y)
    resampled = bootstrap.sums(counts)
    held, yes = resampled[:, :NUM_BINS], resampled[:, NUM_BINS:]
    frequencies = np.where(held > 0, ratio(yes, held), np.nan)
    return [
        {
            "low": b / NUM_BINS,
            "high": (b + 1) / NUM_BINS,
            "n": int((bins == b).sum()),
            "mean_probability": float(p[bins == b].mean()),
            "frequency": float(y[bins == b].mean()),
            **bootstrap.intervals({"interval": frequencies[:, b]}),
        }
        for b in np.unique(bins).tolist()
    ]


def has_probabilities(rows: Sequence[Mapping]) -> bool:
    """Whether the rows have `probability`. Raises ValueError if some have it and others have not."""
    count = sum(row.get("probability") is not None for row in rows)
    if 0 < count < len(rows):
        raise ValueError(f"{count} of {len(rows)} rows have a probability: give it for every row or for none")
    return count > 0


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
    precision = ratio(found, retrieved)
    both = (yes > 0) & (no > 0)
    losses = weights @ np.stack([(y - p) ** 2, _log_losses(y, p)], axis=1)  # (R, 2)
    gaps = weights @ ((y - p)[:, None] * np.eye(NUM_BINS)[_bin_of(p)])  # (R, bins)
    return {
        "auroc": np.where(both, ratio(wins, yes * no), np.nan),
        "average_precision": np.where(both, ratio((positives * precision).sum(axis=1), yes), np.nan),
        "brier": losses[:, 0] / total,
        "log_loss": losses[:, 1] / total,
        "ece": np.abs(gaps).sum(axis=1) / total,
    }


def resampled_probability_scores(rows: Sequence[Mapping], bootstrap: Bootstrap) -> dict[str, np.ndarray]:
    """PROBABILITY_SCORES (R,) over the resamples."""
    y, p = _labels_and_probabilities(*probability_columns(rows))
    of_row, num_clusters = bootstrap.clusters(rows)
    chunks = [
        weighted_probability_scores(weights[:, of_row].astype(np.float64), y, p)
        for weights in bootstrap.weights(num_clusters, at_once=len(rows))
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in PROBABILITY_SCORES}


def _log_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    epsilon = np.finfo(np.float64).eps
    return -np.log(np.clip(np.where(y == 1, p, 1 - p), epsilon, 1 - epsilon))


def _bin_of(p: np.ndarray) -> np.ndarray:
    """The bin (n,) of each probability; bin b holds b / NUM_BINS < p <= (b + 1) / NUM_BINS, bin 0 also 0."""
    return np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], p)


def _labels_and_probabilities(labels: Sequence[int], probabilities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both (n,) in float64; ValueError for what is neither."""
    if len(labels) != len(probabilities):
        raise ValueError(f"{len(labels)} labels but {len(probabilities)} probabilities: give one for each row")
    if len(labels) == 0:
        raise ValueError("no rows to score: check the split and its filters")
    for index, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        check_label(index, label)
        if not 0 <= probability <= 1:
            raise ValueError(f"row {index}: probability is {probability!r}, must lie between 0 and 1")
    return np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)


def probability_columns(rows: Sequence[Mapping]) -> tuple[list, list]:
    return [row["label"] for row in rows], [row["probability"] for row in rows]


def check_label(index: int, label: int) -> None:
    if label not in (0, 1):
        raise ValueError(f"row {index}: label is {label!r}, must be 0 or 1: check the `label` column")
