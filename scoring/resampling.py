"""Percentile intervals from resampling clusters of rows: those of a premise are answered right or wrong together.

n is the number of rows, C of clusters, R of resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_WEIGHTS_AT_ONCE = 2**22  # resampling weights held in memory at a time (32 MiB)


@dataclass(frozen=True)
class Bootstrap:
    """A clustered percentile bootstrap: clusters, the rows with one value of a column, are drawn with replacement.

    What is resampled with the same four values is resampled alike. Intervals are rough below some 30 clusters, and of
    zero width for a single one, which carries no information about the spread between clusters. Raises ValueError for
    num_resamples < 1 and a confidence outside (0, 1).
    """

    cluster: str = "premise_id"
    num_resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self):
        if self.num_resamples < 1:
            raise ValueError(f"num_resamples is {self.num_resamples}, must be at least 1 (2000 is usual)")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}, must lie between 0 and 1 (0.95 is usual)")

    def clusters(self, rows: Sequence[Mapping]) -> tuple[np.ndarray, int]:
        """The number (n,) of each row's cluster, in order of first appearance, and how many there are.

        Raises ValueError for no rows and for one without the cluster column.
        """
        if not rows:
            raise ValueError("no rows to resample: check the split and its filters")
        numbers: dict[object, int] = {}
        of_row = []
        for index, row in enumerate(rows):
            if row.get(self.cluster) is None:
                raise ValueError(f"row {index} has no {self.cluster!r}: name a column that every row has as `cluster`")
            of_row.append(numbers.setdefault(row[self.cluster], len(numbers)))
        return np.array(of_row), len(numbers)

    def weights(self, num_clusters: int, at_once: int) -> Iterator[np.ndarray]:
        """How often each resample draws each cluster, (R, C), in chunks that the caller can widen to (R, at_once)."""
        rng = np.random.default_rng(self.seed)
        chance = np.full(num_clusters, 1 / num_clusters)
        chunk = max(1, _WEIGHTS_AT_ONCE // at_once)
        for start in range(0, self.num_resamples, chunk):
            yield rng.multinomial(num_clusters, chance, size=min(chunk, self.num_resamples - start))

    def sums(self, counts: np.ndarray) -> np.ndarray:
        """Sums (R, k) of counts (C, k) over the clusters that each resample draws."""
        return np.concatenate([chunk @ counts for chunk in self.weights(len(counts), at_once=len(counts))])

    def intervals(self, resampled: Mapping[str, np.ndarray]) -> dict[str, list[float] | None]:
        """The quantiles of each score's resamples (R,), without those (nan) in which it does not exist; None if that is
        all."""
        ends = [(1 - self.confidence) / 2, (1 + self.confidence) / 2]
        intervals = {}
        for name, values in resampled.items():
            values = values[~np.isnan(values)]
            intervals[name] = [float(end) for end in np.quantile(values, ends)] if len(values) else None
        return intervals


DEFAULT = Bootstrap()


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where the denominator is."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator > 0)
