"""Traces: true statements (brute force), read back into the same steps, and a checker that marks what is false."""

import random
import re
from itertools import combinations

import networkx as nx
import pytest
from brute_force import LETTERS, all_claims, brute_force_classes, nx_holds, parsed, rows

import graphs as g
import reasoning as r

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
        text = r.trace(premise, claim)
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
        stated = re.findall(r"^(?:From \w|Into \w|Shared): (.+?)\.$", r.trace(premise, claim), re.M)
        for text, expected in zip(stated, (first, second, first & second), strict=True):
            assert text == (" ".join(LETTERS[v] for v in sorted(expected)) or "none")


def test_traces_are_short_and_every_variable_follows_a_space():
    for row in rows(4):
        text = r.trace(*parsed(row))
        assert 30 <= len(text.split()) <= 140
        assert not re.search(r"(?<! )\b[A-D]\b", text)


def test_answers_of_larger_traces_equal_the_label():
    for row in random.Random(5).sample(rows(5), 400):
        text = r.trace(*parsed(row))
        assert text.endswith(f"Answer: {'Yes' if row['label'] else 'No'}")
        assert ("Every graph: " in text) == (row["label"] == 1)


def test_a_claim_that_holds_by_turns_names_every_alternative():
    """B - A - C is open, B and C cause D: A causes D through B or through C, depending on the member."""
    dag = (0, 1, 1, 6)  # A -> B, A -> C, B -> D, C -> D
    premise = g.premise_of(dag)
    assert len(g.markov_equivalence_class(premise)) == 3
    text = r.trace(premise, g.Claim("indirect", 0, 3))
    assert "Every graph: A -> B -> D, or A -> C -> D." in text and text.endswith("Answer: Yes")


@pytest.mark.parametrize("n", [3, 4])
def test_triples_and_orientations_are_those_of_brute_force(n):
    """A triple is a collider iff both arrows meet in every graph; every conclusion of a rule holds in every graph."""
    rules = 0
    for separations, graphs in brute_force_classes(n).items():
        premise = g.Premise(g.LETTERS[:n], separations)
        text = r.trace(premise, g.Claim("direct", 0, 1))
        triples = {(i, k, j): kind for i, k, j, kind in re.findall(r"^Triple (\w) (\w) (\w): (\w+)", text, re.M)}
        expected = {}
        for k, (i, j) in ((k, pair) for k in range(n) for pair in combinations(range(n), 2) if k not in pair):
            skeleton = graphs[0].to_undirected()
            if skeleton.has_edge(i, k) and skeleton.has_edge(k, j) and not skeleton.has_edge(i, j):
                meet = [graph.has_edge(i, k) and graph.has_edge(j, k) for graph in graphs]
                assert all(meet) == any(meet)
                expected[LETTERS[i], LETTERS[k], LETTERS[j]] = "collider" if meet[0] else "no"
        assert triples == expected
        for a, b in re.findall(r"^Rule .* gives (\w) -> (\w)\.$", text, re.M):
            rules += 1
            assert all(graph.has_edge(LETTERS.index(a), LETTERS.index(b)) for graph in graphs)
    assert rules > 0 or n == 3


# ---------------------------------------------------------------- reading and checking


def checked(premises):
    """Every claim of the premises in both styles: read back step by step, all right, nothing missing."""
    for premise in premises:
        for claim in all_claims(len(premise.variables)):
            steps = r.reasoning_steps(premise, claim)
            required = r.required_steps(premise, claim)
            assert list(required.values()) == [step for step in steps if not step.kind.startswith("rule")]
            assert all(r.subject(step) == what for what, step in required.items())
            for style in r.STYLES:
                found = r.check_trace(r.trace(premise, claim, style), premise, claim)
                assert [sentence.step for sentence in found.sentences] == steps
                assert found.complete and not found.wrong and not found.unreadable, found


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_generated_trace_checks_as_right(n):
    checked(map(g.premise_of, g.representatives(n)))


def test_generated_traces_of_six_variables_check_as_right_in_any_letters():
    rng = random.Random(0)
    sample = rng.sample(list(g.representatives(6)), 25)
    checked(g.premise_of(g.relabel(dag, rng.sample(range(6), 6))) for dag in sample)


def test_the_fourth_rule_is_told_and_checked():
    """a - b, a - d -> c -> b: needs five variables, and d -> c from another collider."""
    for premise in map(g.premise_of, g.representatives(5)):
        rules = [step for step in r.reasoning_steps(premise, g.Claim("direct", 0, 1)) if step.kind == "rule 4"]
        if rules:
            assert all(r.is_right(step, premise, g.Claim("direct", 0, 1)) for step in rules)
            return
    raise AssertionError("no class of five variables needs rule 4")


