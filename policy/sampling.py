"""Sampling by hand: whatever begins alike is computed and kept once, every sequence has random numbers of its own.

Groups of prompts wait in a queue. As many as the key-value cache has room for are packed as prefix trees
(prefix_sharing.py) and run in one pass; then each step runs one new token of every branch. A branch is what the samples
of a prompt have drawn alike so far: one row, until their random numbers choose different tokens; then it forks. A token
sees the prefix of its prompt, which the cache holds once for all branches of the group, and its own branch: the softmax
over both is put together from those over each. The room of what has stopped goes to what waits, so that no batch waits
for its longest completion. A fork for which there is no room waits too, and is prefilled with what it has drawn.

Where there is a draft, a text that is likely to be written, a step runs some tokens of it behind the newest. A sequence
draws behind each of them, by the random number and from the distribution that it has there anyway, and keeps what it
has drawn up to the first token that is not the draft's. What is sampled is the same, in fewer steps (speculative
decoding, arXiv 2211.17192, with a draft that is given).

Dimensions: B branches in the cache (branch_cache.py), N new tokens of all branches, T tokens of a completion, S
sequences of a branch at most, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from tqdm import tqdm

from policy.adapters import lean_lora
from policy.branch_cache import BranchCache
from policy.prefix_sharing import LOGITS_AT_ONCE, Tokens, alone, never_read, pack
from runtime.ending import is_out_of_memory

JOIN = 8  # sequences of a group that join at once, at least, if so many are left: each part runs the prefix again
PREFILL = 4096  # tokens of a pass that fills the cache, at most: more keep no GPU busier, and take memory
SPARE = 4  # one branch in so many may have stopped before the cache is rearranged
ALIKE = 4  # of so many sequences of a branch that joins, one is expected to need a row of its own
DRAFT = 16  # tokens of a draft that a branch tries in a step, at most
DRAFTED = 128  # tokens of a step at most, if there is a draft: with many branches a try costs more than it saves
GRAM = 3  # tokens by which the place is found in a draft where a text goes on like it


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


# --- sampling


@dataclass
class Branch:
    """What sequences of one prompt have drawn alike so far: one row of the cache, until they draw different tokens."""

    group: int
    members: list[int]  # its sequences: which of the group they are
    seeds: list[tuple[int, ...]]  # of their random numbers; none in greedy sampling
    prompt: Tokens
    draft: "Draft"
    tokens: Tokens = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    draws: np.ndarray | None = None  # (S, max_new_tokens) the random numbers, once it is in the cache
    part: "Part | None" = None  # of its group, with which it is there
    ahead: int = 0  # by how many tokens the draft is longer where the text goes on like it
    stopped: bool = False

    @property
    def rows(self) -> int:
        """How many it is expected to need."""
        return math.ceil(len(self.members) / ALIKE)

    @property
    def text(self) -> Tokens:
        return self.prompt + self.tokens

    @property
    def depth(self) -> int:
        """Where its newest token stands."""
        return len(self.prompt) + len(self.tokens) - 1

    def extended(self, tokens: Tokens, logps: list[float]) -> list[tuple["Branch", list[int]]]:
        """A branch for each different one of `tokens`, which its sequences have drawn, and which of them have drawn it.

        If all are the same, that is this one.
        """
        drawn: dict[int, list[int]] = {}
        for i, token in enumerate(tokens):
            drawn.setdefault(token, []).append(i)
        branches = [self] if len(drawn) == 1 else [self._of(which) for which in drawn.values()]
        for branch, (token, which) in zip(branches, drawn.items(), strict=True):
            branch.tokens.append(token)
            branch.logps.append(logps[which[0]])
        return list(zip(branches, drawn.values(), strict=True))

    def _of(self, which: list[int]) -> "Branch":
        members, draws = [self.members[i] for i in which], self.draws[which]
        return replace(self, members=members, draws=draws, tokens=[*self.tokens], logps=[*self.logps])


class Draft:
    """A text that a prompt's samples are likely to write, at least in parts."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens
        self.places: dict[tuple[int, ...], list[int]] = {}  # that follow these GRAM tokens, or fewer at the beginning
        for place in range(len(tokens)):
            self.places.setdefault(tuple(tokens[max(0, place - GRAM) : place]), []).append(place)

    def place(self, written: Tokens, expected: int) -> int | None:
        """Where it goes on like what is `written`: of several places that nearest to the `expected` one."""
        places = self.places.get(tuple(written[-GRAM:]), ())
        return min(places, key=lambda place: abs(place - expected), default=None)


