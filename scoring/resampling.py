"""Percentile intervals from resampling clusters of rows: those of a premise are answered right or wrong together.

They are rough below some 30 clusters, and of zero width for a single one, which carries no information about the spread
between clusters. n is the number of rows, C of clusters, R of resamples.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_WEIGHTS_AT_ONCE = 2**22  # resampling weights held in memory at a time (32 MiB)


def cluster_index(rows: Sequence[Mapping], cluster: str) -> tuple[np.ndarray, int]:
    """The number (n,) of each row's cluster, in order of first appearance, and how many there are."""
    numbers: dict[object, int] = {}
    of_row = [numbers.setdefault(cluster_of(i, row, cluster), len(numbers)) for i, row in enumerate(rows)]
    return np.array(of_row), len(numbers)


def cluster_of(index: int, row: Mapping, cluster: str) -> object:
    if row.get(cluster) is None:
        raise ValueError(f"row {index} has no {cluster!r}: name a column that every row has as `cluster`")
    return row[cluster]


def resampled_sums(counts: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Sums (num_resamples, k) of counts (C, k) over C clusters drawn with replacement, as multinomial weights."""
    weights = resampling_weights(len(counts), num_resamples, seed, at_once=len(counts))
    return np.concatenate([chunk @ counts for chunk in weights])


def resampling_weights(num_clusters: int, num_resamples: int, seed: int, at_once: int) -> Iterator[np.ndarray]:
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


def percentile_intervals(resampled: Mapping[str, np.ndarray], confidence: float) -> dict[str, list[float] | None]:
    """The quantiles of each score's resamples, without those (nan) for which it does not exist; None if that is all."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, must lie between 0 and 1 (0.95 is usual)")
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {}
    for name, values in resampled.items():
        values = values[~np.isnan(values)]
        intervals[name] = [float(end) for end in np.quantile(values, ends)] if len(values) else None
    return intervals


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator > 0)
