"""Corr2Cause in words: text <-> premise and claim.

    premise, claim = parse_input("Premise: Suppose there is ...\\nHypothesis: A directly causes B.")
    write_input(write_premise(premise), write_hypothesis(claim, premise.variables, "parent"))

A sentence of vocabulary.py with its slots filled is what is written; the same sentence reads it back.

Task and wording: Jin et al., "Can Large Language Models Infer Causation from Correlation?", ICLR 2024
(arXiv 2306.05836). The oracle itself is claims.py, the reasoning in words reasoning.py, the rows of the task rows.py.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import combinations, cycle, permutations

from causal.claims import Claim, claim_on
from causal.classes import MAX_VARIABLES, Premise, cpdag, known_limit
from causal.graphs import DAG, Corr2CauseError, Independence, bits, dag_edges
from causal.vocabulary import DIRECTION, RELATION_OF, TELLINGS, TEMPLATES, WORDINGS

NAME = r"[^\W\d_]\w*(?:[ '-]\w+)*"  # of a variable: "A", "blood pressure"
TAKEN = frozenset({"and", "nothing"})  # what a list of variables says between them, and of none
_LISTS = ("others", "given")  # slots of a sentence that hold lists of variables
_SLOT = re.compile(r"{(\w+)}")
_LIMIT = " given at most {k} of the others"  # what an opening says of a premise with `max_given`


class ContradictionError(Corr2CauseError):
    """A premise whose statements contradict each other, or leave a pair undecided."""


# ---------------------------------------------------------------- text


def listing(names: Sequence[str]) -> str:
    """'A, B and C'; nothing of nothing."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def split_input(text: str) -> tuple[str, str]:
    """'Premise: P\\nHypothesis: H' -> (P, H), with one space between words whatever was typed there."""
    if not isinstance(text, str):
        raise Corr2CauseError(f"the input is {type(text).__name__}, not text like 'Premise: ...\\nHypothesis: ...'")
    head, *tail = text.strip().split("Hypothesis:")
    if not head.startswith("Premise:") or len(tail) != 1:
        raise Corr2CauseError(f"expected 'Premise: ...\\nHypothesis: ...' (one line each), got {_short(text)}")
    premise, hypothesis = (" ".join(part.split()) for part in (head.removeprefix("Premise:"), tail[0]))
    if not premise or not hypothesis:
        raise Corr2CauseError(f"the {'hypothesis' if premise else 'premise'} is empty in {_short(text)}")
    return premise, hypothesis


def write_input(premise_text: str, hypothesis_text: str) -> str:
    """The task's input text."""
    return f"Premise: {premise_text}\nHypothesis: {hypothesis_text}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _index(name: str, variables: Sequence[str], where: str) -> int:
    if name not in variables:
        raise Corr2CauseError(f"unknown variable {_short(name)} in {_short(where)}; known: {', '.join(variables)}")
    return variables.index(name)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


# ---------------------------------------------------------------- sentences


@lru_cache(maxsize=65536)
def _pattern(sentence: str, names: tuple[str, ...] = ()) -> re.Pattern:
    """A sentence with a group for each of its slots, which holds variables of `names`, or without any, other text.

    The first letter may be a capital or not, also where that is a variable's.
    """
    name = rf"(?:{'|'.join(map(re.escape, names))})" if names else "[^.,]+?"
    text = ""
    for k, part in enumerate(_SLOT.split(sentence)):
        first = rf"(?:{'|'.join(map(re.escape, [*names, *map(_capital, names)]))})" if names and not text else name
        if k % 2 == 0:
            text += f"(?i:{re.escape(part[0])}){re.escape(part[1:])}" if part and not text else re.escape(part)
        elif part in _LISTS:
            text += f"(?P<{part}>{first}(?:(?:, {name})* and {name})?)" if names else f"(?P<{part}>[^.]+?)"
        else:
            text += f"(?P<{part}>{first})"
    return re.compile(text)


