"""Corr2Cause in words: text <-> premise and claim.

    premise, claim = parse_input("Premise: Suppose there is ...\\nHypothesis: A directly causes B.")
    write_input(write_premise(premise), write_hypothesis(claim, premise.variables, "parent"))

Task and wording: Jin et al., "Can Large Language Models Infer Causation from Correlation?", ICLR 2024
(arXiv 2306.05836). The oracle itself is graphs.py, the reasoning in words reasoning.py, the rows of the task rows.py.
"""

import random
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import combinations

from causal.graphs import (
    DAG,
    MAX_VARIABLES,
    Claim,
    Corr2CauseError,
    Independence,
    Premise,
    bits,
    claim_on,
    cpdag,
    dag_edges,
)

TEMPLATES = ("parent", "child", "non-parent ancestor", "non-child descendant", "has_collider", "has_confounder")

RELATION_OF = dict(zip(TEMPLATES, ("direct", "direct", "indirect", "indirect", "collider", "confounder"), strict=True))
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
}
# name: {template: wording}
WORDINGS = {"released": _RELEASED} | {
    name: dict(zip(TEMPLATES, (direct, direct, indirect, indirect, collider, confounder), strict=True))
    for name, (direct, indirect, collider, confounder) in _OTHER_WORDINGS.items()
}
HELD_OUT_WORDINGS = ("paraphrase", "recombined")  # for tests: what a model is trained on should leave them out
_HEADER = (
    "Suppose there is a closed system of {n} variables, {names}. "
    "All the statistical relations among these {n} variables are as follows: "
)


class ContradictionError(Corr2CauseError):
    """A premise whose statements contradict each other, or leave a pair undecided."""


# ---------------------------------------------------------------- text


def listing(names: Sequence[str]) -> str:
    """'A, B and C'."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def split_input(text: str) -> tuple[str, str]:
    """'Premise: P\\nHypothesis: H' -> (P, H)."""
    if not isinstance(text, str):
        raise Corr2CauseError(f"the input is {type(text).__name__}, not text like 'Premise: ...\\nHypothesis: ...'")
    head, *tail = text.strip().split("Hypothesis:")
    if not head.startswith("Premise:") or len(tail) != 1:
        raise Corr2CauseError(f"expected 'Premise: ...\\nHypothesis: ...' (one line each), got {_short(text)}")
    premise, hypothesis = head.removeprefix("Premise:").strip(), tail[0].strip()
    if not premise or not hypothesis:
        raise Corr2CauseError(f"the {'hypothesis' if premise else 'premise'} is empty in {_short(text)}")
    return premise, hypothesis


def write_input(premise_text: str, hypothesis_text: str) -> str:
    """The task's input text."""
    return f"Premise: {premise_text}\nHypothesis: {hypothesis_text}"


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _index(name: str, variables: Sequence[str], where: str) -> int:
    if name not in variables:
        raise Corr2CauseError(f"unknown variable {_short(name)} in {_short(where)}; known: {', '.join(variables)}")
    return variables.index(name)


def _parse_header(text: str) -> tuple[tuple[str, ...], str]:
    """Variable names, and the text of the statistical relations."""
    match = re.fullmatch(
        r"Suppose there is a closed system of (\d{1,3}) variables, ([^.]+)\. "
        r"All the statistical relations among these (\d{1,3}) variables are as follows: (.+)",
        " ".join(text.split()),
    )
    if not match:
        raise Corr2CauseError(
            f"the premise {_short(text)} does not read 'Suppose there is a closed system of N variables, A, B and C. "
            "All the statistical relations among these N variables are as follows: ...'"
        )
    variables = tuple(re.split(r", | and ", match[2]))
    if listing(variables) != match[2] or not all(re.fullmatch(r"[A-Z]\w*", name) for name in variables):
        raise Corr2CauseError(f"the variables {_short(match[2])} are not a list of capitalised names like 'A, B and C'")
    if len(set(variables)) < len(variables):
        raise Corr2CauseError(f"a variable is listed twice in {_short(match[2])}")
    if int(match[1]) != len(variables) or int(match[3]) != len(variables):
        raise Corr2CauseError(f"the premise says {match[1]} and {match[3]} variables but lists {len(variables)}")
    if not 2 <= len(variables) <= MAX_VARIABLES:
        raise Corr2CauseError(f"the premise has {len(variables)} variables; 2 to {MAX_VARIABLES} are supported")
    return variables, match[4]


