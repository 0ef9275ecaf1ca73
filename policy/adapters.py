"""LoRA adapters: the policy's, from a directory or new, and the frozen reference of what it trains."""

import contextlib
import dataclasses
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from runtime.settings import check

POLICY, REFERENCE = "default", "reference"  # names of the adapter, and of the module that holds its frozen copy
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Initializations that take something out of the base: always the same, or what is drawn or measured anew each time.
REPEATABLE = ("pissa", "olora")
UNREPEATABLE = ("pissa_niter", "corda", "loftq", "lora_ga")
AS_PLAIN = "save it as plain LoRA (peft: path_initial_model_for_weight_conversion)"  # what helps with either
NOISE = ("drop", "jitter")  # in the names of what a model draws in training alone
# peft imports bitsandbytes, which on some CPUs misses kernels that nothing here needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def adapter_config(path: str) -> dict | None:
    """What peft has written of the adapter in directory `path`; None if there is none."""
    config = Path(path) / CONFIG
    if not config.is_file():
        return None
    try:
        return dict(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"model {path}: {CONFIG} cannot be read; copy or train it again") from None


def adapter_base(path: str) -> str | None:
    """The base model's name if `path` is a directory of an adapter, else None."""
    config = adapter_config(path)
    return None if config is None else config.get("base_model_name_or_path") or ""


def base_revision(path: str, revision: str | None) -> str | None:
    """`revision`, or where none is given that of the base which the adapter at `path` was trained on."""
    return revision or (adapter_config(path) or {}).get("revision")


def check_adapter(path: str) -> None:
    """Raise ValueError, with a remedy, unless the adapter in `path` is of a kind that training and sampling know.

    That is LoRA with all that peft trains beside it, and DoRA. Not so what depends on the row's other tokens, draws
    anew in every pass or changes the number of layers, nor what this peft has never heard of.
    """
    import peft  # seconds, which models without an adapter need not wait for

    found = adapter_config(path)
    name = f"model {path}"
    base = adapter_base(path)
    check(base != "", f"{name}: {CONFIG} names no base_model_name_or_path; write its base there")
    kind, known = found.get("peft_type"), peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    install = f"install the peft that it was trained with ({found.get('peft_version') or 'a later one'})"
    check(kind in known, f"{name}: peft {peft.__version__} knows no adapter {kind}; {install}, and merge it there")
    from_base = f"start from its base, {base}"
    fold = f"fold it into its base with merge.py, or {from_base}"
    if kind != "LORA":
        remedy = from_base if issubclass(known[kind], peft.PromptLearningConfig) else fold
        raise ValueError(f"{name}: its adapter is {kind}, not LoRA; {remedy}")
    fields = {field.name: field for field in dataclasses.fields(peft.LoraConfig)}
    # A feature of a later version that is off is written as None, False or empty; numbers and words qualify another.
    new = [key for key, value in found.items() if key not in fields and value and isinstance(value, bool | dict | list)]
    check(not new, f"{name}: peft {peft.__version__} knows nothing of {', '.join(new)}; {install}, and merge it there")
    variants = {key for key, field in fields.items() if field.metadata.get("is_lora_variant")} | {"use_qalora"}
    used = sorted(key for key in variants - {"use_dora"} if found.get(key))
    if str(found.get("init_lora_weights")).lower() == "mica":
        used.append("init_lora_weights mica")
    fold = from_base if {"alora_invocation_tokens", "arrow_config"} & {*used} else fold  # these depend on the row
    check(not used, f"{name}: LoRA with {', '.join(used)} is not supported; {fold}")
    check(not found.get("layer_replication"), f"{name}: layer_replication is not supported; {from_base}")
    begun = str(found.get("init_lora_weights")).lower()
    check(not begun.startswith(UNREPEATABLE), f"{name}: init_lora_weights {begun} has changed its base; {AS_PLAIN}")


def adapters_below(path: str) -> list[str]:
    """Names of the folders in directory `path` that are adapters: peft gives each but `default` one of its own."""
    return sorted(file.parent.name for file in Path(path).glob(f"*/{CONFIG}"))


