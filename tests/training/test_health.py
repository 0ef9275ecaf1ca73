"""The gradient-flow check passes what learns and names what does not; weights that should move are watched."""

import dataclasses
import json
import math
import random
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import build_model
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import train_grpo
import train_sft
from policy.adapters import add_reference
from policy.prefix_sharing import sequence_logps
from training.health import (
    SIGNS,
    Monitor,
    Motion,
    TrainingFault,
    check_gradient_flow,
    check_optimizer,
    check_stop_tokens,
)


def probe(model) -> torch.Tensor:
    return -sequence_logps(model, [[[3, 4, 5], [3, 4, 6]]], [[[7, 8], [9]]])[0].sum()


def fresh_lora(family: str):
    """A new adapter: B = 0, so that every gradient of A is exactly zero."""
    return get_peft_model(build_model(family), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_fresh_lora_passes(family):
    model = fresh_lora(family)
    probe(model).backward()
    a_gradients = [p.grad for name, p in model.named_parameters() if "lora_A" in name]
    assert a_gradients and not any(gradient.any() for gradient in a_gradients)
    model.zero_grad()
    check_gradient_flow(model, probe(model))


def test_trained_lora_with_a_reference_and_full_models_pass(family):
    model = build_model(family)
    check_gradient_flow(model, probe(model))
    policy = build_model(family, lora=True)
    add_reference(policy)
    check_gradient_flow(policy, probe(policy))
    assert all(p.grad is None for p in policy.parameters()), "the probe's gradients must not reach the first step"


def test_a_zero_gradient_of_a_trained_lora_is_named():
    """Zero is only expected of an A whose own B is zero."""
    model = build_model("phi3", lora=True)
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    layer.scaling["default"] = 0.0
    with pytest.raises(TrainingFault, match=r"zero gradient in 2 of \d+ .*layers\.1\.mlp\.down_proj\.lora_A"):
        check_gradient_flow(model, probe(model))


def test_a_tensor_that_the_loss_does_not_reach_is_named():
    model = build_model("qwen2")
    model.stray = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(TrainingFault, match=r"no gradient in 1 of \d+ trainable tensors.*stray"):
        check_gradient_flow(model, probe(model))


def test_a_graph_cut_in_the_middle_is_named():
    """Detached after the first layer, as by a kernel without a backward: the layers before it are dead."""
    model = build_model("phi3", lora=True)
    model.base_model.model.model.layers[0].register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(TrainingFault, match=r"no gradient in 8 of 16 .*layers\.0\."):
        check_gradient_flow(model, probe(model))


def test_a_loss_without_a_graph_is_named():
    model = build_model("phi3")
    with torch.no_grad():
        loss = probe(model)
    with pytest.raises(TrainingFault, match="does not depend"):
        check_gradient_flow(model, loss)
    with pytest.raises(TrainingFault, match="does not depend"):
        check_gradient_flow(model.requires_grad_(False), probe(model))


@pytest.mark.parametrize("dtype, remedy", [(torch.float16, "launch in bf16 or fp32"), (torch.float32, "be damaged")])
def test_a_loss_that_is_not_finite_before_training(dtype, remedy):
    model = build_model("qwen2").to(dtype)
    loss = model.get_input_embeddings().weight.sum() * float("inf")
    with pytest.raises(TrainingFault, match=f"model: the loss is .* in {dtype}: .*{remedy}"):
        check_gradient_flow(model, loss)


def test_a_nan_gradient_of_a_finite_loss_is_named():
    model = build_model("qwen2")
    model.model.layers[1].mlp.down_proj.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingFault, match="NaN or infinite gradient in 1 of .*layers.1.mlp.down_proj.weight"):
        check_gradient_flow(model, probe(model))


# --- the optimizer and the stop tokens


def test_an_optimizer_that_lacks_a_tensor_is_named():
    model = build_model("phi3", lora=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    check_optimizer(model, torch.optim.AdamW(trainable))
    with pytest.raises(TrainingFault, match=r"dead optimizer: it does not hold 1 trainable tensors.*lora_A"):
        check_optimizer(model, torch.optim.AdamW(trainable[1:]))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in trainable]
    with pytest.raises(TrainingFault, match=rf"does not hold {len(trainable)} trainable"):
        check_optimizer(model, torch.optim.AdamW(copies))


