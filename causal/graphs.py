"""The causal oracle of Corr2Cause: graphs, d-separation, equivalence classes, claims and labels, enumeration.

A claim is valid (label 1) iff it holds in every DAG of the premise's Markov equivalence class (Jin et al., ICLR 2024,
arXiv 2306.05836). The class is built from its CPDAG (PC skeleton, v-structures, Meek's rules), never by scanning all
labelled DAGs, so that N = 6 costs seconds. wording.py is the text around it, reasoning.py the steps in words.

Notation: variables are 0..N-1; a set of variables is a bitmask; a DAG is a tuple of parent bitmasks, `dag[v]`; an
independence is (i, j, given) with i < j and `given` a bitmask; a PDAG is a tuple `out` of bitmasks in which i -> j sets
bit j of out[i] only, and i - j (undirected) sets bit j of out[i] and bit i of out[j].
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, islice, permutations
from math import factorial

import numpy as np

RELATIONS = ("direct", "indirect", "collider", "confounder")
SYMMETRIC = ("collider", "confounder")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
MAX_VARIABLES = 8  # a complete graph over N variables has N! members
MAX_ENUMERATED = 6  # all upper-triangular graphs are visited: 2^15 for N = 6, 2^21 for N = 7
NUM_CLASSES = {2: 2, 3: 5, 4: 20, 5: 142, 6: 2201}  # Markov equivalence classes up to relabelling, by N

DAG = tuple[int, ...]
PDAG = tuple[int, ...]
Independence = tuple[int, int, int]
MeekStep = tuple[int, tuple[int, ...]]


class Corr2CauseError(ValueError):
    """Text, a claim or a setting that does not make sense; the message names what and where."""


class UnsatisfiableError(Corr2CauseError):
    """A well-formed premise that no graph satisfies."""


@dataclass(frozen=True)
class Claim:
    """`i` causes `j` (direct, indirect), or an unordered pair i < j (collider, confounder)."""

    relation: str
    i: int
    j: int

    def __post_init__(self):
        if self.relation not in RELATIONS:
            raise Corr2CauseError(f"relation {self.relation!r} is not one of {', '.join(RELATIONS)}")
        if self.i == self.j or (self.relation in SYMMETRIC and self.i > self.j):
            raise Corr2CauseError(f"a {self.relation} claim on ({self.i}, {self.j}): needs two variables, in order")


def claim_on(relation: str, i: int, j: int) -> Claim:
    """The claim on i and j, which a symmetric relation takes in any order."""
    return Claim(relation, min(i, j), max(i, j)) if relation in SYMMETRIC else Claim(relation, i, j)


@dataclass(frozen=True)
class Premise:
    """Variable names and every d-separation among them; pairs that are not marginally independent correlate."""

    variables: tuple[str, ...]
    independences: frozenset[Independence]


# ---------------------------------------------------------------- graphs


@cache
def bits(mask: int) -> tuple[int, ...]:
    """The variables in a bitmask, ascending. As a sort key it gives the released order: {} < {3} < {3,4} < {4}."""
    return tuple(v for v in range(mask.bit_length()) if mask >> v & 1)


def _ancestors(dag: DAG) -> list[int] | None:
    """For each variable the bitmask of itself and its ancestors; None if the graph has a cycle."""
    ancestors = [1 << v for v in range(len(dag))]
    for _ in dag:  # a path has at most N - 1 edges
        ancestors = [mask | _union(ancestors, dag[v]) for v, mask in enumerate(ancestors)]
    cyclic = any(ancestors[p] >> v & 1 for v in range(len(dag)) for p in bits(dag[v]))
    return None if cyclic else ancestors


def children(dag: DAG) -> list[int]:
    """For each variable the bitmask of its children."""
    return [sum(1 << v for v, parents in enumerate(dag) if parents >> u & 1) for u in range(len(dag))]


def _union(masks: Sequence[int], members: int) -> int:
    union = 0
    for v in bits(members):
        union |= masks[v]
    return union


def topological_order(dag: DAG) -> list[int]:
    """A topological order: a variable has strictly more ancestors than any of its ancestors."""
    ancestors = _ancestors(dag)
    if ancestors is None:
        raise Corr2CauseError(f"the graph {dag} has a directed cycle; give an acyclic one")
    return sorted(range(len(dag)), key=lambda v: ancestors[v].bit_count())


def _moral(dag: DAG, kept: int) -> list[int]:
    """Neighbours in the moral graph of the sub-DAG on the ancestral set `kept`."""
    neighbours = [0] * len(dag)
    for v in bits(kept):
        family = dag[v] | 1 << v
        for u in bits(family):
            neighbours[u] |= family
    return neighbours


@lru_cache(maxsize=8192)
def d_separations(dag: DAG) -> frozenset[Independence]:
    """All (i, j, given) that `dag` d-separates: i and j are cut by `given` in the moral graph of their ancestors."""
    ancestors, n = _ancestors(dag), len(dag)
    if ancestors is None:
        raise Corr2CauseError(f"the graph {dag} has a directed cycle; give an acyclic one")
    moral, found = {}, []
    for given in range(1 << n):
        outside = bits((1 << n) - 1 & ~given)
        closed = _union(ancestors, given)
        for i, j in combinations(outside, 2):
            if dag[i] >> j & 1 or dag[j] >> i & 1:
                continue
            kept = closed | ancestors[i] | ancestors[j]
            if kept not in moral:
                moral[kept] = _moral(dag, kept)
            if not reachable(moral[kept], i, ~given) >> j & 1:
                found.append((i, j, given))
    return frozenset(found)


def reachable(neighbours: Sequence[int], start: int, allowed: int) -> int:
    """The variables reachable from `start` (included) by steps that stay in `allowed`."""
    seen, front = 1 << start, 1 << start
    while front:
        front = _union(neighbours, front) & allowed & ~seen
        seen |= front
    return seen


def relabel(dag: DAG, permutation: Sequence[int]) -> DAG:
    """The same graph with variable v renamed to permutation[v]; works on a PDAG too."""
    renamed = [0] * len(dag)
    for v, mask in enumerate(dag):
        renamed[permutation[v]] = sum(1 << permutation[u] for u in bits(mask))
    return tuple(renamed)


def dag_edges(dag: DAG) -> list[tuple[int, int]]:
    """The edges (parent, child), sorted."""
    return sorted((p, v) for v, parents in enumerate(dag) for p in bits(parents))


# ---------------------------------------------------------------- equivalence classes


def _meek(out: list[int]) -> list[MeekStep]:
    """Orients in place what Meek's four rules force, to a fixed point (Meek, UAI 1995); the steps, in order."""
    n, steps, changed = len(out), [], True
    into = [sum(1 << u for u in range(n) if out[u] >> v & 1) for v in range(n)]
    while changed:
        changed = False
        for a in range(n):
            for b in bits(out[a] & into[a]):
                reason = next(_forced(out, into, a, b), None)
                if reason:
                    out[b] &= ~(1 << a)
                    into[a] &= ~(1 << b)
                    steps.append((reason[0], (a, b, *reason[1:])))
                    changed = True
    return steps


