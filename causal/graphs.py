"""The causal oracle of Corr2Cause: graphs, d-separation, equivalence classes, claims and labels, enumeration.

A claim is valid (label 1) iff it holds in every DAG of the premise's Markov equivalence class (Jin et al., ICLR 2024,
arXiv 2306.05836). The class is its CPDAG (PC skeleton, v-structures, Meek's rules); what holds in all of its members is
decided on that graph, without listing them: N = 10 has classes of millions. wording.py is the text around it,
reasoning.py the steps in words.

Notation: variables are 0..N-1; a set of variables is a bitmask; a DAG is a tuple of parent bitmasks, `dag[v]`; an
independence is (i, j, given) with i < j and `given` a bitmask; a PDAG is a tuple `out` of bitmasks in which i -> j sets
bit j of out[i] only, and i - j (undirected) sets bit j of out[i] and bit i of out[j].
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import combinations, islice, permutations
from math import factorial

RELATIONS = ("direct", "indirect", "collider", "confounder")
SYMMETRIC = ("collider", "confounder")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
MAX_VARIABLES = 10  # a premise of N = 10 lists up to 11,520 independences
MAX_LISTED = 1000  # members of a class that are listed or drawn; up to N = 6 no class has more than 720
MAX_ENUMERATED = 6  # all upper-triangular graphs are visited: 2^15 for N = 6, 2^21 for N = 7
MAX_DRAWS = 5000  # random graphs in a row, none of a new class
MAX_SHUFFLED = 8  # all 40,320 permutations are listed
NUM_CLASSES = {2: 2, 3: 5, 4: 20, 5: 142, 6: 2201}  # Markov equivalence classes up to relabelling, by N

DAG = tuple[int, ...]
PDAG = tuple[int, ...]
Independence = tuple[int, int, int]
MeekStep = tuple[int, tuple[int, ...]]


class Corr2CauseError(ValueError):
    """Text, a claim or a setting that does not make sense; the message names what and where."""


class NoClassError(Corr2CauseError):
    """A well-formed premise that does not have one equivalence class; `kind` says why, in a word."""

    kind = ""


class UnsatisfiableError(NoClassError):
    """No graph satisfies the premise."""

    kind = "unsatisfiable"


class UnderdeterminedError(NoClassError):
    """What the premise lists, up to some size of conditioning sets, leaves open which pairs are adjacent."""

    kind = "underdetermined"


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
    """Variable names and every d-separation among them; pairs that are not marginally independent correlate.

    With `max_given` the d-separations are those by sets of at most so many variables; of larger sets nothing is said.
    """

    variables: tuple[str, ...]
    independences: frozenset[Independence]
    max_given: int | None = None


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
    return _reversed(dag)


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


@lru_cache(maxsize=1024)
def d_separations(dag: DAG, max_given: int | None = None) -> frozenset[Independence]:
    """All (i, j, given) that `dag` d-separates: i and j are cut by `given` in the moral graph of their ancestors.

    With `max_given` those by sets of at most so many variables.
    """
    ancestors, n = _ancestors(dag), len(dag)
    if ancestors is None:
        raise Corr2CauseError(f"the graph {dag} has a directed cycle; give an acyclic one")
    moral, found = {}, []
    for given in range(1 << n):
        if max_given is not None and given.bit_count() > max_given:
            continue
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


def is_separated(dag: DAG, i: int, j: int, given: int) -> bool:
    """Does `given` d-separate i and j?"""
    ancestors = _ancestors(dag)
    moral = _moral(dag, _union(ancestors, given | 1 << i | 1 << j))
    return not moral[i] >> j & 1 and not reachable(moral, i, ~given) >> j & 1


def reachable(neighbours: Sequence[int], start: int, allowed: int) -> int:
    """The variables reachable from `start` (included) by steps that stay in `allowed`."""
    return _closure(neighbours, 1 << start, allowed)


def _closure(neighbours: Sequence[int], front: int, allowed: int) -> int:
    """The variables reachable from those in `front` (included) by steps that stay in `allowed`."""
    seen = front
    while front:
        front = _union(neighbours, front) & allowed & ~seen
        seen |= front
    return seen


def _reversed(masks: Sequence[int]) -> list[int]:
    """The same arrows from their other ends: children for parents, parents for children."""
    return [sum(1 << v for v, mask in enumerate(masks) if mask >> u & 1) for u in range(len(masks))]


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
    into = _reversed(out)
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


def fitting_dag(adjacent: Sequence[int], colliders: Iterable[tuple[int, int, int]]) -> DAG | None:
    """A DAG with this skeleton and these v-structures i -> k <- j; it may have more of them. None if PC finds none."""
    out = _v_structures(adjacent, colliders)
    if out is None:
        return None
    _meek(out)
    dag = some_member(tuple(out))
    return None if _ancestors(dag) is None else dag


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
def _pc(premise: Premise) -> tuple[PDAG, tuple[MeekStep, ...]]:
    """PC on the list of independences: skeleton, colliders, Meek's rules; (CPDAG, Meek's steps)."""
    check_determined(premise)
    colliders = ((i, k, j) for i, k, j, collider in unshielded_triples(premise) if collider)
    out = _v_structures(skeleton(premise), colliders)
    steps = () if out is None else tuple(_meek(out))
    # If any DAG fits, PC recovers its class and every extension fits: testing the first one is enough.
    first = None if out is None else some_member(tuple(out))
    if first is None or _ancestors(first) is None or d_separations(first, premise.max_given) != premise.independences:
        limit = "" if premise.max_given is None else f" by sets of at most {premise.max_given} variables"
        raise UnsatisfiableError(
            f"no graph satisfies the premise over {', '.join(premise.variables)}: no DAG has exactly the "
            f"{len(premise.independences)} independences given{limit}; list every one of them, none left out"
        )
    return tuple(out), steps


def undecided_pairs(premise: Premise) -> list[tuple[int, int]]:
    """The pairs that nothing listed separates and that may still not be adjacent; none if all sets are listed.

    If b is not adjacent to a and no ancestor of it, then b's parents that a path without b joins to a separate the two:
    a path that ends in one of these is blocked there, and one that leaves b has a collider below b. Either a or b is no
    ancestor of the other. So where both have no more such candidates than a listed set may hold, the pair is adjacent.
    A candidate is a variable beside b that nothing listed separates from b and that is not known to be no ancestor of
    it. That much is known of k where it is beside a and b, which a listed set without k separates: in no graph is k
    then an ancestor of a or b, or the two would be dependent given that set. (Graphs that agree on small sets, and what
    they have in common: Kocaoglu, NeurIPS 2023. Here only those that leave one class are wanted.)
    """
    limit = premise.max_given
    if limit is None:
        return []
    n, adjacent = len(premise.variables), skeleton(premise)
    no_cause = [0] * n  # of each variable the ones that are not its ancestors
    for i, k, j, collider in unshielded_triples(premise):
        if collider:
            no_cause[i] |= 1 << k
            no_cause[j] |= 1 << k

    def cut(a: int, b: int) -> bool:
        """Would a listed set separate the two, if they were not adjacent and b no ancestor of a?"""
        candidates = adjacent[b] & ~no_cause[b] & ~(1 << a) & reachable(adjacent, a, ~(1 << b))
        return candidates.bit_count() <= limit

    def decided(a: int, b: int) -> bool:
        return cut(a, b) and (cut(b, a) or bool(no_cause[a] >> b & 1))

    pairs = ((a, b) for a in range(n) for b in bits(adjacent[a]) if a < b)
    return [(a, b) for a, b in pairs if not decided(a, b) and not decided(b, a)]


def check_determined(premise: Premise) -> None:
    """Raises UnderdeterminedError if what is listed may leave open whether some pair is adjacent.

    Otherwise all graphs that have exactly the separations listed are of one equivalence class: they have the same
    skeleton, and a listed set for each pair that is not adjacent, which gives the same colliders.
    """
    undecided = undecided_pairs(premise)
    if undecided:
        a, b = (premise.variables[v] for v in undecided[0])
        more = f" (and {len(undecided) - 1} more pairs)" * (len(undecided) > 1)
        raise UnderdeterminedError(
            f"the premise lists sets of at most {premise.max_given} variables, which leaves open whether {a} and {b}"
            f"{more} are adjacent; list larger sets"
        )


def pdag(premise: Premise) -> PDAG:
    """The class's CPDAG as bitmasks. Raises Corr2CauseError if no DAG satisfies the premise, or more than one class
    may."""
    return _pc(premise)[0]


def meek_steps(premise: Premise) -> tuple[MeekStep, ...]:
    """What Meek's rules orient, in order: (rule, (a, b, others...)) for a -> b. Raises as `pdag` does."""
    return _pc(premise)[1]


