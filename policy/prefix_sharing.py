"""Per-token log-probabilities of completions, with every shared prefix computed once, and the plain path beside it.

Token sequences are merged into a prefix tree and the tree is laid out depth first in one row. G completions of a prompt
share the prompt; the claims of one premise share the premise; completions that begin alike, or are equal, share their
tokens: one mechanism, whatever is nested in what. In depth-first order the descendants of node j are exactly the nodes
j+1 … end[j]-1, so node i sees node j iff j <= i < end[j]: that is the whole attention mask. Positions are depths, so
each sequence gets the numbers that it would get alone. A node is predicted by its parent's hidden state.

The mask of a row of L tokens has L² entries, nearly all false: a claim does not see the other claims, a group not the
other groups. So attention runs in dense pieces. A stretch of tokens without a branch attends to itself, causally, and
all that descends from it, which is one stretch too, attends to the whole of it: neither needs a mask. A query's softmax
over several pieces follows from those over each, by their log-sum-exp. Only small trees side by side share a mask.
Where a layer's sliding window is shorter than a row, its pieces are smaller, with masks at the window's edge.

The plain path is what everybody runs: a right-padded row a sequence and the model's own causal mask.

Dimensions: B sequences, T completion length, L packed length, M predicted tokens, d hidden size, V vocabulary.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import ModelOutput

from runtime.settings import check

Tokens = list[int]
ATTENTION = "prefix_tree"  # the attn_implementation of models that run packed rows
TILE = 128  # tokens of small trees that share a piece and its mask: fewer waste less, more need fewer calls
WINDOW_TILE = 512  # tokens, at most, of a piece within a sliding window: the mask of one at its edge has the square
UNSEEN = -3e4  # in masks: its exponential is 0, and a query that sees nothing of a piece is still finite, in fp16 too
# Rows in bf16 on a CPU have a multiple of so many tokens: oneDNN compiles a bf16 matrix product for every shape that it
# meets, which takes longer than to compute it.
CPU_BF16_TOKENS = 128
BEYOND = {"softcap": "soft-capped scores", "s_aux": "sinks"}  # arguments of attention that some models give
LOGITS_AT_ONCE = 2**24  # logits in memory: 64 MiB in fp32


# --- the packed layout


@dataclass
class Piece:
    """Queries `rows` of a packed row and keys of theirs: all of `keys`; causally, if these are the rows themselves;
    or what `mask` allows, in fp32, (1, 1, q, k or more), 0 or UNSEEN."""

    rows: slice
    keys: slice
    mask: torch.Tensor | None = None

    @property
    def causal(self) -> bool:
        return self.mask is None and self.rows == self.keys


@dataclass
class PackedTree:
    """Token sequences merged into a forest of prefix trees, in depth-first order."""

    tokens: list[int]  # (L,)
    depths: list[int]  # (L,) position of the node in its sequence
    parents: list[int]  # (L,) index of the node that predicts this one, -1 for a root
    ends: list[int]  # (L,) one past the node's last descendant
    paths: list[list[int]]  # per sequence, in the caller's order: the packed index of each of its tokens
    _pieces: dict[tuple, list[Piece]] = field(default_factory=dict, repr=False, compare=False)  # by device and window

    def __len__(self) -> int:
        return len(self.tokens)

    def pieces(self, device: torch.device, window: int | None = None) -> list[Piece]:
        """The attention mask, where anything is in it. Each token is in one piece whose rows are its keys; these come
        first. Memory grows with L, and the number of pieces with the sequences.

        With a `window` a token sees itself and those less than so many positions before it.
        """
        if window is not None and window > max(self.depths):
            window = None
        key = device, window
        if key not in self._pieces:
            found = self._all_pieces(device) if window is None else self._window_pieces(device, window)
            self._pieces[key] = found
        return self._pieces[key]

    def _all_pieces(self, device: torch.device) -> list[Piece]:
        own: list[Piece] = []
        ancestors: list[Piece] = []
        forests = [(0, len(self))]  # stretches of trees that stand side by side
        while forests:
            start, stop = forests.pop()
            node = start  # trees from start to node wait for a piece together
            while node < stop:
                end = self.ends[node]
                if end - start > TILE and start < node:
                    own.append(self._together(start, node, device))
                    start = node
                if end - node > TILE:
                    branch = next(k for k in range(node + 1, end + 1) if k == end or self.ends[k] < end)
                    own.append(Piece(slice(node, branch), slice(node, branch)))
                    if branch < end:
                        ancestors.append(Piece(slice(branch, end), slice(node, branch)))
                        forests.append((branch, end))
                    start = end
                node = end
            if start < stop:
                own.append(self._together(start, stop, device))
        return own + ancestors

    def _together(self, start: int, stop: int, device: torch.device) -> Piece:
        """The piece of small trees side by side."""
        rows = slice(start, stop)
        if all(end == stop for end in self.ends[rows]):
            return Piece(rows, rows)
        return Piece(rows, rows, as_bias(self.visible(start, stop), device)[None, None])

    def _window_pieces(self, device: torch.device, window: int) -> list[Piece]:
        """Those of `pieces` without a window, cut to what is within it."""
        depths = torch.tensor(self.depths)
        size = min(window, WINDOW_TILE)
        cut: list[Piece] = []
        for piece in self.pieces(device):
            # A piece with a mask is not cut: its tokens are in one piece whose rows are its keys.
            step = size if piece.mask is None else piece.rows.stop - piece.rows.start
            for rows in _tiles(piece.rows, step):
                for keys in _tiles(piece.keys, step):
                    if piece.rows == piece.keys and keys.start > rows.start:
                        continue
                    within = depths[rows][:, None] - depths[keys] < window
                    if piece.mask is not None:
                        within &= self.visible(rows.start, rows.stop)
                    if within.any():
                        whole = within.all() or (piece.causal and rows == keys)  # a tile is no longer than the window
                        cut.append(Piece(rows, keys, None if whole else as_bias(within, device)[None, None]))
        return sorted(cut, key=lambda piece: piece.rows != piece.keys)

    def visible(self, start: int, stop: int) -> torch.Tensor:
        """(q, k) Which of the nodes start to stop - 1, as queries, see which of them."""
        ends, index = torch.tensor(self.ends[start:stop]), torch.arange(start, stop)
        return (index <= index[:, None]) & (index[:, None] < ends)

    def fill(self, multiple: int) -> None:
        """Lengthen the row to a multiple of so many tokens by a sequence that is nobody's."""
        first, count = len(self), -len(self) % multiple
        self._pieces.clear()
        self.tokens += [0] * count
        self.depths += range(count)
        self.parents += [k - 1 if k > first else -1 for k in range(first, first + count)]
        self.ends += [first + count] * count

    def inputs(self, device: torch.device) -> dict:
        """What a model with `attn_implementation` ATTENTION takes: the packed row, and its tree."""
        return {
            "input_ids": torch.tensor(self.tokens, device=device)[None],  # (1, L)
            "position_ids": torch.tensor(self.depths, device=device)[None],
            "attention_mask": never_read(device),
            "tree": self,
        }


