"""What is logged of a GRPO step: means over the completions of all ranks, and the terms of the loss.

Dimensions: N prompts of a rank, G samples a prompt, B sequences of a micro-batch, T completion length.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter

from policy.prefix_sharing import pack
from policy.sampling import Completion
from policy.self_check import TOLERANCE
from runtime.processes import reduce
from training.rewards import Judgement
from training.rollouts import MicroBatch, Prompt
from training.setup import Setup

TERMS = ("policy_loss", "kl", "clip_fraction", "entropy", "weight_sum", "mask_error")  # of every pass
TERMS_OF_FIRST_PASS = ("first_kl", "gap_square", "gap_tokens")


class LossCounts(NamedTuple):
    """What the loss of an optimizer step is normalised by, over all ranks: the completions and their tokens."""

    sequences: float
    tokens: float

    @classmethod
    def over_ranks(cls, accelerator: Accelerator, completions: Sequence[Sequence[Completion]]) -> "LossCounts":
        """The counts of the step of which this rank has `completions` (N, G)."""
        lengths = [len(completion.tokens) for completion in chain.from_iterable(completions)]
        return cls(**reduce(accelerator, {"sequences": len(lengths), "tokens": sum(lengths)}))


def std_over_ranks(accelerator: Accelerator, rewards: torch.Tensor) -> float:
    """Population standard deviation of the rewards of all ranks, in any shape."""
    rewards = rewards.double()
    sums = {"n": rewards.numel(), "reward": float(rewards.sum()), "square": float(rewards.square().sum())}
    sums = reduce(accelerator, sums)
    return max(0.0, sums["square"] / sums["n"] - (sums["reward"] / sums["n"]) ** 2) ** 0.5


class Rollout(NamedTuple):
    """A rank's part of a step: the N prompts, and (N, G) what was sampled, what it is worth, what is trained on.

    `advantages` are (N, G, T), or (N, G, 1) where all tokens of a completion have one.
    """

    prompts: list[Prompt]
    completions: list[list[Completion]]
    judgements: list[list[Judgement]]
    rewards: torch.Tensor
    advantages: torch.Tensor
    trained: torch.Tensor


@dataclass
class UpdateTerms:
    """Sums over the micro-batches of this rank's update, for the log alone."""

    num_iterations: int
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*TERMS, *TERMS_OF_FIRST_PASS), 0.0))
    ratio_deviation: float = 0.0  # the largest of the first pass

    def add(self, batch: MicroBatch, terms: dict[str, torch.Tensor], logps: torch.Tensor, first: bool) -> None:
        """Take in the terms of a pass over a micro-batch; the `first` is that of the policy that sampled."""
        if batch.scale == 0:
            return
        found = {name: float(terms[name]) / self.num_iterations for name in TERMS}
        if first:
            self.ratio_deviation = max(self.ratio_deviation, float(terms["ratio_deviation"]))
            gap = (logps.cpu() - batch.sampled_logps)[batch.mask]
            found |= {"first_kl": float(terms["kl"]), "gap_square": float(gap.square().sum()), "gap_tokens": len(gap)}
        for name, value in found.items():
            self.sums[name] += value


def step_metrics(
    s: Setup, rollout: Rollout, terms: UpdateTerms, counts: LossCounts, loss_type: str, is_reference: bool
) -> dict[str, float]:
    """The step's metrics by name, the same on every rank; `is_reference`: it was sampled by the reference itself."""
    accelerator, tolerance = s.accelerator, TOLERANCE[s.dtype]
    sums = reduce(accelerator, rollout_sums(rollout, s.end_ids) | terms.sums)
    first_ratio_deviation = reduce(accelerator, {"ratio": terms.ratio_deviation}, "max")["ratio"]
    values = rollout_means(sums)
    gap = (sums["gap_square"] / max(1.0, sums["gap_tokens"])) ** 0.5
    expected_weight = weight_sum(sums, counts, loss_type, s.sampler.max_new_tokens)
    signal = sums["abs_advantage"] / counts.sequences
    # Of a token, whatever its weight in the loss: dr_grpo's weights do not add up to 1.
    first_kl, kl, clipped = (sums[name] / (expected_weight or 1.0) for name in ("first_kl", "kl", "clip_fraction"))
    if is_reference:
        values["health/reference_kl"] = first_kl
        values["health/reference_kl_ratio"] = first_kl / max(1e-5, tolerance**2)
    return values | {
        "policy/policy_loss": sums["policy_loss"],
        "policy/kl": kl,
        "policy/clip_fraction": clipped,
        "policy/entropy": sums["entropy"] / max(1.0, sums["trained_tokens"]),
        "policy/mean_abs_advantage": signal,
        "health/signal": signal,
        "health/loss_finite": float(math.isfinite(sums["policy_loss"] + sums["kl"])),
        "health/mask_error": sums["mask_error"],
        "health/weight_sum_error": sums["weight_sum"] / expected_weight - 1 if expected_weight else 0.0,
        "health/sampling_logp_gap": gap,
        "health/sampling_gap_ratio": gap / tolerance,
        "health/first_ratio_deviation": first_ratio_deviation,
    }


