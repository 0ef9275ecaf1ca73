"""Files of rows, predictions that no model has made, and the directories that evaluate.py would have written."""

import csv
import json
import random
from pathlib import Path


def write_csv(path: Path, rows: list[dict], columns=("input", "label", "num_variables", "template")) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def all_rows(splits: dict) -> list[dict]:
    return [row for part in splits.values() for row in part]


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


def write_predictions(
    directory: Path, accuracy: float, labels_seed: int = 0, name: str = "", rows: list[dict] | None = None
) -> Path:
    """What --compare reads of a run."""
    directory.mkdir()
    rows = rows or make_predictions(directory.name, accuracy, labels_seed)
    write_jsonl(directory / "predictions.jsonl", rows)
    (directory / "metrics.json").write_text(json.dumps({"name": name or directory.name}))
    return directory