def cpdag(premise: Premise) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
    """The class's edges: directed (cause, effect) and undirected (i < j). Raises as `pdag` does."""
    arrows = {(u, v) for u, mask in enumerate(pdag(premise)) for v in bits(mask)}
    undirected = frozenset((u, v) for u, v in arrows if u < v and (v, u) in arrows)
    return frozenset((u, v) for u, v in arrows if (v, u) not in arrows), undirected


@lru_cache(maxsize=16384)
def _parts(out: PDAG) -> tuple[PDAG, PDAG, PDAG]:
    """Its arrows alone, these from their other ends, and all edges from their other ends."""
    into = _reversed(out)
    both = list(zip(out, into, strict=True))
    return tuple(a & ~b for a, b in both), tuple(b & ~a for a, b in both), tuple(into)


@lru_cache(maxsize=16384)
def _oriented(out: PDAG, tail: int, head: int) -> PDAG:
    """The PDAG with tail - head made tail -> head, closed under Meek's rules."""
    oriented = list(out)
    oriented[head] &= ~(1 << tail)
    _meek(oriented)
    return tuple(oriented)


def with_edges(out: PDAG, edges: Iterable[tuple[int, int]]) -> PDAG | None:
    """The PDAG with these edges (cause, effect), closed under Meek's rules; None if no DAG of it has them all."""
    for u, v in edges:
        if not out[u] >> v & 1:
            return None
        if out[v] >> u & 1:
            out = _oriented(out, u, v)
    return out


