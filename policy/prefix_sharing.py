"""Per-token log-probabilities of completions, with every shared prefix computed once, and the plain path beside it.

Token sequences are merged into a prefix tree and the tree is laid out depth first in one row. G completions of a prompt
share the prompt; the claims of one premise share the premise; completions that begin alike, or are equal, share their
tokens: one mechanism, whatever is nested in what. In depth-first order the descendants of node j are exactly the nodes
j+1 … end[j]-1, so node i sees node j iff j <= i < end[j]: that is the whole attention mask. Positions are depths, so
each sequence gets the numbers that it would get alone. A node is predicted by its parent's hidden state.

The mask of a row of L tokens has L² entries, nearly all false: a claim does not see the other claims, a group not the
other groups. So attention runs in tiles of TILE queries, each against the blocks of keys in which it sees anything.

The plain path is what everybody runs: a right-padded row a sequence and the model's own causal mask.

Dimensions: B sequences, T completion length, L packed length, M predicted tokens, d hidden size, V vocabulary.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from runtime.settings import check

Tokens = list[int]
ATTENTION = "prefix_tree"  # the attn_implementation of models that run packed rows
TILE = 128  # queries that attend at once, and keys in a block: fewer waste less, more need fewer calls
LOGITS_AT_ONCE = 2**24  # logits in memory: 64 MiB in fp32
# Root mean square difference of a token's log-probability between the two paths, in nats. SmolLM2-135M on released
# rows: 3e-6, 0.006, 0.05; with six prefix tokens hidden, positions that run on or branches seen by others: 0.25 to 1.6.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}


# --- the packed layout


@dataclass
class Tile:
    """Queries `rows` of a packed row, the `blocks` of keys they see anything of, and the mask between (1, 1, q, k)."""

    rows: slice
    blocks: list[slice]
    mask: torch.Tensor


@dataclass
class PackedTree:
    """Token sequences merged into a forest of prefix trees, in depth-first order."""

    tokens: list[int]  # (L,)
    depths: list[int]  # (L,) position of the node in its sequence
    parents: list[int]  # (L,) index of the node that predicts this one, -1 for a root
    ends: list[int]  # (L,) one past the node's last descendant
    paths: list[list[int]]  # per sequence, in the caller's order: the packed index of each of its tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def tiles(self, device: torch.device) -> list[Tile]:
        """The attention mask, where anything is in it: memory grows with L times the longest path."""
        ends, index = torch.tensor(self.ends), torch.arange(len(self))
        last_seen = [int(block.max()) for block in ends.split(TILE)]  # one past the last query that sees the block
        tiles = []
        for rows in index.split(TILE):
            start, stop = int(rows[0]), int(rows[-1]) + 1
            blocks: list[slice] = []
            for b in range(start // TILE + 1):
                if last_seen[b] > start:
                    low, high = b * TILE, min((b + 1) * TILE, stop)
                    if blocks and blocks[-1].stop == low:
                        low = blocks.pop().start
                    blocks.append(slice(low, high))
            columns = torch.cat([index[block] for block in blocks])
            mask = (columns[None, :] <= rows[:, None]) & (rows[:, None] < ends[columns][None, :])
            tiles.append(Tile(slice(start, stop), blocks, mask[None, None].to(device)))
        return tiles

    def inputs(self, device: torch.device) -> dict:
        """What a model with `attn_implementation` ATTENTION takes: the packed row and its tiles."""
        return {
            "input_ids": torch.tensor(self.tokens, device=device)[None],  # (1, L)
            "position_ids": torch.tensor(self.depths, device=device)[None],
            # Never read: a mask of four dimensions keeps the model from making one of its own, of L² entries.
            "attention_mask": torch.empty((1, 1, 0, 0), dtype=torch.bool, device=device),
            "tiles": self.tiles(device),
        }


def pack(groups: list[list[Tokens]]) -> PackedTree:
    """Merge the sequences of each group into a prefix tree and lay the trees side by side."""
    tree = PackedTree([], [], [], [], [])
    for group in groups:
        paths: list[list[int]] = [[] for _ in group]
        previous: Tokens = []
        path: list[int] = []
        for b in sorted(range(len(group)), key=group.__getitem__):  # sorting makes shared prefixes neighbours
            sequence = group[b]
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(previous, sequence, strict=False)))
            for node in path[shared:]:
                tree.ends[node] = len(tree)
            path = path[:shared]
            for depth in range(shared, len(sequence)):
                tree.parents.append(path[-1] if path else -1)
                path.append(len(tree))
                tree.tokens.append(sequence[depth])
                tree.depths.append(depth)
                tree.ends.append(-1)
            paths[b], previous = path, sequence
        for node in path:
            tree.ends[node] = len(tree)
        tree.paths += paths
    return tree


def plan_micro_batches(groups: list[list[Tokens]], token_budget: int, share: bool = True) -> list[list[int]]:
    """Split groups into micro-batches of at most `token_budget` computed tokens; a larger group stands alone.

    With `share` a group takes its packed tokens; without, a padded row for each of its sequences.
    Returns lists of group indices. Whole groups stay together, and groups of like size meet, longest first, so that an
    out-of-memory error comes in the first step or not at all.
    """
    if share:
        widths, heights = [len(pack([group])) for group in groups], [1] * len(groups)
    else:
        widths, heights = [max(map(len, group)) for group in groups], list(map(len, groups))
    batches: list[list[int]] = []
    width = room = 0
    for g in sorted(range(len(groups)), key=lambda g: (-widths[g], g)):
        cost = heights[g] * (widths[g] if share else width)
        if not batches or cost > room:
            width = widths[g]
            cost = heights[g] * width
            batches.append([])
            room = max(token_budget, cost)
        batches[-1].append(g)
        room -= cost
    return batches


# --- attention over a packed row


class _TreeAttention(torch.autograd.Function):
    """Attention of a packed row, tile by tile.

    The row's own query, key and value are all that is kept: the backward pass runs each tile again, so that the keys
    and values that many tiles see are not stored once for each. Their gradients are summed over the tiles in fp32.
    """

    @staticmethod
    def forward(ctx, query, key, value, tiles: list[Tile], attend: Callable) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.tiles, ctx.attend = tiles, attend
        device = query.device.type
        ctx.autocast = nullcontext()
        if torch.amp.is_autocast_available(device):  # the meta device, where memory.py counts, has none
            dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
            ctx.autocast = torch.autocast(device, dtype, enabled)
        return torch.cat([attend(*_tile_of(query, key, value, tile), tile.mask)[0] for tile in tiles], dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        inputs = ctx.saved_tensors
        grads = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in inputs]
        for tile in ctx.tiles:
            with torch.enable_grad(), ctx.autocast:  # a backward pass runs outside of autocast
                leaves = [tensor.detach().requires_grad_() for tensor in _tile_of(*inputs, tile)]
                output = ctx.attend(*leaves, tile.mask)[0]
            of_query, *of_blocks = torch.autograd.grad(output, leaves, grad_output[:, tile.rows])
            grads[0][:, :, tile.rows] = of_query
            sizes = [block.stop - block.start for block in tile.blocks]
            for total, of_block in zip(grads[1:], of_blocks, strict=True):
                for block, part in zip(tile.blocks, of_block.split(sizes, dim=2), strict=True):
                    total[:, :, block] += part
        return *(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True)), None, None


def _tile_of(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tile: Tile) -> list[torch.Tensor]:
    keys, values = (torch.cat([x[:, :, block] for block in tile.blocks], dim=2) for x in (key, value))
    return [query[:, :, tile.rows], keys, values]


def tree_attention(
    module, query, key, value, attention_mask, *, tiles: list[Tile] | None = None, keep=None, branches=None, **options
):
    """An attention function of transformers: SDPA by tiles for a packed row (1, heads, L, d), else SDPA as it is.

    In sampling (policy/sampling.py) `keep` takes a packed row's keys and values, by module, and `branches`, a
    BranchCache, attends for new tokens.
    """
    if branches is not None:
        return branches.attend(module, query, key, value, options["scaling"]), None
    if keep is not None:
        # Phi-3's values are a view of its queries, keys and values in one: that would keep all three.
        keep[module] = [key.contiguous(), value.contiguous()]
    if tiles is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return _TreeAttention.apply(query, key, value, tiles, partial(sdpa_attention_forward, module, **options)), None


AttentionInterface.register(ATTENTION, tree_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# --- log-probabilities


def joined(prompts: list[list[Tokens]], completions: list[list[Tokens]]) -> list[list[Tokens]]:
    """Each prompt with its completion, group by group."""
    return [[p + c for p, c in zip(*group, strict=True)] for group in zip(prompts, completions, strict=True)]


def sequence_logps(
    model: torch.nn.Module,
    prompts: list[list[Tokens]],
    completions: list[list[Tokens]],
    temperature: float = 1.0,
    share: bool = True,
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability of every completion token given its prompt and the tokens before it.

    `prompts[g][k]` and `completions[g][k]` are the k-th sequence of group g; sequences of one group share prefixes,
    unless `share` is false: then each is a padded row. The logits are divided by `temperature`, as in sampling.

    Returns `logps` (B, T) and `entropies` (B, T) in fp32, zero beyond each completion's end, and the boolean `mask`
    (B, T), B running over the groups in order. `entropies`, zero throughout unless `entropy` asks for them, carry no
    gradient.
    """
    device = next(model.parameters()).device
    groups = joined(prompts, completions)
    lengths = torch.tensor([len(completion) for group in completions for completion in group])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]  # (B, T)
    inputs, predicting, ids, order = (_packed if share else _padded)(groups, lengths.tolist(), device)
    with _headless(model) as head:
        hidden = model(**inputs, use_cache=False, logits_to_keep=predicting).logits.flatten(0, -2)  # (M, d)
    values = _token_logps(head, hidden, ids, temperature, entropy)
    mask, order = mask.to(device), order.to(device)
    logps, entropies = (torch.zeros(mask.shape, device=device).masked_scatter(mask, x[order]) for x in values)
    return logps, entropies, mask


