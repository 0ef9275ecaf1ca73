"""Directed acyclic graphs as bitmasks: d-separation, paths, renamings. The notation of everything causal.

Variables are 0..N-1; a set of variables is a bitmask; a DAG is a tuple of parent bitmasks, `dag[v]`; an independence is
(i, j, given) with i < j and `given` a bitmask. Beyond one graph: classes.py, the graphs that have the same
independences; claims.py, what holds in all of these; enumeration.py, all there are.
"""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import combinations, permutations
from math import factorial

DAG = tuple[int, ...]
Independence = tuple[int, int, int]


class Corr2CauseError(ValueError):
    """Text, a claim or a setting that does not make sense; the message names what and where."""


@cache
def bits(mask: int) -> tuple[int, ...]:
    """The variables in a bitmask, ascending. As a sort key it gives the released order: {} < {3} < {3,4} < {4}."""
    return tuple(v for v in range(mask.bit_length()) if mask >> v & 1)


def union_of(masks: Sequence[int], members: int) -> int:
    """The union of masks[v] for the v in `members`."""
    union = 0
    for v in bits(members):
        union |= masks[v]
    return union


def children(dag: DAG) -> list[int]:
    """For each variable the bitmask of its children."""
    return reversed_edges(dag)


def reversed_edges(masks: Sequence[int]) -> list[int]:
    """The same arrows from their other ends: children for parents, parents for children."""
    return [sum(1 << v for v, mask in enumerate(masks) if mask >> u & 1) for u in range(len(masks))]


def dag_edges(dag: DAG) -> list[tuple[int, int]]:
    """The edges (parent, child), sorted."""
    return sorted((p, v) for v, parents in enumerate(dag) for p in bits(parents))


def ancestral_sets(dag: DAG) -> list[int] | None:
    """For each variable the bitmask of itself and its ancestors; None if the graph has a cycle."""
    ancestors = [1 << v for v in range(len(dag))]
    for _ in dag:  # a path has at most N - 1 edges
        ancestors = [mask | union_of(ancestors, dag[v]) for v, mask in enumerate(ancestors)]
    cyclic = any(ancestors[p] >> v & 1 for v in range(len(dag)) for p in bits(dag[v]))
    return None if cyclic else ancestors


def topological_order(dag: DAG) -> list[int]:
    """A topological order: a variable has strictly more ancestors than any of its ancestors."""
    ancestors = ancestral_sets(dag)
    if ancestors is None:
        raise Corr2CauseError(f"the graph {dag} has a directed cycle; give an acyclic one")
    return sorted(range(len(dag)), key=lambda v: ancestors[v].bit_count())


def reachable(neighbours: Sequence[int], start: int, allowed: int) -> int:
    """The variables reachable from `start` (included) by steps that stay in `allowed`."""
    return closure(neighbours, 1 << start, allowed)


def closure(neighbours: Sequence[int], front: int, allowed: int) -> int:
    """The variables reachable from those in `front` (included) by steps that stay in `allowed`."""
    seen = front
    while front:
        front = union_of(neighbours, front) & allowed & ~seen
        seen |= front
    return seen


# ---------------------------------------------------------------- d-separation


@lru_cache(maxsize=1024)
def d_separations(dag: DAG, max_given: int | None = None) -> frozenset[Independence]:
    """All (i, j, given) that `dag` d-separates: i and j are cut by `given` in the moral graph of their ancestors.

    With `max_given` those by sets of at most so many variables.
    """
    ancestors, n = ancestral_sets(dag), len(dag)
    if ancestors is None:
        raise Corr2CauseError(f"the graph {dag} has a directed cycle; give an acyclic one")
    moral, found = {}, []
    for given in range(1 << n):
        if max_given is not None and given.bit_count() > max_given:
            continue
        outside = bits((1 << n) - 1 & ~given)
        closed = union_of(ancestors, given)
        for i, j in combinations(outside, 2):
            if dag[i] >> j & 1 or dag[j] >> i & 1:
                continue
            kept = closed | ancestors[i] | ancestors[j]
            if kept not in moral:
                moral[kept] = _moral(dag, kept)
            if not reachable(moral[kept], i, ~given) >> j & 1:
                found.append((i, j, given))
    return frozenset(found)


def is_separated(dag: DAG, i: int, j: int, given: int) -> bool:
    """Does `given` d-separate i and j?"""
    ancestors = ancestral_sets(dag)
    moral = _moral(dag, union_of(ancestors, given | 1 << i | 1 << j))
    return not moral[i] >> j & 1 and not reachable(moral, i, ~given) >> j & 1


def _moral(dag: DAG, kept: int) -> list[int]:
    """Neighbours in the moral graph of the sub-DAG on the ancestral set `kept`."""
    neighbours = [0] * len(dag)
    for v in bits(kept):
        family = dag[v] | 1 << v
        for u in bits(family):
            neighbours[u] |= family
    return neighbours


# ---------------------------------------------------------------- paths


@lru_cache(maxsize=16384)
def path_masks(dag: DAG) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """[i][j]: the directed paths from i to j, each the bitmask of its variables (which a DAG visits in one order)."""
    n = len(dag)
    paths = [[()] * n for _ in range(n)]
    for v in topological_order(dag):
        parents = bits(dag[v])
        for from_i in paths:
            from_i[v] = tuple(mask | 1 << v for p in parents for mask in from_i[p])
        paths[v][v] = (1 << v,)
    return tuple(map(tuple, paths))


# ---------------------------------------------------------------- renamings


def relabel(dag: DAG, permutation: Sequence[int]) -> DAG:
    """The same graph with variable v renamed to permutation[v]; works on a PDAG too."""
    renamed = [0] * len(dag)
    for v, mask in enumerate(dag):
        renamed[permutation[v]] = sum(1 << permutation[u] for u in bits(mask))
    return tuple(renamed)


def relabel_independences(independences: Iterable[Independence], permutation: Sequence[int]) -> frozenset[Independence]:
    """The same statements with variable v renamed to permutation[v]."""
    renamed_set = _renamed_sets(tuple(permutation))
    renamed = ((permutation[i], permutation[j], renamed_set[given]) for i, j, given in independences)
    return frozenset((min(i, j), max(i, j), given) for i, j, given in renamed)


@lru_cache(maxsize=1024)
def _renamed_sets(permutation: tuple[int, ...]) -> list[int]:
    """For every bitmask the set with variable v renamed to permutation[v]."""
    return [sum(1 << permutation[v] for v in bits(mask)) for mask in range(1 << len(permutation))]


def renamings(num_variables: int) -> list[tuple[int, ...]]:
    """All permutations of the variables, in lexicographic order."""
    return list(permutations(range(num_variables)))


def renaming(num_variables: int, number: int) -> tuple[int, ...]:
    """`renamings(num_variables)[number]`, without listing them."""
    left, order = list(range(num_variables)), []
    for k in reversed(range(num_variables)):
        place, number = divmod(number, factorial(k))
        order.append(left.pop(place))
    return tuple(order)


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes it."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))