def some_member(out: PDAG) -> DAG:
    """A DAG of the PDAG."""
    return next(_extensions(out))


def _extensions(out: PDAG) -> Iterator[DAG]:
    """The DAGs of a CPDAG: orient one undirected edge both ways, close under Meek's rules, repeat."""
    open_edge = next(((u, v) for u, mask in enumerate(out) for v in bits(mask) if out[v] >> u & 1), None)
    if open_edge is None:
        yield tuple(_reversed(out))
        return
    for tail, head in (open_edge, open_edge[::-1]):
        yield from _extensions(_oriented(out, tail, head))


@lru_cache(maxsize=1024)
def markov_equivalence_class(premise: Premise) -> tuple[DAG, ...]:
    """All DAGs whose d-separations are exactly the premise's, sorted; `class_size` says how many. Raises as `pdag`."""
    return tuple(sorted(_extensions(pdag(premise))))


def listed_members(premise: Premise, claim: Claim | None = None) -> list[DAG]:
    """The class, sorted; of one with more than MAX_LISTED members so many, and then one in which `claim` fails if it
    holds in all of these but not in all of the class. Raises as `pdag` does."""
    members = sorted(islice(_extensions(pdag(premise)), MAX_LISTED))
    if claim is not None and class_size(premise) > MAX_LISTED and all(holds(dag, claim) for dag in members):
        against = counterexample(premise, claim)
        members += [] if against is None else [against]
    return members


def class_size(premise: Premise) -> int:
    """The number of DAGs in the class, without listing them. Raises as `pdag` does."""
    out = pdag(premise)
    return _orientations(_undirected(out))


def _undirected(out: Sequence[int]) -> tuple[int, ...]:
    """For each variable the bitmask of those that an undirected edge joins it to."""
    return tuple(mask & into for mask, into in zip(out, _reversed(out), strict=True))


