"""What a run computes, against what the model itself computes: before any weight moves, in seconds.

The truth is transformers' own: each sequence alone, under the model's eager attention, computed in fp32 (in half
precision it rounds scores, or overflows with them), with all that the model does to its logits. The run's
log-probabilities, of packed or of padded rows, and its sampler's are compared with that, on sequences of its first step
and on the longest that it will meet, in its dtype. Two paths of this project that agree would not do: they may share a
fault.
"""

import sys
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from policy.adapters import lean_lora
from policy.prefix_sharing import (
    ATTENTION,
    Tokens,
    TreeAttention,
    attention_shape,
    causal_lm,
    pack,
    replaced,
    sequence_logps,
)
from policy.sampling import generate
from runtime.ending import is_out_of_memory
from runtime.settings import check

# Root mean square difference of a token's log-probability, in nats. SmolLM2-135M on released rows, with logits in fp32:
# 3e-6, 0.006, 0.05; with six prefix tokens hidden, positions that run on or branches seen by others: 0.25 to 1.6.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}
# Difference of attention and of its gradients from SDPA's in fp32, of their norm. On a CPU: 2e-7, 3e-4, 0.002.
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
OTHER_PRECISION = "launch with another precision (accelerate_configs: zero2_2xl4 has bf16, zero2_2xcpu fp32)"
TRUTH = "eager_in_fp32"  # the attn_implementation
SEQUENCES = 6  # of the first step, at most
LAST_TOKENS = 256  # of a long sequence these are compared, so that few logits are in memory
NEW_TOKENS = 8  # sampled greedily
Group = tuple[list[Tokens], list[Tokens]]  # prompts with a common prefix, and their completions


def check_model_numbers(
    model: torch.nn.Module,
    prompts: list[list[Tokens]],
    completions: list[list[Tokens]],
    longest: list[Tokens],
    share: bool = True,
) -> float:
    """Compare log-probabilities and greedy sampling with the model's own, on some sequences of the groups `prompts` and
    `completions` and on the sequences `longest`; `share`: on packed rows, as the run will compute them.

    Returns the largest root mean square difference of a token's log-probability, in nats. Raises ValueError if one is
    beyond what the order of summation explains in the model's dtype (TOLERANCE): such a model would train on wrong
    numbers without a sign.
    """
    was_training = model.training
    model.eval()  # dropout would differ
    try:
        with torch.no_grad(), _logits_in_fp32(model):
            return _largest_gap(model, _some(prompts, completions), longest, share)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model: {_name(model)} cannot be run here ({reason}); name another") from error
    finally:
        model.train(was_training)


def _largest_gap(model: torch.nn.Module, first: list[Group], longest: list[Tokens], share: bool) -> float:
    parts = [max(1, len(sequence) - LAST_TOKENS) for sequence in longest]
    groups = first + [([row[:part]], [row[part:]]) for row, part in zip(longest, parts, strict=True)]
    truth = [_own_logps(model, p, c) for group in groups for p, c in zip(*group, strict=True)]
    dtype = _dtype(model)
    finite = all(bool(logps.isfinite().all()) for logps in truth)
    remedy = OTHER_PRECISION if dtype == torch.float16 else "its weights may be damaged: copy or train it again"
    check(finite, f"model: {_name(model)} has log-probabilities that are not finite in {dtype}; {remedy}")

    def gap_of_rows(share: bool) -> float:
        logps, _, mask = sequence_logps(model, *map(list, zip(*groups, strict=True)), share=share)
        return _rms(logps[mask], torch.cat(truth))

    gaps = {"rows": gap_of_rows(share), "sampling": _gap_of_sampling(model, first, longest)}
    wrong = [name for name, gap in gaps.items() if not gap <= TOLERANCE[dtype]]  # a gap may be nan
    if wrong:
        mend = wrong == ["rows"] and share and gap_of_rows(False) <= TOLERANCE[dtype]
        remedy = "set prefix_sharing false" if mend else "name another model"
        what = {"rows": f"of {'packed' if share else 'padded'} rows", "sampling": "in greedy sampling"}[wrong[0]]
        raise ValueError(
            f"{'prefix_sharing' if mend else 'model'}: log-probabilities {what} differ by {gaps[wrong[0]]:.2g} nats "
            f"from {_name(model)}'s own, beyond the {TOLERANCE[dtype]} of {dtype}{_peculiarities(model)}; {remedy}"
        )
    return max(gaps.values())


def _gap_of_sampling(model: torch.nn.Module, first: list[Group], longest: list[Tokens]) -> float:
    """Of greedy tokens' log-probabilities; or by how much one of them is less probable than the model's own choice."""
    groups = [prompts for prompts, _ in first[:1]] + [[row[:-NEW_TOKENS]] for row in longest if len(row) > NEW_TOKENS]
    options = {"stop_ids": set(), "max_new_tokens": NEW_TOKENS}
    with lean_lora(model):
        drawn = generate(model, groups, **options)
        drafts = [[completion.tokens for completion in group] for group in drawn]
        drawn += generate(model, groups, drafts=drafts, **options)  # once token by token, and once some at a time
    found, own = [], []
    for prompts, completions in zip([*groups, *groups], drawn, strict=True):
        for prompt, completion in zip(prompts, completions, strict=True):
            every = _own_distribution(model, prompt, completion.tokens)  # (T, V)
            taken = _of_tokens(every, completion.tokens)
            less = float((every.amax(-1) - taken).max())
            if not less <= 4 * TOLERANCE[_dtype(model)]:  # closer ones may change places
                return less
            found.append(torch.tensor(completion.logps, device=taken.device))
            own.append(taken)
    return _rms(torch.cat(found), torch.cat(own))


