"""Starting, stepping and gathering under `accelerate launch`: ZeRO-2 on any number of processes, or one process.

Scripts normalise their losses by counts of the whole optimizer step over all ranks, so gradient accumulation is only a
matter of when to step: `backward(..., last=True)` steps, every other backward accumulates.
"""

import ctypes
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object

from runtime.settings import check

PR_SET_PDEATHSIG = 1  # of linux/prctl.h: the signal to get when the parent dies
T = TypeVar("T")


def start(seed: int) -> Accelerator:
    """The Accelerator of this process, with gloo where there is no GPU, and the seed set alike on every rank.

    Raises ValueError if the launcher has ended, or if there are several processes without DeepSpeed.
    """
    _follow_launcher()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # misses kernels that nothing here needs
    handlers = []
    under_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if not torch.cuda.is_available():
        # The launcher leaves the backend unset without a GPU, and every rank would take itself for rank 0 of 1.
        handlers = [InitProcessGroupKwargs(backend="gloo")] if int(os.environ.get("WORLD_SIZE", "1")) > 1 else []
        if under_deepspeed:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            import deepspeed

            # It is compiled at start-up, only speeds up gloo, and a machine without a compiler could not start.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = Accelerator(kwargs_handlers=handlers)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == world_size, (
        f"{accelerator.num_processes} processes joined of {world_size} launched"
    )
    check(
        accelerator.num_processes == 1 or accelerator.distributed_type == DistributedType.DEEPSPEED,
        "several processes need DeepSpeed: launch with --config_file accelerate_configs/zero2_*.yaml",
    )
    torch.manual_seed(seed)
    return accelerator


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


# --- what a checkpoint holds of the optimizer
