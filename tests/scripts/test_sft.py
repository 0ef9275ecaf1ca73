"""The SFT loss against a plain computation, and the plan of its steps."""

import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import VOCABULARY, assert_same_gradients, build_model, gradients, padded_logps
from datasets import Dataset

import train_sft
from dataset.batches import share_of_rank
from policy.prefix_sharing import pack
from train_sft import (
    Config,
    evaluation_loss,
    learning_rate,
    loss_sum,
    make_rows,
    micro_batches,
    plan_steps,
    positions_at,
)

PREMISES = [f"p{i % 5}" for i in range(23)]


def random_rows(seed: int, weighted: bool = False, prompt_loss_weight: float = 0.0):
    """Prompts, completions, labels and Rows of 23 rows on 5 premises, with completions of 1 to 4 tokens."""
    rng = random.Random(seed)
    premises = [[rng.randrange(VOCABULARY) for _ in range(5 + p)] for p in range(5)]
    prompts = [premises[i % 5] + [rng.randrange(VOCABULARY)] for i in range(23)]
    completions = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 4))] for _ in range(23)]
    labels = [rng.randrange(2) for _ in range(23)]
    class_weights = [0.5, 2.0] if weighted else [1.0, 1.0]
    return prompts, completions, labels, make_rows(prompts, completions, labels, class_weights, prompt_loss_weight)


def accumulate(model, rows, batches: list, normaliser: float, share: bool = True) -> dict[str, torch.Tensor]:
    for batch in batches:
        (loss_sum(model, rows, batch, share) / normaliser).backward()
    return gradients(model)


@pytest.mark.parametrize(("weighted", "prompt_loss_weight"), [(False, 0.0), (True, 0.0), (True, 0.1)])
@pytest.mark.parametrize("lora", [False, True])
def test_micro_batches_do_not_change_the_step(family, lora, weighted, prompt_loss_weight):
    model = build_model(family, lora)
    prompts, completions, labels, rows = random_rows(0, weighted, prompt_loss_weight)
    groups = plan_steps(PREMISES, Config(batch_size=20, claims_per_prefix=4, max_steps=1))[0][1]
    used = [i for group in groups for i in group]
    total, weight_sum = torch.zeros(()), 0.0
    for i in used:  # row by row, from the definition
        weight = [0.5, 2.0][labels[i]] if weighted else 1.0
        logps, _ = padded_logps(model, [prompts[i]], [completions[i]])
        total, weight_sum = total - weight * logps.sum(), weight_sum + weight * len(completions[i])
        if prompt_loss_weight:
            logps, _ = padded_logps(model, [prompts[i][:1]], [prompts[i][1:]])
            total = total - prompt_loss_weight * logps.sum()
            weight_sum += prompt_loss_weight * (len(prompts[i]) - 1)
    assert rows.total_weight(groups) == pytest.approx(weight_sum)
    (total / weight_sum).backward()
    expected = gradients(model)
    for budget in (1, 40, 10_000):
        batches = micro_batches(groups, rows, Config(micro_batch_tokens=budget))
        assert sorted(i for batch in batches for group in batch for i in group) == sorted(used)
        assert_same_gradients(accumulate(model, rows, batches, weight_sum), expected)
        losses = [float(loss_sum(model, rows, batch, True).detach()) for batch in batches]
        assert sum(losses) == pytest.approx(float(total.detach()), rel=1e-5)
    assert_same_gradients(accumulate(model, rows, [groups], weight_sum, share=False), expected)


def test_micro_batches_stay_within_the_budget():
    prompts, completions, _, rows = random_rows(1)
    groups = plan_steps(PREMISES, Config(batch_size=23, claims_per_prefix=3, max_steps=1))[0][1]
    for batch in micro_batches(groups, rows, Config(micro_batch_tokens=45)):
        sequences = [[prompts[i] + completions[i] for i in group] for group in batch]
        assert len(pack(sequences)) <= 45 or len(batch) == 1
    padded = micro_batches(groups, rows, Config(micro_batch_tokens=45, prefix_sharing=False))
    assert sorted(i for batch in padded for group in batch for i in group) == sorted(sum(groups, []))
    for batch in padded:
        lengths = [len(prompts[i] + completions[i]) for group in batch for i in group]
        assert len(lengths) * max(lengths) <= 45 or len(lengths) == 1, "a premise's claims need not stay together"


def test_micro_batches_do_not_change_a_step_with_gaps_between_positions():
    model = build_model("phi3")
    prompts, completions, _, rows = random_rows(3)
    groups = plan_steps(PREMISES, Config(batch_size=20, claims_per_prefix=4, max_steps=1))[0][1]
    used = [i for group in groups for i in group]
    config = Config(position_stretch=3.0)
    positions = next(
        found for found in (positions_at(k, rows.longest(groups), config) for k in range(9)) if found is not None
    )
    logps, _ = padded_logps(model, [prompts[i] for i in used], [completions[i] for i in used], positions=positions)
    for share, budget in ((True, 1), (True, 10_000), (False, 40)):
        batches = micro_batches(groups, rows, Config(micro_batch_tokens=budget, prefix_sharing=share))
        losses = [float(loss_sum(model, rows, batch, share, positions).detach()) for batch in batches]
        assert sum(losses) == pytest.approx(-float(logps.sum().detach()), rel=1e-5)


