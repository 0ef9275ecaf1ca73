"""What is said of the samples of a row: chances to be right, and whether the reasoning is exact."""

from itertools import combinations

import pytest

from causal.reasoning import trace
from causal.wording import parse_input
from scoring.predictions import Sample, is_exact, sample_means

QUESTION = (
    "Premise: Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B.\n"
    "Hypothesis: A directly causes C."
)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("right", range(7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(right, label):
    answers = ["Answer: Yes" if label else "Answer: No"] * right + ["Answer: No" if label else "Answer: Yes", "hm"] * 3
    samples = [Sample(text) for text in answers[:6]]
    means = sample_means(label, samples)
    assert list(means) == ["pass@1", "pass@2", "pass@4"]
    for name, value in means.items():
        draws = list(combinations(range(6), int(name.removeprefix("pass@"))))
        assert value == pytest.approx(sum(any(k < right for k in drawn) for drawn in draws) / len(draws))


def test_a_single_answer_has_no_chances():
    assert sample_means(1, [Sample("Answer: Yes")]) == {}


def test_exact_reasoning_has_every_step_and_nothing_else():
    text = trace(*parse_input(QUESTION))
    assert is_exact(text, QUESTION)
    lines = text.splitlines()
    for k in range(len(lines)):
        assert not is_exact("\n".join(lines[:k] + lines[k + 1 :]), QUESTION)
    assert not is_exact(f"Well.\n{text}", QUESTION) and not is_exact("Answer: Yes", QUESTION)
    # B is cut off, and no premise of a graph would leave out that it stays so given the third.
    impossible = QUESTION.replace("B correlates with C. However,", "However, B is independent of C.")
    assert not is_exact(text, impossible)
