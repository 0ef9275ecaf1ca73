"""The words of the task: hypotheses in several wordings, premises in several tellings, and names of variables.

Each table has variants to train on and some that are held out for tests, whose sentences or names training never shows.
wording.py writes texts of these and reads them back.
"""

import random
import re
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

TEMPLATES = ("parent", "child", "non-parent ancestor", "non-child descendant", "has_collider", "has_confounder")
RELATION_OF = dict(zip(TEMPLATES, ("direct", "direct", "indirect", "indirect", "collider", "confounder"), strict=True))
TEMPLATE_OF = {relation: template for template, relation in reversed(RELATION_OF.items())}  # the first of each

# ---------------------------------------------------------------- hypotheses

_RELEASED = {
    "parent": "{a} directly causes {b}.",
    "child": "{a} directly causes {b}.",
    "non-parent ancestor": "{a} causes something else which causes {b}.",
    "non-child descendant": "{a} is a cause for {b}, but not a direct one.",
    "has_collider": "There exists at least one collider (i.e., common effect) of {a} and {b}.",
    "has_confounder": "There exists at least one confounder (i.e., common cause) of {a} and {b}.",
}
# The same claims in other words, by relation: direct, indirect, collider, confounder. `paraphrase` is that of the
# released perturbed test set. The words of the held-out wordings are all in other ones, but not these sentences.
_OTHER_WORDINGS = {
    "paraphrase": (
        "{a} directly affects {b}.",
        "{a} influences {b} through some mediator(s).",
        "{a} and {b} together cause some other variable(s).",
        "Some variable(s) cause(s) both {a} and {b}.",
    ),
    "recombined": (
        "{a} directly influences {b}.",
        "{a} is a cause of {b} through some other variable(s).",
        "{a} and {b} together influence some variable(s).",
        "Some other variable(s) cause both {a} and {b}.",
    ),
    "effect": (
        "{b} is a direct effect of {a}.",
        "{b} is an indirect effect of {a}.",
        "{a} and {b} have an effect in common.",
        "{a} and {b} have a cause in common.",
    ),
    "influence": (
        "{a} influences {b} directly.",
        "{a} influences {b} through something else.",
        "{a} and {b} both influence some other variable(s).",
        "Some other variable(s) influence both {a} and {b}.",
    ),
    "affect": (
        "{a} affects {b} without any mediator(s).",
        "{a} affects {b} through some mediator(s) between them.",
        "{a} and {b} affect some variable(s) together.",
        "Some variable(s) affect(s) both {a} and {b}.",
    ),
    "cause": (
        "{a} is a direct cause of {b}.",
        "{a} is an indirect cause of {b}.",
        "Together, {a} and {b} cause some variable(s).",
        "Some variable(s) cause(s) {a} and also {b}.",
    ),
    "arrow": (
        "There is an arrow from {a} to {b}.",
        "There is a path of arrows from {a} through some other variable(s) to {b}.",
        "Paths of arrows from {a} and {b} meet in some other variable(s).",
        "Paths of arrows from some other variable(s) lead to both {a} and {b}.",
    ),
    "result": (
        "{b} results from {a} without anything in between.",
        "{b} results from {a} by way of something in between.",
        "Something results from both {a} and {b}.",
        "{a} and {b} both result from something else.",
    ),
    "drive": (
        "{a} drives {b} with no other variable in between.",
        "{a} drives another variable, which in turn drives {b}.",
        "{a} and {b} both drive a third variable.",
        "A third variable drives both {a} and {b}.",
    ),
    "change": (
        "Changing {a} changes {b} while everything else is held fixed.",
        "Changing {a} changes {b} because it changes something in between.",
        "Changing {a} and changing {b} both change something else.",
        "Changing something else changes both {a} and {b}.",
    ),
    "recast": (
        "{a} directly drives {b}.",
        "{a} drives {b} by way of another variable.",
        "A third variable results from {a} and also from {b}.",
        "{a} and {b} both result from a third variable.",
    ),
    "restated": (
        "Changing {a} changes {b} without any mediator(s).",
        "Changing {a} changes {b} through something in between.",
        "There is a variable which {a} and {b} both influence.",
        "There is a variable which influences both {a} and {b}.",
    ),
}
HELD_OUT_WORDINGS = ("paraphrase", "recombined", "recast", "restated")
# Parts of some of these, in every combination that is not among them. Who has been taught them has seen each part of
# `paraphrase` and `recombined` beside many others, and still none of their sentences.
_VERBS = ("cause", "influence", "affect")
_THINGS = ("some variable(s)", "some other variable(s)", "something else")
_MEANS = ("some mediator(s)", "some other variable(s)", "something else")
_FRAMES = (  # {v} is a verb
    (
        "{a} directly {v}s {b}.",
        "{a} {v}s {b} directly.",
        "{a} {v}s {b} without any mediator(s).",
        "{a} {v}s {b} without any mediator(s) between them.",
        "{a} {v}s {b} directly, without any mediator(s).",
    ),
    (
        *(f"{{a}} {{v}}s {{b}} through {means}." for means in _MEANS),
        *(f"{{a}} is a cause of {{b}} through {means}." for means in _MEANS),
        "{a} {v}s something else which {v}s {b}.",
    ),
    (
        *(f"{{a}} and {{b}} both {{v}} {thing}." for thing in _THINGS),
        *(f"{{a}} and {{b}} together {{v}} {thing}." for thing in _THINGS),
        *(f"{{a}} and {{b}} {{v}} {thing} together." for thing in _THINGS),
        *(f"Together, {{a}} and {{b}} {{v}} {thing}." for thing in _THINGS),
    ),
    (
        *(f"{thing.capitalize()} {{v}} both {{a}} and {{b}}." for thing in _THINGS[:2]),
        *(f"{thing.capitalize()} {{v}}(s) both {{a}} and {{b}}." for thing in _THINGS[:2]),
        *(f"{thing.capitalize()} {{v}}(s) {{a}} and also {{b}}." for thing in _THINGS[:2]),
    ),
)


