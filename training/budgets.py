"""How many tokens at once: what `auto` of cache_tokens and micro_batch_tokens stands for in a run.

On a GPU memory.py counts the bytes of a token, and the device is asked for the bytes that it has; on a CPU a share of
the memory that is free, and no more than is worth it. An update's size is tried before the first step as well: in the
loop a rank that ran out of memory would leave the others waiting for its gradients, so there it ends the run.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig

from policy.adapters import adapter_base, base_revision
from policy.prefix_sharing import cached_elements, sequence_logps
from policy.sampling import PREFILL
from policy.shapes import model_shape
from runtime.ending import is_out_of_memory
from runtime.processes import reduce
from runtime.settings import AUTO, check
from training.demand import USUAL_PREMISE, Demand, Recipe, demand_of, group_tokens, in_group
from training.memory import Plan
from training.settings import BUDGETS, TrainingSettings

SHARE = 0.9  # of a card that `auto` plans for: the plan is off by some percent, and memory is in fragments
ENOUGH = 8192  # tokens of a micro-batch, at most, where it is `auto`: more keep no GPU busier, and take memory
SEQUENCES = 512  # that an `auto` cache has room for, at most: with so many a step is no longer bound by its overhead
GRAIN = 1024  # tokens: runs on the same card should find the same number, however its last MB differ
CPU_SHARE = 0.25  # of the free memory, for the caches of all processes of a machine
CPU_CACHE = 32768  # tokens, at most: twice as many as 16,384 still took a sixth off a rollout of the tiny model
CPU_UPDATE = 2048  # tokens: of the tiny model, passes of 1,024 to 8,192 take the same time a token

R = TypeVar("R", bound=Recipe)


# --- what fits a card, by the plan


def with_budgets(recipe: R, cards: int, card: float, dtype: torch.dtype = torch.bfloat16) -> R:
    """The recipe with numbers where it says `auto`: the largest that fit SHARE of each of `cards` cards.

    `card` is a card's bytes. Of `micro_batch_tokens`, ENOUGH at most. Where nothing fits it is 1: one group, or one
    sequence, at a time.
    """
    found = {}
    if recipe.micro_batch_tokens == AUTO:
        plan = Plan(demand_of(recipe, dtype)[1], ["score", "update"])
        found["micro_batch_tokens"] = min(ENOUGH, rounded(plan.largest("micro_batch_tokens", cards, SHARE * card)))
    if recipe.cache_tokens == AUTO:

        def demand_at(tokens: int) -> Demand:
            return demand_of(replace(recipe, cache_tokens=tokens), dtype)[1]

        of_one = group_tokens(recipe, USUAL_PREMISE) // math.prod(in_group(recipe))
        found["cache_tokens"] = largest_cache(demand_at, SEQUENCES * of_one, cards, card)
    return replace(recipe, **found)


def largest_cache(demand_at: Callable[[int], Demand], most: int, cards: int, card: float) -> int:
    """The largest cache, of at most `most` tokens, that fits SHARE of a card of `card` bytes.

    `demand_at` is the demand with a cache of so many tokens: a larger one holds more sequences, each with logits and
    activations, so what fits with one sequence is counted again with as many as that would hold.
    """

    def fitting(tokens: int) -> int:
        return Plan(demand_at(tokens), ["sample"]).largest("cache_tokens", cards, SHARE * card)

    first = min(most, fitting(1))
    return rounded(min(first, fitting(max(1, first))))


def cache_of_inference(
    shape: PreTrainedConfig, dtype: torch.dtype, quantization: str, prompt: int, new_tokens: int, card: float
) -> int:
    """The largest cache beside a model that only samples, `new_tokens` tokens to prompts of `prompt`."""

    def demand_at(tokens: int) -> Demand:
        one = prompt + new_tokens
        return Demand(
            shape=shape,
            dtype=dtype,
            quantization=quantization,
            lora_r=1,  # of no layer: nothing is trained
            lora_dropout=0.0,
            lora_targets=(),
            reference=False,
            gradient_checkpointing=False,
            update_tokens=1,
            cache_tokens=max(tokens, one),
            sequences=max(1, tokens // one),
            prefill_tokens=min(max(tokens, one), max(PREFILL, one)),
        )

    return largest_cache(demand_at, SEQUENCES * (prompt + new_tokens), 1, card)


def rounded(tokens: int) -> int:
    """A multiple of GRAIN, downwards; what is below GRAIN as it is, but 1 at least."""
    return max(0, tokens) // GRAIN * GRAIN or max(1, tokens)


# --- what fits here


def of_all_ranks(accelerator: Accelerator, budgets: dict[str, int]) -> dict[str, int]:
    """The smallest of each over the ranks."""
    least = reduce(accelerator, {name: -tokens for name, tokens in budgets.items()}, "max")
    return {name: -int(tokens) for name, tokens in least.items()}


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process has or may have."""
    # Without a launcher accelerate names a GPU without its number, which torch asks for below.
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total
    return min(free + torch.cuda.memory_reserved(device), int(allowed))


