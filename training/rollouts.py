"""What a GRPO step learns from: prompts in groups that share a prefix, and micro-batches of their completions.

Dimensions: N prompts of a rank, G samples a prompt, B sequences of a micro-batch, T completion length.
"""

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence

from dataset.batches import epoch_batches, share_of_rank
from dataset.chat import encode
from dataset.reading import premise_ids_of
from dataset.relabelling import FreshRows
from policy.prefix_sharing import Tokens, alone, joined, pack, plan_micro_batches
from policy.sampling import Completion
from runtime.processes import reduce
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Prompt:
    """A row of the training split, as the policy sees it (`tokens`) and as its completions are judged (`row`)."""

    index: int
    tokens: Tokens
    row: Mapping[str, Any]


def make_prompts(tokenizer, rows: "Dataset", changed: Mapping[str, Sequence[str]] | None = None) -> list[Prompt]:
    """The rows as prompts; the columns of `changed` (those of `FreshRows`) stand in place of the rows' own."""
    changed = changed or {}
    stale = {*changed, *(["edges"] if changed else [])}  # edges have the letters of before
    names = [name for name in rows.column_names if name not in stale]
    columns = {name: rows[name] for name in names} | dict(changed)
    return [
        Prompt(index, encode(tokenizer, values[0]), dict(zip(columns, values[1:], strict=True)))
        for index, values in enumerate(zip(columns["prompt"], *columns.values(), strict=True))
    ]


def at_the_edge(rows: "Dataset", directory: str, low: float, high: float) -> tuple["Dataset", str]:
    """The rows that a model solves sometimes, `low` to `high` of the time, and a line that says how many are left.

    `directory` is what `evaluate.py --num_samples` wrote of them: its pass@1. Raises ValueError if it is not, or if no
    row is left.
    """
    from scoring.results import read_results  # a second to import, for its figures

    results, predictions = read_results(directory, "pass_rates")
    found = {row["input"]: row.get("means", {}).get("pass@1") for row in predictions}
    remedy = "write it with evaluate.py --num_samples 8, of this run's model, dataset and train_split (its --split)"
    check(None not in found.values(), f"pass_rates: {directory} has one answer a row; {remedy}")
    rates = [found.get(text) for text in rows["input"]]
    known = [rate for rate in rates if rate is not None]
    kept = [index for index, rate in enumerate(rates) if rate is not None and low <= rate <= high]
    others = (
        f"{sum(r > high for r in known)} above, {sum(r < low for r in known)} below, {len(rates) - len(known)} unknown"
    )
    of = results.get("model", "a model")
    said = f"pass rates of {of}: {len(kept)} of {len(rates)} prompts are within {low:g} to {high:g}; {others}"
    check(len(kept) > 0, f"pass_rate: no prompt is left. {said}; name other bounds, or {remedy}")
    return rows.select(kept), said


