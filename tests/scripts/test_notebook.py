"""The notebook runs from its first cell to its last, shortened; what it leaves out without a GPU, it says."""

import json
import os
import subprocess

import papermill
import pytest
import torch
from conftest import ROOT


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    small = {"SFT_STEPS": 1, "GRPO_STEPS": 1, "TEST_ROWS": 12, "QWEN_STEPS": 1, "PLACE": str(tmp_path / "work")}
    executed = papermill.execute_notebook(
        ROOT / "notebook.ipynb", tmp_path / "executed.ipynb", parameters=small, cwd=ROOT, progress_bar=False
    )
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "Answer of reasoner" in text and "GRPO - SFT" in text
    assert any("image/png" in output.get("data", {}) for output in outputs), "the curve"
    assert any("<iframe" in output.get("data", {}).get("text/html", "") for output in outputs), "the report"
    if not torch.cuda.is_available():
        assert "Not run: Qwen2.5-1.5B needs a GPU." in text


def test_the_project_is_cloned_once_and_found_again_after_a_restart(tmp_path, monkeypatch):
    """A restart forgets the working directory, but not what was cloned into it."""
    cells = ["".join(cell["source"]) for cell in json.loads((ROOT / "notebook.ipynb").read_text())["cells"]]
    install = next(text for text in cells if "git clone" in text)
    git = ["git", "-C", str(tmp_path / "origin"), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin/train_grpo.py").touch()
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "All"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    with pytest.raises(ValueError, match="REPOSITORY: .* first cell"):
        exec(install, {"REPOSITORY": ""})
    assert not os.listdir()
    for _ in range(2):
        monkeypatch.chdir(tmp_path / "content")
        exec(install, {"REPOSITORY": str(tmp_path / "origin")})
        assert os.listdir("..") == ["project"] and os.path.exists("train_grpo.py")
