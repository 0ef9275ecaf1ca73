"""Adapters of every kind that peft and TRL write: loaded, trained, saved and put back, or refused in one line; the
reference that stays as it was; and LoRA that takes less time in sampling."""

import json
from pathlib import Path

import pytest
import torch
from conftest import CPU, SMALL, VOCABULARY, build_model, randomize_lora_b
from peft import IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from policy.adapters import (
    add_reference,
    check_adapter,
    disable_dropout,
    experts_note,
    lean_lora,
    lora_targets,
    saved_tensors,
    use_reference,
)
from policy.loading import (
    load_adapted,
    load_base,
    load_for_inference,
    load_merged,
    load_policy,
    load_trainable,
    save_model,
    stop_token_ids,
)
from policy.prefix_sharing import ATTENTION
from policy.shapes import check_model
from training.health import check_gradient_flow

TOKENS = torch.tensor([[5, 3, 9, 1, 7]])
KINDS = {
    "plain": {},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]},
    "tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    "tokens": {"trainable_token_indices": [1, 5, 7]},
    "bias": {"bias": "all"},
    "patterns": {"use_rslora": True, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "regex": {"target_modules": r".*layers\.1\..*_proj", "init_lora_weights": "orthogonal"},
    "olora": {"init_lora_weights": "olora"},
}


@pytest.fixture(scope="module")
def base_dir(once, tokenizer) -> str:
    """A full Qwen2 with biases on disk."""
    model = build_model("qwen2", vocab_size=len(tokenizer))
    return str(once("qwen2", lambda folder: save_model(model, tokenizer, folder / "base")) / "base")


@pytest.fixture(scope="module")
def tied_dir(once, tokenizer) -> str:
    """A full Phi-3 with tied embeddings on disk."""
    model = build_model("phi3", vocab_size=len(tokenizer))
    return str(once("phi3", lambda folder: save_model(model, tokenizer, folder / "base")) / "base")


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def disturb(model: torch.nn.Module) -> None:
    """As if all that is trained had been."""
    torch.manual_seed(1)
    for p in trained(model).values():
        p.add_(0.05 * torch.randn_like(p))


def adapter_of(kind: str, base: str, path: Path) -> torch.Tensor:
    """Writes an adapter as anyone does with peft alone; its logits."""
    model = get_peft_model(load_base(base, "none", **CPU), lora_config(**KINDS[kind]))
    disturb(model)
    model.save_pretrained(path)
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def lora_config(**options) -> LoraConfig:
    return LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": "all-linear"} | options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_what_an_adapter_trains_is_put_back_and_its_reference_stays(
    kind, quantization, base_dir, tied_dir, tokenizer, tmp_path
):
    base = {"none": tied_dir, "nf4": base_dir}[quantization]
    expected = adapter_of(kind, base, tmp_path / "theirs")
    options = {"adaptation": "lora", "quantization": quantization, **CPU}
    policy = load_policy(str(tmp_path / "theirs"), **options)
    add_reference(policy)
    disable_dropout(policy)
    with torch.no_grad():
        start = policy(TOKENS).logits
        if quantization == "none":
            torch.testing.assert_close(start, expected)
        with use_reference(policy):
            assert torch.equal(policy(TOKENS).logits, start), "KL is 0 at the first step"
    assert stop_token_ids(tokenizer, policy)
    own = {name: p.data_ptr() for name, p in trained(policy).items()}
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    logits = policy(TOKENS).logits
    with torch.no_grad(), use_reference(policy):
        policy(TOKENS)
    logits.log_softmax(-1)[..., 0].sum().backward()  # after the reference has run, as in GRPO
    with torch.no_grad():
        for p in trained(policy).values():
            p.sub_(0.1 * p.grad)
    assert own == {name: p.data_ptr() for name, p in trained(policy).items()}
    for name, p in policy.named_parameters():
        assert p.requires_grad is not torch.equal(p, before[name]), name
    with torch.no_grad():
        moved = policy.eval()(TOKENS).logits
        assert not torch.allclose(moved, start, atol=1e-2)
        with use_reference(policy):
            assert torch.equal(policy(TOKENS).logits, start)

    save_model(policy, tokenizer, tmp_path / "ours")
    again = load_policy(str(tmp_path / "theirs"), **options)  # as resuming does
    load_trainable(again, tmp_path / "ours")
    started = load_policy(str(tmp_path / "ours"), **options)  # as the next stage does
    for other in (again, started):
        assert trained(other).keys() == trained(policy).keys()
        for name, p in other.named_parameters():
            assert torch.equal(p, policy.get_parameter(name)), name
    with torch.no_grad():
        judged = load_for_inference(str(tmp_path / "ours"), quantization, **CPU)
        assert torch.equal(judged(TOKENS).logits, moved)


