"""Traces: true statements (brute force), read back into the same steps, and a checker that marks what is false."""

import random
import re
from itertools import combinations, pairwise

import networkx as nx
import pytest
from brute_force import LETTERS, all_claims, brute_force_classes, nx_holds, parsed, rows
from hypothesis import given
from hypothesis import strategies as st

from causal import classes, trace_text
from causal import reasoning as r
from causal.claims import Claim, exact_label, relabel_claim
from causal.classes import (
    Premise,
    UnsatisfiableError,
    first_separators,
    markov_equivalence_class,
    pdag,
    premise_of,
    relabel_premise,
)
from causal.enumeration import representatives
from causal.graphs import bits, relabel
from causal.trace_text import MARKS
from causal.vocabulary import NAMES
from causal.wording import TAKEN, parse_premise, write_premise

# ---------------------------------------------------------------- traces, read without the module, against networkx

PAIR = r"(?:^(?:Pair|Ends|Round \d+)|,) (\w) (\w) (none|->|<-|-)(?= |,|$)"


def sure_edges(graphs):
    """The arrows that all graphs of a class share, and its skeleton."""
    return nx.intersection_all(graphs), graphs[0].to_undirected()


def state(text):
    """{pair: its mark where it is mentioned last}, and every mark that it was said to have, in order."""
    last, said = {}, []
    for a, b, mark in re.findall(PAIR, text, re.M):
        assert a < b
        last[LETTERS.index(a), LETTERS.index(b)] = mark
        said.append((LETTERS.index(a), LETTERS.index(b), mark))
    return last, said


def mark_of(arrows, skeleton, a, b):
    return (
        "->" if arrows.has_edge(a, b) else "<-" if arrows.has_edge(b, a) else "-" if skeleton.has_edge(a, b) else "none"
    )


def relabelled(premise, claim, rng):
    order = rng.sample(range(len(premise.variables)), len(premise.variables))
    return relabel_premise(premise, order), relabel_claim(claim, order)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_mark_is_true_and_the_last_ones_are_the_class(n):
    rng = random.Random(n)
    for row in rows(n):
        premise, claim = relabelled(*parsed(row), rng)
        arrows, skeleton = sure_edges(brute_force_classes(n)[premise.independences])
        last, said = state(r.trace(premise, claim))
        assert last == {pair: mark_of(arrows, skeleton, *pair) for pair in combinations(range(n), 2)}
        for *pair, mark in said:
            assert mark == last[tuple(pair)] or (mark == "-" and last[tuple(pair)] != "none")
        order = [[mark for *pair, mark in said if tuple(pair) == one] for one in combinations(range(n), 2)]
        assert all(before in ("-", after) for marks in order for before, after in pairwise(marks))  # arrows stay


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sections_go_through_every_pair_and_flags_say_what_has_changed(n):
    rng, seen = random.Random(n), set()
    for row in rows(n)[::5]:
        premise, claim = relabelled(*parsed(row), rng)
        arrows = sure_edges(brute_force_classes(n)[premise.independences])[0]
        known, sections = {}, {}
        for line in r.trace(premise, claim).splitlines():
            head = re.match(r"(Pair|Ends|Round \d+) (\w) (\w)", line)
            if not head:
                continue
            sections.setdefault(head[1], []).append(head[2] + head[3])
            if head[1] == "Pair":
                stated = re.search(rf"{head[2]} is independent of {head[3]}\.|{head[2]} and {head[3]} are independent "
                                   r"given ([^.]+)\.", write_premise(premise))  # fmt: skip
                listed = re.sub(",| and", "", stated[1] or "nothing") if stated else None
                assert line == f"Pair {head[2]} {head[3]} " + (f"none given {listed}" if stated else "-")
                continue
            if len(sections[head[1]]) == 1:
                changed = False
            before = dict(known)
            known |= state(line)[0]
            changed |= any("-" in (before.get(p), "-") and m in ("->", "<-") and before.get(p) not in ("->", "<-")
                           for p, m in known.items())  # fmt: skip
            assert line.endswith(" changed" if changed else " same"), line
            seen.add((head[1], changed))
            assert head[1] != "Ends" or changed or not arrows.edges or head[2] + head[3] != LETTERS[n - 2 : n]
        pairs = [a + b for a, b in combinations(LETTERS[:n], 2)]
        assert all(lines == pairs for lines in sections.values())
        assert list(sections) == ["Pair", "Ends", *(f"Round {k + 1}" for k in range(len(sections) - 2))]
        assert (len(sections) > 2) == bool(arrows.edges)
    assert n < 4 or {("Ends", True), ("Ends", False), ("Round 1", True), ("Round 1", False), ("Round 2", False)} <= seen