def _forced(out: Sequence[int], into: Sequence[int], a: int, b: int) -> Iterator[tuple[int, ...]]:
    """Why the undirected edge a - b must become a -> b: Meek's rule, 1 to 4, and the other variables in it."""
    causes_of_b, beside_a, beyond_b = into[b] & ~out[b], out[a] & into[a], ~(out[b] | into[b] | 1 << b)
    yield from ((1, c) for c in bits(into[a] & ~out[a] & beyond_b))
    yield from ((2, c) for c in bits(out[a] & ~into[a] & causes_of_b))
    both = combinations(bits(beside_a & causes_of_b), 2)
    yield from ((3, c, d) for c, d in both if not (out[c] | into[c]) >> d & 1)
    around = bits(causes_of_b & (out[a] | into[a]))
    yield from ((4, c, d) for c in around for d in bits(beside_a & beyond_b & into[c] & ~out[c]))


def _v_structures(adjacent: Sequence[int], colliders: Iterable[tuple[int, int, int]]) -> list[int] | None:
    """The PDAG of a skeleton and its v-structures i -> k <- j; None if they clash."""
    out = list(adjacent)
    for i, k, j in colliders:
        out[k] &= ~(1 << i | 1 << j)
    clash = any(not (out[u] >> v & 1 or out[v] >> u & 1) for u, mask in enumerate(adjacent) for v in bits(mask))
    return None if clash else out