def test_everything_that_is_trained_is_saved(base_dir):
    for options in KINDS.values():
        model = get_peft_model(load_base(base_dir, "none", **CPU), lora_config(**options))
        assert {id(p) for p in trained(model).values()} <= {id(p) for p in saved_tensors(model).values()}


def test_a_fresh_adapter_on_embeddings_is_no_broken_graph(base_dir):
    model = get_peft_model(load_base(base_dir, "none", **CPU), lora_config(**KINDS["embeddings"]))
    check_gradient_flow(model, model(TOKENS).logits.log_softmax(-1)[..., 0].sum())


def test_single_tokens_that_the_first_texts_do_not_hold_are_no_broken_graph(base_dir):
    absent = [int(token) for token in range(20, 24) if token not in TOKENS]
    config = lora_config(target_modules=["o_proj"], trainable_token_indices=absent)
    model = get_peft_model(load_base(base_dir, "none", **CPU), config)
    assert any("trainable_tokens_delta" in name for name in trained(model))
    check_gradient_flow(model, model(TOKENS).logits.log_softmax(-1)[..., 0].sum())


def test_a_full_model_is_put_back_whatever_names_it_is_saved_under(tokenizer, tmp_path):
    """Qwen3-MoE's experts are one tensor in the model and many in the file."""
    model = mixture()
    save_model(model, tokenizer, tmp_path / "model")
    again = mixture(seed=1)
    load_trainable(again, tmp_path / "model")
    for name, p in again.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name


def mixture(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **experts, num_key_value_heads=2, vocab_size=VOCABULARY)).eval()


# --- refusals


def refused(path: Path, base: str, config: dict | None = None, tensors: dict | None = None) -> str:
    """The one line that refuses an adapter, a plain one but for these, when training and when answering."""
    model = get_peft_model(build_model("qwen2"), lora_config(target_modules=["o_proj"]))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(path, save_embedding_layers=False)
    written = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(written | (config or {})))
    if tensors is not None:
        save_file(tensors, path / "adapter_model.safetensors")
    return refusal(path)


def refusal(path: Path) -> str:
    lines = set()
    for load in (
        lambda: load_policy(str(path), adaptation="lora", quantization="none", **CPU),
        lambda: load_for_inference(str(path), "none", **CPU),
    ):
        with pytest.raises(ValueError) as error:
            load()
        lines.add(str(error.value))
    (line,) = lines
    assert "\n" not in line and line.startswith(f"model {path}: ")
    return line


@pytest.mark.parametrize(
    "config, remedy",
    [
        (IA3Config(task_type="CAUSAL_LM", target_modules=["o_proj"], feedforward_modules=[]), "is IA3, .*merge.py"),
        (LoHaConfig(task_type="CAUSAL_LM", target_modules=["o_proj"]), "is LOHA, .*merge.py"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "is PROMPT_TUNING, .*start from its base"),
    ],
    ids=lambda value: getattr(value, "peft_type", ""),
)
def test_other_kinds_are_refused_by_name(config, remedy, base_dir, tmp_path):
    get_peft_model(load_base(base_dir, "none", **CPU), config).save_pretrained(tmp_path)
    for line in (refusal(tmp_path), pytest.raises(ValueError, check_model, str(tmp_path)).value.args[0]):
        assert remedy.split(" .*")[0] in line and remedy.split(".*")[1] in line


