"""Rows and text: the released wording in both directions, relabelling, perturbations, malformed text, --explain."""

import random
import re

import pytest
from brute_force import all_claims, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from causal import graphs as g
from causal import wording as c
from causal.reasoning import trace
from explain import explain

GOOD = (
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B."
)


# ---------------------------------------------------------------- rows and relabelling


def test_rows_have_the_columns_and_templates_of_the_release():
    columns = {"input", "premise", "hypothesis", "premise_id", "structure_id", "label", "given_label", "exact"}
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
    versions = {g.structure_id(g.premise_of(dag)): len(g.labelled_premises(dag, 0, 99)) for dag in g.representatives(4)}
    assert {key: len(texts) for key, texts in per_structure.items()} == {k: min(4, v) for k, v in versions.items()}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: list(c.generate_rows(7)), "num_variables 7 has too many classes to list; set structures"),
        (lambda: list(c.generate_rows(1)), "num_variables is 1"),
        (lambda: list(c.generate_rows(9)), "num_variables is 9"),
        (
            lambda: c.perturb(c.parse_premise(GOOD), g.Claim("direct", 0, 1), "parent", "noise", ""),
            "perturbation 'noise'",
        ),
        (lambda: list(c.generate_rows(3, relabelings=2)), "relabel_seed"),
        (lambda: list(c.generate_rows(3, relabel_seed=1, relabelings=0)), "relabelings is 0"),
        (lambda: c.write_hypothesis(g.Claim("direct", 0, 1), "AB", "has_collider"), "does not word a direct claim"),
        (lambda: trace(c.parse_premise(GOOD), g.Claim("direct", 0, 1), style="verbose"), "trace style 'verbose'"),
    ],
)
def test_settings_out_of_range_are_named(call, message):
    with pytest.raises(g.Corr2CauseError, match=message):
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
    assert c.write_premise(g.premise_of((0, 0, 3))) == GOOD
    chain = c.write_premise(g.premise_of((0, 1, 2, 4)))
    assert chain.endswith(
        "However, A and C are independent given B. A and C are independent given B and D. "
        "A and D are independent given B. A and D are independent given B and C. A and D are independent given C. "
        "B and D are independent given A and C. B and D are independent given C."
    )
    assert "follows: A is independent of B." in c.write_premise(g.premise_of((0, 0)))
    assert c.write_premise(g.premise_of((0, 1))).endswith("follows: A correlates with B.")


def test_paraphrases_mean_the_same_claim():
    for claim in all_claims(3):
        for template in c.TEMPLATES:
            if c.RELATION_OF[template] == claim.relation:
                text = c.write_hypothesis(claim, "ZYX", template, paraphrase=True)
                assert c.parse_hypothesis(text, tuple("ZYX")) == claim
    assert c.parse_hypothesis("A influences B through some mediator(s).", "AB") == g.Claim("indirect", 0, 1)
    assert c.parse_hypothesis("Some variable(s) cause(s) both B and A.", "AB") == g.Claim("confounder", 0, 1)


def test_other_letters_and_another_order_of_statements_read_the_same():
    renamed = GOOD.translate(str.maketrans("ABC", "ZYX")).replace("Zll", "All")
    assert c.parse_premise(renamed) == g.Premise(("Z", "Y", "X"), frozenset({(0, 1, 0)}))
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
    with pytest.raises(g.Corr2CauseError, match=message) as caught:
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
    with pytest.raises(g.Corr2CauseError, match=message):
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
    with pytest.raises(g.Corr2CauseError, match=message):
        c.split_input(text)


def mutate(rng, text):
    """One to three random edits: a word dropped, repeated, moved or replaced, a letter or a character changed."""
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.4:
            at = rng.choice([match.start() for match in re.finditer(r"\b[A-E]\b", text)] or [0])
            text = text[:at] + rng.choice("ABCDE") + text[at + 1 :]
            continue
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


def statements(premise_text):
    """A premise's header and its sorted statements, each with its two variables and its condition sorted."""
    header, body = " ".join(premise_text.split()).split("follows: ")
    found = []
    for sentence in re.split(r"\.\s*", body.replace("However, ", "").removesuffix(".")):
        pair, _, given = sentence.partition(" are independent given ")
        kind = next((k for k in (" correlates with ", " is independent of ", " and ") if k in pair), None)
        found.append((kind, sorted(pair.split(kind)), sorted(re.split(", | and ", given))))
    return header, sorted(found)


def said_in_other_words(hypothesis):
    """The letters and the remaining words of a hypothesis; a symmetric one has its letters sorted."""
    letters = re.findall(r"\b[A-F]\b", hypothesis)
    symmetric = "at least one" in hypothesis
    return re.sub(r"\b[A-F]\b", "_", " ".join(hypothesis.split())), sorted(letters) if symmetric else letters


