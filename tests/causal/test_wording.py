"""Text: the released wording in both directions, and malformed text, as it is read and as explain.py names it."""

import random
import re

import pytest
from brute_force import all_claims, premises_and_claims, rows, statements
from hypothesis import given, settings
from hypothesis import strategies as st

from causal import graphs as g
from causal import wording as c
from explain import explain

GOOD = (
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B."
)


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


@pytest.mark.parametrize("wording", c.WORDINGS)
def test_every_wording_means_the_same_claim(wording):
    for claim in all_claims(3):
        for template in c.TEMPLATES:
            if c.RELATION_OF[template] == claim.relation:
                text = c.write_hypothesis(claim, "ZYX", template, wording)
                assert c.parse_hypothesis(text, tuple("ZYX")) == claim
    assert c.parse_hypothesis("A influences B through some mediator(s).", "AB") == g.Claim("indirect", 0, 1)
    assert c.parse_hypothesis("Some variable(s) cause(s) both B and A.", "AB") == g.Claim("confounder", 0, 1)


def test_held_out_wordings_are_new_sentences_of_words_that_the_others_have():
    sentences = {name: set(wording.values()) for name, wording in c.WORDINGS.items()}
    seen = set().union(*(sentences[name] for name in sentences if name not in c.HELD_OUT_WORDINGS))
    known = {word for sentence in seen for word in re.findall(r"\w+", sentence)}
    for name in c.HELD_OUT_WORDINGS:
        assert not sentences[name] & seen
        assert {word for sentence in sentences[name] for word in re.findall(r"\w+", sentence)} <= known


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


@settings(max_examples=150, deadline=None)
@given(premises_and_claims(), st.sampled_from([*c.WORDINGS]))
def test_text_to_knowledge_to_text_is_the_identity(case, wording):
    premise, claim, template = case
    text, hypothesis = c.write_premise(premise), c.write_hypothesis(claim, premise.variables, template, wording)
    assert c.parse_premise(text) == premise and c.write_premise(c.parse_premise(text)) == text
    assert c.split_input(c.write_input(text, hypothesis)) == (text, hypothesis)
    read, read_template = c.read_hypothesis(hypothesis, premise.variables)
    assert read == claim
    assert c.write_hypothesis(read, premise.variables, read_template, wording) == hypothesis
