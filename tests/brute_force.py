"""An oracle that shares no code with the product: networkx, and brute force over all labelled DAGs."""

import re
from functools import cache
from itertools import combinations, permutations, product

import networkx as nx
from hypothesis import strategies as st

from causal import wording as c
from causal.claims import Claim
from causal.classes import premise_of
from causal.graphs import relabel
from causal.rows import generate_rows

LETTERS = "ABCDEF"


def nx_graph(dag):
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(dag)))
    graph.add_edges_from((u, v) for v, parents in enumerate(dag) for u in range(len(dag)) if parents >> u & 1)
    return graph


def as_dag(graph):
    return tuple(sum(1 << u for u in graph.predecessors(v)) for v in range(len(graph)))


def nx_d_separations(graph):
    n = len(graph)
    return frozenset(
        (i, j, sum(1 << v for v in given))
        for i, j in combinations(range(n), 2)
        for size in range(n - 1)
        for given in combinations([v for v in range(n) if v not in (i, j)], size)
        if nx.is_d_separator(graph, {i}, {j}, set(given))
    )


def nx_holds(graph, claim):
    def paths(source, target):
        return [set(path) for path in nx.all_simple_paths(graph, source, target)]

    i, j = claim.i, claim.j
    if claim.relation == "direct":
        return graph.has_edge(i, j)
    if claim.relation == "indirect":
        return any(len(path) > 2 for path in paths(i, j))
    forward = claim.relation == "collider"
    return any(
        p & q == {x}
        for x in set(graph) - {i, j}
        for p in (paths(i, x) if forward else paths(x, i))
        for q in (paths(j, x) if forward else paths(x, j))
    )


@cache
def brute_force_classes(n):
    """{all d-separations: [every labelled DAG that has them]} over n variables."""
    classes, pairs = {}, list(combinations(range(n), 2))
    for states in product((None, 0, 1), repeat=len(pairs)):
        graph = nx.DiGraph()
        graph.add_nodes_from(range(n))
        graph.add_edges_from(p if s else p[::-1] for p, s in zip(pairs, states, strict=True) if s is not None)
        if nx.is_directed_acyclic_graph(graph):
            classes.setdefault(nx_d_separations(graph), []).append(graph)
    return classes


def random_graph(rng, n):
    order = rng.sample(range(n), n)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    density = rng.uniform(0.2, 0.8)
    graph.add_edges_from((order[a], order[b]) for a, b in combinations(range(n), 2) if rng.random() < density)
    return graph


def all_claims(n):
    ordered = [Claim(r, i, j) for r in ("direct", "indirect") for i, j in permutations(range(n), 2)]
    return ordered + [Claim(r, i, j) for r in ("collider", "confounder") for i, j in combinations(range(n), 2)]


@cache
def rows(n):
    return list(generate_rows(n))


def parsed(row):
    return c.parse_input(row["input"])


@st.composite
def premises_and_claims(draw):
    n = draw(st.integers(2, 6))
    code, order = draw(st.integers(0, 2 ** (n * (n - 1) // 2) - 1)), draw(st.permutations(range(n)))
    upper = tuple(sum((code >> (v * (v - 1) // 2 + u) & 1) << u for u in range(v)) for v in range(n))
    claim = draw(st.sampled_from(all_claims(n)))
    template = draw(st.sampled_from([t for t in c.TEMPLATES if c.RELATION_OF[t] == claim.relation]))
    return premise_of(relabel(upper, order)), claim, template


def statements(premise_text):
    """A premise's header and its sorted statements, each with its two variables and its condition sorted."""
    header, body = " ".join(premise_text.split()).split("follows: ")
    found = []
    for sentence in re.split(r"\.\s*", body.replace("However, ", "").removesuffix(".")):
        pair, _, given = sentence.partition(" are independent given ")
        kind = next((k for k in (" correlates with ", " is independent of ", " and ") if k in pair), None)
        found.append((kind, sorted(pair.split(kind)), sorted(re.split(", | and ", given))))
    return header, sorted(found)
