"""README and docs/: every command is run or parsed, every link leads somewhere, every name is one of the code.

Commands that need no GPU and no hub are run in a user's directory, shortened, in the words of the page. What needs more
is parsed by test_configs.py, and ELSEWHERE says why it is not run here.
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
from datasets import load_from_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from preprocess import DataConfig, generated_rows
from training.health import SIGNS

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
RUN = {  # page: heading
    "README.md: The task in one example",
    "docs/data.md: Making a dataset",
    "docs/data.md: Names, stories and other words",
    "docs/data.md: More variables",
    "docs/data.md: Your own rows",
    "docs/data.md: Rows for others to take away",
    "docs/data.md: Which labels of a file are wrong",
    "docs/traces.md: Traces: reasoning that can be checked",
    "docs/traces.md: A model's own mistakes, corrected",
    "docs/evaluation.md: Evaluating and comparing",
    "docs/evaluation.md: A file of rows",
    "docs/evaluation.md: The majority of several samples",
    "docs/evaluation.md: Probabilities instead of answers",
    "docs/asking.md: Asking a model, and seeing whether it is right",
    "docs/memory.md: Memory: which recipe fits which card",
    "docs/memory.md: Hours: how long a recipe takes",
    "docs/scripts.md: Merging an adapter",
    "docs/grpo.md: A reward of your own",
}
ELSEWHERE = {
    "README.md: Two commands": "make demo below, make test is this",
    "README.md: Two GPUs": "a GPU",
    "README.md: Slurm": "test_slurm.py",
    "CONTRIBUTING.md: Setting up and checking": "these tests",
    "docs/installing.md: With pip": "these tests run in it",
    "docs/installing.md: With uv": "a network",
    "docs/installing.md: In a container": "Docker",
    "docs/asking.md: Question after question": "a question is awaited; test_explain.py",
    "docs/asking.md: A page to draw on": "a server; test_page.py",
    "docs/traces.md: A reasoner from random weights": "hours; test_benchmarks.py",
    "docs/record.md: A record to beat": "half an hour; test_benchmarks.py",
    "docs/record.md: Adding a line": "the same",
    "docs/integrations.md: Elsewhere: reasoning-gym, lm-evaluation-harness, verifiers": "make test-integrations",
    "docs/integrations.md: lm-evaluation-harness": "the same",
    "docs/integrations.md: verifiers": "the same",
    "docs/metrics.md: Watching a run, and what each number means": "a server; test_monitoring.py",
    "docs/scaling.md: Several machines": "GPUs; test_configs.py with Slurm replaced",
    "docs/scaling.md: A pretrained model, without a hub or a GPU": "hours; test_configs.py",
    "docs/interrupted_runs.md: Interrupted runs": "a GPU, and half an hour; test_resume.py",
    "docs/models.md: Models: which are right here, and how that is known": "test_architectures.py itself",
    "docs/prefix_sharing.md: What it gains": "hours; test_benchmarks.py",
    "docs/scripts.md: Where the time of an SFT step goes": "an hour; bf16 on CPUs is in test_launch.py",
}
TRAIN = ["--max_steps", "2", "--eval_rows", "8", "--max_new_tokens", "4", "--eval_steps", "0"]
SHORTER = {  # the last word on a setting counts
    "train_sft.py": [*TRAIN, "--batch_size", "8"],
    "train_grpo.py": [*TRAIN, "--prompts_per_step", "4", "--num_generations", "2"],
    "evaluate.py": ["--max_rows", "12", "--num_resamples", "10"],
    "preprocess.py": ["--num_variables", "3", "4"],
    "merge.py": ["--max_rows", "12"],
}


def sections() -> dict[str, list[list[str]]]:
    """By page and heading the commands of its shell blocks, continued lines joined, split into words."""
    found = {}
    for page, text in PAGES.items():
        heading = ""
        for title, kind, block in re.findall(r"^#+ ([^\n]+)$|^```(\w*)\n(.+?)^```", text, re.DOTALL | re.MULTILINE):
            heading = title or heading
            lines = block.replace("\\\n", " ").splitlines() if kind == "bash" else []
            commands = [words for words in (shlex.split(line, comments=True) for line in lines) if words]
            if commands:
                found.setdefault(f"{page}: {heading}", []).extend(commands)
    return found


def shortened(words: list[str]) -> list[str]:
    script = next((name for name in SHORTER if name in words), "")
    more = SHORTER.get(script, [])
    if "--compare" in words:
        more = []
    if "--source" in words and {"rows.csv", "corrections"} & set(words) or "--audit" in words:
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
    names = ["*.py", "reasoner", "configs", "accelerate_configs", "ds_configs", "Makefile", "requirements*.txt"]
    for path in (path for name in names for path in ROOT.glob(name)):
        (folder / path.name).symlink_to(path)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["input", "label", "num_variables", "template"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(generated_rows(DataConfig(num_variables=[3, 4])))
    return folder


@pytest.fixture
def run(user, monkeypatch):
    """Runs a command in the user's directory: in this process where it can be, since to import torch takes seconds."""
    monkeypatch.chdir(user)
    for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def run(words: list[str], launch: bool = True) -> str:
        script = next((word for word in words if word.endswith(".py")), "")
        if "launch" in words and (script == "evaluate.py" or not launch):
            words = ["python", *words[words.index(script) :]]
        if Path(words[0]).name == "python" and (ROOT / script).is_file():
            monkeypatch.setattr(sys, "argv", words[1:])
            assert not importlib.import_module(Path(script).stem).main(), shlex.join(words)
            return ""
        done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}"
        return done.stdout

    return run