def _own_logps(model: torch.nn.Module, prompt: Tokens, completion: Tokens) -> torch.Tensor:
    """(T,) By the model's own code."""
    return _of_tokens(_own_distribution(model, prompt, completion), completion)


def _of_tokens(logps: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """(T,) Of log-probabilities (T, V), those of `tokens`."""
    return logps.gather(-1, torch.tensor(tokens, device=logps.device)[:, None])[:, 0]


def _own_distribution(model: torch.nn.Module, prompt: Tokens, completion: Tokens) -> torch.Tensor:
    """(T, V) log-probabilities after the prompt and after each token of the completion but its last."""
    device = next(model.parameters()).device
    row = torch.tensor(prompt + completion[:-1], device=device)[None]
    predicting = torch.arange(len(prompt) - 1, row.shape[1], device=device)
    with _eager(model):
        return model(input_ids=row, use_cache=False, logits_to_keep=predicting).logits[0].float().log_softmax(-1)


def _eager_in_fp32(module, query, key, value, attention_mask, **options):
    """The attention function that stands beside the module's class, or one of those it is made from."""
    rooms = (vars(sys.modules[kind.__module__]) for kind in type(module).__mro__)
    attention = next(room["eager_attention_forward"] for room in rooms if "eager_attention_forward" in room)
    mask = None if attention_mask is None else attention_mask.float()
    output, weights = attention(module, query.float(), key.float(), value.float(), mask, **options)
    return output.to(query.dtype), weights


AttentionInterface.register(TRUTH, _eager_in_fp32)
AttentionMaskInterface.register(TRUTH, eager_mask)


@contextmanager
def _eager(model: torch.nn.Module):
    inner = causal_lm(model)
    inner.set_attn_implementation(TRUTH)
    try:
        yield
    finally:
        inner.set_attn_implementation(ATTENTION)


def _logits_in_fp32(model: torch.nn.Module):
    """In the block the head computes in fp32: logits rounded to bf16 differ by up to 0.1 nat by themselves."""
    head = causal_lm(model).get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # an adapter's
        return nullcontext()
    bias = None if head.bias is None else head.bias.float()
    return replaced(head, lambda hidden: linear(hidden.float(), head.weight.float(), bias))


def _some(prompts: list[list[Tokens]], completions: list[list[Tokens]]) -> list[Group]:
    """The first SEQUENCES sequences, in their groups."""
    taken, room = [], SEQUENCES
    for group in zip(prompts, completions, strict=True):
        if room > 0:
            taken.append(tuple(part[:room] for part in group))
            room -= len(taken[-1][0])
    return taken


def _rms(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).double().square().mean().sqrt())


def _dtype(model: torch.nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _name(model: torch.nn.Module) -> str:
    return type(causal_lm(model)).__name__


def _peculiarities(model: torch.nn.Module) -> str:
    """What in its configuration may be the cause, in brackets."""
    config = causal_lm(model).config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "attn_logit_softcapping", "final_logit_softcapping")
    found = [f"{name} {getattr(config, name)}" for name in names if getattr(config, name, None)]
    return f" (it has {', '.join(found)})" if found else ""


def check_gradients(model: torch.nn.Module) -> None:
    """Compare attention of a random packed row, in the model's shape, dtype and device, and its gradients, with SDPA's
    in fp32 under the whole mask: what a kernel's backward pass gets wrong, no log-probability shows.

    Raises ValueError if one of them differs by more than GRADIENT_TOLERANCE of its norm.
    """
    weight = next(p for p in model.parameters() if p.is_floating_point())
    heads, key_heads, width = attention_shape(model.config)
    prompt, other = list(range(2, 204)), list(range(2, 40))  # longer than a kernel's block, and no multiple of any
    tree = pack([[prompt + [k] * n for k, n in ((0, 150), (0, 33), (1, 31))], [other + [0] * 3, other + [1] * 7]])
    random = torch.Generator().manual_seed(0)
    shapes = [(1, n, len(tree), width) for n in (heads, key_heads, key_heads, heads)]
    *inputs, grad = (torch.randn(shape, generator=random, device="cpu").to(weight) for shape in shapes)
    grad = grad.transpose(1, 2)

    def outcome(attention, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        output = attention(*leaves)
        return [x.detach().float() for x in (output, *torch.autograd.grad(output, leaves, grad.to(dtype)))]

    pieces, scale = tree.pieces(weight.device), width**-0.5
    found = outcome(lambda *tensors: TreeAttention.apply(*tensors, pieces, scale), weight.dtype)
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
