"""plan.py as a user runs it: which stage a recipe is for, what is printed, and what is refused."""

import re
import sys

import pytest
import torch
from conftest import ROOT, run
from recipes import training_recipes

import plan
import train_grpo
import train_sft
from runtime.ending import run_script
from runtime.settings import parse_config, read_yaml
from training.hours import nearest_rates, read_rates


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


def hours_of(config: str, *options: str) -> dict[str, list[float]]:
    """The numbers that --hours prints: M tokens, hours on two cards and on one, by part."""
    recipe, own = plan.parse(["--config", str(ROOT / f"configs/{config}.yaml"), "--hours", *options])
    card = own.card_gb * 1e9
    rates = read_rates(own.rates) if own.rates else nearest_rates(card)
    rows = (
        re.match(r"(\w+)((?: +[\d.]+){3})$", line)
        for line in plan.hours(plan.with_budgets(recipe, 2, card), rates, own)
    )
    return {row[1]: list(map(float, row[2].split())) for row in rows if row}


def test_hours_follow_the_plan_the_rates_and_the_lengths(monkeypatch, tmp_path):
    def hours(*options: str) -> dict[str, list[float]]:
        return hours_of("grpo_phi3_traces", "--card_gb", "23", *options)

    monkeypatch.chdir(tmp_path)  # where no dataset is
    bound = hours()
    assert list(bound) == ["prefill", "decode", "reference", "update", "evaluation", "total"]
    for column in range(3):
        assert bound["total"][column] == pytest.approx(sum(bound[name][column] for name in list(bound)[:-1]), abs=0.3)
    shorter = hours("--completion_tokens", "768", "--max_steps", "75")
    assert shorter["decode"][0] == pytest.approx(bound["decode"][0] / 4, abs=0.1)
    alike = hours("--num_generations", "8", "--distinct_share", "0.25")  # in time as a quarter of the samples
    fewer = hours("--num_generations", "2")
    assert alike["decode"] == pytest.approx(fewer["decode"], rel=0.05)  # their shares of the memory differ a little
    assert alike["update"] == fewer["update"] != bound["update"]
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: {ROOT / 'configs/rates/l4.yaml'}\noperations_share: 0.7\n")
    assert hours("--rates", str(mine))["update"][1] == pytest.approx(bound["update"][1] / 2, abs=0.01)


HOURS = (ROOT / "docs/memory.md").read_text()
HOURS_ROWS = re.findall(
    r"^\| `(\w+)`, (L4|RTX 2080 Ti) \| ([\d.]+) h \| ([\d.]+) h \| ([\d.]+) h \|", HOURS, re.MULTILINE
)
HOURS_LONGER = re.findall(r"([\d.]+) hours for `(\w+)_traces`", HOURS)
REASONING = ("--prompt_tokens", "511", "--completion_tokens", "805")


def test_the_page_has_rows_of_hours():
    assert [model for model, *_ in HOURS_ROWS] == ["phi3", "qwen", "phi3_traces", "qwen_traces"]
    assert [model for _, model in HOURS_LONGER] == ["phi3", "qwen"]


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=() if row[0] == "qwen_traces" else pytest.mark.slow) for row in HOURS_ROWS]
)
def test_the_page_has_the_hours_of_the_recipes(row):
    """Its table; the trace recipes are within 8 hours."""
    model, card, *shown = row
    given = ["--card_gb", "23" if card == "L4" else "11", *(REASONING if "traces" in model else REASONING[:2])]
    sft, grpo = (hours_of(f"{stage}_{model}", *given) for stage in ("sft", "grpo"))
    assert [f"{part[1]:.1f}" for part in (sft["total"], grpo["total"], grpo["decode"])] == shown
    assert grpo["total"][1] < 8


@pytest.mark.slow
@pytest.mark.parametrize("shown, model", HOURS_LONGER)
def test_the_page_has_the_hours_of_more_steps(shown, model):
    options = ["--card_gb", {"phi3": "23", "qwen": "11"}[model], "--max_steps", "312", *REASONING]
    assert f"{hours_of(f'grpo_{model}_traces', *options)['total'][1]:.1f}" == shown


@pytest.mark.slow
def test_the_page_has_the_hours_of_samples_that_are_alike():
    (found,) = re.findall(
        r"`--distinct_share ([\d.]+)`.*?([\d.]+) hours on two .*?, ([\d.]+)\ninstead of ([\d.]+)\.", HOURS, re.S
    )
    share, *shown = found
    alike = ["--distinct_share", share]
    options = [["--card_gb", "23", *alike], ["--card_gb", "11", *alike], ["--card_gb", "11"]]
    assert [f"{hours_of('grpo_phi3_traces', *given, *REASONING)['total'][1]:.1f}" for given in options] == shown


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


@pytest.mark.parametrize("path", training_recipes())
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


@pytest.mark.parametrize("path", training_recipes())
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
    recipe, own = plan.parse([*options, "--claims_per_prefix", "3"])
    assert type(recipe) is kind and own.card_gb == card_gb and recipe.claims_per_prefix == 3


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
    ([*SFT, "--rates", "configs/rates/l4.yaml"], "rates: add --hours"),
    ([*SFT, "--hours", "--prompt_tokens", "-1"], "prompt_tokens: must be 0 or more, got -1"),
    ([*SFT, "--hours", "--card_gb", "11", "--rates", "nowhere.yaml"], "rates: nowhere.yaml is no file; those of the"),
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
