"""The optimizer, alone or under DeepSpeed: prepare, backward, step, and what a checkpoint holds of it."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType


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
        assert plugin.deepspeed_config.get("gradient_accumulation_steps", 1) in (1, "auto"), (
            "the loops accumulate themselves"
        )
    engine, optimizer = accelerator.prepare(model, optimizer)
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
    assert {key.rpartition(".")[0] for key in tensors} == held.keys(), "the checkpoint is of another optimizer"
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
