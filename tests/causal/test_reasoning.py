"""Traces: true statements (brute force), read back into the same steps, and a checker that marks what is false."""

import random
import re
from functools import cache
from itertools import combinations, compress, permutations, product

import networkx as nx
import pytest
from brute_force import LETTERS, all_claims, brute_force_classes, nx_holds, parsed, rows

from causal import graphs as g
from causal import reasoning as r

# ---------------------------------------------------------------- traces


def trace_facts(text):
    """The trace's statements read back without the module: pairs, edges, alternatives, counterexample edges."""
    lines = text.splitlines()
    pairs = dict(re.findall(r"^Pair (\w \w): (.+)\.$", text, re.M))
    edges = re.findall(r"^Edge (\w) (\w): (->|<-|-)\.$", text, re.M)
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
        assert [f"{a} {b}" for a, b, _ in edges] == [pair for pair, fate in pairs.items() if fate == "kept"]
        for a, b, sign in edges:
            i, j = LETTERS.index(a), LETTERS.index(b)
            assert (sign == "->") == all(graph.has_edge(i, j) for graph in graphs)
            assert (sign == "<-") == all(graph.has_edge(j, i) for graph in graphs)
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


def relabelled(premise, claim, rng):
    order = rng.sample(range(len(premise.variables)), len(premise.variables))
    return g.relabel_premise(premise, order), g.relabel_claim(claim, order)


def search(graph, start, other):
    """Of every node that networkx reaches without `other`, in order: the nodes that none before it has an edge to."""
    rest = graph.subgraph(set(graph) - {other})
    order = [start, *(v for _, v in nx.bfs_edges(rest, start, sort_neighbors=sorted))]
    return [
        (u, v, graph.has_edge(u, v))
        for number, u in enumerate(order)
        for v in sorted(set(rest) - {start})
        if not any(graph.has_edge(w, v) for w in order[:number])
    ]


@cache
def lines_about(premise, claim):
    """What a trace says of a claim that is not direct: the search in the union of the class's graphs, then in their
    intersection."""
    graphs, lines = brute_force_classes(len(premise.variables))[premise.independences], []

    def words(variables):
        return " ".join(premise.variables[v] for v in sorted(variables))

    for adverb, graph in (("", nx.compose_all(graphs)), ("surely ", nx.intersection_all(graphs))):
        shared = set(graph)
        for v, other, effects in (
            (claim.i, claim.j, claim.relation in ("indirect", "collider")),
            (claim.j, claim.i, claim.relation == "collider"),
        ):
            found = search(graph if effects else graph.reverse(), v, other)
            name = (adverb + ("from" if effects else "into")).capitalize()
            tried = ", ".join(f"{words([u])} {words([w])} {'open' if has else 'shut'}" for u, w, has in found) or "none"
            lines.append(f"{name} {words([v])} without {words([other])}: {tried}.")
            shared &= {w for _, w, has in found if has}
        lines.append(f"{(adverb + 'shared').capitalize()}: {words(shared) or 'none'}.")
        if not shared:
            break
    return lines


@pytest.mark.parametrize("n", [2, 3, 4])
def test_candidates_are_what_possible_then_sure_edges_reach_without_the_other_variable(n):
    rng = random.Random(n)
    for row in rows(n):
        premise, claim = relabelled(*parsed(row), rng)
        if claim.relation == "direct":
            continue
        stated = re.findall(r"^(?:From|Into|Shared|Surely).*$", r.trace(premise, claim), re.M)
        assert stated == lines_about(premise, claim)
        if len(stated) == 3:
            assert row["label"] == 0
        elif stated[-1] != "Surely shared: none.":
            assert row["label"] == 1


