"""The sentences of a trace: one table of phrases writes every step and reads it back, in two styles.

    write_step(step, variables, style)      the step as a sentence
    read_step(sentence, variables)          the step that a sentence of either style states, or None

A step is a head, which says what it is about, and what it finds there: phrases in a fixed order. Head and phrases are
tuples (name, values...) of variables 0..N-1, bitmasks and numbers; reasoning.py makes them.

The compact style is for small models. It has no punctuation but a comma before a look-up, and repeats the same few
strings (a pair, a set, a mark), each of which causal/tiny.py makes one token.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from causal.graphs import Corr2CauseError, bits
from causal.wording import listing

STYLES = ("compact", "full")
MARKS = ("none", "-", "->", "<-")  # of a pair: no edge, an edge without direction (yet), an arrow, the other way

# name: (fields, compact, full). {a}, {b}, {c} are variables, the other fields as in `_FIELD_TYPES`.
_HEADS = {
    "pair": ("ab", "Pair {a} {b}", "Pair {a} and {b}:"),
    "ends": ("ab", "Ends {a} {b}", "Around {a} and {b}:"),
    "round": (("round", "a", "b"), "Round {round} {a} {b}", "Round {round}, {a} and {b}:"),
    "link": ("ab", "Link {a} to {b}", "Link from {a} to {b}:"),
    "from": ("abc", "From {a} without {b} at {c}", "Effects of {a} without {b}, at {c}:"),
    "into": ("abc", "Into {a} without {b} at {c}", "Causes of {a} without {b}, at {c}:"),
    "fork": ("ab", "Fork {a} without {b}", "Undirected neighbours of {a} other than {b}:"),
    "way": ("abc", "Way {a} past {b} at {c}", "Ways from {a} past the neighbours of {b}, at {c}:"),
    "apart": ("", "Apart", "Two with a way that are not adjacent:"),
    "miss": ("", "Missing", "The two searches have nothing in common."),
    "turns": (("paths",), "By turns {paths}", "Every graph of the class has {paths}."),
    "answer": (("answer",), "Answer: {answer}", "Answer: {answer}"),
}
_PHRASES = {
    **{f"is {mark}": ("", f" {mark}", words) for mark, words in zip(
        MARKS, ("no edge", "undirected", "forwards", "backwards"), strict=True
    )},
    **{mark: ("ab", f", {{a}} {{b}} {mark}", f"{{a}} {mark} {{b}}") for mark in MARKS[1:]},
    "none": ("ab", ", {a} {b} none", "no edge {a} - {b}"),
    "given": (("set",), " given {set}", "independent given {set}"),
    "in": ("", " in", "in that set, so no collider"),
    "out": ("", " out", "not in that set, so a collider"),
    "rule 1": ("", " rule 1", "by Meek's rule 1"),
    "rule 2": ("", " rule 2", "by Meek's rule 2"),
    "rule 3": ("", " rule 3", "by Meek's rule 3"),
    "end": ("", " end", "that is all"),
    "same": ("", " same", "no change"),
    "changed": ("", " changed", "a change"),
    "new": ("", " new", "new"),
    "old": ("", " old", "known"),
    "both": ("", " both", "reached from both"),
    "next": (("set",), " next {set}", "next {set}"),
    "reached": (("set",), " reached {set}", "in all {set}"),
    "far": ("", " far", "so there is a way"),
    "open": ("", " open", "so it is not ruled out"),
    "found": ("", " found", "found"),
    "missing": ("", " missing", "not found"),
}  # fmt: skip


# What the compact style says besides variables: around them, or without any.
FIXED_WORDS = tuple(
    dict.fromkeys(
        words
        for table in (_HEADS, _PHRASES)
        for _, compact, _ in table.values()
        for words in re.split(r" ?{\w+}", compact)
        if len(words) > 1
    )
)


class Step(NamedTuple):
    """One statement: what it is about, and what it finds, each a tuple of a name in the tables and its values.

    `set` is a bitmask; `round` counts from 1; `paths` is a tuple of alternatives, each a tuple of paths, each a tuple
    of variables; `answer` is a bool.
    """

    head: tuple
    phrases: tuple[tuple, ...] = ()

    @property
    def kind(self) -> str:
        """The name of its head."""
        return self.head[0]


class _Field(NamedTuple):
    """How a value is written (in a style), what its text looks like, and how it is read (of either style).

    `pattern` is a regular expression, given that of a variable's name and the style. `read` raises ValueError for what
    is no value.
    """

    write: Callable
    pattern: Callable[[str, str], str]
    read: Callable


def _write_set(mask: int, variables: Sequence[str], style: str) -> str:
    names = [variables[v] for v in bits(mask)]
    if style == "compact":
        return " ".join(names) or "nothing"
    return listing(names) if names else "nothing"


def _read_set(text: str, variables: Sequence[str]) -> int:
    names = re.findall(_name_pattern(tuple(variables)), text) if text != "nothing" else []
    return sum(1 << v for v in _distinct(names, variables))


def _distinct(names: Sequence[str], variables: Sequence[str]) -> tuple[int, ...]:
    if len(set(names)) < len(names):  # else it could be endless
        raise ValueError(names)
    return tuple(map(variables.index, names))


def _write_paths(alternatives: tuple, variables: Sequence[str], _style: str) -> str:
    return ", or ".join(
        " and ".join(" -> ".join(variables[v] for v in path) for path in paths) for paths in alternatives
    )


def _read_paths(text: str, variables: Sequence[str]) -> tuple:
    alternatives = [paths.split(" and ") for paths in text.split(", or ")]
    if len(set(map(frozenset, alternatives))) < len(alternatives):  # else a right statement could be endless
        raise ValueError(text)
    return tuple(tuple(_distinct(path.split(" -> "), variables) for path in paths) for paths in alternatives)


def _set_pattern(name: str, style: str) -> str:
    return rf"{name}(?: {name})*|nothing" if style == "compact" else rf"(?:{name}(?:, {name})* and )?{name}|nothing"


_FIELD_TYPES = dict.fromkeys(
    "abc", _Field(lambda v, names, _: names[v], lambda name, _: name, lambda text, names: names.index(text))
) | {
    "round": _Field(lambda number, *_: str(number), lambda *_: r"[1-9]\d{0,2}", lambda text, _: int(text)),
    "set": _Field(_write_set, _set_pattern, _read_set),
    "paths": _Field(_write_paths, lambda name, _: rf"{name}(?:(?: ->| and|, or) {name})*", _read_paths),
    "answer": _Field(lambda yes, *_: "Yes" if yes else "No", lambda *_: "Yes|No", lambda text, _: text == "Yes"),
}


# ---------------------------------------------------------------- writing


class _Texts(dict):
    """{head or phrase: its text} in one style and lettering; made when first asked for."""

    def __init__(self, variables: tuple[str, ...], style: str):
        self.variables, self.column = variables, 1 + STYLES.index(style)

    def __missing__(self, part: tuple) -> str:
        name, *values = part
        row = _HEADS.get(name) or _PHRASES[name]
        words = {
            field: _FIELD_TYPES[field].write(value, self.variables, STYLES[self.column - 1])
            for field, value in zip(row[0], values, strict=True)
        }
        self[part] = text = row[self.column].format(**words)
        return text


@lru_cache(maxsize=256)
def _texts(variables: tuple[str, ...], style: str) -> _Texts:
    return _Texts(variables, style)


def write_step(step: Step, variables: Sequence[str], style: str = "compact") -> str:
    """The step as one sentence in the style, one of STYLES."""
    return write_steps([step], variables, style)


def write_steps(steps: Sequence[Step], variables: Sequence[str], style: str = "compact") -> str:
    """The steps, one a line. Raises Corr2CauseError for an unknown style."""
    if style not in STYLES:
        raise Corr2CauseError(f"trace style {style!r} is unknown; use {' or '.join(STYLES)}")
    texts = _texts(tuple(variables), style)
    text = texts.__getitem__
    if style == "compact":
        return "\n".join([text(head) + "".join(map(text, phrases)) for head, phrases in steps])
    return "\n".join(
        [f"{text(head)} {'; '.join(map(text, phrases))}." if phrases else text(head) for head, phrases in steps]
    )


# ---------------------------------------------------------------- reading


class _Reader(NamedTuple):
    """Regular expressions of a lettering: any head, and any phrase after it. Of row k of the table the group is `rowk`,
    and its fields are `FIELDk`."""

    heads: re.Pattern
    phrases: re.Pattern


class _Row(NamedTuple):
    name: str
    fields: Sequence[str]
    wording: str
    style: str


def _rows(table: dict) -> list[_Row]:
    """Every distinct wording, the longer ones first: ', A B -' would match the beginning of ', A B ->'.

    Before them what begins with a variable, whose name may begin like another wording.
    """
    rows = [_Row(name, row[0], row[k + 1], style) for name, row in table.items() for k, style in enumerate(STYLES)]
    order = {row.wording: (not row.wording.startswith("{"), -len(row.wording)) for row in rows}
    return sorted({row.wording: row for row in rows}.values(), key=lambda row: order[row.wording])


_ROWS = {"heads": _rows(_HEADS), "phrases": _rows(_PHRASES)}


def _pattern(k: int, row: _Row, name: str, joint: str) -> str:
    text = re.escape(row.wording.removesuffix("."))
    for field in row.fields:
        text = text.replace(rf"\{{{field}\}}", f"(?P<{field}{k}>{_FIELD_TYPES[field].pattern(name, row.style)})", 1)
    return f"(?P<row{k}>{joint if row.style == 'full' else ''}{text}(?:(?<=:)|(?!\\w)))"


@lru_cache(maxsize=1024)
def _name_pattern(variables: tuple[str, ...]) -> str:
    """The regular expression of a name, which may be of several words, but is no part of another name."""
    return rf"(?:{'|'.join(map(re.escape, variables))})(?!\w)"


@lru_cache(maxsize=256)
def _reader(variables: tuple[str, ...]) -> _Reader:
    """`variables` are in any order: that of a premise's names is one of many."""
    name = _name_pattern(variables)
    joints = {"heads": "", "phrases": "(?:; | )"}
    return _Reader(*(
        re.compile("|".join(_pattern(k, row, name, joints[part]) for k, row in enumerate(rows)))
        for part, rows in _ROWS.items()
    ))  # fmt: skip