def test_responses_must_end_in_a_stop_token():
    check_stop_tokens([[5, 6, 2], [7, 3]], {2, 3})
    with pytest.raises(TrainingFault, match=r"end in token 3, sampling stops at \[2, 9\]"):
        check_stop_tokens([[5, 6, 2], [7, 3]], {9, 2})
    with pytest.raises(TrainingFault, match="responses of the dataset go on after token 7, where sampling stops"):
        check_stop_tokens([[5, 6, 2], [7, 3]], {2, 3, 7})


# --- motion


def test_of_several_steps_the_norm_is_of_those_that_were_taken():
    model = build_model("phi3", lora=True)
    motion = Motion(model)
    for steps, norm, skipped in (
        ([(2.0, True)], 2.0, 0.0),
        ([(math.inf, False), (2.0, True), (4.0, True), (math.inf, False)], 3.0, 0.5),
        ([(math.inf, False)], math.inf, 1.0),
    ):
        values = motion.values(model, steps)
        assert (values["train/grad_norm"], values["health/step_skipped"]) == (norm, skipped)


def test_motion_sees_what_moves_and_how_far():
    model = build_model("phi3", lora=True)
    motion = Motion(model)
    assert motion.change(model) == 0.0 and not motion.moved(model)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0, :2] += torch.tensor([0.3, -0.4])
    assert motion.moved(model) and not motion.moved(model), "since the last call"
    assert motion.change(model) == pytest.approx(0.5, rel=1e-5), "since the start"
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad).add_(1.0)
    assert not motion.moved(model), "frozen weights are not watched"


# --- signs

HEALTHY = {
    "health/loss_finite": 1.0,
    "health/step_skipped": 0.0,
    "health/signal": 0.4,
    "health/weights_moved": 1.0,
    "health/reference_kl": 0.0,
    "health/reference_kl_ratio": 0.0,
    "health/sampling_logp_gap": 1e-6,
    "health/sampling_gap_ratio": 0.01,
    "health/first_ratio_deviation": 0.0,
    "health/mask_error": 0.0,
    "health/weight_sum_error": 0.0,
    "health/ran_past_end": 0.0,
    "health/not_finite_rate": 0.0,
    "train/grad_norm": 0.05,
    "policy/mean_abs_advantage": 0.4,
    "policy/kl": 0.03,
    "policy/entropy": 0.2,
    "reward/mean": 0.4,
    "reward/frac_zero_std": 0.6,
    "reward/frac_all_right": 0.5,
    "reward/frac_all_wrong": 0.1,
    "rollout/truncated_rate": 0.01,
    "rollout/unanswered_rate": 0.01,
    "rollout/predicted_yes_rate": 0.2,
    "rollout/label_yes_rate": 0.15,
    "rollout/completion_length": 40.0,
    "eval/predicted_yes_rate": 0.2,
    "eval/unanswered_rate": 0.0,
    "eval/not_finite_rate": 0.0,
    "eval/loss": 0.5,
}
# sign: (healthy steps before, what changes then, how many steps of it until the advice)
TROUBLE = {
    "nan_loss": (0, {"health/loss_finite": 0.0}, 1),
    "not_finite": (0, {"health/not_finite_rate": 0.01}, 1),
    "skipped_steps": (0, {"health/step_skipped": 1.0}, 3),
    "no_reward_signal": (0, {"policy/mean_abs_advantage": 0.0}, 3),
    "no_gradient": (0, {"train/grad_norm": 0.0}, 1),
    "weights_still": (0, {"health/weights_moved": 0.0}, 3),
    "wrong_reference": (0, {"health/reference_kl_ratio": 1.2}, 1),
    "sampling_gap": (0, {"health/sampling_gap_ratio": 1.2}, 2),
    "ratio_not_one": (0, {"health/first_ratio_deviation": 1e-3}, 1),
    "wrong_mask": (0, {"health/mask_error": -3.0}, 1),
    "wrong_normaliser": (0, {"health/weight_sum_error": 0.5}, 1),
    "wrong_stop_token": (0, {"health/ran_past_end": 0.9}, 1),
    "kl_high": (0, {"policy/kl": 0.11}, 5),
    "kl_low": (0, {"policy/kl": 0.009}, 109),
    "dead_groups": (0, {"reward/frac_zero_std": 0.97}, 10),
    "entropy_collapse": (10, {"policy/entropy": 0.005}, 10),
    "entropy_runaway": (10, {"policy/entropy": 1.2}, 10),
    "truncation": (0, {"rollout/truncated_rate": 0.3}, 5),
    "unparsable": (0, {"rollout/unanswered_rate": 0.3}, 5),
    "one_answer": (0, {"rollout/predicted_yes_rate": 0.01}, 20),
    "length_jump": (30, {"rollout/completion_length": 130.0}, 4),  # two of five show in their mean
    "collapse": (20, {"policy/kl": 0.08, "rollout/truncated_rate": 0.2, "reward/mean": 0.1}, 7),
    "reward_flat": (60, {"reward/mean": 0.3}, 139),
    "eval_one_answer": (0, {"eval/predicted_yes_rate": 0.0}, 3),
    "eval_unparsable": (0, {"eval/unanswered_rate": 0.3}, 2),
    "eval_not_finite": (0, {"eval/not_finite_rate": 0.01}, 1),
    "overfitting": (1, {"eval/loss": 0.6}, 3),
}
SETTINGS = {"learning_rate": 1e-5, "beta": 0.03, "temperature": 1.0}