def test_traces_are_short_and_every_variable_follows_a_space():
    for row in rows(4):
        text = r.trace(*parsed(row))
        assert 50 <= len(text.split()) <= 220
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
    """Every variable beside a pair that is not adjacent is looked up: a collider iff both arrows meet in every graph.
    Every conclusion of a rule holds in every graph, and every pair's edge is directed as in all of them."""
    rules = 0
    for separations, graphs in brute_force_classes(n).items():
        premise, skeleton = g.Premise(g.LETTERS[:n], separations), graphs[0].to_undirected()
        text = r.trace(premise, g.Claim("direct", 0, 1))
        expected, given = [], trace_facts(text)[0]
        for i, j in combinations(range(n), 2):
            if skeleton.has_edge(i, j):
                expected.append(f"Triple {LETTERS[i]} {LETTERS[j]}: kept.")
            for k in (k for k in range(n) if k not in (i, j) and not skeleton.has_edge(i, j)):
                a, b, c = LETTERS[i], LETTERS[j], LETTERS[k]
                meet = [graph.has_edge(i, k) and graph.has_edge(j, k) for graph in graphs]
                found = f"kept, kept, {given[f'{a} {b}'].removeprefix('cut ')}, "
                found += f"out, {a} -> {c}, {b} -> {c}" if meet[0] else "in"
                if not skeleton.has_edge(k, j):
                    found = "kept, cut"
                if not skeleton.has_edge(i, k):
                    found = "cut"
                assert all(meet) == any(meet)
                expected.append(f"Triple {a} {c} {b}: {found}.")
        assert re.findall(r"^Triple .*$", text, re.M) == expected
        expected = []
        for i, j in combinations(range(n), 2):
            forwards = {graph.has_edge(i, j) for graph in graphs if skeleton.has_edge(i, j)}
            sign = {frozenset(): "none", frozenset({True}): "->", frozenset({False}): "<-"}.get(
                frozenset(forwards), "-"
            )
            expected.append(f"Edge {LETTERS[i]} {LETTERS[j]}: {sign}.")
        assert re.findall(r"^Edge .*$", text, re.M) == expected
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
            required, passed = r.required_steps(premise, claim), ("first cut", "second cut", "no triple", "no edge")
            assert list(required.values()) == [s for s in steps if not s.kind.startswith((*passed, "rule"))]
            assert all(r.subject(step) == what for what, step in required.items())
            for style, told in (("compact", steps), ("full", [step for step in steps if step.kind not in passed])):
                found = r.check_trace(r.trace(premise, claim, style), premise, claim)
                assert [sentence.step for sentence in found.sentences] == told
                assert found.complete and not found.wrong and not found.unreadable, found


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_generated_trace_checks_as_right(n):
    rng, orders = random.Random(n), 2 if n < 5 else 0
    for dag in g.representatives(n):
        others = (g.relabel(dag, rng.sample(range(n), n)) for _ in range(orders))
        checked(map(g.premise_of, (dag, *others)))


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


REACHES = {"from", "into", "shared", "surely from", "surely into", "surely shared"}
TRIPLES = {"first cut", "second cut", "collider", "chain"}
EDGES = {"no edge", "directed", "reversed", "undirected"}


def brute_force_truth(step, premise, claim, graphs):
    """Is the step true? From the members alone, by networkx."""

    def always(u, v):
        return all(graph.has_edge(u, v) for graph in graphs)

    def linked(u, v):
        return graphs[0].has_edge(u, v) or graphs[0].has_edge(v, u)

    values = step.values

    def separated(a, b, given):
        rest = {v for v in range(len(premise.variables)) if given >> v & 1}
        return a != b and not rest & {a, b} and nx.is_d_separator(graphs[0], {a}, {b}, rest)

    if step.kind in ("adjacent", "no triple"):
        return linked(*values)
    if step.kind == "separated":
        return separated(*values)
    if step.kind in ("first cut", "second cut", "collider", "chain"):
        a, k, b, *given = values
        if len({a, k, b}) < 3 or linked(a, b):
            return False
        if not linked(a, k) or not linked(k, b):
            return step.kind == "second cut" if linked(a, k) else step.kind == "first cut"
        meets = always(a, k) and always(b, k)
        return bool(given) and step.kind == ("collider" if meets else "chain") and separated(a, b, *given)
    if step.kind in ("directed", "forward link"):
        return always(*values)
    if step.kind in ("reversed", "backward link"):
        return always(*values[::-1])
    if step.kind in ("undirected", "open link"):
        return linked(*values) and not always(*values) and not always(*values[::-1])
    if step.kind in ("no link", "no edge"):
        return values[0] != values[1] and not linked(*values)
    if step.kind in REACHES:
        about = lines_about(premise, claim) if claim.relation != "direct" else []
        return any(r.read_step(line, premise.variables) == step for line in about)
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
        premise, claim = relabelled(*parsed(row), rng)
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
                assert r.is_right(step, premise, claim) == truth, (line, premise, claim)
                seen[truth].add(step.kind)
    kinds = {"adjacent", "separated", "no triple", "counterexample", "answer"} | TRIPLES | EDGES | REACHES
    links = {"no link", "forward link", "backward link", "open link"}
    assert seen[True] - links == seen[False] - links == kinds


