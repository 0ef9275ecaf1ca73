"""The optimizer, alone or under DeepSpeed: prepare, backward, step, and what a checkpoint holds of it."""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from runtime.processes import ZERO_SECTIONS, precision, wait_long
from runtime.settings import check

# What a DeepSpeed configuration may hold: with these the loops train as they say.
DEEPSPEED_KEYS = {
    "bf16", "fp16", "data_types", "communication_data_type", "zero_optimization", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "gradient_clipping", "steps_per_print", "memory_breakdown", "dump_state", "comms_logger", "use_cpu",
}  # fmt: skip
DEEPSPEED_PARTS = {  # and its sections, besides what is of stage 3 alone
    "zero_optimization": {
        "stage", "offload_optimizer", "offload_param", "contiguous_gradients", "overlap_comm", "reduce_scatter",
        "reduce_bucket_size", "allgather_partitions", "allgather_bucket_size", "use_multi_rank_bucket_allreduce",
        "round_robin_gradients", "sub_group_size", "ignore_unused_parameters", "load_from_fp32_weights",
        "elastic_checkpoint",
    },
    "bf16": {"enabled", "check_grad_overflow", "immediate_grad_update"},
    "fp16": {
        "enabled", "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis",
        "consecutive_hysteresis", "min_loss_scale",
    },
}  # fmt: skip
# And where it does not say: sums in fp32, and buckets of the size of a LoRA instead of 2 GB.
DEEPSPEED_DEFAULTS: dict[str, Any] = {
    "communication_data_type": "fp32",
    "zero_allow_untested_optimizer": True,
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"reduce_bucket_size": 5_000_000, "allgather_bucket_size": 5_000_000},
}


def check_launch(accelerator: Accelerator) -> None:
    """Raise ValueError, naming the setting, for a launch configuration under which the loops do not train as they say.

    A DeepSpeed configuration gets what the loops know better: the sizes of a batch, which they make themselves, and
    DEEPSPEED_DEFAULTS for what it leaves out.
    """
    plugin, asked = accelerator.state.deepspeed_plugin, precision(accelerator)
    dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    check(dynamo == "no", f"dynamo_backend {dynamo} of the launch: the loops do not run compiled; set it to no")
    config = {} if plugin is None else plugin.deepspeed_config
    steps = [accelerator.gradient_accumulation_steps, config.get("gradient_accumulation_steps", 1)]
    check(
        set(steps) <= {1, "auto"},
        f"gradient_accumulation_steps {steps[-1] if plugin else steps[0]} of the launch: set it to 1, as the loops "
        "accumulate themselves: a step's size is batch_size or prompts_per_step, a pass's micro_batch_tokens",
    )
    if plugin is None:
        kind = "single_gpu" if asked == "bf16" else "zero2_2x2080ti"
        kind = "zero2_2xcpu_bf16" if accelerator.device.type == "cpu" else kind
        check(
            asked == "no",
            f"mixed_precision {asked} needs DeepSpeed here, which keeps trained weights in fp32 too: launch with "
            f"--config_file accelerate_configs/{kind}.yaml --num_processes 1",
        )
        return
    remedy = "or launch with --config_file accelerate_configs/zero2_*.yaml"
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    moved = [name for name in ZERO_SECTIONS if _is_moved(zero, name)]
    check(stage == 2, f"DeepSpeed's ZeRO stage {stage} of the launch: set it (zero_stage, or stage) to 2, {remedy}")
    check(not moved, f"DeepSpeed's {', '.join(moved)} of the launch: set its device to none, {remedy}")
    unknown = sorted(key for key in config.keys() - DEEPSPEED_KEYS if config[key] != {} and _is_on(config[key]))
    for name, known in DEEPSPEED_PARTS.items():
        parts = {key: value for key, value in (config.get(name) or {}).items() if not key.startswith("stage3_")}
        unknown += [f"{name}.{key}" for key in sorted(parts.keys() - known) if parts[key] is not None]
    check(
        not unknown,
        f"DeepSpeed's {', '.join(unknown)} of the launch: not known to train rightly here; leave it out, {remedy}",
    )
    for name, value in DEEPSPEED_DEFAULTS.items():
        given = config.setdefault(name, value)
        if isinstance(value, dict):
            config[name] = value | given
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config["train_batch_size"] = accelerator.num_processes


def _is_moved(zero: dict[str, Any], name: str) -> bool:
    return (zero.get(name) or {}).get("device", "none") not in ("none", None)


def _is_on(section: Any) -> bool:
    """Whether a section of DeepSpeed's configuration does something."""
    return bool(section.get("enabled", True)) if isinstance(section, dict) else bool(section)