def _composed() -> dict[str, tuple[str, str, str, str]]:
    """Wordings of all combinations: as many as the relation with the most has, where others begin again."""
    taken = {*_RELEASED.values(), *chain.from_iterable(_OTHER_WORDINGS.values())}
    filled = ([frame.replace("{v}", verb) for frame in frames for verb in _VERBS] for frames in _FRAMES)
    lists = [[sentence for sentence in dict.fromkeys(sentences) if sentence not in taken] for sentences in filled]
    return {
        f"composed-{k + 1}": tuple(sentences[k % len(sentences)] for sentences in lists)
        for k in range(max(map(len, lists)))
    }


_COMPOSED = _composed()
# name: {template: wording}
WORDINGS = {"released": _RELEASED} | {
    name: dict(zip(TEMPLATES, (direct, direct, indirect, indirect, collider, confounder), strict=True))
    for name, (direct, indirect, collider, confounder) in (_OTHER_WORDINGS | _COMPOSED).items()
}

# The words of a hypothesis of which one says which way its arrows point.
DIRECTION = re.compile(
    r"(?:caus|influenc|affect|effect|result|driv|chang|arrow|lead|meet|collider|confounder)\w*(?:\(\w+\))?",
    re.IGNORECASE,
)

# ---------------------------------------------------------------- premises


class Telling(NamedTuple):
    """How a premise is told: its opening, and sentences that each state correlations or independences.

    {n} and {m} are the number of variables, {names} is their list. {a} and {b} are variables, {others} and {given}
    lists of them; a sentence with {others} states one thing of {a} with each, and a telling has {others} in all its
    sentences or in none. Of several sentences of a kind the writer takes one after the other, the first one first. The
    reader takes any. `turn` stands before the independences where correlations come before them.
    """

    opening: str
    correlated: tuple[str, ...]
    turn: str
    independent: tuple[str, ...]
    given: tuple[str, ...]


TELLINGS = {
    "released": Telling(
        "Suppose there is a closed system of {n} variables, {names}. "
        "All the statistical relations among these {m} variables{limit} are as follows:",
        ("{a} correlates with {b}.",),
        "However, ",
        ("{a} is independent of {b}.",),
        ("{a} and {b} are independent given {given}.",),
    ),
    "report": Telling(
        "Researchers have measured {n} things, {names}, and nothing that they left out acts on two of these. "
        "This is all that they found{limit}.",
        ("{a} goes up and down with {others}.", "the figures for {a} also move with those for {others}."),
        "Yet ",
        ("{a} shows no link to {others}.",),
        (
            "with {given} held fixed, {a} shows no link to {others}.",
            "the figures for {a} are no guide to those for {others}, either, once {given} cannot vary.",
        ),
    ),
    "survey": Telling(
        "Many people took part in a survey about {names}. There is no other matter that bears on more than one of the "
        "{n}. Its findings, which are complete{limit}, read like this.",
        (
            "people who differ in {a} tend to differ in {others} as well.",
            "answers about {a} help to guess those about {others}.",
        ),
        "At the same time, ",
        ("answers about {a} do not help to guess those about {others}.",),
        (
            "among people who are alike in {given}, answers about {a} do not help to guess those about {others}.",
            "people who are alike in {given} but differ in {a} do not tend to differ in {others}.",
        ),
    ),
    "ledger": Telling(
        "For years a town has kept a ledger of {names}. These {n} share no source that is missing from it. A clerk has "
        "written down every pattern{limit}.",
        ("whoever knows {a} knows something about {others}.",),
        "But ",
        ("whoever knows {a} knows nothing more about {others}.",),
        ("whoever knows {given} already learns nothing about {others} from {a}.",),
    ),
    "lecture": Telling(
        "Consider {names}, the {n} parts of one system without hidden common causes. Let us go through everything that "
        "can be said of how they vary together{limit}.",
        ("{a} is associated with {others}.", "there is also an association of {a} with {others}."),
        "By contrast, ",
        ("{a} is not associated with {others}.",),
        (
            "conditional on {given}, {a} is not associated with {others}.",
            "adjusting for {given} removes any association of {a} with {others}.",
        ),
    ),
    "newspaper": Telling(
        "Our paper has looked into {n} facts of daily life: {names}. Experts assure us that they have no outside cause "
        "in common and that our list of findings is full{limit}.",
        ("a statistical tie binds {a} to {others}.", "the charts of {a} resemble those of {others}."),
        "Still, ",
        ("no statistical tie binds {a} to {others}.",),
        (
            "compare like with like in {given}, and no tie binds {a} to {others}.",
            "take {given} into account, and the charts of {a} no longer resemble those of {others}.",
        ),
    ),
    "diary": Telling(
        "I have long been writing down {names}, {n} items in all, and I am sure that I overlooked no joint influence. "
        "Here is every regularity that I noticed{limit}.",
        ("a look at {a} changes what I expect of {others}.", "surprises in {a} come along with surprises in {others}."),
        "Mind you, ",
        ("a look at {a} leaves what I expect of {others} as it was.",),
        (
            "if I have seen {given} before, a look at {a} leaves what I expect of {others} as it was.",
            "as long as {given} can be seen, surprises in {a} come without surprises in {others}.",
        ),
    ),
}
HELD_OUT_TELLINGS = ("newspaper", "diary")

