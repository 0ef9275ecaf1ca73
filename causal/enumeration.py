"""Equivalence classes up to renaming: all of N <= 6 variables, or a random part; of larger N random ones.

for dag in representatives(4):
    for premise in labelled_premises(dag, relabel_seed=0, relabelings=24): ...
"""

import random
from collections.abc import Iterable, Iterator
from itertools import combinations, islice

from causal.classes import MAX_VARIABLES, Premise, canonical_code, pdag_of_dag, premise_of, undecided_pairs
from causal.graphs import DAG, Corr2CauseError, bits, relabel, renamings

MAX_ENUMERATED = 6  # all upper-triangular graphs are visited: 2^15 for N = 6, 2^21 for N = 7
MAX_DRAWS = 5000  # random graphs in a row, none of a new class
MAX_SHUFFLED = 8  # all 40,320 permutations are listed
NUM_CLASSES = {2: 2, 3: 5, 4: 20, 5: 142, 6: 2201}  # Markov equivalence classes up to relabelling, by N


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


def _first_of_each_class(dags: Iterable[DAG]) -> Iterator[DAG]:
    """The DAGs whose Markov equivalence class, up to relabelling, none before them had."""
    seen = set()
    for dag in dags:
        code = canonical_code(pdag_of_dag(dag))
        if code not in seen:
            seen.add(code)
            yield dag


def _drawn_classes(dags: Iterable[DAG], max_given: int | None) -> Iterator[DAG]:
    """The first DAG of each class that is determined. Raises Corr2CauseError after MAX_DRAWS in a row without one."""
    seen, drawn = set(), 0
    for dag in dags:
        drawn, code = drawn + 1, canonical_code(pdag_of_dag(dag))
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


def random_dags(num_variables: int, seed: int | str) -> Iterator[DAG]:
    """Topologically ordered DAGs without end, each with an edge density of its own, uniform in 0 to 1."""
    rng = random.Random(f"{seed}-{num_variables}")
    while True:
        density = rng.random()
        yield tuple(sum((rng.random() < density) << u for u in range(v)) for v in range(num_variables))


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
