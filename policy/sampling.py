"""Sampling by hand: every prefix computed and kept once, every sequence with random numbers of its own.

Groups of prompts wait in a queue. As many of their sequences as the key-value cache has room for are packed as prefix
trees (prefix_sharing.py) and run in one pass; then each step runs one new token for every sequence that has not
stopped. A token sees the prefix of its prompt, which the cache holds once for all sequences of the group, and its own
sequence: the softmax over both is put together from those over each. The room of what has stopped goes to what waits,
so that no batch waits for its longest completion.

Dimensions: B sequences in the cache, R groups, S sequences of a group at most, C tokens of a group's prefix tree at
most, T own tokens of a sequence, H key-value heads, Q query heads for each of them, d head dimension, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, count
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from policy.adapters import lean_lora
from policy.prefix_sharing import LOGITS_AT_ONCE, PackedTree, Tokens, alone, as_bias, attend, never_read, pack
from runtime.ending import is_out_of_memory

BLOCK = 64  # tokens by which the room for own tokens grows
JOIN = 8  # sequences of a group that join at once, at least, if so many are left: each part runs the prefix again
SPARE = 4  # one sequence in so many may have stopped before the cache is rearranged


@dataclass
class Completion:
    """A sampled completion: tokens (the stop token included), their log-probabilities, whether it stopped, its text.

    One whose log-probabilities are no longer finite, as an overflow in half precision makes them, ends there.
    """

    tokens: Tokens = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    stopped: bool = False
    text: str = ""

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.logps))


def character_ends(tokenizer, tokens: Tokens) -> list[int]:
    """(T,) How long the text is after each token, in characters; `tokenizer` is a fast one.

    A special token adds nothing, and of a character in several tokens the last one adds it.
    """
    stream, length, ends = DecodeStream(skip_special_tokens=True), 0, []
    try:
        for token in tokens:
            length += len(stream.step(tokenizer.backend_tokenizer, token) or "")
            ends.append(length)
    except Exception:  # of no class of its own: bytes that are no characters, in a tokenizer that falls back to them
        texts = (tokenizer.decode(tokens[: k + 1], skip_special_tokens=True) for k in range(len(tokens)))
        return list(accumulate(map(len, texts), max))
    return ends


# --- the cache


class BranchCache:
    """Keys and values of sequences that branch off shared prefixes, and the attention of a new token over them.

    The prefix tree of a group is held once, (R, H, C, d), and each sequence's own tokens by themselves,
    (B, H, room, d), in room that grows by BLOCK. Both are held for each layer, by its attention module.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.prefixes: dict[Any, list[torch.Tensor]] = {}  # keys and values, (R, H, C, d)
        self.own: dict[Any, list[torch.Tensor]] = {}  # keys and values, (B, H, room, d)
        self.rows: list[int] = []  # (B,) the group of each sequence
        self.lengths: list[int] = []  # (B,) how many tokens of its own it has
        self.visible = torch.zeros((0, 0), dtype=torch.bool)  # (B, C) what it sees of its group's prefix tree

    def add(self, tree: PackedTree, groups: list[list[int]], packed: dict[Any, list[torch.Tensor]]) -> None:
        """The sequences of `tree`, by group; `packed` are the tree's keys and values of each layer, (1, H, L, d)."""
        nodes = [sorted({node for b in group for node in tree.paths[b]}) for group in groups]
        columns = pad_sequence([torch.tensor(of_group) for of_group in nodes], batch_first=True)  # (R, C)
        visible = torch.zeros((len(tree.paths), columns.shape[1]), dtype=torch.bool)
        for group, of_group in zip(groups, nodes, strict=True):
            for b in group:
                visible[b, torch.tensor(tree.paths[b]) - of_group[0]] = True  # a group is one stretch of the packed row
        columns = columns.to(self.device)
        for layer in list(packed):
            pair = packed.pop(layer)  # so that of one layer alone there are two copies
            prefixes = [x[0][:, columns].transpose(0, 1).contiguous() for x in pair]  # (R, H, C, d)
            own = [x.new_zeros((len(visible), x.shape[1], 0, x.shape[3])) for x in prefixes]
            self.prefixes[layer] = _stack(self.prefixes.get(layer), prefixes)
            self.own[layer] = _stack(self.own.get(layer), own)
        (self.visible,) = _stack([self.visible] if self.rows else None, [visible])
        first = len(set(self.rows))
        self.rows += [first + r for r, group in enumerate(groups) for _ in group]
        self.lengths += [0] * len(visible)
        self._arrange()

    def keep(self, sequences: Sequence[int]) -> "BranchCache":
        """Drop all sequences but these, and the prefixes that none of them has; returns what is left."""
        if not sequences:
            return BranchCache(self.device)
        groups = sorted({self.rows[b] for b in sequences})
        for held, chosen in ((self.own, sequences), (self.prefixes, groups)):
            index = torch.tensor(chosen, device=self.device)
            for layer, pair in held.items():
                held[layer] = [x[index] for x in pair]
        self.visible = self.visible[torch.tensor(sequences)]
        self.rows = [groups.index(self.rows[b]) for b in sequences]
        self.lengths = [self.lengths[b] for b in sequences]
        self._arrange()
        return self

    def _arrange(self) -> None:
        """Which sequences are where, if those of a group stand side by side, (R, S), and the prefix that they see."""
        groups: list[list[int]] = [[] for _ in range(max(self.rows) + 1)]
        for b, row in enumerate(self.rows):
            groups[row].append(b)
        width = max(map(len, groups))
        grid = torch.tensor([group + group[:1] * (width - len(group)) for group in groups])  # the first fills up
        place = {b: r * width + s for r, group in enumerate(groups) for s, b in enumerate(group)}
        self.grid = grid.to(self.device)
        self.every = torch.arange(len(self.rows), device=self.device)  # (B,)
        self.place = torch.tensor([place[b] for b in range(len(place))]).to(self.device)
        self.depths = self.visible.cumsum(-1) - 1  # (B, C) where in its prompt a sequence sees a node
        self.prefix_bias: dict[int | None, torch.Tensor] = {}  # (R, 1, S·Q, C) by window, once a layer has asked for it

    def grow(self, most: int) -> None:
        """Make room for one more token of every sequence; no sequence will ever have more than `most`."""
        room = next(iter(self.own.values()))[0].shape[2]
        # One that has stopped and is still held writes its last place again: nobody reads it.
        self.lengths = [min(length + 1, most) for length in self.lengths]
        self.ends = torch.tensor(self.lengths, device=self.device) - 1  # (B,) where the new token goes
        self.longest = max(self.lengths)
        if self.longest > room:
            more = min(BLOCK, most - room)
            for layer, pair in self.own.items():
                self.own[layer] = [pad(x, (0, 0, 0, more)) for x in pair]
        self.own_bias: dict[int | None, torch.Tensor] = {}  # (B, 1, 1, longest) by window
        self.prefix_bias = {None: self.prefix_bias[None]} if None in self.prefix_bias else {}

    def _positions(self) -> torch.Tensor:
        """(B,) Of the new tokens."""
        return self.depths[:, -1] + torch.tensor(self.lengths)

    def _bias_of_prefix(self, window: int | None, query: torch.Tensor) -> torch.Tensor:
        """(R, 1, S·Q, C or more): 0, or UNSEEN for what is of another sequence or beyond the window."""
        if window not in self.prefix_bias:
            seen = self.visible
            if window is not None:
                seen = seen & (self._positions()[:, None] - self.depths < window)
            bias = as_bias(seen, self.device).to(query.dtype)[self.grid]  # (R, S, C or more)
            self.prefix_bias[window] = bias.repeat_interleave(query.shape[2], dim=1)[:, None]
        return self.prefix_bias[window]

    def _bias_of_own(self, window: int | None, query: torch.Tensor) -> torch.Tensor | None:
        """(B, 1, 1, longest or more): 0, or UNSEEN for what is not there yet or beyond the window; None if all is
        seen."""
        if window is None and min(self.lengths) == self.longest:
            return None
        if window not in self.own_bias:
            back = self.ends[:, None] - torch.arange(self.longest, device=self.device)
            seen = (back >= 0) & (back < (window or self.longest))
            self.own_bias[window] = as_bias(seen, self.device).to(query.dtype)[:, None, None]
        return self.own_bias[window]

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None = None,
    ) -> torch.Tensor:
        """Attention of the new tokens (1, heads, B, d), which it keeps: (1, B, heads, d).

        Each sees itself and, of a layer with a `window`, those less than so many positions before it.

        The softmax over prefix and own tokens is the mean of those over each, weighted by their sums of exponentials:
        with l their logarithms, a sigmoid of the difference (as in FlashAttention, arXiv 2205.14135, section 3.1).
        """
        heads = key.shape[1]
        for held, new in zip(self.own[layer], (key, value), strict=True):
            held[self.every, :, self.ends] = new[0].transpose(0, 1)
        query = query[0].transpose(0, 1).unflatten(1, (heads, -1))  # (B, H, Q, d)
        if window is not None and window > int(self._positions().max()):
            window = None

        keys, values = (x[:, :, : self.longest] for x in self.own[layer])
        own, own_total = attend(query, keys, values, self._bias_of_own(window, query), scaling)

        width = self.grid.shape[1]
        grid = query[self.grid].transpose(1, 2).flatten(2, 3)  # (R, H, S·Q, d)
        parts = attend(grid, *self.prefixes[layer], self._bias_of_prefix(window, query), scaling)
        prefix, prefix_total = (  # (B, H, Q, d), (B, H, Q)
            x.unflatten(2, (width, -1)).transpose(1, 2).flatten(0, 1)[self.place] for x in parts
        )
        share = torch.sigmoid(own_total - prefix_total)[..., None]
        return torch.lerp(prefix.float(), own.float(), share).to(value.dtype).flatten(1, 2)[None]