def never_read(device: torch.device) -> torch.Tensor:
    """An attention mask of four dimensions, which keeps the model from making one of its own, of L² entries."""
    return torch.empty((1, 1, 0, 0), dtype=torch.bool, device=device)


def as_bias(seen: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What is added to scores (..., k): 0 where `seen`, else UNSEEN; in fp32, (..., k or more)."""
    # CUDA's kernel reads rows that begin at multiples of 16 bytes.
    bias = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, UNSEEN)
    return pad(bias, (0, -seen.shape[-1] % 8), value=UNSEEN).to(device)


def _tiles(stretch: slice, size: int) -> list[slice]:
    return [slice(k, min(k + size, stretch.stop)) for k in range(stretch.start, stretch.stop, size)]


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


def alone(groups: list[list]) -> list[list]:
    """Each element a group of its own: where nothing is shared."""
    return [[one] for group in groups for one in group]


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


def attention_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """A decoder's query heads, its key-value heads, and the width of a head."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, key_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def cached_elements(config: PreTrainedConfig) -> int:
    """Of a token's keys and values, in all layers."""
    _, key_heads, width = attention_shape(config)
    return 2 * config.get_text_config().num_hidden_layers * key_heads * width


class TreeAttention(torch.autograd.Function):
    """Attention of a packed row, piece by piece: of query, key and value (1, heads, L, d) the output (1, L, heads, d).

    Softmax over several pieces as in FlashAttention (arXiv 2205.14135, section 3.1). The kernels' backward pass takes
    output and log-sum-exp of the whole row, and so gives each piece's part of the gradients, without another forward.
    """

    @staticmethod
    def forward(ctx, query, key, value, pieces: list[Piece], scale: float) -> torch.Tensor:
        _, heads, length, _ = query.shape
        # Sums in fp32, of which each piece's kernel has only its own.
        output = query.new_empty((1, length, heads, value.shape[-1]), dtype=torch.float32).transpose(1, 2)
        total = query.new_empty((1, heads, length), dtype=torch.float32)  # log-sum-exp
        for piece in pieces:
            keys, values = (_for_each_query_head(x[:, :, piece.keys], heads) for x in (key, value))
            part, part_total = attend(query[:, :, piece.rows], keys, values, piece.mask, scale, piece.causal)
            so_far, total_so_far = output[:, :, piece.rows], total[:, :, piece.rows]
            if piece.rows == piece.keys:  # the first of these queries
                so_far.copy_(part)
                total_so_far.copy_(part_total)
            else:
                so_far.lerp_(part.float(), torch.sigmoid(part_total - total_so_far)[..., None])
                torch.logaddexp(total_so_far, part_total, out=total_so_far)
        output = output.transpose(1, 2).to(query.dtype)
        ctx.save_for_backward(query, key, value, output, total)
        ctx.pieces, ctx.scale = pieces, scale
        return output

    @staticmethod
    def backward(ctx, grad_output):
        query, key, value, output, total = ctx.saved_tensors  # checkpointing gives them once
        dtype = query.dtype
        inputs = [query, key, value, output.transpose(1, 2), grad_output.transpose(1, 2)]
        if query.device.type == "cpu":  # its kernel is slow at half precision, up to 18 times for short pieces
            inputs = [tensor.float() for tensor in inputs]
        query, key, value, output, grad_output = inputs
        heads, kv_heads = query.shape[1], key.shape[1]
        grads = [torch.empty_like(x) for x in (query, key, value)]
        for piece in ctx.pieces:
            rows, columns = piece.rows, piece.keys
            parts = _attend_backward(
                grad_output[:, :, rows], query[:, :, rows],
                *(_for_each_query_head(x[:, :, columns], heads) for x in (key, value)),
                output[:, :, rows], total[:, :, rows], piece, ctx.scale,
            )  # fmt: skip
            for grad, part, where in zip(grads, parts, (rows, columns, columns), strict=True):
                if part.shape[1] > grad.shape[1]:  # of each query head
                    part = part.unflatten(1, (kv_heads, -1)).sum(2)
                if rows == columns:  # the first; what follows is one piece for keys, one an ancestor for queries
                    grad[:, :, where] = part
                else:
                    grad[:, :, where] += part
        return *(grad.to(dtype) for grad in grads), None, None


def _for_each_query_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values (1, key-value heads, L, d), repeated if several query heads share one."""
    return x.repeat_interleave(heads // x.shape[1], dim=1) if x.shape[1] < heads else x


def _bias_for(bias: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """A bias (X, 1, q or 1, k or more) in the dtype of queries (X, heads, q, d), for every head."""
    if bias is None:
        return None
    return bias.to(query.dtype)[..., : key.shape[2]].expand(-1, query.shape[1], query.shape[2], -1)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of queries (X, heads, q, d) over keys and values (X, heads, k, d): softmax(scale·q·k + bias)·v (X, heads, q, d),
    and the logarithm of the sum of exponentials (X, heads, q) in fp32; `bias` as from `as_bias`, (X, 1, q or 1, k or
    more).

    By the kernels under torch's SDPA, which does not give the latter. They have scores in fp32 whatever the dtype: in
    half precision large ones, as Qwen2's biases make them, would be off by more than sampling forgives.
    """
    bias = _bias_for(bias, query, key)
    if query.is_cuda:  # the memory-efficient kernel, which Turing has too
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        output, total, *_ = kernel(query, key, value, bias, True, 0.0, causal, scale=scale)
        return output, total[:, :, : query.shape[2]]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)


