"""The notebook runs from its first cell to its last, shortened; what it leaves out without a GPU, it says."""

import papermill
import pytest
import torch
from conftest import ROOT


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    small = {"GRPO_STEPS": 1, "TEST_ROWS": 12, "QWEN_STEPS": 1, "PLACE": str(tmp_path / "work")}
    executed = papermill.execute_notebook(
        ROOT / "notebook.ipynb", tmp_path / "executed.ipynb", parameters=small, cwd=ROOT, progress_bar=False
    )
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "Answer of reasoner" in text and "GRPO - before" in text
    assert any("image/png" in output.get("data", {}) for output in outputs), "the curve"
    assert any("<iframe" in output.get("data", {}).get("text/html", "") for output in outputs), "the report"
    if not torch.cuda.is_available():
        assert "Not run: Qwen2.5-1.5B needs a GPU." in text
