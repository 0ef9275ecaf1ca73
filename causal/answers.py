"""Read a Yes/No answer out of generated text.

    extract_answer("... no directed path.\\n\\n**Answer: No**")   -> False

Training and evaluation read answers with the same function; two readings would make the reward and the score disagree.
A text has at most one answer, so no text is right under both labels and hedging never pays.

What counts as its answer, the first that is found:
1. the last answer line: "Answer: No", "the final answer is **Yes**", "\\boxed{Yes}", "<answer>no</answer>";
2. the last conclusion line: "Therefore: No";
3. the final line, where it begins with a clear yes or no, or its final sentence begins or ends with one;
4. the opening words of the text: "No. The premise ...".
If what is found holds both a yes and a no, the text has no answer. What a model has thought (<think> ... </think>) is
not said. Questions ("... ?"), instructions ("Answer Yes or No.") and what would be ("If ..., it would be yes.") are not
answers, but for what comes before a reason of that kind ("No, since if ..., it would ..."); the "no" of "no edge" is
not a verdict, nor is what is denied ("cannot be yes").
"""

import re
import unicodedata

# A "no" is a verdict when nothing it could negate follows: the end, punctuation, or the start of a new clause. After
# another word it is none before a variable or a bracket ("there is no A -> B"), and "no. 3" is a number.
_CLAUSE = r"because|since|as|it|this|that|the|there|we|given|for|and|or|but|yes|not|no"
_NO = rf"no\b(?=\W*$| ?[.,;:!/–—]| -+ | (?:{_CLAUSE})\b|(?<!\w no) ?(?:[a-z]\b|\())(?:(?<!\w no)|(?!\.? ?\d))"
_VERDICT = rf"(?<!not )(?<!not a )\b(?:(?P<yes>yes\b(?! would\b))|{_NO})"
_FILLER = r"(?:so|thus|hence|therefore|then|is|that|clearly|definitely|simply|just|still|in conclusion|conclusion)"
_ANY = re.compile(_VERDICT)
_BEGIN = re.compile(rf"\W*(?:{_FILLER}\b\W*)*{_VERDICT}")
_END = re.compile(rf"{_VERDICT}\W*$")
_OPENING = re.compile(rf"\W*{_VERDICT}(?= ?(?:[.,;:!–—]|-+ |$))")
_ANSWER = re.compile(
    r"(?<!\bto )(?<!\bif the )(?<!\bwhen the )(?<!\bwhether the )"
    r"\b(?:answer|verdict)\b(?:[^.:=]{0,80}?(?:[:=]| is\b| [-–—]+ )|(?= ?(?:yes|no)\b))"
)
_CONCLUSION = re.compile(r"^\W*(?:therefore|thus|hence|in conclusion|conclusion) ?:")
_HEADER = re.compile(r"^\W*(?:(?:the|my|final|correct)\W+)*(?:answer|verdict|conclusion|therefore)\W*$")
_BARE = re.compile(r"\W*(?:yes|no)\W*", re.IGNORECASE)
# "Yes or No" as an instruction, unless the sentence states it as the answer ("Answer: Yes or No" is a hedge).
_OR = r"\W*(?:\bor\b|/)\W*"
_CHOICE = re.compile(rf"\b(?:yes{_OR}(?:answer\W+)?no|no{_OR}(?:answer\W+)?yes)\b")
_STATED = re.compile(
    r"^\W*(?:(?:so|the|my|final|correct|therefore)\W+)*(?:answer|verdict|therefore|conclusion) ?(?:[:=]|is\b)"
)
_SOFTENED = r"be|a|answer|say|conclude|necessarily|always|simply|just|clearly|really"
_DENIED = re.compile(rf"\b(?:not|cannot|never|\w+n t)(?: (?:{_SOFTENED}))* (?:yes|no)\b")
_SUPPOSED = re.compile(r"^(?=.*?\bif\b).*?\bwould\b")
# A verdict with its reason after it, or a remark; no condition of its own ("Yes, if ...").
_CONDITIONAL = r"(?:but |only |even )*(?:if|unless|provided|which|when)\b"
_REASONED = re.compile(rf"{_VERDICT}(?= ?(?:[,;(–—]|-+ )(?!\W*{_CONDITIONAL})| (?:because|since|as|for)\b)")
_CONDITION = re.compile(r"\b(?:if|would)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|$)", re.DOTALL)
_THOUGHT_BEFORE = re.compile(r"^.*</think(?:ing)?>", re.DOTALL)  # the prompt has opened it
_MARKUP = (
    (re.compile(r"<answer>|\\boxed\b"), " answer: "),
    (re.compile(r"</answer>"), "\n"),
    (re.compile(rf"\(\W*(?:yes{_OR}no|no{_OR}yes)\W*\)"), " "),
    (re.compile(r"<\|?/?\w+\|?>|\\[a-z]+\s*\{?|\\.|[*_`#~$\\{}\"'“”‘’|]|^[^\S\n]*>", re.MULTILINE), " "),
    (re.compile(r"[^\S\n]+"), " "),
)


