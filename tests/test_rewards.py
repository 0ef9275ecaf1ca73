"""Reading answers out of text, and the outcome reward, with the ways that a policy might try to cheat it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards import NO_ANSWER_REWARD, RIGHT_REWARD, WRONG_REWARD, extract_answer, outcome_reward

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
