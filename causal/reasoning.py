"""Reasoning that can be checked: the PC algorithm in small steps, each of which can be marked right or wrong.

    trace(premise, claim)               the exact reasoning, one step a line, ending in 'Answer: Yes' or 'Answer: No'
    check_trace(text, premise, claim)   every sentence of any text: right, wrong or unreadable; and what is missing
    correction(text, premise, claim)    what of a text is right up to its first fault, and the exact steps from there on

The order is that of Spirtes and Glymour's PC algorithm on a complete list of independences:

1. every pair: is it cut, and by which set (the first that the premise lists);
2. every pair that is cut, with every third variable that is adjacent to both: a collider if the set is without it;
3. rounds over every pair that orient what Meek's rules force, until a round changes nothing;
4. a search of the resulting edges that decides the claim, and the answer.

So that a small model can learn it, every step is a look-up of one pair, or follows from what stands just before it:
pairs and third variables come in a fixed order; what is not there is said too; a pair is always followed by its state
(`trace_text.MARKS`), which is restated where it changes; whether anything has changed is carried along to where it
decides what comes next. trace_text.py has the words, in two styles (STYLES), which are both read back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from typing import NamedTuple

from causal.claims import MAX_LISTED, Claim, exact_label, proof_cases, witnesses
from causal.classes import (
    PDAG,
    Premise,
    class_size,
    first_separators,
    markov_equivalence_class,
    pdag,
    some_member,
    with_edges,
)
from causal.graphs import DAG, bits, topological_order
from causal.trace_text import STYLES, Step, read_step, read_trace, sentence_spans, write_step, write_steps

__all__ = [
    "STYLES",
    "CheckedSentence",
    "Step",
    "TraceCheck",
    "check_trace",
    "correction",
    "is_right",
    "read_step",
    "read_trace",
    "reasoning_steps",
    "required_steps",
    "sentence_spans",
    "subject",
    "trace",
    "write_step",
]


# ---------------------------------------------------------------- the class


class _Marks:
    """What is known of every pair so far; `look` says it, `orient` changes it.

    `table[u][v]` is the mark of u and v as seen from u.
    """

    def __init__(self, n: int, separators: Mapping[tuple[int, int], int]):
        self.table = [["-"] * n for _ in range(n)]
        for a, b in separators:
            self.table[a][b] = self.table[b][a] = "none"

    def look(self, phrases: list, u: int, v: int) -> str:
        """Adds the pair with its mark to the phrases; the mark as seen from u."""
        phrases.append((self.table[u][v], u, v) if u < v else (self.table[v][u], v, u))
        return self.table[u][v]

    def orient(self, phrases: list, u: int, v: int) -> None:
        """Makes it u -> v, and says so."""
        self.table[u][v], self.table[v][u] = "->", "<-"
        self.look(phrases, u, v)


def class_steps(n: int, separators: Mapping[tuple[int, int], int]) -> tuple[list[Step], _Marks]:
    """The steps from the pairs that are separated, and by which set, to the edges of the class; and these."""
    pairs, marks = list(combinations(range(n), 2)), _Marks(n, separators)
    steps = []
    for pair in pairs:
        cut = pair in separators
        steps.append(Step(("pair", *pair), (("is none",), ("given", separators[pair])) if cut else (("is -",),)))
    flag = "same"
    for a, b in pairs:
        phrases = [(f"is {marks.table[a][b]}",)]
        if (a, b) in separators and _triples(n, marks, a, b, separators[a, b], phrases):
            flag = "changed"
        steps.append(Step(("ends", a, b), (*phrases, (flag,))))
    number = 0
    while flag == "changed":
        number, flag = number + 1, "same"
        for a, b in pairs:
            phrases = [(f"is {marks.table[a][b]}",)]
            if marks.table[a][b] == "-" and _forced(n, marks, a, b, phrases):
                flag = "changed"
            steps.append(Step(("round", number, a, b), (*phrases, (flag,))))
    return steps, marks


def _triples(n: int, marks: _Marks, a: int, b: int, given: int, phrases: list) -> bool:
    """The triples a - k - b: chains and colliders, and what a chain beside a collider forces; is any a collider?"""
    phrases.append(("given", given))
    chains, colliders = [], []
    for k in range(n):
        if k in (a, b) or marks.look(phrases, a, k) == "none" or marks.look(phrases, k, b) == "none":
            continue
        if given >> k & 1:
            phrases.append(("in",))
            chains.append(k)
        else:
            phrases.append(("out",))
            marks.orient(phrases, a, k)
            marks.orient(phrases, b, k)
            colliders.append(k)
    for chain in chains:
        for collider in colliders:
            if marks.look(phrases, chain, collider) == "-":  # Meek's rule 3
                phrases.append(("rule 3",))
                marks.orient(phrases, chain, collider)
    phrases.append(("end",))
    return bool(colliders)


def _forced(n: int, marks: _Marks, a: int, b: int, phrases: list) -> bool:
    """Looks at a - b beside every third variable, until Meek's rule 1 or 2 orients it; does one?

    Rule 3 is in `_triples`. Rule 4 orients nothing in a graph whose arrows come from v-structures alone (Meek 1995).
    """
    for k in range(n):
        if k in (a, b):
            continue
        first = marks.look(phrases, a, k)
        if first == "-":
            continue
        second = marks.look(phrases, k, b)
        if first == "none":
            cause, effect, rule = b, a, "rule 1" if second == "->" else None
        elif first == "<-":
            cause, effect, rule = (b, a, "rule 2") if second == "<-" else (a, b, "rule 1" if second == "none" else None)
        else:
            cause, effect, rule = a, b, "rule 2" if second == "->" else None
        if rule:
            phrases.append((rule,))
            marks.orient(phrases, cause, effect)
            return True
    phrases.append(("end",))
    return False


# ---------------------------------------------------------------- the claim


def claim_steps(n: int, marks: _Marks, claim: Claim) -> tuple[list[Step], bool]:
    """The search that decides a claim, by local steps alone; and whether it finds that the claim holds in every member.

    direct: is it i -> j? indirect: does i reach j along arrows; else, has i two undirected neighbours that are not
    adjacent, each with a way on to j past i's neighbours? In every member i is the cause of one of the two (else they
    would collide), and then Meek's rule 1 turns its way forwards. collider: do i and j reach one variable along
    arrows; confounder: does one reach both, where undirected edges connect variables that have a common cause?

    What is found is so. What is not found is not so, but for a few colliders, where undirected edges take turns: of
    those that hold in every graph 22 of 388 for N = 5, and 566 of 13,138 for N = 6.
    """
    i, j = claim.i, claim.j
    if claim.relation == "direct":
        phrases: list = []
        found = marks.look(phrases, i, j) == "->"
        return [Step(("link", i, j), (*phrases, (_verdict(found),)))], found
    if claim.relation == "indirect":
        steps, _, found = _search(n, marks, "from", i, j, goal=j)
        return (steps, True) if found else _turns_to(n, marks, i, j, steps)
    word = "from" if claim.relation == "collider" else "into"
    steps, reached, _ = _search(n, marks, word, i, j)
    others, _, found = _search(n, marks, word, j, i, among=reached)
    return [*steps, *others, *([] if found else [Step(("miss",))])], found


def _verdict(found: bool) -> str:
    return "found" if found else "missing"


def _search(
    n: int, marks: _Marks, word: str, start: int, other: int, goal: int | None = None, among: int = 0
) -> tuple[list[Step], int, bool]:
    """From `start` along arrows, or into it against them, never through `other`, one step for each variable reached.

    Each is looked up beside all the others; the smallest that is reached comes next. Ends when it comes upon the goal,
    or a variable in `among`. Into: from the first on against undirected edges too, whose ends have a common cause.
    Returns the steps, what is reached, and whether it came upon what it was looking for.
    """
    steps, reached, left, u = [], 0, 0, start
    while True:
        phrases, ways = [], ("->",) if word == "from" else ("<-",) if u == start else ("<-", "-")
        found = goal is not None and u != start and marks.look(phrases, u, goal) == "->"
        for k in range(n):
            if found or k in (start, other, u) or marks.look(phrases, u, k) not in ways:
                continue
            found = bool(among >> k & 1)
            phrases.append(("both" if found else "old" if reached >> k & 1 else "new",))
            if not reached >> k & 1:
                left |= 1 << k
            reached |= 1 << k
        phrases.append(("found",) if found else ("next", left) if left else ("reached", reached))
        steps.append(Step((word, start, other, u), tuple(phrases)))
        if found or not left:
            return steps, reached, found
        u = bits(left)[0]
        left &= ~(1 << u)


def _turns_to(n: int, marks: _Marks, i: int, j: int, steps: list[Step]) -> tuple[list[Step], bool]:
    """Does i reach j through one or the other of two undirected neighbours? The steps with these, and the answer."""
    phrases: list = []
    possible = marks.look(phrases, i, j) in ("none", "->")
    steps.append(Step(("link", i, j), (*phrases, ("open" if possible else "missing",))))
    if not possible:
        return steps, False
    phrases = []
    beside = []
    for k in range(n):
        if k not in (i, j) and marks.look(phrases, i, k) == "-":
            phrases.append(("new",))
            beside.append(k)
    enough = len(beside) > 1
    steps.append(Step(("fork", i, j), (*phrases, ("next", sum(1 << k for k in beside)) if enough else ("missing",))))
    if not enough:
        return steps, False
    far = [k for k in beside if _way(n, marks, k, i, j, steps)]
    phrases = []
    found = any(marks.look(phrases, u, v) == "none" for u, v in combinations(far, 2))
    steps.append(Step(("apart",), (*phrases, (_verdict(found),))))
    return steps, found


def _way(n: int, marks: _Marks, start: int, i: int, j: int, steps: list[Step]) -> bool:
    """From a neighbour of i to j through variables not adjacent to i, never against an arrow; adds the steps."""
    reached, left, u = 1 << start, 0, start
    while True:
        phrases: list = []
        found = marks.look(phrases, u, j) in ("-", "->")
        for k in range(n):
            if found or k in (i, j, u) or marks.look(phrases, u, k) not in ("-", "->"):
                continue
            if marks.look(phrases, i, k) == "none":
                phrases.append(("old" if reached >> k & 1 else "new",))
                if not reached >> k & 1:
                    reached, left = reached | 1 << k, left | 1 << k
        phrases.append(("far",) if found else ("next", left) if left else ("missing",))
        steps.append(Step(("way", start, i, u), tuple(phrases)))
        if found or not left:
            return found
        u = bits(left)[0]
        left &= ~(1 << u)


def cover(premise: Premise, claim: Claim) -> tuple:
    """Paths such that every member has one of the alternatives: what undirected edges that take turns leave.

    Of a class with more than MAX_LISTED members one for each case of the search that proves the claim.
    """
    if class_size(premise) > MAX_LISTED:
        cases = proof_cases(pdag(premise), claim)
        return tuple(dict.fromkeys(min(_alternatives(dag, claim), key=_length) for dag in cases))
    found = {}  # alternative -> the members that have it
    members = markov_equivalence_class(premise)
    for number, dag in enumerate(members):
        for paths in _alternatives(dag, claim):
            found.setdefault(paths, set()).add(number)
    missing, chosen = set(range(len(members))), []
    while missing:  # greedy: most members first, then the shortest
        best = min(found, key=lambda paths: (-len(found[paths] & missing), *_length(paths)))
        missing -= found[best]
        chosen.append(best)
    return tuple(chosen)


def _length(paths: tuple) -> tuple:
    return sum(map(len, paths)), paths


def _alternatives(dag: DAG, claim: Claim) -> Iterator[tuple]:
    """Each thing that makes the claim hold in the graph, as paths of variables in order."""
    rank = {v: r for r, v in enumerate(topological_order(dag))}
    for masks in witnesses(dag, claim):
        yield tuple(tuple(sorted(bits(mask), key=rank.get)) for mask in masks)


# ---------------------------------------------------------------- the whole


def steps_of(
    n: int, separators: Mapping[tuple[int, int], int], claim: Claim, label: int, cover_of_all: Callable[[], tuple]
) -> list[Step]:
    """The exact reasoning: from what separates the pairs of a premise that some graph satisfies, and the claim's label.

    `cover_of_all` gives the class's `cover`, and is asked only where the search does not find what the label says.
    """
    steps, marks = class_steps(n, separators)
    found_steps, found = claim_steps(n, marks, claim)
    assert label or not found, f"{claim} is found to hold, and does not"
    if label and not found:
        found_steps[-1] = Step(("turns", cover_of_all()))
    return [*steps, *found_steps, Step(("answer", bool(label)))]


def reasoning_steps(premise: Premise, claim: Claim) -> list[Step]:
    """The exact reasoning, ending in the answer. Raises Corr2CauseError if no graph satisfies the premise."""
    label = exact_label(premise, claim)
    return steps_of(len(premise.variables), first_separators(premise), claim, label, partial(cover, premise, claim))


def trace(premise: Premise, claim: Claim, style: str = "compact") -> str:
    """The exact reasoning in words, one step a line. Raises Corr2CauseError for an unknown style or a false premise."""
    return write_steps(reasoning_steps(premise, claim), premise.variables, style)


# ---------------------------------------------------------------- checking


class CheckedSentence(NamedTuple):
    """A sentence of a trace, its step (None: unreadable), and whether that is right (False where unreadable)."""

    text: str
    step: Step | None
    right: bool


@dataclass(frozen=True)
class TraceCheck:
    """What `check_trace` finds: every sentence in order, and the required steps that no right sentence settles."""

    sentences: tuple[CheckedSentence, ...]
    missing: tuple[Step, ...]

    @property
    def wrong(self) -> tuple[CheckedSentence, ...]:
        """The sentences that are read and false."""
        return tuple(s for s in self.sentences if s.step is not None and not s.right)

    @property
    def unreadable(self) -> tuple[CheckedSentence, ...]:
        """The sentences that state nothing the checker knows."""
        return tuple(s for s in self.sentences if s.step is None)

    @property
    def counts(self) -> str:
        """How many sentences are right, wrong and unreadable, and how many steps missing, in words."""
        right = sum(s.right for s in self.sentences)
        wrong, unreadable, missing = map(len, (self.wrong, self.unreadable, self.missing))
        return f"{right} right, {wrong} wrong, {unreadable} unreadable, {missing} missing"

    @property
    def complete(self) -> bool:
        """Is every sentence right, and nothing missing?"""
        return not self.missing and all(s.right for s in self.sentences)


def subject(step: Step) -> tuple:
    """What the step settles: two steps of one subject are two answers to one question."""
    return (step.kind,) if step.kind in ("turns", "answer") else step.head


@lru_cache(maxsize=2048)
def required_steps(premise: Premise, claim: Claim) -> dict[tuple, Step]:
    """{subject: exact step} of a complete trace, in order, the answer last; shared, so not to be changed.

    Raises Corr2CauseError if no graph satisfies the premise: nothing is right or wrong there.
    """
    return {subject(step): step for step in reasoning_steps(premise, claim)}


def is_right(step: Step, premise: Premise, claim: Claim) -> bool:
    """Is this the step that the reasoning takes there? Another set that separates the pair, or another list of paths
    of which every member has one, is as good as the exact one's."""
    exact = required_steps(premise, claim).get(subject(step))
    if exact is None or step == exact:
        return exact is not None
    match step.head, step.phrases:
        case (("turns", alternatives), ()):
            return _covers(alternatives, premise, claim)
        case (("pair" | "ends"), a, b), (_, ("given", given), *_):
            separates = (a, b, given) in premise.independences
            return separates and _given(step, given) == _given(exact, given)
    return False


