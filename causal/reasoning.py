"""Reasoning that can be checked: the PC algorithm in words, read back into steps, each step marked right or wrong.

    trace(premise, claim)               the exact reasoning, one step a line, ending in 'Answer: Yes' or 'Answer: No'
    check_trace(text, premise, claim)   every sentence of any text: right, wrong or unreadable; and what is missing

The order is that of Spirtes and Glymour's PC algorithm on a complete list of independences: which pairs are cut and by
which set, the triples around a cut pair and which are colliders, what Meek's rules orient, the resulting edges of the
equivalence class; then what they say about the claim, and the answer. Both styles (compact, full) are read back. The
compact one leaves no search to the reader: it goes through every pair and triple, the full one through those that tell.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations
from typing import NamedTuple

from causal.graphs import (
    DAG,
    PDAG,
    Claim,
    Corr2CauseError,
    Premise,
    bits,
    children,
    counterexample,
    dag_edges,
    exact_label,
    first_separators,
    holds,
    markov_equivalence_class,
    meek_steps,
    pdag,
    skeleton,
    topological_order,
    witnesses,
)

STYLES = ("compact", "full")

# kind: (compact, full). {a} to {d} are variables, the other fields as in `_FIELD_TYPES`. In the compact style every
# variable follows a space, so that a byte-level BPE sees one token for it everywhere, and commas part the look-ups of a
# triple, so that each can be a token too.
_WORDING = {
    "adjacent": ("Pair {a} {b}: kept.", "No set of variables separates {a} and {b}, so they are adjacent."),
    "separated": (
        "Pair {a} {b}: cut given {set}.",
        "The pair {a} and {b} is independent given {set}, so the two are not adjacent.",
    ),
    "collider": (
        "Triple {a} {c} {b}: kept, kept, given {set}, out, {a} -> {c}, {b} -> {c}.",
        "In {a} - {c} - {b} the ends are independent given {set}, without {c}, which is a collider: {a} -> {c} <- {b}.",
    ),
    "chain": (
        "Triple {a} {c} {b}: kept, kept, given {set}, in.",
        "In {a} - {c} - {b} the ends are independent given {set}, with {c}, which is no collider.",
    ),
    "first cut": ("Triple {a} {c} {b}: cut.", "{a} is adjacent to neither {c} nor {b}."),
    "second cut": ("Triple {a} {c} {b}: kept, cut.", "Of {a}, {c} and {b} only {a} and {c} are adjacent."),
    "no triple": (
        "Triple {a} {b}: kept.",
        "{a} and {b} are adjacent: no unshielded triple has these ends.",
    ),
    "rule 1": (
        "Rule 1: {c} -> {a} - {b} gives {a} -> {b}.",
        "By Meek's rule 1 (no new collider), {c} -> {a} - {b} with {c} and {b} not adjacent gives {a} -> {b}.",
    ),
    "rule 2": (
        "Rule 2: {a} -> {c} -> {b} gives {a} -> {b}.",
        "By Meek's rule 2 (no cycle), {a} -> {c} -> {b} beside {a} - {b} gives {a} -> {b}.",
    ),
    "rule 3": (
        "Rule 3: {a} - {c} -> {b} and {a} - {d} -> {b} gives {a} -> {b}.",
        "By Meek's rule 3, {a} - {c} -> {b} and {a} - {d} -> {b} with {c} and {d} not adjacent gives {a} -> {b}.",
    ),
    "rule 4": (
        "Rule 4: {a} - {d} -> {c} -> {b} gives {a} -> {b}.",
        "By Meek's rule 4, {a} - {d} -> {c} -> {b} beside {a} - {c} with {d} and {b} not adjacent gives {a} -> {b}.",
    ),
    "directed": ("Edge {a} {b}: ->.", "All graphs of the class have the edge {a} -> {b}."),
    "reversed": ("Edge {a} {b}: <-.", "All graphs of the class have the edge {a} <- {b}."),
    "undirected": ("Edge {a} {b}: -.", "The graphs of the class differ in the direction of the edge {a} - {b}."),
    "no edge": ("Edge {a} {b}: none.", "The graphs of the class have no edge between {a} and {b}."),
    "no link": ("Link {a} {b}: none.", "There is no edge between {a} and {b}."),
    "forward link": ("Link {a} {b}: {a} -> {b}.", "Between {a} and {b} the class has the edge {a} -> {b}."),
    "backward link": ("Link {a} {b}: {a} <- {b}.", "Between {a} and {b} the class has the edge {a} <- {b}."),
    "open link": ("Link {a} {b}: {a} - {b}.", "Between {a} and {b} the class has the undirected edge {a} - {b}."),
    "from": ("From {a} without {b}: {search}.", "Possible effects of {a}, never through {b}: {search}."),
    "into": ("Into {a} without {b}: {search}.", "Possible causes of {a}, never through {b}: {search}."),
    "shared": ("Shared: {set}.", "The two have in common {set}."),
    "surely from": ("Surely from {a} without {b}: {search}.", "Certain effects of {a}, never through {b}: {search}."),
    "surely into": ("Surely into {a} without {b}: {search}.", "Certain causes of {a}, never through {b}: {search}."),
    "surely shared": ("Surely shared: {set}.", "The two certainly have in common {set}."),
    "every": ("Every graph: {paths}.", "Every graph of the class has the path {paths}."),
    "counterexample": ("Counterexample: {edges}.", "A graph of the class in which the hypothesis fails: {edges}."),
    "answer": ("Answer: {answer}", "Answer: {answer}"),
}
_FIELDS = {kind: tuple(dict.fromkeys(re.findall(r"{(\w+)}", compact))) for kind, (compact, _) in _WORDING.items()}
_DERIVED = ("rule 1", "rule 2", "rule 3", "rule 4")  # several derivations are right: none of them is required
_PASSED_OVER = ("first cut", "second cut", "no triple", "no edge")  # said so as to skip nothing, not required
# By what `_ends` says of the pair:
_EDGES = {(0, 0): "no edge", (1, 0): "directed", (0, 1): "reversed", (1, 1): "undirected"}
_LINKS = {(0, 0): "no link", (1, 0): "forward link", (0, 1): "backward link", (1, 1): "open link"}


class Step(NamedTuple):
    """One statement: its kind, and the values of the kind's fields in the order of the compact wording.

    Variables are 0..N-1; `set` is a bitmask; `search` is a tuple of (from, to, whether there is an edge to go by);
    `edges` is a DAG; `paths` is a tuple of alternatives, each a tuple of paths, each a tuple of variables; `answer` is
    a bool.
    """

    kind: str
    values: tuple


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
    def complete(self) -> bool:
        """Is every sentence right, and nothing missing?"""
        return not self.missing and all(s.right for s in self.sentences)


# ---------------------------------------------------------------- the steps of a claim


def reasoning_steps(premise: Premise, claim: Claim) -> list[Step]:
    """The exact reasoning from the premise to the answer. Raises Corr2CauseError if no graph satisfies the premise."""
    members, separators, out = markov_equivalence_class(premise), first_separators(premise), pdag(premise)
    pairs = list(combinations(range(len(out)), 2))
    steps = [Step("separated", (*p, separators[p])) if p in separators else Step("adjacent", p) for p in pairs]
    steps += _triples(premise)
    for rule, variables in meek_steps(premise):
        named = dict(zip("abcd", variables, strict=False))
        steps.append(Step(f"rule {rule}", tuple(named[field] for field in _FIELDS[f"rule {rule}"])))
    steps += [Step(_EDGES[_ends(out, *pair)], pair) for pair in pairs]
    failing = counterexample(members, claim)
    return [*steps, *_claim_steps(premise, members, claim, failing), Step("answer", (failing is None,))]


def _triples(premise: Premise) -> Iterator[Step]:
    """Of each separated pair (i, j) and each third variable k: which end is not adjacent to k, else is k a collider?"""
    adjacent, separators = skeleton(premise), first_separators(premise)
    for i, j in combinations(range(len(adjacent)), 2):
        if (i, j) not in separators:
            yield Step("no triple", (i, j))
            continue
        given = separators[i, j]
        for k in (k for k in range(len(adjacent)) if k not in (i, j)):
            if not adjacent[k] >> i & 1:
                yield Step("first cut", (i, k, j))
            elif not adjacent[k] >> j & 1:
                yield Step("second cut", (i, k, j))
            else:
                yield Step("chain" if given >> k & 1 else "collider", (i, k, j, given))


def _ends(out: PDAG, a: int, b: int) -> tuple[int, int]:
    """Has some member a -> b, and has some member b -> a?"""
    return out[a] >> b & 1, out[b] >> a & 1


def _claim_steps(premise: Premise, members: Sequence[DAG], claim: Claim, failing: DAG | None) -> list[Step]:
    """What could make the claim hold in the class; then what does in every member, or `failing`, where nothing does."""
    steps, possible = _candidates(premise, claim)
    if not possible:
        return steps
    if failing is None:
        return [*steps, Step("every", (_cover(members, claim),))]
    return [*steps, Step("counterexample", (failing,))]


def _candidates(premise: Premise, claim: Claim) -> tuple[list[Step], bool]:
    """The edge (direct), or the variables between or beyond i and j; and whether they leave the claim a chance.

    Without a variable that both reach along possible edges the claim holds in no member; with one that both reach along
    directed edges alone, in every member; in between it depends.
    """
    out = pdag(premise)
    if claim.relation == "direct":
        ends = _ends(out, claim.i, claim.j)
        return [Step(_LINKS[ends], (claim.i, claim.j))], bool(ends[0])
    steps, shared = _reaches(claim, out)
    if shared:
        directed = [after & ~before for after, before in zip(out, children(out), strict=True)]
        steps += _reaches(claim, directed, "surely ")[0]
    return steps, bool(shared)


def _reaches(claim: Claim, out: Sequence[int], adverb: str = "") -> tuple[list[Step], int]:
    """What i and j reach, forwards ('from') or backwards ('into'), never through the other; and what both do."""
    i, j, steps, shared = claim.i, claim.j, [], -1
    for v, other, forwards in ((i, j, claim.relation != "confounder"), (j, i, claim.relation == "collider")):
        search = _search(out if forwards else children(out), v, other)
        steps.append(Step(adverb + ("from" if forwards else "into"), (v, other, search)))
        shared &= sum(1 << k for _, k, found in search if found)
    return [*steps, Step(adverb + "shared", (shared,))], shared


def _search(neighbours: Sequence[int], start: int, other: int) -> tuple[tuple[int, int, bool], ...]:
    """Breadth first from `start`, never to `other`: has what is reached an edge to each variable that is not yet?"""
    queue, left, tried = [start], [k for k in range(len(neighbours)) if k not in (start, other)], []
    for u in queue:
        tried += [(u, k, bool(neighbours[u] >> k & 1)) for k in left]
        queue += [k for k in left if neighbours[u] >> k & 1]
        left = [k for k in left if k not in queue]
    return tuple(tried)


def _cover(members: Sequence[DAG], claim: Claim) -> tuple:
    """Paths such that every member has one of the alternatives; one is enough unless undirected edges take turns."""
    found = {}  # alternative -> the members that have it
    for number, dag in enumerate(members):
        rank = {v: r for r, v in enumerate(topological_order(dag))}
        for masks in witnesses(dag, claim):
            paths = tuple(tuple(sorted(bits(mask), key=rank.get)) for mask in masks)
            found.setdefault(paths, set()).add(number)
    missing, chosen = set(range(len(members))), []
    while missing:  # greedy: most members first, then the shortest
        best = min(found, key=lambda paths: (-len(found[paths] & missing), sum(map(len, paths)), paths))
        missing -= found[best]
        chosen.append(best)
    return tuple(chosen)


# ---------------------------------------------------------------- words


def write_step(step: Step, variables: Sequence[str], style: str = "compact") -> str:
    """The step as one sentence in the style, one of STYLES."""
    values = zip(_FIELDS[step.kind], step.values, strict=True)
    words = {name: _FIELD_TYPES[name].write(value, variables, style) for name, value in values}
    return _WORDING[step.kind][STYLES.index(style)].format(**words)


def trace(premise: Premise, claim: Claim, style: str = "compact") -> str:
    """The exact reasoning in words, one step a line. Raises Corr2CauseError for an unknown style or a false premise."""
    if style not in STYLES:
        raise Corr2CauseError(f"trace style {style!r} is unknown; use {' or '.join(STYLES)}")
    left_out = _PASSED_OVER if style == "full" else ()
    steps = (step for step in reasoning_steps(premise, claim) if step.kind not in left_out)
    return "\n".join(write_step(step, premise.variables, style) for step in steps)


class _Field(NamedTuple):
    """How a value is written (in a style) and read (of any); `read` raises ValueError or KeyError for what is none."""

    write: Callable
    read: Callable


def _write_set(mask: int, variables: Sequence[str], style: str) -> str:
    names = [variables[v] for v in bits(mask)]
    if style == "compact":
        return " ".join(names) or "none"
    return " and ".join(", ".join(part) for part in (names[:-1], names[-1:]) if part) or "nothing"


def _read_set(text: str, variables: Sequence[str]) -> int:
    if text in ("none", "nothing"):
        return 0
    names = re.split(r",? and |, | ", text)
    if len(set(names)) < len(names):
        raise ValueError(text)
    return sum(1 << variables.index(name) for name in names)


def _write_search(search: Sequence[tuple[int, int, bool]], variables: Sequence[str], style: str) -> str:
    words = ("{} {} shut", "{} {} open") if style == "compact" else ("from {} to {} no way", "from {} to {} a way")
    return ", ".join(words[found].format(variables[u], variables[k]) for u, k, found in search) or "none"


def _read_search(text: str, variables: Sequence[str]) -> tuple[tuple[int, int, bool], ...]:
    search = []
    for part in text.split(", ") if text != "none" else ():
        match = re.fullmatch(r"(?:from )?(\w+)(?: to)? (\w+) (?:(shut|no way)|open|a way)", part)
        if match is None:
            raise ValueError(text)
        u, k, found = variables.index(match[1]), variables.index(match[2]), match[3] is None
        if any(to == k and (start == u or reached) for start, to, reached in search):  # else it could be endless
            raise ValueError(text)
        search.append((u, k, found))
    return tuple(search)


def _write_path(path: Sequence[int], variables: Sequence[str]) -> str:
    return " -> ".join(variables[v] for v in path)


def _read_path(text: str, variables: Sequence[str]) -> tuple[int, ...]:
    names = text.split(" -> ")
    if len(set(names)) < len(names):
        raise ValueError(text)
    return tuple(map(variables.index, names))


def _write_edges(dag: DAG, variables: Sequence[str], _style: str) -> str:
    return ", ".join(_write_path(edge, variables) for edge in sorted(dag_edges(dag), key=sorted)) or "none"


def _read_edges(text: str, variables: Sequence[str]) -> DAG:
    dag = [0] * len(variables)
    for edge in text.split(", ") if text != "none" else ():
        cause, effect = _read_path(edge, variables)
        if dag[effect] >> cause & 1:
            raise ValueError(text)
        dag[effect] |= 1 << cause
    return tuple(dag)


def _write_paths(alternatives: tuple, variables: Sequence[str], _style: str) -> str:
    return ", or ".join(" and ".join(_write_path(path, variables) for path in paths) for paths in alternatives)


def _read_paths(text: str, variables: Sequence[str]) -> tuple:
    alternatives = [paths.split(" and ") for paths in text.split(", or ")]
    if len(set(map(frozenset, alternatives))) < len(alternatives):  # else a right statement could be endless
        raise ValueError(text)
    return tuple(tuple(_read_path(path, variables) for path in paths) for paths in alternatives)


_FIELD_TYPES = dict.fromkeys("abcd", _Field(lambda v, names, _: names[v], lambda text, names: names.index(text))) | {
    "set": _Field(_write_set, _read_set),
    "search": _Field(_write_search, _read_search),
    "edges": _Field(_write_edges, _read_edges),
    "paths": _Field(_write_paths, _read_paths),
    "answer": _Field(lambda yes, *_: "Yes" if yes else "No", lambda text, _: {"Yes": True, "No": False}[text]),
}


@cache
def _patterns() -> tuple[tuple[str, re.Pattern], ...]:
    """(kind, regular expression without the full stop) of every wording; a field's second occurrence repeats it."""

    def pattern(wording: str) -> re.Pattern:
        text = re.escape(wording.removesuffix("."))
        for field in dict.fromkeys(re.findall(r"{(\w+)}", wording)):
            free = r"[^.]+?" if field in ("set", "search", "edges", "paths") else r"\w+"
            text = text.replace(rf"\{{{field}\}}", rf"(?P<{field}>{free})", 1).replace(
                rf"\{{{field}\}}", f"(?P={field})"
            )
        return re.compile(text)

    return tuple((kind, pattern(wording)) for kind, styles in _WORDING.items() for wording in dict.fromkeys(styles))


