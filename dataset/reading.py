"""Datasets of preprocess.py as the other scripts read them: a split's rows, and what report.json says of them."""

import hashlib
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

from causal.answers import extract_answer
from runtime.files import read_beside, sha256
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset

TRAINING_DATA = "training_data.json"
# Settings of preprocess.py: how its prompts and responses are written.
FORM = ("target", "trace_style", "instruction", "chat_template_args")


def load_split(
    directory: str, split: str, both_answers: bool = False, texts: bool = True, labels: bool | None = True
) -> "Dataset":
    """A split of a dataset that preprocess.py wrote, of which every row has a prompt, a response and a label.

    Without `texts` a label is enough, without `labels` the texts are; with None, labels are looked at if there are any,
    as rows of another task may have none. Raises ValueError if that is not so, and with `both_answers` if all labels
    agree.
    """
    check((Path(directory) / "dataset_dict.json").is_file(), f"dataset {directory}: not a dataset of preprocess.py")
    from datasets import load_from_disk  # seconds to import, which wrong settings need not wait for

    try:
        dataset = load_from_disk(directory)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"dataset {directory}: cannot be read ({reason}); write it again by preprocess.py") from None
    place = f"split {split}: dataset {directory}"
    check(split in dataset, f"{place} has {', '.join(dataset)}; preprocess.py makes the splits")
    rows = dataset[split]
    has_texts = "prompt" in rows.column_names
    check(has_texts or not texts, f"dataset {directory} was written with raw true: run preprocess.py with a tokenizer")
    check(len(rows) > 0, f"{place} has no rows in it; write it again by preprocess.py")
    if labels or (labels is None and "label" in rows.column_names):
        found = set(rows["label"]) if "label" in rows.column_names else {None}
        check(found <= {0, 1}, f"{place} has labels {sorted(map(str, found))[:4]}, not 0 or 1")
        one = f"{place}: every label is {min(found, default=0)}; nothing to learn"
        check(not both_answers or len(found) == 2, one)
    columns = ("prompt", "response") if texts else ()
    empty = [k for column in columns for k, text in enumerate(rows[column]) if not text]
    check(not empty, f"{place}: row {empty[:1]} has no prompt or no response; write it again by preprocess.py")
    return rows


def check_whole(rows: "Dataset", directory: str) -> None:
    """ValueError if prompts hold a part of the response (corrections.py): a completion of theirs is no whole trace."""
    whole = "kept" not in rows.column_names or not any(rows["kept"])
    check(whole, f"dataset {directory}: its train has corrections, for train_sft.py; name the dataset that they are of")


def split_names(directory: str) -> list[str]:
    """The dataset's splits, as `load_split` takes them. Raises ValueError for a directory that is no dataset."""
    file = Path(directory) / "dataset_dict.json"
    check(file.is_file(), f"dataset {directory}: not a dataset of preprocess.py")
    return json.loads(file.read_text())["splits"]


def choose_rows(rows: "Dataset", count: int, seed: int) -> "Dataset":
    """At most `count` rows, in their order: a random choice, since the first ones are the claims of a few premises."""
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows)))))


def premise_ids_of(rows: "Dataset") -> list[str]:
    """What names the premise that rows share; in rows of another task the prompt, which they then share in full."""
    return rows["premise_id"] if "premise_id" in rows.column_names else rows["prompt"]


def read_report(directory: str) -> dict:
    """What preprocess.py has written of a dataset in its report.json; empty if there is none."""
    report = Path(directory) / "report.json"
    try:
        return dict(json.loads(report.read_text())) if report.is_file() else {}
    except (ValueError, TypeError):
        raise ValueError(f"dataset {directory}: report.json cannot be read; write it again by preprocess.py") from None


def data_config(directory: str, setting: str, remedy: str) -> dict:
    """The configuration that preprocess.py wrote the dataset with; a ValueError names `setting`, which needs it."""
    report = read_report(directory)
    check(bool(report), f"{setting}: dataset {directory} has no report.json, which names its target; {remedy}")
    return report["config"]


def read_dataset_hash(directory: str) -> str:
    """The SHA-256 of its rows that preprocess.py has written beside them; of another's dataset, that of its tables."""
    if known := read_report(directory).get("dataset_hash"):
        return known
    tables = [f"{path.parent.name} {sha256(path)}" for path in sorted(Path(directory).glob("*/data-*.arrow"))]
    return hashlib.sha256("\n".join(tables).encode()).hexdigest()


def write_training_data(path: Path, directory: str, rows: "Dataset", model: str) -> None:
    """Write beside a model what it is trained on: the dataset's form, and the structures of `rows` and of `model`.

    `model` is what the training starts from, which knows those that it has seen itself.
    """
    config = read_report(directory).get("config", {})
    structures = set(rows["structure_id"]) if "structure_id" in rows.column_names else set()
    known = {"dataset_hash": read_dataset_hash(directory)} | {name: config[name] for name in FORM if name in config}
    known["structures"] = sorted(structures | set(training_data(model).get("structures", [])))
    (path / TRAINING_DATA).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def training_data(model: str) -> dict:
    """What `write_training_data` has written of a model, or of the run that a checkpoint is of; empty if unknown."""
    return read_beside(model, TRAINING_DATA)


def answer_candidates(directory: str, rows: "Dataset | dict", setting: str, remedy: str) -> list[tuple[str, str]]:
    """(No, Yes) for every row: its response, and the same with the answer swapped, whichever of them is the target.

    Raises ValueError, naming `setting` and `remedy`, unless the responses are answers alone: given only the prompt, the
    answer line that ends a reasoning is not what a model of reasoning was trained to say.
    """
    target = data_config(directory, setting, remedy)["target"]
    check(target == "answer", f"{setting}: dataset {directory} has target {target}, not answers alone; {remedy}")
    pairs = {}
    for response in set(rows["response"]):
        (no, count), (yes, _) = (re.subn(r"\b(?:Yes|No)\b", answer, response) for answer in ("No", "Yes"))
        readable = count == 1 and extract_answer(no) is False and extract_answer(yes) is True
        text = f"the response {response[:80]!r} of dataset {directory}"
        check(readable, f"{setting}: {text} is not one Yes or No; {remedy}")
        pairs[response] = no, yes
    return [pairs[response] for response in rows["response"]]
