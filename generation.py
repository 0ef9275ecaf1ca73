"""Sampling by hand: every prompt's prefix computed once, every sequence with random numbers of its own.

The prompts are packed as a prefix tree (prefix_sharing.py) and run once; after that each step runs one new token for
every sequence that has not stopped, all in one row, each seeing its own prompt and its own tokens. Nothing is padded,
the key-value cache of a prompt exists once for all of its samples, and sequences that have stopped cost nothing.

Dimensions: B sequences, L packed prompt tokens, S live sequences, T new tokens, V vocabulary.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import DynamicCache

from data import premise_groups, share_of_rank
from distributed import gather
from models import encode
from prefix_sharing import Tokens, pack, plan_micro_batches
from rewards import extract_answer


@dataclass
class Completion:
    """One sampled completion: its tokens (the stop token included), their log-probabilities, and whether it stopped."""

    tokens: Tokens = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    stopped: bool = False


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    prompts: list[Tokens],
    *,
    stop_ids: set[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: list[tuple[int, ...]] | None = None,
) -> list[Completion]:
    """One completion for each prompt; repeat a prompt to get several samples of it, at the price of one prefill.

    `temperature` 0 is greedy. Otherwise sequence b draws from softmax(logits / temperature), all of it (top_p 1,
    top_k off), with the random stream that `seeds[b]` names: what is sampled does not depend on the batch it is
    sampled in. The model must be in eval mode: dropout or gradient checkpointing would change what is sampled.
    """
    assert not model.training, "sample in eval mode: dropout would make the sampled policy another one"
    assert temperature == 0 or seeds is not None, "sampling needs one seed a sequence"
    device = next(model.parameters()).device
    tree = pack([prompts])
    cache = DynamicCache()  # without the model's config: a sliding window must not drop packed tokens
    last_nodes, which = torch.tensor([path[-1] for path in tree.paths]).unique(return_inverse=True)
    out = model(**tree.tensors(device), past_key_values=cache, use_cache=True, logits_to_keep=last_nodes.to(device))
    logits = out.logits[0, which.to(device)]  # (B, V)
    # visible[b, k]: sequence b sees entry k of the cache. (B, L + T·B at most)
    visible = torch.zeros((len(prompts), len(tree) + max_new_tokens * len(prompts)), dtype=torch.bool, device=device)
    for b, path in enumerate(tree.paths):
        visible[b, path] = True
    uniforms = np.stack([np.random.default_rng(s).random(max_new_tokens) for s in seeds]) if temperature > 0 else None
    completions = [Completion() for _ in prompts]
    live = list(range(len(prompts)))
    filled = len(tree)
    for t in range(max_new_tokens):
        tokens, logps = _choose(logits, temperature, None if uniforms is None else uniforms[live, t])
        for b, token, logp in zip(live, tokens, logps, strict=True):
            completions[b].tokens.append(token)
            completions[b].logps.append(logp)
            completions[b].stopped = token in stop_ids
        live = [b for b in live if not completions[b].stopped]
        if not live or t == max_new_tokens - 1:
            break
        visible[live, range(filled, filled + len(live))] = True
        filled += len(live)
        logits = model(
            input_ids=torch.tensor([[completions[b].tokens[-1] for b in live]], device=device),
            position_ids=torch.tensor([[len(prompts[b]) + t for b in live]], device=device),
            attention_mask=visible[live, :filled][None, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[0]  # (S, V)
    return completions


def _choose(logits: torch.Tensor, temperature: float, uniforms: np.ndarray | None) -> tuple[list[int], list[float]]:
    """Greedy or inverse-CDF choice from `logits` (S, V); returns tokens and their log-probabilities (S,)."""
    logps = (logits.float() / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0:
        tokens = logps.argmax(-1)
    else:
        cumulative = logps.double().exp().cumsum(-1)
        points = torch.as_tensor(uniforms, device=logits.device)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, points, right=True).clamp_max(logits.shape[-1] - 1)[:, 0]
    return tokens.tolist(), logps.gather(-1, tokens[:, None])[:, 0].tolist()


def generate_groups(
    model: torch.nn.Module,
    groups: list[list[Tokens]],
    *,
    cache_tokens: int,
    max_new_tokens: int,
    seeds: list[list[tuple]] | None = None,
    **options,
) -> list[list[Completion]]:
    """`generate` for groups that share a prefix, with at most `cache_tokens` tokens in the key-value cache."""
    results: list[list[Completion]] = [[] for _ in groups]
    for batch in plan_micro_batches(groups, cache_tokens, new_tokens=max_new_tokens):
        flat = [prompt for g in batch for prompt in groups[g]]
        flat_seeds = None if seeds is None else [seed for g in batch for seed in seeds[g]]
        done = iter(generate(model, flat, seeds=flat_seeds, max_new_tokens=max_new_tokens, **options))
        for g in batch:
            results[g] = [next(done) for _ in groups[g]]
    return results


def predict(
    accelerator: Accelerator,
    model: torch.nn.Module,
    tokenizer,
    rows: Dataset,
    *,
    stop_ids: set[int],
    max_new_tokens: int,
    cache_tokens: int,
) -> list[dict]:
    """Greedy answers to every row: each rank computes its share, every rank gets all, in the order of `rows`.

    Each result has what metrics.py reads (`input`, `label`, `prediction` 0|1|None, `premise_id`, `structure_id`,
    `num_variables`, `template`) and `completion` (text) and `stopped` (False: cut at `max_new_tokens`).
    """
    prompts = [encode(tokenizer, text) for text in rows["prompt"]]
    # A premise's prompts and completions should fit the cache together.
    groups = premise_groups(rows["premise_id"], max(1, min(64, cache_tokens // (2 * max_new_tokens))))
    mine = share_of_rank(groups, accelerator.process_index, accelerator.num_processes)
    was_training = model.training
    model.eval()
    completions = generate_groups(
        model,
        [[prompts[index] for index in group] for group in mine],
        cache_tokens=cache_tokens,
        stop_ids=stop_ids,
        max_new_tokens=max_new_tokens,
    )
    model.train(was_training)
    texts = [
        (index, tokenizer.decode(completion.tokens, skip_special_tokens=True), completion.stopped)
        for group, group_completions in zip(mine, completions, strict=True)
        for index, completion in zip(group, group_completions, strict=True)
    ]
    columns = ("input", "label", "premise_id", "structure_id", "num_variables", "template")
    results = []
    for index, text, stopped in sorted(gather(accelerator, texts)):
        answer = extract_answer(text)
        row = {name: rows[index][name] for name in columns}
        results.append(
            {**row, "prediction": None if answer is None else int(answer), "completion": text, "stopped": stopped}
        )
    return results
