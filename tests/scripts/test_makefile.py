"""The environments that `make` builds: from a Python that the project runs on, and anew where they are of another."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.specifiers import SpecifierSet

RULES = (".venv", ".venv-integrations")


def python_of(path: Path, version: str) -> Path:
    """A Python that says which version it is and makes environments as `venv` does, but installs nothing."""
    major, minor = version.split(".")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""#!/bin/sh
if [ "$1" = -c ]; then exec python3 -c "import sys; sys.version_info = ({major}, {minor}, 0); $2"; fi
mkdir -p "$3/bin"
[ -e "$3/bin/python" ] || cp "$0" "$3/bin/python"
echo 'echo pip "$@" >> pip.txt' > "$3/bin/pip"
chmod +x "$3/bin/pip"
""")
    path.chmod(0o755)
    return path


def make(folder: Path, environment: str, python: Path) -> subprocess.CompletedProcess:
    words = ["make", "-f", ROOT / "Makefile", f"{environment}/installed", f"PYTHON={python}"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(words, cwd=folder, env=clean, text=True, capture_output=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "integrations").mkdir()
    for name in ("requirements.txt", "requirements-dev.txt", "integrations/requirements.txt"):
        (tmp_path / name).write_text("torch==1\n")
    return tmp_path


@pytest.mark.parametrize("environment", RULES)
def test_a_python_that_is_too_old_or_new_is_refused_before_anything_is_downloaded(folder, environment):
    (required,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "requires-python" in line]
    allowed = SpecifierSet(required.split('"')[1])
    for version in ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "4.11"):
        done = make(folder, environment, python_of(folder / f"python{version}", version))
        assert (done.returncode == 0) == (version in allowed), (version, done.stdout, done.stderr)
        if version not in allowed:
            said = done.stderr.splitlines()[0]
            assert f"python{version} is no Python 3.11 to 3.13; name one: make" in said and "PYTHON=python3" in said
            assert not (folder / environment).exists() and not (folder / "pip.txt").exists()
            continue
        (folder / environment / "installed").unlink()
        subprocess.run(["rm", "-r", folder / environment, folder / "pip.txt"], check=True)


@pytest.mark.parametrize("environment", RULES)
def test_an_environment_of_another_version_is_made_anew(folder, environment):
    there = python_of(folder / environment / "bin/python", "3.10")
    (folder / environment / "of the older one").touch()
    assert make(folder, environment, python_of(folder / "python3.12", "3.12")).returncode == 0
    assert "3, 12" in there.read_text() and not (folder / environment / "of the older one").exists()
    (folder / environment / "installed").unlink()  # requirements have changed
    (folder / environment / "kept").touch()
    assert make(folder, environment, python_of(folder / "python3.12", "3.12")).returncode == 0
    assert (folder / environment / "kept").exists()