def read_step(sentence: str, variables: Sequence[str]) -> Step | None:
    """The step that a sentence of either style states; None if it is none."""
    return _read_sentence(" ".join(sentence.split()).removesuffix("."), tuple(variables))


@lru_cache(maxsize=16384)
def _read_sentence(sentence: str, variables: tuple[str, ...]) -> Step | None:
    reader, parts, at = _reader(tuple(sorted(variables))), [], 0
    most = len(variables) * (len(variables) + 8)  # parts; all that meets at a pair's ends has fewer
    while at < len(sentence) or not parts:
        match = (reader.phrases if parts else reader.heads).match(sentence, at)
        if match is None:
            return None
        k = int(match.lastgroup.removeprefix("row"))
        row = _ROWS["phrases" if parts else "heads"][k]
        try:
            values = [_FIELD_TYPES[field].read(match[f"{field}{k}"], variables) for field in row.fields]
        except ValueError:
            return None
        parts.append((row.name, *values))
        at = match.end()
        if len(parts) > most:  # it could be endless
            return None
    return Step(parts[0], tuple(parts[1:]))


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """(first character, one past the last) of every sentence of a text.

    Sentences end with a line, or with a full stop before white space. A list marker before one ('- ', '2. '), the tags
    of a thought (<think>, which chat templates write) and the white space around it are no part of it.
    """
    offset = 0
    for line in text.splitlines(keepends=True):
        (content,) = line.splitlines()
        first = len(re.match(r"(?:\s*</?think(?:ing)?>)*(?:\s*(?:[-*•]|\d+[.)])\s+)?", content)[0])
        body = content[first:].lstrip()
        start = offset + len(content) - len(body)
        for sentence in re.finditer(r".+?(?:(?<=\.)(?=\s)|$)\s*", body.rstrip()):
            yield start + sentence.start(), start + sentence.start() + len(sentence[0].rstrip())
        offset += len(line)


def read_trace(text: str, variables: Sequence[str]) -> Iterator[tuple[str, Step | None]]:
    """(sentence, step) of every sentence of a text."""
    for start, end in sentence_spans(text):
        yield text[start:end], read_step(text[start:end], variables)
