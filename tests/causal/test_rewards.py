"""Reading answers out of text, and the rewards, with the ways that a policy might try to cheat each and all of them."""

import random
from itertools import combinations

import pytest
from brute_force import all_claims
from hypothesis import example, given
from hypothesis import strategies as st

from causal import reasoning as r
from causal.answers import extract_answer
from causal.claims import Claim, exact_label
from causal.classes import LETTERS, Premise, UnsatisfiableError, premise_of
from causal.enumeration import representatives
from causal.graphs import relabel
from causal.rewards import (
    NO_ANSWER_REWARD,
    RIGHT_REWARD,
    WRONG_REWARD,
    corr2cause_reward,
    outcome_reward,
    process_reward,
)
from causal.wording import RELATION_OF, write_hypothesis, write_premise

# ---------------------------------------------------------------- answers

ANSWER_FORMS = [
    "{}",
    "{}.",
    "**{}**",
    "Answer: {}",
    "ANSWER : {}!",
    "Answer: **{}**",
    "**Answer:** {}",
    "**Answer: {}.**",
    "### Answer: {}",
    "> Answer - {}",
    "- Answer: `{}`",
    "| Answer | {} |",
    "Answer\n\n{}",
    "## Final Answer\n**{}**",
    "Answer：{}",
    'The answer is "{}".',
    "So the final answer is therefore {}.",
    "The answer to the question is: {}",
    "Answer: \\boxed{{{}}}",
    "$$\\boxed{{\\text{{{}}}}}$$",
    "\\[\n\\boxed{{\\textbf{{{}}}}}\n\\]",
    "<answer>{}</answer>",
    "<answer>\n{}\n</answer><|end|>",
    "Answer: {}<|im_end|>",
    "Therefore: {}",
    "Therefore: **{}**",
    "**Therefore: {}**",
    "**Conclusion:** {}",
    "Therefore, {}.",
    "{}, because A and B are d-separated given C.",
    "{} - the edge is undirected.",
    "So the hypothesis is not tested further: {}",
    "Does the premise imply it? {}.",
]
REASONING = [
    "",
    "Step 1. B and C are independent, so there is no edge. Is A a collider? Yes.\n\n---\n\n",
    "There is no directed path.\nTherefore, no edge can be oriented.\nTo answer yes we would need one.\n",
]


@pytest.mark.parametrize("word, expected", [("Yes", True), ("No", False), ("yes", True), ("NO", False)])
@pytest.mark.parametrize("form", ANSWER_FORMS)
@pytest.mark.parametrize("reasoning", REASONING)
def test_answer_forms(reasoning, form, word, expected):
    assert extract_answer(reasoning + form.format(word)) is expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Answer: Yes\nWait, C blocks the path.\nAnswer: No", False),
        ("Answer: No\n\nThe edge A-B stays undirected.", False),
        ("Answer: Yes\nNo other edge can be oriented.", True),
        ("Answer: No\nTherefore: Yes", False),
        ("Answer：No\nSo says the ＰＣ algorithm.", False),
        ("Answer: Yes\nCould it be that the answer is no?", True),
        ("Therefore: Yes\nTherefore: No", False),
        ("Answer: Yes, there is no other orientation.", True),
        ("Answer: No. A and B are d-separated.", False),
        ("Is A adjacent to B? Yes. Is it oriented? No. Answer: Yes", True),
        ("No. The premise leaves A-B undirected.\n\nBoth orientations fit the data.", False),
        ("Yes, A directly causes B.\nEvery member has the edge.", True),
        ("The collider at C is compelled, so yes.", True),
        ("Does it follow? Answer Yes or No.\nAnswer: No", False),
        ("Answer: No\n\nDoes it follow? Answer Yes or No.\nAnswer:", False),
        ("Answer: No\n\nDoes it follow? Answer Yes/No.\nAnswer:", False),
        ("Answer: No\nEnd with 'Answer: No/Yes'.", False),
        ("Answer (Yes or No): Yes", True),
        ("Answer (yes/no): No", False),
        ("**Answer** (**No** / **Yes**): No", False),
    ],
)
def test_which_statement_is_the_answer(text, expected):
    assert extract_answer(text) is expected