def read_step(sentence: str, variables: Sequence[str]) -> Step | None:
    """The step that a sentence of either style states; None if it is none."""
    return _read_sentence(" ".join(sentence.split()).removesuffix("."), tuple(variables))


@lru_cache(maxsize=16384)
def _read_sentence(sentence: str, variables: tuple[str, ...]) -> Step | None:
    for kind, pattern in _patterns():
        match = pattern.fullmatch(sentence)
        if match:
            try:
                return Step(kind, tuple(_FIELD_TYPES[name].read(match[name], variables) for name in _FIELDS[kind]))
            except (ValueError, KeyError):
                continue
    return None


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """(first character, one past the last) of every sentence of a text.

    Sentences end with a line, or with a full stop before white space. A list marker before one ('- ', '2. ') and the
    white space around it are no part of it.
    """
    offset = 0
    for line in text.splitlines(keepends=True):
        (content,) = line.splitlines()
        marker = re.match(r"\s*(?:[-*•]|\d+[.)])\s+", content)
        first = marker.end() if marker else 0
        body = content[first:].lstrip()
        start = offset + len(content) - len(body)
        for sentence in re.finditer(r".+?(?:(?<=\.)(?=\s)|$)\s*", body.rstrip()):
            yield start + sentence.start(), start + sentence.start() + len(sentence[0].rstrip())
        offset += len(line)