def extract_answer(text: str) -> bool | None:
    """The answer that a completion gives: True for Yes, False for No, None for no answer (or a contradictory one)."""
    lines = _plain_lines(text)
    if not lines:
        return None
    for marker in (_ANSWER, _CONCLUSION):
        for line in reversed(lines):
            verdicts = _marked_verdicts(marker, line)
            if verdicts:
                return _single(verdicts)
    verdicts = _final_verdicts(lines[-1])
    return _single(verdicts or _matched(_OPENING.match(lines[0])))


def _plain_lines(text: str) -> list[str]:
    """Lower-case lines with words, without markup, questions and instructions; a header is joined to its answer."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = _THOUGHT_BEFORE.sub("", _THOUGHT.sub(" ", text))
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    text = _DENIED.sub(" ", text)
    lines: list[str] = []
    for line in text.splitlines():
        sentences = map(_without_reason, _SENTENCE_END.split(line.strip()))
        line = " ".join(sentence for sentence in sentences if not _is_no_statement(sentence))
        if not re.search(r"\w", line):
            continue
        if lines and _HEADER.match(lines[-1]):
            lines[-1] += " " + line
        else:
            lines.append(line)
    return lines


def _without_reason(sentence: str) -> str:
    """A verdict alone, where its reason supposes something: "No, because if A caused B, they would correlate."."""
    found = _REASONED.search(sentence)
    if found is None or sentence.endswith("?") or not _SUPPOSED.search(sentence):
        return sentence
    stated = sentence[: found.end()]
    marked = any(_marked_verdicts(marker, stated) for marker in (_ANSWER, _CONCLUSION)) or _BEGIN.match(stated)
    if not marked or _CONDITION.search(stated) or len(_all_verdicts(sentence)) > 1:
        return sentence
    return f"{stated}."


def _is_no_statement(sentence: str) -> bool:
    asked = sentence.endswith("?") or bool(_CHOICE.search(sentence) and not _STATED.match(sentence))
    return asked or bool(_SUPPOSED.search(sentence))


def gives_answer(text: str) -> bool:
    """Is any line a marked answer (or a hedge so marked), or a bare yes or no? "Is C a collider? Yes." is neither."""
    marked = (_marked_verdicts(marker, line) for line in _plain_lines(text) for marker in (_ANSWER, _CONCLUSION))
    return any(map(_BARE.fullmatch, text.splitlines())) or any(marked)


def _marked_verdicts(marker: re.Pattern, line: str) -> set[bool]:
    """Every verdict from the line's first marker that a verdict follows; empty if there is none."""
    for match in marker.finditer(line):
        if _BEGIN.match(line[match.end() :]):
            return _all_verdicts(line[match.end() :]) | _matched(_OPENING.match(line))
    return set()


def _final_verdicts(line: str) -> set[bool]:
    last = _SENTENCE_END.split(line)[-1]
    begins = _matched(_BEGIN.match(line))
    if _BEGIN.match(last) or _END.search(last):
        return begins | _all_verdicts(last)
    return begins


def _all_verdicts(text: str) -> set[bool]:
    return {match["yes"] is not None for match in _ANY.finditer(text)}


def _matched(match: re.Match | None) -> set[bool]:
    return set() if match is None else {match["yes"] is not None}


def _single(verdicts: set[bool]) -> bool | None:
    return next(iter(verdicts)) if len(verdicts) == 1 else None