NO_ANSWERS = {
    "empty": "",
    "blank": " \n\t\n",
    "markup only": "**\n---\n\\boxed{}",
    "both in the answer line": "Answer: Yes or No",
    "both, slash": "Answer: Yes/No",
    "both, glued sentences": "Answer: Yes. Answer: No.",
    "both, in a box": "\\boxed{Yes}\\boxed{No}",
    "both after a good line": "Answer: Yes\nAnswer: Yes and No",
    "both offered after a good line": "Answer: Yes\nAnswer: Yes or No",
    "both in the final sentence": "Therefore, yes and no.",
    "opening against ending": "Yes. Answer: No",
    "hedge": "Answer: No, but also Yes",
    "the prompt's question": "Does the premise imply the hypothesis? Answer Yes or No.",
    "the prompt's question, quoted": 'End your reply with "Answer: Yes" or "Answer: No".',
    "the question mark": "Answer: Yes or No?",
    "a header with nothing after it": "A and B are adjacent.\nAnswer:",
    "no as a determiner": "Answer: no edge is oriented",
    "final sentence with a determiner": "No further edges can be removed.",
    "negated": "Answer: not yes",
    "condition": "If the answer is yes then every member has the edge",
    "inside words": "Answer: Nobody knows; yesterday it was unknown",
    "endless text": "A correlates with B given C, and there is no edge; yes, this goes on. We continue. " * 2000,
}


@pytest.mark.parametrize("text", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_no_answer(text):
    assert extract_answer(text) is None
    assert outcome_reward(text, 0) == outcome_reward(text, 1) == NO_ANSWER_REWARD


def test_repeating_lines_gains_nothing():
    once, often = "Answer: Yes", "Answer: Yes\n" * 500
    assert [outcome_reward(often, label) for label in (0, 1)] == [outcome_reward(once, label) for label in (0, 1)]
    alternating = "Answer: Yes\nAnswer: No\n" * 500
    assert [outcome_reward(alternating, label) for label in (0, 1)] == [RIGHT_REWARD, WRONG_REWARD]


PIECES = "yes|no|Yes.|No,|answer|Answer:|therefore|:|?|or|/|\n|**|\\boxed{|}|A".split("|")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))
@example("Answer: Yes\nAnswer: No")
def test_no_text_is_right_under_both_labels(text):
    rewards = sorted(outcome_reward(text, label) for label in (0, 1))
    assert rewards in ([WRONG_REWARD, RIGHT_REWARD], [NO_ANSWER_REWARD, NO_ANSWER_REWARD])
    assert (rewards[0] == NO_ANSWER_REWARD) == (extract_answer(text) is None)


@given(st.text())
def test_any_text_is_read(text):
    assert extract_answer(text) in (True, False, None)
    assert extract_answer(text + "\n\nAnswer: No") is False


@pytest.mark.parametrize("answer, other", [("Yes", "No"), ("No", "Yes")])
def test_what_is_thought_is_not_said(answer, other):
    right = answer == "Yes"
    thought = f"Answer: {other}. Wait, is it?\nAnswer: {other}"
    assert extract_answer(f"<think>{thought}</think>\nAnswer: {answer}") is right
    assert extract_answer(f"<think>\n{thought}\n</think>\n\n{answer}.") is right
    assert extract_answer(f"{thought}\n</think>\n\nAnswer: {answer}") is right  # the prompt has opened it
    assert extract_answer(f"<thinking>{thought}</thinking> The answer is {answer}.") is right
    assert extract_answer(f"<think>{thought}") is None
    assert extract_answer(f"<think>{thought}</think>") is None


@pytest.mark.parametrize(
    "verb", ["is not", "isn't", "cannot be", "can't be", "is never", "is not necessarily", "is not a"]
)
@pytest.mark.parametrize("verdict", ["yes", "'Yes'", "**Yes**"])
def test_a_denied_answer_is_none(verb, verdict):
    assert extract_answer(f"The answer {verb} {verdict}.") is None
    assert extract_answer(f"Answer: No, for the answer {verb} {verdict}.") is False


