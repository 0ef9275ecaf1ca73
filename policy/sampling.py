"""Sampling by hand: every prompt's prefix computed once, every sequence with random numbers of its own.

The prompts of a batch are packed as prefix trees (prefix_sharing.py) and run once. Then each group is a row: its part
of the key-value cache exists once for all of its samples, and each step runs one new token for every sequence that has
not stopped, which sees its own prompt and its own tokens. Sequences that have stopped take no part.

Dimensions: B sequences, R groups, S live sequences of a group at most, C cached tokens of a group, V vocabulary.
"""

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicLayer

from policy.prefix_sharing import LOGITS_AT_ONCE, PackedTree, Tokens, pack, plan_micro_batches


@dataclass
class Completion:
    """A sampled completion: tokens (the stop token included), their log-probabilities, whether it stopped, its text."""

    tokens: Tokens = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    stopped: bool = False
    text: str = ""


class RoomyLayer(DynamicLayer):
    """Keys and values (R, heads, C, head dim) in buffers with room: DynamicLayer would copy all for every token."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append tokens; returns all keys and values so far, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            # Phi-3's values are a view of its queries, keys and values in one: that would keep all three.
            self._hold(key_states.contiguous(), value_states.contiguous(), key_states.shape[2])
        else:
            filled = self.keys.shape[2]
            length = filled + key_states.shape[2]
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, filled:length] = new
            self._hold(*self.buffers, length)
        return self.keys, self.values

    def split_rows(self, columns: torch.Tensor, room: int) -> None:
        """Make rows of the one packed row; `columns` (R, C) are the packed tokens of each, `room` more will fit."""
        rows, length = columns.shape
        buffers = []
        for x in (self.keys, self.values):
            buffers.append(x.new_empty((rows, x.shape[1], length + room, x.shape[3])))
            buffers[-1][:, :, :length] = x[0][:, columns].transpose(0, 1)
        self._hold(*buffers, length)

    def keep_rows(self, rows: torch.Tensor) -> None:
        self._hold(*(buffer[rows] for buffer in self.buffers), self.keys.shape[2])

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        self.buffers = [keys, values]
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    groups: list[list[Tokens]],
    *,
    stop_ids: set[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: list[list[tuple[int, ...]]] | None = None,
) -> list[list[Completion]]:
    """One completion for each prompt of each group; repeat a prompt to get several samples, at one prefill's price.

    `temperature` 0 is greedy. Otherwise sequence k of group g draws from softmax(logits / temperature), all of it
    (top_p 1, top_k off), with the random stream that `seeds[g][k]` names: what is sampled does not depend on the batch
    it is sampled in. The model must be in eval mode: dropout or gradient checkpointing would change what is sampled.
    """
    assert not model.training, "sample in eval mode: dropout would make the sampled policy another one"
    assert temperature == 0 or seeds is not None, "sampling needs one seed a sequence"
    device = next(model.parameters()).device
    uniforms = None
    if temperature > 0:
        streams = [np.random.default_rng(seed) for group_seeds in seeds for seed in group_seeds]
        uniforms = np.stack([stream.random(max_new_tokens) for stream in streams])  # (B, T)
    prompts = [prompt for group in groups for prompt in group]
    padding = len(prompts)  # the index of a sequence that is none
    completions = [Completion() for _ in prompts]
    remaining = iter(range(len(prompts)))
    live = [[next(remaining) for _ in group] for group in groups]  # per row of the cache

    tree = pack(groups)
    logits, cache = _prefill(model, tree, device)  # (B, V)
    visible = _split_cache(cache, tree, live, max_new_tokens, device)  # (B + 1, C and room): what a sequence sees
    filled = cache.get_seq_length()
    for t in range(max_new_tokens):
        order = [b for row in live for b in row]
        tokens, logps = _choose(logits, temperature, None if uniforms is None else uniforms[order, t])
        for b, token, logp in zip(order, tokens, logps, strict=True):
            completions[b].tokens.append(token)
            completions[b].logps.append(logp)
            completions[b].stopped = token in stop_ids
        live = [[b for b in row if not completions[b].stopped] for row in live]
        if t == max_new_tokens - 1 or not any(live):
            break
        if not all(live):
            kept = [r for r, row in enumerate(live) if row]
            live = [live[r] for r in kept]
            for layer in cache.layers:
                layer.keep_rows(torch.tensor(kept, device=device))
        slots = pad_sequence([torch.tensor(row) for row in live], batch_first=True, padding_value=padding)  # (R, S)
        newest = torch.tensor([completion.tokens[-1] for completion in completions] + [0])[slots]
        depths = torch.tensor([len(prompt) + t for prompt in prompts] + [0])[slots]
        slots = slots.to(device)
        rows, columns = torch.tensor([(r, s) for r, row in enumerate(live) for s in range(len(row))], device=device).T
        # Padding sees itself too: a row of attention that sees nothing would be NaN, and NaN spreads.
        visible[slots, filled + torch.arange(slots.shape[1], device=device)] = True
        filled += slots.shape[1]
        logits = model(
            input_ids=newest.to(device),
            position_ids=depths.to(device),
            attention_mask=visible[slots, :filled][:, None],  # (R, 1, S, C)
            past_key_values=cache,
            use_cache=True,
        ).logits[rows, columns]  # (B of them that live, V)
    done = iter(completions)
    return [[next(done) for _ in group] for group in groups]


def _prefill(model: torch.nn.Module, tree: PackedTree, device: torch.device) -> tuple[torch.Tensor, Cache]:
    """The logits (B, V) after each sequence of `tree`, and the keys and values of the packed row."""
    cache = Cache(layer_class_to_replicate=RoomyLayer)  # no sliding window: it would drop packed tokens
    last_nodes, which = torch.tensor([path[-1] for path in tree.paths]).unique(return_inverse=True)
    out = model(**tree.inputs(device), past_key_values=cache, use_cache=True, logits_to_keep=last_nodes.to(device))
    return out.logits[0, which.to(device)], cache


def _split_cache(
    cache: Cache, tree: PackedTree, rows: list[list[int]], max_new_tokens: int, device: torch.device
) -> torch.Tensor:
    """Give each group its own row of the cache, padded to the longest; `rows` are the groups' sequences.

    Returns which columns of its row a sequence sees (B + 1, C + room for new tokens), the last one seeing none yet.
    """
    nodes = [sorted({node for b in row for node in tree.paths[b]}) for row in rows]
    columns = pad_sequence([torch.tensor(row) for row in nodes], batch_first=True)  # (R, C); padding is never seen
    room = max_new_tokens * max(map(len, rows))
    for layer in cache.layers:
        layer.split_rows(columns.to(device), room)
    visible = torch.zeros((len(tree.paths) + 1, columns.shape[1] + room), dtype=torch.bool)
    for row, row_nodes in zip(rows, nodes, strict=True):
        for b in row:
            visible[b, torch.tensor(tree.paths[b]) - row_nodes[0]] = True  # a group is one stretch of the packed row
    return visible.to(device)


def _choose(logits: torch.Tensor, temperature: float, uniforms: np.ndarray | None) -> tuple[list[int], list[float]]:
    """Greedy or inverse-CDF choice from `logits` (B, V); returns tokens and their log-probabilities (B,)."""
    points = None if uniforms is None else torch.as_tensor(uniforms, device=logits.device)[:, None]
    chosen: list[torch.Tensor] = []
    taken: list[torch.Tensor] = []
    size = max(1, LOGITS_AT_ONCE // logits.shape[-1])  # some twenty bytes a logit are in use below
    for start in range(0, len(logits), size):
        logps = (logits[start : start + size].float() / (temperature or 1.0)).log_softmax(-1)
        if points is None:
            chosen.append(logps.argmax(-1))
        else:
            cumulative = logps.double().exp().cumsum(-1)
            at = points[start : start + size] * cumulative[:, -1:]
            chosen.append(torch.searchsorted(cumulative, at, right=True).clamp_max(logits.shape[-1] - 1)[:, 0])
        taken.append(logps.gather(-1, chosen[-1][:, None])[:, 0])
    return torch.cat(chosen).tolist(), torch.cat(taken).tolist()


@dataclass
class Sampler:
    """A policy as it is sampled: the model, the tokens that stop it, and how much it may write and hold at once.

    At most `cache_tokens` tokens are in the key-value cache, prompts and longest completions together. `share` false
    computes and caches every prompt by itself.
    """

    model: torch.nn.Module
    tokenizer: Any
    stop_ids: set[int]
    max_new_tokens: int
    cache_tokens: int
    share: bool = True

    def sample(
        self,
        groups: list[list[Tokens]],
        temperature: float = 0.0,
        seeds: list[list[tuple[int, ...]]] | None = None,
    ) -> list[list[Completion]]:
        """A completion, with its text, for each prompt of each group of prompts with a common prefix; see `generate`.

        The model samples in eval mode, where dropout and gradient checkpointing are off, and is left as it was.
        """
        if not self.share:
            alone = [[prompt] for group in groups for prompt in group]
            seeds = None if seeds is None else [[seed] for group_seeds in seeds for seed in group_seeds]
            done = iter(replace(self, share=True).sample(alone, temperature, seeds))
            return [[next(done)[0] for _ in group] for group in groups]
        was_training = self.model.training
        self.model.eval()
        results: list[list[Completion]] = [[] for _ in groups]
        for batch in plan_micro_batches(groups, self.cache_tokens, new_tokens=self.max_new_tokens):
            done = generate(
                self.model, [groups[g] for g in batch], stop_ids=self.stop_ids, max_new_tokens=self.max_new_tokens,
                temperature=temperature, seeds=None if seeds is None else [seeds[g] for g in batch],
            )  # fmt: skip
            for g, completions in zip(batch, done, strict=True):
                results[g] = completions
        self.model.train(was_training)
        for completion in chain.from_iterable(results):
            completion.text = self.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        return results