@pytest.mark.parametrize("n", [3, 4])
def test_colliders_and_chains_are_those_of_brute_force(n):
    for separations, graphs in brute_force_classes(n).items():
        premise = Premise(tuple(LETTERS[:n]), separations)
        skeleton, text = graphs[0].to_undirected(), r.trace(premise, Claim("direct", 0, 1))
        for a, b in combinations(range(n), 2):
            line = re.search(rf"^Ends {LETTERS[a]} {LETTERS[b]} .*$", text, re.M)[0]
            found = re.findall(r" (in|out)\b", line)
            beside = [k for k in range(n) if skeleton.has_edge(a, k) and skeleton.has_edge(b, k)]
            meet = [all(x.has_edge(a, k) and x.has_edge(b, k) for x in graphs) for k in beside]
            assert found == (["out" if met else "in" for met in meet] if not skeleton.has_edge(a, b) else [])


def searches(text):
    """{(word, start): what the last line of the search says}, as letters."""
    found = {}
    for word, start, said in re.findall(r"^(From|Into) (\w) without \w at \w(.*)$", text, re.M):
        found[word, start] = said.rsplit(", ", 1)[-1]
    return found


@pytest.mark.parametrize("n", [2, 3, 4])
def test_searches_find_what_networkx_reaches(n):
    rng = random.Random(n)
    for row in rows(n):
        premise, claim = relabelled(*parsed(row), rng)
        graphs = brute_force_classes(n)[premise.independences]
        (arrows, skeleton), text = sure_edges(graphs), r.trace(premise, claim)
        label = all(nx_holds(graph, claim) for graph in graphs)
        assert text.splitlines()[-1] == f"Answer: {'Yes' if label else 'No'}"
        a, b = claim.i, claim.j
        if claim.relation == "direct":
            assert text.splitlines()[-2].endswith(" found" if arrows.has_edge(a, b) else " missing")
        ends = searches(text)
        if claim.relation == "indirect":
            path = any(len(path) > 2 for path in nx.all_simple_paths(arrows, a, b))
            assert ends["From", LETTERS[a]].endswith(" found") == path
        if claim.relation in ("collider", "confounder"):
            # Into: the members of a component of undirected edges have a common cause among themselves.
            whole = arrows if claim.relation == "collider" else arrows.reverse()
            reach = []
            for start, other in ((a, b), (b, a)):
                sub = whole.subgraph(set(whole) - {other})
                near = {v for u in sub.successors(start) for v in {u} | nx.descendants(sub, u)}
                if claim.relation == "confounder":
                    open_edges = skeleton.subgraph(set(skeleton) - {a, b}).copy()
                    open_edges.remove_edges_from(list(arrows.edges))
                    near |= {w for v in near for w in nx.node_connected_component(open_edges, v)}
                reach.append(near)
            word = "From" if claim.relation == "collider" else "Into"
            listed = " ".join(LETTERS[v] for v in sorted(reach[0])) or "nothing"
            assert ends[word, LETTERS[a]].endswith(f" reached {listed}")
            assert ends[word, LETTERS[b]].endswith(" both found") == bool(reach[0] & reach[1])
            assert ("\nMissing\n" in text) == (not reach[0] & reach[1] and not label)


