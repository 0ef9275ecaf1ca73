"""Tokenizers, loading, quantization, adapters, precision gates and what is written to disk."""

import copy
import importlib.util
import json
import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import LORA_TARGETS, ROOT, build_model, padded_logps, random_groups, randomize_lora_b
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

from causal import reasoning, wording
from causal.rows import LETTERINGS, generate_rows
from causal.tiny import PHI3_SPECIAL, TOKEN_WORDINGS, tiny_model, tiny_tokenizer
from dataset.chat import encode
from policy.adapters import adapter_base, add_reference
from policy.loading import (
    check_bf16,
    check_context,
    emulation_note,
    load_base,
    load_for_inference,
    load_policy,
    load_tokenizer,
    model_card,
    recompute_activations,
    save_model,
    stop_token_ids,
    training_dtype,
    weights_hash,
)
from policy.prefix_sharing import ATTENTION, sequence_logps
from training.health import check_gradient_flow

CPU = {"dtype": torch.float32, "device": torch.device("cpu")}
PLAIN = {"adaptation": "lora", "quantization": "none", **CPU}


def scores(model) -> torch.Tensor:
    prompts, completions = random_groups(0)
    with torch.no_grad():
        return padded_logps(model.eval(), sum(prompts, []), sum(completions, []))[0]


@pytest.fixture
def full_dir(family, tokenizer, tmp_path):
    """A full model on disk, as SFT leaves it."""
    save_model(build_model(family), tokenizer, tmp_path / "full")
    return str(tmp_path / "full")


# --- tokenizer


@settings(max_examples=100)
@given(text=st.text(max_size=40))
def test_tiny_tokenizer_is_lossless_on_any_text(tokenizer, text):
    if not any(token in text for token in PHI3_SPECIAL):
        assert tokenizer.decode(encode(tokenizer, text)) == text


def test_tiny_tokenizer_is_lossless_and_short_on_the_task(tokenizer):
    for row in list(generate_rows(3))[::9] + list(generate_rows(4))[::90]:
        ids = encode(tokenizer, row["input"])
        assert tokenizer.decode(ids) == row["input"]
        assert len(ids) < len(row["input"]) / 3
        premise = wording.parse_premise(row["premise"])
        trace = reasoning.trace(premise, wording.parse_hypothesis(row["hypothesis"], premise.variables))
        assert tokenizer.decode(encode(tokenizer, trace)) == trace


def test_a_pair_and_a_set_are_one_token_in_every_lettering(tokenizer):
    def pieces(text):
        ids = encode(tokenizer, text)
        assert tokenizer.decode(ids) == text
        return [tokenizer.decode([k]) for k in ids]

    for letters in LETTERINGS.values():
        for n in (3, 4, 5, 6):
            names = letters[:n]
            for a, b in combinations(names, 2):
                for text in (f", {a} {b}", f"Pair {a} {b}", f"Ends {a} {b}", f"Round 2 {a} {b}"):
                    assert pieces(text) == [text]
                rest = [v for v in names if v not in (a, b)]
                for held in (held for k in range(1, n - 1) for held in combinations(rest, k)):
                    listed = wording.listing(held)
                    statement = f" {a} and {b} are independent given"
                    assert pieces(f"{statement} {listed}.") == [statement, f" {listed}."]
                    assert pieces(f"Pair {a} {b} none given {' '.join(held)}")[1:] == [
                        " none given",
                        f" {' '.join(held)}",
                    ]
    assert pieces(" There is a path of arrows from A to Z.") == [
        " There", " is", " a", " path", " of", " arrows", " from", " A", " to", " Z."
    ]  # fmt: skip
    assert [pieces(f"Answer: {answer}") for answer in ("Yes", "No")] == [["Answer: Yes"], ["Answer: No"]]
    assert pieces(" - same\nRound 1 A B none changed\n") == [" - same\n", "Round 1 A B", " none changed\n"]


def test_no_words_of_a_hypothesis_are_one_token_together(tokenizer):
    """Else who was taught one wording has not read these words apart, as others have them."""
    for name in TOKEN_WORDINGS:
        for sentence in wording.WORDINGS[name].values():
            ids = encode(tokenizer, "\nHypothesis: " + sentence.format(a="C", b="E"))
            pieces = [tokenizer.decode([k]).strip() for k in ids[1:]]
            assert not [piece for piece in pieces if " " in piece and piece not in ("C and E", "C and E.")]


