"""The gradient-flow check passes what learns and names what does not; weights that should move are watched."""

import pytest
import torch
from conftest import build_model
from peft import LoraConfig, get_peft_model

from health import AdapterMotion, check_gradient_flow
from models import add_reference
from prefix_sharing import sequence_logps


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
    with pytest.raises(RuntimeError, match=r"zero gradient in 2 of \d+ .*layers\.1\.mlp\.down_proj\.lora_A"):
        check_gradient_flow(model, probe(model))


def test_a_tensor_that_the_loss_does_not_reach_is_named():
    model = build_model("qwen2")
    model.stray = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(RuntimeError, match=r"no gradient in 1 of \d+ trainable tensors.*stray"):
        check_gradient_flow(model, probe(model))


def test_a_graph_cut_in_the_middle_is_named():
    """Detached after the first layer, as by a kernel without a backward: the layers before it are dead."""
    model = build_model("phi3", lora=True)
    model.base_model.model.model.layers[0].register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(RuntimeError, match=r"no gradient in 8 of 16 .*layers\.0\."):
        check_gradient_flow(model, probe(model))


def test_a_loss_without_a_graph_is_named():
    model = build_model("phi3")
    with torch.no_grad():
        loss = probe(model)
    with pytest.raises(RuntimeError, match="does not depend"):
        check_gradient_flow(model, loss)
    with pytest.raises(RuntimeError, match="does not depend"):
        check_gradient_flow(model.requires_grad_(False), probe(model))


def test_a_nan_is_named():
    model = build_model("qwen2")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        check_gradient_flow(model, probe(model))
    assert all(p.grad is None for p in model.parameters())


# --- motion


def test_weights_that_move_satisfy():
    model = build_model("phi3", lora=True)
    motion = AdapterMotion(model)
    assert motion.change(model) == 0.0
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0, :2] += torch.tensor([0.3, -0.4])
    assert motion.change(model) == pytest.approx(0.5, rel=1e-5)
    motion.assert_moved(model, step=1, signal=True)


def test_weights_that_stay_raise_once_there_was_a_signal():
    model = build_model("phi3", lora=True)
    motion = AdapterMotion(model)
    motion.assert_moved(model, step=1, signal=False)  # every group agreed: nothing to learn
    motion.assert_moved(model, step=2, signal=False)
    with pytest.raises(RuntimeError, match="after 3 steps"):
        motion.assert_moved(model, step=3, signal=True)
    with pytest.raises(RuntimeError, match="after 4 steps"):
        motion.assert_moved(model, step=4, signal=False)  # the signal of step 3 is not forgotten


def test_frozen_weights_are_not_watched():
    model = build_model("phi3", lora=True)
    motion = AdapterMotion(model)
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad).add_(1.0)
    assert motion.change(model) == 0.0
