"""A reward of one's own: how it is found, what it may return, and runs on a task that the project does not know."""

import random
import sys
from fractions import Fraction

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_grpo
import train_sft
from training.rewards import Reward, load_function

COPIED = '''
def copied(completion, row):
    """Whether the completion says the row's word; and how many words it has, which is only logged."""
    words = completion.replace("Answer:", "").split()
    return {"copied": float(words == [row["word"]]), "rollout/words": len(words)}
'''


@pytest.fixture
def copying(tmp_path):
    """A dataset of another task, without premises and labels: say the prompt's word. Half of the responses do not."""
    rng = random.Random(0)
    said = [rng.choice(("Yes", "No")) for _ in range(48)]
    prompt = "<|user|>\nSay No, No and No.<|end|>\n<|assistant|>\n"
    rows = [{"prompt": prompt, "response": f"Answer: {word}<|end|>", "word": "No"} for word in said]
    splits = {"train": Dataset.from_list(rows[:32]), "validation": Dataset.from_list(rows[32:])}
    DatasetDict(splits).save_to_disk(tmp_path / "words")
    (tmp_path / "my_reward.py").write_text(COPIED)
    return tmp_path


def run(monkeypatch, script, **settings) -> None:
    arguments = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
    script.main()


def scalars(folder, tag: str) -> list[float]:
    return [event.value for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def test_another_task_is_learned_without_a_change(copying, monkeypatch, capsys):
    """SFT without labels teaches either word, GRPO by the user's reward which of them is asked for."""
    places = {"dataset": copying / "words", "eval_steps": 0, "save_steps": 0, "eval_rows": 16, "logging_steps": 1}
    run(
        monkeypatch, train_sft, model="tiny", output_dir=copying / "sft", logging_dir=copying / "log/sft",
        batch_size=16, max_steps=60, learning_rate=3e-3, **places,
    )  # fmt: skip
    losses = scalars(copying / "log/sft", "train/loss")
    assert losses[-1] < 0.5 * losses[0] and "step 60: loss " in capsys.readouterr().out
    run(
        monkeypatch, train_grpo, model=copying / "sft", output_dir=copying / "grpo", logging_dir=copying / "log/grpo",
        reward_function=f"{copying}/my_reward.py:copied", prompts_per_step=16, max_new_tokens=6, max_steps=60,
        learning_rate=3e-3, beta=0.0, **places,
    )  # fmt: skip
    rewards = scalars(copying / "log/grpo", "reward/mean")
    assert rewards == scalars(copying / "log/grpo", "reward/copied") and rewards[0] < 0.7 < 0.9 < rewards[-1]
    assert scalars(copying / "log/grpo", "eval/reward")[-1] == 1.0
    assert min(scalars(copying / "log/grpo", "rollout/words")) >= 0
    assert "step 0: reward " in capsys.readouterr().out


@pytest.mark.parametrize("body", ["return None", "return float('nan')", "return row['wrod']"])
def test_a_function_that_cannot_be_used_costs_no_earlier_run(copying, monkeypatch, body):
    """It is asked before a run takes the place of another."""
    out = copying / "grpo"
    out.mkdir()
    for name in ("training_config.json", "adapter_model.safetensors"):
        (out / name).write_text("{}")
    (copying / "wrong.py").write_text(f"def reward(completion, row):\n    {body}\n")
    places = {"dataset": copying / "words", "output_dir": out, "logging_dir": copying / "log/grpo"}
    with pytest.raises((ValueError, KeyError), match="not a number|wrod"):
        run(
            monkeypatch, train_grpo, model="tiny", reward_function=f"{copying}/wrong.py:reward",
            overwrite="true", **places,
        )  # fmt: skip
    assert (out / "adapter_model.safetensors").read_text() == "{}"


def test_fresh_letters_and_words_are_those_of_the_whole_row(traces, start_adapter, tmp_path, monkeypatch):
    """The row that a reward is asked of, its trace too, is the one that the policy was asked; so is the first try's."""
    (tmp_path / "mine.py").write_text(
        "from causal.reasoning import trace\nfrom causal.wording import parse_claim\n\n"
        "def fits(completion, row):\n"
        "    assert row['hypothesis'] in row['input'] in row['prompt']\n"
        "    assert trace(*parse_claim(row['premise'], row['hypothesis']), 'full') in row['response']\n"
        "    return float(len(completion))\n"
    )
    run(
        monkeypatch, train_grpo, model=start_adapter, dataset=traces, reward_function=f"{tmp_path}/mine.py:fits",
        relabel_each_epoch="true", prompts_per_step=2, num_generations=2, max_new_tokens=2, max_steps=1, eval_steps=0,
        eval_rows=2, save_steps=0, output_dir=tmp_path / "model", logging_dir=tmp_path / "logs",
    )  # fmt: skip


def test_rows_without_a_number_of_variables_have_no_small_ones(copying, monkeypatch):
    places = {"dataset": copying / "words", "output_dir": copying / "sft", "logging_dir": copying / "log/sft"}
    with pytest.raises(ValueError, match="small_first: .* has no num_variables"):
        run(monkeypatch, train_sft, model="tiny", small_first="true", **places)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("my_reward.py", "expected FILE.py:NAME"),
        ("my_reward:copied", "expected FILE.py:NAME"),
        ("none.py:copied", "there is no file none.py"),
        ("my_reward.py:other", "has no function other; its own: copied"),
        ("broken.py:copied", r"broken.py cannot be imported \(SyntaxError"),
    ],
)
def test_a_function_that_is_not_there_is_named(copying, monkeypatch, place, message):
    monkeypatch.chdir(copying)
    (copying / "broken.py").write_text("def copied(:")
    with pytest.raises(ValueError, match=f"^reward_function {place}: .*{message}"):
        load_function(place)


def test_what_a_function_returns_is_read():
    for two in (2, 2.0, np.float32(2), np.int64(2), Fraction(2)):
        judged = Reward(lambda text, row, found=two: found)("", {})
        assert (judged.reward, judged.components) == (2.0, {"score": 2.0})
    found = {"a": 1, "b": (0.5, [(0, 3, 0.5)]), "rollout/x": float("nan")}
    judged = Reward(lambda text, row: found, {"b": 4.0})("", {})
    assert judged.reward == 3.0 and judged.components == {"a": 1.0, "b": 0.5}
    assert judged.spans == {"b": [(0, 3, 0.5)]} and list(judged.metrics) == ["rollout/x"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": "1"}, "a is '1', not a number"),
        ({"a": float("nan")}, "a is nan, not a number"),
        (None, "score is None, not a number"),
        ({"rollout/x": 1.0}, "a name without a slash is part of the reward"),
        ({}, "a name without a slash is part of the reward"),
    ],
)
def test_what_is_no_reward_is_refused(found, message):
    with pytest.raises(ValueError, match=f"^mine: .*{message}"):
        Reward(lambda text, row: found, name="mine")("", {})


def test_names_that_change_are_refused():
    reward = Reward(lambda text, row: {text: 1.0}, name="mine")
    reward("a", {})
    with pytest.raises(ValueError, match="mine: returned b after a: return the same names"):
        reward("b", {})
