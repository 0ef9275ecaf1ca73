"""Tokenizers and models from the hub or from disk: nf4 bases, LoRA policies, merged ones; and onto the disk again.

What `model` may be, shapes.py says.
"""

import importlib.util
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from policy.adapters import (
    AS_PLAIN,
    POLICY,
    REPEATABLE,
    WEIGHTS,
    adapter_base,
    adapter_config,
    base_revision,
    check_adapter,
    lora_targets,
    merge_adapter,
    put_adapter,
    saved_tensors,
)
from policy.prefix_sharing import ATTENTION
from policy.shapes import (
    TINY,
    check_stored,
    check_text_alone,
    embedded_tiny,
    empty_model,
    from_hub_or_disk,
    model_shape,
)
from runtime.processes import precision
from runtime.settings import check, check_choice

BF16_CAPABILITY = (8, 0)  # of the first GPUs that compute bf16: torch.cuda.is_bf16_supported() counts emulation too
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model", "*.tiktoken")
END_OF_TURN = (
    "<|end|>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|return|>",
    "<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>",
)  # fmt: skip


# --- tokenizers


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
    return from_hub_or_disk(AutoTokenizer, name_or_path, revision=revision)


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
    check_text_alone(model, model_shape(base or model, base_revision(model, revision)))
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
    model, found = from_hub_or_disk(AutoModelForCausalLM, name, output_loading_info=True, **options)
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


# --- saved models


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
        whole = from_hub_or_disk(AutoModelForCausalLM, str(directory), dtype=dtype, use_safetensors=True)
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
