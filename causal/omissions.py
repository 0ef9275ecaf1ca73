"""What a premise that no graph satisfies may have left out: independences with which some graph would.

    found = omission(premise)
    found.pairs      the pairs that lack a separating set altogether: by what is listed they would be adjacent
    found.missing    every independence to be added, those of these pairs and of others

    unsaid_limit(premise)    or has it only left out all sets beyond some size, and not said so?

The fewest pairs are looked for, up to MAX_PAIRS, then the fewest independences. Nothing listed is ever taken back.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain, combinations, islice
from typing import NamedTuple

from causal.classes import (
    NoClassError,
    Premise,
    first_separators,
    fitting_dag,
    known_limit,
    pdag,
    skeleton,
    unshielded_triples,
)
from causal.graphs import DAG, Independence, bits, d_separations, is_separated

MAX_PAIRS = 2
MAX_TRIED = 300  # graphs for one premise: seconds for N = 10


def unsaid_limit(premise: Premise) -> int | None:
    """The size of the largest set that is listed, if a graph fits once the premise says that larger ones are not."""
    limit = max((given.bit_count() for _, _, given in premise.independences), default=0)
    if premise.max_given is not None or known_limit(limit, len(premise.variables)) is None:
        return None
    try:
        pdag(replace(premise, max_given=limit))
    except NoClassError:
        return None
    return limit


class Omission(NamedTuple):
    """Pairs (i, j) without any separating set, and the independences that are missing, of these pairs and of others."""

    pairs: tuple[tuple[int, int], ...]
    missing: tuple[Independence, ...]


@lru_cache(maxsize=1024)
def omission(premise: Premise) -> Omission | None:
    """The smallest omission that is found, or None."""
    adjacent, first = skeleton(premise), first_separators(premise)
    edges = [(u, v) for u, mask in enumerate(adjacent) for v in bits(mask) if u < v]
    for size in range(MAX_PAIRS + 1):
        graphs = ((pairs, dag) for pairs in combinations(edges, size) for dag in _graphs(premise, pairs))
        found = []
        for pairs, dag in islice(graphs, MAX_TRIED):
            if not all(is_separated(dag, *pair, given) for pair, given in first.items()):
                continue
            implied = d_separations(dag, premise.max_given)
            if premise.independences <= implied:
                found.append(Omission(pairs, tuple(sorted(implied - premise.independences, key=_order))))
        if found:
            return min(found, key=lambda omitted: (len(omitted.missing), omitted))
    return None


def _order(stated: Independence) -> tuple:
    return stated[:2], bits(stated[2])


def _graphs(premise: Premise, pairs: tuple[tuple[int, int], ...]) -> Iterator[DAG]:
    """A DAG of each class in which `pairs` are not adjacent, and the other pairs are as listed.

    What is between two that are listed as separated is a collider or not as their separating set says; between two of
    `pairs` it may be either.
    """
    adjacent = skeleton(premise)
    for u, v in pairs:
        adjacent[u] &= ~(1 << v)
        adjacent[v] &= ~(1 << u)
    listed = [
        (i, k, j)
        for i, k, j, collider in unshielded_triples(premise)
        if collider and adjacent[i] >> k & 1 and adjacent[k] >> j & 1
    ]
    free = [(u, k, v) for u, v in pairs for k in bits(adjacent[u] & adjacent[v])]
    for chosen in chain.from_iterable(combinations(free, size) for size in range(len(free) + 1)):
        dag = fitting_dag(adjacent, [*listed, *chosen])
        if dag is not None:
            yield dag