def test_prompts_and_traces_are_short(tokenizer):
    """Mean tokens of a row's input and of its trace: docs/traces.md."""
    for n, most in ((4, (33, 100)), (5, (59, 205))):
        lengths = []
        for row in random.Random(0).sample(list(generate_rows(n)), 200):
            trace = reasoning.trace(*wording.parse_claim(row["premise"], row["hypothesis"]))
            lengths.append((len(encode(tokenizer, row["input"])), len(encode(tokenizer, trace))))
        assert all(sum(some) / len(some) <= limit for some, limit in zip(zip(*lengths, strict=True), most, strict=True))


def test_tiny_tokenizer_is_the_same_each_time(tokenizer):
    assert tiny_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_special_tokens_are_single_and_not_added(tokenizer):
    for token in PHI3_SPECIAL:
        assert len(encode(tokenizer, token)) == 1
        assert tokenizer.decode(encode(tokenizer, f"yes{token}"), skip_special_tokens=True) == "yes"
    assert encode(tokenizer, "") == []


def test_chat_template_is_phi3s(tokenizer):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>\nWhy?<|end|>\n<|assistant|>\n"
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole == "<|user|>\nWhy?<|end|>\n<|assistant|>\nSo.<|end|>\n<|endoftext|>"


def test_tokenizer_survives_saving_with_its_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.chat_template == tokenizer.chat_template
    text = " <|user|>\n Z and  Y, é<|end|>"
    assert encode(loaded, text) == encode(tokenizer, text) and loaded.decode(encode(loaded, text)) == text


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


@pytest.mark.parametrize(
    "error, remedy",
    [
        (OSError("You are trying to access a gated repo."), "accept its licence .* HF_TOKEN"),
        (OSError("We couldn't connect to the hub, and it is not in the cached files."), "download it where there is"),
    ],
)
def test_a_hub_model_that_cannot_be_had_has_its_remedy(error, remedy, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=f"model someone/model: cannot be loaded .*{remedy}"):
        load_base("someone/model", "none", **CPU)


OFFLINE = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/policy"]
import torch
from test_loading import CPU, PLAIN, load_for_inference, load_policy, load_tokenizer, save_model
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


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "models/not_trained_yet", "unknown/model"])
def test_a_model_that_is_not_there_is_one_line(name):
    with pytest.raises(ValueError, match=f"model {name}: ") as error:
        load_policy(name, **PLAIN)
    assert "\n" not in str(error.value)


def test_tiny_model_is_a_function_of_the_seed():
    one, same, other = (dict(tiny_model(seed, ATTENTION).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    policy = load_policy("tiny", adaptation="full", quantization="none", seed=1, **CPU)
    assert all(p.requires_grad and torch.equal(p, one[name]) for name, p in policy.named_parameters())


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


# --- precision and context


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


def test_weights_are_known_by_their_files(tmp_path, tokenizer):
    """An adapter by those of its base too; nothing else in the directory matters."""

    def put(seed: int, folder: Path) -> None:
        save_model(build_model("phi3", seed=seed, vocab_size=len(tokenizer)), tokenizer, folder)

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    put(0, base)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules="all-linear"))
    save_model(model, tokenizer, adapter)
    before = {path: weights_hash(str(path)) for path in (base, adapter)}
    assert None not in before.values() and before[base] != before[adapter]
    for path in before:
        (path / "notes.txt").write_text("")
        (path / "rank-0.safetensors").write_bytes(b"")  # as in a checkpoint
        assert weights_hash(str(path)) == before[path]
    put(1, base)
    assert all(weights_hash(str(path)) != known for path, known in before.items())
    put(0, base)
    assert {path: weights_hash(str(path)) for path in before} == before
    tensors = load_file(base / "model.safetensors")
    list(tensors.values())[-1].flatten()[-1] += 1.0  # in its last place
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert weights_hash(str(base)) != before[base]
    assert weights_hash("nobody/has-this-model") is None


def test_context_limit():
    check_context(build_model("phi3"), 128)
    model = build_model("phi3")
    with pytest.raises(ValueError, match="129 tokens: the model takes 128"):
        check_context(model, 129)
    unbounded = SimpleNamespace()  # some models' configurations do not have the field
    check_context(SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: unbounded)), 10**6)


def test_context_ends_where_longrope_changes_its_factors():
    """Phi-3.5 takes 131,072 tokens, but beyond 4,096 the batch is rotated by other factors than its cache was."""
    config = Phi3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=61,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    )
    model = Phi3ForCausalLM(config)
    for _ in range(2):
        check_context(model, 4096)
        with pytest.raises(ValueError, match="4097 tokens: the model takes 4096"):
            check_context(model, 4097)
        # As of models whose kinds of layers are rotated differently.
        config.rope_parameters = {"sliding_attention": {"rope_type": "default"}, "full": config.rope_parameters}


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
