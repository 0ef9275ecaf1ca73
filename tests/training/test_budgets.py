"""What `auto` stands for: sizes that fit, the same on every rank; and what happens where memory runs out anyway."""

import json
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, build_model, launch, run_here
from launching import GRPO, OFTEN
from safetensors.torch import load_file

import train_grpo
import train_sft
from policy import prefix_sharing
from training import budgets
from training.budgets import (
    CPU_CACHE,
    CPU_UPDATE,
    ENOUGH,
    cache_of_evaluation,
    cpu_cache_tokens,
    find_budgets,
    tried_update,
)

LONGEST = 20


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes of memory are free."""

    def free(bytes: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=bytes))

    return free


def test_a_gpu_that_is_named_without_its_number_is_the_current_one(monkeypatch):
    """As accelerate names it in `python evaluate.py`, without a launcher; a fraction is asked of a number alone."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 + device.index, 10))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2)
    of_number = torch.cuda._utils._get_device_index
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.55 + 0 * of_number(device))
    assert budgets.device_memory(torch.device("cuda")) == 5, "of 10 bytes it may have 5.5"
    assert budgets.device_memory(torch.device("cuda", 0)) == 5
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0 + 0 * of_number(device))
    assert budgets.device_memory(torch.device("cuda")) == 6, "free and held by this process"


def test_on_a_cpu_the_cache_is_a_share_of_the_free_memory(free, monkeypatch):
    shape = build_model("qwen2").config  # 2 layers, 2 key-value heads of width 8
    of_token = 2 * 2 * 2 * 8 * 4
    free(8 * 5000 * of_token)
    assert cpu_cache_tokens(shape, torch.float32) == 5000 // 1024 * 1024
    assert cpu_cache_tokens(shape, torch.bfloat16) == 10_000 // 1024 * 1024
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpu_cache_tokens(shape, torch.float32) == 2500 // 1024 * 1024
    free(1e12)
    assert cpu_cache_tokens(shape, torch.float32) == CPU_CACHE
    free(0)
    assert cpu_cache_tokens(shape, torch.float32) == 1
    free(1e12)
    assert cache_of_evaluation(torch.device("cpu"), torch.float32, "tiny", "none", 100, 10) == CPU_CACHE
    asked = []
    monkeypatch.setattr("training.budgets.model_shape", lambda *model: asked.append(model) or shape)
    cache_of_evaluation(torch.device("cpu"), torch.float32, "some/model", "none", 100, 10, "v1")
    assert asked == [("some/model", "v1")], "offline there may be no other revision in the cache"


def test_what_is_given_is_not_looked_for(free):
    free(1e12)
    shape = build_model("phi3").config
    for given, expected in (
        ({}, {"cache_tokens": CPU_CACHE, "micro_batch_tokens": CPU_UPDATE}),
        ({"cache_tokens": 77}, {"micro_batch_tokens": CPU_UPDATE}),
        ({"cache_tokens": 77, "micro_batch_tokens": 88}, {}),
    ):
        config = train_sft.Config(**given)
        assert find_budgets(Accelerator(cpu=True), config, shape, torch.float32) == expected


def test_on_a_gpu_the_plan_says_what_its_memory_holds(monkeypatch):
    """Of a card with as much memory as the device says that it has."""
    device = torch.device("cuda")
    monkeypatch.setattr(budgets, "device_memory", lambda _: 23e9)
    monkeypatch.setattr(budgets, "of_all_ranks", lambda accelerator, found: found)
    config = train_grpo.Config(
        model="Qwen/Qwen2.5-1.5B-Instruct", quantization="nf4", max_new_tokens=1536, claims_per_prefix=1,
        gradient_checkpointing=True,
    )  # fmt: skip
    found = find_budgets(SimpleNamespace(device=device, num_processes=2), config, None, torch.bfloat16)
    assert found["micro_batch_tokens"] == ENOUGH and found["cache_tokens"] > 40_000
    small = cache_of_evaluation(device, torch.bfloat16, "Qwen/Qwen2.5-1.5B-Instruct", "nf4", 400, 1536)
    assert small > 40_000
    monkeypatch.setattr(budgets, "device_memory", lambda _: 6e9)
    assert cache_of_evaluation(device, torch.bfloat16, "Qwen/Qwen2.5-1.5B-Instruct", "nf4", 400, 1536) < small / 2


# --- the trial of an update