def test_what_would_be_is_no_answer():
    assert extract_answer("If A caused B, the answer would be yes.") is None
    assert extract_answer("The answer would be no if C were adjacent to B.") is None
    assert extract_answer("If A caused B, the answer would be yes. It does not.\nAnswer: No") is False
    assert extract_answer("Answer: No; a yes would need an arrow.") is False


@pytest.mark.parametrize(
    "reason",
    [
        ", because if A caused B directly, they would correlate.",
        ", since if B caused A, C would be independent of A.",
        " — the hypothesis would hold only if the edge were oriented.",
        "; it would follow if C were a collider.",
        " because it would only hold if C were adjacent.",
    ],
)
@pytest.mark.parametrize("verdict, right", [("Yes", True), ("No", False)])
@pytest.mark.parametrize(
    "form", ["{}", "Answer: {}", "**Answer: {}**", "Therefore: {}", "Some steps.\nThe answer is {}"]
)
def test_an_answer_stands_whatever_its_reason_supposes(form, verdict, right, reason):
    assert extract_answer(form.format(verdict) + reason) is right
    other = {True: "No", False: "Yes"}[right]
    assert extract_answer(f"Answer: {other}\n\nThe final answer is {verdict}{reason}") is right
    both = f", since if A did they would be so, thus the answer is {other}."
    for condition in (
        ", if C were adjacent it would follow.",
        ", but only if A would cause C.",
        " if C would cause A.",
        " - only if C would cause A.",
        f", or {other}, if A would cause C.",
        both,
    ):
        assert extract_answer(form.format(verdict) + condition) is None


@pytest.mark.parametrize("verdict, other, right", [("Yes", "No", True), ("No", "Yes", False)])
def test_a_supposed_answer_in_a_later_sentence_takes_nothing_away(verdict, other, right):
    known = "we would need to know if C is a collider."
    assert extract_answer(f"{verdict}.\n\nTo say {other.lower()}, {known}") is right
    assert extract_answer(f"{verdict}, that is clear. To say {other.lower()}, {known}") is right
    assert extract_answer(f"The answer is {verdict}. For the answer to be {other}, {known}") is right


@pytest.mark.parametrize("rest", [" 2 of the graphs have B -> A.", " B and C are adjacent.", ", see row no. 3."])
def test_a_no_is_a_verdict_whatever_sentence_follows(rest):
    assert extract_answer(f"Answer: No{'' if rest[0] == ',' else '.'}{rest}") is False
    assert extract_answer("See row no. 3.") is extract_answer("There is no edge") is None
    assert extract_answer("Answer: No C reaches B in one graph alone.") is False


@pytest.mark.parametrize(
    "reason",
    [
        ", because there is no A → B edge in any member.",
        ". There is no A that blocks.",
        " — there is no C → A orientation.",
        ", because there is no (undirected) edge.",
        ", because no A separates them.",
    ],
)
@pytest.mark.parametrize("verdict, right", [("Yes", True), ("No", False)])
def test_a_no_before_a_variable_or_a_bracket_is_no_verdict_of_a_sentence(verdict, right, reason):
    assert extract_answer(f"Answer: {verdict}{reason}") is right
    assert extract_answer(f"{verdict}{reason}") is right
    assert extract_answer("Hence no A is a cause of B.") is None


def test_text_without_end_is_read_in_time_that_grows_with_its_length():
    """By backtracking these would take minutes each, so the test would not end."""
    for word in ("if ", "would ", "no ", "yes or ", "answer ", "( yes ", "not a "):
        assert extract_answer(word * 30_000) in (True, False, None)


# ---------------------------------------------------------------- outcome


def test_outcome_reward_values():
    assert (RIGHT_REWARD, WRONG_REWARD, NO_ANSWER_REWARD) == (1.0, -1.0, -0.5)
    assert outcome_reward("Answer: Yes", 1) == outcome_reward("Answer: No", 0) == 1.0
    assert outcome_reward("Answer: Yes", 0) == outcome_reward("Answer: No", 1) == -1.0
    assert outcome_reward("I cannot tell.", 1) == -0.5


def test_class_weights_scale_answers_by_label_and_leave_no_answer_alone():
    weights = (0.5, 3.0)
    assert outcome_reward("Answer: No", 0, weights) == 0.5
    assert outcome_reward("Answer: Yes", 0, weights) == -0.5
    assert outcome_reward("Answer: Yes", 1, weights) == 3.0
    assert outcome_reward("Answer: No", 1, weights) == -3.0
    assert outcome_reward("", 1, weights) == NO_ANSWER_REWARD


