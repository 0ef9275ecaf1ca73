"""Every recipe of a real model takes two steps under ZeRO-2, on a shrunken copy of its model's own architecture."""

from pathlib import Path

import pytest
import yaml
from conftest import launch
from peft import PeftModel
from recipes import OTHERS, SHORT, recipe_of, shrunken, small_dataset
from transformers import AutoModelForCausalLM

OTHER_RECIPES = [(model, variant) for model in ("phi3", "qwen") for variant in ("_full", "_traces")]
OTHER_RECIPES += [(model, "") for model in ("qwen", "phi3_medium", *OTHERS)]


@pytest.mark.parametrize(
    "model, variant",
    [("phi3", ""), *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHER_RECIPES)],
)
def test_a_recipe_takes_two_steps_on_a_shrunken_copy(model, variant, tmp_path):
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
        text = launch(2, f"train_{stage}.py", config=config, **places, **options, **common)
        assert "DEEPSPEED" in text
        adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / stage))
        recipe = recipe_of("sft", model + variant)
        assert set(recipe["lora_target_modules"].split(",")) == set(adapter.peft_config["default"].target_modules)
        adapter.merge_and_unload()
    card = (tmp_path / "grpo" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
