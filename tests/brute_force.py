"""An oracle that shares no code with the product: networkx, and brute force over all labelled DAGs."""

from functools import cache
from itertools import combinations, permutations, product

import networkx as nx

from causal import graphs as g
from causal import wording as c

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
    ordered = [g.Claim(r, i, j) for r in ("direct", "indirect") for i, j in permutations(range(n), 2)]
    return ordered + [g.Claim(r, i, j) for r in ("collider", "confounder") for i, j in combinations(range(n), 2)]


@cache
def rows(n):
    return list(c.generate_rows(n))


def parsed(row):
    premise_text, hypothesis = c.split_input(row["input"])
    premise = c.parse_premise(premise_text)
    return premise, c.parse_hypothesis(hypothesis, premise.variables)
