"""Claims and their exact labels: a claim is valid (1) iff it holds in every DAG of the premise's equivalence class.

So Jin et al. define it (ICLR 2024, arXiv 2306.05836). What holds in all members is decided on the CPDAG, by a search
that orients one edge at a time, without listing them. wording.py is the text around it, reasoning.py the steps in
words; the notation is that of graphs.py and classes.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from causal.classes import PDAG, Premise, class_size, edge_masks, extensions, oriented, pdag, some_member
from causal.graphs import DAG, Corr2CauseError, bits, children, closure, path_masks, reachable

RELATIONS = ("direct", "indirect", "collider", "confounder")
SYMMETRIC = ("collider", "confounder")
MAX_LISTED = 1000  # members of a class that are listed or drawn; up to N = 6 no class has more than 720


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


def relabel_claim(claim: Claim, permutation: Sequence[int]) -> Claim:
    """The same claim with variable v renamed to permutation[v]."""
    return claim_on(claim.relation, permutation[claim.i], permutation[claim.j])


# ---------------------------------------------------------------- in one graph


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
        return bool(closure(out, out[i] & ~(1 << i | 1 << j), ~(1 << i)) >> j & 1)
    steps = out if claim.relation == "collider" else into
    return bool(reachable(steps, i, ~(1 << j)) & reachable(steps, j, ~(1 << i)))


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


# ---------------------------------------------------------------- in a class


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


def counterexample(premise: Premise, claim: Claim) -> DAG | None:
    """A member of the class in which the claim fails, or None. Raises Corr2CauseError if no graph fits the premise."""
    return _failing(pdag(premise), claim)


def _failing(out: PDAG, claim: Claim) -> DAG | None:
    """A DAG of the PDAG in which the claim fails, or None: a search that orients one edge both ways at a time.

    More arrows never make a claim false. So it holds in all DAGs if the arrows alone make it hold, and fails in all if
    not even the arrows with every undirected edge taken both ways do. In between, some undirected edge leads on from
    where arrows alone lead; turning it back, which may make the claim fail, is tried first.
    """
    arrows, arrows_into, into = edge_masks(out)
    if _holds(arrows, arrows_into, claim):
        return None
    if not _holds(out, into, claim):
        return some_member(out)
    found = (_failing(oriented(out, *edge), claim) for edge in _turned(out, claim))
    return next((dag for dag in found if dag is not None), None)


def _turned(out: PDAG, claim: Claim) -> tuple[tuple[int, int], tuple[int, int]]:
    """An undirected edge that the claim may need, first as it does not help the claim, then as it does."""
    i, j = claim.i, claim.j
    if claim.relation == "direct":
        return (j, i), (i, j)
    backwards = claim.relation == "confounder"
    steps, edges = edge_masks(out)[backwards], []
    for start, other in ((i, j), (j, i))[: 1 if claim.relation == "indirect" else 2]:
        reached = reachable(steps, start, ~(1 << other))
        for u in bits(reached):
            end = 0 if claim.relation == "indirect" and u != start else 1 << other
            edges += [(u, v) for v in bits(out[u] & ~steps[u] & ~reached & ~end) if out[v] >> u & 1]
    u, v = min(edges, key=lambda edge: out[edge[1]].bit_count())  # the fewer neighbours, the more Meek's rules follow
    return ((u, v), (v, u)) if backwards else ((v, u), (u, v))


def proof_cases(out: PDAG, claim: Claim) -> Iterator[DAG]:
    """Graphs of arrows, in each of which the claim holds: all of one or another of them are in every DAG of the PDAG.

    The claim must hold in all of these. It is the search of `_failing`, which then finds none.
    """
    arrows, arrows_into, _ = edge_masks(out)
    if _holds(arrows, arrows_into, claim):
        yield arrows_into
        return
    for edge in _turned(out, claim):
        yield from proof_cases(oriented(out, *edge), claim)


class Examined(NamedTuple):
    """A claim held against the members of a class, to be shown."""

    members: list[
        DAG
    ]  # sorted; of more than MAX_LISTED so many, and then one in which it fails, if it fails in others alone
    failing: list[bool]  # in which of these
    size: int  # of the class

    @property
    def extent(self) -> str:
        """In how many members the claim fails: '3 of 12', 'at least 5 of 40,320'."""
        return f"{'at least ' * (len(self.members) < self.size)}{sum(self.failing):,} of {self.size:,}"


def examine(premise: Premise, claim: Claim) -> Examined:
    """In which members of the class the claim fails. Raises as `pdag` does."""
    members, size = sorted(islice(extensions(pdag(premise)), MAX_LISTED)), class_size(premise)
    failing = [not holds(dag, claim) for dag in members]
    against = None if any(failing) or len(members) == size else counterexample(premise, claim)
    more = [] if against is None else [against]
    return Examined(members + more, failing + [True] * len(more), size)
