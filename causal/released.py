"""The labels of the released rows: what the public generator computes, its three mistakes included.

Only for comparison with published figures; claims.py is right. The generator of Jin et al. (arXiv 2306.05836) works on
unlabelled DAGs, each listed once in topological order, and finds a class's members as (unlabelled DAG, renaming):

1. It counts a relation over the members with each renaming applied in the wrong direction. Nearly all wrong labels.
2. Of a confounder's two legs, the one that ends in the second variable is seen only if it is a single edge.
3. The search for a variable's descendants tests whether variable v + 1, not v, was visited before it enters v. From
   N = 6 on some graphs get wrong descendants, hence wrong d-separations: a few premises that no graph satisfies, and
   classes that lack members.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations

import numpy as np

from causal.claims import Claim, claim_on, holds
from causal.classes import LETTERS, PDAG, Premise, pdag_of_dag
from causal.enumeration import NUM_CLASSES, unlabelled_dags
from causal.graphs import (
    DAG,
    Independence,
    bits,
    children,
    d_separations,
    inverse,
    path_masks,
    reachable,
    relabel,
    relabel_independences,
    renamings,
)

NUM_RELEASED_CLASSES = NUM_CLASSES | {6: 2207}  # 20 too many by mistake 3, and 14 missing


@dataclass(frozen=True)
class ReleasedClass:
    """A premise of the released rows, and its members as (unlabelled DAG, renaming of its variables)."""

    premise: Premise
    members: tuple[tuple[DAG, tuple[int, ...]], ...]

    def label(self, claim: Claim) -> int:
        """The released label of a claim."""
        return int(all(_seen(dag, claim.relation, order[claim.i], order[claim.j]) for dag, order in self.members))


_claim = cache(claim_on)  # few claims, asked of many graphs


def _seen(dag: DAG, relation: str, i: int, j: int) -> bool:
    """Does the generator see this relation from i to j in `dag`? (mistake 2)"""
    if relation == "confounder":
        paths = path_masks(dag)
        sources = (c for c in bits(dag[j]) if c != i)
        return any(not to_i >> j & 1 for c in sources for to_i in paths[c][i])
    return holds(dag, _claim(relation, i, j))


def _visited(dag: DAG) -> list[int]:
    """For each variable what the generator takes for its descendants and itself (mistake 3)."""
    below = children(dag)

    def visit(u: int, seen: int) -> int:
        seen |= 1 << u
        for v in bits(below[u]):
            if not seen >> (v + 1) & 1:
                seen = visit(v, seen)
        return seen

    return [visit(u, 0) for u in range(len(dag))]


def flawed_separations(dag: DAG) -> frozenset[Independence] | None:
    """The d-separations of a topologically ordered DAG as the generator sees them; None if it sees them right."""
    below, visited = children(dag), _visited(dag)
    colliders = (u for u, parents in enumerate(dag) if parents.bit_count() > 1)
    if all(visited[u] == reachable(below, u, -1) for u in colliders):
        return None
    n, found = len(dag), []
    for i, j in combinations(range(n), 2):
        paths = list(_paths(dag, below, (i,), j))
        for given in range(1 << n):
            if not given & (1 << i | 1 << j) and all(
                given & others or any(not given & visited[c] for c in bits(colliders)) for others, colliders in paths
            ):
                found.append((i, j, given))
    return None if d_separations(dag) == frozenset(found) else frozenset(found)


def _paths(dag: DAG, below: Sequence[int], path: tuple[int, ...], end: int) -> Iterator[tuple[int, int]]:
    """(other inner variables, colliders) of every simple path of the skeleton that continues `path` to `end`."""
    if path[-1] == end:
        inner = list(zip(path, path[1:], path[2:], strict=False))
        colliders = sum(1 << k for i, k, j in inner if dag[k] >> i & 1 and dag[k] >> j & 1)
        yield sum(1 << k for _, k, _ in inner) & ~colliders, colliders
        return
    for v in bits(dag[path[-1]] | below[path[-1]]):
        if v not in path:
            yield from _paths(dag, below, (*path, v), end)


@lru_cache(maxsize=8)
def _permuted_positions(n: int) -> np.ndarray:
    """(n!, n(n-1)): for each permutation, where each off-diagonal cell of the adjacency matrix is read from."""
    order = np.array(renamings(n))
    rows, columns = np.nonzero(~np.eye(n, dtype=bool))
    return order[:, rows] * n + order[:, columns]


def permuted_codes(out: PDAG) -> np.ndarray:
    """(n!,): the adjacency-matrix code of `relabel(out, inverse(q))` for every q of `renamings`; the first is its own.

    Two PDAGs are equal up to renaming iff they have a code in common, and then all codes.
    """
    n = len(out)
    cells = np.array([mask >> v & 1 for mask in out for v in range(n)], dtype=np.int64)
    return cells[_permuted_positions(n)] @ (1 << np.arange(n * (n - 1)))


def released_classes(num_variables: int) -> Iterator[ReleasedClass]:
    """The classes of the released rows, each under its first representative, in the released order."""
    orders, flawed, groups = renamings(num_variables), {}, {}
    for dag in unlabelled_dags(num_variables):
        separations = flawed_separations(dag)
        if separations is None:
            codes = permuted_codes(pdag_of_dag(dag))  # renaming the CPDAG renames the separations
        else:
            versions = [relabel_independences(separations, inverse(order)) for order in orders]
            codes = np.array([flawed.setdefault(version, -1 - len(flawed)) for version in versions])
        groups.setdefault(codes.min(), []).append((dag, separations, codes))
    for group in groups.values():
        first, separations, first_codes = group[0]
        premise = Premise(LETTERS[:num_variables], d_separations(first) if separations is None else separations)
        members = []
        for dag, _, codes in group:
            same = (inverse(orders[k]) for k in np.flatnonzero(codes == first_codes[0]))
            distinct = {relabel(dag, order): order for order in sorted(same, reverse=True)}  # the first one stays
            members += [(dag, order) for order in distinct.values()]
        yield ReleasedClass(premise, tuple(members))
