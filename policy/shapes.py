"""What a model is before any of its weights is read: its shape, what it is refused for, which weights are there.

`model` is a hub name, a local directory of a full model, a local directory of a LoRA adapter, or `tiny`: a small
Phi-3 with random weights and a tokenizer made from the task's own text, so that everything runs without a hub and
without a GPU.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from policy.adapters import adapter_base, adapters_below, base_revision, check_adapter
from policy.prefix_sharing import ATTENTION
from runtime.checkpoints import list_checkpoints
from runtime.settings import check

TINY = "tiny"
# config.json of the recipes' models, by their names, as far as it gives shapes
SHAPES = Path(__file__).parents[1] / "configs" / "shapes"
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
SAMPLES, SAMPLE = 4, 16384  # of each tensor that is hashed: how many blocks, and their bytes


def embedded_tiny():
    """The module of the embedded model: it lies beside the task, whose text its tokenizer is made from."""
    from causal import tiny  # only where asked for

    return tiny


def from_hub_or_disk(cls, name: str, **options):
    """What a class of transformers loads; ValueError, with the remedy, for what it cannot."""
    try:
        return cls.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ImportError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        kinds = {type(e).__name__ for e in (error, error.__cause__, error.__context__)}
        if Path(name).is_dir():
            remedy = "copy or train it again, or name another"
        elif "GatedRepoError" in kinds or "gated repo" in reason:
            remedy = "accept its licence on its page at the hub, and set HF_TOKEN to a token of yours"
        elif kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"} or os.environ.get("HF_HUB_OFFLINE") == "1":
            remedy = "it is not in the cache and the hub cannot be reached: download it where there is a network"
        else:
            remedy = "give a local directory or a hub name"
        raise ValueError(
            f"model {name}: cannot be loaded ({reason[:200] or type(error).__name__}); {remedy}"
        ) from error


# --- shapes


def model_shape(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a full model: the embedded one, a local or a hub one; the project has the recipes'.

    Raises ValueError for what `check_architecture` refuses.
    """
    if name == TINY:
        return embedded_tiny().tiny_model(0, ATTENTION).config
    known = SHAPES / f"{name}.json"  # not by the last part: others have converted models of that name
    is_known = known.is_file() and not Path(name).exists()
    shape = from_hub_or_disk(AutoConfig, str(known) if is_known else name, revision=None if is_known else revision)
    check_architecture(name, shape)
    return shape


def own_dtype(name: str, revision: str | None = None) -> torch.dtype:
    """The precision in which a full model's weights are stored."""
    return from_hub_or_disk(AutoConfig, name, revision=revision).dtype or torch.float32


