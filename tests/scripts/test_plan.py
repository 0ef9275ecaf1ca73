"""plan.py as a user runs it: which stage a recipe is for, what is printed, and what is refused."""

import re
import sys

import pytest
import torch
from conftest import ROOT, run

import plan
import train_grpo
import train_sft
from runtime.ending import run_script
from runtime.settings import parse_config, read_yaml

RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name.startswith(("sft", "grpo")))


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_plan_needs_neither_weights_nor_a_gpu(stage, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # a terminal that knows nothing else
    given = ("--card_gb", "11", "--micro_batch_tokens", "9000", "--output_dir", "/nowhere")
    text = run(sys.executable, "plan.py", "--config", f"configs/{stage}_phi3.yaml", *given)
    assert text.isascii() and "microsoft/Phi-3.5-mini-instruct" in text and "2 cards of 11.0 GB" in text
    for row in ("weights", "optimizer", "key-value cache", "logits", "total"):
        assert f"\n{row} " in text
    assert ("reference" in text) == (stage == "grpo")
    assert "\nauto: cache_tokens " in text and "\ntime: evaluations take " in text
    assert text.count(": fits; at most") == 2 and text.count("micro_batch_tokens") == text.count("(9,000 planned)") == 2


def test_what_does_not_fit_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan.py", "--stage", "sft", "--model", "tiny", "--card_gb", "0.95"])
    plan.main()
    text = capsys.readouterr().out
    assert text.startswith("tiny, none") and text.count("GB in backward: DOES NOT FIT") == 2


def test_auto_is_a_number_for_the_card(capsys, monkeypatch):
    lines = {}
    for card in (11, 23):
        monkeypatch.setattr(
            sys, "argv", ["plan.py", "--config", "configs/grpo_qwen_traces.yaml", "--card_gb", str(card)]
        )
        monkeypatch.chdir(ROOT)
        plan.main()
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("auto: "))
        found = re.fullmatch(r"auto: cache_tokens ([\d,]+), .*for 90% of a card; (\d+) sequences at once", line)
        lines[card] = [int(text.replace(",", "")) for text in found.groups()]
    assert all(large > 2 * small for small, large in zip(lines[11], lines[23], strict=True))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_evaluations_take_at_most_a_tenth_of_a_recipe(path):
    recipe = parse_config(plan.STAGES[path.name.split("_")[0]], ["--config", str(path)])
    assert 0 < plan.evaluation_share(recipe) <= 0.1


def test_the_share_of_evaluations_by_hand():
    """Answers of 10 tokens; a premise of 400 tokens, of one claim of 64."""
    one = {"claims_per_prefix": 1, "max_new_tokens": 10, "eval_rows": 6, "max_steps": 20, "eval_steps": 10}
    step = 5 * (400 + 64 + 10)
    evaluation = 6 * (3 * 10 + 464 / 3 + 474 / 3)
    share = plan.evaluation_share(train_sft.Config(batch_size=5, **one))
    assert share == pytest.approx(2 * evaluation / (2 * evaluation + 20 * step))
    step = 5 * 2 * (3 * 10 + 3 * (464 / 2 + 10))  # three updates a rollout, without a reference
    evaluation = 6 * (3 * 10 + 464 / 3)
    more = {"prompts_per_step": 5, "num_generations": 2, "num_iterations": 3, "beta": 0.0}
    share = plan.evaluation_share(train_grpo.Config(**one, **more))
    assert share == pytest.approx(3 * evaluation / (3 * evaluation + 20 * step))
    at_the_end = train_sft.Config(**one | {"max_steps": 0, "eval_steps": 0})
    assert plan.evaluation_share(at_the_end) == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_tells_its_stage(path):
    assert plan.stage_of(read_yaml(str(path)).keys()) == path.name.split("_")[0]


@pytest.mark.parametrize(
    "options, kind, card_gb",
    [
        (["--config", "configs/grpo_phi3.yaml", "--card_gb=11"], train_grpo.Config, 11.0),
        (["--num_generations", "4", "--model", "tiny"], train_grpo.Config, 0.0),
        (["--card-gb", "23.5", "--model=tiny", "--adaptation", "full"], train_sft.Config, 23.5),
        (["--model", "tiny", "--stage", "grpo"], train_grpo.Config, 0.0),
    ],
)
def test_the_recipe_is_read_as_the_training_script_reads_it(options, kind, card_gb, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe, card = plan.parse([*options, "--claims_per_prefix", "3"])
    assert type(recipe) is kind and card == card_gb and recipe.claims_per_prefix == 3


SFT, GRPO = ["--config", "configs/sft_tiny.yaml"], ["--config", "configs/grpo_tiny.yaml"]
REFUSED = [
    ([], "nothing to plan: name a recipe, as in --config"),
    (["--card_gb", "11"], "nothing to plan: name a recipe, as in --config"),
    (["--model", "tiny", "--card_gb", "11"], "stage: no field tells .* add --stage sft or --stage grpo"),
    (["--config", "configs/data_tiny.yaml", "--card_gb", "11"], "stage: no field tells .* add --stage"),
    (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
    ([*SFT, "--stage", "ppo"], "--stage: invalid choice: 'ppo'"),
    ([*SFT, "--stage", "grpo"], "unknown field"),
    ([*SFT, "--lora_rank", "8", "--card_gb", "11"], "unknown option --lora_rank; did you mean lora_r"),
    ([*GRPO, "--num_generation", "8", "--card_gb", "11"], "unknown option --num_generation; did you mean num_gen"),
    ([*GRPO, "--micro_batch_tokens", "0", "--card_gb", "11"], "micro_batch_tokens: must be auto or at least 1"),
    ([*SFT, "--card_gb", "much"], "--card_gb: invalid float value: 'much'"),
    ([*SFT, "--card_gb", "-1"], "card_gb: must be above 0"),
    ([*SFT, "--card_gb", "nan"], "card_gb: must be above 0"),
    (SFT, "card_gb: no GPU here to ask; name its memory, as in --card_gb 11"),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_what_a_user_can_mend_is_one_line(options, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["plan.py", *options])
    with pytest.raises(SystemExit) as stop:
        run_script(plan.main)
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert stop.value.code == 2 and out == "" and len(lines) == 1, out + err
    assert lines[0].startswith("error: ") and re.search(message, lines[0])


def test_a_card_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="card_gb: no GPU here"):
        plan.card_bytes(0.0)
    with pytest.raises(ValueError, match="card_gb: must be above 0"):
        plan.card_bytes(-1.0)
    assert plan.card_bytes(11.0) == 11e9
