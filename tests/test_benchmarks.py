"""The benchmarks run, and count what they time."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_data_engine_times_every_stage(tmp_path):
    options = ["--num_variables", "3", "4", "--repeats", "1", "--json", str(tmp_path / "times.json")]
    command = [sys.executable, "benchmarks/data_engine.py", *options]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    figures = json.loads((tmp_path / "times.json").read_text())
    for labels in ("exact", "released"):
        assert [(entry["num_variables"], entry["row_count"]) for entry in figures[labels]] == [(3, 90), (4, 720)]
        assert all(0 < entry["rows"] <= entry["total"] for entry in figures[labels])
    assert figures["peak_gib"] > 0 and "all: 810 rows" in done.stdout
