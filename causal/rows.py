"""The rows of the task: made from premises, with exact labels; the same in other words, letters or order.

rows = list(generate_rows(3))                        # every claim on every class of three variables
texts = perturb(premise, claim, "parent", "relabeling", key="0")
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from itertools import combinations
from math import factorial
from typing import NamedTuple

from causal.claims import Claim, exact_label, relabel_claim
from causal.classes import LETTERS, NoClassError, Premise, cpdag, first_separators, pdag, relabel_premise, structure_id
from causal.enumeration import labelled_premises, representatives
from causal.graphs import Corr2CauseError, renaming
from causal.reasoning import cover, steps_of
from causal.released import released_classes
from causal.trace_text import write_steps
from causal.vocabulary import HELD_OUT, NAMES, WORDINGS
from causal.wording import (
    released_order,
    write_hypothesis,
    write_input,
    write_premise,
    write_statements,
    write_unknown_hypothesis,
)

NATURAL = ("names", "story", "hypotheses")  # each in variants that are held out
PERTURBATIONS = (*HELD_OUT["hypotheses"], "refactorization", "relabeling", "reordering", *NATURAL, "natural")
LETTERINGS = {"released": LETTERS, "refactorization": LETTERS[::-1]}  # A, B, C... and Z, Y, X...
DRAWN_LETTERINGS = (*LETTERINGS, *(f"{name}-spread" for name in LETTERINGS))  # what `draw_letters` takes
SPREAD = 7  # so many letters of a lettering does `draw_letters` choose from


def premise_id(premise: Premise) -> str:
    """12 hexadecimal digits that identify what a premise says, however it is typed.

    They are those of its released text, with its variables in alphabetical order.
    """
    names = tuple(sorted(premise.variables))
    if names != premise.variables:
        premise = replace(relabel_premise(premise, [names.index(name) for name in premise.variables]), variables=names)
    return hashlib.sha1(write_premise(premise).encode()).hexdigest()[:12]


def premise_columns(premise: Premise, text: str) -> dict:
    """The dataset's columns that all rows of a premise, written as `text`, share.

    Where the premise does not have one class, `edges` is None and the premise is a structure of its own.
    """
    identity, n = premise_id(premise), len(premise.variables)
    try:
        structure, (directed, undirected) = structure_id(premise), cpdag(premise)
        edges = {"directed": sorted(map(list, directed)), "undirected": sorted(map(list, undirected))}
    except NoClassError as error:
        structure, edges = f"{n}-{error.kind}-{identity}", None
    return {
        "premise": text,
        "premise_id": identity,
        "structure_id": structure,
        "num_variables": n,
        "edges": edges,
    }


def exact_labeller(premise: Premise) -> Callable[[Claim], int | None]:
    """A function from claims to exact labels; to None where the premise does not have one class."""
    try:
        pdag(premise)
    except NoClassError:
        return lambda claim: None
    return partial(exact_label, premise)


@cache
def claims_of(n: int) -> tuple[tuple[Claim, tuple[str, ...]], ...]:
    """The six claims on each pair, in the released order, each with the templates that word it."""
    claims = []
    for i, j in combinations(range(n), 2):
        claims += [(Claim("direct", i, j), ("parent",)), (Claim("direct", j, i), ("child",))]
        claims += [
            (Claim("indirect", *pair), ("non-parent ancestor", "non-child descendant")) for pair in ((i, j), (j, i))
        ]
        claims += [(Claim("collider", i, j), ("has_collider",)), (Claim("confounder", i, j), ("has_confounder",))]
    return tuple(claims)


def rows_of_premise(premise: Premise, label: Callable[[Claim], int] | None = None) -> Iterator[dict]:
    """The 3N(N-1) rows of a premise: the dataset's columns without `prompt` and `response`, and the label as `exact`.

    `label` gives the columns `label` and `given_label`; without it they are the exact label. Which wording an indirect
    claim gets is a fair coin, as in the release.
    """
    text, exact = write_premise(premise), exact_labeller(premise)
    shared = premise_columns(premise, text)
    rng = random.Random(shared["premise_id"])
    for claim, templates in claims_of(len(premise.variables)):
        template = rng.choice(templates) if len(templates) > 1 else templates[0]
        hypothesis = write_hypothesis(claim, premise.variables, template)
        row = {"input": write_input(text, hypothesis), "hypothesis": hypothesis, "template": template}
        row["exact"] = exact(claim)
        row["label"] = row["given_label"] = row["exact"] if label is None else label(claim)
        yield shared | row


def generate_rows(
    num_variables: int,
    labels: str = "exact",
    relabel_seed: int | None = None,
    relabelings: int = 1,
    structures: int | None = None,
    seed: int = 0,
    max_given: int | None = None,
) -> Iterator[dict]:
    """The rows for N variables, class by class: all of them (N <= 6), or those of `structures` random classes.

    `labels` is exact, or released: the row set and the labels of the public generator (released.py), which has no
    relabelings. See `labelled_premises` for these and `representatives` for `structures` and `max_given`. Raises
    Corr2CauseError for settings out of range.
    """
    if labels == "released":
        if relabel_seed is not None or structures is not None or max_given is not None:
            raise Corr2CauseError(
                "labels released are those of the released rows: no relabelings, all structures, no max_given"
            )
        for released in released_classes(num_variables):
            yield from rows_of_premise(released.premise, released.label)
        return
    for dag in representatives(num_variables, structures, seed, max_given):
        for premise in labelled_premises(dag, relabel_seed, relabelings, max_given):
            yield from rows_of_premise(premise)


# ---------------------------------------------------------------- perturbations


def perturb(
    premise: Premise,
    claim: Claim,
    template: str,
    kind: str,
    key: str,
    wording: str = "released",
    telling: str = "released",
) -> tuple[str, str]:
    """(premise text, hypothesis) that say the same in other words, letters or order: the label stays.

    `kind` is one of PERTURBATIONS: the name of a wording (of the hypothesis; paraphrase is that of the released
    perturbed set), refactorization (the letters Z, Y, X... for A, B, C...), relabeling (the letters trade places, at
    random), reordering (of the independences, at random), names (of things, for the letters), story (the premise as a
    running text), hypotheses (in any held-out wording), natural (the last three at once). The words that it does not
    change are those of `wording` and `telling`. Random choices are a function of `key`: rows of one premise need one.
    """
    if kind not in PERTURBATIONS:
        raise Corr2CauseError(f"perturbation {kind!r} is not one of {', '.join(PERTURBATIONS)}")
    text, variables, order = _perturbed_premise(premise, kind, key, telling)
    if kind in WORDINGS:
        wording = kind
    elif kind in ("hypotheses", "natural"):
        wording = random.Random(f"{kind}-{key}-{claim}").choice(HELD_OUT["hypotheses"])
    return text, write_hypothesis(relabel_claim(claim, order), variables, template, wording)


@lru_cache(maxsize=1024)
def _perturbed_premise(
    premise: Premise, kind: str, key: str, telling: str
) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
    """(text, variables, renaming) of a perturbed premise: once for all of its claims."""
    rng, n = random.Random(f"{kind}-{key}"), len(premise.variables)
    order = tuple(range(n))
    if kind == "refactorization":
        premise = replace(premise, variables=LETTERINGS[kind][:n])
    if kind == "relabeling":
        order = renaming(n, rng.choice(range(1, factorial(n))))  # the first is the identity
        premise = relabel_premise(premise, order)
    if kind in ("names", "natural"):
        premise = replace(premise, variables=draw_names(rng.choice(HELD_OUT["names"]), n, rng))
    if kind in ("story", "natural"):
        telling = rng.choice(HELD_OUT["story"])
    shuffle = rng if kind == "reordering" else None
    return write_premise(premise, shuffle, telling), premise.variables, order


# ---------------------------------------------------------------- fresh letters and words


def draw_letters(lettering: str, n: int, rng: random.Random) -> tuple[str, ...]:
    """The names of n variables: the first n letters of one of LETTERINGS; with `-spread` after its name, any n of its
    first SPREAD, in its order, so that systems of few variables teach the letters of larger ones."""
    letters = LETTERINGS[lettering.removesuffix("-spread")]
    if lettering.endswith("-spread"):
        return tuple(letters[k] for k in sorted(rng.sample(range(max(n, SPREAD)), n)))
    return letters[:n]


def draw_names(subject: str, n: int, rng: random.Random) -> tuple[str, ...]:
    """Names for n variables, of a subject in NAMES, in any order: what the world is like tells nothing of the graph."""
    return tuple(rng.sample(NAMES[subject], n))


class Rendered(NamedTuple):
    """A row in words: its premise, its hypothesis, and the exact trace."""

    premise: str
    hypothesis: str
    trace: str


def render(
    premise: Premise,
    claim: Claim,
    template: str,
    order: Sequence[int],
    variables: Sequence[str],
    wording: str = "released",
    style: str | None = "compact",
    telling: str = "released",
    unknown: random.Random | None = None,
) -> Rendered:
    """A row in fresh letters and words, with the trace that belongs to them: cheap enough to draw anew every time.

    Variable v of the premise takes the place order[v] among `variables`, which are written in this order: the first N
    of one of the LETTERINGS, say. Without a style there is no trace. With `unknown` words of the hypothesis are made up
    (`write_unknown_hypothesis`); else it equals `perturb` and `reasoning.trace` of what it says, without reading or
    checking it again. What the class says of a claim is asked of the given premise, once.
    Raises Corr2CauseError if no graph satisfies the premise, or for an unknown style, wording, telling or template.
    """
    stated, asked, text = relabel_premise(premise, order), relabel_claim(claim, order), ""
    if style is not None:
        taking_turns = partial(cover, stated, asked)
        steps = steps_of(len(order), first_separators(stated), asked, _label(premise, claim), taking_turns)
        text = write_steps(steps, variables, style)
    in_order = sorted(stated.independences, key=released_order)
    premise_text = write_statements(in_order, tuple(variables), telling, stated.max_given)
    if unknown is None:
        hypothesis = write_hypothesis(asked, variables, template, wording)
    else:
        hypothesis = write_unknown_hypothesis(asked, variables, template, wording, unknown)
    return Rendered(premise_text, hypothesis, text)


@lru_cache(maxsize=1 << 17)
def _label(premise: Premise, claim: Claim) -> int:
    return exact_label(premise, claim)
