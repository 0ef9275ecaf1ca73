"""The seam to the task: what a completion is worth is asked of one function, and nothing else here knows.

    python train_grpo.py ... --reward_function my_reward.py:copied

    def copied(completion: str, row: dict) -> dict[str, float]:
        return {"copied": float(completion.strip() == row["word"])}

The function gets a completion's text and the row of its prompt, with all columns of the dataset, and returns a number,
or numbers by name. A name without a slash is a component of the reward, which is their sum; it is logged as
`reward/<name>`. A name with a slash (`reward/accuracy`) is a metric: its mean is logged, NaN left out, and it rewards
nothing. A component may be a pair, its value and the spans of its steps: (first character, one past the last, what the
step adds to the value).

Dimensions: N prompts of a rank, G samples a prompt, T tokens of the longest completion.
"""

import importlib.util
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch

from policy.sampling import Completion, character_ends
from runtime.settings import check
from training.rollouts import Prompt

Span = tuple[int, int, float]
Row = Mapping[str, Any]
RewardFunction = Callable[[str, Row], float | Mapping[str, Any]]


@dataclass(frozen=True)
class Judgement:
    """What a completion is worth: `reward`, the weighted sum of `components`, and what is only logged."""

    reward: float
    components: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)
    spans: dict[str, list[Span]] = field(default_factory=dict)  # of the components that have some


class Part(NamedTuple):
    """A part of the reward that is normalised by itself: `weight` times `values`, where `given` says there are any.

    Both are (N, G, T), at the tokens that a value is of; or (N, G, 1) where a completion has one as a whole.
    """

    weight: float
    values: torch.Tensor
    given: torch.Tensor


def whole_parts(judgements: list[list[Judgement]], weights: Mapping[str, float], apart: bool) -> list[Part]:
    """Completions (N, G) judged as wholes: their rewards, or `apart` each component by itself."""
    scored = [(1.0, [[judged.reward for judged in row] for row in judgements])]
    if apart:
        scored = [
            (weights.get(name, 1.0), [[judged.components[name] for judged in row] for row in judgements])
            for name in judgements[0][0].components
        ]
    values = [(weight, torch.tensor(found)[..., None]) for weight, found in scored]
    return [Part(weight, found, torch.ones_like(found, dtype=torch.bool)) for weight, found in values]


def step_parts(
    judgements: list[list[Judgement]],
    completions: list[list[Completion]],
    weights: Mapping[str, float],
    apart: bool,
    tokenizer,
) -> list[Part]:
    """Completions (N, G) judged step by step: each step's reward is at its last token.

    A component without spans is a step that ends with the completion; so is, with value 0, one whose completion has no
    step: what says nothing must not pass for average. Not `apart`, steps of all components are one part.
    """
    longest = max(len(completion.tokens) for completion in chain.from_iterable(completions))
    names = list(judgements[0][0].components)
    values = torch.zeros(len(names), len(completions), len(completions[0]), longest)
    given = torch.zeros(values.shape, dtype=torch.bool)
    for n, row in enumerate(completions):
        for g, completion in enumerate(row):
            judged, last = judgements[n][g], len(completion.tokens) - 1
            ends = character_ends(tokenizer, completion.tokens) if judged.spans else []
            for c, name in enumerate(names):
                whole = [(last, judged.components[name])]
                steps = [(min(bisect_right(ends, e - 1), last), value) for _, e, value in judged.spans.get(name, [])]
                for t, value in steps or ([(last, 0.0)] if name in judged.spans else whole):
                    values[c, n, g, t] += value
                    given[c, n, g, t] = True
    factors = [weights.get(name, 1.0) for name in names]
    if apart:
        return [Part(*part) for part in zip(factors, values, given, strict=True)]
    scales = torch.tensor(factors)
    weighted = values * scales[:, None, None, None]
    return [Part(1.0, weighted.sum(dim=0), given[scales != 0].any(dim=0))]  # a component of weight 0 has no steps


class Reward:
    """A reward function with the weights of its components, 1 for those that have none.

    A call raises ValueError, naming the function, for what is no number and for names that change between calls: their
    means would be of different things.
    """

    def __init__(self, function: RewardFunction, weights: Mapping[str, float] | None = None, name: str = "the reward"):
        self.function, self.weights, self.name = function, dict(weights or {}), name
        self.names: list[str] | None = None  # of the first call

    def __call__(self, completion: str, row: Row) -> Judgement:
        found = self.function(completion, row)
        found = dict(found) if isinstance(found, Mapping) else {"score": found}
        self.names = list(found) if self.names is None else self.names
        same = list(found) == self.names
        check(same, f"{self.name}: returned {', '.join(found)} after {', '.join(self.names)}: return the same names")
        components, metrics, spans = {}, {}, {}
        for name, value in found.items():
            if isinstance(value, tuple):
                value, spans[name] = value[0], list(value[1])
            is_metric = "/" in name
            is_number = isinstance(value, Real) and (is_metric or math.isfinite(value))
            check(is_number, f"{self.name}: {name} is {value!r}, not a number")
            (metrics if is_metric else components)[name] = float(value)
        check(bool(components), f"{self.name}: returned metrics alone; a name without a slash is part of the reward")
        reward = sum(self.weights.get(name, 1.0) * value for name, value in components.items())
        return Judgement(reward, components, metrics, spans)

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> list[list[Judgement]]:
        """What each completion (N, G) is worth to the row of its prompt."""
        pairs = zip(prompts, completions, strict=True)
        return [[self(completion.text, prompt.row) for completion in samples] for prompt, samples in pairs]


def load_function(place: str) -> RewardFunction:
    """The function that `FILE.py:NAME` names. Raises ValueError, naming the setting, if there is none."""
    file, colon, name = place.rpartition(":")
    check(bool(colon) and file.endswith(".py"), f"reward_function {place}: expected FILE.py:NAME")
    check(Path(file).is_file(), f"reward_function {place}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"reward_of_{Path(file).stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"reward_function {place}: {file} cannot be imported ({why})") from error
    function = getattr(module, name, None)
    names = ", ".join(sorted(n for n, f in vars(module).items() if callable(f) and not n.startswith("_"))) or "none"
    check(callable(function), f"reward_function {place}: {file} has no function {name}; its own: {names}")
    return function


def load_reward(reward_function: str | None, outcome_weight: float, process_weight: float, class_weights) -> Reward:
    """The user's own reward, or that of Corr2Cause with its weights."""
    if reward_function is not None:
        return Reward(load_function(reward_function), name=f"reward_function {reward_function}")
    from causal.rewards import corr2cause_reward  # the one place where training meets the task

    weights = {"outcome": outcome_weight, "process": process_weight}
    return Reward(corr2cause_reward(process_weight > 0, class_weights), weights)
