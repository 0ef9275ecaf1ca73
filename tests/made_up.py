"""Predictions that no model has made, and the directories that evaluate.py would have written of them."""

import json
import random
from pathlib import Path


def make_predictions(name: str, accuracy: float, labels_seed: int = 0) -> list[dict]:
    """Rows of a model that is right on about `accuracy` of 120 rows with 12 premises, and sometimes says nothing."""
    labels, answers = random.Random(labels_seed), random.Random(name)
    rows = []
    for i in range(120):
        label = int(labels.random() < 0.3)
        prediction = None if answers.random() < 0.05 else label if answers.random() < accuracy else 1 - label
        row = {"input": f"row {i}", "label": label, "prediction": prediction, "completion": "", "stopped": True}
        places = {"premise_id": f"p{i % 12}", "structure_id": f"s{i % 6}", "num_variables": 3 + i % 2}
        rows.append({**row, **places, "template": ("parent", "has_collider")[i % 2]})
    return rows


def write_predictions(directory: Path, accuracy: float, labels_seed: int = 0, name: str = "") -> Path:
    """What --compare reads of a run."""
    directory.mkdir()
    rows = make_predictions(directory.name, accuracy, labels_seed)
    (directory / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "metrics.json").write_text(json.dumps({"name": name or directory.name}))
    return directory
