"""Questions without end: a row drawn at random, the prompt that asks it, and the text around both.

    questions = Questions(seed=0, num_variables=(4, 5))
    row = questions[17]                                  # always the same
    prompt_of(row["input"])                              # what a model is asked
    rewards.credit(completion, row)                      # what its answer is worth, 0 to 1

Environments are made of these (integrations/); datasets are enumerated and split instead (rows.py, preprocess.py).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from causal.claims import RELATIONS, Claim
from causal.classes import MAX_VARIABLES, Premise, premise_of
from causal.enumeration import random_dags
from causal.graphs import Corr2CauseError
from causal.rows import DRAWN_LETTERINGS, claims_of, draw_letters, exact_labeller, render
from causal.trace_text import STYLES
from causal.vocabulary import DRAWN_WORDINGS, draw, variants
from causal.wording import read_hypothesis, write_input

QUESTION = "Decide whether the hypothesis follows from the premise. "
REASONING = QUESTION + "Reason step by step. End with a line 'Answer: Yes' or 'Answer: No'."
ANSWER_ALONE = QUESTION + "Reply with one line, 'Answer: Yes' or 'Answer: No'."
YES_FROM = {"direct": 3, "indirect": 4, "collider": 3, "confounder": 4}  # fewer variables: no such claim holds


def prompt_of(text: str, instruction: str = REASONING, example: str | None = None) -> str:
    """What a model is asked: the instruction, in a style of `example` a worked question, and the input text."""
    if example is None:
        return f"{instruction}\n\n{text}".strip()
    return f"{instruction}\n\nAn example:\n\n{_worked(example)}\n\nThe question:\n\n{text}".strip()


@cache
def _worked(style: str) -> str:
    """The question of the README with its trace: A -> C <- B, and A directly causes C."""
    premise, claim = premise_of((0, 0, 0b011)), Claim("direct", 0, 2)
    row = render(premise, claim, "parent", range(3), premise.variables, style=style)
    return f"{write_input(row.premise, row.hypothesis)}\n\n{row.trace}"


@dataclass(frozen=True)
class Questions:
    """questions[k], k >= 0, is a function of these settings and k alone.

    N and the relation are drawn from `num_variables` and `relations`, the graph by random edges of a random density,
    then its letters and the words of the hypothesis. Balanced: Yes and No are equally likely, as far as a claim on so
    few variables can be Yes (YES_FROM); else the label is what it happens to be, mostly No. Raises Corr2CauseError for
    an unknown name, a number out of range, and where nothing that is asked for can be Yes.
    """

    seed: int = 0
    num_variables: Sequence[int] = (4, 5)
    relations: Sequence[str] = RELATIONS
    wordings: Sequence[str] = ("released",)
    letterings: Sequence[str] = ("released",)
    balanced: bool = True
    style: str = "compact"  # of the traces

    def __post_init__(self) -> None:
        sizes = range(2, MAX_VARIABLES + 1)
        for setting, values, known in (
            ("num_variables", self.num_variables, sizes),
            ("relations", self.relations, RELATIONS),
            ("wordings", self.wordings, [name for name in DRAWN_WORDINGS if variants("hypotheses", name)]),
            ("letterings", self.letterings, DRAWN_LETTERINGS),
        ):
            listed = isinstance(values, Sequence) and not isinstance(values, str)
            wrong = [value for value in values if value not in known] if listed else [repr(values)]
            if wrong or not values:
                said, names = (", ".join(map(str, some)) for some in (wrong, known))
                raise Corr2CauseError(f"{setting} is {said or 'empty'}; use a list of some of {names}")
        if self.style not in STYLES:
            raise Corr2CauseError(f"style is {self.style!r}; use one of {', '.join(STYLES)}")
        if self.balanced and not self._pairs(label=1):
            needed = min(YES_FROM[relation] for relation in self.relations)
            raise Corr2CauseError(
                f"balanced: no {' or '.join(self.relations)} claim on so few variables is Yes; "
                f"add {needed} to num_variables, or set balanced to false"
            )

    def _pairs(self, label: int | None) -> list[tuple[int, str]]:
        """The (N, relation) to draw from, where this label is wanted."""
        pairs = product(self.num_variables, self.relations)
        return [(n, relation) for n, relation in pairs if not label or n >= YES_FROM[relation]]

    def __getitem__(self, k: int) -> dict:
        """`input`, `premise`, `hypothesis`, `label`, `num_variables`, `relation`, `template`, and the exact `trace`."""
        key = f"{self.seed}-{k}"
        rng = random.Random(key)
        wanted = rng.randrange(2) if self.balanced else None
        n, relation = rng.choice(self._pairs(wanted))
        drawn = _claims(n, relation, key, rng)
        premise, claim, template, label = next(found for found in drawn if wanted in (None, found[-1]))
        letters = draw_letters(rng.choice(self.letterings), n, rng)
        order, wording = rng.sample(range(n), n), draw("hypotheses", self.wordings, rng)
        written = render(premise, claim, template, order, letters, wording, self.style)
        return {
            "input": write_input(written.premise, written.hypothesis),
            "premise": written.premise,
            "hypothesis": written.hypothesis,
            "label": label,
            "num_variables": n,
            "relation": relation,
            "template": read_hypothesis(written.hypothesis, letters)[1],
            "trace": written.trace,
        }


def _claims(n: int, relation: str, key: str, rng: random.Random) -> Iterator[tuple[Premise, Claim, str, int]]:
    """Claims of this relation without end, each with a template and its label: on random graphs, one by one."""
    for dag in random_dags(n, key):
        premise = premise_of(dag)
        label_of = exact_labeller(premise)
        claims = [(claim, templates) for claim, templates in claims_of(n) if claim.relation == relation]
        for claim, templates in rng.sample(claims, len(claims)):
            yield premise, claim, rng.choice(templates), label_of(claim)