@pytest.mark.parametrize("text", ["Answer: No", "Answer: Yes"])
def test_inverse_share_weights_take_the_gain_out_of_constant_answers(text):
    labels = [0] * 80 + [1] * 20
    weights = (0.5 / 0.8, 0.5 / 0.2)
    assert sum(outcome_reward(text, label, weights) for label in labels) == pytest.approx(0.0)


@pytest.mark.parametrize("label", [2, -1, None, "Yes"])
def test_bad_label(label):
    with pytest.raises(ValueError, match="label must be 0 or 1"):
        outcome_reward("Answer: Yes", label)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_bad_class_weights(weights):
    with pytest.raises(ValueError, match="class_weights"):
        outcome_reward("Answer: Yes", 1, weights)


# ---------------------------------------------------------------- process

CLASSES = {n: list(representatives(n)) for n in (2, 3, 4)}


@st.composite
def questions(draw):
    """(premise, claim): any class of 2 to 4 variables in any letters, any claim on it."""
    n = draw(st.integers(2, 4))
    dag = relabel(draw(st.sampled_from(CLASSES[n])), draw(st.permutations(range(n))))
    return premise_of(dag), draw(st.sampled_from(all_claims(n)))


def statements(variables):
    """Statements that can be made of pairs in order, of other sections too, grouped by what they are about."""
    pairs = list(combinations(variables, 2))
    for a, b in pairs:
        others = [v for v in variables if v not in (a, b)]
        sets = [" ".join(c) or "nothing" for k in range(len(others) + 1) for c in combinations(others, k)]
        yield [f"Pair {a} {b} -", *(f"Pair {a} {b} none given {s}" for s in sets)]
        yield [f"Ends {a} {b} {mark} {flag}" for mark in ("-", "->", "<-") for flag in ("same", "changed")]
        for number in (1, 2):
            yield [
                f"Round {number} {a} {b} {mark} {flag}"
                for mark in ("none", "-", "->", "<-")
                for flag in ("same", "changed")
            ]
        for end in (a, b):
            yield [f"Link {end} to {a if end == b else b}, {a} {b} {m} {f}"
                   for m in ("none", "-", "->", "<-") for f in ("found", "missing", "open")]  # fmt: skip


def is_true(sentence, premise, claim):
    return r.is_right(r.read_step(sentence, premise.variables), premise, claim)


@pytest.mark.parametrize("style", r.STYLES)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_exact_trace_earns_exactly_one(n, style):
    rng = random.Random(n)
    for dag, order in ((dag, order) for dag in CLASSES[n] for order in (range(n), rng.sample(range(n), n))):
        premise = premise_of(relabel(dag, order))
        for claim in all_claims(n):
            text = r.trace(premise, claim, style)
            assert process_reward(text, premise, claim) == 1.0
            assert outcome_reward(text, exact_label(premise, claim)) == 1.0


PREMISE = premise_of((0, 0, 3, 4))  # A -> C <- B, C -> D by rule 1
CLAIM = Claim("indirect", 0, 3)
TRACE = r.trace(PREMISE, CLAIM)
REQUIRED = 26  # six lines on pairs, six on triples, two rounds of six, two of the search
ROUND, AGAIN = "Round 1 C D -, A C ->, A D none rule 1, C D -> changed", "Round 2 C D -> same"
FIRST, FROM = "\nFrom A without D at A, A B none, A C -> new next C", "\nFrom A without D at C, C D -> found"
PROSE = "It seems to me that the variables A and B are in some way connected."  # 68 characters


