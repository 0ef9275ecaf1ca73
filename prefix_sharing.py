"""Per-token log-probabilities of completions, with every shared prefix computed once.

Token sequences are merged into a prefix tree and the tree is laid out depth first in one row. G completions of a prompt
share the prompt; the claims of one premise share the premise; completions that begin alike, or are equal, share their
tokens: one mechanism, whatever is nested in what. In depth-first order the descendants of node j are exactly the nodes
j+1 … end[j]-1, so node i sees node j iff j <= i < end[j]: that is the whole attention mask. Positions are depths, so
each sequence gets the numbers that it would get alone. A node is predicted by its parent's hidden state.

Dimensions: B sequences, T completion length, L packed length, H distinct predicting nodes, V vocabulary.
"""

from dataclasses import dataclass
from itertools import takewhile

import torch

Tokens = list[int]


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

    def tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Model inputs: `input_ids`, `position_ids` (1, L) and the boolean mask `attention_mask` (1, 1, L, L)."""
        ends = torch.tensor(self.ends, device=device)
        index = torch.arange(len(self), device=device)
        mask = (index[None, :] <= index[:, None]) & (index[:, None] < ends[None, :])  # (L, L): row i sees column j
        return {
            "input_ids": torch.tensor(self.tokens, device=device)[None],
            "position_ids": torch.tensor(self.depths, device=device)[None],
            "attention_mask": mask[None, None],
        }


def pack(groups: list[list[Tokens]], share: bool = True) -> PackedTree:
    """Merge the sequences of each group into a prefix tree and lay the trees side by side.

    `share=False` gives each sequence a tree of its own: the same numbers from more tokens.
    """
    tree = PackedTree([], [], [], [], [])
    if not share:
        groups = [[sequence] for group in groups for sequence in group]
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


def plan_micro_batches(
    groups: list[list[Tokens]], token_budget: int, share: bool = True, new_tokens: int = 0
) -> list[list[int]]:
    """Split groups into micro-batches of at most `token_budget` packed tokens; a larger group stands alone.

    `new_tokens` is room that each sequence needs besides, to grow. Returns lists of group indices. Whole groups stay
    together, and groups of like size meet, longest first, so that an out-of-memory error comes in the first step or
    not at all.
    """
    sizes = [len(pack([group], share)) + new_tokens * len(group) for group in groups]
    batches: list[list[int]] = []
    room = 0
    for g in sorted(range(len(groups)), key=lambda g: -sizes[g]):
        if sizes[g] > room:
            batches.append([])
            room = max(token_budget, sizes[g])
        batches[-1].append(g)
        room -= sizes[g]
    return batches


def sequence_logps(
    model: torch.nn.Module,
    prompts: list[list[Tokens]],
    completions: list[list[Tokens]],
    temperature: float = 1.0,
    share: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability of every completion token given its prompt and the tokens before it.

    `prompts[g][k]` and `completions[g][k]` are the k-th sequence of group g; sequences of one group share prefixes. The
    logits are divided by `temperature`, as in sampling.

    Returns `logps` (B, T) and `entropies` (B, T) in fp32, zero beyond each completion's end, and the boolean `mask`
    (B, T), B running over the groups in order. `entropies` carries no gradient.
    """
    device = next(model.parameters()).device
    tree = pack(
        [[p + c for p, c in zip(*group, strict=True)] for group in zip(prompts, completions, strict=True)], share
    )
    lengths = [len(completion) for group in completions for completion in group]
    shape = (len(lengths), max(lengths))
    nodes = torch.zeros(shape, dtype=torch.long)  # (B, T) packed index of each completion token
    mask = torch.zeros(shape, dtype=torch.bool)
    for b, (path, length) in enumerate(zip(tree.paths, lengths, strict=True)):
        nodes[b, :length] = torch.tensor(path[len(path) - length :])
        mask[b, :length] = True
    targets, inverse = nodes[mask].unique(return_inverse=True)  # each node once, however many sequences run through it
    heads, head_of_target = torch.tensor(tree.parents)[targets].unique(return_inverse=True)  # (H,)
    logits = model(**tree.tensors(device), use_cache=False, logits_to_keep=heads.to(device)).logits[0]  # (H, V)
    # Half-precision log-probabilities are off by up to 0.1 nat.
    logits = logits.float() / temperature
    log_z = logits.logsumexp(-1)
    with torch.no_grad():
        entropy = log_z - ((logits - log_z[:, None]).exp() * logits).sum(-1)
    ids = torch.tensor(tree.tokens)[targets].to(device)
    head_of_target, inverse, mask = head_of_target.to(device), inverse.to(device), mask.to(device)
    node_logps = logits[head_of_target, ids] - log_z[head_of_target]
    logps = torch.zeros(shape, device=device).masked_scatter(mask, node_logps[inverse])
    entropies = torch.zeros(shape, device=device).masked_scatter(mask, entropy[head_of_target][inverse])
    return logps, entropies, mask


def padded_logps(
    model: torch.nn.Module, prompts: list[Tokens], completions: list[Tokens], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain path, a right-padded row a sequence; `sequence_logps` must equal it. Returns `logps`, `mask` (B, T)."""
    device = next(model.parameters()).device
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    shape = (len(prompts), max(map(len, completions)))
    input_ids = torch.zeros((len(prompts), width), dtype=torch.long, device=device)
    attention_mask = torch.zeros_like(input_ids)
    for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        input_ids[b, : len(prompt) + len(completion)] = torch.tensor(prompt + completion, device=device)
        attention_mask[b, : len(prompt) + len(completion)] = 1
    all_logps = (model(input_ids, attention_mask=attention_mask).logits.float() / temperature).log_softmax(-1)
    logps = torch.zeros(shape, device=device)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.tensor(completion, device=device)[:, None]
        predicting = all_logps[b, len(prompt) - 1 : len(prompt) + len(completion) - 1]
        logps[b, : len(completion)] = predicting.gather(-1, ids)[:, 0]
        mask[b, : len(completion)] = True
    return logps, mask
