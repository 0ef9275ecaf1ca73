"""The causal oracle of Corr2Cause: text <-> graph, d-separation, equivalence classes, labels, reasoning traces.

    python corr2cause.py --explain "Premise: Suppose there is ...\\nHypothesis: A directly causes B."

Task and wording: Jin et al., "Can Large Language Models Infer Causation from Correlation?", ICLR 2024
(arXiv 2306.05836). A claim is valid (label 1) iff it holds in every DAG of the premise's Markov equivalence class. The
class is built from its CPDAG (PC skeleton, v-structures, Meek's rules), never by scanning all labelled DAGs, so that
N = 6 costs seconds.

Notation: variables are 0..N-1; a set of variables is a bitmask; a DAG is a tuple of parent bitmasks, `dag[v]`; an
independence is (i, j, given) with i < j and `given` a bitmask; a PDAG is a tuple `out` of bitmasks in which i -> j sets
bit j of out[i] only, and i - j (undirected) sets bit j of out[i] and bit i of out[j].
"""

import argparse
import hashlib
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, permutations
from math import factorial

import numpy as np

RELATIONS = ("direct", "indirect", "collider", "confounder")
TEMPLATES = ("parent", "child", "non-parent ancestor", "non-child descendant", "has_collider", "has_confounder")
MAX_VARIABLES = 8  # a complete graph over N variables has N! members
MAX_GENERATED = 6  # all upper-triangular graphs are visited: 2^15 for N = 6, 2^21 for N = 7

DAG = tuple[int, ...]
PDAG = tuple[int, ...]
Independence = tuple[int, int, int]

_WORDING = {
    "parent": "{a} directly causes {b}.",
    "child": "{a} directly causes {b}.",
    "non-parent ancestor": "{a} causes something else which causes {b}.",
    "non-child descendant": "{a} is a cause for {b}, but not a direct one.",
    "has_collider": "There exists at least one collider (i.e., common effect) of {a} and {b}.",
    "has_confounder": "There exists at least one confounder (i.e., common cause) of {a} and {b}.",
}
_PARAPHRASE = {
    "parent": "{a} directly affects {b}.",
    "child": "{a} directly affects {b}.",
    "non-parent ancestor": "{a} influences {b} through some mediator(s).",
    "non-child descendant": "{a} influences {b} through some mediator(s).",
    "has_collider": "{a} and {b} together cause some other variable(s).",
    "has_confounder": "Some variable(s) cause(s) both {a} and {b}.",
}
_RELATION_OF = dict(zip(TEMPLATES, ("direct", "direct", "indirect", "indirect", "collider", "confounder"), strict=True))
_HEADER = (
    "Suppose there is a closed system of {n} variables, {names}. "
    "All the statistical relations among these {n} variables are as follows: "
)


class Corr2CauseError(ValueError):
    """Text, a claim or a setting that does not make sense; the message names what and where."""


@dataclass(frozen=True)
class Claim:
    """`i` causes `j` (direct, indirect), or an unordered pair i < j (collider, confounder)."""

    relation: str
    i: int
    j: int

    def __post_init__(self):
        if self.relation not in RELATIONS:
            raise Corr2CauseError(f"relation {self.relation!r} is not one of {', '.join(RELATIONS)}")
        if self.i == self.j or (self.relation in ("collider", "confounder") and self.i > self.j):
            raise Corr2CauseError(f"a {self.relation} claim on ({self.i}, {self.j}): needs two variables, in order")


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


def _union(masks: Sequence[int], members: int) -> int:
    union = 0
    for v in bits(members):
        union |= masks[v]
    return union


def _order(dag: DAG) -> list[int]:
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
            if not _reachable(moral[kept], i, ~given) >> j & 1:
                found.append((i, j, given))
    return frozenset(found)


def _reachable(neighbours: Sequence[int], start: int, allowed: int) -> int:
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


def _meek(out: list[int]) -> PDAG:
    """Orients in place what Meek's four rules force, to a fixed point (Meek, UAI 1995)."""
    n, changed = len(out), True
    while changed:
        changed = False
        for a in range(n):
            for b in bits(out[a]):
                if out[b] >> a & 1 and _forced(out, a, b):
                    out[b] &= ~(1 << a)
                    changed = True
    return tuple(out)