def disable_dropout(model: torch.nn.Module) -> None:
    """Set to 0 the probability of everything that is drawn in training alone: an adapter brings its own dropout.

    Dropout modules, and the numbers that a forward pass hands to a function, of its module or of its configuration.
    """
    holders: dict[int, object] = {id(module): module for module in model.modules()}
    for module in model.modules():
        holders |= {id(value): value for value in vars(module).values() if isinstance(value, PreTrainedConfig)}
    for holder in holders.values():
        if isinstance(holder, torch.nn.modules.dropout._DropoutNd):
            holder.p = 0.0
        for name, value in list(vars(holder).items()):
            if isinstance(value, float) and any(word in name for word in NOISE):
                setattr(holder, name, 0.0)


def lora_targets(model: torch.nn.Module, names: str) -> list[str]:
    """The comma-separated `names`, or all linear layers but the head. ValueError for one that `model` does not have."""
    head = model.get_output_embeddings()
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head]
    linear = {_target(name) for name, _ in layers}
    targets = [name.strip() for name in names.split(",") if name.strip()] or sorted(linear)
    missing = [name for name in targets if name not in linear]
    check(
        not missing,
        f"lora_target_modules: the model has no {', '.join(missing)}; its own are {','.join(sorted(linear))}",
    )
    return targets


def _target(name: str) -> str:
    """The last part of a layer's name; with the one before it if that is a number, of a layer in a list."""
    *_, parent, own = ["", *name.split(".")]
    return f"{parent}.{own}" if own.isdigit() and parent else own


def experts_note(model: torch.nn.Module) -> str:
    """What to say of an adapted model whose experts are one tensor, which no linear layer holds; else nothing."""
    config = getattr(model, "peft_config", {}).get(POLICY)
    if config is None or config.target_parameters:
        return ""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.ndim == 3 and "expert" in name}
    if not sizes:
        return ""
    share = sum(sizes.values()) / sum(p.numel() for p in model.parameters())
    names = ", ".join(sorted({name.split(".")[-1] for name in sizes}))
    return f"note: LoRA does not reach the experts ({names}: {share:.0%} of the weights), which stay as they are"


def put_adapter(base: torch.nn.Module, path: str, is_trainable: bool = False) -> torch.nn.Module:
    """The base with the adapter of a directory on it; ValueError unless all of it is there and fits.

    A base without data (on the meta device) is enough to find out.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    options = {"adapter_name": POLICY, "is_trainable": is_trainable}
    options["low_cpu_mem_usage"] = next(base.parameters()).is_meta
    try:
        config = PeftConfig.from_pretrained(path)
        if hasattr(config, "init_lora_weights") and config.init_lora_weights not in REPEATABLE:
            config.init_lora_weights = True  # its weights are here, so no need to begin as they did
        model = PeftModel.from_pretrained(base, path, config=config, **options)
        saved = set(load_file(Path(path) / WEIGHTS))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "name the base that it was trained on in its adapter_config.json, or train it again"
        raise ValueError(
            f"model {path}: the adapter cannot be put on {adapter_base(path)} ({reason}); {remedy}"
        ) from None
    wanted = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False).keys()
    missing, unknown = sorted(wanted - saved), sorted(saved - wanted - model.state_dict().keys())
    remedy = "save it again with peft's save_pretrained"
    check(not missing, f"model {path}: weights of the adapter are missing, {missing[:2]}; {remedy}")
    check(not unknown, f"model {path}: its configuration has no place for {unknown[:2]}; {remedy}")
    return model


def merge_adapter(base: torch.nn.Module, path: str) -> torch.nn.Module:
    """The base, which is changed, with the adapter of a directory folded into its weights.

    Raises ValueError for an adapter that is no change of weights.
    """
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    model = put_adapter(base, path)
    tied = head.weight is embeddings.weight
    if tied:  # what is folded into the one would be in the other too
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    try:
        check(not model.peft_config[POLICY].is_prompt_learning, "it adds tokens to the prompt")
        check(not getattr(model.peft_config[POLICY], "layer_replication", None), "it adds layers")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that are no longer tied: here is decided which are
            merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model {path}: cannot be folded into weights ({reason}); use it on its base") from None
    head, embeddings = merged.get_output_embeddings(), merged.get_input_embeddings()
    merged.config.tie_word_embeddings = tied and torch.equal(head.weight, embeddings.weight)
    if merged.config.tie_word_embeddings:
        head.weight = embeddings.weight
    return merged.eval().requires_grad_(False)


def saved_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's parameters themselves, under the names that `save_pretrained` gives them in the file."""
    from peft import get_peft_model_state_dict

    state = model.state_dict(keep_vars=True)
    return get_peft_model_state_dict(model, state, POLICY, save_embedding_layers=False)


