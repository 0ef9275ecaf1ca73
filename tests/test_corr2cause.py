"""The oracle against brute force over all labelled DAGs (networkx), published counts, and text in both directions."""

import random
import re
from functools import cache
from itertools import combinations, permutations, product
from math import factorial

import networkx as nx
import pytest

import corr2cause as c

LETTERS = "ABCDEF"
GOOD = (
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B."
)


# ---------------------------------------------------------------- an oracle that shares no code with the module


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
    ordered = [c.Claim(r, i, j) for r in ("direct", "indirect") for i, j in permutations(range(n), 2)]
    return ordered + [c.Claim(r, i, j) for r in ("collider", "confounder") for i, j in combinations(range(n), 2)]


@cache
def rows(n):
    return list(c.generate_rows(n))


def parsed(row):
    premise_text, hypothesis = c.split_input(row["input"])
    premise = c.parse_premise(premise_text)
    return premise, c.parse_hypothesis(hypothesis, premise.variables)


# ---------------------------------------------------------------- graphs and labels


@pytest.mark.parametrize(
    "n, dags, classes, row_count, valid",
    [(2, 2, 2, 12, 0), (3, 6, 5, 90, 3), (4, 31, 20, 720, 57), (5, 302, 142, 8520, 1248)],
)
def test_counts_of_the_released_task(n, dags, classes, row_count, valid):
    assert len(list(c.unlabelled_dags(n))) == dags
    assert len(list(c.generate_premises(n))) == classes
    assert len(rows(n)) == row_count
    assert sum(row["label"] for row in rows(n)) == valid


def labelled_counts(n):
    classes = dags = 0
    for dag in c.generate_premises(n):
        versions = len(c.labelled_premises(dag, relabel_seed=0, relabelings=factorial(n)))
        classes += versions
        dags += versions * len(c.markov_equivalence_class(c.premise_of(dag)))
    return classes, dags


@pytest.mark.parametrize("n, expected", [(2, (2, 3)), (3, (11, 25)), (4, (185, 543)), (5, (8782, 29281))])
def test_relabelled_classes_sum_to_the_published_labelled_counts(n, expected):
    """Gillispie and Perlman (2002) for classes, OEIS A003024 for DAGs."""
    assert labelled_counts(n) == expected


@pytest.mark.slow
def test_six_variables_sum_to_the_published_labelled_counts():
    classes = dags = 0
    for dag in c.generate_premises(6):
        premise = c.premise_of(dag)
        directed, undirected = c.cpdag(premise)
        edges = [*directed, *undirected, *(edge[::-1] for edge in undirected)]
        versions = {frozenset((p[u], p[v]) for u, v in edges) for p in permutations(range(6))}
        classes += len(versions)
        dags += len(versions) * len(c.markov_equivalence_class(premise))
    assert len(list(c.unlabelled_dags(6))) == 5984
    assert (classes, dags) == (1067825, 3781503)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_classes_edges_and_labels_equal_brute_force(n):
    for separations, graphs in brute_force_classes(n).items():
        premise = c.Premise(tuple(LETTERS[:n]), separations)
        members = c.markov_equivalence_class(premise)
        assert len(members) == len(set(members)) and set(members) == {as_dag(graph) for graph in graphs}
        directed, undirected = c.cpdag(premise)
        edges = [set(graph.edges) for graph in graphs]
        always, ever = set.intersection(*edges), set.union(*edges)
        assert directed == always
        assert undirected == {(i, j) for i, j in ever - always if i < j}
        for claim in all_claims(n):
            assert c.exact_label(members, claim) == all(nx_holds(graph, claim) for graph in graphs), claim


def test_d_separations_and_relations_agree_with_networkx_on_larger_graphs():
    rng = random.Random(0)
    for n in (5, 5, 5, 5, 6, 6, 6, 6):
        graph = random_graph(rng, n)
        assert c.d_separations(as_dag(graph)) == nx_d_separations(graph)
        for claim in all_claims(n):
            assert c.holds(as_dag(graph), claim) == nx_holds(graph, claim), (graph.edges, claim)


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
    assert c.holds(tuple(as_dag(graph)), c.Claim(relation, 0, 1)) is expected