def searches(n, start, other):
    """Every search that some graph of n nodes gives."""
    rest = [v for v in range(n) if v != other]
    pairs = [(u, v) for u in rest for v in rest if u != v and v != start]
    graphs = (compress(pairs, chosen) for chosen in product((False, True), repeat=len(pairs)))
    found = set()
    for edges in graphs:
        graph = nx.DiGraph(edges)
        graph.add_nodes_from(range(n))
        found.add(tuple(search(graph, start, other)))
    return sorted(found)


def all_steps(n):
    """Every step about n variables that names pairs, triples, edges or what can be reached."""
    pairs, masks = list(product(range(n), repeat=2)), range(1 << n)
    for kind in ("adjacent", "no triple", "no link", "forward link", "backward link", "open link", *EDGES):
        yield from (r.Step(kind, pair) for pair in pairs)
    yield from (r.Step("separated", (*pair, given)) for pair in pairs for given in masks)
    for triple in product(range(n), repeat=3):
        yield from (r.Step(kind, triple) for kind in ("first cut", "second cut"))
        yield from (r.Step(kind, (*triple, given)) for kind in ("collider", "chain") for given in masks)
    for kind in sorted(REACHES):
        if kind.endswith("shared"):
            yield from (r.Step(kind, (mask,)) for mask in masks)
        else:
            for a, b in permutations(range(n), 2):
                yield from (r.Step(kind, (a, b, found)) for found in searches(n, a, b))


@pytest.mark.parametrize("n", [3, 4])
def test_every_step_is_right_exactly_where_brute_force_says_so(n):
    rng, steps = random.Random(n), list(all_steps(n))
    seen = {True: set(), False: set()}
    for dag in g.representatives(n):
        premise = g.premise_of(g.relabel(dag, rng.sample(range(n), n)))
        graphs = brute_force_classes(n)[premise.independences]
        for claim in rng.sample(all_claims(n), 3):
            for step in steps:
                truth = brute_force_truth(step, premise, claim, graphs)
                assert r.is_right(step, premise, claim) == truth, (step, premise, claim)
                seen[truth].add(step.kind)
    assert seen[True] == seen[False] == {step.kind for step in steps}


@pytest.mark.parametrize("style", r.STYLES)
def test_every_step_reads_back_from_either_style(style):
    for step in all_steps(4):
        if len(set(step.values[:2])) == min(2, len(step.values)):
            assert r.read_step(r.write_step(step, "ABCD", style), "ABCD") == step


COLLIDER = g.premise_of((0, 0, 3, 4))  # A -> C <- B, C -> D by rule 1
CLAIM = g.Claim("indirect", 0, 3)
GOOD = """Pair A B: cut given none.
Pair A C: kept.
Pair A D: cut given B C.
Pair B C: kept.
Pair B D: cut given A C.
Pair C D: kept.
Triple A C B: kept, kept, given none, out, A -> C, B -> C.
Triple A D B: cut.
Triple A C: kept.
Triple A B D: cut.
Triple A C D: kept, kept, given B C, in.
Triple B C: kept.
Triple B A D: cut.
Triple B C D: kept, kept, given A C, in.
Triple C D: kept.
Rule 1: A -> C - D gives C -> D.
Edge A B: none.
Edge A C: ->.
Edge A D: none.
Edge B C: ->.
Edge B D: none.
Edge C D: ->.
From A without D: A B shut, A C open, C B shut.
Into D without A: D B shut, D C open, C B open.
Shared: C.
Surely from A without D: A B shut, A C open, C B shut.
Surely into D without A: D B shut, D C open, C B open.
Surely shared: C.
Every graph: A -> C -> D.
Answer: Yes"""
FULL = """The pair A and B is independent given nothing, so the two are not adjacent.
No set of variables separates A and C, so they are adjacent.
The pair A and D is independent given B and C, so the two are not adjacent.
No set of variables separates B and C, so they are adjacent.
The pair B and D is independent given A and C, so the two are not adjacent.
No set of variables separates C and D, so they are adjacent.
In A - C - B the ends are independent given nothing, without C, which is a collider: A -> C <- B.
In A - C - D the ends are independent given B and C, with C, which is no collider.
In B - C - D the ends are independent given A and C, with C, which is no collider.
By Meek's rule 1 (no new collider), A -> C - D with A and D not adjacent gives C -> D.
All graphs of the class have the edge A -> C.
All graphs of the class have the edge B -> C.
All graphs of the class have the edge C -> D.
Possible effects of A, never through D: from A to B no way, from A to C a way, from C to B no way.
Possible causes of D, never through A: from D to B no way, from D to C a way, from C to B a way.
The two have in common C.
Certain effects of A, never through D: from A to B no way, from A to C a way, from C to B no way.
Certain causes of D, never through A: from D to B no way, from D to C a way, from C to B a way.
The two certainly have in common C.
Every graph of the class has the path A -> C -> D.
Answer: Yes"""


