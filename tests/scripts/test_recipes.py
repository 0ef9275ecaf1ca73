"""Every recipe of a real model takes two steps as two L4 are launched, on a shrunken copy of its own architecture."""

from pathlib import Path

import pytest
import yaml
from conftest import launch
from launching import assert_all_finite, curves
from peft import PeftModel
from recipes import OTHERS, SHORT, recipe_of, shrunken, small_dataset
from transformers import AutoModelForCausalLM

OTHER_RECIPES = [(model, variant) for model in ("phi3", "qwen") for variant in ("_full", "_traces")]
OTHER_RECIPES += [(model, "") for model in ("qwen", "phi3_medium", *OTHERS)]


@pytest.mark.parametrize(
    "model, variant",
    [("phi3", ""), *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHER_RECIPES)],
)
def test_a_recipe_takes_two_steps_on_a_shrunken_copy(model, variant, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # bf16, on purpose
    base = shrunken(model, tmp_path / "base")
    data = recipe_of("data", Path(recipe_of("sft", model + variant)["dataset"]).name)
    target = {"target": data["target"], "trace_style": data.get("trace_style", "compact")}
    dataset = small_dataset(base, tmp_path / "data", **target)
    common = SHORT | {"dataset": dataset}
    # Fewer prompts than the recipe's 16.
    stages = {"sft": {"model": base}, "grpo": {"model": tmp_path / "sft", "prompts_per_step": 4}}
    for stage, options in stages.items():
        config = f"configs/{stage}_{model}{variant}.yaml"
        places = {"output_dir": tmp_path / stage, "logging_dir": tmp_path / "logs" / stage}
        text = launch(2, f"train_{stage}.py", "zero2_2xl4", config=config, **places, **options, **common)
        assert f"{stage.upper()} on CPU, 2 processes, torch.bfloat16, DEEPSPEED\n" in text
        assert f"next, scores on the test split: python evaluate.py --model {tmp_path / stage}" in text
        logged = curves(tmp_path / "logs" / stage)
        assert_all_finite(logged)
        assert {value for _, value in logged["health/step_skipped"]} == {0}
        moved = logged["health/weight_change"][-1][1] > 0
        assert moved or stage == "grpo"  # where no sample of a random model has an answer
        adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / stage))
        recipe = recipe_of("sft", model + variant)
        assert set(recipe["lora_target_modules"].split(",")) == set(adapter.peft_config["default"].target_modules)
        adapter.merge_and_unload()
    assert logged["health/first_ratio_deviation"][0][1] == 0 and logged["health/sampling_gap_ratio"][0][1] < 1
    card = (tmp_path / "grpo" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