def _attend_backward(grad, query, key, value, output, total, piece: Piece, scale: float) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key and value."""
    mask = _bias_for(piece.mask, query, key)
    if query.is_cuda:
        total = pad(total, (0, -total.shape[2] % 32), value=torch.inf)  # as the forward kernel returns it
        no_dropout = torch.empty((), dtype=torch.long)
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention_backward
        return kernel(
            grad, query, key, value, mask, output, total, no_dropout, no_dropout, 0.0, [True, True, True, False],
            piece.causal, scale=scale,
        )[:3]  # fmt: skip
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return kernel(grad, query, key, value, output, total, 0.0, piece.causal, attn_mask=mask, scale=scale)


def tree_attention(
    module, query, key, value, attention_mask, *, tree: PackedTree | None = None, keep=None, branches=None, **options
):
    """An attention function of transformers: by pieces for a packed row (1, heads, L, d), else SDPA as it is.

    In sampling `keep` takes a packed row's keys and values, by module, and `branches`, a BranchCache
    (branch_cache.py), attends for new tokens. Raises ValueError for what neither computes: soft-capped scores, sinks.
    """
    for name, what in BEYOND.items():
        check(options.get(name) is None, f"model: its attention has {what}, which SDPA does not compute; name another")
    window = options.get("sliding_window")
    if branches is not None:
        return branches.attend(module, query, key, value, options["scaling"], window), None
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    value = value.contiguous()  # Phi-3's are a view of its queries, keys and values in one: it would keep all three
    if keep is not None:
        keep[module] = [key.contiguous(), value]
    dropout = options.get("dropout")
    check(not dropout, f"prefix_sharing: it has no dropout in attention, this model's is {dropout}; set it false")
    device = query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # the meta device has none
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    return TreeAttention.apply(query, key, value, tree.pieces(query.device, window), options["scaling"]), None


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
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability of every completion token given its prompt and the tokens before it.

    `prompts[g][k]` and `completions[g][k]` are the k-th sequence of group g; sequences of one group share prefixes,
    unless `share` is false: then each is a padded row. The logits are divided by `temperature`, as in sampling. A
    sequence's token k stands at `positions[k]`, rising integers at least as many as the longest sequence has tokens,
    in place of k.

    Returns `logps` (B, T) and `entropies` (B, T) in fp32, zero beyond each completion's end, and the boolean `mask`
    (B, T), B running over the groups in order. `entropies`, zero throughout unless `entropy` asks for them, carry no
    gradient.
    """
    weight = next(model.parameters())
    device = weight.device
    groups = joined(prompts, completions)
    lengths = torch.tensor([len(completion) for group in completions for completion in group])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]  # (B, T)
    if share:
        multiple = CPU_BF16_TOKENS if (device.type, weight.dtype) == ("cpu", torch.bfloat16) else 1
        inputs, predicting, ids, order = _packed(groups, lengths.tolist(), device, multiple)
    else:
        inputs, predicting, ids, order = _padded(groups, lengths.tolist(), device)
    if positions is not None:
        in_order = torch.arange(inputs["input_ids"].shape[1])[None]
        places = inputs.get("position_ids", in_order).clamp(max=len(positions) - 1)  # what fills a row may be longer
        inputs["position_ids"] = positions.to(device)[places.to(device)]
    values = _token_logps(decode(model, inputs, predicting), ids, temperature, entropy)
    mask, order = mask.to(device), order.to(device)
    logps, entropies = (torch.zeros(mask.shape, device=device).masked_scatter(mask, x[order]) for x in values)
    return logps, entropies, mask