Layout = tuple[dict, torch.Tensor, torch.Tensor, torch.Tensor]


def _packed(groups: list[list[Tokens]], lengths: list[int], device: torch.device) -> Layout:
    """Model inputs; positions that predict (M,); what they predict (M,); which of M each completion token is."""
    tree = pack(groups)
    nodes = torch.tensor([n for path, length in zip(tree.paths, lengths, strict=True) for n in path[-length:]])
    targets, order = nodes.unique(return_inverse=True)  # each node once, however many sequences run through it
    predicting, ids = torch.tensor(tree.parents)[targets], torch.tensor(tree.tokens)[targets]
    return tree.inputs(device), predicting.to(device), ids.to(device), order


def _padded(groups: list[list[Tokens]], lengths: list[int], device: torch.device) -> Layout:
    """As `_packed`, for a right-padded row a sequence; the positions are a mask (B, width)."""
    rows = [torch.tensor(sequence) for group in groups for sequence in group]
    input_ids = pad_sequence(rows, batch_first=True)
    column = torch.arange(input_ids.shape[1])[None, :]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = ends - torch.tensor(lengths)[:, None]
    predicting = (column >= starts - 1) & (column < ends - 1)
    ids = input_ids[(column >= starts) & (column < ends)]
    inputs = {"input_ids": input_ids.to(device), "attention_mask": (column < ends).long().to(device)}
    return inputs, predicting.to(device), ids.to(device), torch.arange(len(ids))