class PromptQueue:
    """The prompts of a run in their order, a function of (seed, epoch) and of how many were taken; and a rank's share.

    `claims_per_prefix` prompts of one premise, at most, are a group. With `fresh`, of the same rows, every epoch has
    them in other letters and words. `new_tokens` is what the completions of a prompt take at most: ranks share
    a step so that their packed tokens are about equal.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        tokenizer,
        rows: "Dataset",
        seed: int,
        claims_per_prefix: int,
        new_tokens: int,
        fresh: FreshRows | None = None,
    ):
        self.accelerator, self.tokenizer, self.rows = accelerator, tokenizer, rows
        self.premise_ids = premise_ids_of(rows)
        self._digest = hashlib.sha256("\n".join(rows["prompt"]).encode()).hexdigest()
        self.seed, self.claims_per_prefix, self.new_tokens, self.fresh = seed, claims_per_prefix, new_tokens, fresh
        self.epoch = -1
        self.taken = 0  # of this epoch, over all ranks
        self.groups: list[list[int]] = []
        self.prompts = self._prompts_of(0)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.tokens) for prompt in self.prompts)

    def state(self) -> dict[str, int | str]:
        """The position, for `restore`."""
        return {"epoch": self.epoch, "taken": self.taken, "rows": self._digest}

    def restore(self, state: dict[str, int | str]) -> None:
        """Go on where a queue has said `state`; nothing is the start, as are other rows, of another choice say."""
        if state.get("epoch", -1) >= 0 and state.get("rows", self._digest) == self._digest:
            self.epoch = state["epoch"] - 1
            self._start_epoch()
            self._take_rows(state["taken"])

    def take(self, count: int) -> list[list[Prompt]]:
        """This rank's share of the next `count` prompts, in groups; what an epoch has left over is dropped."""
        if sum(map(len, self.groups)) < count:
            self._start_epoch()
        groups = [[self.prompts[row] for row in group] for group in self._take_rows(count)]
        return share_of_rank(groups, self.accelerator.process_index, self.accelerator.num_processes, self._cost)

    def first(self, count: int) -> tuple[list[list[Tokens]], list[list[Tokens]]]:
        """Tokens of this rank's prompts in a first step of `count`, and of their responses; nothing is taken."""
        groups = copy(self).take(count)
        responses = [[encode(self.tokenizer, prompt.row["response"]) for prompt in group] for group in groups]
        return [[prompt.tokens for prompt in group] for group in groups], responses

    def _cost(self, group: list[Prompt]) -> int:
        return len(pack([[prompt.tokens for prompt in group]])) + len(group) * self.new_tokens

    def _prompts_of(self, epoch: int) -> list[Prompt]:
        return make_prompts(self.tokenizer, self.rows, self.fresh and self.fresh.columns(epoch))

    def _start_epoch(self) -> None:
        self.epoch, self.taken = self.epoch + 1, 0
        if self.epoch > 0 and self.fresh is not None:
            self.prompts = self._prompts_of(self.epoch)
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


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that one forward pass computes, in groups that share a prefix."""

    prompts: list[list[Tokens]]
    completions: list[list[Tokens]]
    index: torch.Tensor  # (B,) place of each in the flattened (N, G) of the step
    sampled_logps: torch.Tensor  # (B, T) as sampling has found them, 0 beyond a completion's end
    scale: float = 1.0  # of its loss; 0 where a rank computes it for the sake of the others

    @property
    def mask(self) -> torch.Tensor:
        """(B, T) Which places hold a completion's token, by its length."""
        lengths = torch.tensor([len(tokens) for tokens in chain.from_iterable(self.completions)])
        return torch.arange(int(lengths.max())) < lengths[:, None]


def micro_batches(
    accelerator: Accelerator,
    groups: list[list[Prompt]],
    completions: list[list[Completion]],
    trained: torch.Tensor,
    token_budget: int,
    share: bool,
) -> list[MicroBatch]:
    """The completions (N, G) that `trained` (N, G) marks, cut into micro-batches of at most `token_budget` tokens.

    `groups` are the N prompts. Whole groups stay together, if they `share` prefixes. ZeRO-2 reduces gradients in each
    backward pass, and a rank that did fewer would leave the others waiting: where another rank has more micro-batches,
    some of scale 0 follow.
    """
    batches = _cut(groups, completions, trained, token_budget, share)
    most = int(reduce(accelerator, {"n": max(1, len(batches))}, "max")["n"])
    if len(batches) < most:
        one = torch.zeros_like(trained)
        one[0, 0] = True
        (idle,) = _cut(groups[:1], completions, one, token_budget, share)
        batches += [replace(idle, scale=0.0)] * (most - len(batches))
    return batches


def _cut(groups, completions, trained: torch.Tensor, token_budget: int, share: bool) -> list[MicroBatch]:
    chosen: list[list[tuple[Prompt, int, int]]] = []  # of each group: prompt, n, g
    n = count()
    for group in groups:
        rows = [(prompt, next(n)) for prompt in group]
        marked = [(prompt, row, g) for prompt, row in rows for g in trained[row].nonzero().flatten().tolist()]
        chosen += [marked] if marked else []
    chosen = chosen if share else alone(chosen)
    prompts = [[prompt.tokens for prompt, _, _ in group] for group in chosen]
    tokens = [[completions[row][g].tokens for _, row, g in group] for group in chosen]
    batches = []
    for plan in plan_micro_batches(joined(prompts, tokens), token_budget, share):
        places = [(row, g) for k in plan for _, row, g in chosen[k]]
        logps = pad_sequence([torch.tensor(completions[row][g].logps) for row, g in places], batch_first=True)
        index = torch.tensor([row * trained.shape[1] + g for row, g in places])
        batches.append(MicroBatch([prompts[k] for k in plan], [tokens[k] for k in plan], index, logps))
    return batches


def tokens_saved(batches: list[MicroBatch]) -> float:
    """The share of the tokens that need not be computed since prefixes are shared."""
    groups = [group for batch in batches for group in joined(batch.prompts, batch.completions)]
    apart = sum(len(sequence) for group in groups for sequence in group)
    return 1 - len(pack(groups)) / apart if apart else 0.0
