"""The recipes of configs/ on shrunken copies of their models."""

from pathlib import Path

from conftest import ROOT, run_here
from transformers import AutoModelForCausalLM

from causal.tiny import tiny_tokenizer
from policy.loading import model_shape
from runtime.settings import read_yaml

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "layer_types": None}
SHORT = {"max_steps": 2, "eval_rows": 4, "eval_steps": 0, "save_steps": 0, "max_new_tokens": 20}


def recipe_of(stage: str, name: str) -> dict:
    return read_yaml(str(ROOT / f"configs/{stage}_{name}.yaml"))


def shrunken(name: str, folder) -> str:
    """The model of a recipe with its class, its vocabulary, its ratio of heads and, for Phi-3, LongRoPE, but narrow."""
    whole = model_shape(recipe_of("sft", name)["model"])
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 4 * whole.num_key_value_heads // whole.num_attention_heads,
    }
    heads["num_key_value_heads"] = max(1, heads["num_key_value_heads"])
    fields = whole.to_dict() | SMALL | heads
    if whole.model_type == "phi3":
        factors = {"short_factor": [1.0 + k / 8 for k in range(8)], "long_factor": [2.0 + k for k in range(8)]}
        fields["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
        fields["rope_parameters"]["original_max_position_embeddings"] = whole.original_max_position_embeddings
    AutoModelForCausalLM.from_config(type(whole).from_dict(fields)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def small_dataset(base: str, folder: Path, **options) -> Path:
    """Rows of three variables for both stages, both answers in each."""
    rows = {"num_variables": 3, "relabelings": 3, "max_train_samples": 48, "max_grpo_samples": 60}
    run_here("preprocess", **rows, **options, tokenizer=base, output_dir=folder)
    return folder