def test_every_invalid_row_has_a_verified_counterexample_and_no_valid_row_has_a_violator():
    for row in random.Random(1).sample(rows(5), 150) + [row for row in rows(4) if row["label"]]:
        premise, claim = parsed(row)
        members = c.markov_equivalence_class(premise)
        against = c.counterexample(members, claim)
        assert (against is None) == (row["label"] == 1)
        if against is None:
            assert all(nx_holds(nx_graph(member), claim) for member in members)
        else:
            assert nx_d_separations(nx_graph(against)) == premise.independences
            assert not nx_holds(nx_graph(against), claim)


def test_labels_and_structure_do_not_depend_on_the_letters():
    rng = random.Random(2)
    for dag in [*c.generate_premises(4), *rng.sample(list(c.generate_premises(5)), 15)]:
        n = len(dag)
        renaming = rng.sample(range(n), n)
        premise, renamed = c.premise_of(dag), c.premise_of(c.relabel(dag, renaming))
        assert c.structure_id(renamed) == c.structure_id(premise)
        members, renamed_members = c.markov_equivalence_class(premise), c.markov_equivalence_class(renamed)
        assert {c.relabel(member, renaming) for member in members} == set(renamed_members)
        for claim in all_claims(n):
            i, j = renaming[claim.i], renaming[claim.j]
            if claim.relation in ("collider", "confounder"):
                i, j = min(i, j), max(i, j)
            assert c.exact_label(renamed_members, c.Claim(claim.relation, i, j)) == c.exact_label(members, claim)


def test_fourth_meek_rule_orients_what_the_first_three_leave():
    """a - b with a - d -> c -> b and a - c, b and d apart: b -> a would force d's arrows into a cycle or a collider."""
    a, b, mid, d = 0, 1, 2, 3
    out = [0] * 4
    for u, v in [(a, b), (b, a), (a, mid), (mid, a), (a, d), (d, a), (d, mid), (mid, b)]:
        out[u] |= 1 << v
    expected = [*out]
    expected[b] = 0
    assert c._meek(out) == tuple(expected)


@pytest.mark.parametrize(
    "independences",
    [
        {(0, 1, 0)} | {(0, 1, 4), (0, 2, 0)},  # A - B cut both ways, A - C marginally only: B would have to be gone too
        {(0, 1, 4), (0, 2, 2), (1, 2, 1)},  # each pair cut by the third
        {(0, 1, 0), (0, 2, 0), (1, 2, 0)},  # pairwise independent, but nothing holds given the third
    ],
)
def test_a_premise_that_no_graph_satisfies_is_an_error(independences):
    premise = c.Premise(("A", "B", "C"), frozenset(independences))
    assert premise.independences not in brute_force_classes(3)
    for function in (c.markov_equivalence_class, c.cpdag, c.structure_id):
        with pytest.raises(c.Corr2CauseError, match="no graph satisfies"):
            function(premise)


def test_all_sets_of_independences_over_three_variables_are_accepted_exactly_if_a_graph_has_them():
    possible = [(i, j, given) for i, j in combinations(range(3), 2) for given in (0, 7 & ~(1 << i | 1 << j))]
    for chosen in product((False, True), repeat=len(possible)):
        premise = c.Premise(("A", "B", "C"), frozenset(s for s, kept in zip(possible, chosen, strict=True) if kept))
        try:
            accepted = len(c.markov_equivalence_class(premise)) > 0
        except c.Corr2CauseError:
            accepted = False
        assert accepted == (premise.independences in brute_force_classes(3))


def test_cyclic_graphs_and_malformed_claims_are_errors():
    with pytest.raises(c.Corr2CauseError, match="cycle"):
        c.d_separations((2, 1))
    with pytest.raises(c.Corr2CauseError, match="relation 'cause'"):
        c.Claim("cause", 0, 1)
    with pytest.raises(c.Corr2CauseError, match="in order"):
        c.Claim("collider", 1, 0)