@pytest.mark.parametrize("n, structures", [(2, None), (3, None), (4, None), (5, None), (6, 150), (7, 15)])
def test_local_steps_give_the_class_and_decide_every_claim_but_colliders_by_turns(n, structures):
    """Meek's rules 1 to 3 as local look-ups (4 never applies), and a search that finds all but a few colliders."""
    rng, missed = random.Random(n), {}
    for dag in representatives(n, structures):
        premise = premise_of(relabel(dag, rng.sample(range(n), n)))
        steps, marks = r.class_steps(n, first_separators(premise))
        out = pdag(premise)
        for u, v in ((u, v) for u in range(n) for v in range(n) if u != v):
            ends = out[u] >> v & 1, out[v] >> u & 1
            assert marks.table[u][v] == {(0, 0): "none", (1, 1): "-", (1, 0): "->", (0, 1): "<-"}[ends]
        for claim in all_claims(n):
            label, found = exact_label(premise, claim), r.claim_steps(n, marks, claim)[1]
            assert label or not found
            if label and not found:
                missed[claim.relation] = missed.get(claim.relation, 0) + 1
    assert missed.keys() <= {"collider"}
    assert missed.get("collider", 0) == {2: 0, 3: 0, 4: 1, 5: 22}.get(n, missed.get("collider", 0))


def test_turns_in_a_class_too_large_to_list():
    """Ten variables, all adjacent but two: one of the two is an effect of all the others, in 685,440 graphs."""
    complete = tuple((1 << v) - 1 for v in range(10))
    premise, claim = premise_of((*complete[:9], complete[9] & ~(1 << 8))), Claim("collider", 0, 1)
    text = r.trace(premise, claim)
    assert text.splitlines()[-2:] == ["By turns A -> J and B -> J, or A -> I and B -> I", "Answer: Yes"]
    assert r.check_trace(text, premise, claim).complete
    for wrong in ("A -> J and B -> J", "A -> I and B -> I", "A -> C and B -> C, or A -> I and B -> I"):
        step = r.read_step(f"By turns {wrong}", premise.variables)
        assert not r.is_right(step, premise, claim)


@pytest.mark.parametrize("style", r.STYLES)
def test_the_longest_steps_are_read(style):
    """Four parents that are not adjacent to the end, four that it shares a child with: its `Ends` step has 85 parts."""
    clique, below = (0, 1, 3, 7), (15, 15)
    for dag in ((*clique, *below, 63, 63, 63, 63), (0, 1, 3, *[7] * 2, *[31] * 5)):
        premise, claim = premise_of(dag), Claim("direct", 4, 9)
        text = r.trace(premise, claim, style)
        assert r.check_trace(text, premise, claim).complete
        assert r.correction(text, premise, claim) is None


def test_an_indirect_cause_by_turns_is_found_in_a_fork():
    """B - A - C is open, B and C cause D: A causes D through B or through C, depending on the member."""
    premise = premise_of((0, 1, 1, 6))  # A -> B, A -> C, B -> D, C -> D
    assert len(markov_equivalence_class(premise)) == 3
    text = r.trace(premise, Claim("indirect", 0, 3))
    assert text.splitlines()[-7:] == [
        "From A without D at A, A B -, A C - reached nothing",
        "Link A to D, A D none open",
        "Fork A without D, A B - new, A C - new next B C",
        "Way B past A at B, B D -> far",
        "Way C past A at C, C D -> far",
        "Apart, B C none found",
        "Answer: Yes",
    ]


# ---------------------------------------------------------------- reading and checking


def checked(premises, claims=all_claims):
    """Claims of the premises in both styles: read back step by step, all right, nothing missing."""
    for premise in premises:
        for claim in claims(len(premise.variables)):
            steps = r.reasoning_steps(premise, claim)
            assert list(r.required_steps(premise, claim).values()) == steps  # no two of one subject
            for style in r.STYLES:
                found = r.check_trace(r.trace(premise, claim, style), premise, claim)
                assert [sentence.step for sentence in found.sentences] == steps
                assert found.complete and not found.wrong and not found.unreadable, found


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_generated_trace_checks_as_right(n):
    rng, orders = random.Random(n), 2 if n < 5 else 0
    for dag in representatives(n):
        others = (relabel(dag, rng.sample(range(n), n)) for _ in range(orders))
        checked(map(premise_of, (dag, *others)))


@pytest.mark.parametrize("n, structures", [(6, 60), (7, 20)])
def test_generated_traces_of_more_variables_check_as_right_in_any_letters(n, structures):
    rng = random.Random(n)
    dags = [relabel(dag, rng.sample(range(n), n)) for dag in representatives(n, structures)]
    checked(map(premise_of, dags), lambda n: rng.sample(all_claims(n), 10))


