"""What is launched and cannot work here is refused in one line; a rank does not wait for one that has gone."""

import importlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from runtime import processes
from runtime.processes import TIME_OUT, check_deepspeed_file, check_half_precision, check_processes, start, wait_long
from training.optimization import check_launch

LAUNCHED = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "DS_ACCELERATOR")
LAUNCHED += ("ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_CPU")
LAUNCHED += ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")
LAUNCHED += ("ACCELERATE_DEEPSPEED_CONFIG_FILE",)


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables of a launcher."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def accelerator(deepspeed: dict | None = None, device: str = "cpu", mixed_precision: str = "no", accumulation: int = 1):
    plugin = None if deepspeed is None else SimpleNamespace(deepspeed_config=deepspeed)
    return SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin), mixed_precision=mixed_precision, num_processes=2,
        device=torch.device(device), gradient_accumulation_steps=accumulation,
    )  # fmt: skip


def refusal(check, *arguments) -> str:
    with pytest.raises(ValueError) as caught:
        check(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fewer_gpus_than_processes(launched):
    launched(ACCELERATE_USE_DEEPSPEED="true", WORLD_SIZE="4", LOCAL_WORLD_SIZE="2", GROUP_WORLD_SIZE="2")
    assert "2 processes on this machine and 1 usable GPUs: launch with --num_processes 2" in refusal(check_processes, 1)
    for gpus in (0, 2, 8):
        check_processes(gpus)


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "not FSDP"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "not a parallelism_config"),
        ({"WORLD_SIZE": "2"}, "not several processes without it"),
    ],
)
def test_other_ways_to_work_together(launched, variables, words):
    launched(**variables)
    assert f"{words}: launch with --config_file accelerate_configs/zero2_*.yaml" in refusal(check_processes, 0)


@pytest.mark.parametrize("own", [None, "max_split_size_mb:64"])
def test_memory_is_held_in_segments_that_grow_unless_told_otherwise(launched, monkeypatch, own):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", own)
    importlib.reload(processes)  # before anything can have begun to use a GPU
    assert os.environ["PYTORCH_ALLOC_CONF"] == (own or "expandable_segments:True")


def test_kernels_that_are_wrong_or_lose_sums_are_off():
    start(seed=0)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction


@pytest.mark.parametrize("deepspeed", ["true", "false"])
def test_eight_bits_are_refused(launched, deepspeed):
    """Before accelerate looks for their libraries; under DeepSpeed its own configuration does not tell of them."""
    launched(ACCELERATE_MIXED_PRECISION="fp8", ACCELERATE_USE_DEEPSPEED=deepspeed)
    assert "mixed_precision fp8 of the launch: set it to bf16, fp16 or no" in refusal(check_processes, 0)


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no such file; see ds_configs/"),
        ("{bf16: true}", "not JSON: Expecting property name"),
        ("[]", "not a JSON object"),
        ('{"bf16": true}', "bf16 true in "),
        ('{"fp16": null}', "fp16 null in "),
        ('{"zero_optimization": 2}', "zero_optimization 2 in "),
        ('{"zero_optimization": {"offload_param": "cpu"}}', 'offload_param "cpu" in '),
    ],
)
def test_a_deepspeed_file_that_is_none(launched, tmp_path, text, words):
    """Before accelerate reads it."""
    file = tmp_path / "mine.json"
    if text is not None:
        file.write_text(text)
    launched(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))
    message = refusal(start, 0)
    assert words in message and str(file) in message


def test_deepspeed_files_are_taken(launched, tmp_path):
    without = tmp_path / "without.json"
    without.write_text('{"zero_optimization": {"stage": 2, "offload_param": null, "offload_optimizer": null}}')
    for file in (*(ROOT / "ds_configs").iterdir(), without):
        launched(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))
        check_deepspeed_file()


HALF = {"bf16": {"enabled": True}}


def test_half_precision_without_a_gpu_must_be_meant(launched):
    message = refusal(check_half_precision, accelerator(HALF), False)
    assert "(bf16)" in message and "zero2_2xcpu_bf16.yaml; DS_ACCELERATOR=cpu allows this one" in message
    assert "zero2_2xcpu_bf16" in refusal(check_half_precision, accelerator(mixed_precision="bf16"), False)
    fp16 = refusal(check_half_precision, accelerator({"fp16": {"enabled": True}}), True)
    assert fp16.endswith("accelerate_configs/zero2_2xcpu.yaml"), "no variable makes a CPU compute it"
    check_half_precision(accelerator(HALF), True)
    check_half_precision(accelerator(HALF | {"use_cpu": True}), False)
    check_half_precision(accelerator(HALF, device="cuda"), False)
    check_half_precision(accelerator({}), False)
    launched(DS_ACCELERATOR="cpu")
    assert "this machine has a GPU: unset it" in refusal(check_processes, 1)