@pytest.mark.parametrize("kind", sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind != "LORA"))
def test_every_other_kind_that_peft_knows_is_refused_by_name(kind, base_dir, tmp_path):
    """Its file alone is enough: whatever peft wants a configuration of the kind to have is not asked for."""
    written = {"peft_type": kind, "task_type": "CAUSAL_LM", "base_model_name_or_path": base_dir}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=f"its adapter is {kind}, not LoRA; (fold it into|start from) its base"):
        check_adapter(str(tmp_path))


@pytest.mark.parametrize(
    "config, part",
    [
        ({"peft_type": "NEWRA", "peft_version": "9.9"}, "knows no adapter NEWRA; install the peft .*9.9"),
        ({"use_newness": True}, "knows nothing of use_newness"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is not supported; start"),
        ({"init_lora_weights": "pissa_niter_4"}, "has changed its base; save it as plain LoRA"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication is not supported; start from its base"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"target_modules": ["nowhere"]}, "cannot be put on"),
        ({"r": 8}, "size mismatch"),
        ({"use_dora": True}, "weights of the adapter are missing"),
        ({"target_modules": ["q_proj", "o_proj"]}, "weights of the adapter are missing"),
        ({"rank_pattern": {}, "layers_to_transform": [0]}, "no place for"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_known_or_does_not_fit_is_refused_before_any_weight_is_read(config, part, base_dir, tmp_path):
    """The base is a configuration alone: no weight of it is read."""
    bare = tmp_path / "bare"
    load_base(base_dir, "none", **CPU).config.save_pretrained(bare)
    line = refused(tmp_path / "adapter", str(bare), config)
    assert all(words in line for words in part.split(" .*")), line


def test_weights_saved_under_an_adapters_name_are_refused(base_dir, tmp_path):
    model = get_peft_model(build_model("qwen2"), lora_config(target_modules=["o_proj"]))
    named = {name: p.detach().clone() for name, p in trained(model).items()}
    assert "are missing" in refused(tmp_path, base_dir, tensors=named)


def test_keys_of_another_peft_that_change_nothing_are_let_be(base_dir, tmp_path):
    expected = adapter_of("plain", base_dir, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    later = {"use_newness": False, "new_config": None, "new_group_size": 16, "peft_version": "9.9.9"}
    for dropped in ("lora_bias", "exclude_modules", "arrow_config"):
        del written[dropped]
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | later))
    with torch.no_grad():
        assert torch.equal(load_for_inference(str(tmp_path), "none", **CPU)(TOKENS).logits, expected)


def test_adapters_in_folders_are_named(base_dir, tmp_path):
    model = get_peft_model(load_base(base_dir, "none", **CPU), lora_config(), adapter_name="mine")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no safetensors weights in it; name an adapter .*: {tmp_path / 'mine'}"):
        check_model(str(tmp_path))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="a pickle: load it with peft, whose save_pretrained writes safetensors"):
        check_model(str(tmp_path))
    check_model(str(tmp_path / "mine"))
    load_policy(str(tmp_path / "mine"), adaptation="lora", quantization="none", **CPU)


# --- folded for good


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@torch.no_grad()
def test_a_merged_model_is_the_adapted_one(kind, quantization, base_dir, tied_dir, tokenizer, tmp_path):
    """Also where LoRA is on one of two tied layers, and when it is read again; in nf4 on the rounded weights."""
    adapter_of(kind, tied_dir, tmp_path / "adapter")
    if (kind, quantization) == ("olora", "nf4"):
        with pytest.raises(ValueError, match="olora has changed what is quantized; save it as plain LoRA"):
            load_merged(str(tmp_path / "adapter"), quantization, **CPU)
        return
    expected = load_adapted(str(tmp_path / "adapter"), quantization, **CPU)(TOKENS).logits
    merged = load_merged(str(tmp_path / "adapter"), quantization, **CPU)
    torch.testing.assert_close(merged(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    save_model(merged, tokenizer, tmp_path / "merged")
    again = load_for_inference(str(tmp_path / "merged"), "none", **CPU)
    assert torch.equal(again(TOKENS).logits, merged(TOKENS).logits)
    assert again.config.tie_word_embeddings is (kind not in ("modules_to_save", "embeddings"))
    assert not hasattr(again, "peft_config") and not hasattr(again.config, "quantization_config")


@torch.no_grad()
def test_other_kinds_are_merged_too_but_for_prompts(base_dir, tmp_path):
    """The remedy that their refusals name works."""
    options = {"task_type": "CAUSAL_LM", "target_modules": ["o_proj"]}
    ia3, loha = IA3Config(**options, feedforward_modules=[]), LoHaConfig(**options)
    for number, config in enumerate((ia3, loha, LoraConfig(**options, init_lora_weights="mica"))):
        model = get_peft_model(load_base(base_dir, "none", **CPU), config)
        disturb(model)
        model.save_pretrained(tmp_path / str(number))
        merged = load_merged(str(tmp_path / str(number)), "none", **CPU)
        torch.testing.assert_close(merged(TOKENS).logits, model.eval()(TOKENS).logits, rtol=1e-4, atol=1e-4)
    prompts = get_peft_model(
        load_base(base_dir, "none", **CPU), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    prompts.save_pretrained(tmp_path / "prompts")
    with pytest.raises(ValueError, match=r"cannot be folded into weights \(it adds tokens to the prompt\)"):
        load_merged(str(tmp_path / "prompts"), "none", **CPU)


# --- dropout, targets


def test_dropout_is_off_wherever_it_is_read_from(base_dir):
    """As a module, as a module's number, as a configuration's."""
    base = load_base(base_dir, "none", **CPU)
    model = get_peft_model(base, lora_config(lora_dropout=0.5))
    disturb(model)
    model.train()
    expected = model.eval()(TOKENS).logits
    base.model.layers[0].self_attn.attention_dropout = 0.5
    base.config.hidden_dropout, eps = 0.5, base.config.rms_norm_eps
    wired = base.model.norm.forward
    base.model.norm.forward = lambda x: torch.nn.functional.dropout(wired(x), base.config.hidden_dropout)
    assert not torch.allclose(model.train()(TOKENS).logits, expected)
    disable_dropout(model)
    torch.testing.assert_close(model.train()(TOKENS).logits, expected)
    assert base.config.rms_norm_eps == eps


def test_conv1d_layers_are_targets(tmp_path, tokenizer):
    """GPT-2's; its head is left out."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, vocab_size=VOCABULARY, attn_implementation=ATTENTION))
    assert lora_targets(model, "") == ["c_attn", "c_fc", "c_proj"]
    save_model(model, tokenizer, tmp_path / "base")
    policy = load_policy(str(tmp_path / "base"), adaptation="lora", quantization="none", **CPU)
    disturb(policy)
    save_model(policy, tokenizer, tmp_path / "adapter")
    with torch.no_grad():
        judged = load_for_inference(str(tmp_path / "adapter"), "none", **CPU)
        assert torch.equal(judged(TOKENS).logits, policy.eval()(TOKENS).logits)


def test_layers_in_a_list_are_targets_by_its_name():
    """By their own names, which are numbers, peft would take the decoder's layers, which are in a list too."""
    model = build_model("phi3")
    model.model.layers[0].mlp.parts = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    targets = lora_targets(model, "")
    assert targets == ["down_proj", "gate_up_proj", "o_proj", "parts.0", "parts.1", "qkv_proj"]
    adapted = get_peft_model(model, lora_config(target_modules=targets))
    assert type(adapted.base_model.model.model.layers[0]) is type(build_model("phi3").model.layers[0])
    assert hasattr(adapted.base_model.model.model.layers[0].mlp.parts[1], "lora_A")


def test_experts_that_lora_does_not_reach_are_named():
    model = get_peft_model(mixture(), lora_config(target_modules=["q_proj"]))
    assert "the experts (down_proj, gate_up_proj: " in experts_note(model)
    reached = lora_config(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    for other in (get_peft_model(mixture(), reached), mixture(), build_model("phi3", lora=True)):
        assert experts_note(other) == ""


# --- folding


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
    with lean_lora(model):
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
        assert not runs, "the adapter still takes time of its own"
    assert torch.equal(model(TOKENS).logits, expected)
    assert runs
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@torch.no_grad()
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=lambda options: next(iter(options)))
def test_what_is_no_plain_lora_runs_as_it_is(options, runs):
    model = lora(**options)
    expected = model(TOKENS).logits
    ran = len(runs)
    with lean_lora(model):
        assert torch.equal(model(TOKENS).logits, expected)
    assert len(runs) == 2 * ran > 0


@pytest.fixture
def of_half() -> torch.nn.Module:
    return lora(dtype=torch.bfloat16).to(torch.bfloat16)  # the adapter too, as DeepSpeed casts it


@pytest.fixture
def of_tied_head() -> torch.nn.Module:
    model = lora(target_modules=["lm_head"])
    head = model.get_base_model().lm_head.get_base_layer()
    head.weight = model.get_input_embeddings().weight
    return model


@pytest.fixture
def of_nf4(base_dir, tmp_path) -> torch.nn.Module:
    adapter_of("plain", base_dir, tmp_path / "adapter")
    return load_for_inference(str(tmp_path / "adapter"), "nf4", torch.bfloat16, torch.device("cpu"))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["of_half", "of_tied_head", "of_nf4"])
def test_where_nothing_is_folded_lora_is_added_in_place(kind, runs, request):
    """Half precision would round it away, a tied weight is the embedding's too, and a quantized one takes nothing."""
    model = request.getfixturevalue(kind)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(TOKENS).logits
    assert runs
    runs.clear()
    with lean_lora(model):
        found = model(TOKENS).logits
    assert not runs, "B runs by itself"
    with model.disable_adapter():
        base = model(TOKENS).logits
    size = (expected - base).float().square().mean().sqrt()
    off = (found - expected).float().square().mean().sqrt()
    assert 0 < size and off < (0.05 if model.dtype == torch.bfloat16 else 1e-5) * size, (off, size)
    assert torch.equal(model(TOKENS).logits, expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@torch.no_grad()
def test_lora_of_another_precision_than_its_input_runs_as_it_is(runs):
    """peft has adapters in fp32 on a base in half precision, until DeepSpeed casts them."""
    model = lora(dtype=torch.bfloat16)
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    expected = model(TOKENS).logits
    ran = len(runs)
    with lean_lora(model):
        assert torch.equal(model(TOKENS).logits, expected)
    assert len(runs) == 2 * ran > 0


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_policy_reference_and_evaluation_have_one_precision(kind, quantization, base_dir, tied_dir, tmp_path):
    """DeepSpeed casts the policy's parameters to half precision: so the KL is 0 at the first step there too."""
    adapter_of(kind, {"none": tied_dir, "nf4": base_dir}[quantization], tmp_path / "adapter")
    half = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    policy = load_policy(str(tmp_path / "adapter"), adaptation="lora", quantization=quantization, **half).eval()
    add_reference(policy)
    for p in policy.parameters():
        p.data = p.data.to(torch.bfloat16) if p.is_floating_point() else p.data
    logits = policy(TOKENS).logits
    for _ in range(2):
        with use_reference(policy):
            assert torch.equal(policy(TOKENS).logits, logits)
    evaluated = load_for_inference(str(tmp_path / "adapter"), quantization, **half)
    assert torch.equal(evaluated(TOKENS).logits, logits)


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
        with lean_lora(model):
            torch.testing.assert_close(model(TOKENS).logits, reference, rtol=1e-5, atol=1e-5)
    with lean_lora(model):
        torch.testing.assert_close(model(TOKENS).logits, policy, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, policy)


@torch.no_grad()
def test_an_error_inside_leaves_the_weights_as_they_were():
    model = lora()
    expected = model(TOKENS).logits
    with pytest.raises(KeyboardInterrupt), lean_lora(model):
        raise KeyboardInterrupt
    assert torch.equal(model(TOKENS).logits, expected)