# ---------------------------------------------------------------- rows and relabelling


def test_rows_have_the_columns_and_templates_of_the_release():
    columns = {"input", "premise", "hypothesis", "premise_id", "structure_id", "label", "given_label"}
    for row in rows(4):
        assert set(row) == columns | {"num_variables", "template", "edges"}
        assert row["input"] == f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}"
        first, last = re.findall(r"\b[A-D]\b", row["hypothesis"])
        if row["template"] not in ("non-parent ancestor", "non-child descendant"):
            assert (first < last) == (row["template"] != "child")
        assert set(row["edges"]) == {"directed", "undirected"}
    assert {row["template"] for row in rows(4)} == set(c.TEMPLATES)
    assert len({row["structure_id"] for row in rows(4)}) == len({row["premise_id"] for row in rows(4)}) == 20


def test_released_order_never_lets_a_later_letter_cause_an_earlier_one_and_relabelling_does():
    def backward(generated):
        return sum(row["label"] for row in generated if row["template"] == "child")

    assert backward(rows(4)) == 0
    assert backward(c.generate_rows(4, relabel_seed=0, relabelings=3)) > 0


def test_relabelling_is_deterministic_distinct_and_exhaustive():
    first, again = ([*c.generate_rows(4, relabel_seed=7, relabelings=4)] for _ in range(2))
    assert first == again
    assert first != [*c.generate_rows(4, relabel_seed=8, relabelings=4)]
    per_structure = {}
    for row in first:
        per_structure.setdefault(row["structure_id"], set()).add(row["premise"])
    assert len(per_structure) == 20
    versions = {
        c.structure_id(c.premise_of(dag)): len(c.labelled_premises(dag, 0, 99)) for dag in c.generate_premises(4)
    }
    assert {key: len(texts) for key, texts in per_structure.items()} == {k: min(4, v) for k, v in versions.items()}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: list(c.generate_rows(7)), "num_variables is 7"),
        (lambda: list(c.generate_rows(1)), "num_variables is 1"),
        (lambda: list(c.generate_rows(3, relabelings=2)), "relabel_seed"),
        (lambda: list(c.generate_rows(3, relabel_seed=1, relabelings=0)), "relabelings is 0"),
        (lambda: c.write_hypothesis(c.Claim("direct", 0, 1), "AB", "has_collider"), "does not word a direct claim"),
        (lambda: c.trace(c.parse_premise(GOOD), c.Claim("direct", 0, 1), style="verbose"), "trace style 'verbose'"),
    ],
)
def test_settings_out_of_range_are_named(call, message):
    with pytest.raises(c.Corr2CauseError, match=message):
        call()


# ---------------------------------------------------------------- text


def test_text_to_graph_to_text_is_the_identity():
    for row in [*rows(2), *rows(3), *rows(4), *random.Random(3).sample(rows(5), 300)]:
        premise_text, hypothesis = c.split_input(row["input"])
        assert (premise_text, hypothesis) == (row["premise"], row["hypothesis"])
        premise = c.parse_premise(premise_text)
        claim, template = c.read_hypothesis(hypothesis, premise.variables)
        assert c.write_premise(premise) == premise_text
        assert template == row["template"]
        assert c.write_hypothesis(claim, premise.variables, template) == hypothesis


def test_wording_is_the_released_one():
    assert c.write_premise(c.premise_of((0, 0, 3))) == GOOD
    chain = c.write_premise(c.premise_of((0, 1, 2, 4)))
    assert chain.endswith(
        "However, A and C are independent given B. A and C are independent given B and D. "
        "A and D are independent given B. A and D are independent given B and C. A and D are independent given C. "
        "B and D are independent given A and C. B and D are independent given C."
    )
    assert "follows: A is independent of B." in c.write_premise(c.premise_of((0, 0)))
    assert c.write_premise(c.premise_of((0, 1))).endswith("follows: A correlates with B.")


