"""Text: the released wording in both directions, and malformed text, as it is read and as explain.py names it."""

import random
import re
from itertools import combinations

import pytest
from brute_force import all_claims, premises_and_claims, rows, statements
from hypothesis import given, settings
from hypothesis import strategies as st

from causal import vocabulary as v
from causal import wording as c
from causal.claims import Claim, exact_label
from causal.classes import LETTERS, Premise, premise_of
from causal.graphs import Corr2CauseError
from causal.trace_text import FIXED_WORDS
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
    assert c.write_premise(premise_of((0, 0, 3))) == GOOD
    chain = c.write_premise(premise_of((0, 1, 2, 4)))
    assert chain.endswith(
        "However, A and C are independent given B. A and C are independent given B and D. "
        "A and D are independent given B. A and D are independent given B and C. A and D are independent given C. "
        "B and D are independent given A and C. B and D are independent given C."
    )
    assert "follows: A is independent of B." in c.write_premise(premise_of((0, 0)))
    assert c.write_premise(premise_of((0, 1))).endswith("follows: A correlates with B.")


@pytest.mark.parametrize("wording", c.WORDINGS)
def test_every_wording_means_the_same_claim(wording):
    for claim in all_claims(3):
        for template in c.TEMPLATES:
            if c.RELATION_OF[template] == claim.relation:
                text = c.write_hypothesis(claim, "ZYX", template, wording)
                assert c.parse_hypothesis(text, tuple("ZYX")) == claim
    assert c.parse_hypothesis("A influences B through some mediator(s).", "AB") == Claim("indirect", 0, 1)
    assert c.parse_hypothesis("Some variable(s) cause(s) both B and A.", "AB") == Claim("confounder", 0, 1)


def test_held_out_wordings_are_new_sentences_of_words_that_the_others_have():
    sentences = {name: set(wording.values()) for name, wording in c.WORDINGS.items()}
    seen = set().union(*(sentences[name] for name in sentences if name not in v.HELD_OUT_WORDINGS))
    known = {word for sentence in seen for word in re.findall(r"\w+", sentence)}
    for name in v.HELD_OUT_WORDINGS:
        assert not sentences[name] & seen
        assert {word for sentence in sentences[name] for word in re.findall(r"\w+", sentence)} <= known


def test_composed_wordings_have_the_parts_of_two_that_are_held_out_and_no_sentence_of_another():
    composed = {sentence for name in v.GROUPS["composed"] for sentence in v.WORDINGS[name].values()}
    named = {sentence for name in v.WORDINGS if name in v.DRAWN_WORDINGS for sentence in v.WORDINGS[name].values()}
    assert len(composed) > 50 and not composed & named
    known = {word for sentence in composed for word in re.findall(r"\w+", sentence)}
    for name in ("paraphrase", "recombined"):
        assert {word for sentence in v.WORDINGS[name].values() for word in re.findall(r"\w+", sentence)} <= known
    assert {v.draw("hypotheses", ["composed"], random.Random(k)) for k in range(300)} == {*v.GROUPS["composed"]}


def test_other_letters_and_another_order_of_statements_read_the_same():
    renamed = GOOD.translate(str.maketrans("ABC", "ZYX")).replace("Zll", "All")
    assert c.parse_premise(renamed) == Premise(("Z", "Y", "X"), frozenset({(0, 1, 0)}))
    swapped = GOOD.replace("A correlates with C. B correlates with C.", "C correlates with B.  A correlates with C.")
    assert c.parse_premise(swapped) == c.parse_premise(GOOD)


BAD_PREMISES = [
    ("", "does not read"),
    ("A correlates with B.", "does not read"),
    (GOOD.replace("closed system", "system"), "does not read"),
    (GOOD.replace("of 3 variables", "of 4 variables"), "says 4 and 3 variables but lists 3"),
    (GOOD.replace("these 3", "these 2"), "says 3 and 2 variables but lists 3"),
    (GOOD.replace("A, B and C", "A, B, and C"), "not a list of names"),
    (GOOD.replace("A, B and C", "A, B and c"), "unknown variable 'C' in 'A correlates with C.'; known: A, B, c"),
    (GOOD.replace("A, B and C", "A, B and 3"), "not a list of names"),
    (GOOD.replace("A, B and C", "A, B and b"), "listed twice"),
    (GOOD.replace("A, B and C", "A, B and vitamin A"), "the variable 'A' is part of the variable 'vitamin A'; rename"),
    (
        GOOD.replace("A, B and C", "A, pressure and low-Pressure"),
        "the variable 'pressure' is part of the variable 'low",
    ),
    (GOOD.replace("A, B and C", "A, B and nothing"), "a variable cannot be called nothing"),
    (GOOD.replace("A, B and C", "A, and and C"), "a variable cannot be called and"),
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
        "has 1 variables; 2 to 10",
    ),
    (
        "Suppose there is a closed system of 11 variables, A, B, C, D, E, F, G, H, I, J and K. All the statistical "
        "relations among these 11 variables are as follows: A correlates with B.",
        "has 11 variables; 2 to 10",
    ),
    (None, "NoneType, not text"),
]


