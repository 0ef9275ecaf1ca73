"""The key-value cache of sampling: what begins alike is kept once, and the attention of new tokens over it.

The cache holds branches (sampling.py): a row of own tokens behind a prefix tree that the branches of a group share.

Dimensions: B branches in the cache, K tokens of a branch in a step at most, N new tokens of all branches, R groups, W
new tokens of a group at most, C tokens of a group's prefix tree at most, L of a packed row, T of what has been drawn of
branches that join, at most, H key-value heads, Q query heads for each of them, d head dimension.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from policy.prefix_sharing import PackedTree, as_bias, attend

BLOCK = 64  # tokens by which the room for own tokens grows
SPARE = 4  # room for one row more in so many is made at once, so that not every fork copies all


class BranchCache:
    """Keys and values of branches of shared prefixes, and the attention of a new token over them.

    The prefix tree of a group's prompts is held once, (R, H, C, d), and what each branch has drawn by itself, (B, H,
    room, d), in room that grows by BLOCK; a few rows more than B may be there. Both are held for each layer, by its
    attention module.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.prefixes: dict[Any, list[torch.Tensor]] = {}  # keys and values, (R, H, C, d)
        self.own: dict[Any, list[torch.Tensor]] = {}  # keys and values, (B or more, H, room, d)
        self.rows: list[int] = []  # (B,) the group of each branch
        self.counts: list[int] = []  # (B,) how many tokens of each are run now; none: they have to be arranged anew
        self.longest = 0  # own tokens of a branch, at most
        self.visible = torch.zeros((0, 0), dtype=torch.bool)  # (B, C) what it sees of its group's prefix tree

    def add(
        self, tree: PackedTree, groups: list[list[int]], prompts: list[int], packed: dict[Any, list[torch.Tensor]]
    ) -> None:
        """A branch for each sequence of `tree`, by group; of each so many tokens are its prompt, the others its own.

        `packed` are its keys and values by layer, (1, H, L, d).
        """
        before = [torch.tensor(path[:size]) for path, size in zip(tree.paths, prompts, strict=True)]
        behind = [torch.tensor(path[size:], dtype=torch.long) for path, size in zip(tree.paths, prompts, strict=True)]
        nodes = [torch.cat([before[b] for b in group]).unique() for group in groups]
        columns = pad_sequence(nodes, batch_first=True)  # (R, C)
        visible = torch.zeros((len(before), columns.shape[1]), dtype=torch.bool)
        for group, of_group in zip(groups, nodes, strict=True):
            for b in group:
                visible[b, torch.searchsorted(of_group, before[b])] = True
        columns, own_columns = (x.to(self.device) for x in (columns, pad_sequence(behind, batch_first=True)))  # (B, T)
        for layer in list(packed):
            pair = packed.pop(layer)  # so that of one layer alone there are two copies
            prefixes, own = (
                [x[0][:, where].transpose(0, 1).contiguous() for x in pair] for where in (columns, own_columns)
            )  # (R, H, C, d) and (B, H, T, d)
            self.prefixes[layer] = _stack(self.prefixes.get(layer), prefixes)
            held = [x[: len(self.rows)] for x in self.own[layer]] if self.rows else None
            self.own[layer] = _stack(held, own)
        (self.visible,) = _stack([self.visible] if self.rows else None, [visible])
        first = len(next(iter(self.prefixes.values()))[0]) - len(groups)
        self.rows += [first + r for r, group in enumerate(groups) for _ in group]
        self.longest = max(self.longest, own_columns.shape[1])
        self.counts = []

    def fork(self, sources: Sequence[int], places: Sequence[int], most: int) -> None:
        """Copy branches to `places`: of those that have stopped, or new ones behind the last; `most` there will be."""
        sources_, places_ = (torch.tensor(index, device=self.device) for index in (sources, places))
        rows = max(len(self.rows), *(place + 1 for place in places))
        for layer, pair in self.own.items():
            if rows > len(pair[0]):  # in some, so that not every fork copies all
                more = min(most, rows + rows // SPARE) - len(pair[0])
                pair = self.own[layer] = [pad(x, (0,) * 7 + (more,)) for x in pair]
            for x in pair:
                x[places_, :, : self.longest] = x[sources_, :, : self.longest]
        new = rows - len(self.rows)
        self.visible = pad(self.visible, (0, 0, 0, new))
        self.visible[places] = self.visible[sources]
        self.rows += [0] * new
        for source, place in zip(sources, places, strict=True):
            self.rows[place] = self.rows[source]
        self.counts = []

    def keep(self, branches: Sequence[int]) -> "BranchCache":
        """Drop all branches but these, and the prefixes that none of them has; returns what is left."""
        if not branches:
            return BranchCache(self.device)
        groups = sorted({self.rows[b] for b in branches})
        visible = self.visible[torch.tensor(branches)]
        width = int(visible.any(dim=0).nonzero().max()) + 1
        self.visible = visible[:, :width]
        for held, chosen, size in ((self.own, branches, None), (self.prefixes, groups, width)):
            index = torch.tensor(chosen, device=self.device)
            for layer, pair in held.items():
                held[layer] = [x[index, :, :size] for x in pair]
        self.rows = [groups.index(self.rows[b]) for b in branches]
        self.counts = []
        return self

    def grow(self, lengths: list[int], counts: list[int], most: int) -> None:
        """Make room for the next `counts` (B,) tokens of branches that have `lengths` (B,) tokens of their own.

        None will ever have more than `most`. What is there behind `lengths` is forgotten.
        """
        ends = [length + k for length, count in zip(lengths, counts, strict=True) for k in range(count)]
        self.longest = max(ends) + 1
        more = min(most, -(-self.longest // BLOCK) * BLOCK) - next(iter(self.own.values()))[0].shape[2]
        for layer, pair in self.own.items() if more > 0 else ():
            self.own[layer] = [pad(x, (0, 0, 0, more)) for x in pair]
        if counts != self.counts:
            self._arrange(counts)
        self.ends = torch.tensor(ends, device=self.device)  # (N,) where the new tokens go
        self.all_seen = max(counts) == 1 and min(lengths) + 1 == self.longest
        self.positions = self.depths[:, -1] + torch.tensor(ends) + 1  # (N,) of the new tokens
        self.own_bias: dict[int | None, torch.Tensor] = {}  # (B, 1, K·Q, longest) by window
        self.prefix_bias = {None: self.prefix_bias[None]} if None in self.prefix_bias else {}

    def _arrange(self, counts: list[int]) -> None:
        """Where the new tokens are if those of a branch stand side by side, (B, K), and if those of a group do, (R, W);
        and the prefix that they see."""
        self.counts = counts
        of_branch = [[n - count + k for k in range(count)] for n, count in zip(accumulate(counts), counts, strict=True)]
        of_group: list[list[int]] = [[] for _ in next(iter(self.prefixes.values()))[0]]
        for row, tokens in zip(self.rows, of_branch, strict=True):
            of_group[row] += tokens
        self.by_branch, self.in_branch = self._grid(of_branch)
        self.by_group, self.in_group = self._grid(of_group)
        branches = torch.tensor([b for b, count in enumerate(counts) for _ in range(count)])
        self.branches = branches.to(self.device)  # (N,)
        self.seen = self.visible[branches]  # (N, C)
        self.depths = self.seen.cumsum(-1) - 1  # (N, C) where in its prompt a token sees a node
        self.prefix_bias: dict[int | None, torch.Tensor] = {}  # (R, 1, W·Q, C) by window, once a layer has asked for it

    def _grid(self, rows: list[list[int]]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Tokens in rows of equal length, any filling them up, and where in that, read row by row, each token is; None
        if every token is a row."""
        if rows == [[n] for n in range(len(rows))]:
            return None, None
        width = max(map(len, rows))
        grid = torch.tensor([row + (row or [0])[:1] * (width - len(row)) for row in rows])
        place = {n: r * width + k for r, row in enumerate(rows) for k, n in enumerate(row)}
        return grid.to(self.device), torch.tensor([place[n] for n in range(len(place))]).to(self.device)

    def _bias_of_prefix(self, window: int | None, query: torch.Tensor) -> torch.Tensor:
        """(R, 1, W·Q, C or more): 0, or UNSEEN for what is of another branch or beyond the window."""
        if window not in self.prefix_bias:
            seen = self.seen
            if window is not None:
                seen = seen & (self.positions[:, None] - self.depths < window)
            bias = as_bias(seen, self.device).to(query.dtype)
            bias = bias[:, None] if self.by_group is None else bias[self.by_group]  # (R, W, C or more)
            self.prefix_bias[window] = bias.repeat_interleave(query.shape[2], dim=1)[:, None]
        return self.prefix_bias[window]

    def _bias_of_own(self, window: int | None, query: torch.Tensor) -> torch.Tensor | None:
        """(B, 1, K·Q, longest or more): 0, or UNSEEN for what is not there yet or beyond the window; None if all is
        seen."""
        if window is None and self.all_seen:
            return None
        if window not in self.own_bias:
            ends = self.ends[:, None] if self.by_branch is None else self.ends[self.by_branch]  # (B, K)
            back = ends[..., None] - torch.arange(self.longest, device=self.device)  # (B, K, longest)
            seen = (back >= 0) & (back < (window or self.longest))
            bias = as_bias(seen, self.device).to(query.dtype)
            self.own_bias[window] = bias.repeat_interleave(query.shape[2], dim=1)[:, None]
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
        """Attention of the new tokens (1, heads, N, d), which it keeps: (1, N, heads, d).

        Each sees itself and what is before it, of a layer with a `window` less than so many positions before.

        The softmax over prefix and own tokens is the mean of those over each, weighted by their sums of exponentials:
        with l their logarithms, a sigmoid of the difference (as in FlashAttention, arXiv 2205.14135, section 3.1).
        """
        heads = key.shape[1]
        for held, new in zip(self.own[layer], (key, value), strict=True):
            held[self.branches, :, self.ends] = new[0].transpose(0, 1)
        query = query[0].transpose(0, 1).unflatten(1, (heads, -1))  # (N, H, Q, d)
        if window is not None and window > int(self.positions.max()):
            window = None

        def over(held: list[torch.Tensor], grid, place, bias) -> Sequence[torch.Tensor]:
            """(N, H, Q, d), and the sums' logarithms (N, H, Q), over keys and values (X, H, Z, d) of a grid (X, Y)."""
            if grid is None:
                return attend(query, *held, bias, scaling)
            asked = query[grid].transpose(1, 2).flatten(2, 3)  # (X, H, Y·Q, d)
            parts = attend(asked, *held, bias, scaling)
            return [x.unflatten(2, (grid.shape[1], -1)).transpose(1, 2).flatten(0, 1)[place] for x in parts]

        tokens = [x[: len(self.rows), :, : self.longest] for x in self.own[layer]]
        own, own_total = over(tokens, self.by_branch, self.in_branch, self._bias_of_own(window, query))
        biased = self._bias_of_prefix(window, query)
        prefix, prefix_total = over(self.prefixes[layer], self.by_group, self.in_group, biased)
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