def test_paraphrases_mean_the_same_claim():
    for claim in all_claims(3):
        for template in c.TEMPLATES:
            if c._RELATION_OF[template] == claim.relation:
                text = c.write_hypothesis(claim, "ZYX", template, paraphrase=True)
                assert c.parse_hypothesis(text, tuple("ZYX")) == claim
    assert c.parse_hypothesis("A influences B through some mediator(s).", "AB") == c.Claim("indirect", 0, 1)
    assert c.parse_hypothesis("Some variable(s) cause(s) both B and A.", "AB") == c.Claim("confounder", 0, 1)


def test_other_letters_and_another_order_of_statements_read_the_same():
    renamed = GOOD.translate(str.maketrans("ABC", "ZYX")).replace("Zll", "All")
    assert c.parse_premise(renamed) == c.Premise(("Z", "Y", "X"), frozenset({(0, 1, 0)}))
    swapped = GOOD.replace("A correlates with C. B correlates with C.", "C correlates with B.  A correlates with C.")
    assert c.parse_premise(swapped) == c.parse_premise(GOOD)


BAD_PREMISES = [
    ("", "does not read"),
    ("A correlates with B.", "does not read"),
    (GOOD.replace("closed system", "system"), "does not read"),
    (GOOD.replace("of 3 variables", "of 4 variables"), "says 4 and 3 variables but lists 3"),
    (GOOD.replace("these 3", "these 2"), "says 3 and 2 variables but lists 3"),
    (GOOD.replace("A, B and C", "A, B, and C"), "not a list of capitalised names"),
    (GOOD.replace("A, B and C", "A, B and c"), "not a list of capitalised names"),
    (GOOD.replace("A, B and C", "A, B and B"), "listed twice"),
    (GOOD.replace("B correlates with C.", "B correlates with D."), "unknown variable 'D'"),
    (GOOD.replace("B correlates with C.", "B correlates with B."), "occurs twice in the statement"),
    (GOOD.replace("B correlates with C.", "B causes C."), "cannot read the statement 'B causes C.'"),
    (GOOD.replace("B correlates with C.", "B correlates with C"), "cannot read the statement"),
    (GOOD.replace("B correlates with C.", ""), "leaves B and C neither"),
    (GOOD.replace("B correlates with C.", "B correlates with C. C correlates with B."), "states .* twice"),
    (GOOD + " B is independent of A.", "states .* twice"),
    (GOOD + " B is independent of C.", "leaves B and C both"),
    (GOOD + " A correlates with B.", "out of place"),
    (GOOD.replace(" However,", ""), "out of place"),
    (GOOD.replace("However, ", "However, However, "), "cannot read the statement"),
    (GOOD.removesuffix("A is independent of B."), "cannot read|must stand between"),
    (GOOD + " A and B are independent given A.", "occurs twice in the statement"),
    (GOOD + " A and B are independent given C and C.", "occurs twice in the statement"),
    (GOOD + " A and B are independent given C, A.", "not a list like|occurs twice"),
    (GOOD + " A and B are independent given D.", "unknown variable 'D'"),
    (GOOD + " A and B are independent given.", "cannot read the statement"),
    (GOOD.split(" All")[0] + " All the statistical relations among these 3 variables are as follows:", "does not read"),
    (
        "Suppose there is a closed system of 1 variables, A. All the statistical relations among these 1 variables "
        "are as follows: A correlates with A.",
        "has 1 variables; 2 to 8",
    ),
    (
        "Suppose there is a closed system of 9 variables, A, B, C, D, E, F, G, H and I. All the statistical relations "
        "among these 9 variables are as follows: A correlates with B.",
        "has 9 variables; 2 to 8",
    ),
    (None, "NoneType, not text"),
]