@given(st.integers(2, 5), st.randoms(use_true_random=False))
def test_a_trace_in_other_letters_reads_the_same(n, rng):
    dag = rng.choice(list(representatives(n)))
    premise, claim = premise_of(relabel(dag, rng.sample(range(n), n))), rng.choice(all_claims(n))
    names = tuple(rng.sample([*classes.LETTERS, "Rain", "In", "A1", "None"], n))
    named = Premise(names, premise.independences)
    for style in r.STYLES:
        text = r.trace(named, claim, style)
        assert [step for _, step in r.read_trace(text, names)] == r.reasoning_steps(premise, claim)
        assert r.check_trace(text, named, claim).complete


def words_of_traces():
    sentences = {
        text for table in (trace_text._HEADS, trace_text._PHRASES) for row in table.values() for text in row[1:]
    }
    return sorted(set(re.findall(r"[A-Za-z]+", re.sub(r"{\w+}", " ", " ".join(sentences)))) | {"or", "Yes", "No"})


def test_a_trace_reads_back_with_names_of_several_words_and_of_its_own_words():
    rng = random.Random(0)
    lists = [rng.sample(names, 5) for names in NAMES.values()]
    for word in sorted({*words_of_traces()} - {"and"}):  # which a list of variables has between them
        lists += [[word, "x", "y", "z"]] if word not in TAKEN else []
        lists += [[f"{word} x", "x1", f"y {word}", "z"], ["Q", f"{word} Q1", "y", "z"]]
    for k, names in enumerate(lists):
        n = 5 if k < len(NAMES) else rng.choice((3, 4))
        premise = premise_of(relabel(rng.choice(list(representatives(n))), rng.sample(range(n), n)))
        named = Premise(tuple(rng.sample(names, n) if n == 5 else names[:n]), premise.independences)
        assert parse_premise(write_premise(named)) == named
        for claim in rng.sample(all_claims(n), 2):
            for style in r.STYLES:
                text = r.trace(named, claim, style)
                assert [step for _, step in r.read_trace(text, named.variables)] == r.reasoning_steps(premise, claim)
                assert r.check_trace(text, named, claim).complete


COLLIDER = premise_of((0, 0, 3, 4))  # A -> C <- B, C -> D by rule 1
CLAIM = Claim("indirect", 0, 3)
GOOD = """Pair A B none given nothing
Pair A C -
Pair A D none given B C
Pair B C -
Pair B D none given A C
Pair C D -
Ends A B none given nothing, A C -, B C - out, A C ->, B C ->, A D none end changed
Ends A C -> changed
Ends A D none given B C, A B none, A C ->, C D - in end changed
Ends B C -> changed
Ends B D none given A C, A B none, B C ->, C D - in end changed
Ends C D - changed
Round 1 A B none same
Round 1 A C -> same
Round 1 A D none same
Round 1 B C -> same
Round 1 B D none same
Round 1 C D -, A C ->, A D none rule 1, C D -> changed
Round 2 A B none same
Round 2 A C -> same
Round 2 A D none same
Round 2 B C -> same
Round 2 B D none same
Round 2 C D -> same
From A without D at A, A B none, A C -> new next C
From A without D at C, C D -> found
Answer: Yes"""
FULL = """Pair A and B: no edge; independent given nothing.
Pair A and C: undirected.
Pair A and D: no edge; independent given B and C.
Pair B and C: undirected.
Pair B and D: no edge; independent given A and C.
Pair C and D: undirected.
Around A and B: no edge; independent given nothing; A - C; B - C; not in that set, so a collider; A -> C; B -> C; \
no edge A - D; that is all; a change.
Around A and C: forwards; a change.
Around A and D: no edge; independent given B and C; no edge A - B; A -> C; C - D; in that set, so no collider; \
that is all; a change.
Around B and C: forwards; a change.
Around B and D: no edge; independent given A and C; no edge A - B; B -> C; C - D; in that set, so no collider; \
that is all; a change.
Around C and D: undirected; a change.
Round 1, A and B: no edge; no change.
Round 1, A and C: forwards; no change.
Round 1, A and D: no edge; no change.
Round 1, B and C: forwards; no change.
Round 1, B and D: no edge; no change.
Round 1, C and D: undirected; A -> C; no edge A - D; by Meek's rule 1; C -> D; a change.
Round 2, A and B: no edge; no change.
Round 2, A and C: forwards; no change.
Round 2, A and D: no edge; no change.
Round 2, B and C: forwards; no change.
Round 2, B and D: no edge; no change.
Round 2, C and D: forwards; no change.
Effects of A without D, at A: no edge A - B; A -> C; new; next C.
Effects of A without D, at C: C -> D; found.
Answer: Yes"""


