"""Tokenizers and models: the embedded tiny Phi-3, hub or local models, nf4 bases, LoRA policies and their references.

`model` is a hub name, a local directory of a full model, a local directory of a LoRA adapter, or `tiny`: a small
Phi-3 with random weights and a tokenizer made from the task's own text, so that everything runs without a hub and
without a GPU.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
)

from policy.adapters import (
    AS_PLAIN,
    POLICY,
    REPEATABLE,
    WEIGHTS,
    adapter_base,
    adapter_config,
    adapters_below,
    base_revision,
    check_adapter,
    lora_targets,
    merge_adapter,
    put_adapter,
    saved_tensors,
)
from policy.prefix_sharing import ATTENTION
from runtime.checkpoints import list_checkpoints
from runtime.processes import precision
from runtime.settings import check, check_choice

TINY = "tiny"
BF16_CAPABILITY = (8, 0)  # of the first GPUs that compute bf16: torch.cuda.is_bf16_supported() counts emulation too
# config.json of the recipes' models, by their names, as far as it gives shapes
SHAPES = Path(__file__).parents[1] / "configs" / "shapes"
END_OF_TURN = (
    "<|end|>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|return|>",
    "<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>",
)  # fmt: skip


def embedded_tiny():
    """The module of the embedded model: it lies beside the task, whose text its tokenizer is made from."""
    from causal import tiny  # only where asked for

    return tiny


# --- tokenizers


TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model", "*.tiktoken")


def load_tokenizer(name_or_path: str, revision: str | None = None):
    """The tokenizer of a model, of an adapter (or its base's, if it has none), or of the embedded tiny model."""
    if name_or_path == TINY:
        return embedded_tiny().tiny_tokenizer()
    base = adapter_base(name_or_path)
    check(base != "", f"model {name_or_path}: adapter_config.json names no base_model_name_or_path")
    if base is not None and not (Path(name_or_path) / "tokenizer_config.json").is_file():
        name_or_path, revision = base, base_revision(name_or_path, revision)
    path = Path(name_or_path)
    # Without any file some classes make a tokenizer that knows no token.
    has_one = not path.is_dir() or any(entry for kind in TOKENIZER_FILES for entry in path.glob(kind))
    check(has_one, f"model {name_or_path}: no tokenizer in it; save its tokenizer beside it (save_pretrained)")
    return _from_hub_or_disk(AutoTokenizer, name_or_path, revision=revision)


def stop_token_ids(tokenizer, model) -> set[int]:
    """Every token that ends a turn: Phi-3.5's config.json names only one of its three.

    Raises ValueError for a tokenizer that has tokens of which the model has no embedding.
    """
    known = len(model.get_input_embeddings().weight)  # also of a layer that peft has put around them
    vocabulary = tokenizer.get_vocab()
    # Special tokens may have none: Gemma 3's stands for an image, which the 1 B model does not read.
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    strange = [token for token in vocabulary.values() if token >= known and token not in special]
    size = f"its tokenizer has {len(tokenizer)} tokens, the model {known}"
    check(not strange, f"model: {size}, and {len(strange)} that are not special are beyond: not a pair")
    named = getattr(model.generation_config, "eos_token_id", None)
    stops = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    stops |= {vocabulary[token] for token in END_OF_TURN if token in vocabulary}
    return {int(stop) for stop in stops if stop is not None and stop < known}


# --- precision


def training_dtype(accelerator: Accelerator) -> torch.dtype:
    """The dtype that the launch configuration trains in; refuses bf16 where the GPU only emulates it."""
    asked = precision(accelerator)
    if asked == "bf16" and accelerator.device.type == "cuda":
        check_bf16(torch.cuda.get_device_capability(), torch.cuda.get_device_name())
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(asked, torch.float32)


def check_bf16(capability: tuple[int, int], name: str) -> None:
    """Raise ValueError, naming the configuration to use, unless the GPU computes bf16 (capability 8.0 or later)."""
    check(
        capability >= BF16_CAPABILITY,
        f"bf16 needs compute capability 8.0 or later; {name} has {capability[0]}.{capability[1]}: "
        "use accelerate_configs/zero2_2x2080ti.yaml (fp16)",
    )


def emulation_note(dtype: torch.dtype, device: torch.device) -> str:
    """What to say of an x86 processor without bf16 instructions, which is slower in it than in fp32; else nothing."""
    found = torch.cpu.get_capabilities()
    native = found.get("architecture") != "x86_64" or found.get("avx512_bf16") or found.get("amx_bf16")
    if device.type != "cpu" or dtype != torch.bfloat16 or native:
        return ""
    return (
        f"note: {found.get('cpu_name', 'this processor')} has no bf16 instructions and emulates them, several times "
        "slower than fp32: use accelerate_configs/zero2_2xcpu.yaml"
    )


# --- models


def model_shape(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a full model: the embedded one, a local or a hub one; the project has the recipes'.

    Raises ValueError for what `check_architecture` refuses.
    """
    if name == TINY:
        return embedded_tiny().tiny_model(0, ATTENTION).config
    known = SHAPES / f"{name}.json"  # not by the last part: others have converted models of that name
    is_known = known.is_file() and not Path(name).exists()
    shape = _from_hub_or_disk(AutoConfig, str(known) if is_known else name, revision=None if is_known else revision)
    check_architecture(name, shape)
    return shape


def own_dtype(name: str, revision: str | None = None) -> torch.dtype:
    """The precision in which a full model's weights are stored."""
    return _from_hub_or_disk(AutoConfig, name, revision=revision).dtype or torch.float32


def with_layers(shape: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The configuration of the same model with so many layers."""
    # What kind each layer is, Qwen2 writes down in a list: it would be too long or too short.
    return type(shape).from_dict(shape.to_dict() | {"num_hidden_layers": layers, "layer_types": None})


ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


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
    ours = getattr(kind, "_supports_attention_backend", False)
    check(ours, f"model {name}: {kind.__name__} has attention of its own; {remedy}")


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


def empty_model(shape: PreTrainedConfig, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A model on the meta device: its modules and shapes, and no data."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=ATTENTION)


SAMPLES, SAMPLE = 4, 16384  # of each tensor: how many blocks, and their bytes


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


def load_policy(
    model: str,
    *,
    adaptation: str,
    quantization: str,
    dtype: torch.dtype,
    device: torch.device,
    lora_r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.0,
    lora_target_modules: str = "",
    gradient_checkpointing: bool = False,
    revision: str | None = None,
    seed: int = 0,
) -> torch.nn.Module:
    """A trainable model: `adaptation` full, or lora on a `quantization` nf4 or none base.

    An adapter directory continues that adapter. Raises ValueError for combinations that cannot train.
    """
    check_choice("adaptation", adaptation, ("lora", "full"))
    check_choice("quantization", quantization, ("nf4", "none"))
    check(
        adaptation == "lora" or quantization == "none",
        "quantization nf4 cannot be trained in full: set adaptation lora",
    )
    check(
        model != TINY or adaptation == "full", "model tiny has random weights: train it in full first (adaptation full)"
    )
    base = adapter_base(model)
    check(
        adaptation == "lora" or base is None, f"model {model} is an adapter: set adaptation lora, or name a full model"
    )
    if base is not None:
        check_adapter(model)
        check_fit(model, revision)
    elif adaptation == "lora":
        lora_targets(empty_model(model_shape(model, revision)), lora_target_modules)  # before any weight is read
    policy = load_base(base or model, quantization, dtype, device, base_revision(model, revision), seed)
    if adaptation == "lora":
        from peft import LoraConfig, get_peft_model  # seconds, which wrong settings need not wait for

        policy.requires_grad_(False)
        if base is not None:
            policy = put_adapter(policy, model, is_trainable=True)
        else:
            targets = lora_targets(policy, lora_target_modules)
            torch.manual_seed(seed)  # every rank draws the same LoRA
            policy = get_peft_model(
                policy,
                LoraConfig(
                    r=lora_r,
                    lora_alpha=lora_alpha,
                    lora_dropout=lora_dropout,
                    target_modules=targets,
                    task_type="CAUSAL_LM",
                    revision=revision,
                ),
                adapter_name=POLICY,
            )
    if gradient_checkpointing:
        recompute_activations(policy)
    check(any(p.requires_grad for p in policy.parameters()), f"model {model}: nothing in it is trainable")
    return policy.train()  # gradient checkpointing is only active then


def check_fit(adapter: str, revision: str | None = None) -> None:
    """Raise ValueError unless the adapter fits its base, of which no weight is read."""
    put_adapter(empty_model(model_shape(adapter_base(adapter), base_revision(adapter, revision))), adapter)


def recompute_activations(model: torch.nn.Module) -> None:
    """Keep each layer's input alone in the forward pass of training, and run the layer again in the backward pass."""
    # By the second name in earlier versions of transformers, as 5.17.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.enable_input_require_grads()


def load_for_inference(
    model: str, quantization: str, dtype: torch.dtype, device: torch.device, revision: str | None = None
) -> torch.nn.Module:
    """A full model, or a base with its adapter, in eval mode; both in `dtype`, as DeepSpeed has them in training."""
    check_choice("quantization", quantization, ("nf4", "none"))
    if adapter_base(model) is not None:
        check_adapter(model)
        adapted = load_adapted(model, quantization, dtype, device, revision)
        for p in saved_tensors(adapted).values():
            p.data = p.data.to(dtype)  # peft keeps them in fp32
        return adapted
    return load_base(model, quantization, dtype, device, revision).eval().requires_grad_(False)


def load_adapted(
    adapter: str, quantization: str, dtype: torch.dtype, device: torch.device, revision: str | None = None
) -> torch.nn.Module:
    """The base of an adapter of any kind with it on, in eval mode."""
    check_fit(adapter, revision)
    base = load_base(adapter_base(adapter), quantization, dtype, device, base_revision(adapter, revision))
    return put_adapter(base, adapter).eval().requires_grad_(False)


def load_merged(
    adapter: str, quantization: str, dtype: torch.dtype, device: torch.device, revision: str | None = None
) -> torch.nn.Module:
    """The full model that the base of an adapter, of whatever kind has weights to fold, and the adapter make together.

    With `quantization` nf4 its weights are those of the 4-bit base, dequantized.
    """
    begun = adapter_config(adapter).get("init_lora_weights")
    changed = f"model {adapter}: init_lora_weights {begun} has changed what is quantized; {AS_PLAIN}"
    check(quantization == "none" or begun not in REPEATABLE, changed)
    check_fit(adapter, revision)
    base = load_base(adapter_base(adapter), quantization, dtype, device, base_revision(adapter, revision))
    return merge_adapter(base.dequantize(dtype) if quantization == "nf4" else base, adapter)


def load_base(
    name: str, quantization: str, dtype: torch.dtype, device: torch.device, revision: str | None = None, seed: int = 0
) -> torch.nn.Module:
    """A full model on `device`, in nf4 with double quantization if asked."""
    if name == TINY:
        check(quantization == "none", "model tiny has random weights: train it before quantizing it")
        return embedded_tiny().tiny_model(seed, ATTENTION).to(device=device, dtype=dtype)
    # What cannot be run is refused before its weights are read.
    check_stored(name, model_shape(name, revision), quantization)
    options = {"dtype": dtype, "attn_implementation": ATTENTION, "revision": revision, "use_safetensors": True}
    if quantization == "nf4":
        installed = importlib.util.find_spec("bitsandbytes") is not None
        check(installed, "quantization nf4 needs bitsandbytes: pip install -r requirements.txt, or set it to none")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
        )
        options["device_map"] = {"": device}
    model, found = _from_hub_or_disk(AutoModelForCausalLM, name, output_loading_info=True, **options)
    missing = sorted(found["missing_keys"])  # they would be random
    check(not missing, f"model {name}: {len(missing)} weights are missing, {missing[:2]}; copy or train it again")
    trained_as = model.config.architectures or [type(model).__name__]
    check(type(model).__name__ in trained_as, f"model {name}: a {trained_as[0]}, not a model that writes text")
    if quantization == "none":
        model = model.to(device)
    for module in model.modules():
        # With AVX512-BF16 an eval() forward would repack the weights for a kernel without a gradient to its input.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def check_context(
    model: torch.nn.Module, tokens: int, setting: str = "", remedy: str = "shorten the prompts or completions"
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


def _from_hub_or_disk(cls, name: str, **options):
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


# --- adapters


def save_model(model: torch.nn.Module, tokenizer, directory: Path, card: str = "") -> None:
    """Write the policy as safetensors: the adapter alone for LoRA, the full model otherwise, with the tokenizer.

    `card` is the text of its README.md.
    """
    if hasattr(model, "peft_config"):
        # The embeddings are never trained; asking about them would ask the hub.
        model.save_pretrained(directory, save_embedding_layers=False)
    else:
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if card:
        (Path(directory) / "README.md").write_text(card)


def load_trainable(model: torch.nn.Module, directory: Path) -> None:
    """Copy what `save_model` wrote into the parameters, in place: they may be views of one flat buffer."""
    if hasattr(model, "peft_config"):
        tensors, saved = saved_tensors(model), load_file(directory / WEIGHTS)
    else:  # some models are saved under other names than their own
        dtype = next(model.parameters()).dtype
        whole = _from_hub_or_disk(AutoModelForCausalLM, str(directory), dtype=dtype, use_safetensors=True)
        tensors, saved = dict(model.named_parameters()), dict(whole.named_parameters())
    assert tensors.keys() == saved.keys(), "the checkpoint is of another model"
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def model_card(stage: str, settings: dict, dataset_hash: str, step: int, scores: dict[str, float]) -> str:
    """What a model is: the run's settings, its data by its hash, and its validation scores, as a README.md."""
    adapter = settings.get("adaptation", "lora") == "lora"
    base = (adapter_base(settings["model"]) or settings["model"]) if adapter else settings["model"]
    kind, library = ("A LoRA adapter", "peft") if adapter else ("A model", "transformers")
    lines = [
        f"---\nlibrary_name: {library}\nbase_model: {base}\n---\n",
        f"# {Path(settings['output_dir']).name}\n",
        f"{kind} for Corr2Cause: {stage} from `{settings['model']}`, step {step}.\n",
        f"Data: `{settings['dataset']}`, split {settings['train_split']}, SHA-256 {dataset_hash}.\n",
    ]
    lines += ["| validation | |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in scores.items())]
    lines += ["\n| setting | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in settings.items())]
    return "\n".join(lines) + "\n"
