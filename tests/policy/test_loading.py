"""Loading, quantization, adapters, precision gates and what is written to disk."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import CPU, LORA_TARGETS, PLAIN, ROOT, build_model, padded_logps, random_groups, randomize_lora_b
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from causal.tiny import tiny_model
from dataset.chat import encode
from policy.adapters import adapter_base, add_reference
from policy.loading import (
    check_bf16,
    emulation_note,
    load_for_inference,
    load_policy,
    load_tokenizer,
    model_card,
    recompute_activations,
    save_model,
    stop_token_ids,
    training_dtype,
)
from policy.prefix_sharing import ATTENTION, sequence_logps
from training.health import check_gradient_flow


def scores(model) -> torch.Tensor:
    prompts, completions = random_groups(0)
    with torch.no_grad():
        return padded_logps(model.eval(), sum(prompts, []), sum(completions, []))[0]


@pytest.fixture
def full_dir(family, tokenizer, tmp_path):
    """A full model on disk, as SFT leaves it."""
    save_model(build_model(family), tokenizer, tmp_path / "full")
    return str(tmp_path / "full")


# --- what ends a turn


def test_stop_tokens_are_phi3s_three(tokenizer, tmp_path):
    model = tiny_model(0, ATTENTION)
    expected = {tokenizer.convert_tokens_to_ids(t) for t in ("<|end|>", "<|assistant|>", "<|endoftext|>")}
    assert stop_token_ids(tokenizer, model) == expected
    save_model(model, tokenizer, tmp_path)
    assert stop_token_ids(tokenizer, AutoModelForCausalLM.from_pretrained(tmp_path)) == expected


def test_stop_tokens_include_the_end_of_turn_that_a_config_forgets(tokenizer):
    model = tiny_model(0, ATTENTION)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ends = {tokenizer.convert_tokens_to_ids(t) for t in ("<|end|>", "<|endoftext|>")}
    assert stop_token_ids(tokenizer, model) == ends
    model.generation_config.eos_token_id = None
    assert stop_token_ids(tokenizer, model) == ends


def test_special_tokens_may_be_beyond_the_model_and_others_not(tokenizer):
    """Gemma 3's has one that stands for an image, of which the 1 B model has no embedding."""
    model, larger = tiny_model(0, ATTENTION), copy.deepcopy(tokenizer)
    expected = stop_token_ids(tokenizer, model)
    larger.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert len(larger) > len(model.get_input_embeddings().weight)
    assert stop_token_ids(larger, model) == expected
    larger.add_tokens(["a word"])
    with pytest.raises(ValueError, match="and 1 that are not special are beyond: not a pair"):
        stop_token_ids(larger, model)


# --- loading


def test_lora_defaults_to_every_linear_layer_but_the_head(family, full_dir):
    policy = load_policy(full_dir, **PLAIN)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    adapted = {name.split(".lora_")[0].split(".")[-1] for name in trainable}
    assert adapted == set(LORA_TARGETS[family])
    assert all(module.training for module in policy.modules()), "checkpointing is only active in train mode"
    torch.testing.assert_close(scores(policy), scores(build_model(family)))