def _parse_statement(sentence: str, variables: Sequence[str]) -> tuple[bool, Independence]:
    """One sentence -> (is it an independence?, (i, j, given)) with i < j."""
    match = re.fullmatch(r"(\w+) (correlates with|is independent of) (\w+)\.", sentence)
    given_match = re.fullmatch(r"(\w+)( and )(\w+) are independent given (.+)\.", sentence)
    if not match and not given_match:
        raise Corr2CauseError(f"cannot read the statement {_short(sentence)} in the premise")
    first, kind, second = (match or given_match).group(1, 2, 3)
    names = re.split(r", | and ", given_match[4]) if given_match else []
    if names and listing(names) != given_match[4]:
        raise Corr2CauseError(f"the conditioning set in {_short(sentence)} is not a list like 'A, B and C'")
    i, j, *given = (_index(name, variables, sentence) for name in (first, second, *names))
    if len({i, j, *given}) < 2 + len(given):
        raise Corr2CauseError(f"a variable occurs twice in the statement {_short(sentence)}")
    return kind != "correlates with", (min(i, j), max(i, j), sum(1 << v for v in given))


def _parse_statements(body: str, variables: Sequence[str], independences: bool) -> set[Independence]:
    """A run of sentences that are all correlations, or all independences."""
    found = set()
    for sentence in re.findall(r"[^.]+\.?|\.", body):
        is_independence, statement = _parse_statement(sentence.strip(), variables)
        if is_independence != independences:
            raise Corr2CauseError(
                f"{_short(sentence.strip())} is out of place: correlations come first, then 'However, ', "
                "then independences"
            )
        if statement in found:
            raise Corr2CauseError(f"the premise states {_short(sentence.strip())} twice")
        found.add(statement)
    return found


def parse_premise(text: str) -> Premise:
    """Reads a premise (without 'Premise: '); the statements may come in any order within their part.

    Raises Corr2CauseError for anything malformed, duplicate or unknown and for a pair that neither correlates nor is
    marginally independent, ContradictionError for one that does both. Whether a graph exists is tested by
    `markov_equivalence_class`. A premise has up to 168 claims: what was read is kept.
    """
    if not isinstance(text, str):
        raise Corr2CauseError(f"the premise is {type(text).__name__}, not text")
    return _parse_premise(text)


@lru_cache(maxsize=8192)
def _parse_premise(text: str) -> Premise:
    variables, body = _parse_header(text)
    first, however, second = body.partition("However, ")
    if however and not (first.strip() and second.strip()):
        raise Corr2CauseError("'However, ' must stand between the correlations and the independences of the premise")
    only_independences = not however and " correlates with " not in first
    correlations = set() if only_independences else _parse_statements(first.strip(), variables, False)
    independences = _parse_statements((first if only_independences else second).strip(), variables, True)
    for i, j in combinations(range(len(variables)), 2):
        correlated, independent = (i, j, 0) in correlations, (i, j, 0) in independences
        if correlated == independent:
            state = "both correlated and independent" if correlated else "neither correlated nor independent"
            error = ContradictionError if correlated else Corr2CauseError
            raise error(f"the premise leaves {variables[i]} and {variables[j]} {state}; state exactly one")
    return Premise(variables, frozenset(independences))


def released_order(independence: Independence) -> tuple[int, int, tuple[int, ...]]:
    """The sort key that puts independences in the order of the released premises."""
    i, j, given = independence
    return i, j, bits(given)


@lru_cache(maxsize=65536)
def write_independence(independence: Independence, variables: Sequence[str]) -> str:
    """'A is independent of B.' or 'A and B are independent given C and D.'"""
    i, j, given = independence
    if not given:
        return f"{variables[i]} is independent of {variables[j]}."
    return f"{variables[i]} and {variables[j]} are independent given {listing([variables[v] for v in bits(given)])}."


def write_premise(premise: Premise, shuffle: random.Random | None = None) -> str:
    """The released wording and order of statements, without 'Premise: '; `shuffle` reorders the independences."""
    stated = sorted(premise.independences, key=released_order)
    if shuffle is not None:
        shuffle.shuffle(stated)
    return write_statements(stated, premise.variables)