def _given(step: Step, given: int) -> list[tuple]:
    """The step's phrases with another set, which changes no other: chains are in all of them, colliders in none."""
    return [("given", given) if phrase[0] == "given" else phrase for phrase in step.phrases]


def _covers(alternatives: tuple, premise: Premise, claim: Claim) -> bool:
    """Has every member one of the alternatives, and is each one that makes the claim hold in some member?"""
    out = pdag(premise)
    for paths in alternatives:
        # Its edges make it a witness in every member that has them or in none: one such member tells.
        having = with_edges(out, edges_of(paths))
        wanted = sorted(sum(1 << v for v in path) for path in paths)
        if having is None or not any(sorted(masks) == wanted for masks in witnesses(some_member(having), claim)):
            return False
    return not _uncovered(out, [edges_of(paths) for paths in alternatives])


def edges_of(paths: tuple) -> list[tuple[int, int]]:
    """The edges (cause, effect) of paths of variables."""
    return [edge for path in paths for edge in zip(path, path[1:], strict=False)]


def _uncovered(out: PDAG, alternatives: Sequence[list[tuple[int, int]]]) -> bool:
    """Has some member of the PDAG none of the alternatives? Each undirected edge of one is taken both ways."""
    possible = [edges for edges in alternatives if with_edges(out, edges) is not None]
    if not possible:
        return True
    u, v = next(((u, v) for u, v in possible[0] if out[v] >> u & 1), (0, 0))
    if u == v:
        return False
    return any(_uncovered(with_edges(out, [edge]), possible) for edge in ((v, u), (u, v)))


