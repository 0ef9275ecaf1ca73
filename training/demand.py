"""What a recipe asks of a card: its model, adapter and precision, and how many tokens there are at once.

memory.py counts from here how many bytes that takes, and hours.py how long.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import PreTrainedConfig

from dataset.reading import read_report
from policy.adapters import adapter_config, base_revision, check_adapter, lora_targets
from policy.sampling import PREFILL
from policy.shapes import check_text_alone, empty_model, model_shape
from runtime.settings import AUTO, AutoInt, read_yaml

ROOT = Path(__file__).parents[1]
LONGEST_ROW = 3072  # tokens, where no dataset or recipe says
CLAIM_TOKENS = 64  # of a claim in a prompt, at most
USUAL_PREMISE = 400  # tokens: a batch of short premises has more sequences, and their logits, at once


class Recipe(Protocol):
    """The settings that decide what takes memory, of train_sft.py and train_grpo.py alike."""

    model: str
    revision: str | None
    dataset: str
    quantization: str
    lora_r: int
    lora_target_modules: str
    gradient_checkpointing: bool
    claims_per_prefix: int
    prefix_sharing: bool
    max_new_tokens: int
    micro_batch_tokens: AutoInt
    cache_tokens: AutoInt


class SftRecipe(Recipe, Protocol):
    adaptation: str
    lora_dropout: float


@runtime_checkable
class GrpoRecipe(Recipe, Protocol):
    """GRPO always trains an adapter, and without dropout."""

    num_generations: int
    beta: float


@dataclass(frozen=True)
class Demand:
    """What of a run takes memory. Token counts are of one process."""

    shape: PreTrainedConfig
    dtype: torch.dtype
    quantization: str  # nf4 | none
    lora_r: int  # 0: all weights are trained
    lora_dropout: float
    lora_targets: tuple[str, ...]
    reference: bool  # a second, frozen adapter, and a pass for its log-probabilities
    gradient_checkpointing: bool
    update_tokens: int  # packed tokens of a forward and backward pass
    cache_tokens: int  # of the key-value cache in sampling
    sequences: int  # that are sampled at once
    prefill_tokens: int  # packed tokens of a pass that fills the cache, prompts and what forks have drawn


def demand_of(recipe: SftRecipe | GrpoRecipe, dtype: torch.dtype = torch.bfloat16) -> tuple[str, Demand]:
    """The name of the recipe's full model, and what the recipe asks of a card, at least where a size is `auto`.

    fp16 takes as much as bf16.
    """
    if isinstance(recipe, GrpoRecipe):
        dropout, reference = 0.0, recipe.beta > 0
    else:
        dropout, reference = recipe.lora_dropout, False
    base, shape, rank, targets = model_and_adapter(recipe)
    check_text_alone(base, shape)
    cache, update = (1 if n == AUTO else n for n in (recipe.cache_tokens, recipe.micro_batch_tokens))
    row = longest_row(recipe.dataset)
    longest = row + recipe.max_new_tokens
    cache_tokens = max(cache, longest)  # one sequence at least
    sequences = max(1, cache * math.prod(in_group(recipe)) // group_tokens(recipe, USUAL_PREMISE))
    return base, Demand(
        shape=shape,
        dtype=dtype,
        quantization=recipe.quantization,
        lora_r=rank,
        lora_dropout=dropout,
        lora_targets=tuple(targets),
        reference=reference,
        gradient_checkpointing=recipe.gradient_checkpointing,
        update_tokens=max(update, group_tokens(recipe, row)),
        cache_tokens=cache_tokens,
        sequences=sequences,
        prefill_tokens=min(cache_tokens, max(PREFILL, longest)),
    )


def samples_of(recipe: SftRecipe | GrpoRecipe) -> int:
    """Completions of a prompt."""
    return recipe.num_generations if isinstance(recipe, GrpoRecipe) else 1


def in_group(recipe: SftRecipe | GrpoRecipe) -> tuple[int, int]:
    """The claims whose sequences share a prefix, and the sequences of each; one of each where nothing is shared."""
    return (recipe.claims_per_prefix, samples_of(recipe)) if recipe.prefix_sharing else (1, 1)


def group_tokens(recipe: SftRecipe | GrpoRecipe, row: int) -> int:
    """Tokens of a group whose longest prompt, or row in SFT, has `row`: an update never splits one."""
    claims, samples = in_group(recipe)
    return row + claims * (CLAIM_TOKENS + samples * recipe.max_new_tokens)


def model_and_adapter(recipe: SftRecipe | GrpoRecipe) -> tuple[str, PreTrainedConfig, int, list[str]]:
    """The full model under `recipe.model` and its shape; rank and targets of its adapter, 0 and none without one.

    The adapter is a new one, or the one that is in `recipe.model`. If that directory is not there yet, the adapter is
    the one that a recipe of configs/ will write into it.
    """
    if found := adapter_config(recipe.model):
        check_adapter(recipe.model)
        base, targets = found["base_model_name_or_path"], found.get("target_modules") or []
        shape = model_shape(base, base_revision(recipe.model, recipe.revision))
        if isinstance(targets, str):  # a pattern of whole names
            names = [name for name, _ in empty_model(shape).named_modules()]
            targets = sorted({name.split(".")[-1] for name in names if re.fullmatch(targets, name)})
        return base, shape, found.get("r", 8), targets
    adaptation = "lora" if isinstance(recipe, GrpoRecipe) else recipe.adaptation
    rank, targets = recipe.lora_r, recipe.lora_target_modules
    writer = {} if Path(recipe.model).exists() else recipe_that_writes(recipe.model)
    base = writer.get("model", recipe.model)
    shape = model_shape(base, recipe.revision or writer.get("revision"))
    if writer.get("adaptation") == "lora":
        adaptation = "lora"
        rank, targets = writer.get("lora_r", rank), writer.get("lora_target_modules", targets)
    if adaptation == "full":
        return base, shape, 0, []
    return base, shape, rank, lora_targets(empty_model(shape), targets)


def longest_row(dataset: str) -> int:
    """The max_length that the dataset was made with, or its recipe says."""
    made = read_report(dataset).get("config") or recipe_that_writes(dataset)
    return made.get("max_length") or LONGEST_ROW


def recipe_that_writes(directory: str) -> dict[str, Any]:
    """The recipe of configs/ whose output_dir is `directory`; empty if none is."""
    recipes = (read_yaml(str(path)) for path in sorted((ROOT / "configs").glob("*.yaml")))
    return next((recipe for recipe in recipes if recipe.get("output_dir") == directory), {})