def steps_until_advice(sign: str, before: int, change: dict, limit: int, apart: bool) -> tuple[int, list[str]]:
    """After how many steps of the change the sign is advised of, and everything that was by then; `apart`: an
    evaluation follows each step, and is told by itself."""
    monitor, advised = Monitor(SETTINGS, 10**6, SimpleNamespace(add_text=lambda *text: None)), []

    def update(step: int, values: dict) -> list[str]:
        if not apart:
            return monitor.update(step, values)
        of_evaluation = {name: value for name, value in values.items() if name.startswith("eval/")}
        of_step = {name: value for name, value in values.items() if name not in of_evaluation}
        return monitor.update(step, of_step) + monitor.update(step, of_evaluation)

    for step in range(before):
        assert update(step, HEALTHY) == []
    for step in range(1, limit + 1):
        advised += update(before + step, HEALTHY | change)
        if sign in advised:
            return step, advised
    return 0, advised


def test_every_sign_has_a_case():
    assert TROUBLE.keys() == {sign.name for sign in SIGNS}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("sign", TROUBLE)
def test_a_sign_is_advised_of_once_it_has_held(sign, apart):
    before, change, patience = TROUBLE[sign]
    assert steps_until_advice(sign, before, change, patience + 5, apart) == (patience, [sign])


def test_good_values_raise_no_sign():
    monitor = Monitor(SETTINGS, stop_after=1)
    assert [monitor.update(step, HEALTHY | {"reward/mean": 0.4 + 1e-4 * step}) for step in range(500)] == [[]] * 500
    assert set(monitor.flags().values()) == {0.0}


def advised_in(values_at: Callable[[int], dict], steps: int) -> set[str]:
    """What a run is advised of that is saved and restored on its way."""
    monitor, advised = Monitor(SETTINGS, 10**6), set()
    for step in range(1, steps + 1):
        advised |= set(monitor.update(step, HEALTHY | values_at(step)))
        if step % 150 == 0:
            saved = json.loads(json.dumps(monitor.state()))
            monitor = Monitor(SETTINGS, 10**6)
            monitor.restore(saved)
    return advised


@pytest.mark.parametrize("seed", range(3))
def test_signs_of_a_long_run_compare_with_its_beginning(seed):
    noise = random.Random(seed)
    assert advised_in(lambda step: {"reward/mean": min(0.8, 0.2 + step / 100) + noise.gauss(0, 0.05)}, 900) == set()
    fallen = advised_in(lambda step: {"reward/mean": step, "policy/entropy": 0.2 if step < 600 else 0.0005}, 700)
    assert fallen == {"entropy_collapse"}
    still = {"policy/kl": 0.001}
    assert "kl_low" in advised_in(lambda step: still | {"reward/mean": noise.gauss(0.4, 0.05)}, 400)


def test_a_run_without_a_reference_is_not_told_of_its_kl():
    monitor = Monitor(SETTINGS | {"beta": 0}, 10**6)
    values = {name: value for name, value in HEALTHY.items() if not name.startswith("health/reference")}
    for step in range(200):
        assert "kl_low" not in monitor.update(step, values | {"policy/kl": 0.0, "reward/mean": 0.5 - step / 1000})