def rollout_sums(rollout: Rollout, end_ids: set[int]) -> dict[str, float]:
    """Sums over a rank's rollout, to be added over ranks; of each value by name its sum and how many have it."""
    rewards = rollout.rewards.double()
    completions = list(chain.from_iterable(rollout.completions))
    judgements = list(chain.from_iterable(rollout.judgements))
    lengths = lengths_of(rollout.completions)
    advantages = mean_over_tokens(rollout.advantages.double().abs(), lengths)  # (N, G)
    dead = (rollout.advantages == 0).flatten(1).all(dim=1)
    right = rewards.mean(dim=1) > 0
    sums = {
        "sequences": len(completions),
        "groups": len(rewards),
        "tokens": lengths.sum(),
        "distinct_tokens": sum(len(pack([[completion.tokens for completion in row]])) for row in rollout.completions),
        "reward": rewards.sum(),
        "group_std": rewards.std(dim=1, correction=0).sum(),
        "dead_right": (dead & right).sum(),
        "dead_wrong": (dead & ~right).sum(),
        "truncated": sum(not completion.stopped and completion.finite for completion in completions),
        "not_finite": sum(not completion.finite for completion in completions),
        "past_end": sum(not end_ids.isdisjoint(completion.tokens[:-1]) for completion in completions),
        "abs_advantage": advantages.sum(),
        "trained_sequences": rollout.trained.sum(),
        "trained_tokens": lengths[rollout.trained].sum(),
    }
    for judgement in judgements:
        named = {f"reward/{name}": value for name, value in judgement.components.items()} | judgement.metrics
        for name, value in named.items():
            known = not math.isnan(value)
            sums[f"sum of {name}"] = sums.get(f"sum of {name}", 0.0) + (value if known else 0.0)
            sums[f"number of {name}"] = sums.get(f"number of {name}", 0) + known
    return {name: float(value) for name, value in sums.items()}


def lengths_of(completions: Sequence[Sequence[Completion]]) -> torch.Tensor:
    """Tokens (N, G) of each completion."""
    return torch.tensor([[len(completion.tokens) for completion in row] for row in completions])


def mean_over_tokens(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Means (N, G) of values (N, G, T), 0 beyond completions of `lengths` (N, G) tokens, or of values (N, G, 1)."""
    return values.sum(dim=-1) / (lengths if values.shape[-1] > 1 else 1)


def rollout_means(s: dict[str, float]) -> dict[str, float]:
    """Named metrics from the sums of `rollout_sums` over all ranks; NaN for one that no completion has."""
    named = [name.removeprefix("sum of ") for name in s if name.startswith("sum of ")]
    numbers = {name: s[f"number of {name}"] for name in named}
    return {
        "reward/mean": s["reward"] / s["sequences"],
        **{name: s[f"sum of {name}"] / numbers[name] if numbers[name] else math.nan for name in named},
        "reward/group_std": s["group_std"] / s["groups"],
        "reward/frac_zero_std": (s["dead_right"] + s["dead_wrong"]) / s["groups"],
        "reward/frac_all_right": s["dead_right"] / s["groups"],
        "reward/frac_all_wrong": s["dead_wrong"] / s["groups"],
        "rollout/completion_length": s["tokens"] / s["sequences"],
        "rollout/distinct_share": s["distinct_tokens"] / s["tokens"],
        "rollout/truncated_rate": s["truncated"] / s["sequences"],
        "health/not_finite_rate": s["not_finite"] / s["sequences"],
        "health/ran_past_end": s["past_end"] / s["sequences"],
    }


def weight_sum(sums: dict[str, float], counts: LossCounts, loss_type: str, max_new_tokens: int) -> float:
    """What the token weights of a step add up to, from its counts alone."""
    if loss_type == "grpo":
        return sums["trained_sequences"] / counts.sequences
    return sums["trained_tokens"] / (counts.tokens if loss_type == "dapo" else counts.sequences * max_new_tokens)


# --- completions, to be read

MARKUP = re.compile(r"[^\w\s.,:;?'()/=+%-]|_")  # what Markdown or HTML may take for markup


def completion_table(rollout: Rollout, count: int) -> str:
    """A Markdown table of the first `count` completions, prompt by prompt, with what each is worth."""
    places = [(n, g) for n, row in enumerate(rollout.completions) for g in range(len(row))][:count]
    components = list(rollout.judgements[0][0].components) if places else []
    advantages = mean_over_tokens(rollout.advantages, lengths_of(rollout.completions))
    names = ["prompt", "claim", "target", *components, "reward", "advantage", "completion"]
    lines = [names, ["---"] * len(names)]
    for n, g in places:
        row, judgement = rollout.prompts[n].row, rollout.judgements[n][g]
        values = [*judgement.components.values(), judgement.reward, float(advantages[n, g])]
        question = row.get("hypothesis", row["prompt"][-80:])
        texts = [question, row["response"].strip().splitlines()[-1], rollout.completions[n][g].text]
        claim, target, text = map(as_cell, texts)
        lines.append([str(rollout.prompts[n].index), claim, target, *(f"{value:+.2f}" for value in values), text])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_cell(text: str) -> str:
    """Any text as a cell of a Markdown table that shows it as it is: markup as characters, lines by line breaks."""
    return "<br>".join(MARKUP.sub(lambda found: f"&#{ord(found[0])};", line) for line in text.splitlines())


def write_completions(writer: SummaryWriter | None, rollout: Rollout, count: int, step: int) -> None:
    """Show the first `count` completions of a step on TensorBoard's text page."""
    if writer is not None:
        writer.add_text("rollout/completions", completion_table(rollout, count), step)
