"""What a GRPO step learns from: prompts, the completions that the policy gives to them, and what is logged of those.

A rollout is a list of groups; a group is a few prompts of one premise, which share its tokens; for each prompt there is
the list of its samples: `rollout[group][prompt][sample]`.

Dimensions: N prompts, G samples a prompt.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from causal.answers import extract_answer
from causal.graphs import Claim, Premise
from causal.wording import parse_hypothesis, parse_premise
from dataset.batches import epoch_batches
from dataset.chat import encode
from policy.prefix_sharing import Tokens, joined, pack
from policy.sampling import Completion
from runtime.processes import reduce

if TYPE_CHECKING:
    from datasets import Dataset

MARKUP = re.compile(r"[^\w\s.,:;?'()/=+%-]|_")  # what Markdown or HTML may take for markup


@dataclass(frozen=True)
class Prompt:
    """A row of the dataset, as the policy sees it and as its completions are judged."""

    row: int
    tokens: Tokens
    label: int
    premise: Premise
    claim: Claim
    hypothesis: str
    answers: tuple[Tokens, Tokens] | None = None  # the responses No and Yes, where the target is one of them


@dataclass
class Sample:
    """One completion of a prompt. `mass`: how many completions it stands for; a sampled one is one."""

    prompt: Prompt
    completion: Completion
    text: str
    mass: float = 1.0
    rewards: dict[str, float] = field(default_factory=dict)  # by component
    reward: float = 0.0
    advantage: float = 0.0


Rollout = list[list[list[Sample]]]


def make_prompts(
    tokenizer, rows: "Dataset | dict", labels: Sequence[int], answers: Sequence[tuple[str, str]] | None = None
) -> list[Prompt]:
    """The rows of a dataset, or of `relabel_rows`, as prompts; `answers` are the texts (No, Yes) of every row."""
    parse, tokens = cache(parse_premise), cache(lambda text: encode(tokenizer, text))
    prompts = []
    for k, (text, premise, hypothesis) in enumerate(
        zip(rows["prompt"], rows["premise"], rows["hypothesis"], strict=True)
    ):
        premise = parse(premise)
        both = None if answers is None else tuple(tokens(answer) for answer in answers[k])
        claim = parse_hypothesis(hypothesis, premise.variables)
        prompts.append(Prompt(k, encode(tokenizer, text), labels[k], premise, claim, hypothesis, both))
    return prompts


class PromptQueue:
    """The prompts of a run in their order: a function of (seed, epoch) and of how many were taken."""

    def __init__(
        self,
        premise_ids: Sequence[str],
        seed: int,
        claims_per_prefix: int,
        prompts_of_epoch: Callable[[int], list[Prompt]],
    ):
        self.premise_ids, self.seed, self.claims_per_prefix = premise_ids, seed, claims_per_prefix
        self.prompts_of_epoch = prompts_of_epoch
        self.epoch = -1
        self.taken = 0  # of this epoch
        self.groups: list[list[int]] = []
        self.prompts: list[Prompt] = []

    def state(self) -> dict[str, int]:
        """The position, for `restore`."""
        return {"epoch": self.epoch, "taken": self.taken}

    def restore(self, state: dict[str, int]) -> None:
        """Go on where a queue has said `state`; nothing is the start."""
        if state.get("epoch", -1) >= 0:
            self.epoch = state["epoch"] - 1
            self._start_epoch()
            self._take_rows(state["taken"])

    def take(self, count: int) -> list[list[Prompt]]:
        """The next `count` prompts in groups of one premise; what an epoch has left over is dropped."""
        if sum(map(len, self.groups)) < count:
            self._start_epoch()
        return [[self.prompts[row] for row in group] for group in self._take_rows(count)]

    def _start_epoch(self) -> None:
        self.epoch, self.taken = self.epoch + 1, 0
        self.prompts = self.prompts_of_epoch(self.epoch)
        size = len(self.premise_ids)
        self.groups = epoch_batches(self.premise_ids, self.seed, self.epoch, self.claims_per_prefix, size)[0]

    def _take_rows(self, count: int) -> list[list[int]]:
        self.taken += count
        rows: list[list[int]] = []
        while count:
            group = self.groups.pop(0)
            if len(group) > count:
                self.groups.insert(0, group[count:])
            rows.append(group[:count])
            count -= len(rows[-1])
        return rows


def prompts_of(rollout: Rollout) -> list[list[Sample]]:
    """The samples of every prompt."""
    return [samples for group in rollout for samples in group]


def samples_of(rollout: Rollout) -> list[Sample]:
    return [sample for samples in prompts_of(rollout) for sample in samples]


def table(rollout: Rollout, value: str) -> torch.Tensor:
    """An attribute of every sample, (N, G)."""
    rows = [[getattr(sample, value) for sample in samples] for samples in prompts_of(rollout)]
    return torch.tensor(rows, dtype=torch.float32)


def tokens_of(rollout: Rollout) -> tuple[list[list[Tokens]], list[list[Tokens]]]:
    """Prompts and completions of all samples, group by group."""
    groups = [[sample for samples in group for sample in samples] for group in rollout]
    prompts = [[sample.prompt.tokens for sample in group] for group in groups]
    return prompts, [[sample.completion.tokens for sample in group] for group in groups]


def sequences(rollout: Rollout) -> list[list[Tokens]]:
    """Prompt and completion of every sample in one, group by group."""
    return joined(*tokens_of(rollout))


def tokens_saved(rollout: Rollout) -> float:
    """The share of the tokens that need not be computed since prefixes are shared."""
    groups = sequences(rollout)
    alone = sum(len(sequence) for group in groups for sequence in group)
    return 1 - len(pack(groups)) / alone if alone else 0.0


def select(rollout: Rollout, keep: Callable[[Sample], bool]) -> Rollout:
    """The samples to keep, without the prompts and groups that keep none."""
    kept = [[[sample for sample in samples if keep(sample)] for samples in group] for group in rollout]
    return [[samples for samples in group if samples] for group in kept if any(group)]


def split_dead(rollout: Rollout) -> tuple[Rollout, int]:
    """The prompts whose rewards differ, and the number of those whose rewards agree."""
    live = [[samples for samples in group if not is_dead(samples)] for group in rollout]
    return [group for group in live if group], sum(map(is_dead, prompts_of(rollout)))


def is_dead(samples: Sequence[Sample]) -> bool:
    """Whether all rewards of a prompt agree: nothing can be learned from it."""
    return all(sample.reward == samples[0].reward for sample in samples)


def is_trained(sample: Sample, config: Any) -> bool:
    """Whether a step must compute it: if it has tokens, is not masked and, without a KL term, has an advantage."""
    wanted = config.beta > 0 or sample.advantage != 0
    return wanted and bool(sample.completion.tokens) and not is_masked(sample, config)


def is_masked(sample: Sample, config: Any) -> bool:
    """Whether the loss leaves it out: cut at max_new_tokens, its reward says little about the tokens it has."""
    return config.mask_truncated and not sample.completion.stopped


def total_mass(rollout: Rollout) -> float:
    """Completions that the rollout stands for."""
    return sum(sample.mass for sample in samples_of(rollout))


def num_tokens(rollout: Rollout) -> float:
    """Completion tokens that the rollout stands for."""
    return sum(sample.mass * len(sample.completion.tokens) for sample in samples_of(rollout))


def group_moments(rewards: torch.Tensor, masses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population std (N, 1) of the rewards (N, G) of each prompt, weighted by `masses` (N, G)."""
    share = masses / masses.sum(dim=1, keepdim=True)
    mean = (share * rewards).sum(dim=1, keepdim=True)
    return mean, (share * (rewards - mean).square()).sum(dim=1, keepdim=True).sqrt()


