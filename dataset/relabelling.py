"""Rows in fresh letters and words: the same questions, asked anew in every epoch."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from causal.graphs import Claim, Premise
from causal.reasoning import trace
from causal.rows import DRAWN_LETTERINGS, draw_letters, render
from causal.wording import WORDINGS, parse_claim, wording_of, write_input
from dataset.reading import data_config
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("prompt", "response", "premise", "hypothesis", "input", "kept")


def trace_style(directory: str) -> str | None:
    """The style of the dataset's traces; None if its responses are answers alone.

    Raises ValueError if they are neither: letters in a teacher's free text cannot be told from words.
    """
    config = data_config(directory, "relabel_each_epoch", "use relabel_each_epoch false")
    check(config["target"] != "teacher", "relabel_each_epoch: not for target teacher; use target answer or trace")
    return config["trace_style"] if config["target"] == "trace" else None


class _Parsed(NamedTuple):
    """A row that can be written anew: what it asks, and the text around its input and its trace."""

    premise_id: str
    premise: Premise
    claim: Claim
    template: str
    wording: str
    prompt: tuple[str, str]
    response: tuple[str, str]


class FreshRows:
    """The rows of a dataset as an epoch has them: the letters of every premise exchanged, hypotheses in other words.

    Corrections (corrections.py) stay as they are: a trace in other letters would be in another order.

    `style` is that of their traces, which are written anew; with None responses stay. `wordings` and `letterings`, by
    name, are drawn from; without any, a hypothesis keeps its words, and a premise its letters, in another order. An
    epoch is a function of (seed, epoch) and the row: rows of one premise keep one, and an epoch repeats itself. Raises
    ValueError for an unknown name, and for a row whose prompt or response has other text in it.
    """

    def __init__(
        self,
        rows: "Dataset",
        style: str | None,
        seed: int,
        wordings: Sequence[str] = (),
        letterings: Sequence[str] = (),
    ):
        for setting, names, known in (("wordings", wordings, WORDINGS), ("letterings", letterings, DRAWN_LETTERINGS)):
            unknown = [name for name in names if name not in known]
            check(not unknown, f"{setting}: {', '.join(unknown)} is not one of {', '.join(known)}")
        self.style, self.seed = style, seed
        self.wordings, self.letterings = list(wordings), list(letterings)
        self.rows = [row if row.get("kept") else self._parse(row) for row in rows]

    def _parse(self, row: dict) -> _Parsed:
        text, response = row["input"], row["response"]
        check(text in row["prompt"], f"relabel_each_epoch: the prompt does not hold its input {text!r}")
        premise, claim = parse_claim(row["premise"], row["hypothesis"])
        before, _, after = row["prompt"].partition(text)
        around = (response, "")
        if self.style is not None:
            reasoning = trace(premise, claim, self.style)
            check(reasoning in response, f"relabel_each_epoch: the response to {text!r} is not its trace")
            around = response.partition(reasoning)[::2]
        words = wording_of(row["hypothesis"])
        return _Parsed(row["premise_id"], premise, claim, row["template"], words, (before, after), around)

    def columns(self, epoch: int) -> dict[str, list[str]]:
        """COLUMNS of an epoch."""
        columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
        for row in self.rows:
            if not isinstance(row, _Parsed):
                for name in COLUMNS:
                    columns[name].append(row[name])
                continue
            rng = random.Random(f"{self.seed}-{epoch}-{row.premise_id}")
            n = len(row.premise.variables)
            letters = row.premise.variables
            if self.letterings:
                letters = draw_letters(rng.choice(self.letterings), n, rng)
            order = rng.sample(range(n), n)
            wording = row.wording
            if self.wordings:  # of each row by itself
                wording = random.Random(f"{self.seed}-{epoch}-{row.premise_id}-{row.claim}").choice(self.wordings)
            new = render(row.premise, row.claim, row.template, order, letters, wording, self.style)
            text = write_input(new.premise, new.hypothesis)
            columns["input"].append(text)
            columns["prompt"].append(text.join(row.prompt))
            columns["response"].append(new.trace.join(row.response))
            columns["premise"].append(new.premise)
            columns["hypothesis"].append(new.hypothesis)
            columns["kept"].append("")
        return columns