@pytest.mark.parametrize("style, lines", [("compact", GOOD), ("full", FULL)])
def test_either_style_line_by_line(style, lines):
    assert r.trace(COLLIDER, CLAIM, style) == lines
    assert r.check_trace(lines, COLLIDER, CLAIM).complete


@pytest.mark.parametrize(
    "old, new",
    [
        ("Pair A B none given nothing", "Pair A B none given C"),  # C is their collider
        ("Pair A B none given nothing", "Pair A B -"),
        ("Pair A C -", "Pair A C none given B"),
        ("Pair A C -", "Pair A C ->"),
        ("Ends A C -> changed", "Ends A C -> same"),
        ("Ends A C -> changed", "Ends A C - changed"),
        ("Ends A D none given B C, A B none, A C ->, C D - in end changed", "Ends A D none given B C changed"),
        (
            "Ends A D none given B C, A B none, A C ->, C D - in end changed",
            "Ends A D none given B C, A B none, A C ->, C D - out end changed",
        ),
        (
            "Ends A D none given B C, A B none, A C ->, C D - in end changed",
            "Ends A D none given B, A B none, A C ->, C D - in end changed",
        ),
        ("Round 1 A B none same", "Round 1 A B none changed"),
        ("Round 1 C D -, A C ->, A D none rule 1, C D -> changed", "Round 1 C D - same"),
        (
            "Round 1 C D -, A C ->, A D none rule 1, C D -> changed",
            "Round 1 C D -, A C ->, A D none rule 1, C D <- changed",
        ),
        (
            "Round 1 C D -, A C ->, A D none rule 1, C D -> changed",
            "Round 1 C D -, A C ->, A D none rule 2, C D -> changed",
        ),
        ("Round 2 C D -> same", "Round 2 C D - same"),
        ("From A without D at A, A B none, A C -> new next C", "From A without D at A, A B none, A C -> new next B C"),
        ("From A without D at A, A B none, A C -> new next C", "From A without D at A, A B none, A C -> new reached C"),
        ("From A without D at A, A B none, A C -> new next C", "From A without D at A, A C -> new next C"),
        ("From A without D at C, C D -> found", "From A without D at C, C D none missing"),
        ("From A without D at C, C D -> found", "From A without D at C, C D -> missing"),
        ("Answer: Yes", "Answer: No"),
    ],
)
def test_one_false_line_is_the_one_marked(old, new):
    found = r.check_trace(re.sub(f"^{re.escape(old)}$", new, GOOD, flags=re.M), COLLIDER, CLAIM)
    assert [sentence.text for sentence in found.wrong] == [new]
    assert not found.unreadable and not found.complete
    assert [r.write_step(step, COLLIDER.variables) for step in found.missing] == [old]


@pytest.mark.parametrize(
    "line",
    [
        "Round 3 A B none same",  # the rounds are over
        "Pair B A none given nothing",  # the order of a pair is fixed
        "Link A to D, A D none missing",  # true, and not asked
        "From A without B at A, A C -> new, A D none next C",
        "Into A without D at A, A B none, A C -> reached nothing",
        "Apart missing",
        "Missing",
        "By turns A -> C -> D",
    ],
)
def test_what_does_not_belong_there_is_wrong(line):
    found = r.check_trace(f"{line}\n{GOOD}", COLLIDER, CLAIM)
    assert [sentence.text for sentence in found.wrong] == [line] and not found.missing


@pytest.mark.parametrize("lines", [GOOD, FULL], ids=r.STYLES)
def test_a_left_out_line_is_missing(lines):
    for line in lines.splitlines():
        found = r.check_trace("\n".join(other for other in lines.splitlines() if other != line), COLLIDER, CLAIM)
        assert not found.wrong and not found.unreadable
        assert found.missing == (r.read_step(line, COLLIDER.variables),)