def read_trace(text: str, variables: Sequence[str]) -> Iterator[tuple[str, Step | None]]:
    """(sentence, step) of every sentence of a text."""
    for start, end in sentence_spans(text):
        yield text[start:end], read_step(text[start:end], variables)


# ---------------------------------------------------------------- checking


def is_right(step: Step, premise: Premise, claim: Claim) -> bool:
    """Is the statement true of the premise's class, and of the claim where it speaks of that?"""
    out, members = pdag(premise), markov_equivalence_class(premise)

    def arrow(u: int, v: int) -> bool:
        return bool(out[u] >> v & 1 and not out[v] >> u & 1)

    def adjacent(*pairs: tuple[int, int]) -> bool:
        return all(out[u] >> v & 1 or out[v] >> u & 1 for u, v in pairs)

    def apart(u: int, v: int) -> bool:
        return u != v and not adjacent((u, v))

    def separates(u: int, v: int, given: int) -> bool:
        return (min(u, v), max(u, v), given) in premise.independences

    match step.kind, step.values:
        case (("adjacent" | "no triple"), (a, b)):
            return adjacent((a, b))
        case "separated", (a, b, given):
            return separates(a, b, given)
        case ("collider" | "chain") as kind, (a, c, b, given):
            said = arrow(a, c) and arrow(b, c) and not given >> c & 1 if kind == "collider" else bool(given >> c & 1)
            return said and adjacent((a, c), (b, c)) and separates(a, b, given)
        case "first cut", (a, c, b):
            return apart(a, c) and apart(a, b) and b != c
        case "second cut", (a, c, b):
            return adjacent((a, c)) and apart(c, b) and apart(a, b)
        case "rule 1", (c, a, b):
            return arrow(c, a) and apart(c, b) and arrow(a, b)
        case "rule 2", (a, c, b):
            return arrow(a, c) and arrow(c, b) and arrow(a, b)
        case "rule 3", (a, c, b, d):
            no_collider = apart(c, d) and not (arrow(c, a) and arrow(d, a))
            return adjacent((a, c), (a, d)) and arrow(c, b) and arrow(d, b) and no_collider and arrow(a, b)
        case "rule 4", (a, d, c, b):
            beside = adjacent((a, d), (a, c)) and apart(d, b)
            return beside and arrow(d, c) and arrow(c, b) and arrow(a, b)
        case (("no edge" | "directed" | "reversed" | "undirected") as kind, (a, b)):
            return a != b and kind == _EDGES[_ends(out, a, b)]
        case (("no link" | "forward link" | "backward link" | "open link") as kind, (a, b)):
            return a != b and kind == _LINKS[_ends(out, a, b)]
        case (("from" | "into" | "shared" | "surely from" | "surely into" | "surely shared"), _):
            return step in _candidates(premise, claim)[0]
        case "every", (alternatives,):
            return _covers(alternatives, members, claim)
        case "counterexample", (dag,):
            return dag in members and not holds(dag, claim)
        case "answer", (yes,):
            return yes == bool(exact_label(members, claim))
    raise AssertionError(f"unknown kind of step {step}")


