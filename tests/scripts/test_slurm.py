"""The jobs of slurm/ through a real Slurm of one node: the pipeline, a preempted and a signalled run, a failing stage.

make test-slurm          # installs Debian's slurmctld, slurmd and munge, as root, and runs these
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [name for name in NEEDED if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: make test-slurm does it"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons need root"),
]
SETTINGS = """
export SBATCH_PARTITION=low
GPU_JOB="--gres=gpu:2 --time=00:30:00"
CPU_JOB="--time=00:30:00"
LAUNCH=accelerate_configs/zero2_2xcpu.yaml
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
if [ -n "${SLURM_JOB_ID:-}" ]; then
    source .venv/bin/activate
fi
"""
SMALL = {  # as a user shortens the recipes of the tiny model
    "data_tiny": "num_variables: [3]\nrelabelings: 3\nmax_train_samples: 60\n",
    "sft_tiny": "max_steps: 400\nbatch_size: 24\neval_rows: 12\nsave_steps: 20\neval_steps: 200\n",
    "grpo_tiny": "max_steps: 4\nprompts_per_step: 8\nnum_generations: 4\neval_rows: 12\n",
}
GOOD, ENDED = "COMPLETED", ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def in_environment(place: str) -> bool:
    """Whether programs there are of a virtual environment: a job must find them by slurm/settings.sh alone."""
    return (Path(place) / "activate").is_file()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([ROOT / "tests" / "slurm_cluster.sh", "start", folder], check=True)
    path = os.pathsep.join(place for place in os.environ["PATH"].split(os.pathsep) if not in_environment(place))
    inherited = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "SLURM_JOB_ID")}
    yield inherited | {"PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run([ROOT / "tests" / "slurm_cluster.sh", "stop", folder], check=True)


class Project:
    """A copy of this project whose settings fit the cluster, and commands in it."""

    def __init__(self, folder: Path, cluster: dict):
        self.folder, self.environment = folder, cluster
        packages = [path.parent.name for path in ROOT.glob("[!.]*/__init__.py")]
        names = ["*.py", *packages, "configs", "accelerate_configs", "ds_configs", "slurm"]
        for path in (path for name in names for path in ROOT.glob(name)):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
        (folder / ".venv").symlink_to(Path(os.environ.get("VIRTUAL_ENV", ROOT / ".venv")).resolve())
        (folder / "slurm" / "settings.sh").write_text(SETTINGS)
        (folder / "logs").mkdir()
        for name, text in SMALL.items():
            path = folder / "configs" / f"{name}.yaml"
            fields = [line.split(":")[0] for line in text.splitlines()]
            kept = [line for line in path.read_text().splitlines() if line.split(":")[0] not in fields]
            path.write_text("\n".join(kept) + f"\n{text}")

    def run(self, *command, **environment: str) -> str:
        environment = self.environment | environment
        done = subprocess.run(command, cwd=self.folder, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *options) -> str:
        return self.run("sbatch", "--parsable", *map(str, options), SBATCH_PARTITION="low").strip()

    def job(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", job)))

    def wait(self, *jobs: str, seconds: float = 900) -> list[str]:
        """The states in which the jobs have ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            states = [self.job(job)["JobState"] for job in jobs]
            if all(state in ENDED for state in states):
                return states
            time.sleep(1)
        raise AssertionError(f"{states} after {seconds} s: {self.logs()}")

    def wait_for(self, condition, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in self.folder.glob("logs/*.out")
        )

    def pipeline(self) -> tuple[str, dict[str, str]]:
        """What slurm/pipeline.sh prints, and the job of each stage."""
        printed = self.run("slurm/pipeline.sh", "tiny")
        return printed, dict(re.findall(r"^(\S+): job (\d+)", printed, re.MULTILINE))


@pytest.fixture
def project(tmp_path, cluster) -> Project:
    return Project(tmp_path, cluster)


def test_the_pipeline_runs_and_is_not_run_twice(project):
    printed, jobs = project.pipeline()
    assert list(jobs) == ["preprocess", "sft", "grpo", "evaluate-sft", "evaluate-grpo", "compare"]
    assert f"squeue --jobs {','.join(jobs.values())}" in printed
    assert project.wait(*jobs.values()) == [GOOD] * 6, project.logs()
    for file in ("comparison.json", "comparison.png"):
        assert (project.folder / "evaluation_results" / "tiny_comparison" / file).is_file()
    printed, jobs = project.pipeline()
    assert jobs == {} and printed.count(": finished, ") == 6


def test_a_failing_stage_stops_the_rest(project):
    config = project.folder / "configs" / "sft_tiny.yaml"
    config.write_text(config.read_text().replace("model: tiny\n", "model: models/nowhere\n"))
    _, jobs = project.pipeline()
    states = project.wait(*jobs.values())
    assert dict(zip(jobs, states, strict=True)) == {
        "preprocess": GOOD, "sft": "FAILED",
        "grpo": "CANCELLED", "evaluate-sft": "CANCELLED", "evaluate-grpo": "CANCELLED", "compare": "CANCELLED",
    }  # fmt: skip
    log = (project.folder / "logs" / f"tiny-sft-{jobs['sft']}.out").read_text(errors="replace")
    assert "error: model models/nowhere: no such directory" in log


def test_a_preempted_and_a_signalled_run_end_as_an_undisturbed_one(project):
    options = ("slurm/train.slurm", "train_sft.py", "configs/sft_tiny.yaml")
    prepared = project.submit("slurm/preprocess.slurm", "configs/data_tiny.yaml")
    assert project.wait(prepared) == [GOOD], project.logs()
    undisturbed = project.submit(*options, "--output_dir", "models/a", "--logging_dir", "logs/a")
    assert project.wait(undisturbed) == [GOOD], project.logs()

    job = project.submit(*options, "--output_dir", "models/b", "--logging_dir", "logs/b")
    place = project.folder / "models" / "b"
    project.wait_for(lambda: any(place.glob("checkpoint-*")))
    urgent = project.submit("--partition=high", "--gres=gpu:2", "--output=logs/urgent.out", "--wrap", "sleep 2")
    assert project.wait(urgent) == [GOOD]
    saved = {path.name for path in place.glob("checkpoint-*")}
    project.wait_for(lambda: "continues from" in project.logs())
    project.wait_for(lambda: {path.name for path in place.glob("checkpoint-*")} != saved)
    project.run("scancel", "--batch", "--signal=USR1", job)
    assert project.wait(job) == [GOOD], project.logs()

    log = (project.folder / "logs" / f"train-{job}.out").read_text(errors="replace")
    assert int(project.job(job)["Restarts"]) == 2 and log.count("continues from") == 2, log
    assert log.count("stopped by SIGTERM") == log.count("requeued: ") == 2, log
    first, second = (load_file(project.folder / "models" / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