def _forced(out: Sequence[int], a: int, b: int) -> bool:
    """Must the undirected edge a - b become a -> b? One clause for each of Meek's rules 1 to 4."""

    def adjacent(u, v):
        return out[u] >> v & 1 or out[v] >> u & 1

    def arrow(u, v):
        return out[u] >> v & 1 and not out[v] >> u & 1

    into_b = [c for c in range(len(out)) if arrow(c, b)]
    beside_a = [c for c in bits(out[a]) if out[c] >> a & 1]
    return (
        any(arrow(c, a) and not adjacent(c, b) for c in range(len(out)) if c != b)
        or any(arrow(a, c) for c in into_b)
        or any(c in beside_a and d in beside_a and not adjacent(c, d) for c, d in combinations(into_b, 2))
        or any(arrow(d, c) and adjacent(a, c) and not adjacent(d, b) for c in into_b for d in beside_a if d != b)
    )


def _orient(adjacent: Sequence[int], colliders: Iterable[tuple[int, int, int]]) -> PDAG | None:
    """The PDAG of a skeleton and its v-structures i -> k <- j, closed under Meek's rules; None if they clash."""
    out = list(adjacent)
    for i, k, j in colliders:
        out[k] &= ~(1 << i | 1 << j)
    if any(not (out[u] >> v & 1 or out[v] >> u & 1) for u, mask in enumerate(adjacent) for v in bits(mask)):
        return None
    return _meek(out)


def _pdag_of_dag(dag: DAG) -> PDAG:
    """The CPDAG of the class of `dag`, from its skeleton and v-structures (Verma and Pearl, 1990)."""
    children = [sum(1 << v for v, parents in enumerate(dag) if parents >> u & 1) for u in range(len(dag))]
    adjacent = [parents | below for parents, below in zip(dag, children, strict=True)]
    pairs = ((i, k, j) for k, parents in enumerate(dag) for i, j in combinations(bits(parents), 2))
    return _orient(adjacent, ((i, k, j) for i, k, j in pairs if not adjacent[i] >> j & 1))


def first_separators(premise: Premise) -> dict[tuple[int, int], int]:
    """For each separated pair its first separating set in the released (lexicographic) order."""
    first = {}
    for i, j, given in premise.independences:
        if (i, j) not in first or bits(given) < bits(first[i, j]):
            first[i, j] = given
    return first


@lru_cache(maxsize=8192)
def _pdag(premise: Premise) -> PDAG | None:
    """PC on the complete list of independences: an edge for each pair that nothing separates, then orientation."""
    n, separators = len(premise.variables), first_separators(premise)
    adjacent = [sum(1 << v for v in range(n) if v != u and (min(u, v), max(u, v)) not in separators) for u in range(n)]
    colliders = ((i, k, j) for (i, j), given in separators.items() for k in bits(adjacent[i] & adjacent[j] & ~given))
    return _orient(adjacent, colliders)


def _split(out: PDAG) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
    arrows = {(u, v) for u, mask in enumerate(out) for v in bits(mask)}
    undirected = frozenset((u, v) for u, v in arrows if u < v and (v, u) in arrows)
    return frozenset((u, v) for u, v in arrows if (v, u) not in arrows), undirected


def cpdag(premise: Premise) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
    """The class's edges: directed (cause, effect) and undirected (i < j). Raises if no DAG satisfies the premise."""
    markov_equivalence_class(premise)
    return _split(_pdag(premise))


def _extensions(out: PDAG) -> Iterator[DAG]:
    """The DAGs of a CPDAG: orient one undirected edge both ways, close under Meek's rules, repeat."""
    open_edge = next(((u, v) for u, mask in enumerate(out) for v in bits(mask) if out[v] >> u & 1), None)
    if open_edge is None:
        yield tuple(sum(1 << u for u, mask in enumerate(out) if mask >> v & 1) for v in range(len(out)))
        return
    for tail, head in (open_edge, open_edge[::-1]):
        oriented = list(out)
        oriented[head] &= ~(1 << tail)
        yield from _extensions(_meek(oriented))


@lru_cache(maxsize=8192)
def markov_equivalence_class(premise: Premise) -> tuple[DAG, ...]:
    """All DAGs whose d-separations are exactly the premise's, sorted. Raises Corr2CauseError if there is none."""
    out = _pdag(premise)
    # If any DAG fits, PC recovers its class and every extension fits: testing the first one is enough.
    first = next(_extensions(out)) if out is not None else None
    if first is None or _ancestors(first) is None or d_separations(first) != premise.independences:
        raise Corr2CauseError(
            f"no graph satisfies the premise over {', '.join(premise.variables)}: no DAG has exactly the "
            f"{len(premise.independences)} independences given; list every one of them, none left out"
        )
    return tuple(sorted(_extensions(out)))