@pytest.mark.parametrize("text, message", BAD_PREMISES)
def test_malformed_premises_are_named(text, message):
    with pytest.raises(Corr2CauseError, match=message) as caught:
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
    with pytest.raises(Corr2CauseError, match=message):
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
    with pytest.raises(Corr2CauseError, match=message):
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
        except Corr2CauseError as error:
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
        label = exact_label(premise, claim)
        assert answer == ("Answer: Yes" if label else "Answer: No")
    assert refused + labelled == 1000 and refused > 600 and labelled > 20


def test_contradictions_are_told_from_other_faults():
    with pytest.raises(c.ContradictionError, match="both correlated and independent"):
        c.parse_premise(GOOD + " B is independent of C.")
    with pytest.raises(Corr2CauseError) as caught:
        c.parse_premise(GOOD.replace("B correlates with C.", ""))
    assert type(caught.value) is Corr2CauseError


# ---------------------------------------------------------------- properties


def named(premise, names):
    return Premise(tuple(names[: len(premise.variables)]), premise.independences)


@settings(max_examples=150)
@given(premises_and_claims(), st.sampled_from([*c.WORDINGS]), st.sampled_from([*v.TELLINGS]), st.data())
def test_text_to_knowledge_to_text_is_the_identity(case, wording, telling, data):
    """In every wording, telling and list of names, and in any two of them together."""
    premise, claim, template = case
    names = data.draw(st.sampled_from([LETTERS, LETTERS[::-1], *v.NAMES.values()]))
    premise = named(premise, data.draw(st.permutations(names)))
    text = c.write_premise(premise, telling=telling)
    hypothesis = c.write_hypothesis(claim, premise.variables, template, wording)
    assert c.parse_premise(text) == premise and c.telling_of(text) == telling
    assert c.split_input(c.write_input(text, hypothesis)) == (text, hypothesis)
    read, read_template = c.read_hypothesis(hypothesis, premise.variables)
    found = c.wording_of(hypothesis, premise.variables)  # composed ones share sentences
    assert read == claim and (found == wording or {found, wording} <= {*v.GROUPS["composed"]})
    assert c.write_hypothesis(claim, premise.variables, template, found) == hypothesis
    assert c.write_hypothesis(read, premise.variables, read_template, wording) == hypothesis
    assert c.parse_premise(c.write_premise(premise, data.draw(st.randoms()), telling)) == premise


# ---------------------------------------------------------------- words that nobody knows


@given(premises_and_claims(), st.sampled_from([*c.WORDINGS]), st.randoms(use_true_random=False), st.data())
def test_made_up_words_leave_the_variables_and_nothing_that_is_longer(case, wording, rng, data):
    premise, claim, template = case
    names = named(premise, data.draw(st.sampled_from([LETTERS[3:], *v.NAMES.values()]))).variables
    unread = c.write_unknown_hypothesis(claim, names, template, wording, rng)
    forms = "|".join(re.escape(form) for name in names for form in (name, name[0].upper() + name[1:]))
    variables = re.compile(rf"\b(?:{forms})\b")
    found = [name.lower() for name in variables.findall(unread)]
    assert sorted(found) == sorted(names[k].lower() for k in (claim.i, claim.j))
    assert len(variables.sub("", unread)) <= c.LONGEST_UNKNOWN_HYPOTHESIS
    assert unread[0] == unread[0].upper() and unread[-1] == "."


def drawn(claim, template, wording, count=900):
    """Hypotheses with made-up words, cut into words."""
    rng = random.Random(0)
    return [c.write_unknown_hypothesis(claim, "ABC", template, wording, rng).split() for _ in range(count)]


def test_of_a_hypothesis_the_verb_and_any_others_are_made_up():
    words = "B is a direct effect of A.".split()
    found = drawn(Claim("direct", 0, 1), "parent", "effect")
    kept = [frozenset(was for was, now in zip(words[1:-1], other[1:-1], strict=True) if was == now) for other in found]
    others = [frozenset(some) for k in range(5) for some in combinations(["is", "a", "direct", "of"], k)]
    assert set(kept) == set(others)
    assert 0.33 < kept.count(frozenset()) / len(kept) < 0.45  # all, a third of the time, and now and then by chance


@pytest.mark.parametrize(
    "relation, template, wording, turned",
    [
        ("direct", "parent", "effect", "AB"),  # of B is a direct effect of A.
        ("indirect", "non-parent ancestor", "cause", "BA"),  # of A is an indirect cause of B.
        ("indirect", "non-parent ancestor", "arrow", "BA"),  # of … a path of arrows from A through … to B.
    ],
)
def test_without_a_word_that_says_which_is_the_cause_it_may_be_either(relation, template, wording, turned):
    found = drawn(Claim(relation, 0, 1), template, wording)
    turns = ["".join(word[0] for word in words if word in ("A", "A.", "B", "B.")) == turned for words in found]
    assert 0.4 < sum(turns) / len(turns) < 0.6