def test_positions_rise_with_gaps_within_the_stretch():
    config, longest = Config(position_stretch=2.0, seed=3), 50
    drawn = [positions_at(step, longest, config) for step in range(400)]
    assert 0.2 < sum(found is None for found in drawn) / 400 < 0.4
    drawn = [found for found in drawn if found is not None]
    for found in drawn:
        assert len(found) == longest and (found.diff() > 0).all() and 0 <= found[0] and found[-1] < 2 * longest
    assert min(int(found[-1]) for found in drawn) < 60 and max(int(found[-1]) for found in drawn) > 90
    assert all(positions_at(step, longest, Config()) is None for step in range(20))
    other = [positions_at(step, longest, Config(position_stretch=2.0, seed=4)) for step in range(400)]
    assert [str(found) for found in other] != [str(positions_at(k, longest, config)) for k in range(400)]


def test_evaluation_loss_is_the_mean_over_tokens():
    model = build_model("phi3").train()
    prompts, completions, _, rows = random_rows(2)
    got = evaluation_loss(Accelerator(cpu=True), model, rows, PREMISES, Config(micro_batch_tokens=60))
    with torch.no_grad():
        logps, mask = padded_logps(model, prompts, completions)
    assert got == pytest.approx(float(-logps.sum() / mask.sum()), rel=1e-5)
    assert model.training


# --- schedule


def test_learning_rate_schedule():
    config = Config(learning_rate=2.0, warmup_ratio=0.1, min_lr_ratio=0.2)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0)
    assert rates[9] == pytest.approx(2.0) and rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.2)  # half of the cosine
    assert learning_rate(100, 100, config) == pytest.approx(0.4)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_learning_rate_of_very_short_runs_is_never_zero_or_above_the_peak():
    for total in (1, 2, 3):
        for ratio in (0.0, 0.05, 1.0):
            rates = [learning_rate(step, total, Config(warmup_ratio=ratio)) for step in range(total)]
            assert all(0 < rate <= 2e-4 for rate in rates)


# --- data


def rows_of(steps) -> list[int]:
    return [i for step in steps for group in step for i in group]


def test_every_epoch_has_every_row_once():
    config = Config(num_train_epochs=3.0, batch_size=8, claims_per_prefix=4)
    planned = plan_steps(PREMISES, config)
    steps = [groups for _, groups in planned]
    assert [epoch for epoch, _ in planned] == [0] * 3 + [1] * 3 + [2] * 3
    assert len(steps) == 3 * math.ceil(23 / 8)
    for epoch in range(3):
        assert sorted(rows_of(steps[3 * epoch : 3 * epoch + 3])) == list(range(23))
    assert rows_of(steps[:3]) != rows_of(steps[3:6])
    assert Counter(sum(map(len, step)) for step in steps) == {8: 6, 7: 3}
    for group in (group for step in steps for group in step):
        assert len({PREMISES[i] for i in group}) == 1 and len(group) <= 4


def test_max_steps_and_parts_of_epochs():
    assert len(plan_steps(PREMISES, Config(max_steps=7, batch_size=8, num_train_epochs=1.0))) == 7
    assert len(plan_steps(PREMISES, Config(num_train_epochs=0.5, batch_size=4))) == 3
    assert len(plan_steps(PREMISES, Config(num_train_epochs=1.5, batch_size=4))) == 9
    assert plan_steps(PREMISES, Config(seed=1)) == plan_steps(PREMISES, Config(seed=1))
    assert plan_steps(PREMISES, Config(seed=1)) != plan_steps(PREMISES, Config(seed=2))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_partition_a_step(world_size):
    for _, step in plan_steps(PREMISES, Config(batch_size=7, claims_per_prefix=5)):
        shares = [share_of_rank(step, rank, world_size) for rank in range(world_size)]
        assert sorted(i for share in shares for group in share for i in group) == sorted(i for g in step for i in g)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"num_train_epochs": 0.0}, "num_train_epochs"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens"),
        ({"position_stretch": 0.5}, "position_stretch"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_less_than_a_row_for_each_process_is_refused(monkeypatch):
    opened = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2), train=Dataset.from_dict({}), tokenizer=None)
    monkeypatch.setattr(train_sft, "open_run", lambda *_, **__: opened)
    with pytest.raises(ValueError, match="batch_size: 1 is less than one row for each of 2 processes"):
        train_sft.set_up(Config(batch_size=1))
