"""The recipes of configs/ on shrunken copies of their models."""

from pathlib import Path

import pytest
from conftest import ROOT, run_here
from transformers import AutoModelForCausalLM

from causal.tiny import tiny_tokenizer
from policy.shapes import model_shape
from runtime.settings import read_yaml

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
VOCABULARY = 2048  # tokens; as in the whole models, more than the tokenizer has
WINDOW = 64
SHORT = {"max_steps": 2, "eval_rows": 4, "eval_steps": 0, "save_steps": 0, "max_new_tokens": 20}


# Models whose recipes differ from Phi-3.5's and Qwen2.5's in the model alone: their tests are slow ones.
OTHERS = ("qwen3", "qwen3_4b", "llama3", "llama3_3b", "gemma3", "smollm3", "phi4_mini")


def training_recipes() -> list:
    """The files of both stages, as parameters of a test."""
    paths = sorted([*(ROOT / "configs").glob("sft_*.yaml"), *(ROOT / "configs").glob("grpo_*.yaml")])
    slow = {path for path in paths if path.stem.partition("_")[2] in OTHERS}
    return [pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path in slow)) for path in paths]


def recipe_of(stage: str, name: str) -> dict:
    return read_yaml(str(ROOT / f"configs/{stage}_{name}.yaml"))


def shrunken(name: str, folder) -> str:
    """The model of a recipe with its class, its ratio of heads, a layer of each kind and LongRoPE, but narrow."""
    whole, tokenizer = model_shape(recipe_of("sft", name)["model"]), tiny_tokenizer()
    fields = whole.to_dict() | SMALL | {"vocab_size": VOCABULARY, "num_attention_heads": 4}
    fields["num_key_value_heads"] = max(1, 4 * whole.num_key_value_heads // whole.num_attention_heads)
    fields |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kinds = list(dict.fromkeys(fields.get("layer_types") or ["full_attention"]))
    fields["layer_types"] = (2 * kinds)[:2]
    small = {"head_dim": 16, "no_rope_layers": [1, 0]}
    fields |= {name: value for name, value in small.items() if fields.get(name)}
    if "sliding_attention" in kinds:
        fields["sliding_window"] = WINDOW
    if whole.model_type == "phi3":
        rotated = int(16 * fields.get("partial_rotary_factor", 1.0)) // 2
        rope = {"rope_type": "longrope", "rope_theta": 10000.0}
        rope |= {
            "short_factor": [1.0 + k / 8 for k in range(rotated)],
            "long_factor": [2.0 + k for k in range(rotated)],
        }
        fields["rope_parameters"] = rope | {
            "original_max_position_embeddings": whole.original_max_position_embeddings,
            "partial_rotary_factor": fields.get("partial_rotary_factor", 1.0),
        }
    AutoModelForCausalLM.from_config(type(whole).from_dict(fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def small_dataset(base: str, folder: Path, **options) -> Path:
    """Rows of three variables for both stages, both answers in each."""
    rows = {"num_variables": 3, "relabelings": 3, "max_train_samples": 48, "max_grpo_samples": 60}
    run_here("preprocess", **rows, **options, tokenizer=base, output_dir=folder)
    return folder