def brute_force_truth(step, premise, claim, graphs):
    """Is the step true? From the members alone, by networkx."""

    def always(u, v):
        return all(graph.has_edge(u, v) for graph in graphs)

    def linked(u, v):
        return graphs[0].has_edge(u, v) or graphs[0].has_edge(v, u)

    values = step.values
    if step.kind == "adjacent":
        return linked(*values)
    if step.kind == "separated":
        a, b, given = values
        rest = {v for v in range(len(premise.variables)) if given >> v & 1}
        return a != b and not rest & {a, b} and nx.is_d_separator(graphs[0], {a}, {b}, rest)
    if step.kind in ("collider", "chain"):
        a, k, b = values
        unshielded = len({a, k, b}) == 3 and linked(a, k) and linked(k, b) and not linked(a, b)
        return unshielded and (always(a, k) and always(b, k)) == (step.kind == "collider")
    if step.kind == "directed":
        return always(*values)
    if step.kind == "undirected":
        return linked(*values) and not always(*values) and not always(*values[::-1])
    if step.kind == "counterexample":
        edges = {(u, v) for v, mask in enumerate(values[0]) for u in range(len(values[0])) if mask >> u & 1}
        return any(set(graph.edges) == edges and not nx_holds(graph, claim) for graph in graphs)
    if step.kind == "answer":
        return values[0] == all(nx_holds(graph, claim) for graph in graphs)
    return None  # other kinds have tests of their own


def test_wrong_statements_are_marked_wrong_and_right_ones_right():
    """Letters of generated traces exchanged at random: the checker agrees with networkx on every statement it reads."""
    rng, seen = random.Random(1), {True: set(), False: set()}
    for row in rng.sample(rows(4), 250):
        premise, claim = parsed(row)
        graphs = brute_force_classes(4)[premise.independences]
        style = rng.choice(r.STYLES)
        for line in r.trace(premise, claim, style).splitlines():
            at = rng.choice([m.start() for m in re.finditer(r"\b[A-D]\b(?!:? graph)", line)] or [None])
            if line.startswith("Answer"):
                line = rng.choice(["Answer: Yes", "Answer: No"])
            elif at is not None and rng.random() < 0.7:
                line = line[:at] + rng.choice("ABCD") + line[at + 1 :]
            step = r.read_step(line, premise.variables)
            truth = step and brute_force_truth(step, premise, claim, graphs)
            if truth is not None:
                assert r.is_right(step, premise, claim) == truth, (line, row["input"])
                seen[truth].add(step.kind)
    kinds = {"adjacent", "separated", "collider", "chain", "directed", "undirected", "counterexample", "answer"}
    assert seen == {True: kinds, False: kinds}


COLLIDER = g.premise_of((0, 0, 3, 4))  # A -> C <- B, C -> D by rule 1
CLAIM = g.Claim("indirect", 0, 3)
GOOD = """Pair A B: cut given none.
Pair A C: kept.
Pair A D: cut given B C.
Pair B C: kept.
Pair B D: cut given A C.
Pair C D: kept.
Triple A C B: collider.
Triple A C D: no collider.
Triple B C D: no collider.
Rule 1: A -> C - D gives C -> D.
Edge A -> C.
Edge B -> C.
Edge C -> D.
From A: C.
Into D: B C.
Shared: C.
Every graph: A -> C -> D.
Answer: Yes"""


def test_the_compact_style_line_by_line():
    assert r.trace(COLLIDER, CLAIM) == GOOD
    assert r.check_trace(GOOD, COLLIDER, CLAIM).complete


@pytest.mark.parametrize(
    "old, new",
    [
        ("Pair A B: cut given none.", "Pair A B: cut given C."),  # C is their collider
        ("Pair A C: kept.", "Pair A C: cut given B."),
        ("Triple A C B: collider.", "Triple A C B: no collider."),
        ("Triple A C D: no collider.", "Triple A B D: no collider."),  # not even adjacent
        ("Rule 1: A -> C - D gives C -> D.", "Rule 2: A -> D -> C gives A -> C."),
        ("Rule 1: A -> C - D gives C -> D.", "Rule 1: C -> D - A gives D -> A."),
        ("Edge C -> D.", "Edge D -> C."),
        ("Edge C -> D.", "Edge C - D."),
        ("From A: C.", "From A: C D."),
        ("Into D: B C.", "From D: none."),  # true, but of no use to this claim
        ("Shared: C.", "Shared: none."),
        ("Every graph: A -> C -> D.", "Every graph: A -> B -> D."),
        ("Every graph: A -> C -> D.", "Every graph: A -> C -> D, or A -> B -> C -> D."),  # the second in no graph
        ("Every graph: A -> C -> D.", "Every graph: A -> C."),
        ("Every graph: A -> C -> D.", "Counterexample: A -> C, B -> C, C -> D."),  # a member in which the claim holds
        ("Every graph: A -> C -> D.", "Counterexample: A -> C."),  # no member
        ("Answer: Yes", "Answer: No"),
    ],
)
def test_one_false_line_is_the_one_marked(old, new):
    found = r.check_trace(GOOD.replace(old, new), COLLIDER, CLAIM)
    assert [sentence.text for sentence in found.wrong] == [new]
    assert not found.unreadable and not found.complete
    required = not old.startswith("Rule")  # another derivation would do as well
    assert [r.write_step(step, COLLIDER.variables) for step in found.missing] == [old] * required