@pytest.mark.parametrize("text, message", BAD_PREMISES)
def test_malformed_premises_are_named(text, message):
    with pytest.raises(c.Corr2CauseError, match=message) as caught:
        c.parse_premise(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "cannot read the hypothesis"),
        ("A causes B.", "cannot read the hypothesis"),
        ("A directly causes B", "cannot read the hypothesis"),
        ("A directly causes B. B directly causes A.", "cannot read the hypothesis"),
        ("A directly causes D.", "unknown variable 'D'"),
        ("A directly causes A.", "names one variable twice"),
        ("There exists at least one collider (i.e., common effect) of B and B.", "names one variable twice"),
        (3, "int, not text"),
    ],
)
def test_malformed_hypotheses_are_named(text, message):
    with pytest.raises(c.Corr2CauseError, match=message):
        c.parse_hypothesis(text, ("A", "B", "C"))


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "NoneType, not text"),
        ("", "expected 'Premise:"),
        (GOOD, "expected 'Premise:"),
        (f"Premise: {GOOD}", "expected 'Premise:"),
        (f"Premise: {GOOD}\nHypothesis: x\nHypothesis: y", "expected 'Premise:"),
        (f"Premise: {GOOD}\nHypothesis:", "hypothesis is empty"),
        ("Premise:\nHypothesis: A directly causes B.", "premise is empty"),
    ],
)
def test_malformed_inputs_are_named(text, message):
    with pytest.raises(c.Corr2CauseError, match=message):
        c.split_input(text)


def mutate(rng, text):
    """One to three random edits: a word dropped, repeated, moved or replaced, or a character changed."""
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.4:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(["", ".", " ", "A", "9", "\n", "é", "²", "\ud800", "\\"]) + text[at + 1 :]
            continue
        words = text.split(" ")
        k, m = rng.randrange(len(words)), rng.randrange(len(words))
        edit = rng.choice(["drop", "repeat", "swap", "copy"])
        if edit == "drop":
            del words[k]
        elif edit == "repeat":
            words.insert(m, words[k])
        elif edit == "swap":
            words[k], words[m] = words[m], words[k]
        else:
            words[k] = words[m]
        text = " ".join(words)
    return text


def test_mutated_text_is_either_explained_or_a_clear_error():
    rng, explained, refused = random.Random(4), 0, 0
    sources = [*rows(3), *rows(4), *rng.sample(rows(5), 20)]
    for _ in range(400):
        try:
            answer = c.explain(mutate(rng, rng.choice(sources)["input"]))
            explained += answer.splitlines()[-1] in ("Answer: Yes", "Answer: No")
        except c.Corr2CauseError as error:
            refused += 1
            assert 20 < len(str(error)) < 400 and "\n" not in str(error)
    assert explained + refused == 400 and refused > 200


# ---------------------------------------------------------------- traces


def trace_facts(text):
    """The trace's statements read back without the module: pairs, edges, alternatives, counterexample edges."""
    lines = text.splitlines()
    pairs = dict(re.findall(r"^Pair (\w \w): (.+)\.$", text, re.M))
    edges = re.findall(r"^Edge (\w) (->|-) (\w)\.$", text, re.M)
    every = next((line[len("Every graph: ") : -1] for line in lines if line.startswith("Every graph: ")), None)
    alternatives = [
        [
            step
            for path in alternative.split(" and ")
            for step in zip(*[path.split(" -> ")[k:] for k in (0, 1)], strict=False)
        ]
        for alternative in (every.split(", or ") if every else [])
    ]
    against = re.findall(r"(\w) -> (\w)", next((line for line in lines if line.startswith("Counterexample: ")), ""))
    return pairs, edges, alternatives, against