def _covers(alternatives: tuple, members: Sequence[DAG], claim: Claim) -> bool:
    """Has every member one of the alternatives, and is each one that makes the claim hold in some member?"""
    having = []
    for paths in alternatives:
        wanted = sorted(sum(1 << v for v in path) for path in paths)
        edges = [edge for path in paths for edge in zip(path, path[1:], strict=False)]
        inside = [all(dag[v] >> u & 1 for u, v in edges) for dag in members]
        # Its edges make it a witness in every member that has them or in none: one such member tells.
        first = next((dag for dag, has in zip(members, inside, strict=True) if has), None)
        if first is None or not any(sorted(masks) == wanted for masks in witnesses(first, claim)):
            return False
        having.append(inside)
    return all(map(any, zip(*having, strict=True)))


def subject(step: Step) -> tuple:
    """What the step settles: two steps of one subject are two answers to one question, in any order of its pair."""
    match step.kind, step.values:
        case (("adjacent" | "separated"), (a, b, *_)):
            return "pair", 1 << a | 1 << b
        case (("collider" | "chain" | "first cut" | "second cut"), (a, c, b, *_)):
            return "triple", c, 1 << a | 1 << b
        case "no triple", (a, b):
            return "triples", 1 << a | 1 << b
        case (("no edge" | "directed" | "reversed" | "undirected"), (a, b)):
            return "edge", 1 << a | 1 << b
        case (("no link" | "forward link" | "backward link" | "open link"), (a, b)):
            return "link", 1 << a | 1 << b
        case (("from" | "into" | "surely from" | "surely into") as kind, (a, b, _)):
            return kind, a, b
        case (("every" | "counterexample"), _):  # several of either may be right
            return ("evidence",)
        case kind, values if kind in _DERIVED:
            named = dict(zip(_FIELDS[kind], values, strict=True))
            return "orientation", 1 << named["a"] | 1 << named["b"]
    return (step.kind,)


@lru_cache(maxsize=2048)
def required_steps(premise: Premise, claim: Claim) -> dict[tuple, Step]:
    """{subject: exact step} of what a complete trace settles, in order, the answer last; shared, so not to be changed.

    Raises Corr2CauseError if no graph satisfies the premise: nothing is right or wrong there.
    """
    optional = _DERIVED + _PASSED_OVER
    return {subject(step): step for step in reasoning_steps(premise, claim) if step.kind not in optional}


def check_trace(text: str, premise: Premise, claim: Claim) -> TraceCheck:
    """Marks every sentence of `text` and names what is missing of the reasoning: pairs, triples, edges, claim, answer.

    Raises Corr2CauseError if no graph satisfies the premise: nothing is right or wrong there.
    """
    required, sentences = required_steps(premise, claim), []
    for sentence, step in read_trace(text, premise.variables):
        sentences.append(CheckedSentence(sentence, step, step is not None and is_right(step, premise, claim)))
    settled = {subject(s.step) for s in sentences if s.right}
    return TraceCheck(tuple(sentences), tuple(step for what, step in required.items() if what not in settled))