def prepare(
    accelerator: Accelerator, model: torch.nn.Module, learning_rate: float, weight_decay: float, max_grad_norm: float
) -> tuple[torch.nn.Module, Any]:
    """AdamW over the trainable parameters, and both under DeepSpeed if it was launched. Returns (engine, optimizer)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.95))
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        # DeepSpeed clips by its own configuration and ignores every other request, so the one setting is handed to it.
        plugin.deepspeed_config["gradient_clipping"] = max_grad_norm
    engine, optimizer = accelerator.prepare(model, optimizer)
    scaler = _loss_scaler(optimizer)
    if hasattr(scaler, "raise_error_at_min_scale"):  # else DeepSpeed ends a run that overflows before the Monitor does
        scaler.raise_error_at_min_scale = False
    wait_long()
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert held * max(1, accelerator.num_processes) >= sum(p.numel() for p in trainable), (
        "the optimizer does not hold every trainable parameter"
    )
    return engine, optimizer


def backward(accelerator: Accelerator, loss: torch.Tensor, last: bool) -> None:
    """Accumulate the gradient of `loss`; with `last`, DeepSpeed then reduces, clips and steps (see `step`).

    Under ZeRO-2 every rank must call this equally often. DeepSpeed averages over ranks: multiply a loss that is already
    divided by a count over all ranks by the number of processes.
    """
    accelerator.sync_gradients = last
    accelerator.backward(loss)


def step_optimizer(
    accelerator: Accelerator, engine: torch.nn.Module, optimizer: Any, max_grad_norm: float
) -> tuple[float, bool]:
    """Finish the step after the last `backward`; returns the gradient norm before clipping and whether it stepped."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return float(engine.get_global_grad_norm() or 0.0), bool(engine.was_step_applied())
    norm = float(accelerator.clip_grad_norm_([p for p in engine.parameters() if p.requires_grad], max_grad_norm))
    stepped = norm == norm and norm != float("inf")
    if stepped:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, stepped


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """A prepared torch scheduler would step once a process: the loops compute the rate themselves."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _innermost(optimizer: Any) -> Any:
    """torch's AdamW under accelerate's and DeepSpeed's wrappers; under ZeRO it holds this rank's fp32 partitions."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _loss_scaler(optimizer: Any) -> Any:
    """DeepSpeed's scaler of fp16 losses, if there is one."""
    while not hasattr(optimizer, "loss_scaler") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return getattr(optimizer, "loss_scaler", None)


def _held(optimizer: Any) -> dict[str, torch.Tensor]:
    groups = _innermost(optimizer).param_groups
    return {f"{g}.{k}": p for g, group in enumerate(groups) for k, p in enumerate(group["params"])}


def optimizer_tensors(model: torch.nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    """This rank's state of AdamW by name; its parameters too where they are not the model's own but fp32 copies."""
    own = {id(p) for p in model.parameters()}
    state = _innermost(optimizer).state
    tensors = {}
    for key, p in _held(optimizer).items():
        if id(p) not in own:
            tensors[f"{key}.param"] = p.detach()
        tensors |= {f"{key}.{name}": value for name, value in state[p].items()}
    return tensors


def load_optimizer(optimizer: Any, tensors: dict[str, torch.Tensor] | None, scaler: dict[str, float]) -> None:
    """Put `optimizer_tensors` and `scaler_state` back; with None, only let fp32 copies follow the model's weights."""
    for name, value in scaler.items():
        setattr(_loss_scaler(optimizer), name, value)
    if tensors is None:
        if hasattr(getattr(optimizer, "optimizer", None), "refresh_fp32_params"):
            optimizer.optimizer.refresh_fp32_params()
        return
    state, held = _innermost(optimizer).state, _held(optimizer)
    # Before its first step torch's AdamW holds nothing.
    same = not tensors or {key.rpartition(".")[0] for key in tensors} == held.keys()
    remedy = "launch it as before, or set resume_weights_only true"
    check(same, f"resume_from: the checkpoint is of another kind of launch (DeepSpeed, precision): {remedy}")
    for key, p in held.items():
        found = {name.rpartition(".")[2]: t for name, t in tensors.items() if name.rpartition(".")[0] == key}
        if "param" in found:
            p.data.copy_(found.pop("param"))
        # The count of steps stays on the CPU, where torch's AdamW keeps it.
        state[p] = {name: t if t.ndim == 0 else t.to(p.device) for name, t in found.items()}


def scaler_state(optimizer: Any) -> dict[str, float]:
    """The loss scale and its counters, the same on every rank; nothing where losses are not scaled."""
    scaler = _loss_scaler(optimizer)
    names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    return {name: getattr(scaler, name) for name in names if hasattr(scaler, name)}