@pytest.mark.parametrize("n", [2, 3, 4])
def test_traces_are_true_statements_that_end_in_the_exact_label(n):
    for row in rows(n):
        premise, claim = parsed(row)
        graphs = brute_force_classes(n)[premise.independences]
        text = c.trace(premise, claim)
        assert text.splitlines()[-1] == f"Answer: {'Yes' if row['label'] else 'No'}"
        pairs, edges, alternatives, against = trace_facts(text)
        for (a, b), (i, j) in zip(combinations(LETTERS[:n], 2), combinations(range(n), 2), strict=True):
            stated = re.search(
                rf"{a} is independent of {b}\.|{a} and {b} are independent given ([^.]+)\.", row["premise"]
            )
            given = re.sub(",| and", "", stated[1] or "none") if stated else None
            assert pairs[f"{a} {b}"] == (f"cut given {given}" if stated else "kept")
            present = [graph.has_edge(i, j) or graph.has_edge(j, i) for graph in graphs]
            assert all(present) != (stated is not None) and any(present) == all(present)
        for a, sign, b in edges:
            i, j = LETTERS.index(a), LETTERS.index(b)
            assert (sign == "->") == all(graph.has_edge(i, j) for graph in graphs)
        index = LETTERS.index
        for graph in graphs:
            named = [all(graph.has_edge(index(u), index(v)) for u, v in steps) for steps in alternatives]
            assert any(named) == (row["label"] == 1)
        if against:
            edges_against = {(index(u), index(v)) for u, v in against}
            failing = [graph for graph in graphs if set(graph.edges) == edges_against]
            assert len(failing) == 1 and not nx_holds(failing[0], claim)
        elif not row["label"]:
            assert not any(nx_holds(graph, claim) for graph in graphs)


@pytest.mark.parametrize("n", [3, 4])
def test_candidates_are_what_possible_edges_reach_without_the_other_variable(n):
    for row in rows(n):
        premise, claim = parsed(row)
        if claim.relation == "direct":
            continue
        possible = nx.compose_all(brute_force_classes(n)[premise.independences])
        without_j = possible.subgraph(set(possible) - {claim.j})
        without_i = possible.subgraph(set(possible) - {claim.i})
        first = (nx.ancestors if claim.relation == "confounder" else nx.descendants)(without_j, claim.i)
        second = (nx.descendants if claim.relation == "collider" else nx.ancestors)(without_i, claim.j)
        stated = re.search(
            r"^(?:From|Into) \w: (.+?)\. (?:From|Into) \w: (.+?)\. Shared: (.+?)\.$", c.trace(premise, claim), re.M
        )
        for text, expected in zip(stated.groups(), (first, second, first & second), strict=True):
            assert text == (" ".join(LETTERS[v] for v in sorted(expected)) or "none")


def test_traces_are_short_and_every_variable_follows_a_space():
    for row in rows(4):
        text = c.trace(*parsed(row))
        assert 30 <= len(text.split()) <= 110
        assert not re.search(r"(?<! )\b[A-D]\b", text)


def test_answers_of_larger_traces_equal_the_label():
    for row in random.Random(5).sample(rows(5), 400):
        text = c.trace(*parsed(row))
        assert text.endswith(f"Answer: {'Yes' if row['label'] else 'No'}")
        assert ("Every graph: " in text) == (row["label"] == 1)


def test_a_claim_that_holds_by_turns_names_every_alternative():
    """B - A - C is open, B and C cause D: A causes D through B or through C, depending on the member."""
    dag = (0, 1, 1, 6)  # A -> B, A -> C, B -> D, C -> D
    premise = c.premise_of(dag)
    assert len(c.markov_equivalence_class(premise)) == 3
    text = c.trace(premise, c.Claim("indirect", 0, 3))
    assert "Every graph: A -> B -> D, or A -> C -> D." in text and text.endswith("Answer: Yes")


# ---------------------------------------------------------------- command line


def test_explain_prints_the_class_and_the_trace(capsys):
    text = f"Premise: {GOOD}\\nHypothesis: There exists at least one collider (i.e., common effect) of A and B."
    assert c.main(["--explain", text]) == 0
    out = capsys.readouterr().out
    assert "Class edges: A -> C, B -> C\nMembers: 1\n" in out
    assert "  A is independent of B." in out and out.endswith("Answer: Yes\n")
    assert c.main(["--explain", text.replace("\\n", "\n")]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    "arguments", [[], ["--explain", "Premise: x"], ["--explain", f"Premise: {GOOD}\\nHypothesis: x"]]
)
def test_errors_are_one_line_and_exit_status_2(arguments, capsys):
    assert c.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_an_unknown_option_is_one_line_too(capsys):
    with pytest.raises(SystemExit) as caught:
        c.main(["--explian", "x"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