def with_layers(shape: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The configuration of the same model with so many layers."""
    # What kind each layer is, Qwen2 writes down in a list: it would be too long or too short.
    return type(shape).from_dict(shape.to_dict() | {"num_hidden_layers": layers, "layer_types": None})


def empty_model(shape: PreTrainedConfig, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A model on the meta device: its modules and shapes, and no data."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=ATTENTION)


# --- refusals


def check_model(name: str) -> None:
    """Refuse a local model without weights at once: the libraries would look for it on the hub, again and again."""
    path = Path(name)
    is_local = path.exists() or path.parts[0] == "models" or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())
    if name == TINY or not is_local:
        return
    check(path.is_dir(), f"model {name}: no such directory; train it first, or name another")
    remedy = "name one that train_sft.py or train_grpo.py wrote"
    if saved := list_checkpoints(path):
        remedy = f"name its checkpoint {saved[-1]}"
    elif (path / "adapter_model.bin").is_file():
        remedy = "adapter_model.bin is a pickle: load it with peft, whose save_pretrained writes safetensors"
    elif below := adapters_below(name):
        remedy = f"name an adapter of the folders in it: {', '.join(str(path / folder) for folder in below)}"
    check(any(path.glob("*.safetensors")), f"model {name}: no safetensors weights in it; {remedy}")
    configured = any((path / file).is_file() for file in ("config.json", "adapter_config.json"))
    check(configured, f"model {name}: neither config.json nor adapter_config.json in it; {remedy}")
    if (base := adapter_base(name)) is not None:
        if base:
            check_model(base)
        check_adapter(name)


def check_architecture(name: str, shape: PreTrainedConfig) -> None:
    """Raise ValueError, naming the model's class, unless its layers attend by transformers' interface for attention.

    That is what packed rows and the sampler's cache stand in for. Whether they compute the model's own numbers,
    self_check.py asks.
    """
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(shape), None)
    check(found is not None, f"model {name}: a {type(shape).__name__} is of no model that continues text; name another")
    kind = found[0] if isinstance(found, tuple) else found
    others = set(getattr(shape.get_text_config(), "layer_types", None) or ()) - ATTENTION_LAYERS
    remedy = "name a model whose layers are attention alone, by transformers' interface (docs/models.md lists some)"
    recurrent = getattr(kind, "_is_stateful", False) or bool(others)
    check(
        not recurrent,
        f"model {name}: {kind.__name__} has layers that are recurrent or otherwise not attention; {remedy}",
    )
    try:
        _ = getattr(shape.get_text_config(), "head_dim", None)
        alike = True
    except RuntimeError:  # so transformers refuses to name one of several
        alike = False
    check(alike, f"model {name}: {kind.__name__} has heads of several widths, which nothing here can count; {remedy}")
    ours = getattr(kind, "_supports_attention_backend", False)
    check(ours, f"model {name}: {kind.__name__} has attention of its own; {remedy}")


def check_text_alone(name: str, shape: PreTrainedConfig) -> None:
    """Raise ValueError for a model of text and images, say, of which no text reaches all that would be trained."""
    text = shape.get_text_config()
    alone = text is shape
    check(alone, f"model {name}: a {type(shape).__name__} is of more than text, which is all that is trained on here; "
          "name a model of text alone")  # fmt: skip


def check_stored(name: str, shape: PreTrainedConfig, quantization: str) -> None:
    """Raise ValueError for weights that are stored in few bits, unless these are the nf4 that is asked for.

    The libraries would take what is stored, whatever is asked for: full training would leave most weights out.
    """
    stored = getattr(shape, "quantization_config", None)
    if stored is None:
        return
    fields = stored if isinstance(stored, dict) else stored.to_dict()
    nf4 = bool(fields.get("load_in_4bit")) and fields.get("bnb_4bit_quant_type") == "nf4"
    kind = "nf4" if nf4 else fields.get("quant_method", "an unknown way")
    remedy = "set quantization nf4 (adaptation lora)" if nf4 else "name the model that it was made from"
    check(nf4 and quantization == "nf4", f"model {name}: its weights are stored quantized ({kind}); {remedy}")


def check_context(
    model: torch.nn.Module, tokens: int, setting: str = "", remedy: str = "shorten the prompts or max_new_tokens"
) -> None:
    """Raise ValueError if sequences of `tokens` tokens leave the model's context, or its short LongRoPE factors."""
    config = model.config.get_text_config()
    whole = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    limit = getattr(config, "max_position_embeddings", None) or tokens  # some have none
    for rope in (whole, *(part for part in whole.values() if isinstance(part, dict))):  # of each kind of layers
        if rope.get("rope_type") == "longrope":
            # Past this length the whole batch is rotated by other factors than the tokens already cached.
            switch = getattr(config, "original_max_position_embeddings", None)
            limit = min(limit, switch or rope["original_max_position_embeddings"])
    check(
        tokens <= limit,
        f"{setting}sequences of up to {tokens} tokens: the model takes {limit}; {remedy}",
    )


# --- identity


def weights_hash(name: str, revision: str | None = None) -> str | None:
    """Which weights a model, or an adapter and its base, has on disk; None where the hub's are not in the cache yet.

    A SHA-256 over the headers of its safetensors files (names, shapes, precisions) and SAMPLES evenly spaced blocks of
    SAMPLE bytes of every tensor: 20 MB instead of the 8 GB of Phi-3.5. Small tensors are read whole. Weights that were
    trained, merged or replaced differ everywhere; a few numbers changed by hand in a large tensor can be missed.
    """
    if name == TINY:
        return TINY
    base, digest = adapter_base(name), hashlib.sha256()
    if Path(name).is_dir():
        files = sorted(Path(name).glob("adapter_model.safetensors" if base is not None else "*.safetensors"))
    else:
        try:
            asked = {"local_files_only": True, "allow_patterns": "*.safetensors"}
            files = sorted(Path(snapshot_download(name, revision=revision, **asked)).glob("*.safetensors"))
        except (OSError, ValueError):  # not there, or no name of a repository: loading it says so
            return None
    for file in files:
        if not file.name.startswith("rank-"):  # of a checkpoint: no weights
            _hash_samples(file, digest)
    if base:
        of_base = weights_hash(base, base_revision(name, revision))
        if of_base is None:
            return None
        digest.update(of_base.encode())
    return digest.hexdigest()


def _hash_samples(file: Path, digest: Any) -> None:
    with file.open("rb") as data:
        header = data.read(int.from_bytes(data.read(8), "little"))
        digest.update(header)
        start = data.tell()
        for name, tensor in sorted(json.loads(header).items()):
            begin, end = (0, 0) if name == "__metadata__" else tensor["data_offsets"]
            places = {begin + k * max(0, end - begin - SAMPLE) // (SAMPLES - 1) for k in range(SAMPLES)}
            for place in sorted(places):
                data.seek(start + place)
                digest.update(data.read(min(SAMPLE, end - place)))
