"""The launch commands as a user types them, on two CPU processes under ZeRO-2; all tests share a few launches.

Two processes, one without the launcher and DeepSpeed, and a loop in plain PyTorch must give the same weights: an uneven
number of rows and prompts makes the ranks' shares, and their numbers of micro-batches, differ.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, launch, padded_logps, run_here
from datasets import load_from_disk
from launching import GRPO, OFTEN, SFT, assert_all_finite, curves
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from causal.tiny import tiny_model
from dataset.chat import encode
from dataset.relabelling import FreshRows
from policy.loading import save_model
from policy.prefix_sharing import ATTENTION
from train_sft import Config as SftConfig
from train_sft import learning_rate, plan_steps

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("launch")


def train(processes: int, script: str, **options) -> None:
    """With `processes` 0 in this process, without the launcher and DeepSpeed."""
    if processes:
        launch(processes, f"{script}.py", **options)
    else:
        run_here(script, **options)


def launch_sft(folder: Path, dataset: Path, processes: int, name: str = "", **options) -> Path:
    output = folder / f"sft_{name or processes}"
    places = {"dataset": dataset, "output_dir": output, "logging_dir": folder / "logs" / output.name}
    train(processes, "train_sft", model="tiny", **places, **SFT, **OFTEN, keep_best=False, **options)
    return output


@pytest.fixture(scope="module")
def sft_two(folder, dataset):
    return launch_sft(folder, dataset, 2)


@pytest.fixture(scope="module")
def sft_one(folder, dataset):
    return launch_sft(folder, dataset, 0, "1")


@pytest.fixture(scope="module")
def sft_plain(folder, dataset):
    return launch_sft(folder, dataset, 0, "plain", prefix_sharing=False)


def launch_grpo(folder: Path, dataset: Path, adapter: Path, processes: int, name: str = "", **options) -> Path:
    output = folder / f"grpo_{name or processes}"
    places = {"dataset": dataset, "output_dir": output, "logging_dir": folder / "logs" / output.name}
    train(processes, "train_grpo", model=adapter, **places, **(GRPO | OFTEN | options))
    return output


@pytest.fixture(scope="module")
def grpo_two(folder, dataset, start_adapter):
    return launch_grpo(folder, dataset, start_adapter, 2)


@pytest.fixture(scope="module")
def grpo_one(folder, dataset, start_adapter):
    return launch_grpo(folder, dataset, start_adapter, 0, "1")


@pytest.fixture(scope="module")
def grpo_plain(folder, dataset, start_adapter):
    return launch_grpo(folder, dataset, start_adapter, 0, "plain", prefix_sharing=False)


def assert_same_weights(a: Path, b: Path, file: str) -> None:
    """Equal but for rounding; Adam's steps are of the size of the rate, 1e-2, however small the gradient it rounds."""
    first, second = load_file(a / file), load_file(b / file)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=5e-5, msg=lambda m, name=name: f"{name}: {m}")


def assert_same_curves(a: Path, b: Path, rel: float = 1e-4) -> None:
    """Everything that is logged, except speeds and rounding."""
    first, second = curves(a), curves(b)
    assert first.keys() == second.keys()
    for name, points in first.items():
        if not name.startswith(("perf/", "health/sampling_", "health/weight_sum", "health/reference_")):
            assert [s for s, _ in points] == [s for s, _ in second[name]], name
            assert [v for _, v in points] == pytest.approx([v for _, v in second[name]], rel=rel, abs=1e-5), name


# --- supervised