def reward_std(accelerator, rollout: Rollout) -> float:
    """Population standard deviation of the rewards of all ranks."""
    sums = {"mass": 0.0, "reward": 0.0, "square": 0.0}
    for s in samples_of(rollout):
        for name, value in zip(sums, (1.0, s.reward, s.reward**2), strict=True):
            sums[name] += s.mass * value
    sums = reduce(accelerator, sums)
    return max(0.0, sums["square"] / sums["mass"] - (sums["reward"] / sums["mass"]) ** 2) ** 0.5


def statistics(rollout: Rollout, components: Sequence[str], end_ids: set[int]) -> dict[str, float]:
    """Sums over a rank's rollout, to be added over rounds, ranks and steps (see `means`).

    `components` are those of the reward, the same on every rank; `end_ids` are the tokens that end a response.
    """
    groups = prompts_of(rollout)
    dead = [samples for samples in groups if is_dead(samples)]
    sums = {
        "sequences": total_mass(rollout),
        "groups": len(groups),
        "tokens": num_tokens(rollout),
        "group_std": float(group_moments(table(rollout, "reward"), table(rollout, "mass"))[1].sum()) if groups else 0.0,
        "dead_right": sum(samples[0].reward > 0 for samples in dead),
        "dead_wrong": sum(samples[0].reward <= 0 for samples in dead),
    }
    names = ("reward", "right", "unanswered", "yes", "truncated", "label_yes", "right_yes", "past_end")
    sums |= dict.fromkeys((*names, *(f"reward_{name}" for name in components)), 0.0)
    for sample in samples_of(rollout):
        answer, label = extract_answer(sample.text), bool(sample.prompt.label)
        facts = {
            "reward": sample.reward,
            **{f"reward_{name}": sample.rewards[name] for name in components},
            "right": answer is label,
            "unanswered": answer is None,
            "yes": answer is True,
            "truncated": not sample.completion.stopped,
            "label_yes": label,
            "right_yes": label and answer is True,
            "past_end": not end_ids.isdisjoint(sample.completion.tokens[:-1]),
        }
        for name, value in facts.items():
            sums[name] += sample.mass * value
    return sums