@contextmanager
def _headless(model: torch.nn.Module):
    """In the block the model returns as its logits the hidden states that its head would read; yields the head.

    A call through the whole model keeps DeepSpeed's and peft's wrappers in it, which a call of its decoder would not.
    """
    causal_lm = getattr(model, "module", model)
    causal_lm = causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm
    assert causal_lm.config._attn_implementation == ATTENTION, f"load the model with attn_implementation {ATTENTION!r}"
    head = causal_lm.get_output_embeddings()
    own = vars(head).pop("forward", None)  # as accelerate's hooks leave one
    head.forward = lambda hidden: hidden
    try:
        yield head
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def _token_logps(
    head: torch.nn.Module, hidden: torch.Tensor, ids: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (M,) of tokens `ids` (M,) that `hidden` (M, d) predict, in fp32.

    The head runs in chunks, and if there are several again in the backward pass: of M·V logits only LOGITS_AT_ONCE are
    ever in memory.
    """
    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])

    def chunk_logps(states: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Half-precision log-probabilities are off by up to 0.1 nat.
        logits = head(states).float() / temperature
        log_z = logits.logsumexp(-1)
        entropies = torch.zeros_like(log_z)
        if entropy:
            with torch.no_grad():
                entropies = log_z - ((logits - log_z[:, None]).exp() * logits).sum(-1)
        return logits.gather(-1, tokens[:, None])[:, 0] - log_z, entropies

    if torch.is_grad_enabled() and len(ids) > size:
        chunk_logps = partial(checkpoint, chunk_logps, use_reentrant=False, preserve_rng_state=False)
    parts = [chunk_logps(*chunk) for chunk in zip(hidden.split(size), ids.split(size), strict=True)]
    logps, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return logps, entropies


# --- self-check


@torch.no_grad()
def check_prefix_sharing(
    model: torch.nn.Module, prompts: list[list[Tokens]], completions: list[list[Tokens]], token_budget: int
) -> float:
    """Compare the packed path with the plain one on as many of these sequences as fit `token_budget` padded tokens.

    Returns the root mean square difference of a token's log-probability, in nats. Raises ValueError if it is beyond
    what the order of summation explains in the model's dtype (TOLERANCE): an attention that does not respect the tree
    would train on wrong numbers without a sign.
    """
    width = max(
        len(p) + len(c) for group in zip(prompts, completions, strict=True) for p, c in zip(*group, strict=True)
    )
    room = max(2, token_budget // width)
    taken_prompts, taken_completions = [], []
    for group_prompts, group_completions in zip(prompts, completions, strict=True):
        if room > 0:
            taken_prompts.append(group_prompts[:room])
            taken_completions.append(group_completions[:room])
            room -= len(taken_prompts[-1])
    was_training = model.training
    model.eval()  # dropout would differ between the two
    (shared, _, mask), (plain, _, _) = (
        sequence_logps(model, taken_prompts, taken_completions, share=share) for share in (True, False)
    )
    model.train(was_training)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    gap = float((shared - plain)[mask].square().mean().sqrt())
    check(
        gap <= TOLERANCE[dtype],  # false for nan too
        f"prefix_sharing: log-probabilities differ by {gap:.2g} nats from the plain path's on the first batch, beyond "
        f"the {TOLERANCE[dtype]} of {dtype}: this model does not work on packed rows; set prefix_sharing false",
    )
    return gap
