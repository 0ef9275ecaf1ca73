"""What a completion is worth: its answer, and the reasoning before it.

    outcome_reward("Answer: Yes", label=1)    -> 1.0   the answer, in [-1, 1]
    process_reward(trace, premise, claim)     -> 1.0   the reasoning, in [-1, 1]
    corr2cause_reward(process=True)           -> the function (completion, row) that train_grpo.py asks
    credit(completion, row)                   -> 1.0   one number in [0, 1], for those who want that

Each of the first two looks at one thing: an exact trace that ends in the wrong answer has a full process reward. No
text earns more, by either, than the exact trace, and tests/causal/test_rewards.py tries.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from causal.answers import extract_answer, gives_answer
from causal.claims import Claim
from causal.classes import NoClassError, Premise
from causal.reasoning import is_right, read_step, required_steps, sentence_spans, subject
from causal.wording import parse_claim

RIGHT_REWARD = 1.0
WRONG_REWARD = -1.0
NO_ANSWER_REWARD = -0.5
PARTIAL_CREDIT = 0.5
NOISE_CHARACTERS = 40  # about two compact steps; without it an unreadable sentence could go on for the price of one

Span = tuple[int, int, float]  # first character of a step, one past its last, and what the step adds to the reward


def outcome_reward(text: str, label: int, class_weights: Sequence[float] | None = None) -> float:
    """+1 for the right answer, -1 for the wrong one, -0.5 for none.

    `class_weights=(w_no, w_yes)` multiplies the reward of an answer to a row of that label. Where one class is rare the
    plain reward teaches "always No"; weights inverse to the class shares make any constant answer worth 0 on average.
    Raises ValueError for a label other than 0 and 1, and for weights that are not two numbers >= 0.
    """
    if label not in (0, 1):
        raise ValueError(f"label must be 0 or 1, not {label!r}: check the dataset's `label` column")
    if class_weights is not None and (len(class_weights) != 2 or not all(0 <= w < float("inf") for w in class_weights)):
        raise ValueError(f"class_weights must be two numbers >= 0, (w_no, w_yes), not {class_weights!r}")
    answer = extract_answer(text)
    if answer is None:
        return NO_ANSWER_REWARD
    weight = 1.0 if class_weights is None else class_weights[int(label)]
    return weight * (RIGHT_REWARD if answer == bool(label) else WRONG_REWARD)


def process_reward(text: str, premise: Premise, claim: Claim) -> float:
    """(settled - cost) / R, at least -1: how much of the exact reasoning the text gives before its answer.

    R counts the steps of the exact trace (`reasoning.required_steps`), the answer left out. A sentence is judged by the
    first of these that applies:

    1. it follows an answer: costs (reasons that come after it earn nothing);
    2. it is an answer, marked as `extract_answer` reads it or a bare yes or no: neither pays nor costs;
    3. it is unreadable: costs;
    4. an earlier sentence, right or wrong, was on its subject (`reasoning.subject`: a pair in a round, say): costs;
    5. it is not the step that belongs there: costs;
    6. it is: pays 1.

    The cost is 1; of an unreadable sentence 1 for every full NOISE_CHARACTERS of it, and at least 1.

    So only the first word on a subject can pay: naming k alternatives earns at most 2 - k, never more than silence
    from k = 2 on. The exact trace of either style earns exactly 1, in any order of its steps; an empty text 0;
    unreadable, wrong or repeated sentences without end -1.
    Raises Corr2CauseError if the premise has no class of graphs: nothing is right or wrong there.
    """
    return process_of(step_points(text, premise, claim), premise, claim)[0]


def process_of(points: Iterator[tuple[int, int, int]], premise: Premise, claim: Claim) -> tuple[float, list[Span]]:
    """The process reward, and what each sentence adds to it: their sum, if that is at least -1."""
    required = len(required_steps(premise, claim)) - 1  # without the answer
    points = list(points)
    reward = max(-1.0, sum(point for _, _, point in points) / required)
    return reward, [(start, end, point / required) for start, end, point in points]


def process_of_row(completion: str, row: Mapping[str, Any]) -> tuple[float, list[Span]]:
    """As `process_of`, of the row's `premise` and `hypothesis`; 0 and nothing where the premise has no class."""
    premise, claim = parse_claim(row["premise"], row["hypothesis"])  # which reads a premise once
    try:
        return process_of(step_points(completion, premise, claim), premise, claim)
    except NoClassError:  # nothing is right or wrong there, so nothing is better than anything
        return 0.0, []


def step_points(text: str, premise: Premise, claim: Claim) -> Iterator[tuple[int, int, int]]:
    """(start, end, points) of every sentence: 1, 0 or a cost, as `process_reward` has it. Raises as it does."""
    spoken_of, answered = set(), False
    for start, end in sentence_spans(text):
        sentence = text[start:end]
        step = read_step(sentence, premise.variables)
        noise, points = 1 if step else max(1, len(sentence) // NOISE_CHARACTERS), 0
        if answered:
            points = -noise
        elif step.kind == "answer" if step else gives_answer(sentence):
            answered = True
        elif step is None or (what := subject(step)) in spoken_of:
            points = -noise
        else:
            spoken_of.add(what)
            points = 1 if is_right(step, premise, claim) else -1
        yield start, end, points


# --- the reward of a run


def corr2cause_reward(
    process: bool = False, class_weights: Sequence[float] | None = None
) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
    """The function of a completion and its row that scores it, as training/rewards.py asks for it.

    Components: `outcome`, and with `process` that of the reasoning, with the spans of its steps. What has a slash in
    its name is a metric: of the answers, and of those to rows of one label (NaN for the others).
    """

    def judge(completion: str, row: Mapping[str, Any]) -> dict[str, Any]:
        label, answer = int(row["label"]), extract_answer(completion)
        right = float(answer is bool(label))
        judgement: dict[str, Any] = {"outcome": outcome_reward(completion, label, class_weights)}
        if process:
            judgement["process"] = process_of_row(completion, row)
        return judgement | {
            "reward/accuracy": right,
            "reward/accuracy_of_yes": right if label else math.nan,
            "reward/accuracy_of_no": math.nan if label else right,
            "rollout/unanswered_rate": float(answer is None),
            "rollout/predicted_yes_rate": float(answer is True),
            "rollout/label_yes_rate": float(label),
        }

    return judge


# --- one number


def credit(completion: str, row: Mapping[str, Any]) -> float:
    """In [0, 1]: 1 for the right answer, however it is found; else PARTIAL_CREDIT for an exact trace, less for a part.

    Partial credit is that share of the process reward, if it is positive: the answer is worth more than all reasoning.
    `row` has `premise`, `hypothesis` and `label`.
    """
    if extract_answer(completion) is bool(row["label"]):
        return 1.0
    return PARTIAL_CREDIT * max(0.0, process_of_row(completion, row)[0])
