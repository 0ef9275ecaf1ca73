"""The oracle against brute force over all labelled DAGs (networkx), and published counts."""

import random
from itertools import combinations, permutations, product
from math import factorial

import networkx as nx
import pytest
from brute_force import (
    LETTERS,
    all_claims,
    as_dag,
    brute_force_classes,
    nx_d_separations,
    nx_graph,
    nx_holds,
    parsed,
    random_graph,
    rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from causal.claims import MAX_LISTED, Claim, counterexample, exact_label, examine, holds, relabel_claim
from causal.classes import (
    Premise,
    _meek,
    canonical_code,
    class_size,
    cpdag,
    markov_equivalence_class,
    pdag,
    pdag_of_dag,
    premise_of,
    relabel_premise,
    structure_id,
)
from causal.enumeration import labelled_premises, representatives, unlabelled_dags
from causal.graphs import Corr2CauseError, d_separations, dag_edges, inverse, relabel

# ---------------------------------------------------------------- graphs and labels


def labelled_counts(n):
    classes = dags = 0
    for dag in representatives(n):
        versions = len(labelled_premises(dag, relabel_seed=0, relabelings=factorial(n)))
        classes += versions
        dags += versions * len(markov_equivalence_class(premise_of(dag)))
    return classes, dags


@pytest.mark.parametrize("n, expected", [(2, (2, 3)), (3, (11, 25)), (4, (185, 543)), (5, (8782, 29281))])
def test_relabelled_classes_sum_to_the_published_labelled_counts(n, expected):
    """Gillispie and Perlman (2002) for classes, OEIS A003024 for DAGs."""
    assert labelled_counts(n) == expected


@pytest.mark.slow
def test_six_variables_sum_to_the_published_labelled_counts():
    classes = dags = 0
    for dag in representatives(6):
        premise = premise_of(dag)
        directed, undirected = cpdag(premise)
        edges = [*directed, *undirected, *(edge[::-1] for edge in undirected)]
        versions = {frozenset((p[u], p[v]) for u, v in edges) for p in permutations(range(6))}
        classes += len(versions)
        dags += len(versions) * len(markov_equivalence_class(premise))
    assert len(list(unlabelled_dags(6))) == 5984
    assert (classes, dags) == (1067825, 3781503)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_classes_edges_and_labels_equal_brute_force(n):
    for separations, graphs in brute_force_classes(n).items():
        premise = Premise(tuple(LETTERS[:n]), separations)
        members = markov_equivalence_class(premise)
        assert len(members) == len(set(members)) and set(members) == {as_dag(graph) for graph in graphs}
        directed, undirected = cpdag(premise)
        edges = [set(graph.edges) for graph in graphs]
        always, ever = set.intersection(*edges), set.union(*edges)
        assert directed == always
        assert undirected == {(i, j) for i, j in ever - always if i < j}
        for claim in all_claims(n):
            assert exact_label(premise, claim) == all(nx_holds(graph, claim) for graph in graphs), claim


def test_d_separations_and_relations_agree_with_networkx_on_larger_graphs():
    rng = random.Random(0)
    for n in (5, 5, 5, 5, 6, 6, 6, 6):
        graph = random_graph(rng, n)
        assert d_separations(as_dag(graph)) == nx_d_separations(graph)
        for claim in all_claims(n):
            assert holds(as_dag(graph), claim) == nx_holds(graph, claim), (graph.edges, claim)


@pytest.mark.parametrize(
    "relation, edges, expected",
    [
        ("indirect", [(0, 1)], False),
        ("indirect", [(0, 1), (0, 2), (2, 1)], True),  # an edge may exist as well
        ("indirect", [(1, 2), (2, 0)], False),  # the other direction
        ("collider", [(0, 2), (1, 2)], True),
        ("collider", [(0, 3), (3, 2), (1, 3)], True),
        ("collider", [(0, 1), (1, 2)], False),  # the second path lies on the first
        ("confounder", [(2, 0), (2, 3), (3, 1)], True),  # a long leg to the later variable
        ("confounder", [(2, 3), (3, 0), (3, 1)], True),
        ("confounder", [(2, 0), (0, 1)], False),
    ],
)
def test_path_definitions(relation, edges, expected):
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(range(4))
    assert holds(tuple(as_dag(graph)), Claim(relation, 0, 1)) is expected


def test_every_invalid_row_has_a_verified_counterexample_and_no_valid_row_has_a_violator():
    for row in random.Random(1).sample(rows(5), 150) + [row for row in rows(4) if row["label"]]:
        premise, claim = parsed(row)
        members = markov_equivalence_class(premise)
        against = counterexample(premise, claim)
        assert (against is None) == (row["label"] == 1)
        if against is None:
            assert all(nx_holds(nx_graph(member), claim) for member in members)
        else:
            assert nx_d_separations(nx_graph(against)) == premise.independences
            assert not nx_holds(nx_graph(against), claim)


def test_fourth_meek_rule_orients_what_the_first_three_leave():
    """a - b with a - d -> c -> b and a - c, b and d apart: b -> a would force d's arrows into a cycle or a collider."""
    a, b, mid, d = 0, 1, 2, 3
    out = [0] * 4
    for u, v in [(a, b), (b, a), (a, mid), (mid, a), (a, d), (d, a), (d, mid), (mid, b)]:
        out[u] |= 1 << v
    expected = [*out]
    expected[b] = 0
    _meek(out)
    assert out == expected


@pytest.mark.parametrize(
    "independences",
    [
        {(0, 1, 0)} | {(0, 1, 4), (0, 2, 0)},  # A - B cut both ways, A - C marginally only: B would have to be gone too
        {(0, 1, 4), (0, 2, 2), (1, 2, 1)},  # each pair cut by the third
        {(0, 1, 0), (0, 2, 0), (1, 2, 0)},  # pairwise independent, but nothing holds given the third
    ],
)
def test_a_premise_that_no_graph_satisfies_is_an_error(independences):
    premise = Premise(("A", "B", "C"), frozenset(independences))
    assert premise.independences not in brute_force_classes(3)
    for function in (markov_equivalence_class, cpdag, structure_id):
        with pytest.raises(Corr2CauseError, match="no graph satisfies"):
            function(premise)


def test_all_sets_of_independences_over_three_variables_are_accepted_exactly_if_a_graph_has_them():
    possible = [(i, j, given) for i, j in combinations(range(3), 2) for given in (0, 7 & ~(1 << i | 1 << j))]
    for chosen in product((False, True), repeat=len(possible)):
        premise = Premise(("A", "B", "C"), frozenset(s for s, kept in zip(possible, chosen, strict=True) if kept))
        try:
            accepted = len(markov_equivalence_class(premise)) > 0
        except Corr2CauseError:
            accepted = False
        assert accepted == (premise.independences in brute_force_classes(3))


@pytest.mark.parametrize("seed", range(4))
def test_classes_of_five_variables_equal_brute_force_over_their_skeleton(seed):
    """Two variables are adjacent iff nothing separates them, so that a class has one skeleton: 2^edges candidates."""
    graph = random_graph(random.Random(seed), 5)
    separations, edges = nx_d_separations(graph), list(graph.edges)
    expected = []
    for flips in product((False, True), repeat=len(edges)):
        candidate = nx.DiGraph()
        candidate.add_nodes_from(range(5))
        candidate.add_edges_from(edge[::-1] if flip else edge for edge, flip in zip(edges, flips, strict=True))
        if nx.is_directed_acyclic_graph(candidate) and nx_d_separations(candidate) == separations:
            expected.append(candidate)
    premise = Premise(tuple(LETTERS[:5]), separations)
    members = markov_equivalence_class(premise)
    assert set(members) == {as_dag(candidate) for candidate in expected} and len(members) == len(expected)
    for claim in all_claims(5):
        assert exact_label(premise, claim) == all(nx_holds(candidate, claim) for candidate in expected)


def dags(sizes=(2, 3, 4, 5, 6)):
    """Hypothesis: labelled DAGs, in any order of the variables."""

    def build(n, code, order):
        upper = [sum((code >> (v * (v - 1) // 2 + u) & 1) << u for u in range(v)) for v in range(n)]
        return relabel(tuple(upper), order)

    return st.sampled_from(sizes).flatmap(
        lambda n: st.builds(build, st.just(n), st.integers(0, 2 ** (n * (n - 1) // 2) - 1), st.permutations(range(n)))
    )


@settings(max_examples=150)
@given(dags(), st.randoms(use_true_random=False))
def test_the_class_of_a_premise_is_the_class_of_any_of_its_members(dag, rng):
    members = markov_equivalence_class(premise_of(dag))
    assert dag in members
    assert markov_equivalence_class(premise_of(rng.choice(members))) == members


@settings(max_examples=150)
@given(dags(), st.data())
def test_labels_classes_and_structure_do_not_depend_on_the_letters(dag, data):
    n, premise = len(dag), premise_of(dag)
    order = data.draw(st.permutations(range(n)))
    renamed = relabel_premise(premise, order)
    assert renamed == premise_of(relabel(dag, order))
    assert relabel_premise(renamed, inverse(order)) == premise
    assert structure_id(renamed) == structure_id(premise)
    members, renamed_members = map(markov_equivalence_class, (premise, renamed))
    assert {relabel(member, order) for member in members} == set(renamed_members)
    claim = data.draw(st.sampled_from(all_claims(n)))
    assert exact_label(renamed, relabel_claim(claim, order)) == exact_label(premise, claim)


@pytest.mark.parametrize("n", [7, 8, 9, 10])
def test_larger_systems_are_sampled(n):
    found = list(representatives(n, structures=6, seed=1))
    premises = [premise_of(dag) for dag in found]
    assert len({structure_id(premise) for premise in premises}) == 6
    assert found == list(representatives(n, structures=6, seed=1)) != list(representatives(n, 6, seed=2))
    if n <= 8:  # networkx takes long
        smallest = min(premises, key=lambda premise: len(premise.independences))
        assert smallest.independences == nx_d_separations(nx_graph(found[premises.index(smallest)]))
    for dag, premise in zip(found, premises, strict=True):
        assert pdag_of_dag(dag) == pdag(premise)


def v_structures(graph):
    return {
        (frozenset((a, b)), k)
        for k in graph
        for a, b in combinations(graph.predecessors(k), 2)
        if not graph.has_edge(a, b) and not graph.has_edge(b, a)
    }


@pytest.mark.parametrize("n", [7, 8])
def test_classes_and_labels_of_larger_systems_equal_brute_force_over_their_skeleton(n):
    """The class: every orientation of the skeleton with the same v-structures (Verma and Pearl, 1990)."""
    sparse = (dag for dag in representatives(n, structures=60, seed=2) if 4 <= len(dag_edges(dag)) <= 6)
    for dag in list(sparse)[:2]:
        graph, expected = nx_graph(dag), []
        for flips in product((False, True), repeat=graph.number_of_edges()):
            candidate = nx.DiGraph()
            candidate.add_nodes_from(range(n))
            candidate.add_edges_from(
                edge[::-1] if flip else edge for edge, flip in zip(graph.edges, flips, strict=True)
            )
            if nx.is_directed_acyclic_graph(candidate) and v_structures(candidate) == v_structures(graph):
                expected.append(candidate)
        premise = premise_of(dag)
        members = markov_equivalence_class(premise)
        assert set(members) == {as_dag(candidate) for candidate in expected}
        for claim in all_claims(n):
            assert exact_label(premise, claim) == all(nx_holds(candidate, claim) for candidate in expected)


def assert_search_equals_enumeration(dags):
    """Labels, counterexamples and the number of members, against the list of members, in random letters."""
    rng = random.Random(0)
    for dag in dags:
        n = len(dag)
        premise = premise_of(relabel(dag, rng.sample(range(n), n)))
        members = markov_equivalence_class(premise)
        assert class_size(premise) == len(members)
        for claim in all_claims(n):
            failing = {member for member in members if not holds(member, claim)}
            assert exact_label(premise, claim) == (not failing), (dag, claim)
            against = counterexample(premise, claim)
            assert against in failing if failing else against is None


@pytest.mark.parametrize("n, structures", [(2, None), (3, None), (4, None), (5, None), (6, 30), (7, 6), (8, 4)])
def test_labels_by_search_equal_enumeration(n, structures):
    assert_search_equals_enumeration(representatives(n, structures, seed=7))


@pytest.mark.slow
@pytest.mark.parametrize("n, structures", [(6, None), (7, 300), (8, 100)])
def test_labels_by_search_equal_enumeration_on_all_structures(n, structures):
    assert_search_equals_enumeration(representatives(n, structures, seed=8))


def test_classes_of_millions_are_counted_and_labelled_without_listing_them(monkeypatch):
    """Ten variables, all adjacent, but for a pair: one of the two comes last, and is an effect of all others."""
    monkeypatch.setattr("causal.classes.markov_equivalence_class", None)
    complete = tuple((1 << v) - 1 for v in range(10))
    premise = premise_of(complete)
    assert class_size(premise) == factorial(10)
    assert not any(exact_label(premise, claim) for claim in all_claims(10))
    assert len(examine(premise, Claim("direct", 1, 0)).members) == MAX_LISTED
    members, failing, _ = examine(premise, Claim("direct", 0, 1))  # it holds in the first so many
    assert len(members) == MAX_LISTED + 1 and failing == [False] * MAX_LISTED + [True]
    almost = premise_of((*complete[:9], complete[9] & ~(1 << 8)))
    # An order of the other nine with one of the pair last, or the other; both are last in 8! graphs counted twice.
    assert class_size(almost) == 2 * factorial(9) - factorial(8)
    found = {claim for claim in all_claims(10) if exact_label(almost, claim)}
    assert found == {Claim("collider", i, j) for i, j in combinations(range(8), 2)}
    for claim in all_claims(10)[::17]:
        listed, failing, size = examine(almost, claim)
        assert failing == [not holds(member, claim) for member in listed] and size == class_size(almost)
        assert (claim in found) == (not any(failing))
        assert pdag_of_dag(listed[-1]) == pdag(almost)


def smallest_code(out):
    """Over all permutations: adjacency matrix without its diagonal, row by row, lowest bit first."""
    cells = [(u, v) for u in range(len(out)) for v in range(len(out)) if u != v]
    return min(
        sum((out[p[u]] >> p[v] & 1) << k for k, (u, v) in enumerate(cells)) for p in permutations(range(len(out)))
    )


def test_a_structure_has_the_smallest_code_of_all_permutations():
    rng = random.Random(3)
    for dag in [d for n in (2, 3, 4) for d in unlabelled_dags(n)] + rng.sample(list(unlabelled_dags(6)), 6):
        out = relabel(pdag_of_dag(dag), rng.sample(range(len(dag)), len(dag)))
        assert canonical_code(out) == smallest_code(out)


def test_structures_of_ten_variables_do_not_depend_on_the_letters():
    """Random ones, and such with many symmetries: nothing, everything, pairs, paths, crowns."""

    def dag_of(edges):
        return tuple(sum(1 << u for u, w in edges if w == v) for v in range(10))

    rng, symmetric = random.Random(5), [
        [],
        [*combinations(range(10), 2)],
        [(2 * k, 2 * k + 1) for k in range(5)],
        [(5 * k + i, 5 * k + i + 1) for k in range(2) for i in range(4)],
        [(i, 5 + j) for i in range(5) for j in range(5) if i != j],
        [(i, 4 + k) for k, pair in enumerate(combinations(range(4), 2)) for i in pair],
    ]  # fmt: skip
    dags = [dag_of(edges) for edges in symmetric] + list(representatives(10, 40, seed=1))
    codes = [canonical_code(pdag_of_dag(dag)) for dag in dags]
    assert len(set(codes[6:])) == 40 and len(set(codes[:6])) == 6
    for dag, code in zip(dags, codes, strict=True):
        assert canonical_code(relabel(pdag_of_dag(dag), rng.sample(range(10), 10))) == code


def test_structures_is_a_random_part_of_all_classes():
    everything = list(representatives(5))
    part = list(representatives(5, structures=20, seed=3))
    assert len(part) == 20 and part == [dag for dag in everything if dag in part]
    assert part != list(representatives(5, structures=20, seed=4))
    assert list(representatives(5, structures=200)) == everything


def test_cyclic_graphs_and_malformed_claims_are_errors():
    with pytest.raises(Corr2CauseError, match="cycle"):
        d_separations((2, 1))
    with pytest.raises(Corr2CauseError, match="relation 'cause'"):
        Claim("cause", 0, 1)
    with pytest.raises(Corr2CauseError, match="in order"):
        Claim("collider", 1, 0)
