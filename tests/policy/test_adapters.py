"""LoRA folded into the weights for sampling: the same model, and afterwards the same bits."""

import pytest
import torch
from conftest import build_model, randomize_lora_b
from peft import LoraConfig, get_peft_model

from policy.adapters import add_reference, disable_dropout, folded, use_reference

TOKENS = torch.tensor([[5, 3, 9, 1, 7]])


def lora(family: str = "qwen2", dtype: torch.dtype = torch.float32, **options) -> torch.nn.Module:
    model = get_peft_model(
        build_model(family).to(dtype),
        LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": "all-linear"} | options),
    )
    randomize_lora_b(model)
    return model.eval()


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The output sizes of all adapters' B that run, in order."""
    ran: list[int] = []
    forward = torch.nn.Linear.forward

    def watched(self, x):
        if x.shape[-1] == 4:  # the rank
            ran.append(self.out_features)
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    return ran


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}])
def test_a_folded_model_is_the_same_one(options, runs):
    model = lora(**options)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(TOKENS).logits
    assert runs
    runs.clear()
    with folded(model):
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
        assert not runs, "the adapter still takes time of its own"
    assert torch.equal(model(TOKENS).logits, expected)
    assert runs
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"dtype": torch.bfloat16},
        {"target_modules": ["lm_head"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_cannot_be_folded_runs_as_it_is(options, runs):
    model = lora(**options)
    if "target_modules" in options:  # the head's weight is the embedding's
        head = model.get_base_model().lm_head.get_base_layer()
        head.weight = model.get_input_embeddings().weight
    expected = model(TOKENS).logits
    ran = len(runs)
    with folded(model):
        assert torch.equal(model(TOKENS).logits, expected)
    assert len(runs) == 2 * ran > 0


@torch.no_grad()
def test_the_active_adapter_is_folded_and_the_others_stay():
    model = lora()
    disable_dropout(model)
    add_reference(model)
    with use_reference(model):
        before = model(TOKENS).logits
    randomize_lora_b(model, std=0.5)
    policy = model(TOKENS).logits
    with use_reference(model):
        reference = model(TOKENS).logits
        with folded(model):
            torch.testing.assert_close(model(TOKENS).logits, reference, rtol=1e-5, atol=1e-5)
    with folded(model):
        torch.testing.assert_close(model(TOKENS).logits, policy, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, policy)


@torch.no_grad()
def test_an_error_inside_leaves_the_weights_as_they_were():
    model = lora()
    expected = model(TOKENS).logits
    with pytest.raises(KeyboardInterrupt), folded(model):
        raise KeyboardInterrupt
    assert torch.equal(model(TOKENS).logits, expected)