@lru_cache(maxsize=8192)
def _orientations(undirected: tuple[int, ...]) -> int:
    """In how many ways a graph of chordal components is a DAG without v-structures (He, Jia and Yu, JMLR 2015).

    The components are independent. In each one variable comes first, and Meek's rules leave smaller components of what
    follows from it. Variables with the same neighbours as each other, themselves included, come first equally often.
    """
    count, left = 1, (1 << len(undirected)) - 1
    while left:
        inside = reachable(undirected, left.bit_length() - 1, -1)
        left &= ~inside
        families: dict[int, list[int]] = {}
        for v in bits(inside):
            families.setdefault(undirected[v] | 1 << v, []).append(v)
        if len(families) == 1:
            count *= factorial(inside.bit_count())
            continue
        ways = 0
        for first, *same in families.values():
            out = [mask if inside >> v & 1 else 0 for v, mask in enumerate(undirected)]
            for v in bits(out[first]):
                out[v] &= ~(1 << first)
            _meek(out)
            ways += (1 + len(same)) * _orientations(_undirected(out))
        count *= ways
    return count


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
    return _holds(children(dag), dag, claim)


def _holds(out: Sequence[int], into: Sequence[int], claim: Claim) -> bool:
    """As `holds`, of any directed graph, cyclic or with both i -> j and j -> i too; more arrows never make it false.

    Two paths to a common end, of which neither passes the other's beginning, may be cut where they first meet: so a
    collider needs no more than that i reaches it without j, and j without i. Likewise a confounder.
    """
    i, j = claim.i, claim.j
    if claim.relation == "direct":
        return bool(out[i] >> j & 1)
    if claim.relation == "indirect":
        return bool(_closure(out, out[i] & ~(1 << i | 1 << j), ~(1 << i)) >> j & 1)
    steps = out if claim.relation == "collider" else into
    return bool(reachable(steps, i, ~(1 << j)) & reachable(steps, j, ~(1 << i)))


def counterexample(premise: Premise, claim: Claim) -> DAG | None:
    """A member of the class in which the claim fails, or None. Raises Corr2CauseError if no graph fits the premise."""
    return _failing(pdag(premise), claim)


def exact_label(premise: Premise, claim: Claim) -> int:
    """1 iff the claim holds in every member of the class, else 0. Raises as `counterexample` does.

    The members that other claims failed in are asked first: a few of them refute most of what is false.
    """
    known = _known_members(premise)
    if not all(_holds(out, into, claim) for out, into in known):
        return 0
    found = counterexample(premise, claim)
    if found is not None:
        known.append((children(found), found))
    return int(found is None)


@lru_cache(maxsize=1024)
def _known_members(premise: Premise) -> list[tuple[Sequence[int], DAG]]:
    """(children, parents) of members that some claim failed in so far."""
    return []


def _failing(out: PDAG, claim: Claim) -> DAG | None:
    """A DAG of the PDAG in which the claim fails, or None: a search that orients one edge both ways at a time.

    More arrows never make a claim false. So it holds in all DAGs if the arrows alone make it hold, and fails in all if
    not even the arrows with every undirected edge taken both ways do. In between, some undirected edge leads on from
    where arrows alone lead; turning it back, which may make the claim fail, is tried first.
    """
    arrows, arrows_into, into = _parts(out)
    if _holds(arrows, arrows_into, claim):
        return None
    if not _holds(out, into, claim):
        return some_member(out)
    found = (_failing(_oriented(out, *edge), claim) for edge in _turned(out, claim))
    return next((dag for dag in found if dag is not None), None)


def proof_cases(out: PDAG, claim: Claim) -> Iterator[DAG]:
    """Graphs of arrows, in each of which the claim holds: all of one or another of them are in every DAG of the PDAG.

    The claim must hold in all of these. It is the search of `_failing`, which then finds none.
    """
    arrows, arrows_into, _ = _parts(out)
    if _holds(arrows, arrows_into, claim):
        yield arrows_into
        return
    for edge in _turned(out, claim):
        yield from proof_cases(_oriented(out, *edge), claim)