# ---------------------------------------------------------------- names of variables

# By subject; the variables of a premise have names of one.
NAMES = {
    "health": (
        "exercise", "blood pressure", "body weight", "smoking", "sleep quality", "salt intake", "heart rate",
        "cholesterol", "stress", "kidney function", "alcohol use", "insulin level",
    ),
    "farming": (
        "rainfall", "soil moisture", "fertilizer dose", "crop yield", "pest density", "sunlight", "air temperature",
        "seed variety", "irrigation", "weed growth", "harvest date", "bee activity",
    ),
    "economy": (
        "interest rate", "inflation", "unemployment", "consumer spending", "house prices", "wages", "exports",
        "tax revenue", "public debt", "stock returns", "oil supply", "savings",
    ),
    "schooling": (
        "pupil count", "homework", "reading skill", "exam score", "parental income", "attendance", "teacher pay",
        "motivation", "screen use", "tutoring", "library visits", "school funding",
    ),
    "traffic": (
        "road width", "vehicle volume", "travel speed", "fuel consumption", "accident toll", "bus ridership",
        "parking fees", "speeding fines", "commute length", "noise", "bicycle lanes", "car ownership",
    ),
    "website": (
        "page views", "advertising budget", "click rate", "loading delay", "bounce frequency", "newsletter size",
        "product rating", "sales", "discount", "customer support", "search rank", "server capacity",
    ),
    "ocean": (
        "water salinity", "algae bloom", "plankton biomass", "fish abundance", "coral cover", "current strength",
        "oxygen content", "nutrient runoff", "wave height", "ice extent", "tide range", "whale sightings",
    ),
    "office": (
        "job satisfaction", "overtime", "salary", "team cohesion", "staff turnover", "remote working",
        "manager feedback", "productivity", "desk crowding", "burnout", "promotion prospects", "meeting load",
    ),
    "factory": (
        "machine wear", "furnace heat", "alloy purity", "surface roughness", "defect tally", "belt tension",
        "lubricant grade", "vibration", "power draw", "coolant flow", "tool sharpness", "assembly pace",
    ),
}  # fmt: skip
HELD_OUT_NAMES = ("ocean", "office", "factory")

# ---------------------------------------------------------------- what to draw of

KINDS = {"hypotheses": WORDINGS, "story": TELLINGS, "names": NAMES}  # the name of a kind stands for its variants
HELD_OUT = {"hypotheses": HELD_OUT_WORDINGS, "story": HELD_OUT_TELLINGS, "names": HELD_OUT_NAMES}
TRAINED = {
    kind: tuple(name for name in table if name not in ("released", *HELD_OUT[kind], *_COMPOSED))
    for kind, table in KINDS.items()
}
GROUPS = TRAINED | {"composed": tuple(_COMPOSED)}  # names that stand for one of several
DRAWN_WORDINGS = tuple(name for name in dict.fromkeys((*WORDINGS, *GROUPS, *TELLINGS, *NAMES)) if name not in _COMPOSED)


def draw(kind: str, wordings: Sequence[str], rng: random.Random) -> str | None:
    """One of those `wordings` that are of the kind, one of KINDS; None if there is none.

    `released` is of every kind (of names it means: as they are). The name of a kind stands for one of its variants that
    are neither released nor held out, `composed` for one of these hypotheses.
    """
    fitting = [name for name in wordings if name == "released" or variants(kind, name)]
    name = rng.choice(fitting) if fitting else None
    return rng.choice(GROUPS[name]) if name in GROUPS else name


def drawn(kind: str, wordings: Sequence[str]) -> set[str]:
    """All that `draw` may give besides `released`."""
    return {variant for name in wordings for variant in variants(kind, name)} - {"released"}


@cache
def variants(kind: str, name: str) -> tuple[str, ...]:
    """The variants of the kind that the name stands for: those of a group, or itself; none if it is of another kind."""
    return tuple(variant for variant in GROUPS.get(name, (name,)) if variant in KINDS[kind])
