"""Corrections: a model's own traces, each up to its first fault, with the exact steps from there on as the response.

So it is taught where it goes wrong, in the states that it gets into (DAgger; Ross, Gordon and Bagnell 2011, arXiv
1011.0686). A correction is a row of the dataset whose training rows the model has answered. What is right of its trace
stands at the end of the prompt, and in the column `kept`; the loss is that of the response alone.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from causal.reasoning import correction, trace
from causal.trace_text import write_steps
from causal.wording import parse_claim
from dataset.splits import subsample
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset


def corrected(row: dict, completion: str, style: str) -> dict | None:
    """The row, which has a trace in `style` as its response, corrected; None if the completion has all of its steps."""
    premise, claim = parse_claim(row["premise"], row["hypothesis"])
    before, exact, end = row["response"].partition(trace(premise, claim, style))
    check(bool(exact), f"predictions: the response to {row['input']!r} is not its trace; write the dataset again")
    found = correction(completion.removeprefix(before), premise, claim)
    if found is None:
        return None
    kept, steps = before + found[0], found[1]
    response = write_steps(steps, premise.variables, style) + end
    return row | {"prompt": row["prompt"] + kept, "response": response, "kept": kept}


def corrections_of(train: "Dataset", answers: Iterable[tuple[str, dict]], style: str) -> tuple[list[dict], Counter]:
    """Every (directory, prediction) of a row of `train` that needs it, corrected; and what became of them all.

    Of two corrections that agree one is kept. Raises ValueError naming the directory for a prediction of another row,
    and if there is nothing to correct.
    """
    rows = {row["input"]: row for row in train}
    found, fates = {}, Counter()
    for directory, answer in answers:
        row = rows.get(answer["input"])
        other = f"predictions: {directory} has a row that is not of the dataset's train: {answer['input'][:60]!r}..."
        check(row is not None, f"{other}; answer it with evaluate.py --split train")
        written = isinstance(answer.get("completion"), str)
        check(written, f"predictions: {directory} has no completions; use evaluate.py --mode generate")
        for completion in answer.get("completions", [answer["completion"]]):  # of several samples all
            new = corrected(row, completion, style)
            fate = "right" if new is None else "repeated" if (new["prompt"], new["response"]) in found else "corrected"
            fates[fate] += 1
            if fate == "corrected":
                found[new["prompt"], new["response"]] = new | {"row": f"correction {fates[fate] - 1}"}
    check(bool(found), f"predictions: nothing to correct, all {fates['right']:,} traces are right; answer other rows")
    return list(found.values()), fates


def mixed_with(corrections: list[dict], plain: list[dict], share: float, cap: int | None, seed: int) -> list[dict]:
    """Corrections as `share` of the rows, at most `cap` in all, and plain ones, as far as there are; random choices."""
    count = len(corrections) if cap is None else max(1, min(len(corrections), round(cap * share)))
    others = min(round(count * (1 - share) / share), len(plain) if cap is None else cap - count)
    chosen = subsample(corrections, count, [], f"{seed}-corrections")
    return chosen + (subsample(plain, others, [], f"{seed}-plain") if others else [])