def _turned(out: PDAG, claim: Claim) -> tuple[tuple[int, int], tuple[int, int]]:
    """An undirected edge that the claim may need, first as it does not help the claim, then as it does."""
    i, j = claim.i, claim.j
    if claim.relation == "direct":
        return (j, i), (i, j)
    backwards = claim.relation == "confounder"
    steps, edges = _parts(out)[backwards], []
    for start, other in ((i, j), (j, i))[: 1 if claim.relation == "indirect" else 2]:
        reached = reachable(steps, start, ~(1 << other))
        for u in bits(reached):
            end = 0 if claim.relation == "indirect" and u != start else 1 << other
            edges += [(u, v) for v in bits(out[u] & ~steps[u] & ~reached & ~end) if out[v] >> u & 1]
    u, v = min(edges, key=lambda edge: out[edge[1]].bit_count())  # the fewer neighbours, the more Meek's rules follow
    return ((u, v), (v, u)) if backwards else ((v, u), (u, v))


# ---------------------------------------------------------------- equivalence up to renaming


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


@lru_cache(maxsize=16384)
def _canonical_code(out: PDAG) -> int:
    """The smallest code over all permutations of the variables: the adjacency matrix without its diagonal, row by row,
    the first cell as the lowest bit.

    Places are given from the last one on, whose row weighs most. `cells` are the variables of the places that are still
    one, last place first: a row is smallest when the neighbours in every cell take its first places, and that splits
    the cell. Of the variables with the smallest row each is tried, but one of those that may trade places (twins).
    """
    n, into, best = len(out), _reversed(out), []

    def twins(u: int, v: int) -> bool:
        others = ~(1 << u | 1 << v)
        return out[u] >> v & 1 == out[v] >> u & 1 and not ((out[u] ^ out[v]) | (into[u] ^ into[v])) & others

    def place(cells: tuple[int, ...], placed: int, rows: list[int]) -> None:
        nonlocal best
        if best and rows > best[: len(rows)]:
            return
        if len(rows) == n:
            best = rows
            return
        at = next(k for k, cell in enumerate(cells) if not cell & placed)
        smallest, ties = min(_rows_of(out, cells, at).items())
        if all(cell & out[v] in (0, cell & ~(1 << v)) for v in ties for cell in cells):  # splits none: in any order
            block = sum(1 << v for v in ties)
            kept = (block, cells[at] & ~block) if cells[at] != block else (block,)
            place((*cells[:at], *kept, *cells[at + 1 :]), placed | block, rows + [smallest] * len(ties))
            return
        for k, v in enumerate(ties):
            if not any(twins(u, v) for u in ties[:k]):
                alone = (*cells[:at], 1 << v, cells[at] & ~(1 << v), *cells[at + 1 :])
                split = (part for cell in alone for part in (cell & ~out[v], cell & out[v]) if part)
                place(tuple(split), placed | 1 << v, [*rows, smallest])

    place(((1 << n) - 1,), 0, [])
    code = 0
    for row in best:
        code = code << n - 1 | row
    return code


def _rows_of(out: PDAG, cells: Sequence[int], at: int) -> dict[int, list[int]]:
    """{row of the adjacency matrix, without the diagonal: the variables of cell `at` that may have it, put last}."""
    rows: dict[int, list[int]] = {}
    for v in bits(cells[at]):
        row = 0
        for cell in cells:
            others = cell & ~(1 << v)
            row = row << others.bit_count() | (1 << (others & out[v]).bit_count()) - 1
        rows.setdefault(row, []).append(v)
    return rows


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