def _stack(old: list[torch.Tensor] | None, new: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors below each other, those with fewer columns (the last dimension but d) filled up with zeros."""
    if old is None:
        return new
    stacked = []
    for pair in zip(old, new, strict=True):
        dim = 1 if pair[0].dim() == 2 else 2
        width = max(x.shape[dim] for x in pair)
        behind = (0, 0) * (pair[0].dim() - 1 - dim)
        stacked.append(torch.cat([pad(x, (*behind, 0, width - x.shape[dim])) for x in pair]))
    return stacked


# --- sampling


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    groups: list[list[Tokens]],
    *,
    stop_ids: set[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: list[list[tuple[int, ...]]] | None = None,
    cache_tokens: float = math.inf,
) -> list[list[Completion]]:
    """One completion for each prompt of each group; repeat a prompt to get several samples, at one prefill's price.

    `temperature` 0 is greedy. Otherwise sequence k of group g draws from softmax(logits / temperature), all of it
    (top_p 1, top_k off), with the random stream that `seeds[g][k]` names: what is sampled does not depend on the batch
    it is sampled in. At most `cache_tokens` tokens are in the key-value cache, if all completions get their longest; a
    group that needs more is sampled in parts. The model must be in eval mode: dropout or gradient checkpointing would
    change what is sampled.
    """
    assert not model.training, "sample in eval mode: dropout would make the sampled policy another one"
    assert temperature == 0 or seeds is not None, "sampling needs one seed a sequence"
    device = next(model.parameters()).device
    completions = [[Completion() for _ in group] for group in groups]
    # The longest first: an out-of-memory error comes at once, or not at all.
    prefixes = [len(pack([group])) for group in groups]
    order = sorted(range(len(groups)), key=lambda g: (-prefixes[g] - len(groups[g]) * max_new_tokens, g))
    waiting = deque((g, list(range(len(groups[g])))) for g in order)  # of each group the sequences that wait
    stops = np.array(sorted(stop_ids), dtype=np.int64)
    cache, live, parts = BranchCache(device), [], count()  # live: (B,) the sequences in the cache
    while True:
        going = [b for b, one in enumerate(live) if not one.stopped]
        if not (going or waiting):
            return completions
        held = {live[b].part: prefixes[live[b].group] for b in going}
        room = cache_tokens - sum(held.values()) - len(going) * max_new_tokens
        joining = _take(waiting, prefixes, max_new_tokens, room, must=not going)
        if len(going) < len(live) and (joining or len(live) - len(going) > len(live) // SPARE):
            live = [live[b] for b in going]  # the room of what has stopped is given back
            cache = cache.keep(going)
        if joining:
            fresh = [
                [Live(g, k, part, len(groups[g][k])) for k in of_group]
                for (g, of_group), part in zip(joining, parts, strict=False)
            ]
            prompts = [[groups[one.group][one.index] for one in part] for part in fresh]
            logits = _prefill(model, cache, prompts, device)
            fresh = list(chain.from_iterable(fresh))
            for one in fresh if temperature > 0 else ():
                one.draws = np.random.default_rng(seeds[one.group][one.index]).random(max_new_tokens)
            _extend(fresh, logits, completions, stops, temperature, max_new_tokens)
            live += fresh
            continue  # some may have stopped with their first token
        cache.grow(max_new_tokens)
        newest = torch.tensor([[completions[one.group][one.index].tokens[-1] for one in live]], device=device)  # (1, B)
        depths = torch.tensor([[one.depth for one in live]], device=device)
        logits = model(
            input_ids=newest, position_ids=depths, attention_mask=never_read(device), branches=cache, use_cache=False
        ).logits[0]  # (B, V)
        _extend(live, logits, completions, stops, temperature, max_new_tokens)


def _take(
    waiting: deque[tuple[int, list[int]]], prefixes: list[int], max_new_tokens: int, room: float, must: bool
) -> list[tuple[int, list[int]]]:
    """Parts of the groups that wait, (group, its sequences), that fit `room` tokens; one at least if they `must`.

    A part has JOIN sequences or more, unless there are fewer left.
    """
    taken: list[tuple[int, list[int]]] = []
    while waiting:
        g, left = waiting[0]
        fitting = len(left) if room == math.inf else int((room - prefixes[g]) // max_new_tokens)
        if fitting < min(len(left), JOIN) and (taken or not must):
            break
        size = min(len(left), max(1, fitting))
        taken.append((g, left[:size]))
        room -= prefixes[g] + size * max_new_tokens
        waiting.popleft()
        if size < len(left):
            waiting.appendleft((g, left[size:]))
    return taken


@dataclass
class Live:
    """A sequence in the cache: which of which group it is, with which part of that it has joined, how deep its next
    token is, and its random numbers."""

    group: int
    index: int
    part: int
    depth: int
    stopped: bool = False
    draws: np.ndarray | None = None


def _prefill(
    model: torch.nn.Module, cache: BranchCache, groups: list[list[Tokens]], device: torch.device
) -> torch.Tensor:
    """Run the packed prompts of the groups, put them into the cache; the logits (B, V) after each of them."""
    tree = pack(groups)
    last_nodes, which = torch.tensor([path[-1] for path in tree.paths]).unique(return_inverse=True)
    packed: dict[Any, list[torch.Tensor]] = {}
    inputs = tree.inputs(device) | {"keep": packed, "use_cache": False}
    logits = model(**inputs, logits_to_keep=last_nodes.to(device)).logits[0, which.to(device)]
    places = iter(range(len(tree.paths)))
    cache.add(tree, [[next(places) for _ in group] for group in groups], packed)
    return logits


def _extend(
    live: list[Live],
    logits: torch.Tensor,
    completions: list[list[Completion]],
    stops: np.ndarray,
    temperature: float,
    max_new_tokens: int,
) -> None:
    """Choose the next token of every sequence from `logits` (B, V), and note which of them stop with it."""
    counts = [len(completions[one.group][one.index].tokens) for one in live]
    points = None
    if temperature > 0:  # what has stopped may draw anything
        points = np.array([one.draws[min(t, max_new_tokens - 1)] for one, t in zip(live, counts, strict=True)])
    tokens, logps = _choose(logits, temperature, points)
    ends = np.isin(tokens, stops)
    for one, t, token, logp, end in zip(live, counts, tokens.tolist(), logps.tolist(), ends, strict=True):
        if one.stopped:
            continue
        completion = completions[one.group][one.index]
        completion.tokens.append(token)
        completion.logps.append(logp)
        broken = not math.isfinite(logp)  # the token is nobody's choice
        completion.stopped = bool(end) and not broken
        one.stopped = bool(end) or broken or t + 1 == max_new_tokens
        one.depth += t > 0  # the first own token stands right behind the prompt


def _choose(logits: torch.Tensor, temperature: float, uniforms: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
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
    both = torch.stack((torch.cat(chosen).double(), torch.cat(taken).double())).cpu().numpy()  # one copy to the host
    return both[0].astype(np.int64), both[1]


@dataclass
class Sampler:
    """A policy as it is sampled: the model, the tokens that stop it, and how much it may write and hold at once.

    At most `cache_tokens` tokens are in the key-value cache, prompts and longest completions together; once memory has
    run out, half as many. `share` false computes and caches every prompt by itself.
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

        The model samples in eval mode, where dropout and gradient checkpointing are off, and is left as it was. Raises
        ValueError if memory runs out with one sequence at a time.
        """
        if not self.share:
            sharing = replace(self, share=True)
            done = iter(sharing.sample(alone(groups), temperature, None if seeds is None else alone(seeds)))
            self.cache_tokens = sharing.cache_tokens
            return [[next(done)[0] for _ in group] for group in groups]
        was_training = self.model.training
        self.model.eval()
        # A next try begins when nothing refers to the error any longer, which holds on to what generate has allocated.
        while (results := self._unless_out_of_memory(groups, temperature, seeds)) is None:
            self._halve(groups)
        self.model.train(was_training)
        for completion in chain.from_iterable(results):
            completion.text = self.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        return results

    def _unless_out_of_memory(self, groups, temperature: float, seeds) -> list[list[Completion]] | None:
        try:
            with lean_lora(self.model):
                return generate(
                    self.model, groups, stop_ids=self.stop_ids, max_new_tokens=self.max_new_tokens,
                    temperature=temperature, seeds=seeds, cache_tokens=self.cache_tokens,
                )  # fmt: skip
        except Exception as error:
            if is_out_of_memory(error):
                return None
            raise

    def _halve(self, groups: list[list[Tokens]]) -> None:
        """Halve the cache that these groups have filled. What is sampled again, from its own seed, is the same."""
        longest = max(map(len, chain.from_iterable(groups))) + self.max_new_tokens
        filled = sum(len(pack([group])) + len(group) * self.max_new_tokens for group in groups)
        filled = min(self.cache_tokens, filled)
        if filled <= longest:
            raise ValueError(
                f"out of memory in sampling: a single sequence of {longest} tokens does not fit; lower max_new_tokens, "
                "or set quantization nf4"
            )
        self.cache_tokens = max(longest, filled // 2)
        tqdm.write(f"out of memory in sampling: goes on with cache_tokens {self.cache_tokens}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the blocks of other sizes would stand in the way