Layout = tuple[dict, torch.Tensor, torch.Tensor, torch.Tensor]


def _packed(groups: list[list[Tokens]], lengths: list[int], device: torch.device, multiple: int = 1) -> Layout:
    """Model inputs; positions that predict (M,), counted through all rows; what they predict (M,); which of M each
    completion token is.

    L and M are multiples of `multiple`, by tokens that are no completion's.
    """
    tree = pack(groups)
    tree.fill(multiple)
    nodes = torch.tensor([n for path, length in zip(tree.paths, lengths, strict=True) for n in path[-length:]])
    targets, order = nodes.unique(return_inverse=True)  # each node once, however many sequences run through it
    targets = pad(targets, (0, -len(targets) % multiple), value=len(tree) - 1)
    predicting, ids = torch.tensor(tree.parents)[targets], torch.tensor(tree.tokens)[targets]
    return tree.inputs(device), predicting.to(device), ids.to(device), order


def _padded(groups: list[list[Tokens]], lengths: list[int], device: torch.device) -> Layout:
    """As `_packed`, for a right-padded row a sequence."""
    rows = [torch.tensor(sequence) for group in groups for sequence in group]
    input_ids = pad_sequence(rows, batch_first=True)
    column = torch.arange(input_ids.shape[1])[None, :]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = ends - torch.tensor(lengths)[:, None]
    predicting = ((column >= starts - 1) & (column < ends - 1)).flatten().nonzero()[:, 0]
    ids = input_ids[(column >= starts) & (column < ends)]
    inputs = {"input_ids": input_ids.to(device), "attention_mask": (column < ends).long().to(device)}
    return inputs, predicting.to(device), ids.to(device), torch.arange(len(ids))


