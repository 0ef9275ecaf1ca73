"""Starting, stepping and gathering under `accelerate launch`: ZeRO-2 on any number of processes, or one process.

Scripts normalise their losses by counts of the whole optimizer step over all ranks, so gradient accumulation is only a
matter of when to step: `backward(..., last=True)` steps, every other backward accumulates.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch.distributed import distributed_c10d

from runtime.settings import check

DEEPSPEED_SECTIONS = ("zero_optimization", "bf16", "fp16", "data_types")
ZERO_SECTIONS = ("offload_optimizer", "offload_param")  # null is as none
PR_SET_PDEATHSIG = 1  # of linux/prctl.h: the signal to get when the parent dies
T = TypeVar("T")


# How long a rank waits for the others: they sample, score and evaluate unevenly. One that has died is noticed
# otherwise, by its connections, its launcher and runtime.ending.end_without_peers.
TIME_OUT = timedelta(hours=6)
# Here, since importing peft for an adapter's check already begins to use the GPU.
os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))
ON_CPU = "DS_ACCELERATOR"  # DeepSpeed's variable: with the value cpu, half precision without a GPU is meant so


def start(seed: int) -> Accelerator:
    """The Accelerator of this process, with gloo where there is no GPU, and the seed set alike on every rank.

    Raises ValueError if the launcher has ended, and for a launch that cannot work here: several processes without
    DeepSpeed, more processes than GPUs, half precision where no GPU is usable, a DeepSpeed file that is none.
    """
    _follow_launcher()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    transformers.utils.logging.disable_progress_bar()
    # Of padded rows its backward pass is NaN where scores are very negative, as Qwen2.5 has some (pytorch #196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Else a product's partial sums are kept in fp16, where they may overflow and the whole would not.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    on_purpose = os.environ.get(ON_CPU) == "cpu"
    check_processes(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    check_deepspeed_file()
    group = InitProcessGroupKwargs(timeout=TIME_OUT)
    if not torch.cuda.is_available():
        # The launcher leaves the backend unset without a GPU, and every rank would take itself for rank 0 of 1.
        group.backend = "gloo" if world_size() > 1 else None
        if under_deepspeed():
            os.environ.setdefault(ON_CPU, "cpu")
            import deepspeed

            # It is compiled at start-up, only speeds up gloo, and a machine without a compiler could not start.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = Accelerator(kwargs_handlers=[group])
    assert accelerator.num_processes == world_size(), (
        f"{accelerator.num_processes} processes joined of {world_size()} launched"
    )
    check_half_precision(accelerator, on_purpose)
    torch.manual_seed(seed)
    return accelerator


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def under_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def check_processes(gpus: int) -> None:
    """Raise ValueError, naming what to launch, unless this machine's processes can work together on so many GPUs.

    Read from the launcher's variables, before the processes meet: NCCL and accelerate would fail of it in many lines.
    """
    local, machines = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    others = {"FSDP": "ACCELERATE_USE_FSDP", "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM"}
    others["a parallelism_config"] = "ACCELERATE_USE_PARALLELISM_CONFIG"
    launched = [name for name, variable in others.items() if os.environ.get(variable) == "true"]
    if world_size() > 1 and not under_deepspeed():
        launched = launched or ["several processes without it"]
    fp8 = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower() == "fp8"
    check(not fp8, "mixed_precision fp8 of the launch: set it to bf16, fp16 or no")
    remedy = "launch with --config_file accelerate_configs/zero2_*.yaml"
    check(not launched, f"the processes work together by DeepSpeed's ZeRO-2, not {', '.join(launched)}: {remedy}")
    check(
        gpus == 0 or os.environ.get(ON_CPU) != "cpu",
        f"{ON_CPU}=cpu, and this machine has a GPU: unset it, or hide the GPU with CUDA_VISIBLE_DEVICES=",
    )
    check(
        gpus == 0 or gpus >= local,
        f"{local} processes on this machine and {gpus} usable GPUs: launch with --num_processes {gpus * machines}, or "
        "make more of them visible (CUDA_VISIBLE_DEVICES, Slurm's --gres), or none, by CUDA_VISIBLE_DEVICES=, for CPUs",
    )


def check_deepspeed_file() -> None:
    """Raise ValueError unless the launch's deepspeed_config_file, if it has one, is a file of DeepSpeed's form.

    accelerate takes that for granted. Whether the loops train as they say with it is asked later (check_launch).
    """
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not under_deepspeed() or not file:
        return
    check(Path(file).is_file(), f"deepspeed_config_file {file} of the launch: no such file; see ds_configs/")
    try:
        config = json.loads(Path(file).read_text())
    except ValueError as error:
        raise ValueError(f"deepspeed_config_file {file} of the launch: not JSON: {error}") from None
    check(isinstance(config, dict), f"deepspeed_config_file {file} of the launch: not a JSON object; see ds_configs/")
    zero = config.get("zero_optimization", {})
    for holder, names, kinds in ((config, DEEPSPEED_SECTIONS, dict), (zero, ZERO_SECTIONS, dict | None)):
        for name in names:
            check(
                isinstance(holder.get(name, {}), kinds),
                f"{name} {json.dumps(holder.get(name))} in {file}: it is a section, in braces, as in ds_configs/",
            )


def precision(accelerator: Accelerator) -> str:
    """bf16, fp16 or no: DeepSpeed's where it is launched, else accelerate's mixed_precision."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return accelerator.mixed_precision
    named = [p for p in ("bf16", "fp16") if (plugin.deepspeed_config.get(p) or {}).get("enabled") in (True, "true")]
    return named[0] if named else "no"