ZERO = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    "given, words",
    [
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "ZeRO stage 3 of the launch: set it"),
        ({"deepspeed": {"zero_optimization": {}}}, "ZeRO stage 0"),
        ({"deepspeed": {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}}, "offload_param"),
        ({"deepspeed": ZERO | {"gradient_accumulation_steps": 8}}, "gradient_accumulation_steps 8"),
        ({"accumulation": 4}, "gradient_accumulation_steps 4"),
        ({"deepspeed": ZERO | {"optimizer": {"type": "Adam"}}}, "DeepSpeed's optimizer of the launch"),
        ({"deepspeed": ZERO | {"torch_autocast": {"enabled": True}}}, "DeepSpeed's torch_autocast"),
        ({"deepspeed": ZERO | {"scheduler": {"type": "WarmupLR"}}}, "DeepSpeed's scheduler of the launch"),
        ({"deepspeed": ZERO | {"wall_clock_breakdown": True}}, "DeepSpeed's wall_clock_breakdown of the launch"),
        ({"deepspeed": {"zero_optimization": {"stage": 2, "cpu_offload": True}}}, "zero_optimization.cpu_offload"),
        ({"deepspeed": {"zero_optimization": {"stage": 2, "compute_grad_norm": False}}}, "compute_grad_norm of the"),
        ({"deepspeed": ZERO | {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}}, "bf16.bf16_master"),
        ({"deepspeed": ZERO | {"fp16": {"enabled": True, "fp16_master_weights_and_grads": True}}}, "fp16.fp16_master"),
        ({"mixed_precision": "bf16"}, "zero2_2xcpu_bf16.yaml --num_processes 1"),
        ({"mixed_precision": "bf16", "device": "cuda"}, "single_gpu.yaml --num_processes 1"),
        ({"mixed_precision": "fp16", "device": "cuda"}, "zero2_2x2080ti.yaml --num_processes 1"),
    ],
)  # fmt: skip
def test_what_the_loops_do_not_train_under(launched, given, words):
    assert words in refusal(check_launch, accelerator(**given))


def test_compiling_is_refused(launched):
    launched(ACCELERATE_DYNAMO_BACKEND="INDUCTOR")
    assert "dynamo_backend inductor of the launch: " in refusal(check_launch, accelerator())


def test_a_deepspeed_configuration_of_ones_own_is_made_whole(launched):
    """As `accelerate config` writes one: batch sizes are left to a dataloader, sums are in half precision."""
    given = HALF | {"zero_optimization": {"stage": 2, "offload_param": {"device": "none"}, "reduce_bucket_size": 7}}
    given["zero_optimization"] |= {"stage3_gather_16bit_weights_on_model_save": True, "sub_group_size": 10**9}
    given |= {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "amp": {"enabled": False}}
    check_launch(accelerator(given | {"gradient_accumulation_steps": "auto"}))
    one = accelerator(given)
    check_launch(one)
    config = one.state.deepspeed_plugin.deepspeed_config
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [config[name] for name in sizes] == [2, 1, 1]
    assert config["data_types"]["grad_accum_dtype"] == config["communication_data_type"] == "fp32"
    assert config["zero_optimization"]["reduce_bucket_size"] == 7


def test_deepspeeds_own_group_waits_as_long_as_the_others(tmp_path):
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        own = distributed.new_group([0])  # as it makes one
        wait_long()
        groups = (distributed.group.WORLD, own)
        assert [g._get_backend(torch.device("cpu")).options._timeout for g in groups] == [TIME_OUT, TIME_OUT]
    finally:
        distributed.destroy_process_group()


# Two ranks that meet over gloo; then the one waits in C, as in NCCL, for what the other will never do.
WAITS = """
import ctypes, os, signal, sys, time
import torch.distributed as dist
from runtime import ending
ending.GRACE = 0.1
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
pids = [None, None]
dist.all_gather_object(pids, os.getpid())
signal.signal(signal.SIGTERM, lambda number, frame: None)
ending.end_without_peers([pids[1 - rank]])
if rank == 1:
    time.sleep(1000)
print("waits", flush=True)
lock = ctypes.create_string_buffer(64)  # a pthread_mutex_t: locked twice, it is waited for for ever
for _ in range(2):
    ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="zeroes are an unlocked pthread_mutex_t on Linux")
def test_a_rank_that_waits_in_c_ends_when_another_has_gone(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WAITS, str(rank), tmp_path / "meet"], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert ranks[0].stdout.readline() == "waits\n"
        ranks[0].send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):  # all are there: the note waits for the end of the step
            ranks[0].wait(1)
        ranks[1].kill()  # a zombie from here on
        assert ranks[0].wait(300) == 2
        assert "another rank has ended: its message says why" in ranks[0].stderr.read()
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
