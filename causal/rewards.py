"""Read a Yes/No answer out of generated text, and score the text: the rewards of GRPO.

    extract_answer("... no directed path.\\n\\n**Answer: No**")   -> False
    outcome_reward("Answer: Yes", label=1)                       -> 1.0   the answer, in [-1, 1]
    process_reward(trace, premise, claim)                        -> 1.0   the reasoning before it, in [-1, 1]
    format_reward("Answer: Yes", reasoning=False)                -> 1.0   the form, 0 or 1
    length_reward(150, free_tokens=100, max_new_tokens=200)      -> -0.5  the length, in [-1, 0]

Each looks at one thing: an exact trace that ends in the wrong answer has a full process reward. No text earns more,
by any of them, than the exact trace, and tests/test_rewards.py tries.

Training and evaluation read answers with the same function; two readings would make the reward and the score disagree.
A text has at most one answer, so no text is right under both labels and hedging never pays.

What counts as its answer, the first that is found:
1. the last answer line: "Answer: No", "the final answer is **Yes**", "\\boxed{Yes}", "<answer>no</answer>";
2. the last conclusion line: "Therefore: No";
3. the final line, where it begins with a clear yes or no, or its final sentence begins or ends with one;
4. the opening words of the text: "No. The premise ...".
If what is found holds both a yes and a no, the text has no answer. Questions ("... ?") and instructions ("Answer Yes
or No.") are not answers, and the "no" of "no edge" is not a verdict.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from causal.answers import _gives_answer, extract_answer
from causal.graphs import Claim, Premise
from causal.reasoning import is_right, read_trace, required_steps, subject

if TYPE_CHECKING:
    from training.rollouts import Sample

COMPONENTS = ("outcome", "process", "format", "length")
RIGHT_REWARD = 1.0
WRONG_REWARD = -1.0
NO_ANSWER_REWARD = -0.5
NOISE_CHARACTERS = 40  # about two compact steps; without it an unreadable sentence could go on for the price of one


# The line that a target ends in; case, markdown and a final full stop are let pass.
_FORM = re.compile(r"[\s>*_`#-]*answer[\s*_`]*:[\s*_`]*(?:yes|no)[\s*_`.!]*", re.IGNORECASE)


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

    R counts the steps that `reasoning.required_steps` names, the answer left out: which pairs are cut or kept, the
    triples, the edges, what bears on the claim. A sentence is judged by the first of these that applies:

    1. it follows an answer: costs (reasons that come after it earn nothing);
    2. it is an answer, marked as `extract_answer` reads it or a bare yes or no: neither pays nor costs;
    3. it is unreadable: costs;
    4. an earlier sentence, right or wrong, was on its subject (`reasoning.subject`: the pair, the triple...): costs;
    5. it is false: costs;
    6. it settles a required step: pays 1;
    7. it is right but not required (where no triple or edge is, a Meek rule, another pair's link): neither pays nor
       costs.

    The cost is 1; of an unreadable sentence 1 for every full NOISE_CHARACTERS of it, and at least 1.

    So only the first word on a subject can pay: naming k alternatives earns at most 2 - k, never more than silence
    from k = 2 on. What is free (7) is free once a subject, hence finite. The exact trace of either style earns exactly
    1, in any order of its steps; an empty text 0; unreadable, wrong or repeated sentences without end -1.
    Raises Corr2CauseError if no graph satisfies the premise: nothing is right or wrong there.
    """
    required = required_steps(premise, claim)
    score, spoken_of, answered = 0, set(), False
    for sentence, step in read_trace(text, premise.variables):
        noise = 1 if step else max(1, len(sentence) // NOISE_CHARACTERS)
        if answered:
            score -= noise
        elif step.kind == "answer" if step else _gives_answer(sentence):
            answered = True
        elif step is None or (what := subject(step)) in spoken_of:
            score -= noise
        else:
            spoken_of.add(what)
            if required.get(what) != step and not is_right(step, premise, claim):
                score -= 1
            elif what in required:
                score += 1
    return max(-1.0, score / (len(required) - 1))  # without the answer


def format_reward(text: str, reasoning: bool) -> float:
    """1.0 for the form that the target asks for, 0.0 for any other; what is said does not matter.

    The form is a line "Answer: Yes" or "Answer: No" (case, markdown and a final full stop are let pass): alone, or
    with `reasoning` the last line, after at least one line of words and none that gives an answer.
    """
    written = text.strip().splitlines()
    if not written or not _FORM.fullmatch(written[-1]):
        return 0.0
    if not reasoning:
        return float(len(written) == 1)
    reasons = "\n".join(written[:-1])
    return float(bool(re.search(r"\w", reasons)) and not _gives_answer(reasons))


def length_reward(num_tokens: int, free_tokens: int, max_new_tokens: int) -> float:
    """0 up to `free_tokens`, then falling on a line to -1 at `max_new_tokens`, and -1 beyond.

    The soft overlong punishment of DAPO (Yu et al., 2025, arXiv 2503.14476, equation 13), with L_max = max_new_tokens
    and L_cache = max_new_tokens - free_tokens. Raises ValueError unless 0 <= free_tokens < max_new_tokens (equality
    leaves the line no room) and num_tokens >= 0.
    """
    if not 0 <= free_tokens < max_new_tokens:
        raise ValueError(f"free_tokens must be in 0..{max_new_tokens - 1}, below max_new_tokens, not {free_tokens}")
    if num_tokens < 0:
        raise ValueError(f"num_tokens must be >= 0, not {num_tokens}")
    return max(-1.0, min(0.0, (free_tokens - num_tokens) / (max_new_tokens - free_tokens)))


# --- the reward of a run, a weighted sum of those; `config` is train_grpo.py's


def reward_weights(config: Any) -> dict[str, float]:
    """The components of the reward that have a weight, and what it is."""
    weights = {name: getattr(config, f"{name}_weight") for name in COMPONENTS}
    return {name: weight for name, weight in weights.items() if weight > 0}


def largest_reward(config: Any) -> float:
    weights = reward_weights(config)
    return sum(weight * (max(config.class_weights) if name == "outcome" else 1) for name, weight in weights.items())


def give_rewards(samples: Iterable["Sample"], reasoning: bool, config: Any) -> None:
    """Each component of the reward that has a weight, and their weighted sum; `reasoning`: the target has some."""
    weights = reward_weights(config)
    for s in samples:
        s.rewards = {name: component(name, s, reasoning, config) for name in weights}
        s.reward = sum(weight * s.rewards[name] for name, weight in weights.items())


def component(name: str, sample: "Sample", reasoning: bool, config: Any) -> float:
    """One component of a completion's reward."""
    prompt, text = sample.prompt, sample.text
    match name:
        case "outcome":
            return outcome_reward(text, prompt.label, config.class_weights)
        case "process":
            return process_reward(text, prompt.premise, prompt.claim)
        case "format":
            return format_reward(text, reasoning)
        case "length":
            return length_reward(len(sample.completion.tokens), config.free_tokens, config.max_new_tokens)
    raise AssertionError(f"no component {name} of the reward")


# --- reading an answer