def optional(line):
    """Another derivation would do as well as a rule; what is not adjacent, or no unshielded triple, decides nothing."""
    return re.match(r"Rule|Triple \w \w: |Triple \w \w \w: (?:kept, )?cut|Edge \w \w: none", line) is not None


def test_the_compact_style_line_by_line():
    assert r.trace(COLLIDER, CLAIM) == GOOD
    assert r.check_trace(GOOD, COLLIDER, CLAIM).complete


def test_the_full_style_line_by_line():
    assert r.trace(COLLIDER, CLAIM, "full") == FULL
    assert r.check_trace(FULL, COLLIDER, CLAIM).complete


def test_nothing_lies_between_two_variables():
    step = r.Step("from", (0, 1, ()))
    assert [r.write_step(step, "AB", style)[-7:] for style in r.STYLES] == [": none."] * 2
    assert r.read_step("From A without B: none.", "AB") == step


@pytest.mark.parametrize(
    "old, new",
    [
        ("Pair A B: cut given none.", "Pair A B: cut given C."),  # C is their collider
        ("Pair A C: kept.", "Pair A C: cut given B."),
        ("Triple A C B: kept, kept, given none, out, A -> C, B -> C.", "Triple A C B: kept, kept, given none, in."),
        ("Triple A C B: kept, kept, given none, out, A -> C, B -> C.", "Triple A C B: kept, kept, given C, in."),
        (
            "Triple A C B: kept, kept, given none, out, A -> C, B -> C.",
            "Triple A C B: kept, kept, given D, out, A -> C, B -> C.",
        ),
        ("Triple A C B: kept, kept, given none, out, A -> C, B -> C.", "Triple A C B: kept, cut."),
        ("Triple A C B: kept, kept, given none, out, A -> C, B -> C.", "Triple A C B: cut."),
        ("Triple A C D: kept, kept, given B C, in.", "Triple A C D: kept, kept, given B, in."),
        ("Triple A C D: kept, kept, given B C, in.", "Triple A C D: kept, kept, given B C, out, A -> C, D -> C."),
        ("Triple A C D: kept, kept, given B C, in.", "Triple B A D: kept, kept, given A C, in."),
        ("Triple A C: kept.", "Triple A B: kept."),
        ("Triple A B D: cut.", "Triple A B D: kept, cut."),
        ("Triple A B D: cut.", "Triple A B C: cut."),  # of no cut pair
        ("Rule 1: A -> C - D gives C -> D.", "Rule 2: A -> D -> C gives A -> C."),
        ("Rule 1: A -> C - D gives C -> D.", "Rule 1: C -> D - A gives D -> A."),
        ("Edge C D: ->.", "Edge C D: <-."),
        ("Edge C D: ->.", "Edge D C: ->."),
        ("Edge C D: ->.", "Edge C D: -."),
        ("Edge C D: ->.", "Edge C D: none."),
        ("Edge A B: none.", "Edge A B: ->."),
        ("From A without D: A B shut, A C open, C B shut.", "From A without D: A B open, A C open."),
        ("From A without D: A B shut, A C open, C B shut.", "From A without D: A B shut, A C open."),  # C B is left out
        (
            "From A without D: A B shut, A C open, C B shut.",
            "From A without D: A C open, C B shut, A B shut.",
        ),  # another order
        (
            "From A without D: A B shut, A C open, C B shut.",
            "From A without B: A C open, A D shut, C D open.",
        ),  # true, but of no use to this claim
        ("Into D without A: D B shut, D C open, C B open.", "Into D without A: D B shut, D C open, C B shut."),
        (
            "Into D without A: D B shut, D C open, C B open.",
            "Into D without A: D B shut, D C open, C B open, C A shut.",
        ),
        ("Into D without A: D B shut, D C open, C B open.", "From D without A: D B shut, D C shut."),
        ("Surely from A without D: A B shut, A C open, C B shut.", "Surely from A without D: A B shut, A C shut."),
        ("Surely into D without A: D B shut, D C open, C B open.", "Surely into D without A: none."),
        ("Surely shared: C.", "Surely shared: B C."),
        ("Every graph: A -> C -> D.", "Every graph: A -> B -> D."),
        ("Every graph: A -> C -> D.", "Every graph: A -> C -> D, or A -> B -> C -> D."),  # the second in no graph
        ("Every graph: A -> C -> D.", "Every graph: A -> C."),
        ("Every graph: A -> C -> D.", "Counterexample: A -> C, B -> C, C -> D."),  # a member in which the claim holds
        ("Every graph: A -> C -> D.", "Counterexample: A -> C."),  # no member
        ("Answer: Yes", "Answer: No"),
    ],
)
def test_one_false_line_is_the_one_marked(old, new):
    found = r.check_trace(re.sub(f"^{re.escape(old)}$", new, GOOD, flags=re.M), COLLIDER, CLAIM)
    assert [sentence.text for sentence in found.wrong] == [new]
    assert not found.unreadable and not found.complete
    assert [r.write_step(step, COLLIDER.variables) for step in found.missing] == [old] * (not optional(old))