@contextmanager
def replaced(module: torch.nn.Module, forward: Callable):
    """In the block `forward` is what the module does."""
    own = vars(module).pop("forward", None)  # as accelerate's hooks leave one
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def causal_lm(model: torch.nn.Module) -> torch.nn.Module:
    """The model of transformers under DeepSpeed's and peft's wrappers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass
class Decoded:
    """Hidden states (M, d) that a model's head would read, and what the model makes of them."""

    model: torch.nn.Module  # of transformers
    hidden: torch.Tensor
    outputs: ModelOutput  # the decoder's

    @property
    def vocabulary(self) -> int:
        return self.model.get_output_embeddings().weight.shape[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(m, V) of hidden states (m, d), by the whole model but its decoder: with any soft cap or scale of its own."""
        outputs = replace(self.outputs, last_hidden_state=hidden[None])
        with replaced(self.model.get_decoder(), lambda *args, **options: outputs):
            return self.model(inputs_embeds=hidden[None], use_cache=False).logits[0]


def decode(model: torch.nn.Module, inputs: dict, predicting: torch.Tensor) -> Decoded:
    """Run the model but its head, which would read the hidden states at `predicting` (M,), counted through all rows.

    A call of the whole model keeps DeepSpeed's and peft's wrappers in it, which a call of its decoder would not.
    """
    inner, seen = causal_lm(model), {}
    assert inner.config._attn_implementation == ATTENTION, f"load the model with attn_implementation {ATTENTION!r}"
    run_decoder = inner.get_decoder().forward

    def remember(*args, **options):
        seen["outputs"] = run_decoder(*args, **options)
        return seen["outputs"]

    def read(hidden):
        seen["hidden"] = hidden.flatten(0, 1)[predicting]
        return hidden[:, :0]  # nobody reads what the model makes of it

    with replaced(inner.get_decoder(), remember), replaced(inner.get_output_embeddings(), read):
        model(**inputs, use_cache=False)
    return Decoded(inner, **seen)


def _token_logps(
    decoded: Decoded, ids: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (M,) of tokens `ids` (M,) that were predicted, in fp32.

    The head runs in chunks, and if there are several again in the backward pass: of M·V logits only LOGITS_AT_ONCE are
    ever in memory.
    """
    size = max(1, LOGITS_AT_ONCE // decoded.vocabulary)

    def chunk_logps(states: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Half-precision log-probabilities are off by up to 0.1 nat.
        logits = decoded.logits(states).float() / temperature
        log_z = logits.logsumexp(-1)
        entropies = torch.zeros_like(log_z)
        if entropy:
            with torch.no_grad():
                entropies = log_z - ((logits - log_z[:, None]).exp() * logits).sum(-1)
        return logits.gather(-1, tokens[:, None])[:, 0] - log_z, entropies

    if torch.is_grad_enabled() and len(ids) > size:
        chunk_logps = partial(checkpoint, chunk_logps, use_reentrant=False)  # a head may have dropout, an adapter's
    parts = [chunk_logps(*chunk) for chunk in zip(decoded.hidden.split(size), ids.split(size), strict=True)]
    logps, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return logps, entropies