def check_half_precision(accelerator: Accelerator, on_purpose: bool) -> None:
    """Raise ValueError, naming a CPU's configuration, for half precision on a CPU that is not meant so.

    It is meant so `on_purpose`, and where DeepSpeed's configuration has `use_cpu`, which it passes over: the launcher
    does not tell its processes of accelerate's own.
    """
    asked, plugin = precision(accelerator), accelerator.state.deepspeed_plugin
    if accelerator.device.type != "cpu" or asked == "no":
        return
    meant = on_purpose or bool(plugin and plugin.deepspeed_config.get("use_cpu"))
    meant = meant or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    check(
        meant and asked != "fp16",
        f"the launch configuration is for GPUs ({asked}), and PyTorch finds no usable one: mend that (driver, CUDA "
        "build of torch, Slurm's --gres), or use a CPU's configuration, accelerate_configs/zero2_2xcpu.yaml"
        + ("" if asked == "fp16" else f" or zero2_2xcpu_bf16.yaml; {ON_CPU}=cpu allows this one"),
    )


def device_name(device: torch.device) -> str:
    """What a run says that it runs on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _follow_launcher() -> None:
    """Let this process end with its launcher, which would leave it behind: on Linux it gets a SIGTERM then.

    A launcher that died before that can be told by the store that it hosts, for which all of them would wait for long.
    """
    if "LOCAL_RANK" not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_RANK") == "0":
        place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        try:
            socket.create_connection(place, timeout=30).close()
        except OSError:
            raise ValueError("the launcher of this process has ended: launch again") from None


def wait_long() -> None:
    """Give every process group TIME_OUT: DeepSpeed makes one of its own, which gets torch's 10 or 30 minutes."""
    for group in distributed_c10d._world.pg_map if torch.distributed.is_initialized() else ():
        distributed_c10d._set_pg_timeout(TIME_OUT, group)


def reduce(accelerator: Accelerator, values: dict[str, float], how: str = "sum") -> dict[str, float]:
    """Sum (or max) of every value over the ranks, in double precision."""
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    if accelerator.num_processes > 1:
        operation = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}[how]
        torch.distributed.all_reduce(tensor, operation)
    return dict(zip(values, tensor.tolist(), strict=True))


def gather(accelerator: Accelerator, items: list) -> list:
    """The items of every rank, rank by rank."""
    return gather_object(items) if accelerator.num_processes > 1 else items


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """What `function` returns on rank 0, on every rank; its ValueError or OSError is raised on every rank too."""
    value, error = None, None
    if accelerator.is_main_process:
        try:
            value = function()
        except (ValueError, OSError) as fault:
            error = fault
    value, error = gather(accelerator, [(value, error)])[0]
    if error is not None:
        raise error
    return value
