"""Which model a run keeps."""

import math

import pytest

from training.validation import is_best


@pytest.mark.parametrize(
    ("name", "scores", "kept"),
    [
        ("loss", [0.5, 0.6, 0.4, 0.4], [0, 2, 3]),
        ("f1", [0.0, 0.3, 0.2, 0.3], [0, 1, 3]),
        ("reward", [-1.0, -2.0], [0]),
        ("loss", [math.nan, 0.9, math.nan, 0.8], [0, 1, 3]),  # as an overflow in half precision gives
        ("f1", [0.3, math.nan], [0]),
    ],
)
def test_the_best_score_is_kept_and_of_equal_ones_the_last(name, scores, kept):
    best, found = {"step": 0}, []
    for step, score in enumerate(scores):
        if is_best({name: score, "accuracy": 0.5}, best):
            best, found = {name: score, "step": step}, [*found, step]
    assert found == kept
