"""Kills training runs at random moments and resumes them: do they end as if nothing had happened?

    python experiments/kills.py --kills 100                # half in SFT, half in GRPO; about 20 s a kill on two cores

Each kill is a SIGKILL of one rank or of the launcher: anywhere in a run's life, in training, or while a checkpoint is
being written. The run is resumed until it has finished, and its weights, optimizer states and TensorBoard curves are
compared, bit by bit, with those of a run that nobody disturbed. No checkpoint that was whole may be lost.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from benchmarks.common import is_there  # noqa: E402
from runtime.checkpoints import damage, list_checkpoints, step_of  # noqa: E402

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/zero2_2xcpu.yaml"]
SFT = {
    "max_steps": 24,
    "batch_size": 24,
    "claims_per_prefix": 6,
    "relabel_each_epoch": True,
    "adaptation": "lora",
    "lora_dropout": 0.1,
    "eval_steps": 6,
    "eval_rows": 12,
    "save_steps": 2,
    "logging_steps": 3,
}
GRPO = {
    "max_steps": 12,
    "prompts_per_step": 8,
    "num_generations": 4,
    "num_iterations": 2,
    "relabel_each_epoch": True,
    "max_new_tokens": 6,
    "learning_rate": 1e-3,
    "eval_steps": 4,
    "eval_rows": 12,
    "save_steps": 1,
    "logging_steps": 3,
}
VICTIMS = ("launcher", "rank 0", "rank 1")
MOMENTS = ("at any time", "in training", "in a checkpoint")


class Launch:
    """A training script under the launcher, and the processes that belong to it."""

    def __init__(self, script: str, settings: dict, log: Path):
        options = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*LAUNCH, script, *options], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def ranks(self) -> list[psutil.Process]:
        try:
            return sorted(psutil.Process(self.process.pid).children(), key=lambda rank: rank.pid)
        except psutil.NoSuchProcess:
            return []

    def is_training(self) -> bool:
        return " steps of " in self.log.read_text(errors="replace")

    def kill(self, victim: str) -> float | None:
        """SIGKILL `victim`; seconds until all processes had ended. None if there was nothing to kill any more."""
        ranks = self.ranks()
        wanted = {"launcher": self.process.pid} | {f"rank {k}": rank.pid for k, rank in enumerate(ranks)}
        if self.process.poll() is not None or victim not in wanted:
            return None
        os.kill(wanted[victim], signal.SIGKILL)
        start = time.monotonic()
        self.process.wait()
        while any(map(is_there, ranks)):
            time.sleep(0.05)
        return time.monotonic() - start


def wait_for(moment: str, launch: Launch, output_dir: Path, seconds: float, rng: random.Random) -> None:
    """Return at the moment to kill, or when the run has ended; `seconds` is how long an undisturbed run takes."""
    deadline = time.monotonic() + seconds
    if moment == "at any time":
        deadline = time.monotonic() + rng.uniform(0, seconds)
        while launch.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return
    while launch.process.poll() is None and not launch.is_training():
        time.sleep(0.01)
    if moment == "in training":
        time.sleep(rng.uniform(0, 0.4 * seconds))
        return
    for _ in range(rng.randint(1, 3)):  # of the next checkpoints one
        while launch.process.poll() is None and not any(output_dir.glob(".checkpoint-*.tmp")):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.02))


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard scalars but times: per name, (step, value)."""
    events = EventAccumulator(str(directory)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def differences(a: Path, b: Path) -> list[str]:
    """What differs, in files of tensors and in curves, between the folders of two runs."""
    found = []
    files = {path.relative_to(a) for path in a.rglob("*.safetensors")}
    if files != {path.relative_to(b) for path in b.rglob("*.safetensors")}:
        found.append("the files")
    for file in files:
        first, second = load_file(a / file), load_file(b / file)
        if first.keys() != second.keys() or any(not torch.equal(first[name], second[name]) for name in first):
            found.append(str(file))
    one, other = curves(a / "logs"), curves(b / "logs")
    return found + [name for name in one.keys() | other.keys() if str(one.get(name)) != str(other.get(name))]


def settings_of(stage: str, folder: Path, name: str) -> dict:
    place = folder / f"{stage}-{name}"
    places = {"dataset": folder / "data", "output_dir": place / "model", "logging_dir": place / "logs"}
    return places | {"model": folder / "start" / "model"} | (SFT if stage == "sft" else GRPO)


def run_through(stage: str, folder: Path, name: str) -> float:
    """An undisturbed run; its seconds."""
    settings = settings_of(stage, folder, name)
    start = time.monotonic()
    launch = Launch(f"train_{stage}.py", settings, folder / f"{stage}-{name}.log")
    assert launch.process.wait() == 0, launch.log.read_text()[-6000:]
    return time.monotonic() - start


def prepare(folder: Path) -> None:
    """The rows, and a model to start from."""
    options = ["--num_variables", "3", "--relabelings", "3", "--instruction", "", "--max_train_samples", "60"]
    command = [sys.executable, "preprocess.py", *options, "--output_dir", str(folder / "data")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    start = {"model": "tiny", "max_steps": 150, "batch_size": 24, "learning_rate": 3e-3, "save_steps": 0}
    places = {
        "dataset": folder / "data",
        "output_dir": folder / "start" / "model",
        "logging_dir": folder / "start/logs",
    }
    launch = Launch("train_sft.py", places | start, folder / "start.log")
    assert launch.process.wait() == 0, launch.log.read_text()[-6000:]


def disturbed_run(stage: str, folder: Path, kills: int, seconds: float, rng: random.Random, tally: Counter) -> bool:
    """A run that is killed up to `kills` times and resumed; whether it ended as the undisturbed one."""
    settings = settings_of(stage, folder, "killed")
    output_dir, log = Path(settings["output_dir"]), folder / f"{stage}-killed.log"
    shutil.rmtree(output_dir.parent, ignore_errors=True)
    newest = -1
    while True:
        launch = Launch(f"train_{stage}.py", settings | {"resume_from": "latest"}, log)
        if kills > 0:
            moment, victim = rng.choice(MOMENTS), rng.choice(VICTIMS)
            wait_for(moment, launch, output_dir, seconds, rng)
            writing = any(output_dir.glob(".checkpoint-*.tmp"))
            ended = launch.kill(victim)
            if ended is not None:
                kills -= 1
                tally["kills"] += 1
                tally[f"of {victim}"] += 1
                tally["in a checkpoint"] += writing
                tally["slowest end"] = max(tally["slowest end"], ended)
                whole = [step_of(path) for path in list_checkpoints(output_dir) if damage(path) is None]
                tally["checkpoints lost"] += max(whole, default=-1) < newest
                newest = max(whole, default=-1)
                continue
        if launch.process.wait() == 0:
            break
        print(launch.log.read_text()[-6000:])
        return False
    found = differences(folder / f"{stage}-undisturbed", folder / f"{stage}-killed")
    print(f"{stage}: finished after {tally['kills']} kills in all; {found or 'nothing'} differs", flush=True)
    return not found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, half of them in each stage")
    parser.add_argument("--kills_per_run", type=int, default=5, help="after which a run may finish")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    rng, tally, runs, same = random.Random(options.seed), Counter(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        seconds = {stage: run_through(stage, folder, "undisturbed") for stage in ("sft", "grpo")}
        assert run_through("sft", folder, "again") and not differences(folder / "sft-undisturbed", folder / "sft-again")
        for k, stage in enumerate(("sft", "grpo")):
            goal = options.kills * (k + 1) // 2
            while tally["kills"] < goal:
                kills = min(options.kills_per_run, goal - tally["kills"])
                same += disturbed_run(stage, folder, kills, seconds[stage], rng, tally)
                runs += 1
    tally |= {"runs": runs, "identical": same}
    if options.json:
        options.json.write_text(json.dumps(tally, indent=2) + "\n")
    victims = ", ".join(f"{name} {tally[f'of {name}']}" for name in VICTIMS)
    print(
        f"{tally['kills']} kills ({victims}; {tally['in a checkpoint']} while a checkpoint was written): {same} of "
        f"{runs} resumed runs identical to the undisturbed one, {tally['checkpoints lost']} checkpoints lost, all "
        f"processes gone after {tally['slowest end']:.1f} s at most"
    )
    sys.exit(same != runs or tally["checkpoints lost"] > 0)


if __name__ == "__main__":
    main()