def commands_of(*names: str) -> list[list[str]]:
    """The commands of RUN's sections of these pages, in the order of the page."""
    return [words for key, part in sections().items() if key.split(":")[0] in names and key in RUN for words in part]


def tags_of(folder: Path) -> set[str]:
    """What a run has logged as scalars."""
    return set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])


# --- commands


def test_every_command_is_run_or_said_to_be_tested_elsewhere():
    assert set(sections()) == {*RUN, *ELSEWHERE}


def test_commands_that_need_no_model(user, run, capsys):
    """Before there is any: the plan would be that of the small model in a large one's place."""
    assert not (user / "models").exists()
    for words in commands_of("README.md"):
        run(words)
    text = capsys.readouterr().out
    assert "A -> C, B -> C" in text and "Answer: Yes" in text
    for words in commands_of("docs/memory.md"):
        run(words)
    printed = capsys.readouterr().out
    plan, hours = re.findall(r"^```\n((?:microsoft|hours).+?)^```", PAGES["docs/memory.md"], re.DOTALL | re.MULTILINE)
    assert plan in printed and hours in printed, "docs/memory.md shows what the plan prints"


@pytest.fixture(scope="module")
def trained(user) -> Path:
    """Where the models of larger recipes would be, once `test_commands_of_the_data_pages` has made small ones."""
    if not (user / "models/mine_grpo").is_dir():
        pytest.skip("needs the models of test_commands_of_the_data_pages")
    return user


def test_commands_of_the_data_pages(user, run):
    for words in commands_of("docs/data.md"):
        run(shortened(words), launch=False)  # make demo below launches the same scripts in the same way
    assert (user / "data/audit/summary.json").is_file()
    first, *corrections = commands_of("docs/traces.md")
    run(shortened(first))
    shutil.copytree(user / "data/full_traces", user / "data/traces")  # in the places of what the recipes make
    shutil.copytree(user / "models/mine_sft", user / "models/traces_sft_model")
    for words in corrections:
        run(shortened(words), launch=False)
    assert "kept" in load_from_disk(str(user / "data/corrections"))["train"].column_names


def test_commands_of_evaluation(trained, run):
    """With the small models in the places of the larger ones."""
    for kind in ("sft", "grpo"):
        shutil.copytree(trained / f"models/mine_{kind}", trained / f"models/phi3_{kind}_model")
    shutil.copytree(trained / "models/mine_grpo", trained / "models/traces_grpo_model")
    shutil.rmtree(trained / "data/mine")
    worded = ["--perturbations", "paraphrase", "relabeling", "--instruction", "", "--relabelings", "2"]
    run(["python", "preprocess.py", "--num_variables", "3", "4", *worded, "--output_dir", "data/mine"])
    shutil.copytree(trained / "data/mine", trained / "data/phi3")
    run(shortened(["python", "evaluate.py", "--model", "models/phi3_sft_model"]))
    for words in commands_of("docs/evaluation.md", "docs/asking.md", "docs/scripts.md"):
        run(shortened(words))
    assert (trained / "example.png").stat().st_size > 0
    assert (trained / "evaluation_results/comparison/report.html").is_file()
    assert (trained / "models/phi3_grpo_model_merged/model.safetensors").is_file()