def pdag_of_dag(dag: DAG) -> PDAG:
    """The CPDAG of the class of `dag`, from its skeleton and v-structures (Verma and Pearl, 1990)."""
    adjacent = [parents | below for parents, below in zip(dag, children(dag), strict=True)]
    pairs = ((i, k, j) for k, parents in enumerate(dag) for i, j in combinations(bits(parents), 2))
    out = _v_structures(adjacent, ((i, k, j) for i, k, j in pairs if not adjacent[i] >> j & 1))
    _meek(out)
    return tuple(out)


@lru_cache(maxsize=1024)
def first_separators(premise: Premise) -> dict[tuple[int, int], int]:
    """For each separated pair its first separating set in the released (lexicographic) order."""
    first = {}
    for i, j, given in premise.independences:
        if (i, j) not in first or bits(given) < bits(first[i, j]):
            first[i, j] = given
    return first


def skeleton(premise: Premise) -> list[int]:
    """For each variable the bitmask of its neighbours: the variables that nothing separates from it."""
    n, separated = len(premise.variables), first_separators(premise)
    return [sum(1 << v for v in range(n) if v != u and (min(u, v), max(u, v)) not in separated) for u in range(n)]


def unshielded_triples(premise: Premise) -> list[tuple[int, int, int, bool]]:
    """(i, k, j, is k a collider?) for each i - k - j without i - j, i < j, in order of (i, j, k)."""
    adjacent = skeleton(premise)
    return [
        (i, k, j, not given >> k & 1)
        for (i, j), given in sorted(first_separators(premise).items())
        for k in bits(adjacent[i] & adjacent[j])
    ]


@lru_cache(maxsize=8192)
def _pc(premise: Premise) -> tuple[PDAG | None, tuple[MeekStep, ...]]:
    """PC on the complete list of independences: skeleton, colliders, Meek's rules; (CPDAG, Meek's steps)."""
    colliders = ((i, k, j) for i, k, j, collider in unshielded_triples(premise) if collider)
    out = _v_structures(skeleton(premise), colliders)
    steps = () if out is None else tuple(_meek(out))
    return out and tuple(out), steps


def pdag(premise: Premise) -> PDAG:
    """The class's CPDAG as bitmasks. Raises Corr2CauseError if no DAG satisfies the premise."""
    markov_equivalence_class(premise)
    return _pc(premise)[0]


def meek_steps(premise: Premise) -> tuple[MeekStep, ...]:
    """What Meek's rules orient, in order: (rule, (a, b, others...)) for a -> b. Raises as `pdag` does."""
    markov_equivalence_class(premise)
    return _pc(premise)[1]


def cpdag(premise: Premise) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
    """The class's edges: directed (cause, effect) and undirected (i < j). Raises as `pdag` does."""
    arrows = {(u, v) for u, mask in enumerate(pdag(premise)) for v in bits(mask)}
    undirected = frozenset((u, v) for u, v in arrows if u < v and (v, u) in arrows)
    return frozenset((u, v) for u, v in arrows if (v, u) not in arrows), undirected


def _extensions(out: Sequence[int]) -> Iterator[DAG]:
    """The DAGs of a CPDAG: orient one undirected edge both ways, close under Meek's rules, repeat."""
    open_edge = next(((u, v) for u, mask in enumerate(out) for v in bits(mask) if out[v] >> u & 1), None)
    if open_edge is None:
        yield tuple(sum(1 << u for u, mask in enumerate(out) if mask >> v & 1) for v in range(len(out)))
        return
    for tail, head in (open_edge, open_edge[::-1]):
        oriented = list(out)
        oriented[head] &= ~(1 << tail)
        _meek(oriented)
        yield from _extensions(oriented)


@lru_cache(maxsize=8192)
def markov_equivalence_class(premise: Premise) -> tuple[DAG, ...]:
    """All DAGs whose d-separations are exactly the premise's, sorted. Raises Corr2CauseError if there is none."""
    out, _ = _pc(premise)
    # If any DAG fits, PC recovers its class and every extension fits: testing the first one is enough.
    first = next(_extensions(out)) if out is not None else None
    if first is None or _ancestors(first) is None or d_separations(first) != premise.independences:
        raise UnsatisfiableError(
            f"no graph satisfies the premise over {', '.join(premise.variables)}: no DAG has exactly the "
            f"{len(premise.independences)} independences given; list every one of them, none left out"
        )
    return tuple(sorted(_extensions(out)))


