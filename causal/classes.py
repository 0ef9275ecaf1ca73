"""Markov equivalence classes: from a premise by the PC algorithm, or of a graph; their members, size and structure.

A premise lists every independence among its variables. The graphs that have exactly these are one class, which its
CPDAG describes: PC skeleton, v-structures, Meek's rules. It is not listed but where a function says so: N = 10 has
classes of millions.

A PDAG is a tuple `out` of bitmasks in which i -> j sets bit j of out[i] only, and i - j (undirected) sets bit j of
out[i] and bit i of out[j]. The rest of the notation is that of graphs.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from math import factorial

from causal.graphs import (
    DAG,
    Corr2CauseError,
    Independence,
    ancestral_sets,
    bits,
    children,
    d_separations,
    reachable,
    relabel_independences,
    reversed_edges,
)

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
MAX_VARIABLES = 10  # a premise of N = 10 lists up to 11,520 independences
PDAG = tuple[int, ...]


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
class Premise:
    """Variable names and every d-separation among them; pairs that are not marginally independent correlate.

    With `max_given` the d-separations are those by sets of at most so many variables; of larger sets nothing is said.
    """

    variables: tuple[str, ...]
    independences: frozenset[Independence]
    max_given: int | None = None


# ---------------------------------------------------------------- a premise, and the class by the PC algorithm


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
def pdag(premise: Premise) -> PDAG:
    """The class's CPDAG as bitmasks, by PC on the list of independences: skeleton, colliders, Meek's rules.

    Raises Corr2CauseError if no DAG satisfies the premise, or more than one class may.
    """
    check_determined(premise)
    colliders = ((i, k, j) for i, k, j, collider in unshielded_triples(premise) if collider)
    out = _v_structures(skeleton(premise), colliders)
    if out is not None:
        _meek(out)
    # If any DAG fits, PC recovers its class and every extension fits: testing the first one is enough.
    first = None if out is None else some_member(tuple(out))
    acyclic = first is not None and ancestral_sets(first) is not None
    if not acyclic or d_separations(first, premise.max_given) != premise.independences:
        limit = "" if premise.max_given is None else f" by sets of at most {premise.max_given} variables"
        raise UnsatisfiableError(
            f"no graph satisfies the premise over {', '.join(premise.variables)}: no DAG has exactly the "
            f"{len(premise.independences)} independences given{limit}; list every one of them, none left out"
        )
    return tuple(out)


def cpdag(premise: Premise) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
    """The class's edges: directed (cause, effect) and undirected (i < j). Raises as `pdag` does."""
    arrows = {(u, v) for u, mask in enumerate(pdag(premise)) for v in bits(mask)}
    undirected = frozenset((u, v) for u, v in arrows if u < v and (v, u) in arrows)
    return frozenset((u, v) for u, v in arrows if (v, u) not in arrows), undirected


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


# ---------------------------------------------------------------- partially directed graphs


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
    return None if ancestral_sets(dag) is None else dag


def _v_structures(adjacent: Sequence[int], colliders: Iterable[tuple[int, int, int]]) -> list[int] | None:
    """The PDAG of a skeleton and its v-structures i -> k <- j; None if they clash."""
    out = list(adjacent)
    for i, k, j in colliders:
        out[k] &= ~(1 << i | 1 << j)
    clash = any(not (out[u] >> v & 1 or out[v] >> u & 1) for u, mask in enumerate(adjacent) for v in bits(mask))
    return None if clash else out


def _meek(out: list[int]) -> None:
    """Orients in place what Meek's four rules force, to a fixed point (Meek, UAI 1995)."""
    into, changed = reversed_edges(out), True
    while changed:
        changed = False
        for a in range(len(out)):
            for b in bits(out[a] & into[a]):
                if _is_forced(out, into, a, b):
                    out[b] &= ~(1 << a)
                    into[a] &= ~(1 << b)
                    changed = True