def test_sft_writes_a_model_its_checkpoints_and_its_configuration(sft_two, folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(sft_two)
    start = dict(tiny_model(0, ATTENTION).named_parameters())
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters())
    assert {p.name for p in sft_two.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    config = json.loads((sft_two / "training_config.json").read_text())
    assert {name: config[name] for name in SFT} == SFT
    logged = curves(folder / "logs" / "sft_2")
    assert_all_finite(logged)
    losses = [value for _, value in logged["train/loss"]]
    assert [step for step, _ in logged["train/loss"]] == [1, 2, 3, 4] and losses[-1] < losses[0]
    assert [value for _, value in logged["health/step_skipped"]] == [0, 0, 0, 0]


def test_sft_on_two_processes_equals_one(sft_two, sft_one, folder):
    assert_same_weights(sft_two, sft_one, "model.safetensors")
    assert_same_curves(folder / "logs" / "sft_2", folder / "logs" / "sft_1")


def test_sft_with_shared_prefixes_equals_sft_without(sft_one, sft_plain, folder):
    assert_same_weights(sft_one, sft_plain, "model.safetensors")
    assert_same_curves(folder / "logs" / "sft_1", folder / "logs" / "sft_plain")


def test_sft_equals_a_loop_in_plain_pytorch(sft_two, dataset, folder, tokenizer):
    """Row by row, AdamW and clipping by torch: no packing, no micro-batches, no DeepSpeed."""
    rows, config = load_from_disk(dataset)["train"], SftConfig(**SFT)
    epochs = [FreshRows(rows, None, config.seed).columns(epoch) for epoch in (0, 1)]
    model = tiny_model(0, ATTENTION)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    steps, losses, norms = plan_steps(rows["premise_id"], config), [], []
    assert [epoch for epoch, _ in steps] == [0, 0, 0, 1]
    for number, (epoch, groups) in enumerate(steps):
        texts = [(epochs[epoch]["prompt"][i], epochs[epoch]["response"][i]) for group in groups for i in group]
        prompts, completions = ([encode(tokenizer, text) for text in column] for column in zip(*texts, strict=True))
        logps, mask = padded_logps(model, prompts, completions)
        loss = -logps.sum() / mask.sum()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, len(steps), config)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    logged = curves(folder / "logs" / "sft_2")
    assert [value for _, value in logged["train/loss"]] == pytest.approx(losses, rel=1e-4)
    assert [value for _, value in logged["train/grad_norm"]] == pytest.approx(norms, rel=1e-3)
    assert max(norms) > config.max_grad_norm, "a run without clipping tests no clipping"
    save_model(model, tokenizer, folder / "torch")
    assert_same_weights(sft_two, folder / "torch", "model.safetensors")


# --- GRPO