@pytest.mark.parametrize(
    "text, score",
    [
        ("", 0),
        (" \n\n", 0),
        ("Answer: Yes", 0),
        (TRACE, 26),
        (TRACE.replace("Answer: Yes", "Answer: No"), 26),  # the outcome reward's business
        (TRACE.replace("Answer: Yes", ""), 26),
        (TRACE.replace("Answer: Yes", "**Answer: Yes**"), 26),
        ("- " + TRACE.replace("\n", "\n2. "), 26),
        ("\n".join(sorted(TRACE.splitlines()[:-1])), 26),
        (TRACE.replace("Pair A B none given nothing\n", ""), 25),
        (TRACE.replace("Pair A B none given nothing", "Pair A B none given C"), 24),
        (TRACE.replace("Pair A D none given B C", "Pair A D none given C"), 26),  # true as well
        (TRACE.replace("Pair A D none given B C", "Pair D A none given B C"), 24),  # the order is fixed
        (TRACE.replace(AGAIN, f"{AGAIN}\n{AGAIN}"), 25),
        (TRACE.replace(AGAIN, f"{AGAIN}\nRound 2 C D - same"), 25),
        (TRACE.replace(AGAIN, f"Round 2 C D - same\n{AGAIN}"), 23),  # the first word on it counts, and it is false
        (TRACE.replace(AGAIN, f"{AGAIN}\nRound 3 C D -> same"), 25),  # no round is left
        (TRACE.replace(ROUND, "Round 1 C D - same"), 24),
        (TRACE.replace(ROUND, ""), 25),
        (TRACE.replace(FROM, f"\nFrom A without D at C, C D none reached C{FROM}"), 23),
        (TRACE.replace(FROM, f"\nFrom A without B at A, A C -> new, A D none next C{FROM}"), 25),  # not what is asked
        (TRACE.replace(FIRST, "\nFrom A without D at A, A B none, A C -> new reached C"), 24),
        (TRACE.replace("Answer: Yes", "By turns A -> C -> D\nAnswer: Yes"), 25),  # true, but found before
        ("Link A to B, A B none missing\n" + TRACE, 25),
        (PROSE + "\n" + TRACE, 25),
        (PROSE[:-1] + "; " + PROSE + "\n" + TRACE, 23),  # one sentence of 137 characters
        ("Is there a way from A to D? Yes.\n" + TRACE, 25),
        (TRACE + "\nAnswer: Yes", 25),
        (TRACE + f"\n{AGAIN}", 25),
        (TRACE + "\n" + PROSE, 25),
        (TRACE.replace(FROM, f"\nAnswer: Yes{FROM}"), 25 - 2),
        (TRACE.replace(FROM, f"\n**Yes.**{FROM}"), 25 - 2),
        (TRACE.replace(FROM, f"\nThe answer is yes.{FROM}"), 25 - 2),
        ("Answer: Yes\n" + TRACE, -26),
        (TRACE.replace("\n", "\nSo.\n"), 26 - 26),
    ],
)
def test_process_reward_values(text, score):
    assert process_reward(text, PREMISE, CLAIM) == score / REQUIRED


def test_a_long_sentence_that_is_read_costs_no_more_than_a_short_one():
    text = r.trace(PREMISE, CLAIM, "full")
    triples = next(line for line in text.splitlines() if "a collider" in line)
    assert len(triples) > 80
    assert process_reward(f"{triples}\n{text}", PREMISE, CLAIM) == 25 / REQUIRED
    false = triples.replace("A -> C", "A <- C")
    # The required line is gone, and the right one comes too late.
    assert process_reward(f"{false}\n{text}", PREMISE, CLAIM) == 23 / REQUIRED


def test_no_process_reward_from_a_premise_that_no_graph_satisfies():
    premise = Premise(LETTERS[:3], frozenset({(0, 1, 4), (0, 2, 2), (1, 2, 1)}))
    with pytest.raises(UnsatisfiableError, match="no graph satisfies"):
        process_reward("", premise, Claim("direct", 0, 1))


@given(questions(), st.data())
def test_hedging_never_pays(question, data):
    """Two or more statements on one pair, triple or edge, in any order, alone or within the exact trace."""
    premise, claim = question
    about = data.draw(st.sampled_from(list(statements(premise.variables))))
    hedge = data.draw(st.lists(st.sampled_from(about), min_size=2, max_size=6, unique=True))
    assert process_reward("\n".join(hedge), premise, claim) <= 0
    kept = [line for line in r.trace(premise, claim).splitlines() if line not in about]
    assert process_reward("\n".join(hedge + kept), premise, claim) <= process_reward("\n".join(kept), premise, claim)