@dataclass(eq=False)
class Part:
    """Branches of a group that come into the cache together."""

    branches: list[Branch]
    # Packed tokens of the first of them, of the first two, ...
    prompts: list[int]
    texts: list[int]  # and with what they have drawn

    @classmethod
    def of(cls, branches: list[Branch]) -> "Part":
        found = cls(branches, [], [])
        prompts: set[int] = set()
        texts: set[int] = set()
        for branch, path in zip(branches, pack([[branch.text for branch in branches]]).paths, strict=True):
            prompts.update(path[: len(branch.prompt)])
            texts.update(path)
            found.prompts.append(len(prompts))
            found.texts.append(len(texts))
        return found

    def first(self, size: int) -> "Part":
        return Part(self.branches[:size], self.prompts[:size], self.texts[:size])

    @property
    def prefix(self) -> int:
        """Tokens of its prefix tree in the cache."""
        return self.prompts[-1]

    @property
    def sequences(self) -> int:
        return _sequences(self.branches)


def _sequences(branches: Iterable[Branch]) -> int:
    return sum(len(branch.members) for branch in branches)


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
    drafts: list[list[Tokens]] | None = None,
    fork: bool = True,
) -> list[list[Completion]]:
    """One completion for each prompt of each group; repeat a prompt to get several samples.

    Samples of a prompt cost what is different in them: one prefill, and one row for what they draw alike. With `fork`
    false every sequence has a row of its own from its first token on. `drafts` has for each prompt a text that its
    samples are likely to write: how much of it they do decides about the time alone.

    `temperature` 0 is greedy. Otherwise sequence k of group g draws from softmax(logits / temperature), all of it
    (top_p 1, top_k off), with the random stream that `seeds[g][k]` names: what is sampled does not depend on the batch
    it is sampled in. At most `cache_tokens` tokens are in the key-value cache, if all that is there gets its longest; a
    group that needs more is sampled in parts. The model must be in eval mode: dropout or gradient checkpointing would
    change what is sampled.
    """
    assert not model.training, "sample in eval mode: dropout would make the sampled policy another one"
    assert temperature == 0 or seeds is not None, "sampling needs one seed a sequence"
    completions = [[Completion() for _ in group] for group in groups]
    parts = []
    for g, group in enumerate(groups):
        alike: dict[Any, Branch] = {}
        for k, prompt in enumerate(group):
            key = tuple(prompt) if fork else k
            if key not in alike:
                alike[key] = Branch(g, [], [], prompt, Draft([] if drafts is None else drafts[g][k]))
            alike[key].members.append(k)
            alike[key].seeds += [seeds[g][k]] if temperature > 0 else []
        parts.append(Part.of([*alike.values()]))
    for branch in Decoding(model, parts, stop_ids, max_new_tokens, temperature, cache_tokens).run():
        for k in branch.members:
            stopped = branch.tokens[-1] in stop_ids and math.isfinite(branch.logps[-1])
            completions[branch.group][k] = Completion([*branch.tokens], [*branch.logps], stopped)
    return completions