def starve(monkeypatch, most: int, error: BaseException | None = None) -> list[int]:
    """Let the backward pass of attention fail in a row of more than `most` tokens; the rows that were asked for."""
    asked, real = [], prefix_sharing.tree_attention

    def hungry(module, query, *args, **options):
        asked.append(query.shape[0] * query.shape[2])
        if asked[-1] > most:
            query.register_hook(lambda grad: fail())
        return real(module, query, *args, **options)

    def fail():
        raise error or torch.OutOfMemoryError("CUDA out of memory")

    prefix_sharing.AttentionInterface.register(prefix_sharing.ATTENTION, hungry)
    monkeypatch.setattr(prefix_sharing, "tree_attention", hungry)
    return asked


@pytest.fixture
def attention():
    yield
    prefix_sharing.AttentionInterface.register(prefix_sharing.ATTENTION, REAL)


REAL = prefix_sharing.tree_attention


def trial(model, budget: int, group: int = 30, share: bool = True) -> int:
    return tried_update(Accelerator(cpu=True), model, budget, LONGEST, group, share)


@pytest.mark.parametrize("share", [True, False])
def test_an_update_that_does_not_fit_is_halved_until_it_does(share, attention, monkeypatch, capsys):
    model = build_model("phi3", lora=True)
    model.register_forward_pre_hook(lambda module, args: torch.rand(1) and None)  # as dropout draws
    asked = starve(monkeypatch, 130)
    state = torch.get_rng_state()
    assert trial(model, 480, share=share) == 120
    assert sorted(set(asked), reverse=True) == [480, 240, 120]
    assert capsys.readouterr().out.splitlines() == [
        f"out of memory in a trial of the update: goes on with micro_batch_tokens {tokens}" for tokens in (240, 120)
    ]
    assert all(p.grad is None for p in model.parameters()) and not model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_group_is_not_split(attention, monkeypatch):
    model = build_model("phi3", lora=True)
    starve(monkeypatch, 130)
    assert trial(model, 480, group=100) == 120
    assert trial(model, 40, group=100) == 40
    with pytest.raises(ValueError, match="200 tokens, one group, do not fit; lower claims_per_prefix"):
        trial(model, 480, group=200)


def test_other_errors_in_the_trial_end_it(attention, monkeypatch):
    starve(monkeypatch, 130, RuntimeError("another"))
    with pytest.raises(RuntimeError, match="another"):
        trial(build_model("phi3", lora=True), 480)


# --- two processes, one of which has less memory

STARVED = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
import train_grpo
from policy import prefix_sharing
from runtime.ending import run_script

real = prefix_sharing.tree_attention

def hungry(module, query, *args, **options):
    sampling = options.get("branches") is not None
    size, limit = query.shape[2], {{most_tokens}}
    if sampling:
        size, limit = len(options["branches"].rows), {{most_sequences}}
    if os.environ["RANK"] == "1" and size > limit and (sampling or torch.is_grad_enabled()):
        if sampling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        query.register_hook(fail)  # in the midst of the backward pass
    return real(module, query, *args, **options)

def fail(grad):
    raise torch.OutOfMemoryError("CUDA out of memory")

prefix_sharing.AttentionInterface.register(prefix_sharing.ATTENTION, hungry)
run_script(train_grpo.main)
"""


def test_ranks_agree_where_one_has_less_memory(tmp_path, dataset, start_adapter):
    """The run ends with the same weights as one on a process with memory enough."""
    options = {name: value for name, value in (GRPO | OFTEN).items() if name != "micro_batch_tokens"}
    options |= {"model": start_adapter, "dataset": dataset, "num_iterations": 1}
    script = tmp_path / "starved.py"
    script.write_text(STARVED.format(most_sequences=5, most_tokens=1300))
    places = {x: {"output_dir": tmp_path / x, "logging_dir": tmp_path / "logs" / x} for x in ("whole", "starved")}
    texts = {"whole": run_here("train_grpo", **options, **places["whole"])}
    texts["starved"] = launch(2, script, **options, **places["starved"])
    assert f"cache_tokens {CPU_CACHE:,}, micro_batch_tokens {CPU_UPDATE:,}\n" in texts["whole"]
    assert "out of memory" not in texts["whole"]
    assert "out of memory in a trial of the update: goes on with micro_batch_tokens 1024\n" in texts["starved"]
    assert f"cache_tokens {CPU_CACHE:,}, micro_batch_tokens 1,024\n" in texts["starved"]
    assert "out of memory in sampling: goes on with cache_tokens" in texts["starved"]
    settings = json.loads((tmp_path / "starved" / "checkpoint-2" / "run.json").read_text())["settings"]
    assert settings["micro_batch_tokens"] == 1024 and settings["cache_tokens"] < CPU_CACHE
    assert json.loads((tmp_path / "starved" / "training_config.json").read_text())["micro_batch_tokens"] == 1024
    whole, starved = (load_file(tmp_path / x / "checkpoint-2" / "adapter_model.safetensors") for x in texts)
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, starved[name], rtol=1e-4, atol=5e-5)