def check_trace(text: str, premise: Premise, claim: Claim) -> TraceCheck:
    """Marks every sentence of `text` and names what is missing of the reasoning.

    Raises Corr2CauseError if no graph satisfies the premise: nothing is right or wrong there.
    """
    required, sentences = required_steps(premise, claim), []
    for sentence, step in read_trace(text, premise.variables):
        sentences.append(CheckedSentence(sentence, step, step is not None and is_right(step, premise, claim)))
    settled = {subject(s.step) for s in sentences if s.right}
    return TraceCheck(tuple(sentences), tuple(step for what, step in required.items() if what not in settled))


def correction(text: str, premise: Premise, claim: Claim) -> tuple[str, list[Step]] | None:
    """What a text has of the reasoning before it first leaves it, and the exact steps from there to the answer.

    A sentence leaves it if it is not right, or not the next step. The steps keep to the sets that the text has chosen.
    None if the text has all steps, whatever follows. Raises Corr2CauseError if no graph satisfies the premise.
    """
    required, chosen, done, kept = list(required_steps(premise, claim).values()), {}, 0, 0  # kept: characters
    for start, end in sentence_spans(text):
        if done == len(required):
            return None
        step = read_step(text[start:end], premise.variables)
        if step is None or subject(step) != subject(required[done]) or not is_right(step, premise, claim):
            break
        if step.kind == "pair" and step.phrases != required[done].phrases:
            chosen[step.head[1:]] = step.phrases[1][1]
        done, kept = done + 1, end
    if done == len(required):
        return None
    steps = required[done:]
    for k, step in enumerate(steps):
        if step.kind == "ends" and step.head[1:] in chosen:
            steps[k] = Step(step.head, tuple(_given(step, chosen[step.head[1:]])))
    return f"{text[:kept].rstrip()}\n" if kept else "", steps