def swapped(line, variables, rng):
    """The line with one word exchanged for another of its kind."""
    kinds = [[*variables], [*MARKS], ["same", "changed"], ["in", "out"], ["found", "missing"], ["Yes", "No"]]
    kinds += [["next", "reached"], ["both", "new"], ["From", "Into"], ["1", "2", "3"]]
    words = re.split(r"(\W+?)(?=\w|-|<)|(?<=\w)(,)", line)
    at = [(k, kind) for k, word in enumerate(words) for kind in kinds if word in kind]
    k, kind = rng.choice(at)
    words[k] = rng.choice([word for word in kind if word != words[k]])
    return "".join(word or "" for word in words)


@given(st.integers(3, 5), st.randoms(use_true_random=False))
def test_a_sentence_with_one_word_exchanged_is_not_right(n, rng):
    """But where the word makes it another set that separates the pair, by networkx."""
    graph = relabel(rng.choice(list(representatives(n))), rng.sample(range(n), n))
    premise, claim = premise_of(graph), rng.choice(all_claims(n))
    lines = r.trace(premise, claim).splitlines()
    k = rng.randrange(len(lines))
    if lines[k] == "Missing" or lines[k].startswith("By turns"):
        return
    changed = swapped(lines[k], premise.variables, rng)
    found = r.check_trace("\n".join([*lines[:k], changed, *lines[k + 1 :]]), premise, claim)
    step, exact = r.read_step(changed, premise.variables), r.read_step(lines[k], premise.variables)
    if not found.sentences[k].right or step.head != exact.head:  # right, but of another pair: this one's is missing
        assert found.missing == (exact,) and not found.complete
    else:
        ((_, other),) = [phrase for phrase in step.phrases if phrase[0] == "given"]
        dag = nx.DiGraph((u, v) for v, mask in enumerate(graph) for u in bits(mask))
        dag.add_nodes_from(range(n))
        assert nx.is_d_separator(dag, {step.head[1]}, {step.head[2]}, set(bits(other)))


@pytest.mark.parametrize(
    "text",
    [
        "Yes.",
        "Pair A B",
        "Pair A E -",
        "Pair A B =>",
        "Pair A B none given C and",
        "Pair A D none given B B",
        "Pair A D none given B, C",
        "Ends A B none same, A C",
        "Round 0 A B none same",
        "From A without D",
        "From A without D at A, A B",
        "From A without D at A" + ", A B none" * 60,  # longer than any step
        "Effects of A without D, at A: no edge A B.",
        "By turns A -> C -> A",
        "By turns A -> C, or A -> C",
        "By turns A -> C and B -> C, or B -> C and A -> C",
        "Answer: Maybe",
    ],
)
def test_other_text_is_unreadable_and_settles_nothing(text):
    found = r.check_trace(text, COLLIDER, CLAIM)
    if text in ("Pair A B", "From A without D"):
        assert not found.complete and not any(sentence.right for sentence in found.sentences)
        return
    assert not found.wrong and len(found.unreadable) == 1
    assert len(found.missing) == len(GOOD.splitlines())
    assert r.check_trace(f"{GOOD}\n{text}", COLLIDER, CLAIM).missing == ()


def test_an_empty_text_misses_everything():
    found = r.check_trace("", COLLIDER, CLAIM)
    assert not found.sentences and len(found.missing) == len(GOOD.splitlines())


def test_markers_and_several_sentences_in_a_line_are_read():
    text = "1. Pair A and B: no edge; independent given nothing. Pair A B -\n- Round 1 A C <- same"
    steps = [step for _, step in r.read_trace(text, "ABC")]
    assert steps == [
        r.Step(("pair", 0, 1), (("is none",), ("given", 0))),
        r.Step(("pair", 0, 1), (("is -",),)),
        r.Step(("round", 1, 0, 2), (("is <-",), ("same",))),
    ]


def test_another_separating_set_is_right_too():
    """In either line on the pair, or in both."""
    for name in ("Pair", "Ends"):
        text = GOOD.replace(f"{name} A D none given B C", f"{name} A D none given C")
        assert text != GOOD and r.check_trace(text, COLLIDER, CLAIM).complete