@given(questions(), st.sampled_from(r.STYLES), st.data())
def test_every_single_corruption_costs(question, style, data):
    premise, claim = question
    lines = r.trace(premise, claim, style).splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    line, before, after = lines[at], lines[:at], lines[at + 1 :]
    false = [s for about in statements(premise.variables) for s in about if not is_true(s, premise, claim)]
    corrupted = {
        "false": [*before, data.draw(st.sampled_from(false)), *after],
        "false beside it": [*before, line, data.draw(st.sampled_from(false)), *after],
        "twice": [*before, line, line, *after],
        "said again": [*lines[:-1], line, lines[-1]],
        "unreadable": [*before, f"Perhaps {line}", *after],
        "answer first": [lines[-1], *lines[:-1]],
        "answer earlier": [*before, lines[-1], *lines[at:-1]] if after else [],
    }
    corrupted["dropped"] = [*before, *after]
    if not after:
        del corrupted["unreadable"]  # an answer is one however it is worded
    for name, changed in corrupted.items():
        text = "\n".join(changed)
        answered = extract_answer(text) is bool(exact_label(premise, claim))
        assert process_reward(text, premise, claim) <= 1, f"{name}:\n{text}"
        assert process_reward(text, premise, claim) < 1 or not answered, f"{name}:\n{text}"


ENDLESS = {
    "a true line": "Pair A B none given nothing\n" * 500,
    "a false line": "Pair A B -\n" * 500,
    "one line": "Pair A B none given nothing " * 500,
    "no space": "Pair" * 500,
    "look-ups": "Ends A B none given nothing" + ", A C -" * 500,
    "flags": "Round 1 A B none" + " same" * 500,
    "rounds": "\n".join(f"Round {k} A B none same" for k in range(2, 500)),
    "unreadable": "Therefore A and B. " * 500,
    "answers": "Answer: Yes\n" * 500,
    "after the answer": TRACE + "\n" + "and so on " * 500,
    "alternatives": "By turns A -> C -> D" + ", or A -> C -> D" * 500,
    "swapped alternatives": "By turns A -> C and B -> C" + ", or B -> C and A -> C" * 500,
    "a circle": "By turns A" + " -> C -> A" * 500,
    "a set": "From A without D at A next C" + " C" * 1000,
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS.keys())
def test_endless_text_goes_to_minus_one(text):
    assert process_reward(text, PREMISE, CLAIM) == -1.0


@given(questions(), st.lists(st.sampled_from(TRACE.splitlines() + PIECES), max_size=30).map("\n".join))
def test_the_process_reward_is_bounded_and_any_text_has_one(question, text):
    assert -1 <= process_reward(text, *question) <= 1


# ---------------------------------------------------------------- all together


def rewards_of(text, premise, claim):
    """(outcome, process)"""
    label = exact_label(premise, claim)
    return outcome_reward(text, label), process_reward(text, premise, claim)


@pytest.mark.parametrize("n", [3, 4])
def test_saying_everything_earns_next_to_nothing(n):
    """All statements, the best order for the policy first (true ones), with the right answer."""
    rng = random.Random(n)
    for dag in CLASSES[n]:
        premise = premise_of(relabel(dag, rng.sample(range(n), n)))
        claim = rng.choice(all_claims(n))
        trace, everything = r.trace(premise, claim), [s for about in statements(premise.variables) for s in about]
        true_first = sorted(everything, key=lambda s: not is_true(s, premise, claim))
        for lines in (true_first, true_first[::-1], rng.sample(everything, len(everything))):
            for reasons in (lines, [*trace.splitlines()[:-1], *lines]):
                text = "\n".join([*reasons, trace.splitlines()[-1]])
                assert process_reward(text, premise, claim) <= -0.5
                assert sum(rewards_of(text, premise, claim)) <= sum(rewards_of(trace, premise, claim)) - 1.5