def test_mutated_text_is_refused_or_read_for_what_it_says():
    """1,000 mutated inputs: a clear error, or a label for exactly the statements that the text makes."""
    rng, refused, labelled = random.Random(4), 0, 0
    sources = [*rows(3), *rows(4), *rng.sample(rows(5), 60)]
    for _ in range(1000):
        text = mutate(rng, rng.choice(sources)["input"])
        try:
            (answer,) = re.findall("^Answer: (?:Yes|No)$", explain(text), re.MULTILINE)
        except g.Corr2CauseError as error:
            refused += 1
            assert 20 < len(str(error)) < 400 and "\n" not in str(error)
            continue
        labelled += 1
        premise_text, hypothesis = c.split_input(text)
        premise = c.parse_premise(premise_text)
        claim, template = c.read_hypothesis(hypothesis, premise.variables)
        assert statements(c.write_premise(premise)) == statements(premise_text)
        written = c.write_hypothesis(claim, premise.variables, template)
        assert said_in_other_words(written) == said_in_other_words(hypothesis)
        label = g.exact_label(g.markov_equivalence_class(premise), claim)
        assert answer == ("Answer: Yes" if label else "Answer: No")
    assert refused + labelled == 1000 and refused > 600 and labelled > 20


def test_contradictions_are_told_from_other_faults():
    with pytest.raises(c.ContradictionError, match="both correlated and independent"):
        c.parse_premise(GOOD + " B is independent of C.")
    with pytest.raises(g.Corr2CauseError) as caught:
        c.parse_premise(GOOD.replace("B correlates with C.", ""))
    assert type(caught.value) is g.Corr2CauseError


# ---------------------------------------------------------------- properties


@st.composite
def premises_and_claims(draw):
    n = draw(st.integers(2, 6))
    code, order = draw(st.integers(0, 2 ** (n * (n - 1) // 2) - 1)), draw(st.permutations(range(n)))
    upper = tuple(sum((code >> (v * (v - 1) // 2 + u) & 1) << u for u in range(v)) for v in range(n))
    claim = draw(st.sampled_from(all_claims(n)))
    template = draw(st.sampled_from([t for t in c.TEMPLATES if c.RELATION_OF[t] == claim.relation]))
    return g.premise_of(g.relabel(upper, order)), claim, template


@settings(max_examples=150, deadline=None)
@given(premises_and_claims(), st.booleans())
def test_text_to_knowledge_to_text_is_the_identity(case, paraphrase):
    premise, claim, template = case
    text, hypothesis = c.write_premise(premise), c.write_hypothesis(claim, premise.variables, template, paraphrase)
    assert c.parse_premise(text) == premise and c.write_premise(c.parse_premise(text)) == text
    assert c.split_input(c.write_input(text, hypothesis)) == (text, hypothesis)
    read, read_template = c.read_hypothesis(hypothesis, premise.variables)
    assert read == claim
    assert c.write_hypothesis(read, premise.variables, read_template, paraphrase) == hypothesis


@pytest.mark.parametrize("kind", c.PERTURBATIONS)
@settings(max_examples=80, deadline=None)
@given(case=premises_and_claims(), key=st.text(max_size=3))
def test_perturbations_keep_the_label(kind, case, key):
    premise, claim, template = case
    text, hypothesis = c.perturb(premise, claim, template, kind, key)
    assert (text, hypothesis) == c.perturb(premise, claim, template, kind, key)
    changed = c.parse_premise(text)
    read = c.parse_hypothesis(hypothesis, changed.variables)
    members, changed_members = map(g.markov_equivalence_class, (premise, changed))
    assert g.exact_label(changed_members, read) == g.exact_label(members, claim)
    assert g.structure_id(changed) == g.structure_id(premise)
    assert (changed.variables == premise.variables) != (kind == "refactorization")
    if kind != "relabeling":
        assert (changed.independences, read) == (premise.independences, claim)


def test_perturbations_change_what_they_are_named_for():
    premise = g.premise_of((0, 1, 2, 4))  # A -> B -> C -> D
    text, claim = c.write_premise(premise), g.Claim("direct", 0, 1)
    changed = {kind: c.perturb(premise, claim, "parent", kind, "key") for kind in c.PERTURBATIONS}
    assert changed["paraphrase"] == (text, "A directly affects B.")
    assert changed["refactorization"][1] == "Z directly causes Y." and "Z, Y, X and W." in changed["refactorization"][0]
    assert changed["relabeling"][0] != text and "A, B, C and D." in changed["relabeling"][0]
    reordered, hypothesis = changed["reordering"]
    assert hypothesis == "A directly causes B." and reordered != text
    assert sorted(reordered.split(". ")) != reordered.split(". ")
    assert statements(reordered) == statements(text)
    keys = {c.perturb(premise, claim, "parent", "relabeling", str(key))[0] for key in range(30)}
    assert len(keys) > 5
