"""The project as somebody else has it: installed, from another working directory, beside the other library."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from causal.claims import exact_label
from causal.wording import parse_input


def asked(prompt: str) -> str:
    """The input text in a prompt: what follows the last 'Premise:', without the beginning of an answer."""
    return prompt[prompt.rindex("Premise:") :].removesuffix("Answer:").strip()


def label_of(prompt: str) -> int:
    """The exact label of what a prompt asks, from its text alone."""
    return exact_label(*parse_input(asked(prompt)))


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory) -> Callable[..., str]:
    """elsewhere(words, folder): runs a command in a folder where the project is installed, not present; its output."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    for name in ("causal", "integrations"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = os.environ | offline | {"PYTHONPATH": str(site), "PATH": programs}

    def elsewhere(words: list[str], folder: Path) -> str:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(words, cwd=folder, env=environment, text=True, **streams)
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}"
        return done.stdout

    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    elsewhere([sys.executable, *install, str(source)], source)
    return elsewhere


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """Rows of three to five variables with the released labels, as `preprocess.py --export` writes them."""
    folder = tmp_path_factory.mktemp("exported") / "rows"
    options = {"labels": "released", "max_test_samples": 200, "max_train_samples": 50, "export": folder}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["preprocess.py", "--num_variables", "3", "4", "5", *arguments])
        import preprocess

        preprocess.main()
    return folder