class Decoding:
    """The branches that are in the cache, and the parts of groups that wait for room in it."""

    def __init__(
        self,
        model: torch.nn.Module,
        parts: list[Part],
        stop_ids: set[int],
        max_new_tokens: int,
        temperature: float,
        cache_tokens: float,
    ):
        self.model, self.device = model, next(model.parameters()).device
        self.stop_ids, self.max_new_tokens = stop_ids, max_new_tokens
        self.temperature, self.cache_tokens = temperature, cache_tokens
        # The longest first: an out-of-memory error comes at once, or not at all.
        self.waiting = deque(sorted(parts, key=lambda part: -part.prefix - part.sequences * max_new_tokens))
        self.cache = BranchCache(self.device)
        self.live: list[Branch] = []  # (B,) in the cache; one that has stopped is there until its room is needed
        self.parts: set[Part] = set()  # whose prefix trees are there

    def run(self) -> Iterator[Branch]:
        """The branches as they end; each sequence is in one of them."""
        while self.waiting or not all(branch.stopped for branch in self.live):
            joining = self._take()
            first = len(self.live) if joining else 0
            if joining:
                drafts, logits = [[] for part in joining for _ in part.branches], self._prefill(joining)
            else:
                drafts = self._drafts()
                logits = self._step(drafts)
            forks: list[tuple[int, Branch]] = []  # with the place of the branch that they come from
            for b, branches in enumerate(self._draw(self.live[first:], drafts, logits), first):
                branches.sort(key=lambda branch: branch.stopped)  # one that goes on keeps the place
                self.live[b] = (branches or self.live[b : b + 1])[0]
                forks += [(b, branch) for branch in branches[1:] if not branch.stopped]
                yield from (branch for branch in branches if branch.stopped)
            self._place(forks)

    def _room(self, prefixes: list[int], rows: int) -> float:
        """For how many tokens there is room beside prefix trees of so many tokens, as wide as the widest, and rows."""
        return self.cache_tokens - len(prefixes) * max(prefixes, default=0) - rows * self.max_new_tokens

    def _take(self) -> list[Part]:
        """Parts that are to join now, as far as there is room; one branch at least, if nothing is under way.

        A part has JOIN sequences or more, unless there are fewer left or a pass is full. What has stopped gives its
        room back.
        """
        going = [b for b, branch in enumerate(self.live) if not branch.stopped]
        branches = [self.live[b] for b in going]
        parts, joining = {branch.part for branch in branches}, []
        prefixes, rows, left = [part.prefix for part in parts], sum(branch.rows for branch in branches), PREFILL
        while self.waiting:
            part, must = self.waiting[0], not (going or joining)
            ends = list(accumulate((branch.rows for branch in part.branches), initial=rows))[1:]
            fits = [self._room([*prefixes, n], end) >= 0 for n, end in zip(part.prompts, ends, strict=True)]
            fitting = max(sum(fits), int(must))
            if _sequences(part.branches[:fitting]) < (1 if must else min(part.sequences, JOIN)):
                break
            most = left if joining else max(left, part.texts[0])
            fitting = min(fitting, sum(size <= most for size in part.texts))
            if fitting == 0:
                break
            joining.append(part.first(fitting))
            prefixes.append(joining[-1].prefix)
            rows, left = ends[fitting - 1], left - part.texts[fitting - 1]
            self.waiting.popleft()
            if fitting < len(part.branches):
                self.waiting.appendleft(Part.of(part.branches[fitting:]))
        stopped = len(self.live) - len(going)
        if stopped > len(self.live) // SPARE or (joining and (stopped or self.parts > parts)):
            self.live, self.parts, self.cache = branches, parts, self.cache.keep(going)
        return joining

    def _prefill(self, joining: list[Part]) -> torch.Tensor:
        """Run these parts' prompts, packed, with what has been drawn of them; the logits (B, V) after each of them."""
        for part in joining:
            self.parts.add(part)
            for branch in part.branches:
                branch.part = part
                if branch.draws is None:
                    streams = [np.random.default_rng(seed).random(self.max_new_tokens) for seed in branch.seeds]
                    branch.draws = (
                        np.stack(streams) if streams else np.zeros((len(branch.members), self.max_new_tokens))
                    )
            self.live += part.branches
        tree = pack([[branch.text for branch in part.branches] for part in joining])
        last_nodes, which = torch.tensor([path[-1] for path in tree.paths]).unique(return_inverse=True)
        packed: dict[Any, list[torch.Tensor]] = {}
        inputs = tree.inputs(self.device) | {"keep": packed, "use_cache": False}
        logits = self.model(**inputs, logits_to_keep=last_nodes.to(self.device)).logits[0, which.to(self.device)]
        places = iter(range(len(tree.paths)))
        groups = [[next(places) for _ in part.branches] for part in joining]
        self.cache.add(tree, groups, [len(branch.prompt) for part in joining for branch in part.branches], packed)
        return logits

    def _drafts(self) -> list[Tokens]:
        """(B,) What each branch may write behind its newest token."""
        places = []
        for branch in self.live:
            written = len(branch.tokens)
            place = None if branch.stopped else branch.draft.place(branch.tokens, written + branch.ahead)
            if place is not None:
                branch.ahead = place - written
            places.append(place)
        drafting = sum(place is not None for place in places)
        most = min(DRAFT, (DRAFTED - len(places)) // max(1, drafting))
        drafts: list[Tokens] = []
        for branch, place in zip(self.live, places, strict=True):
            size = max(0, min(most, self.max_new_tokens - len(branch.tokens) - 1))  # one more is drawn behind them
            drafts.append([] if place is None else branch.draft.tokens[place : place + size])
        return drafts

    def _step(self, drafts: list[Tokens]) -> torch.Tensor:
        """Run the newest token of every branch and its draft; the logits (N, V) after each of them."""
        counts = [1 + len(draft) for draft in drafts]
        self.cache.grow([len(branch.tokens) - 1 for branch in self.live], counts, self.max_new_tokens)
        newest, depths = [], []
        for branch, draft in zip(self.live, drafts, strict=True):
            newest += [branch.tokens[-1], *draft]
            depths += range(branch.depth, branch.depth + 1 + len(draft))
        tokens, positions = (torch.tensor([x], device=self.device) for x in (newest, depths))  # (1, N)
        mask = never_read(self.device)
        return self.model(
            input_ids=tokens, position_ids=positions, attention_mask=mask, branches=self.cache, use_cache=False
        ).logits[0]

    def _draw(self, branches: list[Branch], drafts: list[Tokens], logits: torch.Tensor) -> list[list[Branch]]:
        """What becomes of each branch with what its sequences draw from `logits` (N, V), those behind it and behind the
        tokens of its draft: several branches, where they draw different tokens; none, if it had stopped."""
        points = np.zeros((len(logits), max(len(branch.members) for branch in branches)))  # (N, S)
        ends = list(accumulate((1 + len(draft) for draft in drafts), initial=0))
        for branch, (start, end) in zip(branches, pairwise(ends), strict=True):
            if not branch.stopped:
                written = len(branch.tokens)
                points[start:end, : len(branch.members)] = branch.draws[:, written : written + end - start].T
        tokens, logps = (x.tolist() for x in _choose(logits, self.temperature, points))
        drawn: list[list[Branch]] = []
        for branch, draft, (start, end) in zip(branches, drafts, pairwise(ends), strict=True):
            became: list[Branch] = []
            following = None if branch.stopped else (branch, range(len(branch.members)))  # and whose draws are whose
            for token, of_all, its_logps in zip([*draft, None], tokens[start:end], logps[start:end], strict=True):
                if following is None:
                    break
                (before, columns), following = following, None
                for one, which in before.extended([of_all[i] for i in columns], [its_logps[i] for i in columns]):
                    # Where the log-probability is not finite the token is nobody's choice.
                    last = one.tokens[-1] in self.stop_ids or not math.isfinite(one.logps[-1])
                    one.stopped = last or len(one.tokens) == self.max_new_tokens
                    if one.tokens[-1] == token and not one.stopped:
                        following = one, [columns[i] for i in which]
                    else:
                        became.append(one)
            drawn.append(became)
        return drawn

    def _place(self, forks: list[tuple[int, Branch]]) -> None:
        """Put forks in the places of what has stopped, then behind the last, as far as there is room.

        The others wait, those of a group together, in front of what has not begun.
        """
        if not forks:
            return
        spare = [b for b, branch in enumerate(self.live) if branch.stopped]
        room = max(0, self._room([part.prefix for part in self.parts], len(self.live)) / self.max_new_tokens)
        rows = len(self.live) + int(min(room, _sequences(self.live) + _sequences(branch for _, branch in forks)))
        places = [*spare, *range(len(self.live), rows)][: len(forks)]
        if places:
            self.cache.fork([b for b, _ in forks[: len(places)]], places, rows)
        for place, (_, branch) in zip(places, forks, strict=False):
            self.live[place : place + 1] = [branch]
        left: dict[int, list[Branch]] = {}
        for _, branch in forks[len(places) :]:
            left.setdefault(branch.group, []).append(branch)
        for group, branches in left.items():
            begun = [part for part in self.waiting if part.branches[0].tokens and part.branches[0].group == group]
            for part in begun:
                self.waiting.remove(part)
                branches = part.branches + branches
            self.waiting.appendleft(Part.of(branches))


def _choose(logits: torch.Tensor, temperature: float, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse-CDF choices from `logits` (B, V) for random numbers (B, S), greedy ones at temperature 0.

    Returns tokens and their log-probabilities, (B, S).
    """
    points = torch.as_tensor(uniforms, device=logits.device)
    chosen: list[torch.Tensor] = []
    taken: list[torch.Tensor] = []
    size = max(1, LOGITS_AT_ONCE // logits.shape[-1])  # some twenty bytes a logit are in use below
    for start in range(0, len(logits), size):
        logps = (logits[start : start + size].float() / (temperature or 1.0)).log_softmax(-1)
        if temperature == 0:
            chosen.append(logps.argmax(-1, keepdim=True).expand(-1, points.shape[1]))
        else:
            cumulative = logps.double().exp().cumsum(-1)
            at = points[start : start + size] * cumulative[:, -1:]
            chosen.append(torch.searchsorted(cumulative, at, right=True).clamp_max(logits.shape[-1] - 1))
        taken.append(logps.gather(-1, chosen[-1]))
    both = torch.stack((torch.cat(chosen).double(), torch.cat(taken).double())).cpu().numpy()  # one copy to the host
    return both[0].astype(np.int64), both[1]


@dataclass
class Sampler:
    """A policy as it is sampled: the model, the tokens that stop it, and how much it may write and hold at once.

    At most `cache_tokens` tokens are in the key-value cache, prompts and longest completions together; once memory has
    run out, half as many. `share` false computes and caches every prompt by itself, token by token.
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
        drafts: list[list[Tokens]] | None = None,
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
        while (results := self._unless_out_of_memory(groups, temperature, seeds, drafts)) is None:
            self._halve(groups)
        self.model.train(was_training)
        for completion in chain.from_iterable(results):
            completion.text = self.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        return results

    def _unless_out_of_memory(self, groups, temperature: float, seeds, drafts) -> list[list[Completion]] | None:
        try:
            with lean_lora(self.model):
                return generate(
                    self.model, groups, stop_ids=self.stop_ids, max_new_tokens=self.max_new_tokens,
                    temperature=temperature, seeds=seeds, cache_tokens=self.cache_tokens, drafts=drafts,
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