@pytest.mark.parametrize("line", GOOD.splitlines())
def test_a_left_out_line_is_missing(line):
    found = r.check_trace("\n".join(other for other in GOOD.splitlines() if other != line), COLLIDER, CLAIM)
    assert not found.wrong and not found.unreadable
    assert [r.write_step(step, COLLIDER.variables) for step in found.missing] == [line] * (not optional(line))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        "Pair A B",
        "Pair A E: kept.",
        "Edge A C: =>.",
        "Edge A -> C.",
        "Triple A C B: kept, kept, given none, out.",
        "Triple A C B: kept, kept, given none, out, A -> C, A -> C.",
        "From A: C.",
        "From A without D: C.",
        "From A without D: A C.",
        "From A without D: A E open.",
        "From A without D: A C open, none.",
        "From A without D: A C open C B shut.",
        "From A without D: A B shut, A C open, A B shut.",
        "From A without D: A C open, B C open.",
        "Surely into D without A: D C almost open.",
        "Surely shared: C and C.",
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
    assert len(found.missing) == sum(not optional(line) for line in GOOD.splitlines())
    assert r.check_trace(f"{GOOD}\n{text}", COLLIDER, CLAIM).missing == ()


def test_markers_and_several_sentences_in_a_line_are_read():
    steps = [step for _, step in r.read_trace("1. Pair A B: cut given none. Pair B A: kept.\n- Edge C A: ->.", "ABC")]
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
        ("Pair A B: kept.", "Edge A B: -.", False),
        ("Triple A C B: kept, kept, given none, out, A -> C, B -> C.", "Triple B C A: kept, kept, given C, in.", True),
        ("Triple A C B: kept, kept, given none, out, A -> C, B -> C.", "Triple A C B: cut.", True),
        ("Triple A C B: kept, kept, given C, in.", "Triple B C A: kept, cut.", True),
        ("Triple A B: kept.", "Triple B A: kept.", True),
        ("Triple A B: kept.", "Pair A B: kept.", False),
        ("Edge A B: none.", "Edge B A: -.", True),
        ("Triple A C B: cut.", "Triple A B C: cut.", False),
        ("Rule 1: A -> C - D gives C -> D.", "Rule 2: D -> A -> C gives D -> C.", True),
        ("Rule 1: A -> C - D gives C -> D.", "Rule 1: A -> C - B gives C -> B.", False),
        ("Edge A B: ->.", "Edge B A: -.", True),
        ("Edge A B: ->.", "Edge A B: <-.", True),
        ("Link A B: none.", "Link B A: B -> A.", True),
        ("From A without D: A C open.", "From A without D: none.", True),
        ("From A without D: A C open.", "From A without B: A C open.", False),
        ("From A without D: A C open.", "Into A without D: A C open.", False),
        ("From A without D: A C open.", "Surely from A without D: A C open.", False),
        ("Surely from A without D: A C open.", "Surely from A without D: A C open, C B shut.", True),
        ("Shared: C.", "Shared: none.", True),
        ("Shared: C.", "Surely shared: C.", False),
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
