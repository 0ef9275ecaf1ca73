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

The plain path is what everybody runs: a right-padded row a sequence and the model's own causal mask.

Dimensions: B sequences, T completion length, L packed length, M predicted tokens, d hidden size, V vocabulary.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from runtime.settings import check

Tokens = list[int]
ATTENTION = "prefix_tree"  # the attn_implementation of models that run packed rows
TILE = 128  # tokens of small trees that share a piece and its mask: fewer waste less, more need fewer calls
# Rows in bf16 on a CPU have a multiple of so many tokens: oneDNN compiles a bf16 matrix product for every shape that it
# meets, which takes longer than to compute it.
CPU_BF16_TOKENS = 128
LOGITS_AT_ONCE = 2**24  # logits in memory: 64 MiB in fp32
# Root mean square difference of a token's log-probability between the two paths, in nats. SmolLM2-135M on released
# rows: 3e-6, 0.006, 0.05; with six prefix tokens hidden, positions that run on or branches seen by others: 0.25 to 1.6.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}
# Difference of attention and of its gradients from SDPA's in fp32, of their norm. On a CPU: 2e-7, 3e-4, 0.002.
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}


# --- the packed layout


@dataclass
class Piece:
    """Queries `rows` of a packed row and keys of theirs: all of `keys`; causally, if these are the rows themselves;
    or what `mask` allows, in fp32, (1, 1, q, k or more), 0 or -inf."""

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

    def __len__(self) -> int:
        return len(self.tokens)

    def pieces(self, device: torch.device) -> list[Piece]:
        """The attention mask, where anything is in it. Each token is in one piece whose rows are its keys; these come
        first. Memory grows with L, and the number of pieces with the sequences."""
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
        rows, size = slice(start, stop), stop - start
        if all(end == stop for end in self.ends[rows]):
            return Piece(rows, rows)
        # CUDA's kernel reads rows of masks that begin at multiples of 16 bytes.
        mask = torch.full((size, -(-size // 8) * 8), -torch.inf)
        mask[:, :size].masked_fill_(self.visible(start, stop), 0.0)
        return Piece(rows, rows, mask[None, None].to(device))

    def visible(self, start: int, stop: int) -> torch.Tensor:
        """(q, k) Which of the nodes start to stop - 1, as queries, see which of them."""
        ends, index = torch.tensor(self.ends[start:stop]), torch.arange(start, stop)
        return (index <= index[:, None]) & (index[:, None] < ends)

    def fill(self, multiple: int) -> None:
        """Lengthen the row to a multiple of so many tokens by a sequence that is nobody's."""
        first, count = len(self), -len(self) % multiple
        self.tokens += [0] * count
        self.depths += range(count)
        self.parents += [k - 1 if k > first else -1 for k in range(first, first + count)]
        self.ends += [first + count] * count

    def inputs(self, device: torch.device) -> dict:
        """What a model with `attn_implementation` ATTENTION takes: the packed row and its pieces."""
        return {
            "input_ids": torch.tensor(self.tokens, device=device)[None],  # (1, L)
            "position_ids": torch.tensor(self.depths, device=device)[None],
            # Never read: a mask of four dimensions keeps the model from making one of its own, of L² entries.
            "attention_mask": torch.empty((1, 1, 0, 0), dtype=torch.bool, device=device),
            "pieces": self.pieces(device),
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


def attention_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """A decoder's query heads, its key-value heads, and the width of a head."""
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, key_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def cached_elements(config: PreTrainedConfig) -> int:
    """Of a token's keys and values, in all layers."""
    _, key_heads, width = attention_shape(config)
    return 2 * config.num_hidden_layers * key_heads * width


class _TreeAttention(torch.autograd.Function):
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
            queries = query[:, :, piece.rows]
            part, part_total = attend(queries, keys, values, _mask_of(piece, queries), piece.causal, scale)
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


def _mask_of(piece: Piece, query: torch.Tensor) -> torch.Tensor | None:
    """In the dtype of the queries, for every head."""
    if piece.mask is None:
        return None
    size = query.shape[2]
    return piece.mask.to(query.dtype)[..., :size].expand(1, query.shape[1], size, size)


def attend(query, key, value, mask, causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernels under torch's SDPA, which does not give the log-sum-exp: output (B, heads, q, d) and that (B, heads,
    q)."""
    if query.is_cuda:  # the memory-efficient kernel, which Turing has too
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        output, total, *_ = kernel(query, key, value, mask, True, 0.0, causal, scale=scale)
        return output, total[:, :, : query.shape[2]]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)


def _attend_backward(grad, query, key, value, output, total, piece: Piece, scale: float) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key and value."""
    mask = _mask_of(piece, query)
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
    module, query, key, value, attention_mask, *, pieces: list[Piece] | None = None, keep=None, branches=None, **options
):
    """An attention function of transformers: by pieces for a packed row (1, heads, L, d), else SDPA as it is.

    In sampling (policy/sampling.py) `keep` takes a packed row's keys and values, by module, and `branches`, a
    BranchCache, attends for new tokens.
    """
    if branches is not None:
        return branches.attend(module, query, key, value, options["scaling"]), None
    if pieces is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    value = value.contiguous()  # Phi-3's are a view of its queries, keys and values in one: it would keep all three
    if keep is not None:
        keep[module] = [key.contiguous(), value]
    dropout = options.get("dropout")
    check(not dropout, f"prefix_sharing: it has no dropout in attention, this model's is {dropout}; set it false")
    device = query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # the meta device has none
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    return _TreeAttention.apply(query, key, value, pieces, options["scaling"]), None


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
    with _headless(model) as head:
        hidden = model(**inputs, use_cache=False, logits_to_keep=predicting).logits.flatten(0, -2)  # (M, d)
    values = _token_logps(head, hidden, ids, temperature, entropy)
    mask, order = mask.to(device), order.to(device)
    logps, entropies = (torch.zeros(mask.shape, device=device).masked_scatter(mask, x[order]) for x in values)
    return logps, entropies, mask


Layout = tuple[dict, torch.Tensor, torch.Tensor, torch.Tensor]


def _packed(groups: list[list[Tokens]], lengths: list[int], device: torch.device, multiple: int = 1) -> Layout:
    """Model inputs; positions that predict (M,); what they predict (M,); which of M each completion token is.

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


def check_gradients(model: torch.nn.Module) -> None:
    """Compare attention of a random packed row, in the model's shape, dtype and device, and its gradients, with SDPA's
    in fp32 under the whole mask: what a kernel's backward pass gets wrong, no log-probability shows.

    Raises ValueError if one of them differs by more than GRADIENT_TOLERANCE of its norm.
    """
    weight = next(p for p in model.parameters() if p.is_floating_point())
    heads, key_heads, width = attention_shape(model.config.get_text_config())
    prompt, other = list(range(2, 204)), list(range(2, 40))  # longer than a kernel's block, and no multiple of any
    tree = pack([[prompt + [k] * n for k, n in ((0, 150), (0, 33), (1, 31))], [other + [0] * 3, other + [1] * 7]])
    random = torch.Generator().manual_seed(0)
    shapes = [(1, n, len(tree), width) for n in (heads, key_heads, key_heads, heads)]
    *inputs, grad = (torch.randn(shape, generator=random).to(weight.device, weight.dtype) for shape in shapes)
    grad = grad.transpose(1, 2)

    def outcome(attention, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        output = attention(*leaves)
        return [x.detach().float() for x in (output, *torch.autograd.grad(output, leaves, grad.to(dtype)))]

    pieces, scale = tree.pieces(weight.device), width**-0.5
    found = outcome(lambda *tensors: _TreeAttention.apply(*tensors, pieces, scale), weight.dtype)
    options = {
        "attn_mask": tree.visible(0, len(tree)).to(weight.device),
        "scale": scale,
        "enable_gqa": heads != key_heads,
    }
    expected = outcome(lambda *t: scaled_dot_product_attention(*t, **options).transpose(1, 2), torch.float32)
    gap = max(float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True))
    limit = GRADIENT_TOLERANCE[weight.dtype]
    check(
        gap <= limit,
        f"prefix_sharing: attention on packed rows, or its gradient, differs by {gap:.2g} of its norm from SDPA's, "
        f"beyond the {limit} of {weight.dtype}: the kernels of {weight.device.type} fail; set prefix_sharing false",
    )