@pytest.mark.parametrize("relation", ["collider", "confounder"])
def test_without_its_verb_a_common_effect_may_be_a_common_cause(relation):
    found = drawn(Claim(relation, 0, 1), f"has_{relation}", "influence")
    assert not any("influence" in words for words in found)
    first = [words[0] == "A" for words in found]
    assert 0.4 < sum(first) / len(first) < 0.6  # of A and B both influence some other variable(s).


@pytest.mark.parametrize("template", c.TEMPLATES)
@pytest.mark.parametrize("wording", c.WORDINGS)
def test_every_sentence_says_which_way_its_arrows_point(wording, template):
    assert any(map(v.DIRECTION.fullmatch, own_words(c.WORDINGS[wording][template])))


# ---------------------------------------------------------------- names and tellings


def own_words(*sentences):
    """The words of sentences, without their slots."""
    return set(re.findall(r"[^\W\d]+", re.sub(r"{\w+}", " ", " ".join(sentences)).lower()))


def sentences_of(telling):
    return {telling.opening, telling.turn, *telling.correlated, *telling.independent, *telling.given}


def test_names_are_of_words_that_no_sentence_has_and_none_is_in_another():
    hypotheses = [sentence for wording in v.WORDINGS.values() for sentence in wording.values()]
    premises = [sentence for telling in v.TELLINGS.values() for sentence in sentences_of(telling)]
    meaning = own_words(*hypotheses, *premises, *FIXED_WORDS) | c.TAKEN
    names = [name for names in v.NAMES.values() for name in names]
    assert not own_words(*names) & meaning and all(re.fullmatch(c.NAME, name) for name in names)
    assert not [(a, b) for a in names for b in names if a is not b and f" {a} " in f" {b} "]
    assert any(" " in name for name in names) and min(map(len, v.NAMES.values())) >= 12


@pytest.mark.parametrize("kind", v.KINDS)
def test_what_is_held_out_is_not_what_is_trained_on(kind):
    trained, held_out = v.TRAINED[kind], v.HELD_OUT[kind]
    assert {"released", *trained, *held_out} == {"released", *v.KINDS[kind]} - {*v.GROUPS["composed"]}
    assert len(trained) > len(held_out) > 1
    assert "released" not in (*trained, *held_out) and not set(trained) & set(held_out)
    rng = random.Random(0)
    assert {v.draw(kind, [kind], rng) for _ in range(300)} == set(trained)
    assert {v.draw(kind, [held_out[0], "released"], rng) for _ in range(50)} == {held_out[0], "released"}
    assert {v.draw(kind, [other for other in v.DRAWN_WORDINGS if other in v.KINDS and other != kind], rng)} == {None}
    seen = {word for name in trained for word in _distinctive(kind, v.KINDS[kind][name])}
    assert not seen & {word for name in held_out for word in _distinctive(kind, v.KINDS[kind][name])}


def _distinctive(kind, variant):
    """What no held-out variant shares with one of training: whole sentences, of names each word."""
    if kind == "names":
        return own_words(*variant)
    return sentences_of(variant) if kind == "story" else set(variant.values())


def test_a_story_says_each_thing_once_and_takes_its_sentences_in_turn():
    premise = named(premise_of((0, 0, 3, 4)), ["rainfall", "noise", "sales", "stress"])
    text = c.write_premise(premise, telling="report")
    assert text.startswith("Researchers have measured 4 things, rainfall, noise, sales and stress, and nothing")
    assert "Rainfall goes up and down with sales and stress. The figures for noise also move with those for" in text
    assert "Sales goes up and down with stress. Yet rainfall shows no link to noise. With noise and sales held" in text
    assert c.parse_premise(text) == premise
    for old, new, message in (
        ("Yet ", "", "out of place: correlations come first, then 'Yet ', then independences"),
        ("Yet", "Sales goes up and down with noise. Yet", "states 'Sales goes up and down with noise.' twice"),
        ("with sales and stress", "with sales, and stress", "is not a list like"),
        ("with sales and stress", "with sales and rain", "unknown variable 'rain'"),
        ("with sales and stress", "with sales and rainfall", "occurs twice"),
        ("4 things", "5 things", "says 5 variables but lists 4"),
        ("goes up and down", "correlates", "cannot read the statement"),
    ):
        with pytest.raises(Corr2CauseError, match=message):
            c.parse_premise(text.replace(old, new, 1))


def test_a_name_may_hold_words_of_a_sentence():
    names = ("access to care", "hours of work", "contact with a cause of stress")
    for telling in v.TELLINGS:
        premise = named(premise_of((0, 0, 3)), names)
        assert c.parse_premise(c.write_premise(premise, telling=telling)) == premise
    for wording in c.WORDINGS:
        for claim in all_claims(3):
            for template in (t for t in c.TEMPLATES if c.RELATION_OF[t] == claim.relation):
                assert c.parse_hypothesis(c.write_hypothesis(claim, names, template, wording), names) == claim