# ---------------------------------------------------------------- claims and labels


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


def witnesses(dag: DAG, claim: Claim) -> Iterator[tuple[int, ...]]:
    """What makes the claim hold, as path bitmasks: one path (direct, indirect), or two that share only their end."""
    i, j, paths = claim.i, claim.j, path_masks(dag)
    if claim.relation in ("direct", "indirect"):
        yield from ((mask,) for mask in paths[i][j] if (mask.bit_count() == 2) == (claim.relation == "direct"))
        return
    for c in range(len(dag)):
        if c in (i, j):
            continue
        to_i, to_j = (paths[i][c], paths[j][c]) if claim.relation == "collider" else (paths[c][i], paths[c][j])
        yield from ((p, q) for p in to_i for q in to_j if p & q == 1 << c)


def holds(dag: DAG, claim: Claim) -> bool:
    """Is the claim true of this graph?

    direct: the edge i -> j. indirect: a directed path of two or more edges, whether or not the edge exists too.
    collider: directed paths from i and from j to some c that share only c. confounder: from some c, sharing only c.
    """
    edge = dag[claim.j] >> claim.i & 1
    if claim.relation == "direct":
        return bool(edge)
    if claim.relation == "indirect":
        return len(path_masks(dag)[claim.i][claim.j]) > edge
    return next(witnesses(dag, claim), None) is not None


def counterexample(members: Iterable[DAG], claim: Claim) -> DAG | None:
    """The first member in which the claim fails, or None."""
    return next((dag for dag in members if not holds(dag, claim)), None)


def exact_label(members: Iterable[DAG], claim: Claim) -> int:
    """1 iff the claim holds in every member of the class, else 0."""
    return int(all(holds(dag, claim) for dag in members))


# ---------------------------------------------------------------- equivalence up to renaming


def renamings(num_variables: int) -> list[tuple[int, ...]]:
    """All permutations of the variables, in lexicographic order."""
    return list(permutations(range(num_variables)))


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes it."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


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


@lru_cache(maxsize=16384)
def _canonical_code(out: PDAG) -> int:
    """The smallest adjacency-matrix code over all permutations of the variables."""
    return int(permuted_codes(out).min())


def structure_id(premise: Premise) -> str:
    """The class up to renaming of the variables, e.g. '4-01f3'. Raises as `pdag` does."""
    n = len(premise.variables)
    return f"{n}-{_canonical_code(pdag(premise)):0{(n * (n - 1) + 3) // 4}x}"


# ---------------------------------------------------------------- enumeration


def _topological_codes(dag: DAG, positions: dict[tuple[int, int], int]) -> Iterator[int]:
    """The codes of all upper-triangular relabellings of `dag`, one for each of its topological orders."""

    def place(rank: dict[int, int], code: int) -> Iterator[int]:
        if len(rank) == len(dag):
            yield code
        for v in range(len(dag)):
            if v not in rank and all(p in rank for p in bits(dag[v])):
                added = sum(1 << positions[rank[p], len(rank)] for p in bits(dag[v]))
                yield from place({**rank, v: len(rank)}, code | added)

    return place({}, 0)


def unlabelled_dags(num_variables: int) -> Iterator[DAG]:
    """One topologically ordered DAG for each isomorphism class, in the released order (first in bitmask order)."""
    if num_variables not in range(2, MAX_ENUMERATED + 1):
        raise Corr2CauseError(f"num_variables is {num_variables}; graphs are enumerated for 2 to {MAX_ENUMERATED}")
    positions = {pair: k for k, pair in enumerate(combinations(range(num_variables), 2))}
    seen = bytearray(1 << len(positions))
    for code in range(len(seen)):
        if seen[code]:
            continue
        dag = [0] * num_variables
        for (i, j), k in positions.items():
            dag[j] |= (code >> k & 1) << i
        for same in _topological_codes(tuple(dag), positions):
            seen[same] = 1
        yield tuple(dag)