class _Sentences(dict):
    """{sentence: what it stands for}, which reads a text as the first of its sentences that it is."""

    def __init__(self, meanings: Mapping[str, object]):
        super().__init__(meanings)
        self.patterns = {sentence: _pattern(sentence) for sentence in self}

    def read(self, text: str, variables: Sequence[str]) -> tuple[object, dict[str, list[int]]] | None:
        """(what it stands for, {slot: the variables in it}); None if the text is none of the sentences.

        Raises Corr2CauseError where it is one but for its variables.
        """
        error = None
        for sentence, pattern in self.patterns.items():
            match = pattern.fullmatch(text)
            if match:
                try:
                    return self[sentence], _slots(match, variables, text)
                except Corr2CauseError as wrong:
                    error = error or wrong
        if error is None:
            return None
        names = tuple(sorted(variables))  # which may hold words of a sentence
        for sentence, what in self.items():
            match = _pattern(sentence, names).fullmatch(text)
            if match:
                return what, _slots(match, variables, text)
        raise error


def _slots(match: re.Match, variables: Sequence[str], text: str) -> dict[str, list[int]]:
    """{slot: the variables in it}."""
    found = {}
    for slot, said in match.groupdict().items():
        names = re.split(r", | and ", said) if slot in _LISTS else [said]
        if len(names) > 1 and listing(names) != said:
            raise Corr2CauseError(f"{_short(said)} in {_short(text)} is not a list like 'A, B and C'")
        if match.start(slot) == 0 and said not in variables:
            names[0] = next((name for name in variables if _capital(name) == names[0]), names[0])
        found[slot] = [_index(name, variables, text) for name in names]
    return found


# ---------------------------------------------------------------- premises


@cache
def _opening(telling: str) -> re.Pattern:
    text = re.escape(TELLINGS[telling].opening)
    for slot, pattern in {"n": r"\d{1,3}", "m": r"\d{1,3}", "names": "[^.]+?"}.items():
        text = text.replace(rf"\{{{slot}\}}", f"(?P<{slot}>{pattern})")
    limit = _LIMIT.format(k=r"(?P<limit>\d{1,3})")
    text = text.replace(r"\{limit\}", f"(?:{limit})?")
    return re.compile(rf"{text} (?P<body>.+)")


def _read_opening(text: str) -> tuple[str, tuple[str, ...], int | None, str]:
    """The telling, the variables, the size of the largest conditioning sets that are listed, and the relations."""
    said = " ".join(text.split())
    found = ((telling, match) for telling in TELLINGS if (match := _opening(telling).fullmatch(said)))
    telling, match = next(found, ("", None))
    if match is None:
        raise Corr2CauseError(
            f"the premise {_short(text)} does not read 'Suppose there is a closed system of N variables, A, B and C. "
            "All the statistical relations among these N variables are as follows: ...'"
        )
    groups = match.groupdict()
    variables = tuple(re.split(r", | and ", groups["names"]))
    _check_variables(variables, groups["names"])
    counts = [groups[slot] for slot in ("n", "m") if slot in groups]
    if any(int(count) != len(variables) for count in counts):
        raise Corr2CauseError(f"the premise says {' and '.join(counts)} variables but lists {len(variables)}")
    if not 2 <= len(variables) <= MAX_VARIABLES:
        raise Corr2CauseError(f"the premise has {len(variables)} variables; 2 to {MAX_VARIABLES} are supported")
    limit = groups["limit"] and int(groups["limit"])
    return telling, variables, known_limit(limit, len(variables)), groups["body"]


def _check_variables(variables: Sequence[str], listed: str) -> None:
    """Raises Corr2CauseError for names that are none, or that a text could not tell apart."""
    if listing(variables) != listed or not all(re.fullmatch(NAME, name) for name in variables):
        raise Corr2CauseError(f"the variables {_short(listed)} are not a list of names like 'A, B and C'")
    if len(set(map(_capital, variables))) < len(variables):
        raise Corr2CauseError(f"a variable is listed twice in {_short(listed)}")
    taken = TAKEN.intersection(variables)
    if taken:
        raise Corr2CauseError(f"a variable cannot be called {', '.join(sorted(taken))}, a word of lists; rename it")
    for part, whole in permutations(variables, 2):
        small = part[0].lower() + part[1:]
        if any(re.search(rf"\b{re.escape(form)}\b", whole) for form in (part, small, _capital(part))):
            raise Corr2CauseError(f"the variable {part!r} is part of the variable {whole!r}; rename one of them")