def representatives(
    num_variables: int, structures: int | None = None, seed: int = 0, max_given: int | None = None
) -> Iterator[DAG]:
    """One topologically ordered DAG for each Markov equivalence class up to relabelling.

    All of them for N <= 6, the first in the released order; with `structures`, at most that many, at random. Larger N
    have too many to list: random graphs (`random_dags`) are drawn until `structures` classes are found. With
    `max_given` only classes that the independences by sets of at most so many variables determine. Raises
    Corr2CauseError if N is out of range, if a larger N comes without `structures`, or if so many are not found.
    """
    n, count = num_variables, NUM_CLASSES.get(num_variables)
    if not 2 <= n <= MAX_VARIABLES:
        raise Corr2CauseError(f"num_variables is {n}; use 2 to {MAX_VARIABLES}")
    if count is None:
        if structures is None:
            raise Corr2CauseError(f"num_variables {n} has too many classes to list; set structures to sample")
        return islice(_drawn_classes(random_dags(n, seed), max_given), structures)
    classes = _first_of_each_class(unlabelled_dags(n))
    if max_given is not None:
        determined = [dag for dag in classes if is_determined(dag, max_given)]
        classes, count = iter(determined), len(determined)
    if structures is None or structures >= count:
        return classes
    kept = set(random.Random(f"{seed}-{n}").sample(range(count), structures))
    return (dag for k, dag in enumerate(classes) if k in kept)


def is_determined(dag: DAG, max_given: int | None) -> bool:
    """Do the independences by sets of at most `max_given` variables determine the class of `dag`?"""
    return max_given is None or not undecided_pairs(premise_of(dag, max_given))


def _drawn_classes(dags: Iterable[DAG], max_given: int | None) -> Iterator[DAG]:
    """The first DAG of each class that is determined. Raises Corr2CauseError after MAX_DRAWS in a row without one."""
    seen, drawn = set(), 0
    for dag in dags:
        drawn, code = drawn + 1, _canonical_code(pdag_of_dag(dag))
        if code not in seen and is_determined(dag, max_given):
            seen.add(code)
            drawn = 0
            yield dag
        if drawn == MAX_DRAWS:
            limit = "" if max_given is None else f" that sets of at most {max_given} variables determine"
            raise Corr2CauseError(
                f"structures: found only {len(seen)} classes of {len(dag)} variables{limit}; lower structures"
                + ", or raise max_given" * bool(limit)
            )


def premise_of(dag: DAG, max_given: int | None = None) -> Premise:
    """The premise of `dag`'s class, over the letters A, B, C..., by sets of at most `max_given` variables if any."""
    max_given = known_limit(max_given, len(dag))
    return Premise(LETTERS[: len(dag)], d_separations(dag, max_given), max_given)


def known_limit(max_given: int | None, num_variables: int) -> int | None:
    """`max_given`, or None where it leaves out no set."""
    return None if max_given is None or max_given >= num_variables - 2 else max_given


def relabel_premise(premise: Premise, permutation: Sequence[int]) -> Premise:
    """The premise in which variable v is called what variable permutation[v] was called."""
    return replace(premise, independences=relabel_independences(premise.independences, permutation))


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


def labelled_premises(
    dag: DAG, relabel_seed: int | None = None, relabelings: int = 1, max_given: int | None = None
) -> list[Premise]:
    """The class of `dag` under `relabelings` distinct random permutations of the letters, or as it is (seed None).

    The premises are distinct; a class with fewer labelled versions than `relabelings` yields all of them. `max_given`
    is that of the premises.
    """
    if relabelings < 1 or (relabel_seed is None and relabelings > 1):
        raise Corr2CauseError(f"relabelings is {relabelings}; use 1 without a relabel_seed, 1 or more with one")
    if relabel_seed is None:
        return [premise_of(dag, max_given)]
    out, versions = pdag_of_dag(dag), {}
    for order in _random_renamings(len(dag), random.Random(f"{relabel_seed}-{dag}"), relabelings):
        versions.setdefault(relabel(out, order), order)
        if len(versions) == relabelings:
            break
    return [premise_of(relabel(dag, order), max_given) for order in versions.values()]


def _random_renamings(n: int, rng: random.Random, wanted: int) -> Iterator[tuple[int, ...]]:
    """All permutations in random order. Beyond MAX_SHUFFLED variables random ones, which may come again: enough that of
    at most `wanted` versions of a class each is all but certainly among them."""
    if n <= MAX_SHUFFLED:
        orders = renamings(n)
        rng.shuffle(orders)
        yield from orders
        return
    for _ in range(50 * wanted):
        yield tuple(rng.sample(range(n), n))
