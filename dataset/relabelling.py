"""Rows in fresh letters and words: the same questions, asked anew in every epoch."""

import random
from collections.abc import Sequence
from heapq import nlargest
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from causal.claims import Claim
from causal.classes import Premise
from causal.reasoning import trace
from causal.rows import DRAWN_LETTERINGS, draw_letters, draw_names, render
from causal.vocabulary import DRAWN_WORDINGS, NAMES, draw, drawn
from causal.wording import (
    LONGEST_UNKNOWN_HYPOTHESIS,
    parse_claim,
    telling_of,
    wording_of,
    write_input,
)
from dataset.chat import encode_rows
from dataset.reading import data_config
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("prompt", "response", "premise", "hypothesis", "input", "kept")
_PARSED = ("input", "premise", "hypothesis", "premise_id", "template")  # columns of a row that is written anew


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
    telling: str
    prompt: tuple[str, str]
    response: tuple[str, str]


class FreshRows:
    """The rows of a dataset as an epoch has them: the letters of every premise exchanged, texts in other words.

    Corrections (corrections.py) stay as they are: a trace in other letters would be in another order.

    `style` is that of their traces, which are written anew; with None responses stay. `wordings` and `letterings`, by
    name, are drawn from (`vocabulary.draw`, `rows.draw_letters`); without any, a hypothesis and a premise keep their
    words, and a premise its letters, in another order. In a share `unknown_words` of the rows the hypothesis's verb
    and others are made up, so that it cannot be read. An epoch is a function of (seed, epoch) and the row: rows of one
    premise keep one, and an epoch repeats itself. Raises ValueError for an unknown name, for rows of another task, and
    for a row whose prompt or response has other text in it.
    """

    def __init__(
        self,
        rows: "Dataset",
        style: str | None,
        seed: int,
        wordings: Sequence[str] = (),
        letterings: Sequence[str] = (),
        unknown_words: float = 0.0,
    ):
        for setting, names, known in (
            ("wordings", wordings, DRAWN_WORDINGS),
            ("letterings", letterings, DRAWN_LETTERINGS),
        ):
            unknown = [name for name in names if name not in known]
            check(not unknown, f"{setting}: {', '.join(unknown)} is not one of {', '.join(known)}")
        lacking = [name for name in (*_PARSED, "prompt", "response") if name not in rows.column_names]
        check(not lacking, f"relabel_each_epoch: rows without {', '.join(lacking)} are not Corr2Cause's; set it false")
        self.style, self.seed = style, seed
        self.wordings, self.letterings, self.unknown_words = list(wordings), list(letterings), unknown_words
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
        words = wording_of(row["hypothesis"], premise.variables), telling_of(row["premise"])
        return _Parsed(row["premise_id"], premise, claim, row["template"], *words, (before, after), around)

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
            telling, subject = (draw(kind, self.wordings, rng) for kind in ("story", "names"))
            if subject not in (None, "released"):
                letters = draw_names(subject, n, rng)
            own = random.Random(f"{self.seed}-{epoch}-{row.premise_id}-{row.claim}")  # of each row by itself
            wording = draw("hypotheses", self.wordings, own) or row.wording
            unknown = own if own.random() < self.unknown_words else None
            self._write(columns, row, order, letters, wording, telling or row.telling, unknown)
        return columns

    def longest(self, tokenizer, responses: bool) -> int:
        """About how long, in tokens, a prompt or prompt and response of an epoch may be; 0 if in every epoch as long.

        It is looked for among the 16 rows that have the most characters, in each story and under the longest names. The
        length of a trace depends on the order of the letters too: 256 rows are tried in four of them.
        """
        tellings, subjects = drawn("story", self.wordings), drawn("names", self.wordings)
        traced = responses and self.style is not None
        if not (tellings or subjects or self.unknown_words or traced):
            return 0
        first, columns = self.columns(0), {name: [] for name in COLUMNS}
        lengths = [
            len(asked) + responses * len(said) for asked, said in zip(first["prompt"], first["response"], strict=True)
        ]
        rng = random.Random(self.seed)
        for place, k in enumerate(nlargest(256 if traced else 16, range(len(lengths)), key=lengths.__getitem__)):
            row = self.rows[k]
            if isinstance(row, _Parsed):
                n = len(row.premise.variables)
                names = [sorted(NAMES[subject], key=len)[-n:] for subject in subjects] or [row.premise.variables]
                told = list(product(tellings or {row.telling}, names))
                forms = [(range(n), *form) for form in told] if place < 16 else []
                forms += [(rng.sample(range(n), n), *rng.choice(told)) for _ in range(4 * traced)]
                for order, telling, letters in forms:
                    self._write(columns, row, order, letters, row.wording, telling)
        encoded = zip(*encode_rows(tokenizer, columns), strict=True)
        unknown = LONGEST_UNKNOWN_HYPOTHESIS if self.unknown_words else 0  # of made-up words each character is a token
        return max((len(asked) + responses * len(said) + unknown for asked, said in encoded), default=0)

    def _write(
        self,
        columns: dict[str, list[str]],
        row: _Parsed,
        order: Sequence[int],
        letters: Sequence[str],
        wording: str,
        telling: str,
        unknown: random.Random | None = None,
    ) -> None:
        """Adds the row in these letters and words to the columns; `unknown` makes words up."""
        new = render(row.premise, row.claim, row.template, order, letters, wording, self.style, telling, unknown)
        text = write_input(new.premise, new.hypothesis)
        columns["input"].append(text)
        columns["prompt"].append(text.join(row.prompt))
        columns["response"].append(new.trace.join(row.response))
        columns["premise"].append(new.premise)
        columns["hypothesis"].append(new.hypothesis)
        columns["kept"].append("")