@cache
def _statements(telling: str) -> _Sentences:
    """{sentence: is it an independence?}; a condition is part of no variable, so it is looked for first."""
    told = TELLINGS[telling]
    return _Sentences(dict.fromkeys(told.correlated, False) | dict.fromkeys((*told.given, *told.independent), True))


def _parse_statement(sentence: str, variables: Sequence[str], telling: str) -> tuple[bool, list[Independence]]:
    """One sentence -> (is it an independence?, [(i, j, given), ...]) with i < j."""
    read = _statements(telling).read(sentence, variables)
    if read is None:
        raise Corr2CauseError(f"cannot read the statement {_short(sentence)} in the premise")
    is_independence, slots = read
    named = [v for values in slots.values() for v in values]
    if len(set(named)) < len(named):
        raise Corr2CauseError(f"a variable occurs twice in the statement {_short(sentence)}")
    (i,), others, given = slots["a"], slots.get("others") or slots["b"], sum(1 << v for v in slots.get("given", ()))
    return is_independence, [(min(i, j), max(i, j), given) for j in others]


def _parse_statements(
    body: str, variables: Sequence[str], telling: str, independences: bool | None
) -> tuple[bool, set[Independence]]:
    """A run of sentences that are all correlations, or all independences; None: whichever the first is."""
    found = set()
    for sentence in re.findall(r"[^.]+\.?|\.", body):
        is_independence, statements = _parse_statement(sentence.strip(), variables, telling)
        independences = is_independence if independences is None else independences
        if is_independence != independences:
            raise Corr2CauseError(
                f"{_short(sentence.strip())} is out of place: correlations come first, then "
                f"{TELLINGS[telling].turn!r}, then independences"
            )
        if not found.isdisjoint(statements):
            raise Corr2CauseError(f"the premise states {_short(sentence.strip())} twice")
        found.update(statements)
    return bool(independences), found


def parse_premise(text: str) -> Premise:
    """Reads a premise (without 'Premise: ') in any of TELLINGS; the statements may come in any order within their part.

    Raises Corr2CauseError for anything malformed, duplicate or unknown and for a pair that neither correlates nor is
    marginally independent, ContradictionError for one that does both. Whether a graph exists is tested by
    `pdag`. A premise has up to 270 claims: what was read is kept.
    """
    if not isinstance(text, str):
        raise Corr2CauseError(f"the premise is {type(text).__name__}, not text")
    return _parse_premise(text)[1]


def telling_of(premise_text: str) -> str:
    """The name, in TELLINGS, of how the premise is told. Raises as `parse_premise` does."""
    parse_premise(premise_text)
    return _parse_premise(premise_text)[0]


@lru_cache(maxsize=8192)
def _parse_premise(text: str) -> tuple[str, Premise]:
    telling, variables, max_given, body = _read_opening(text)
    turn = TELLINGS[telling].turn
    first, turned, second = body.partition(turn)
    if turned and not (first.strip() and second.strip()):
        raise Corr2CauseError(f"{turn!r} must stand between the correlations and the independences of the premise")
    # Without a turn there are statements of one kind alone.
    independent, statements = _parse_statements(first.strip(), variables, telling, False if turned else None)
    correlations, independences = (set(), statements) if independent else (statements, set())
    if turned:
        _, independences = _parse_statements(second.strip(), variables, telling, True)
    for i, j in combinations(range(len(variables)), 2):
        correlated, independent = (i, j, 0) in correlations, (i, j, 0) in independences
        if correlated == independent:
            state = "both correlated and independent" if correlated else "neither correlated nor independent"
            error = ContradictionError if correlated else Corr2CauseError
            raise error(f"the premise leaves {variables[i]} and {variables[j]} {state}; state exactly one")
    for i, j, given in independences if max_given is not None else ():
        if given.bit_count() > max_given:
            sentence = _short(write_independence((i, j, given), variables))
            raise Corr2CauseError(f"the premise is of sets of at most {max_given} variables, which {sentence} is not")
    return telling, Premise(variables, frozenset(independences), max_given)