@pytest.mark.parametrize("line", GOOD.splitlines())
def test_a_left_out_line_is_missing(line):
    found = r.check_trace(GOOD.replace(line, ""), COLLIDER, CLAIM)
    assert not found.wrong and not found.unreadable
    assert [r.write_step(step, COLLIDER.variables) for step in found.missing] == [line] * (not line.startswith("Rule"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        "Pair A B",
        "Pair A E: kept.",
        "Edge A => C.",
        "From A: C C.",
        "Every graph: A to C.",
        "Every graph: A -> C -> A.",
        "Every graph: A -> C -> D, or A -> C -> D.",
        "Every graph: A -> C and B -> C, or B -> C and A -> C.",
        "Counterexample: A -> C, A -> C.",
        "Answer: Maybe",
    ],
)
def test_other_text_is_unreadable_and_settles_nothing(text):
    found = r.check_trace(text, COLLIDER, CLAIM)
    assert not found.wrong and len(found.unreadable) == bool(text)
    assert len(found.missing) == len(GOOD.splitlines()) - 1
    assert r.check_trace(f"{GOOD}\n{text}", COLLIDER, CLAIM).missing == ()


def test_markers_and_several_sentences_in_a_line_are_read():
    steps = [step for _, step in r.read_trace("1. Pair A B: cut given none. Pair B A: kept.\n- Edge C -> A.", "ABC")]
    assert steps == [r.Step("separated", (0, 1, 0)), r.Step("adjacent", (1, 0)), r.Step("directed", (2, 0))]
    assert r.read_step("Pair A B: cut given C, D and E.", "ABCDE") == r.Step("separated", (0, 1, 28))


def test_another_separating_set_and_another_cover_are_right_too():
    text = r.trace(COLLIDER, CLAIM).replace("Pair A D: cut given B C.", "Pair D A: cut given C.")
    assert r.check_trace(text, COLLIDER, CLAIM).complete
    diamond, claim = g.premise_of((0, 1, 1, 6)), g.Claim("indirect", 0, 3)
    cover = "Every graph: A -> B -> D, or A -> C -> D."
    swapped = r.trace(diamond, claim).replace(cover, "Every graph: A -> C -> D, or A -> B -> D.")
    assert r.check_trace(swapped, diamond, claim).complete
    one = r.trace(diamond, claim).replace(cover, "Every graph: A -> C -> D.")
    assert [sentence.text for sentence in r.check_trace(one, diamond, claim).wrong] == ["Every graph: A -> C -> D."]


def test_a_link_named_the_other_way_round_is_right_too():
    claim = g.Claim("direct", 2, 0)
    text = r.trace(COLLIDER, claim).replace("Link C A: C <- A.", "Link A C: A -> C.")
    assert "Link A C" in text and r.check_trace(text, COLLIDER, claim).complete


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("Pair A B: kept.", "Pair B A: cut given C.", True),
        ("Pair A B: kept.", "Pair A C: kept.", False),
        ("Pair A B: kept.", "Edge A - B.", False),
        ("Triple A C B: collider.", "Triple B C A: no collider.", True),
        ("Triple A C B: collider.", "Triple A B C: collider.", False),
        ("Rule 1: A -> C - D gives C -> D.", "Rule 2: D -> A -> C gives D -> C.", True),
        ("Rule 1: A -> C - D gives C -> D.", "Rule 1: A -> C - B gives C -> B.", False),
        ("Edge A -> B.", "Edge B - A.", True),
        ("Link A B: none.", "Link B A: B -> A.", True),
        ("From A: C.", "From A: none.", True),
        ("From A: C.", "Into A: C.", False),
        ("Shared: C.", "Shared: none.", True),
        ("Every graph: A -> C.", "Counterexample: none.", True),
        ("Answer: Yes", "Answer: No", True),
    ],
)
def test_statements_of_one_subject_answer_one_question(one, other, same):
    first, second = (r.subject(r.read_step(line, "ABCD")) for line in (one, other))
    assert (first == second) == same


def test_the_two_paths_of_a_collider_come_in_any_order():
    claim = g.Claim("collider", 0, 1)
    text = r.trace(COLLIDER, claim)
    assert "Every graph: A -> C and B -> C." in text
    swapped = text.replace("A -> C and B -> C.", "B -> C and A -> C.")
    assert r.check_trace(swapped, COLLIDER, claim).complete
    for wrong in ("A -> C.", "A -> C and A -> C.", "A -> C -> D and B -> C -> D.", "C -> A and C -> B."):
        found = r.check_trace(text.replace("A -> C and B -> C.", wrong), COLLIDER, claim)
        assert [sentence.text for sentence in found.wrong] == [f"Every graph: {wrong}"]


def test_no_reasoning_from_a_premise_that_no_graph_satisfies():
    premise = g.Premise(g.LETTERS[:3], frozenset({(0, 1, 4), (0, 2, 2), (1, 2, 1)}))
    for call in (lambda: r.trace(premise, CLAIM), lambda: r.check_trace("", premise, CLAIM)):
        with pytest.raises(g.UnsatisfiableError, match="no graph satisfies"):
            call()
