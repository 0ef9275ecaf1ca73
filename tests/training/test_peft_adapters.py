"""Adapters that peft alone has written go through every stage, and are resumed as if nothing had happened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_here
from launching import GRPO, OFTEN, SFT
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from policy.adapters import adapter_base
from policy.loading import load_base

SPARE = OFTEN | {"eval_rows": 4, "eval_steps": 0, "save_total_limit": 0}
STAGES = {
    "train_sft": SFT | SPARE | {"max_steps": 2, "adaptation": "lora"},
    "train_grpo": GRPO | SPARE,
}


@pytest.fixture
def theirs(start_adapter, tmp_path) -> Path:
    """An adapter on the tiny model, as peft writes one: DoRA, embeddings with it, a head of its own, and dropout."""
    base = load_base(adapter_base(str(start_adapter)), "none", torch.float32, torch.device("cpu"))
    options = {"target_modules": ["embed_tokens", "qkv_proj", "down_proj"], "modules_to_save": ["lm_head"]}
    config = LoraConfig(r=4, use_dora=True, lora_dropout=0.2, task_type="CAUSAL_LM", **options)
    get_peft_model(base, config).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_they_train_and_resume_bit_for_bit(theirs, dataset, tmp_path):
    model = theirs
    for script, options in STAGES.items():
        whole, broken = tmp_path / script / "whole", tmp_path / script / "broken"
        options |= {"model": model, "dataset": dataset}
        run_here(script, **options, output_dir=whole, logging_dir=tmp_path / script / "logs")
        shutil.copytree(whole, broken)
        shutil.rmtree(broken / "checkpoint-2")
        (broken / "finished.json").unlink()
        run_here(script, **options, output_dir=broken, logging_dir=tmp_path / script / "more", resume_from="latest")
        one, other = (bits(run / "checkpoint-2") for run in (whole, broken))
        assert one.keys() == other.keys() and any("exp_avg" in name for name in one)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
        started = bits(model)
        trained = [name for name in one if name.startswith("adapter_model")]
        assert all(any(kind in name for name in trained) for kind in ("lm_head", "lora_embedding_A", "magnitude"))
        assert [name for name in trained if torch.equal(started[name], one[name])] == []
        model = whole
    evaluated = tmp_path / "evaluated"
    run_here("evaluate", model=model, max_rows=4, num_resamples=10, output_dir=evaluated)
    assert json.loads((evaluated / "metrics.json").read_text())["model"] == str(model)


def bits(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{f.name}:{name}": tensor for f in folder.glob("*.safetensors") for name, tensor in load_file(f).items()}