def released_order(independence: Independence) -> tuple[int, int, tuple[int, ...]]:
    """The sort key that puts independences in the order of the released premises."""
    i, j, given = independence
    return i, j, bits(given)


def write_independence(independence: Independence, variables: Sequence[str]) -> str:
    """'A is independent of B.' or 'A and B are independent given C and D.'"""
    i, j, given = independence
    told = TELLINGS["released"]
    return _capital(_sentence((told.given if given else told.independent)[0], i, (j,), given, tuple(variables)))


@lru_cache(maxsize=65536)
def _sentence(sentence: str, i: int, others: tuple[int, ...], given: int, names: tuple[str, ...]) -> str:
    listed = listing([names[j] for j in others])
    return sentence.format(a=names[i], b=listed, others=listed, given=listing([names[v] for v in bits(given)]))


def _told(kinds: Sequence[Sequence[str]], stated: Sequence[Independence], names: tuple[str, ...]) -> list[str]:
    """The sentences that state this, in the order of what each states first; `kinds` are those without a condition and
    those with one."""
    if "{others}" in kinds[0][0]:
        together: dict[tuple[int, int], list[int]] = {}
        for i, j, given in stated:
            together.setdefault((i, given), []).append(j)
        told = [(i, tuple(others), given) for (i, given), others in together.items()]
    else:
        told = [(i, (j,), given) for i, j, given in stated]
    turns = [cycle(sentences) for sentences in kinds]
    return [_sentence(next(turns[given > 0]), i, others, given, names) for i, others, given in told]


def write_premise(premise: Premise, shuffle: random.Random | None = None, telling: str = "released") -> str:
    """The premise without 'Premise: ', in a telling of TELLINGS, with its statements in the order of the released rows;
    `shuffle` reorders the independences."""
    stated = sorted(premise.independences, key=released_order)
    if shuffle is not None:
        shuffle.shuffle(stated)
    return write_statements(stated, premise.variables, telling, premise.max_given)


def write_statements(
    stated: Sequence[Independence], names: tuple[str, ...], telling: str = "released", max_given: int | None = None
) -> str:
    """The premise of these independences, in this order: which variables there are, which correlate, which do not.

    With `max_given` it says that these are all those by sets of at most so many variables. Raises
    Corr2CauseError for a telling that is none.
    """
    if telling not in TELLINGS:
        raise Corr2CauseError(f"telling {telling!r} is not one of {', '.join(TELLINGS)}")
    told, pairs = TELLINGS[telling], combinations(range(len(names)), 2)
    marginal = {(i, j) for i, j, given in stated if not given}
    correlated = [(i, j, 0) for i, j in pairs if (i, j) not in marginal]
    first = " ".join(map(_capital, _told((told.correlated,), correlated, names)))
    second = _told((told.independent, told.given), stated, names)
    if first and second:
        second[0] = told.turn + second[0]
    limit = "" if max_given is None else _LIMIT.format(k=max_given)
    opening = told.opening.format(n=len(names), m=len(names), names=listing(names), limit=limit)
    return " ".join(filter(None, (opening, first, *map(_capital, second))))


# ---------------------------------------------------------------- hypotheses


@cache
def _hypotheses() -> _Sentences:
    """{sentence: (template, wording)}; where templates share a sentence, the first."""
    found: dict[str, tuple[str, str]] = {}
    for name, wording in WORDINGS.items():
        for template, sentence in wording.items():
            found.setdefault(sentence, (template, name))
    return _Sentences(found)


def _read_hypothesis(text: str, variables: Sequence[str]) -> tuple[str, str, int, int]:
    """(template, wording, a, b)."""
    if not isinstance(text, str):
        raise Corr2CauseError(f"the hypothesis is {type(text).__name__}, not text")
    read = _hypotheses().read(" ".join(text.split()), variables)
    if read is None:
        raise Corr2CauseError(f"cannot read the hypothesis {_short(text)}; expected for example 'A directly causes B.'")
    (template, wording), slots = read
    return template, wording, *slots["a"], *slots["b"]


