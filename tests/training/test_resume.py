"""Interrupted runs: resumed, they end bit for bit as undisturbed ones, and no process is left of one that died.

An interruption is made of an undisturbed run by taking its later checkpoints away, or by damaging them; its logs stay.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, launch, run_here
from launching import GRPO, OFTEN, SFT, curves
from safetensors.torch import load_file

from runtime.checkpoints import damage, list_checkpoints

LONG = 300  # seconds, which a busy machine may need
OFTEN = OFTEN | {"save_total_limit": 0, "logging_steps": 2}
STAGES = {
    "sft": SFT | OFTEN | {"max_steps": 6, "adaptation": "lora", "lora_dropout": 0.3},
    "grpo": GRPO | OFTEN | {"max_steps": 4},
}


def bits(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors below a directory: weights, and every rank's optimizer and random numbers."""
    files = sorted(directory.rglob("*.safetensors"))
    return {f"{f.relative_to(directory)}:{name}": t for f in files for name, t in load_file(f).items()}


def assert_same_run(a: Path, b: Path) -> None:
    first, second = bits(a / "model"), bits(b / "model")
    assert first.keys() == second.keys() and any("exp_avg" in name for name in first)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    one, other = curves(a / "logs"), curves(b / "logs")
    assert one.keys() == other.keys()
    assert [name for name in one if not name.startswith("perf/") and str(one[name]) != str(other[name])] == []
    assert (a / "model" / "best.json").read_text() == (b / "model" / "best.json").read_text()


def places(folder: Path) -> dict[str, Path]:
    return {"output_dir": folder / "model", "logging_dir": folder / "logs"}


def train(stage: str, folder: Path, processes: int = 2, **options) -> str:
    return launch(processes, f"train_{stage}.py", **(places(folder) | STAGES[stage] | options))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dataset, start_adapter):
    """Copies of an undisturbed run, and the options that it had."""
    folders: dict[tuple, Path] = {}
    options = {"dataset": dataset, "model": start_adapter}

    def copy(stage: str, setup: str, to: Path) -> tuple[Path, dict]:
        if (stage, setup) not in folders:
            folders[stage, setup] = tmp_path_factory.mktemp("undisturbed")
            train(stage, folders[stage, setup], setup=setup, **options)
        shutil.copytree(folders[stage, setup], to)
        return folders[stage, setup], options | {"setup": setup}

    return copy


def take_away(model: Path, first: int) -> None:
    """The checkpoints from this step on, and the note that the run has ended; the best model stays, as after a kill."""
    for checkpoint in list_checkpoints(model):
        if int(checkpoint.name.split("-")[1]) >= first:
            shutil.rmtree(checkpoint)
    (model / "finished.json").unlink()


@pytest.mark.parametrize("stage, setup", [("sft", "zero2_2xcpu_bf16"), ("grpo", "zero2_2xcpu")])
def test_a_resumed_run_is_an_undisturbed_one(tmp_path, undisturbed, stage, setup):
    """Across a change of epoch; the newest checkpoint is damaged, so that the one before it is used.

    Where a size is `auto` it is the interrupted run's, not what fits the memory now.
    """
    broken = tmp_path / "broken"
    whole, options = undisturbed(stage, setup, broken)
    take_away(broken / "model", 4)
    with (broken / "model" / "checkpoint-3" / "rank-1.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    (broken / "model" / ".checkpoint-4.tmp").mkdir()  # of a write that was killed
    text = train(stage, broken, resume_from="latest", micro_batch_tokens="auto", **options)
    assert "micro_batch_tokens 260\n" in text
    assert "checkpoint-3 is damaged, rank-1.safetensors is not as it was written" in text
    assert f"continues from {broken / 'model' / 'checkpoint-2'}" in text
    assert_same_run(whole, broken)
    assert not (broken / "model" / ".checkpoint-4.tmp").exists()


def test_on_other_processes_in_another_precision_with_another_seed_weights_alone_resume(tmp_path, undisturbed):
    folder = tmp_path / "run"
    _, options = undisturbed("sft", "zero2_2xcpu_bf16", folder)
    here = STAGES["sft"] | places(folder) | {name: options[name] for name in ("dataset", "model")}
    assert "already finished" in run_here("train_sft", **here, resume_from="latest")
    take_away(folder / "model", 5)
    with pytest.raises(ValueError, match="num_processes was 2 and is 1"):
        run_here("train_sft", **here, resume_from="latest")
    changed = {"setup": "zero2_2xcpu", "seed": 7, "resume_weights_only": True}
    train("sft", folder, 1, resume_from="latest", **(options | changed))
    assert [step for step, _ in curves(folder / "logs")["train/loss"]] == [2, 4, 6]
    assert json.loads((folder / "model" / "finished.json").read_text())["step"] in (4, 5, 6)


@pytest.fixture
def long_run(tmp_path, dataset):
    """Starts the launcher on a run that would take very long."""
    started = []

    def start(*options: str) -> subprocess.Popen:
        places = ["--output_dir", tmp_path / "model", "--logging_dir", tmp_path / "logs", "--dataset", dataset]
        settings = ["--max_steps", 100_000, "--batch_size", 4, "--save_steps", 5, "--eval_steps", 0, *options]
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        command = [*accelerate, "accelerate_configs/zero2_2xcpu.yaml", "train_sft.py", *places, *settings]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "REQUEUE_MARKER": str(tmp_path / "marker")}
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(LONG)  # to sync a checkpoint takes long on a busy disk
        with (tmp_path / "log").open("a") as log:
            started.append(subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, seconds: float = LONG) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    return sorted(map(int, children.split()))


def test_a_dead_rank_ends_the_run_and_a_signal_saves_it(tmp_path, long_run):
    launcher = long_run()
    wait_for(lambda: list_checkpoints(tmp_path / "model"))
    ranks = ranks_of(launcher)
    os.kill(ranks[1], signal.SIGKILL)
    assert launcher.wait(LONG) != 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), 60)
    assert not (tmp_path / "marker").exists(), "a run that died is not one that saved"

    before = list_checkpoints(tmp_path / "model")[-1]
    launcher = long_run("--resume_from", "latest")
    wait_for(lambda: list_checkpoints(tmp_path / "model")[-1] != before)
    launcher.terminate()
    assert launcher.wait(LONG) != 0
    log = (tmp_path / "log").read_text(errors="replace")
    assert "stopped by SIGTERM at step" in log
    last = list_checkpoints(tmp_path / "model")[-1]
    assert damage(last) is None
    assert (tmp_path / "marker").read_text() == f"{tmp_path / 'model'} step {last.name.split('-')[1]}\n"


@pytest.mark.parametrize("seconds", [0.0, pytest.param(3.0, marks=pytest.mark.slow)])
def test_ranks_end_with_their_launcher(long_run, seconds):
    """However early it dies."""
    launcher = long_run()
    wait_for(lambda: len(ranks_of(launcher)) == 2)
    ranks = ranks_of(launcher)
    time.sleep(seconds)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), 60)
