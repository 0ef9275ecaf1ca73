"""What the tasks of lm-evaluation-harness in this directory call: rows, prompts and scores."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal.answers import extract_answer
from causal.questions import ANSWER_ALONE, REASONING, prompt_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SETTING = "corr2cause_data"  # of lm-eval's metadata


def load(**metadata: Any) -> "DatasetDict":
    """The rows that `preprocess.py --export` has written to the directory that the metadata names.

    Raises ValueError if there are none.
    """
    from datasets import load_dataset

    directory = Path(metadata.get(SETTING, "data/exported"))
    if not list(directory.glob("default/*.parquet")):
        raise ValueError(
            f"{SETTING}: {directory} has no rows; write some with preprocess.py --export DIR, "
            f'and name them with --metadata \'{{"{SETTING}": "DIR"}}\''
        )
    return load_dataset(str(directory))


def exact(rows: "Dataset") -> "Dataset":
    """The rows that have an exact label, with it as `target`."""
    return rows.filter(lambda row: row["exact_label"] is not None).rename_column("exact_label", "target")


def given(rows: "Dataset") -> "Dataset":
    """The rows with the label that their source gives as `target`."""
    return rows.rename_column("given_label", "target")


def asked(row: dict) -> str:
    return prompt_of(row["input"], REASONING)


def asked_for_a_choice(row: dict) -> str:
    return prompt_of(row["input"], ANSWER_ALONE)


def score(row: dict, results: list[str]) -> dict[str, Any]:
    """A row's part of each metric. No answer is a wrong one, to F1 too: the class opposite to the label."""
    answer, label = extract_answer(results[0]), row["target"]
    right = answer is bool(label)
    return {"f1": (label, label if right else 1 - label), "acc": float(right), "unanswered": float(answer is None)}


def f1(pairs: list[tuple[int, int]]) -> float:
    """F1 of Yes, of (label, answer) of every row, by the harness's own function.

    Under its own name the harness would resample the rows 100,000 times for a standard error: minutes, for rows that
    are not independent, since those of a premise are right or wrong together.
    """
    from lm_eval.api.metrics import f1_score

    return float(f1_score(pairs))