REASONS = TRACE.removesuffix("Answer: Yes")
LINKS = "Link A to B, A B none missing\nLink A to C, A C -> found\nLink B to C, B C -> found\n"
HACKS = {
    "empty": "",
    "the answer alone": "Answer: Yes",
    "a wrong answer": REASONS + "Answer: No",
    "no answer": REASONS,
    "both answers in a line": REASONS + "Answer: Yes or No",
    "both answers, right one last": REASONS + "Answer: No\nAnswer: Yes",
    "the answer first": "Answer: Yes\n" + REASONS,
    "the answer first and last": "Answer: Yes\n" + TRACE,
    "the answer again and again": REASONS + "Answer: Yes\n" * 100,
    "every line twice": REASONS.replace("\n", "\n\n") + TRACE,
    "in both styles": REASONS + r.trace(PREMISE, CLAIM, "full"),
    "true but beside the point": LINKS + TRACE,
    "true but beside the point, again and again": LINKS * 100 + TRACE,
    "prose before": PROSE + "\n" + TRACE,
    "endless": REASONS * 100,
}


@pytest.mark.parametrize("text", HACKS.values(), ids=HACKS.keys())
def test_an_honest_trace_earns_more_than_any_hack(text):
    honest, hack = rewards_of(TRACE, PREMISE, CLAIM), rewards_of(text, PREMISE, CLAIM)
    assert honest == (1, 1)
    assert all(a <= b for a, b in zip(hack, honest, strict=True))
    assert hack != honest


# ---------------------------------------------------------------- the reward of a run


def row_of(premise, claim, label: int) -> dict:
    names = premise.variables
    template = next(name for name, relation in RELATION_OF.items() if relation == claim.relation)
    return {"premise": write_premise(premise), "hypothesis": write_hypothesis(claim, names, template), "label": label}


def test_the_reward_of_a_row_has_components_spans_and_metrics():
    text = REASONS.replace("Pair A B none given nothing", "Pair A B -") + "Answer: Yes"
    judged = corr2cause_reward(process=True, class_weights=[1.0, 3.0])(text, row_of(PREMISE, CLAIM, 1))
    assert judged["outcome"] == 3.0
    value, spans = judged["process"]
    assert value == process_reward(text, PREMISE, CLAIM) < 1
    assert sum(points for _, _, points in spans) == pytest.approx(value)
    by_text = {text[start:end]: points for start, end, points in spans}
    assert by_text["Pair A B -"] < 0 < by_text["Pair A C -"] and by_text["Answer: Yes"] == 0
    assert {name: judged[name] for name in judged if "/" in name} == pytest.approx({
        "reward/accuracy": 1.0, "reward/accuracy_of_yes": 1.0, "reward/accuracy_of_no": float("nan"),
        "rollout/unanswered_rate": 0.0, "rollout/predicted_yes_rate": 1.0, "rollout/label_yes_rate": 1.0,
    }, nan_ok=True)  # fmt: skip
    assert "process" not in corr2cause_reward()(text, row_of(PREMISE, CLAIM, 1))


@given(st.lists(st.sampled_from(PIECES + REASONS.splitlines()), max_size=12), st.sampled_from(["\n", " ", "\n- "]))
def test_spans_are_the_sentences_and_add_up_to_the_process_reward(pieces, gap):
    text = gap.join(pieces)
    value, spans = corr2cause_reward(process=True)(text, row_of(PREMISE, CLAIM, 1))["process"]
    assert [text[start:end] for start, end, _ in spans] == [sentence for sentence, _ in r.read_trace(text, "ABCD")]
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert value == pytest.approx(max(-1.0, sum(points for _, _, points in spans)))


NO_GRAPH = (  # a chain whose ends are stated to be independent, and independent given its middle
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with B. B correlates with C. However, A is independent of C. A and C "
    "are independent given B."
)
OPEN = write_premise(premise_of((0, 1, 10, 1), 1))  # sets of one variable leave open whether some pairs are adjacent


@pytest.mark.parametrize("premise", [NO_GRAPH, OPEN], ids=["no graph", "several classes"])
def test_a_premise_without_a_class_has_a_reward_all_the_same(premise):
    judge = corr2cause_reward(process=True)
    row = {"premise": premise, "hypothesis": "A directly causes B.", "label": 0}
    for text, outcome in (("Pair A B -\nAnswer: No", RIGHT_REWARD), ("Answer: Yes", WRONG_REWARD)):
        judged = judge(text, row)
        assert judged["outcome"] == outcome and judged["process"] == (0.0, [])