def read_hypothesis(text: str, variables: Sequence[str]) -> tuple[Claim, str]:
    """The claim and its `template`; where templates share a wording, the first (parent and child: by order)."""
    template, _, i, j = _read_hypothesis(text, variables)
    return _claim(template, i, j, text)


def wording_of(hypothesis: str, variables: Sequence[str]) -> str:
    """The name, in WORDINGS, of the words that the hypothesis is in. Raises Corr2CauseError if it is in none."""
    return _read_hypothesis(hypothesis, variables)[1]


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
    _check_words(claim, template, wording)
    return _capital(WORDINGS[wording][template].format(a=variables[claim.i], b=variables[claim.j]))


def _check_words(claim: Claim, template: str, wording: str) -> None:
    """Raises Corr2CauseError for a template that words no such claim, or a wording that is none."""
    if RELATION_OF.get(template) != claim.relation:
        raise Corr2CauseError(f"template {template!r} does not word a {claim.relation} claim; use one of {TEMPLATES}")
    if wording not in WORDINGS:
        raise Corr2CauseError(f"wording {wording!r} is not one of {', '.join(WORDINGS)}")


# ---------------------------------------------------------------- words that nobody knows

_SYLLABLE = ("bcdfghklmnprstvw", "aeiou", ("", "", *"dlmnrst"))
_SYLLABLES = 3
# Characters, at most, of the words of a hypothesis that are made up, each with a space before it.
LONGEST_UNKNOWN_HYPOTHESIS = (len(_SYLLABLE) * _SYLLABLES + 1) * max(
    len(sentence.split()) for wording in WORDINGS.values() for sentence in wording.values()
)
_SHARES = (0.3, 0.6, 1.0)  # of the other words that are made up too
_WORD = re.compile(r"(?P<slot>{\w+})|\w+(?:\(\w+\))?")
# The claim with all arrows turned; of the other templates the variables exchange places.
_TURNED = {"has_collider": "has_confounder", "has_confounder": "has_collider"}


def _made_up(rng: random.Random) -> str:
    return "".join(rng.choice(part) for _ in range(rng.randint(1, _SYLLABLES)) for part in _SYLLABLE)


def write_unknown_hypothesis(
    claim: Claim, variables: Sequence[str], template: str, wording: str, rng: random.Random
) -> str:
    """As `write_hypothesis`, with words made up in place of all that say which way arrows point, and of some others.

    Half of the time it is a sentence of the claim with all arrows turned: nobody who does not know the verb knows which
    one is the cause. So who is taught the claim with it learns what may be meant where words are not known: any of
    those that the others leave. Words replaced at random, as noise for language models (Xie et al. 2017,
    https://arxiv.org/abs/1703.02573).
    """
    _check_words(claim, template, wording)
    share, (first, second) = rng.choice(_SHARES), (variables[claim.i], variables[claim.j])
    if rng.random() < 0.5:
        if template in _TURNED:
            template = _TURNED[template]
        else:
            first, second = second, first

    def replacement(match: re.Match) -> str:
        if match["slot"] or not (DIRECTION.fullmatch(match[0]) or rng.random() < share):
            return match[0]
        word = _made_up(rng)
        return _capital(word) if match[0][0].isupper() else word

    sentence = _WORD.sub(replacement, WORDINGS[wording][template])
    return _capital(sentence.format(a=first, b=second))


# ---------------------------------------------------------------- edges in words


def class_edges(premise: Premise) -> list[str]:
    """The class's edges in pair order: 'A -> B' where all members agree, 'A - B' where they differ."""
    directed, undirected = cpdag(premise)
    signs = {edge: "->" if edge in directed else "-" for edge in sorted(directed | undirected, key=sorted)}
    return [f"{premise.variables[u]} {sign} {premise.variables[v]}" for (u, v), sign in signs.items()]


def member_edges(dag: DAG, variables: Sequence[str]) -> list[str]:
    """The edges of one member of a class, in the same words and order."""
    return [f"{variables[u]} -> {variables[v]}" for u, v in sorted(dag_edges(dag), key=sorted)]