def test_grpo_writes_an_adapter_and_its_checkpoints(grpo_two, start_adapter, folder):
    assert {p.name for p in grpo_two.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    before, after = (load_file(path / ADAPTER) for path in (start_adapter, grpo_two / "checkpoint-2"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert json.loads((grpo_two / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        start_adapter.parent / "base"
    )
    config = json.loads((grpo_two / "training_config.json").read_text())
    assert {name: config[name] for name in GRPO} == GRPO


def test_grpo_logs_what_must_hold(grpo_two, folder):
    logged = {name: [v for _, v in points] for name, points in curves(folder / "logs" / "grpo_2").items()}
    assert_all_finite(curves(folder / "logs" / "grpo_2"))
    assert all(value > 0 for value in logged["reward/group_std"]), "no reward differs: nothing was tested"
    assert logged["health/first_ratio_deviation"] == [0, 0], "the first pass is on policy"
    assert max(logged["health/sampling_logp_gap"]) < 1e-3, "sampling and scoring see the same policy"
    assert min(logged["policy/kl"]) > 0, "the second pass of each rollout has left the reference"
    assert logged["health/weight_change"][1] > 0 and logged["health/step_skipped"] == [0, 0]


def test_grpo_on_two_processes_equals_one(grpo_two, grpo_one, folder):
    assert_same_curves(folder / "logs" / "grpo_2", folder / "logs" / "grpo_1", rel=1e-3)
    for checkpoint in ("checkpoint-1", "checkpoint-2"):
        assert_same_weights(grpo_two / checkpoint, grpo_one / checkpoint, ADAPTER)


def test_grpo_with_shared_prefixes_equals_grpo_without(grpo_one, grpo_plain, folder):
    assert_same_curves(folder / "logs" / "grpo_1", folder / "logs" / "grpo_plain", rel=1e-3)
    for checkpoint in ("checkpoint-1", "checkpoint-2"):
        assert_same_weights(grpo_one / checkpoint, grpo_plain / checkpoint, ADAPTER)


def test_grpo_keeps_the_adapter_of_the_best_evaluation(grpo_two, start_adapter, folder):
    """Among equals, any."""
    evaluations = curves(folder / "logs" / "grpo_2")["eval/f1"]
    assert [step for step, _ in evaluations] == [0, 1, 2]
    best = max(value for _, value in evaluations)
    kept = load_file(grpo_two / ADAPTER)
    after = [start_adapter, grpo_two / "checkpoint-1", grpo_two / "checkpoint-2"]
    weights = [load_file(after[step] / ADAPTER) for step, f1 in evaluations if f1 == best]
    assert any(all(torch.equal(tensor, w[name]) for name, tensor in kept.items()) for w in weights)


# --- evaluation


def test_evaluate_scores_the_adapter(grpo_two, dataset, folder):
    output = folder / "evaluation"
    run_here("evaluate", model=grpo_two, dataset=dataset, split="test", output_dir=output, num_resamples=50)
    predictions = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    rows = load_from_disk(dataset)["test"]
    assert [p["input"] for p in predictions] == rows["input"] and [p["label"] for p in predictions] == rows["label"]
    assert {p["prediction"] for p in predictions} <= {0, 1, None}
    assert json.loads((output / "metrics.json").read_text())


# --- half precision


def test_without_a_gpu_its_configuration_is_refused(folder, dataset, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    options = {"dataset": dataset, "output_dir": folder / "refused", "logging_dir": folder / "logs" / "refused"}
    with pytest.raises(
        AssertionError, match="error: the launch configuration is for GPUs .bf16.*zero2_2xcpu_bf16.yaml"
    ):
        launch(1, "train_sft.py", setup="zero2_2xl4", **options)
    assert not (folder / "refused").exists()


def test_the_configuration_of_two_l4_trains_in_bf16(folder, dataset, sft_two, monkeypatch):
    """As it is, without the GPUs: the casts, the tolerances, the sums in fp32. Losses are about those of fp32."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    output, logs = folder / "sft_bf16", folder / "logs" / "sft_bf16"
    options = {"model": "tiny", "dataset": dataset} | SFT | OFTEN | {"eval_steps": 0, "save_steps": 0}
    launch(2, "train_sft.py", "zero2_2xl4", **options, output_dir=output, logging_dir=logs)
    exact = [value for _, value in curves(folder / "logs" / sft_two.name)["train/loss"]]
    assert [value for _, value in curves(logs)["train/loss"]] == pytest.approx(exact, rel=0.05)


# --- several machines


@pytest.mark.slow
def test_two_machines_are_as_two_processes(folder, dataset, sft_two):
    """Two launches of one rank each, as on two nodes, that meet on this machine's loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = folder / "sft_machines"
    options = {"model": "tiny", "dataset": dataset, "output_dir": output, "logging_dir": folder / "logs" / "machines"}
    options |= SFT | OFTEN | {"keep_best": False}
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    accelerate += ["--config_file", "accelerate_configs/multi_node.yaml", "--num_processes", 2]
    # On a CPU: fp32, and gloo must be told which way to go.
    accelerate += ["--deepspeed_config_file", "ds_configs/zero2_fp32.json", "--main_process_ip", "127.0.0.1"]
    accelerate += ["--main_process_port", port]
    arguments = ["train_sft.py", *(part for name, value in options.items() for part in (f"--{name}", value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [
        subprocess.Popen(
            list(map(str, [*accelerate, "--machine_rank", rank, *arguments])),
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    texts = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(text[-2000:] for text in texts)
    assert_same_weights(output, sft_two, "model.safetensors")