def cpu_cache_tokens(shape: PreTrainedConfig, dtype: torch.dtype) -> int:
    """The cache of one process on a machine without GPUs."""
    of_token = cached_elements(shape) * dtype.itemsize
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share = CPU_SHARE * psutil.virtual_memory().available / processes
    return min(CPU_CACHE, rounded(int(share / (2 * of_token))))  # as much again for what a pass computes


def find_budgets(
    accelerator: Accelerator, config: TrainingSettings, shape: PreTrainedConfig, dtype: torch.dtype
) -> dict[str, int]:
    """Numbers for those of BUDGETS that are `auto`, the same on every rank."""
    asked = [name for name in BUDGETS if getattr(config, name) == AUTO]
    if not asked:
        return {}
    if accelerator.device.type == "cuda":
        config = with_budgets(config, accelerator.num_processes, device_memory(accelerator.device), dtype)
    else:
        found = {"cache_tokens": cpu_cache_tokens(shape, dtype), "micro_batch_tokens": CPU_UPDATE}
        config = replace(config, **{name: found[name] for name in asked})
    return of_all_ranks(accelerator, {name: getattr(config, name) for name in asked})


def cache_of_evaluation(
    device: torch.device,
    dtype: torch.dtype,
    model: str,
    quantization: str,
    prompt: int,
    new_tokens: int,
    revision: str | None = None,
) -> int:
    """The cache of a process that only samples: `new_tokens` tokens to a prompt of `prompt`, at most."""
    shape = model_shape(adapter_base(model) or model, base_revision(model, revision))
    if device.type == "cpu":
        return cpu_cache_tokens(shape, dtype)
    return cache_of_inference(shape, dtype, quantization, prompt, new_tokens, device_memory(device))


def tried_update(
    accelerator: Accelerator, model: torch.nn.Module, budget: int, longest: int, group: int, share: bool
) -> int:
    """The largest of `budget`, its half, its quarter, … with which an update fits the memory of every rank.

    What is tried is a forward and a backward pass over rows of `longest` tokens: `budget` tokens together, or `group`
    if a group has more, as it is not split. `model` must be the one below DeepSpeed's engine, and its gradients are not
    touched: no rank waits for another while one of them may fail. Raises ValueError if not even one group fits.
    """
    while True:
        tokens = max(budget, group)
        fits = _fits(model, tokens, longest, share)
        if of_all_ranks(accelerator, {"fits": fits})["fits"]:
            return budget
        check(
            budget > group,
            f"out of memory in a trial of the update: {tokens} tokens, one group, do not fit; lower claims_per_prefix "
            "or num_generations, or set gradient_checkpointing true",
        )
        budget = max(group, budget // 2)
        accelerator.print(
            f"out of memory in a trial of the update: goes on with micro_batch_tokens {budget}", flush=True
        )


def _fits(model: torch.nn.Module, tokens: int, longest: int, share: bool) -> bool:
    was_training = model.training
    model.train()
    row = [k % 50 for k in range(longest)]
    rows = -(-tokens // longest)
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        # Dropout must draw in the first step what it draws without a trial.
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            logps = sequence_logps(model, [[row[:1]]] * rows, [[row[1:]]] * rows, share=share, entropy=True)[0]
            # Unlike .backward() this runs none of the hooks with which ZeRO-2 reduces gradients over the ranks.
            torch.autograd.grad(logps.sum(), trained, allow_unused=True)
        return True
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    finally:
        model.train(was_training)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