def add_reference(policy: torch.nn.Module) -> None:
    """Keep a frozen copy of all that the policy trains, as the reference of the KL term.

    A fresh LoRA's copy is the base model itself, since B = 0. Switching the adapter off instead would make the base the
    reference of a run that starts from a trained adapter.
    """
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    reference = torch.nn.Module()  # in the model, so that what moves the weights moves the copy too
    reference.names = list(trained)
    for number, p in enumerate(trained.values()):
        reference.register_buffer(str(number), p.detach().clone(), persistent=False)
    policy.add_module(REFERENCE, reference)


@contextlib.contextmanager
def use_reference(policy: torch.nn.Module) -> Iterator[None]:
    """Run the reference inside the block, for which the parameters have its data: whatever kind they are.

    The parameters themselves stay, with requires_grad and the gradient hooks that DeepSpeed has placed on them, and
    afterwards their data is the one tensor that it was, a view of DeepSpeed's buffer.
    """
    reference = getattr(policy, REFERENCE, None)
    assert reference is not None, "no reference: call add_reference first"
    named = dict(policy.named_parameters())
    parameters = [named[name] for name in reference.names]
    own = [p.data for p in parameters]
    try:
        for p, copy in zip(parameters, reference.buffers(), strict=True):
            copy.data = copy.data.to(p.dtype)  # DeepSpeed has cast parameters, and no buffers
            p.data = copy
        yield
    finally:
        for p, data in zip(parameters, own, strict=True):
            p.data = data


@contextlib.contextmanager
def lean_lora(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, which is without gradients and dropout, LoRA takes no time of its own, or less.

    A weight in fp32 is W + scaling·B·A: afterwards all weights are those that they were, bit for bit. That takes the
    memory of the adapted weights once more. Half precision would round a small update away, and a quantized weight
    takes none: there scaling·B·A·x is added to the layer's output in place, by one operation where peft has three or
    four. DoRA and adapters with a bias run as they are.
    """
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    plain = [layer for layer in model.modules() if _is_plain_lora(layer)]
    folded = [layer for layer in plain if _can_fold(layer, owners)]
    kept = [layer.get_base_layer().weight.data for layer in folded]
    shortened = [layer for layer in plain if layer not in folded]
    try:
        for layer, weight in zip(folded, kept, strict=True):
            (adapter,) = layer.active_adapters
            layer.get_base_layer().weight.data = weight + layer.get_delta_weight(adapter)
            layer.merged_adapters.append(adapter)  # so peft runs the base alone
        for layer in shortened:
            layer.forward = _short_forward(layer)
        yield
    finally:
        for layer in shortened:
            vars(layer).pop("forward", None)
        for layer, weight in zip(folded, kept, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()


def _is_plain_lora(layer: torch.nn.Module) -> bool:
    """Whether `layer` is linear with one active LoRA adapter of two matrices (no DoRA, no bias), and peft's forward."""
    if not hasattr(layer, "lora_A"):
        return False
    from peft.tuners import lora  # seconds, which a model without an adapter need not wait for

    linear = (lora.Linear, getattr(lora, "Linear4bit", lora.Linear))  # the latter only where there is bitsandbytes
    if not isinstance(layer, linear) or layer.merged or layer.disable_adapters or "forward" in vars(layer):
        return False
    active = layer.active_adapters
    one = len(active) == 1 and active[0] in layer.lora_A and not layer.lora_variant
    return one and not any(layer.lora_bias.values())


def _can_fold(layer: torch.nn.Module, owners: Counter[int]) -> bool:
    """Whether the base of a plain LoRA layer is in fp32, its weight no one else's."""
    base = layer.get_base_layer()
    own = type(base) is torch.nn.Linear and owners[id(base.weight)] == 1  # a tied head's weight is the embedding's too
    return own and base.weight.dtype == torch.float32


def _short_forward(layer: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    (adapter,) = layer.active_adapters
    base, scaling = layer.get_base_layer(), layer.scaling[adapter]
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight  # (r, in), (out, r)
    usual = layer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != a.dtype or torch.is_autocast_enabled(x.device.type):
            return usual(x)
        out = base(x)
        inner = torch.nn.functional.linear(x, a)
        out.view(-1, out.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), b.T, alpha=scaling)
        return out

    return forward