def test_a_task_of_ones_own_trains_as_the_page_says(trained, run):
    """The file of docs/grpo.md: rows that are no Corr2Cause, a reward by name, a metric that rewards nothing."""
    file = re.search(r"^```python\n(.+?)^```", PAGES["docs/grpo.md"], re.DOTALL | re.MULTILINE)[1]
    (trained / "copy_word.py").write_text(file)
    for words in commands_of("docs/grpo.md"):
        run(shortened(words), launch=False)
    assert {"reward/copied", "reward/brevity", "copy/words", "eval/reward"} <= tags_of(trained / "logs/copy")


def test_make_demo_runs_what_it_says(user, run):
    """Its commands with fewer steps, each as `make` would type it; what they log has a definition in docs/."""
    demo = user / "demo"
    lines = run(["make", "--dry-run", "demo", f"DEMO={demo}", "BIN=bin"]).replace("\\\n", " ").splitlines()
    (user / "bin").symlink_to(Path(sys.executable).parent)
    commands = [shlex.split(line) for line in lines if any(f" {script} " in line for script in SHORTER)]
    assert [next(s for s in SHORTER if s in words) for words in commands] == [
        *["preprocess.py"] * 2, "train_sft.py", "train_grpo.py", *["evaluate.py"] * 6
    ]  # fmt: skip
    for words in commands:
        while "=" in words[0]:
            words = words[1:]
        run(shortened(words))
    for words in ("evaluation", "evaluation/known_words"):
        assert (demo / words / "comparison/report.html").is_file()
    for stage in ("SFT", "GRPO"):
        tags = {tag for tag in tags_of(demo / "logs" / stage) if not tag.startswith(("health/sign_", "kept/"))}
        assert {tag for tag in tags if f"`{tag}`" not in PAGES["docs/metrics.md"]} == set()


# --- what the pages say


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 220
    assert len(PAGES["README.md"].split()) <= 2000


def anchors(text: str) -> set[str]:
    """The names by which GitHub lets a link reach a heading."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_image_is_there(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(path.read_text()), f"{page} links to {target}"


def test_every_page_is_reached_from_the_readme_and_every_figure_is_shown():
    for page in ROOT.glob("docs/*.md"):
        assert f"(docs/{page.name})" in PAGES["README.md"]
    for figure in ROOT.glob("docs/figures/*"):
        assert any(f"figures/{figure.name})" in text for text in PAGES.values()), figure.name


def test_every_sign_of_trouble_is_explained():
    for sign in SIGNS:
        assert f"`{sign.name}`" in PAGES["docs/troubleshooting.md"]


THEIRS = ("docs/from_the_guide.md", "CHANGELOG.md")  # they name what is not here


@pytest.mark.parametrize("page", [page for page in PAGES if page not in THEIRS])
def test_settings_and_files_that_a_page_names_exist(page):
    """What stands in `code` and looks like a setting, a metric or a file of the project is in its code."""
    kinds = ("*.py", "*/*.py", "tests/*/*.py", "configs/*.yaml", "*_configs/*", "slurm/*", "Makefile")
    files = [path for kind in kinds for path in ROOT.glob(kind) if path.is_file()]
    code = "\n".join(path.read_text() for path in files if path.name != Path(__file__).name)
    code += "\n".join(str(path.relative_to(ROOT)) for path in files)
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`\n]+)`", prose):
        for name in re.findall(r"(?<![\w/.-])[a-z]+(?:_[a-z0-9]+)+(?:\.\w+)?(?![\w/])", span):
            is_here = name in code or name.removeprefix("test_") in code  # a perturbed test set
            assert is_here, f"{page} names {name}"


def test_the_map_names_every_module():
    """CONTRIBUTING.md: every file of a package in its room's row, and no other."""
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.+) \|$", PAGES["CONTRIBUTING.md"], re.MULTILINE))
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(rows) == rooms
    for room, row in rows.items():
        files = {path.name for path in (ROOT / room).glob("*.py")} - {"__init__.py"}
        assert set(re.findall(r"`(\w+\.py)`", row)) == files, room