def test_a_collider_by_turns_names_paths_and_any_list_that_covers_the_class_is_right():
    """A - B with C and D beside both: A and B cause C or D together, depending on the member."""
    premise, claim = premise_of((0, 1, 3, 3)), Claim("collider", 0, 1)
    text, exact = r.trace(premise, claim), "By turns A -> C and B -> C, or A -> D and B -> D"
    assert text.splitlines()[-2:] == [exact, "Answer: Yes"] and "Missing" not in text
    longer = "A -> B -> C and B -> C"  # not disjoint
    for turns, right in [
        ("B -> D and A -> D, or A -> C and B -> C", True),
        ("A -> C and B -> C", False),
        (f"A -> C and B -> C, or A -> D and B -> D, or {longer}", False),
        ("A -> C, or A -> D", False),
    ]:
        found = r.check_trace(text.replace(exact, f"By turns {turns}"), premise, claim)
        assert found.complete == right and len(found.wrong) == (not right)


def test_subjects_are_the_places_of_the_trace():
    def about(line):
        return r.subject(r.read_step(line, "ABCD"))

    assert about("Pair A B -") == about("Pair A B none given C") != about("Ends A B - same")
    assert about("Round 1 A B - same") != about("Round 2 A B - same")
    assert about("From A without B at C, C D - reached C") != about("From A without B at A, A C -> new next C")
    assert about("By turns A -> C") == about("By turns B -> C")
    assert about("Answer: Yes") == about("Answer: No")


def test_no_reasoning_from_a_premise_that_no_graph_satisfies():
    premise = Premise(tuple(LETTERS[:3]), frozenset({(0, 1, 4), (0, 2, 2), (1, 2, 1)}))
    for call in (lambda: r.trace(premise, CLAIM), lambda: r.check_trace("", premise, CLAIM)):
        with pytest.raises(UnsatisfiableError, match="no graph satisfies"):
            call()


# ---------------------------------------------------------------- corrections


def rejoined(text, premise, claim, style):
    """The kept part and the text with the exact continuation, which must be complete."""
    kept, steps = r.correction(text, premise, claim)
    whole = kept + r.write_steps(steps, premise.variables, style)
    assert r.check_trace(whole, premise, claim).complete and len(whole.splitlines()) == len(
        r.trace(premise, claim).splitlines()
    )
    return kept


@pytest.mark.parametrize("style", r.STYLES)
def test_a_trace_is_corrected_from_its_first_fault_on(style):
    rng = random.Random(style)
    for row in rng.sample(rows(4), 60):
        premise, claim = relabelled(*parsed(row), rng)
        lines = r.trace(premise, claim, style).splitlines()
        k = rng.randrange(len(lines))
        before = "".join(f"{line}\n" for line in lines[:k])
        other = [line for line in lines if line != lines[k]]
        faults = {
            "unreadable": [*lines[:k], "Well,", *lines[k:]],
            "left out": [*lines[:k], *lines[k + 1 :]],
            "twice": [*lines[:k], *lines[k - 1 :]] if k else ["Well,", *lines],
            "another": [*lines[:k], rng.choice(other), *lines[k + 1 :]],
            "ended": lines[:k],
            "in the middle of a word": [*lines[:k], lines[k][:3]],
        }
        for fault, text in faults.items():
            assert rejoined("\n".join(text), premise, claim, style) == before, fault
            for mark in ("- ", "1. "):  # a list: nothing of the fault's item stays
                listed = "".join(mark + line for line in before.splitlines(keepends=True))
                assert rejoined("\n".join(mark + line for line in text), premise, claim, style) == listed, fault
        assert r.correction("\n".join(lines), premise, claim) is None
        assert r.correction("\n".join([*lines, "and so on"]), premise, claim) is None


def test_a_correction_keeps_to_the_sets_that_the_text_has_chosen():
    found = 0
    for row in rows(4):
        premise, claim = parsed(row)
        lines = r.trace(premise, claim).splitlines()
        for a, b, given_ in premise.independences:
            step = r.Step(("pair", a, b), (("is none",), ("given", given_)))
            line = r.write_step(step, premise.variables)
            if line in lines:
                continue
            place = next(k for k, old in enumerate(lines) if old.startswith(line.split(" given")[0]))
            kept = rejoined("\n".join([*lines[:place], line]), premise, claim, "compact")
            assert kept.splitlines()[-1] == line
            steps = r.correction(kept, premise, claim)[1]
            assert ("given", given_) in next(step for step in steps if step.head == ("ends", a, b)).phrases
            found += 1
    assert found > 100
