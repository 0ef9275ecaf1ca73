"""What a model is known by and refused for before its weights are read."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import CPU, PLAIN, SMALL, VOCABULARY, build_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    Phi3Config,
    Phi3ForCausalLM,
)

from policy.loading import load_base, load_policy, save_model
from policy.shapes import check_context, check_text_alone, weights_hash


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


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "models/not_trained_yet", "unknown/model"])
def test_a_model_that_is_not_there_is_one_line(name):
    with pytest.raises(ValueError, match=f"model {name}: ") as error:
        load_policy(name, **PLAIN)
    assert "\n" not in str(error.value)


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


def test_models_of_more_than_text_are_not_trained():
    check_text_alone("text", Gemma3TextConfig())
    with pytest.raises(ValueError, match="model both: a Gemma3Config is of more than text, .* name a model of text al"):
        check_text_alone("both", Gemma3Config())


def test_context_limit():
    check_context(build_model("phi3"), 128)
    model = build_model("phi3")
    with pytest.raises(ValueError, match="129 tokens: the model takes 128"):
        check_context(model, 129)
    unbounded = SimpleNamespace()  # some models' configurations do not have the field
    check_context(SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: unbounded)), 10**6)


def test_context_ends_where_longrope_changes_its_factors():
    """Phi-3.5 takes 131,072 tokens, but beyond 4,096 the batch is rotated by other factors than its cache was."""
    lengths = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = Phi3Config(**SMALL | lengths, vocab_size=VOCABULARY, rope_scaling=scaling)
    model = Phi3ForCausalLM(config)
    for _ in range(2):
        check_context(model, 4096)
        with pytest.raises(ValueError, match="4097 tokens: the model takes 4096"):
            check_context(model, 4097)
        # As of models whose kinds of layers are rotated differently.
        config.rope_parameters = {"sliding_attention": {"rope_type": "default"}, "full": config.rope_parameters}