def _is_forced(out: Sequence[int], into: Sequence[int], a: int, b: int) -> bool:
    """Must the undirected edge a - b become a -> b, by one of Meek's rules, here 1 to 4 in turn?"""
    causes_of_b, beside_a, beyond_b = into[b] & ~out[b], out[a] & into[a], ~(out[b] | into[b] | 1 << b)
    if into[a] & ~out[a] & beyond_b or out[a] & ~into[a] & causes_of_b:
        return True
    if any(not (out[c] | into[c]) >> d & 1 for c, d in combinations(bits(beside_a & causes_of_b), 2)):
        return True
    return any(beside_a & beyond_b & into[c] & ~out[c] for c in bits(causes_of_b & (out[a] | into[a])))


@lru_cache(maxsize=16384)
def edge_masks(out: PDAG) -> tuple[PDAG, PDAG, PDAG]:
    """Its arrows alone, these from their other ends, and all edges from their other ends."""
    into = reversed_edges(out)
    both = list(zip(out, into, strict=True))
    return tuple(a & ~b for a, b in both), tuple(b & ~a for a, b in both), tuple(into)


@lru_cache(maxsize=16384)
def oriented(out: PDAG, tail: int, head: int) -> PDAG:
    """The PDAG with tail - head made tail -> head, closed under Meek's rules."""
    closed = list(out)
    closed[head] &= ~(1 << tail)
    _meek(closed)
    return tuple(closed)


def with_edges(out: PDAG, edges: Iterable[tuple[int, int]]) -> PDAG | None:
    """The PDAG with these edges (cause, effect), closed under Meek's rules; None if no DAG of it has them all."""
    for u, v in edges:
        if not out[u] >> v & 1:
            return None
        if out[v] >> u & 1:
            out = oriented(out, u, v)
    return out


# ---------------------------------------------------------------- members


def some_member(out: PDAG) -> DAG:
    """A DAG of the PDAG."""
    return next(extensions(out))


def extensions(out: PDAG) -> Iterator[DAG]:
    """The DAGs of a CPDAG: orient one undirected edge both ways, close under Meek's rules, repeat."""
    open_edge = next(((u, v) for u, mask in enumerate(out) for v in bits(mask) if out[v] >> u & 1), None)
    if open_edge is None:
        yield tuple(reversed_edges(out))
        return
    for tail, head in (open_edge, open_edge[::-1]):
        yield from extensions(oriented(out, tail, head))


@lru_cache(maxsize=1024)
def markov_equivalence_class(premise: Premise) -> tuple[DAG, ...]:
    """All DAGs whose d-separations are exactly the premise's, sorted; `class_size` says how many. Raises as `pdag`."""
    return tuple(sorted(extensions(pdag(premise))))


def class_size(premise: Premise) -> int:
    """The number of DAGs in the class, without listing them. Raises as `pdag` does."""
    out = pdag(premise)
    return _orientations(_undirected(out))


def _undirected(out: Sequence[int]) -> tuple[int, ...]:
    """For each variable the bitmask of those that an undirected edge joins it to."""
    return tuple(mask & into for mask, into in zip(out, reversed_edges(out), strict=True))


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


# ---------------------------------------------------------------- structure: the class up to renaming


def structure_id(premise: Premise) -> str:
    """The class up to renaming of the variables, e.g. '4-01f3'. Raises as `pdag` does."""
    n = len(premise.variables)
    return f"{n}-{canonical_code(pdag(premise)):0{(n * (n - 1) + 3) // 4}x}"


@lru_cache(maxsize=16384)
def canonical_code(out: PDAG) -> int:
    """The smallest code over all permutations of the variables: the adjacency matrix without its diagonal, row by row,
    the first cell as the lowest bit.

    Places are given from the last one on, whose row weighs most. `cells` are the variables of the places that are still
    one, last place first: a row is smallest when the neighbours in every cell take its first places, and that splits
    the cell. Of the variables with the smallest row each is tried, but one of those that may trade places (twins).
    """
    n, into, best = len(out), reversed_edges(out), []

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