def test_a_run_that_is_stopped_after_an_evaluation_says_why():
    monitor = Monitor(SETTINGS, stop_after=5)
    still = {"train/grad_norm": 0.0, "policy/mean_abs_advantage": 0.0, "health/signal": 0.0}
    of_step = {name: value for name, value in HEALTHY.items() if not name.startswith("eval/")} | still
    for step in range(4):
        monitor.update(step, of_step)
        monitor.update(step, {"eval/unanswered_rate": 0.9, "eval/predicted_yes_rate": 0.05})
    with pytest.raises(TrainingFault, match="no weight has moved for 5 steps.*eval_unparsable: 90% of the validation"):
        monitor.update(4, of_step)


def test_values_that_a_run_does_not_have_raise_no_sign():
    monitor = Monitor(SETTINGS, stop_after=1)
    assert monitor.update(1, {"eval/loss": 1.0}) == []


def test_an_interrupted_sign_starts_anew():
    monitor = Monitor(SETTINGS, stop_after=10**6)
    bad = HEALTHY | {"policy/kl": 0.2}
    assert [monitor.update(k, values) for k, values in enumerate([bad] * 4 + [HEALTHY] + [bad] * 4)] == [[]] * 9
    assert monitor.update(9, bad) == ["kl_high"]


def test_advice_is_repeated_only_after_a_while():
    monitor = Monitor(SETTINGS, stop_after=10**6)
    advised = [step for step in range(210) if "kl_high" in monitor.update(step, HEALTHY | {"policy/kl": 0.2})]
    assert advised == [4, 104, 204]


def test_advice_names_the_settings_and_reaches_tensorboard(tmp_path, capsys):
    with SummaryWriter(str(tmp_path)) as writer:
        monitor = Monitor(SETTINGS, stop_after=10**6, writer=writer)
        for step in range(5):
            monitor.update(step, HEALTHY | {"policy/kl": 0.25})
        assert monitor.flags() == {"health/signs": 1.0, "health/sign_kl_high": 1.0}
        monitor.update(5, HEALTHY)
        assert monitor.flags() == {"health/signs": 0.0, "health/sign_kl_high": 0.0}
    line = "step 4: kl_high: KL 0.250 is above 0.1: raise beta (0.03) or lower learning_rate (1e-05)"
    assert line in capsys.readouterr().out
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"] == ["health/advice/text_summary"]


@pytest.mark.parametrize("name", [sign.name for sign in SIGNS])
def test_every_advice_can_be_written(name, capsys, tmp_path):
    """A setting that a script does not have is named without its value."""
    with SummaryWriter(str(tmp_path)) as writer:
        monitor = Monitor({}, stop_after=10**6, writer=writer)
        monitor.history.add(HEALTHY)
        monitor._say(1, next(sign for sign in SIGNS if sign.name == name))
    assert f"step 1: {name}: " in capsys.readouterr().out


def test_advice_names_settings_that_there_are():
    """With and without its value: a word with an underscore is a setting, unless it is a part of a metric's name."""
    fields = {field.name for script in (train_sft, train_grpo) for field in dataclasses.fields(script.Config)}
    for sign in SIGNS:
        named = re.findall(r"{(\w+)}", sign.advice) + re.findall(r"(?<![\w/])[a-z]+(?:_[a-z]+)+(?![\w/])", sign.advice)
        assert set(named) <= fields, f"{sign.name}: {set(named) - fields}"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"train/grad_norm": 0.0}, "no_gradient"),
        ({"train/grad_norm": float("nan"), "health/loss_finite": 0.0}, "nan_loss"),
        ({"health/weights_moved": 0.0}, "weights_still"),
        ({"health/weights_moved": 0.0, "health/step_skipped": 1.0}, "skipped_steps"),
        ({"train/grad_norm": 0.0, "policy/mean_abs_advantage": 0.0, "health/signal": 0.0}, "no_reward_signal"),
    ],
)
def test_a_run_whose_weights_cannot_move_is_stopped(change, why):
    monitor = Monitor(SETTINGS, stop_after=4)
    for step in range(3):
        monitor.update(step, HEALTHY | change)
    monitor.update(3, HEALTHY)  # moves: the count starts anew
    for step in range(4, 7):
        monitor.update(step, HEALTHY | change)
    with pytest.raises(TrainingFault, match=f"stopped at step 7: no weight has moved for 4 steps. {why}"):
        monitor.update(7, HEALTHY | change)