def test_every_rank_draws_the_same_lora(full_dir):
    torch.manual_seed(1)
    first = load_policy(full_dir, **PLAIN, seed=5)
    torch.manual_seed(2)
    second = load_policy(full_dir, **PLAIN, seed=5)
    for (name, p), (_, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_wrong_lora_targets_are_named_with_the_right_ones(tmp_path, tokenizer):
    save_model(build_model("phi3"), tokenizer, tmp_path / "full")
    policy = load_policy(str(tmp_path / "full"), **PLAIN, lora_target_modules=" qkv_proj, o_proj")
    assert not any("mlp" in name for name, p in policy.named_parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"no q_proj, k_proj; its own are down_proj,gate_up_proj,o_proj,qkv_proj$"):
        load_policy(str(tmp_path / "full"), **PLAIN, lora_target_modules="q_proj,k_proj,o_proj")


def test_wrong_lora_targets_are_refused_before_any_weight_is_read(tmp_path):
    """By the configuration alone: the directory has no weights. The project has those of the recipes' models."""
    build_model("phi3").config.save_pretrained(tmp_path)
    for model in (str(tmp_path), "microsoft/Phi-3.5-mini-instruct"):
        with pytest.raises(ValueError, match=r"no q_proj, v_proj; its own are down_proj,gate_up_proj,o_proj,qkv_proj$"):
            load_policy(model, **PLAIN, lora_target_modules="q_proj,v_proj,o_proj")


def test_nf4_without_bitsandbytes_is_refused(tmp_path, monkeypatch):
    build_model("phi3").config.save_pretrained(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(ValueError, match="nf4 needs bitsandbytes: pip install"):
        load_policy(str(tmp_path), adaptation="lora", quantization="nf4", **CPU)


OFFLINE = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
from conftest import CPU, PLAIN
from policy.loading import load_for_inference, load_policy, load_tokenizer, save_model
embeddings = lambda model: float(model.get_input_embeddings().weight.detach().sum())
found = [embeddings(load_policy("some/model", **PLAIN, revision=at)) for at in (None, "v1", {second!r})]
policy = load_policy("some/model", **PLAIN, revision={second!r})
save_model(policy, load_tokenizer("some/model", {second!r}), "adapter")
for load in (lambda: load_for_inference("adapter", "none", **CPU), lambda: load_policy("adapter", **PLAIN)):
    found.append(embeddings(load()))
print("found", *found)
for name, revision in (("some/model", "v2"), ("other/model", None)):
    try:
        load_policy(name, **PLAIN, revision=revision)
    except ValueError as error:
        print("refused", error)
"""


def test_hub_models_load_from_the_cache_at_their_revision(tokenizer, tmp_path):
    """HF_HUB_OFFLINE, two revisions in the cache, by branch, tag and commit, and an adapter that keeps its base's."""
    commits = ["a" * 40, "b" * 40]
    cache = tmp_path / "hub" / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    models = [build_model("qwen2", seed=seed) for seed in (0, 1)]
    for name, commit, model in zip(("main", "v1"), commits, models, strict=True):
        (cache / "refs" / name).write_text(commit)
        save_model(model, tokenizer, cache / "snapshots" / commit)
    code = OFFLINE.format(root=str(ROOT), second=commits[1])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (float(model.get_input_embeddings().weight.detach().sum()) for model in models)
    found = next(line for line in done.stdout.splitlines() if line.startswith("found"))
    assert [float(x) for x in found.split()[1:]] == pytest.approx([first, *[second] * 4])
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    assert len(refused) == 2 and all("download it where there is a network" in line for line in refused)


def test_a_model_card_names_recipe_data_and_scores():
    settings = {"model": "base/model", "dataset": "data", "train_split": "train", "output_dir": "models/mine"}
    card = model_card("GRPO", settings | {"beta": 0.05}, "abc123", 30, {"f1": 0.5})
    assert card.startswith("---\nlibrary_name: peft\nbase_model: base/model\n---\n")
    for part in ("# mine", "abc123", "step 30", "| f1 | 0.5000 |", "| beta | `0.05` |"):
        assert part in card


def test_combinations_that_cannot_train_are_refused(tmp_path, tokenizer):
    model = "somewhere"
    with pytest.raises(ValueError, match="set adaptation lora"):
        load_policy(model, adaptation="full", quantization="nf4", **CPU)
    with pytest.raises(ValueError, match="adaptation.*lora, full"):
        load_policy(model, adaptation="prefix", quantization="none", **CPU)
    with pytest.raises(ValueError, match="quantization.*nf4, none"):
        load_policy(model, adaptation="lora", quantization="int8", **CPU)
    with pytest.raises(ValueError, match="random weights"):
        load_policy("tiny", adaptation="lora", quantization="nf4", **CPU)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    assert adapter_base(str(tmp_path)) == "base"
    with pytest.raises(ValueError, match="is an adapter: set adaptation lora"):
        load_policy(str(tmp_path), adaptation="full", quantization="none", **CPU)


# --- saving


def test_full_model_round_trip(family, full_dir, tokenizer, tmp_path):
    model = load_policy(full_dir, adaptation="full", quantization="none", **CPU)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    save_model(model, tokenizer, tmp_path / "again")
    loaded = load_for_inference(str(tmp_path / "again"), "none", **CPU)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(scores(loaded), scores(model), rtol=0, atol=0)
    assert encode(AutoTokenizer.from_pretrained(tmp_path / "again"), "A causes B") == encode(tokenizer, "A causes B")


def test_adapter_round_trip_through_plain_peft(family, full_dir, tokenizer, tmp_path):
    """What is on disk is an ordinary adapter: peft alone loads and merges it."""
    policy = load_policy(full_dir, **PLAIN, lora_r=4)
    randomize_lora_b(policy)
    add_reference(policy)  # is not saved
    save_model(policy, tokenizer, tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "adapter_model.safetensors" in files and "reference" not in files and "model.safetensors" not in files
    expected = scores(policy)
    assert (expected - scores(AutoModelForCausalLM.from_pretrained(full_dir))).abs().max() > 0.1

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(full_dir), str(tmp_path / "adapter"))
    torch.testing.assert_close(scores(plain), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores(plain.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)
    assert adapter_base(str(tmp_path / "adapter")) == full_dir
    torch.testing.assert_close(scores(load_for_inference(str(tmp_path / "adapter"), "none", **CPU)), expected)
    again = load_policy(str(tmp_path / "adapter"), **PLAIN, lora_r=16)
    torch.testing.assert_close(scores(again), expected)
    shapes = {p.shape[0] for name, p in again.named_parameters() if "lora_A" in name and p.requires_grad}
    assert shapes == {4}, "an adapter keeps its own rank, and is trainable"


def test_adapter_without_a_tokenizer_uses_its_bases(full_dir, tokenizer, tmp_path):
    policy = load_policy(full_dir, **PLAIN)
    policy.save_pretrained(tmp_path / "bare", save_embedding_layers=False)
    assert load_tokenizer(str(tmp_path / "bare")).get_vocab() == tokenizer.get_vocab()


# --- nf4


def test_nf4_base_trains(family, full_dir):
    model = load_policy(full_dir, adaptation="lora", quantization="nf4", **CPU)
    quantized = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(quantized) == 2 * len(LORA_TARGETS[family])
    for module in quantized:
        assert module.support_avx512bf16_for_cpu is False, "an eval() forward would repack the weights"
        assert module.weight.quant_state.quant_type == "nf4" and module.weight.quant_state.nested
        assert module.weight.dtype == torch.uint8 and not module.weight.requires_grad
    model.eval()
    before = scores(model)  # a forward in eval mode must not spoil the gradients after it
    model.train()
    randomize_lora_b(model)
    prompts, completions = random_groups(1)
    check_gradient_flow(model, -sequence_logps(model, prompts, completions)[0].sum())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = -sequence_logps(model, prompts, completions)[0].sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert torch.isfinite(before).all()


def test_nf4_is_close_to_the_model(full_dir, family):
    quantized = scores(load_for_inference(full_dir, "nf4", **CPU))
    exact = scores(build_model(family))
    correlation = torch.corrcoef(torch.stack([quantized.flatten(), exact.flatten()]))[0, 1]
    assert 0.9 < correlation < 0.99999


def test_a_model_that_is_stored_in_few_bits_is_loaded_as_such_or_refused(full_dir, tokenizer, tmp_path):
    model = load_for_inference(full_dir, "nf4", **CPU)
    save_model(model, tokenizer, tmp_path / "nf4")
    again = load_policy(str(tmp_path / "nf4"), adaptation="lora", quantization="nf4", **CPU)
    torch.testing.assert_close(scores(again), scores(model))
    for load in (
        lambda: load_policy(str(tmp_path / "nf4"), adaptation="full", quantization="none", **CPU),
        lambda: load_for_inference(str(tmp_path / "nf4"), "none", **CPU),
    ):
        with pytest.raises(ValueError, match=r"stored quantized \(nf4\); set quantization nf4"):
            load()
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "nf4" / "config.json").write_text(json.dumps(config))
    for quantization in ("nf4", "none"):
        with pytest.raises(ValueError, match=r"stored quantized \(gptq\); name the model that it was made from"):
            load_for_inference(str(tmp_path / "nf4"), quantization, **CPU)


# --- precision


def test_bf16_is_refused_where_it_would_be_emulated():
    with pytest.raises(ValueError, match=r"RTX 2080 Ti has 7\.5.*zero2_2x2080ti\.yaml"):
        check_bf16((7, 5), "RTX 2080 Ti")
    for capability in ((8, 0), (8, 9), (9, 0), (12, 0)):
        check_bf16(capability, "any later card")


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"bf16": {"enabled": True}}, torch.bfloat16),
        ({"fp16": {"enabled": True}}, torch.float16),
        ({"bf16": {"enabled": False}}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_training_dtype_is_deepspeeds(settings, dtype):
    plugin = SimpleNamespace(deepspeed_config=settings)
    accelerator = SimpleNamespace(
        mixed_precision="no", state=SimpleNamespace(deepspeed_plugin=plugin), device=torch.device("cpu")
    )
    assert training_dtype(accelerator) == dtype


@pytest.mark.parametrize(
    "found, noted",
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False, "cpu_name": "Oldie"}, True),
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_a_processor_that_emulates_bf16_is_named(monkeypatch, found, noted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    cpu = torch.device("cpu")
    said = emulation_note(torch.bfloat16, cpu)
    assert said.startswith("note: Oldie has no bf16 instructions") if noted else said == ""
    assert emulation_note(torch.float32, cpu) == emulation_note(torch.bfloat16, torch.device("cuda")) == ""


@pytest.mark.parametrize("name", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
def test_activations_are_recomputed_by_either_name_of_transformers(name):
    asked = []
    recompute_activations(SimpleNamespace(enable_input_require_grads=lambda: None, **{name: asked.append}))
    assert asked == [{"use_reentrant": False}]