def means(s: dict[str, float]) -> dict[str, float]:
    """Named metrics from the sums of `statistics`, over all ranks and the steps of a logging window."""
    label_no = s["sequences"] - s["label_yes"]
    components = [name.removeprefix("reward_") for name in s if name.startswith("reward_")]
    return {
        "reward/mean": s["reward"] / s["sequences"],
        **{f"reward/{name}": s[f"reward_{name}"] / s["sequences"] for name in components},
        "reward/group_std": s["group_std"] / s["groups"],
        "reward/accuracy": s["right"] / s["sequences"],
        "reward/accuracy_of_yes": s["right_yes"] / s["label_yes"] if s["label_yes"] else float("nan"),
        "reward/accuracy_of_no": (s["right"] - s["right_yes"]) / label_no if label_no else float("nan"),
        "reward/frac_zero_std": (s["dead_right"] + s["dead_wrong"]) / s["groups"],
        "reward/frac_all_right": s["dead_right"] / s["groups"],
        "reward/frac_all_wrong": s["dead_wrong"] / s["groups"],
        "rollout/completion_length": s["tokens"] / s["sequences"],
        "rollout/unanswered_rate": s["unanswered"] / s["sequences"],
        "rollout/predicted_yes_rate": s["yes"] / s["sequences"],
        "rollout/label_yes_rate": s["label_yes"] / s["sequences"],
        "rollout/truncated_rate": s["truncated"] / s["sequences"],
        "health/ran_past_end": s["past_end"] / s["sequences"],
    }


def loss_counts(rollout: Rollout, unmasked: Rollout, trained: Rollout) -> dict[str, float]:
    """What this rank adds to the counts that a step's loss is normalised and checked by."""
    return {
        "loss_sequences": total_mass(rollout),
        "loss_tokens": num_tokens(unmasked),
        "trained_sequences": total_mass(trained),
        "trained_tokens": num_tokens(trained),
        "abs_advantage": sum(s.mass * abs(s.advantage) for s in samples_of(rollout)),
        "signal": sum(s.mass * abs(s.advantage) for s in samples_of(trained)),
    }


def weight_sum(counts: dict[str, float], loss_type: str, max_new_tokens: int) -> float:
    """What the token weights of a step add up to, from its counts alone."""
    if loss_type == "grpo":
        return counts["trained_sequences"] / counts["loss_sequences"]
    return counts["trained_tokens"] / (
        counts["loss_tokens"] if loss_type == "dapo" else counts["loss_sequences"] * max_new_tokens
    )


def sampling_gap(batch: Rollout, logps: torch.Tensor) -> dict[str, float]:
    """Summed squared differences of the tokens' log-probabilities between sampling and scoring, and their number."""
    pairs = [(torch.tensor(s.completion.logps), row) for s, row in zip(samples_of(batch), logps.cpu(), strict=True)]
    squares = sum(float((row[: len(sampled)] - sampled).square().sum()) for sampled, row in pairs)
    return {"gap_square": squares, "gap_tokens": sum(len(sampled) for sampled, _ in pairs)}


def step_values(counts: dict[str, float], terms: dict[str, float], expected_weight: float) -> dict[str, float]:
    """A step's metrics by name, from sums over all ranks; `expected_weight` is what `weight_sum` says."""
    policy = {f"policy/{name}": terms[name] for name in ("policy_loss", "kl", "clip_fraction", "entropy")}
    return {
        **means(counts),
        **policy,
        "policy/mean_abs_advantage": counts["abs_advantage"] / counts["loss_sequences"],
        "health/signal": counts["signal"] / counts["loss_sequences"],
        "health/loss_finite": float(math.isfinite(terms["policy_loss"] + terms["kl"])),
        "health/mask_error": terms["mask_error"],
        "health/weight_sum_error": terms["weight_sum"] / expected_weight - 1 if expected_weight else 0.0,
        "health/sampling_logp_gap": (terms["gap_square"] / max(1.0, terms["gap_tokens"])) ** 0.5,
    }


def completion_table(rollout: Rollout, count: int) -> str:
    """A Markdown table of the first `count` samples: rewards are those of a group, the samples of one prompt.

    A group is named by its prompt's row in the training split. `mass`: how many completions a sample stands for.
    """
    samples = samples_of(rollout)[:count]
    components = list(samples[0].rewards) if samples else []
    names = ["group", "claim", "label", *components, "reward", "advantage", "mass", "completion"]
    lines = [names, ["---"] * len(names)]
    for sample in samples:
        values = [*(sample.rewards[name] for name in components), sample.reward, sample.advantage]
        prompt, label = sample.prompt, "Yes" if sample.prompt.label else "No"
        numbers = [*(f"{value:+.2f}" for value in values), f"{sample.mass:.2g}"]
        lines.append([str(prompt.row), as_cell(prompt.hypothesis), label, *numbers, as_cell(sample.text)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_cell(text: str) -> str:
    """Any text as a cell of a Markdown table that shows it as it is: markup as characters, lines by line breaks."""
    return "<br>".join(MARKUP.sub(lambda found: f"&#{ord(found[0])};", line) for line in text.splitlines())