def write_statements(stated: Sequence[Independence], names: tuple[str, ...]) -> str:
    """The premise of these independences, in this order: which variables there are, which correlate, which do not."""
    pairs = combinations(range(len(names)), 2)
    marginal = {(i, j) for i, j, given in stated if not given}
    correlations = " ".join(f"{names[i]} correlates with {names[j]}." for i, j in pairs if (i, j) not in marginal)
    independences = " ".join([write_independence(statement, names) for statement in stated])
    return _HEADER.format(n=len(names), names=listing(names)) + " However, ".join(
        filter(None, (correlations, independences))
    )


@cache
def _hypothesis_patterns() -> dict[re.Pattern, tuple[str, str]]:
    """{regular expression with groups a, b: (template, wording)} of every sentence."""
    patterns: dict[str, tuple[str, str]] = {}
    for name, wording in WORDINGS.items():
        for template, sentence in wording.items():
            pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\S+)", re.escape(sentence))
            patterns.setdefault(pattern, (template, name))
    return {re.compile(pattern): said for pattern, said in patterns.items()}


def _match_hypothesis(text: str) -> tuple[re.Match, str, str]:
    """(match with groups a, b, template, wording); where templates share a sentence, the first."""
    if not isinstance(text, str):
        raise Corr2CauseError(f"the hypothesis is {type(text).__name__}, not text")
    sentence = " ".join(text.split())
    for pattern, said in _hypothesis_patterns().items():
        match = pattern.fullmatch(sentence)
        if match:
            return match, *said
    raise Corr2CauseError(f"cannot read the hypothesis {_short(text)}; expected for example 'A directly causes B.'")


def read_hypothesis(text: str, variables: Sequence[str]) -> tuple[Claim, str]:
    """The claim and its `template`; where templates share a wording, the first (parent and child: by order)."""
    match, template, _ = _match_hypothesis(text)
    return _claim(template, _index(match["a"], variables, text), _index(match["b"], variables, text), text)


def wording_of(hypothesis: str) -> str:
    """The name, in WORDINGS, of the words that the hypothesis is in. Raises Corr2CauseError if it is in none."""
    return _match_hypothesis(hypothesis)[2]


def _claim(template: str, i: int, j: int, text: str) -> tuple[Claim, str]:
    if i == j:
        raise Corr2CauseError(f"the hypothesis {_short(text)} names one variable twice")
    relation = RELATION_OF[template]
    if relation == "direct":
        template = "parent" if i < j else "child"
    return claim_on(relation, i, j), template


def parse_hypothesis(text: str, variables: Sequence[str]) -> Claim:
    """The claim in any of the WORDINGS. Raises Corr2CauseError if it is none of them."""
    return read_hypothesis(text, variables)[0]


def parse_claim(premise_text: str, hypothesis: str) -> tuple[Premise, Claim]:
    """The premise and the claim of a row, from its texts. Raises Corr2CauseError for what cannot be read."""
    premise = parse_premise(premise_text)
    return premise, parse_hypothesis(hypothesis, premise.variables)


def parse_input(text: str) -> tuple[Premise, Claim]:
    """The premise and the claim of an input text, 'Premise: P\\nHypothesis: H'. Raises as `parse_claim` does."""
    return parse_claim(*split_input(text))


def write_hypothesis(claim: Claim, variables: Sequence[str], template: str, wording: str = "released") -> str:
    """The claim in the words that a wording (one of WORDINGS) has for the template (one of TEMPLATES)."""
    if RELATION_OF.get(template) != claim.relation:
        raise Corr2CauseError(f"template {template!r} does not word a {claim.relation} claim; use one of {TEMPLATES}")
    if wording not in WORDINGS:
        raise Corr2CauseError(f"wording {wording!r} is not one of {', '.join(WORDINGS)}")
    return WORDINGS[wording][template].format(a=variables[claim.i], b=variables[claim.j])


# ---------------------------------------------------------------- edges in words


def class_edges(premise: Premise) -> list[str]:
    """The class's edges in pair order: 'A -> B' where all members agree, 'A - B' where they differ."""
    directed, undirected = cpdag(premise)
    signs = {edge: "->" if edge in directed else "-" for edge in sorted(directed | undirected, key=sorted)}
    return [f"{premise.variables[u]} {sign} {premise.variables[v]}" for (u, v), sign in signs.items()]


def member_edges(dag: DAG, variables: Sequence[str]) -> list[str]:
    """The edges of one member of a class, in the same words and order."""
    return [f"{variables[u]} -> {variables[v]}" for u, v in sorted(dag_edges(dag), key=sorted)]