# ---------------------------------------------------------------- claims and labels


@lru_cache(maxsize=16384)
def _path_masks(dag: DAG) -> tuple[tuple[frozenset[int], ...], ...]:
    """[i][j]: the directed paths from i to j, each the bitmask of its variables (which a DAG visits in one order)."""
    n = len(dag)
    paths = [[frozenset()] * n for _ in range(n)]
    for v in _order(dag):
        for i in range(n):
            paths[i][v] = frozenset(mask | 1 << v for p in bits(dag[v]) for mask in paths[i][p])
        paths[v][v] = frozenset((1 << v,))
    return tuple(map(tuple, paths))


def _witnesses(dag: DAG, claim: Claim) -> Iterator[tuple[int, ...]]:
    """What makes the claim hold, as path bitmasks: one path (direct, indirect), or two that share only their end."""
    i, j, paths = claim.i, claim.j, _path_masks(dag)
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
    return next(_witnesses(dag, claim), None) is not None


def counterexample(members: Iterable[DAG], claim: Claim) -> DAG | None:
    """The first member in which the claim fails, or None."""
    return next((dag for dag in members if not holds(dag, claim)), None)


def exact_label(members: Iterable[DAG], claim: Claim) -> int:
    """1 iff the claim holds in every member of the class, else 0."""
    return int(counterexample(members, claim) is None)


# ---------------------------------------------------------------- text


