"""README's commands, run in a user's directory: those that need no GPU and no hub, shortened, in the README's words.

What needs a GPU or the hub is parsed by test_configs.py, jobs run in test_slurm.py, a resumed run in test_resume.py.
"""

import csv
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from causal.rows import generate_rows

RUN = ("Your own rows", "The data", "Evaluating and comparing", "Which recipe fits which card")
ELSEWHERE = {
    "Two commands": "make demo below, make test is this",
    "A run on two GPUs": "a GPU",
    "On SLURM": "test_slurm.py",
    "Watching a run": "test_tensorboard.py",
    "Scaling up": "a GPU; test_configs.py with Slurm replaced",
    "Interrupted runs": "a GPU; test_resume.py",
    "A pretrained model, without a hub or a GPU": "hours; test_configs.py",
    "One forward pass for everything that shares a prefix": "hours; test_benchmarks.py",
}
TRAIN = ["--max_steps", "2", "--eval_rows", "8", "--max_new_tokens", "4", "--eval_steps", "0"]
SHORTER = {  # the last word on a setting counts
    "train_sft.py": [*TRAIN, "--batch_size", "8"],
    "train_grpo.py": [*TRAIN, "--prompts_per_step", "4", "--num_generations", "2"],
    "evaluate.py": ["--max_rows", "12", "--num_resamples", "10"],
    "preprocess.py": ["--num_variables", "3", "4"],
}


def sections() -> dict[str, list[list[str]]]:
    """The commands of each section, continued lines joined, split into words."""
    found = {}
    for part in re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"```bash\n(.+?)```", part, re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        commands = [shlex.split(line, comments=True) for line in lines]
        found[part.split("\n")[0]] = [words for words in commands if words]
    return {name: commands for name, commands in found.items() if commands}


def shortened(words: list[str]) -> list[str]:
    script = next((name for name in SHORTER if name in words), "")
    more = SHORTER.get(script, [])
    if "--compare" in words or "--plan" in words:
        more = []
    if "--source" in words and "rows.csv" in words or "--audit" in words:
        more = []
    if "size" in words:
        more = ["--num_variables", "4", "5", "--structures", "10", "--test_sizes", "5"]
    if "--num_samples" in words:
        more = [*more, "--num_samples", "3", "--max_new_tokens", "20"]
    return [*words, *more]


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """A directory with the project's files, a user's rows, and names of larger models that are small here."""
    folder = tmp_path_factory.mktemp("user")
    names = ["*.py", "configs", "accelerate_configs", "ds_configs", "Makefile", "requirements*.txt"]
    for path in (path for name in names for path in ROOT.glob(name)):
        (folder / path.name).symlink_to(path)
    rows = [row for n in (3, 4) for row in generate_rows(n)]
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["input", "label", "num_variables", "template"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def run(user, monkeypatch):
    """Runs a command in the user's directory: in this process where it can be, since to import torch takes seconds."""
    monkeypatch.chdir(user)
    for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def run(words: list[str]) -> str:
        if "launch" in words and "evaluate.py" in words:
            words = ["python", *words[words.index("evaluate.py") :]]
        if Path(words[0]).name == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            module = Path(words[1]).stem.replace("corr2cause", "explain")
            assert not importlib.import_module(module).main(), shlex.join(words)
            return ""
        done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}"
        return done.stdout

    return run


def test_every_command_is_run_or_said_to_be_tested_elsewhere():
    assert set(sections()) == {*RUN, *ELSEWHERE}


def test_commands_for_a_cpu_work_as_they_are_written(user, run):
    commands = sections()
    for words in (*commands["Your own rows"], *commands["The data"]):
        run(shortened(words))
    # As if the larger models had been trained.
    for kind in ("sft", "grpo"):
        shutil.copytree(user / f"models/mine_{kind}", user / f"models/phi3_{kind}_model")
        shutil.copytree(user / f"logs/mine_{kind}", user / f"logs/phi3_{kind}")
    shutil.copytree(user / "models/mine_grpo", user / "models/traces_grpo")
    shutil.rmtree(user / "data/mine")
    worded = ["--perturbations", "paraphrase", "relabeling", "--instruction", "", "--relabelings", "2"]
    run(["python", "preprocess.py", "--num_variables", "3", "4", *worded, "--output_dir", "data/mine"])
    shutil.copytree(user / "data/mine", user / "data/phi3")
    run(shortened(["python", "evaluate.py", "--model", "models/phi3_sft_model"]))
    for words in (*commands["Evaluating and comparing"], *commands["Which recipe fits which card"]):
        run(shortened(words))
    assert (user / "example.png").stat().st_size > 0
    assert (user / "evaluation_results/comparison/report.html").is_file()


def test_make_demo_runs_what_it_says(user, run):
    """Its commands with fewer steps, each as `make` would type it."""
    demo = user / "demo"
    lines = run(["make", "--dry-run", "demo", f"DEMO={demo}", "BIN=bin"]).replace("\\\n", " ").splitlines()
    (user / "bin").symlink_to(Path(sys.executable).parent)
    commands = [shlex.split(line) for line in lines if any(f" {script} " in line for script in SHORTER)]
    assert [next(s for s in SHORTER if s in words) for words in commands] == [
        "preprocess.py", "train_sft.py", "train_grpo.py", *["evaluate.py"] * 3
    ]  # fmt: skip
    for words in commands:
        while "=" in words[0]:
            words = words[1:]
        run(shortened(words))
    assert (demo / "evaluation/comparison/report.html").is_file()