def random_dags(num_variables: int, seed: int | str) -> Iterator[DAG]:
    """Topologically ordered DAGs without end, each with an edge density of its own, uniform in 0 to 1."""
    rng = random.Random(f"{seed}-{num_variables}")
    while True:
        density = rng.random()
        yield tuple(sum((rng.random() < density) << u for u in range(v)) for v in range(num_variables))


def _first_of_each_class(dags: Iterable[DAG]) -> Iterator[DAG]:
    """The DAGs whose Markov equivalence class, up to relabelling, none before them had."""
    seen = set()
    for dag in dags:
        code = _canonical_code(pdag_of_dag(dag))
        if code not in seen:
            seen.add(code)
            yield dag


def representatives(num_variables: int, structures: int | None = None, seed: int = 0) -> Iterator[DAG]:
    """One topologically ordered DAG for each Markov equivalence class up to relabelling.

    All of them for N <= 6, the first in the released order; with `structures`, at most that many, at random. Larger N
    have too many to list: random graphs (`random_dags`) are drawn until `structures` classes are found. Raises
    Corr2CauseError if N is out of range, or if a larger N comes without `structures`.
    """
    n, count = num_variables, NUM_CLASSES.get(num_variables)
    if not 2 <= n <= MAX_VARIABLES:
        raise Corr2CauseError(f"num_variables is {n}; use 2 to {MAX_VARIABLES}")
    if count is None:
        if structures is None:
            raise Corr2CauseError(f"num_variables {n} has too many classes to list; set structures to sample")
        return islice(_first_of_each_class(random_dags(n, seed)), structures)
    classes = _first_of_each_class(unlabelled_dags(n))
    if structures is None or structures >= count:
        return classes
    kept = set(random.Random(f"{seed}-{n}").sample(range(count), structures))
    return (dag for k, dag in enumerate(classes) if k in kept)


def premise_of(dag: DAG) -> Premise:
    """The premise of `dag`'s class, over the letters A, B, C..."""
    return Premise(LETTERS[: len(dag)], d_separations(dag))


def relabel_premise(premise: Premise, permutation: Sequence[int]) -> Premise:
    """The premise in which variable v is called what variable permutation[v] was called."""
    return Premise(premise.variables, relabel_independences(premise.independences, permutation))


def relabel_independences(independences: Iterable[Independence], permutation: Sequence[int]) -> frozenset[Independence]:
    """The same statements with variable v renamed to permutation[v]."""
    renamed_set = _renamed_sets(tuple(permutation))
    renamed = ((permutation[i], permutation[j], renamed_set[given]) for i, j, given in independences)
    return frozenset((min(i, j), max(i, j), given) for i, j, given in renamed)


@lru_cache(maxsize=1024)
def _renamed_sets(permutation: tuple[int, ...]) -> list[int]:
    """For every bitmask the set with variable v renamed to permutation[v]."""
    return [sum(1 << permutation[v] for v in bits(mask)) for mask in range(1 << len(permutation))]


def relabel_claim(claim: Claim, permutation: Sequence[int]) -> Claim:
    """The same claim with variable v renamed to permutation[v]."""
    return claim_on(claim.relation, permutation[claim.i], permutation[claim.j])


def labelled_premises(dag: DAG, relabel_seed: int | None = None, relabelings: int = 1) -> list[Premise]:
    """The class of `dag` under `relabelings` distinct random permutations of the letters, or as it is (seed None).

    The premises are distinct; a class with fewer labelled versions than `relabelings` yields all of them.
    """
    if relabelings < 1 or (relabel_seed is None and relabelings > 1):
        raise Corr2CauseError(f"relabelings is {relabelings}; use 1 without a relabel_seed, 1 or more with one")
    if relabel_seed is None:
        return [premise_of(dag)]
    orders = renamings(len(dag))
    random.Random(f"{relabel_seed}-{dag}").shuffle(orders)
    out, versions = pdag_of_dag(dag), {}
    for order in orders:
        versions.setdefault(relabel(out, order), order)
        if len(versions) == min(relabelings, factorial(len(dag))):
            break
    return [premise_of(relabel(dag, order)) for order in versions.values()]