def _listing(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def split_input(text: str) -> tuple[str, str]:
    """'Premise: P\\nHypothesis: H' -> (P, H)."""
    if not isinstance(text, str):
        raise Corr2CauseError(f"the input is {type(text).__name__}, not text like 'Premise: ...\\nHypothesis: ...'")
    head, *tail = text.strip().split("Hypothesis:")
    if not head.startswith("Premise:") or len(tail) != 1:
        raise Corr2CauseError(f"expected 'Premise: ...\\nHypothesis: ...' (one line each), got {_short(text)}")
    premise, hypothesis = head.removeprefix("Premise:").strip(), tail[0].strip()
    if not premise or not hypothesis:
        raise Corr2CauseError(f"the {'hypothesis' if premise else 'premise'} is empty in {_short(text)}")
    return premise, hypothesis


def write_input(premise_text: str, hypothesis_text: str) -> str:
    """The task's input text."""
    return f"Premise: {premise_text}\nHypothesis: {hypothesis_text}"


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _pattern(template: str) -> str:
    """A wording as a regular expression with groups a, b, n, names."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template))


def _index(name: str, variables: Sequence[str], where: str) -> int:
    if name not in variables:
        raise Corr2CauseError(f"unknown variable {_short(name)} in {_short(where)}; known: {', '.join(variables)}")
    return variables.index(name)


def _parse_header(text: str) -> tuple[tuple[str, ...], str]:
    """Variable names, and the text of the statistical relations."""
    match = re.fullmatch(
        r"Suppose there is a closed system of (\d{1,3}) variables, ([^.]+)\. "
        r"All the statistical relations among these (\d{1,3}) variables are as follows: (.+)",
        " ".join(text.split()),
    )
    if not match:
        raise Corr2CauseError(
            f"the premise {_short(text)} does not read 'Suppose there is a closed system of N variables, A, B and C. "
            "All the statistical relations among these N variables are as follows: ...'"
        )
    variables = tuple(re.split(r", | and ", match[2]))
    if _listing(variables) != match[2] or not all(re.fullmatch(r"[A-Z]\w*", name) for name in variables):
        raise Corr2CauseError(f"the variables {_short(match[2])} are not a list of capitalised names like 'A, B and C'")
    if len(set(variables)) < len(variables):
        raise Corr2CauseError(f"a variable is listed twice in {_short(match[2])}")
    if int(match[1]) != len(variables) or int(match[3]) != len(variables):
        raise Corr2CauseError(f"the premise says {match[1]} and {match[3]} variables but lists {len(variables)}")
    if not 2 <= len(variables) <= MAX_VARIABLES:
        raise Corr2CauseError(f"the premise has {len(variables)} variables; 2 to {MAX_VARIABLES} are supported")
    return variables, match[4]


def _parse_statement(sentence: str, variables: Sequence[str]) -> tuple[bool, Independence]:
    """One sentence -> (is it an independence?, (i, j, given)) with i < j."""
    match = re.fullmatch(r"(\w+) (correlates with|is independent of) (\w+)\.", sentence)
    given_match = re.fullmatch(r"(\w+)( and )(\w+) are independent given (.+)\.", sentence)
    if not match and not given_match:
        raise Corr2CauseError(f"cannot read the statement {_short(sentence)} in the premise")
    first, kind, second = (match or given_match).group(1, 2, 3)
    names = re.split(r", | and ", given_match[4]) if given_match else []
    if names and _listing(names) != given_match[4]:
        raise Corr2CauseError(f"the conditioning set in {_short(sentence)} is not a list like 'A, B and C'")
    i, j, *given = (_index(name, variables, sentence) for name in (first, second, *names))
    if len({i, j, *given}) < 2 + len(given):
        raise Corr2CauseError(f"a variable occurs twice in the statement {_short(sentence)}")
    return kind != "correlates with", (min(i, j), max(i, j), sum(1 << v for v in given))


def _parse_statements(body: str, variables: Sequence[str], independences: bool) -> set[Independence]:
    """A run of sentences that are all correlations, or all independences."""
    found = set()
    for sentence in re.findall(r"[^.]+\.?|\.", body):
        is_independence, statement = _parse_statement(sentence.strip(), variables)
        if is_independence != independences:
            raise Corr2CauseError(
                f"{_short(sentence.strip())} is out of place: correlations come first, then 'However, ', "
                "then independences"
            )
        if statement in found:
            raise Corr2CauseError(f"the premise states {_short(sentence.strip())} twice")
        found.add(statement)
    return found


def parse_premise(text: str) -> Premise:
    """Reads a premise (without 'Premise: '); the statements may come in any order within their part.

    Raises Corr2CauseError for anything malformed, duplicate or unknown, and unless the pairs that correlate are exactly
    the pairs that are not marginally independent. Whether a graph exists is tested by `markov_equivalence_class`.
    """
    if not isinstance(text, str):
        raise Corr2CauseError(f"the premise is {type(text).__name__}, not text")
    variables, body = _parse_header(text)
    first, however, second = body.partition("However, ")
    if however and not (first.strip() and second.strip()):
        raise Corr2CauseError("'However, ' must stand between the correlations and the independences of the premise")
    only_independences = not however and " correlates with " not in first
    correlations = set() if only_independences else _parse_statements(first.strip(), variables, False)
    independences = _parse_statements((first if only_independences else second).strip(), variables, True)
    for i, j in combinations(range(len(variables)), 2):
        correlated, independent = (i, j, 0) in correlations, (i, j, 0) in independences
        if correlated == independent:
            state = "both correlated and independent" if correlated else "neither correlated nor independent"
            raise Corr2CauseError(f"the premise leaves {variables[i]} and {variables[j]} {state}; state exactly one")
    return Premise(variables, frozenset(independences))


def _released_order(independence: Independence) -> tuple[int, int, tuple[int, ...]]:
    i, j, given = independence
    return i, j, bits(given)


def write_independence(independence: Independence, variables: Sequence[str]) -> str:
    """'A is independent of B.' or 'A and B are independent given C and D.'"""
    i, j, given = independence
    if not given:
        return f"{variables[i]} is independent of {variables[j]}."
    return f"{variables[i]} and {variables[j]} are independent given {_listing([variables[v] for v in bits(given)])}."


def write_premise(premise: Premise) -> str:
    """The released wording and order of statements, without 'Premise: '."""
    names, stated = premise.variables, premise.independences
    pairs = combinations(range(len(names)), 2)
    correlations = " ".join(f"{names[i]} correlates with {names[j]}." for i, j in pairs if (i, j, 0) not in stated)
    independences = " ".join(write_independence(s, names) for s in sorted(stated, key=_released_order))
    return _HEADER.format(n=len(names), names=_listing(names)) + " However, ".join(
        filter(None, (correlations, independences))
    )


def read_hypothesis(text: str, variables: Sequence[str]) -> tuple[Claim, str]:
    """The claim and its `template`; a paraphrased indirect claim counts as 'non-parent ancestor'."""
    if not isinstance(text, str):
        raise Corr2CauseError(f"the hypothesis is {type(text).__name__}, not text")
    sentence = " ".join(text.split())
    for wordings in (_WORDING, _PARAPHRASE):
        for template, wording in wordings.items():
            match = re.fullmatch(_pattern(wording), sentence)
            if match and " " not in match["a"] + match["b"]:
                return _claim(template, _index(match["a"], variables, text), _index(match["b"], variables, text), text)
    raise Corr2CauseError(f"cannot read the hypothesis {_short(text)}; expected for example 'A directly causes B.'")


def _claim(template: str, i: int, j: int, text: str) -> tuple[Claim, str]:
    if i == j:
        raise Corr2CauseError(f"the hypothesis {_short(text)} names one variable twice")
    relation = _RELATION_OF[template]
    if relation in ("collider", "confounder"):
        return Claim(relation, min(i, j), max(i, j)), template
    if relation == "direct":
        template = "parent" if i < j else "child"
    return Claim(relation, i, j), template


def parse_hypothesis(text: str, variables: Sequence[str]) -> Claim:
    """The claim of any released or paraphrased wording. Raises Corr2CauseError if it is none of them."""
    return read_hypothesis(text, variables)[0]


def write_hypothesis(claim: Claim, variables: Sequence[str], template: str, paraphrase: bool = False) -> str:
    """The claim in the wording of `template` (one of TEMPLATES), or in the paraphrase of the perturbed test set."""
    if _RELATION_OF.get(template) != claim.relation:
        raise Corr2CauseError(f"template {template!r} does not word a {claim.relation} claim; use one of {TEMPLATES}")
    wording = (_PARAPHRASE if paraphrase else _WORDING)[template]
    return wording.format(a=variables[claim.i], b=variables[claim.j])


# ---------------------------------------------------------------- identifiers


def premise_id(premise_text: str) -> str:
    """12 hexadecimal digits that identify the premise's text."""
    return hashlib.sha1(premise_text.encode()).hexdigest()[:12]


@lru_cache(maxsize=8)
def _permuted_positions(n: int) -> np.ndarray:
    """(n!, n(n-1)): for each permutation, where each off-diagonal cell of the adjacency matrix is read from."""
    order = np.array(list(permutations(range(n))))
    rows, columns = np.nonzero(~np.eye(n, dtype=bool))
    return order[:, rows] * n + order[:, columns]


@lru_cache(maxsize=16384)
def _canonical_code(out: PDAG) -> int:
    """The smallest adjacency-matrix code over all permutations of the variables."""
    n = len(out)
    cells = np.array([mask >> v & 1 for mask in out for v in range(n)], dtype=np.int64)
    return int((cells[_permuted_positions(n)] @ (1 << np.arange(n * (n - 1)))).min())


def structure_id(premise: Premise) -> str:
    """The class up to renaming of the variables, e.g. '4-01f3'. Raises if no DAG satisfies the premise."""
    markov_equivalence_class(premise)
    n = len(premise.variables)
    return f"{n}-{_canonical_code(_pdag(premise)):0{(n * (n - 1) + 3) // 4}x}"


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
    if num_variables not in range(2, MAX_GENERATED + 1):
        raise Corr2CauseError(f"num_variables is {num_variables}; graphs are generated for 2 to {MAX_GENERATED}")
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


def generate_premises(num_variables: int) -> Iterator[DAG]:
    """The first representative of each Markov equivalence class up to relabelling, in the released order."""
    seen = set()
    for dag in unlabelled_dags(num_variables):
        code = _canonical_code(_pdag_of_dag(dag))
        if code not in seen:
            seen.add(code)
            yield dag


def premise_of(dag: DAG) -> Premise:
    """The premise of `dag`'s class, over the letters A, B, C..."""
    return Premise(tuple(chr(ord("A") + v) for v in range(len(dag))), d_separations(dag))


def labelled_premises(dag: DAG, relabel_seed: int | None = None, relabelings: int = 1) -> list[Premise]:
    """The class of `dag` under `relabelings` distinct random permutations of the letters, or as it is (seed None).

    The premises are distinct; a class with fewer labelled versions than `relabelings` yields all of them.
    """
    if relabelings < 1 or (relabel_seed is None and relabelings > 1):
        raise Corr2CauseError(f"relabelings is {relabelings}; use 1 without a relabel_seed, 1 or more with one")
    if relabel_seed is None:
        return [premise_of(dag)]
    rng = random.Random(f"{relabel_seed}-{dag}")
    orders = list(permutations(range(len(dag))))
    rng.shuffle(orders)
    out, versions = _pdag_of_dag(dag), {}
    for order in orders:
        versions.setdefault(relabel(out, order), order)
        if len(versions) == min(relabelings, factorial(len(dag))):
            break
    return [premise_of(relabel(dag, order)) for order in versions.values()]


def _claims(n: int, rng: random.Random) -> Iterator[tuple[Claim, str]]:
    """Six claims a pair. Which wording an indirect claim gets is a fair coin, in both directions, as in the release."""
    for i, j in combinations(range(n), 2):
        yield Claim("direct", i, j), "parent"
        yield Claim("direct", j, i), "child"
        yield Claim("indirect", i, j), rng.choice(TEMPLATES[2:4])
        yield Claim("indirect", j, i), rng.choice(TEMPLATES[2:4])
        yield Claim("collider", i, j), "has_collider"
        yield Claim("confounder", i, j), "has_confounder"


def premise_columns(premise: Premise, text: str) -> dict:
    """The dataset's columns that all rows of a premise, written as `text`, share."""
    directed, undirected = (sorted(map(list, edges)) for edges in cpdag(premise))
    return {
        "premise": text,
        "premise_id": premise_id(text),
        "structure_id": structure_id(premise),
        "num_variables": len(premise.variables),
        "edges": {"directed": directed, "undirected": undirected},
    }


def rows_of_class(premise: Premise) -> list[dict]:
    """The 3N(N-1) rows of a premise: the dataset's columns without `prompt` and `response`, exact labels."""
    members, text = markov_equivalence_class(premise), write_premise(premise)
    shared = premise_columns(premise, text)
    rows = []
    for claim, template in _claims(len(premise.variables), random.Random(shared["premise_id"])):
        hypothesis, label = write_hypothesis(claim, premise.variables, template), exact_label(members, claim)
        row = {"input": write_input(text, hypothesis), "hypothesis": hypothesis, "template": template}
        rows.append({**shared, **row, "label": label, "given_label": label})
    return rows


def generate_rows(num_variables: int, relabel_seed: int | None = None, relabelings: int = 1) -> Iterator[dict]:
    """All rows for N variables, class by class in the released order; see `labelled_premises` for the relabelling."""
    for dag in generate_premises(num_variables):
        for premise in labelled_premises(dag, relabel_seed, relabelings):
            yield from rows_of_class(premise)


# ---------------------------------------------------------------- reasoning


def trace(premise: Premise, claim: Claim, style: str = "compact") -> str:
    """The exact reasoning in words, one fact a line, ending in 'Answer: Yes' or 'Answer: No'.

    Pairs (kept, or cut by the first separating set as the premise lists them), the class's edges, the step that decides
    the claim, the answer. Every variable follows a space, so that a byte-level BPE sees one token for it everywhere.
    """
    if style != "compact":
        raise Corr2CauseError(f"trace style {style!r} is unknown; use 'compact'")
    members, separators = markov_equivalence_class(premise), first_separators(premise)
    lines = []
    for i, j in combinations(range(len(premise.variables)), 2):
        how = f"cut given {_names(premise, separators[i, j])}" if (i, j) in separators else "kept"
        lines.append(f"Pair {premise.variables[i]} {premise.variables[j]}: {how}.")
    lines += [f"Edge {edge}." for edge in class_edges(premise)]
    lines += _decisive(premise, members, claim)
    return "\n".join((*lines, "Answer: Yes" if exact_label(members, claim) else "Answer: No"))


def _names(premise: Premise, mask: int) -> str:
    return " ".join(premise.variables[v] for v in bits(mask)) or "none"


def class_edges(premise: Premise) -> list[str]:
    """The class's edges in pair order: 'A -> B' where all members agree, 'A - B' where they differ."""
    directed, undirected = cpdag(premise)
    edges = sorted(directed | undirected, key=sorted)
    signs = {edge: "->" if edge in directed else "-" for edge in edges}
    return [f"{premise.variables[u]} {sign} {premise.variables[v]}" for (u, v), sign in signs.items()]


def _decisive(premise: Premise, members: Sequence[DAG], claim: Claim) -> list[str]:
    """What could make the claim hold in the class; then what does in every member, or a member where nothing does."""
    candidates, possible = _candidates(premise, claim)
    failing = counterexample(members, claim)
    if not possible:
        return [candidates]
    if failing is None:
        return [candidates, f"Every graph: {_cover(premise, members, claim)}."]
    edges = sorted(dag_edges(failing), key=sorted)
    return [candidates, f"Counterexample: {', '.join(_path(premise, edge) for edge in edges)}."]


def _candidates(premise: Premise, claim: Claim) -> tuple[str, bool]:
    """The line on the edge (direct), or on the variables between or beyond i and j, and whether it leaves a chance.

    Reach follows edges of the CPDAG forwards ('From') or backwards ('Into'), undirected ones both ways, and never
    passes through the other variable. Without a shared variable no member has the two paths; with one, it depends.
    """
    i, j, n, out = claim.i, claim.j, len(premise.variables), _pdag(premise)
    into = [sum(1 << u for u in range(n) if out[u] >> v & 1) for v in range(n)]
    if claim.relation == "direct":
        sign = {(1, 1): "-", (1, 0): "->", (0, 1): "<-"}.get((out[i] >> j & 1, out[j] >> i & 1))
        a, b = premise.variables[i], premise.variables[j]
        return f"Link {a} {b}: {f'{a} {sign} {b}' if sign else 'none'}.", bool(out[i] >> j & 1)
    from_i, from_j = claim.relation != "confounder", claim.relation == "collider"
    reach_i = _reachable(out if from_i else into, i, ~(1 << j)) & ~(1 << i)
    reach_j = _reachable(out if from_j else into, j, ~(1 << i)) & ~(1 << j)
    sides = ((from_i, i, reach_i), (from_j, j, reach_j))
    text = [f"{'From' if forward else 'Into'} {premise.variables[v]}: {_names(premise, r)}." for forward, v, r in sides]
    return " ".join((*text, f"Shared: {_names(premise, reach_i & reach_j)}.")), bool(reach_i & reach_j)


def _path(premise: Premise, path: Sequence[int]) -> str:
    return " -> ".join(premise.variables[v] for v in path)


def _cover(premise: Premise, members: Sequence[DAG], claim: Claim) -> str:
    """Paths such that every member has one of the alternatives; one is enough unless undirected edges take turns."""
    found = {}  # alternative -> the members that have it
    for number, dag in enumerate(members):
        rank = {v: r for r, v in enumerate(_order(dag))}
        for masks in _witnesses(dag, claim):
            paths = tuple(tuple(sorted(bits(mask), key=rank.get)) for mask in masks)
            found.setdefault(paths, set()).add(number)
    missing, chosen = set(range(len(members))), []
    while missing:  # greedy: most members first, then the shortest
        best = min(found, key=lambda paths: (-len(found[paths] & missing), sum(map(len, paths)), paths))
        missing -= found[best]
        chosen.append(" and ".join(_path(premise, path) for path in best))
    return ", or ".join(chosen)


def explain(text: str) -> str:
    """Everything the oracle knows about one input text: independences, class, number of members, trace with answer."""
    premise_text, hypothesis = split_input(text)
    premise = parse_premise(premise_text)
    claim, members = parse_hypothesis(hypothesis, premise.variables), markov_equivalence_class(premise)
    stated = sorted(premise.independences, key=_released_order)
    return "\n".join(
        (
            f"Independences ({len(stated)}):",
            *(f"  {write_independence(statement, premise.variables)}" for statement in stated),
            f"Class edges: {', '.join(class_edges(premise)) or 'none'}",
            f"Members: {len(members)}",
            f"Claim: {hypothesis}",
            trace(premise, claim),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Explain the answer to one Corr2Cause input.",
        usage=argparse.SUPPRESS,  # an error stays one line
    )
    parser.add_argument("--explain", metavar="TEXT", help=r"'Premise: ...\nHypothesis: ...'; \n may be typed literally")
    arguments = parser.parse_args(argv)
    try:
        if arguments.explain is None:
            raise Corr2CauseError(r"nothing to do; give --explain 'Premise: ...\nHypothesis: ...'")
        print(explain(arguments.explain.replace("\\n", "\n")))
    except Corr2CauseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
