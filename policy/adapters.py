"""LoRA adapters: the policy's and its frozen reference, on one base."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from runtime.settings import check

POLICY, REFERENCE = "default", "reference"  # adapter names


def adapter_config(path: str) -> dict | None:
    """What peft has written of the LoRA adapter in directory `path`; None if there is none."""
    config = Path(path) / "adapter_config.json"
    return json.loads(config.read_text()) if config.is_file() else None


def adapter_base(path: str) -> str | None:
    """The base model's name if `path` is a directory of a LoRA adapter, else None."""
    config = adapter_config(path)
    return None if config is None else config["base_model_name_or_path"] or ""


def base_revision(path: str, revision: str | None) -> str | None:
    """`revision`, or where none is given that of the base which the adapter at `path` was trained on."""
    return revision or (adapter_config(path) or {}).get("revision")


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability to 0: an adapter that was trained with dropout brings its own."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def lora_targets(model: torch.nn.Module, names: str) -> list[str]:
    """The comma-separated `names`, or all linear layers but the head. ValueError for one that `model` does not have."""
    linear = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    targets = [name.strip() for name in names.split(",") if name.strip()] or sorted(linear)
    missing = [name for name in targets if name not in linear]
    check(
        not missing,
        f"lora_target_modules: the model has no {', '.join(missing)}; its own are {','.join(sorted(linear))}",
    )
    return targets


def put_adapter(base: torch.nn.Module, path: str, is_trainable: bool = False) -> torch.nn.Module:
    """The base with the adapter of a directory on it; ValueError unless all of it is there and fits."""
    from peft import PeftModel, get_peft_model_state_dict

    try:
        model = PeftModel.from_pretrained(base, path, adapter_name=POLICY, is_trainable=is_trainable)
        saved = set(load_file(Path(path) / "adapter_model.safetensors"))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "name the base that it was trained on in its adapter_config.json, or train it again"
        raise ValueError(
            f"model {path}: the adapter cannot be put on {adapter_base(path)} ({reason}); {remedy}"
        ) from None
    wanted = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False).keys()
    check(wanted <= saved, f"model {path}: weights of the adapter are missing, {sorted(wanted - saved)[:2]}")
    return model


def add_reference(policy: torch.nn.Module) -> None:
    """Freeze a copy of the policy's adapter beside it, as the reference of the KL term, on the same base.

    A fresh LoRA's copy is the base model itself, since B = 0. Switching the adapter off instead would make the base the
    reference of a run that starts from a trained adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    policy.add_adapter(REFERENCE, policy.peft_config[POLICY])
    set_peft_model_state_dict(policy, get_peft_model_state_dict(policy, adapter_name=POLICY), adapter_name=REFERENCE)
    for name, parameter in policy.named_parameters():
        if f".{REFERENCE}." in name:
            parameter.requires_grad_(False)


@contextlib.contextmanager
def use_reference(policy: torch.nn.Module) -> Iterator[None]:
    """Run the reference adapter inside the block.

    peft's `set_adapter` would also toggle requires_grad, and with it the gradient hooks that DeepSpeed has placed on
    the policy's parameters; only the layers' choice of adapter changes here.
    """
    layers = [module for module in policy.modules() if hasattr(module, "lora_A")]
    assert layers and REFERENCE in layers[0].lora_A, "no reference adapter: call add_reference first"
    try:
        for layer in layers:
            layer._active_adapter = [REFERENCE]
        yield
    finally:
        for layer in layers:
            layer._active_adapter = [POLICY]


@contextlib.contextmanager
def folded(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block the weights that LoRA adapts are W + scaling·B·A, and the adapter takes no time of its own.

    Only weights in fp32: half precision would round a small update away, and a quantized weight takes none. Afterwards
    the weights are those that they were, bit for bit. Takes the memory of the adapted weights once more.
    """
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers = [layer for layer in model.modules() if _foldable(layer, owners)]
    kept = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, kept, strict=True):
            (adapter,) = layer.active_adapters
            layer.get_base_layer().weight.data = weight + layer.get_delta_weight(adapter)
            layer.merged_adapters.append(adapter)  # so peft runs the base alone
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()


def _foldable(layer: torch.nn.Module, owners: Counter[int]) -> bool:
    """Whether `layer` is linear, in fp32, with one plain LoRA adapter (no DoRA, no bias), its weight no one else's."""
    from peft.tuners.lora import Linear

    if not isinstance(layer, Linear) or layer.merged or layer.disable_adapters:
        return False
    base, active = layer.get_base_layer(), layer.active_adapters
    plain = len(active) == 1 and active[0] in layer.lora_A and not layer.lora_variant
    own = type(base) is torch.nn.Linear and owners[id(base.weight)] == 1  # a tied head's weight is the embedding's too
    return plain and own and not any(layer.lora_bias.values()) and base.weight.dtype == torch.float32
