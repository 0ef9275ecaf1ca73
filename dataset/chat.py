"""Text as the model reads and writes it: instructions, responses, chat templates, token ids.

A row's response is an answer line, an exact trace, or a teacher's completion that has been judged.
"""

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from heapq import nlargest
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING

from causal.answers import extract_answer
from causal.questions import ANSWER_ALONE, REASONING, prompt_of
from causal.reasoning import trace
from causal.vocabulary import NAMES, TELLINGS
from causal.wording import parse_claim
from dataset.reading import training_data
from dataset.sources import read_file
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset

ANSWER_LINES = ("Answer: No", "Answer: Yes")  # by label
INSTRUCTIONS = {"answer": ANSWER_ALONE, "trace": REASONING, "teacher": REASONING}  # by target

ENGLISH = {"natural", "story", "names", *TELLINGS, *NAMES} - {"released"}
SPELLED = 3  # tokens a word: fewer has every tokenizer that was made from English text


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of text that already holds its special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def check_reads_english(tokenizer, setting: str, words: Sequence[str]) -> None:
    """Raises ValueError if `words`, names of wordings or perturbations, have stories or names of things among them, and
    the tokenizer has no tokens for English words: a text would be letters, and several times as long."""
    natural = [name for name in words if name in ENGLISH]
    text = " ".join(name for names in NAMES.values() for name in names)
    rate = len(encode(tokenizer, text)) / len(text.split())
    remedy = f"leave {', '.join(natural)} out, or use a model that reads English"
    check(
        not natural or rate <= SPELLED, f"{setting}: the tokenizer has {rate:.1f} tokens for an English word; {remedy}"
    )


def encode_rows(tokenizer, rows: "Dataset | dict") -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of every row's prompt, as sampling sees it, and of the response behind it.

    A prompt that ends in the beginning of a response (`kept`, see corrections.py) is cut from the response by tokens:
    the two are encoded as one text, as the model has written it. Raises ValueError, with the place, if a prompt is
    other tokens with its response behind it than alone.
    """
    columns, special = getattr(rows, "column_names", rows), special_ids(tokenizer)
    kept_parts = rows["kept"] if "kept" in columns else [""] * len(rows["prompt"])
    texts = zip(rows["prompt"], rows["response"], kept_parts, strict=True)
    encoded = [encode_pair(tokenizer, special, *text) for text in texts]
    return [prompt for prompt, _ in encoded], [response for _, response in encoded]


def encode_pair(
    tokenizer, special: dict[int, str], prompt: str, response: str, kept: str = ""
) -> tuple[list[int], list[int]]:
    """As `encode_rows`, of one row; `special` are the tokenizer's `special_ids`."""
    prompt = prompt.removesuffix(kept)
    asked = encode(tokenizer, prompt)
    # No token reaches across a special one, so the last of them is where the two are joined, not the prompt's start.
    places = ((k, prompt.rfind(special[token])) for k, token in enumerate(asked) if token in special)
    last, at = max((place for place in places if place[1] >= 0), default=(0, 0))
    end = prompt[at:] + kept
    joined = tokenizer(end + response, add_special_tokens=False, return_offsets_mapping=bool(kept))
    ids, cut = joined["input_ids"], len(asked) - last
    if ids[:cut] != asked[last:]:
        raise ValueError(_parting(tokenizer, asked[last:], ids, response))
    if kept:
        cut = sum(stop <= len(end) for _, stop in joined["offset_mapping"])
    return asked[:last] + ids[:cut], ids[cut:]


def _parting(tokenizer, alone: list[int], joined: list[int], response: str) -> str:
    """What to say of the end of a prompt that is other tokens with the response behind it."""
    k = len(commonprefix([alone, joined]))
    end, token = tokenizer.decode(alone[k:]), tokenizer.decode(joined[k : k + 1])
    return (
        f"tokenizer: a prompt's end {end!r} becomes the token {token!r} where the response {response[:20]!r} follows: "
        "it would be trained on what it is never asked; use another chat template"
    )


def special_ids(tokenizer) -> dict[int, str]:
    """The texts of the special tokens, by id."""
    return {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}


def longest_sequence(tokenizer, rows: "Dataset | dict", new_tokens: int) -> list[int]:
    """The longest prompt with its response, which is repeated to the `new_tokens` that may be sampled.

    It is looked for among the 16 that have the most characters.
    """
    candidates = nlargest(16, zip(rows["prompt"], rows["response"], strict=True), key=lambda row: len(row[0] + row[1]))
    encoded = [(encode(tokenizer, prompt), encode(tokenizer, response)) for prompt, response in candidates]
    return max((p + (r * new_tokens)[: max(len(r), new_tokens)] for p, r in encoded), key=len)


def special_tokens(tokenizer) -> set[str]:
    return {*special_ids(tokenizer).values(), *tokenizer.all_special_tokens}


# --- chat templates

DAY = "strftime_now"  # the function that templates have of today's date; among the arguments, the day that it is
DATED = re.compile(rf"\b{DAY}\(\s*(['\"])(.*?)\1\s*\)")
TODAY = "it writes today's date, and tomorrow's rows would be others; add a day to chat_template_args, strftime_now: "
TODAY += "2025-01-31"
UNDATED = f"{{% macro {DAY}(format) %}}{{{{ raise_exception({json.dumps(TODAY)}) }}}}{{% endmacro %}}\n"


def chat_writer(tokenizer, arguments: dict | None = None) -> Callable[..., str]:
    """The chat template as a function of messages and `add_generation_prompt`, with the template's own `arguments`.

    Raises ValueError for arguments that it does not have, and the function does where the template fails or, without an
    argument `strftime_now`, asks for the date: a dataset must be the same on every day.
    """
    from jinja2 import TemplateError  # comes with torch; a tenth of a second

    check(tokenizer.chat_template is not None, "tokenizer: it has no chat template; use an instruction-tuned model's")
    arguments, template = dict(arguments or {}), tokenizer.get_chat_template()
    ours = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
    for name in arguments:
        known = name == DAY or (name not in ours and re.search(rf"\b{re.escape(name)}\b", template))
        check(bool(known), f"chat_template_args: this chat template has no argument {name}; leave it out")
    if DAY in arguments:
        day = _day(arguments.pop(DAY))
        template = DATED.sub(lambda call: json.dumps(day.strftime(call[2])), template)

    def write(messages: list[dict], add_generation_prompt: bool = False) -> str:
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt, **arguments}
        try:
            return tokenizer.apply_chat_template(messages, chat_template=UNDATED + template, **options)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"tokenizer: its chat template cannot be used: {error}") from None

    return write


def _day(value: object) -> date:
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"chat_template_args: {DAY} is a day such as 2025-01-31, not {value!r}") from None


def templated(write: Callable[..., str], user: str, completion: str, special: set[str]) -> tuple[str, str]:
    """(prompt, response): what a chat template writes to ask for an answer, and what follows when one is given.

    What it puts between the two, a space or an empty thought, is the response's, or the prompt's if that has it. The
    response ends in the end-of-turn token: the first special token after the completion, if only that which begins the
    next turn (GLM-4). What follows it (Phi-3.5 adds <|endoftext|>, Qwen a line break) is never sampled, so it is not
    trained on. Raises ValueError for a template that does not work so.
    """
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": completion}]
    prompt, text = write(turns[:1], add_generation_prompt=True), write(turns)
    thought_over = prompt.rstrip().endswith("</think>") and completion.lstrip().startswith("<think>")
    remedy = "leave enable_thinking false out of chat_template_args"
    check(not thought_over, f"tokenizer: its chat template ends the thought that a completion begins; {remedy}")
    same = len(commonprefix([prompt, text]))
    if same < len(prompt) and text.startswith(completion, same):
        # Only the question leads to the answer, by an empty thought (Gemma 4) or a thought's beginning (DeepSeek-R1).
        ended = "\n</think>\n\n" if prompt.rstrip().endswith("<think>") else ""
        text, same = prompt + ended + text[same:], len(prompt)
    asked, answered = prompt[same:][:40], text[same:][:40]
    check(
        not asked,
        f"tokenizer: its chat template asks for an answer with {asked!r} and writes one with {answered!r}; make them "
        "agree by chat_template_args (enable_thinking: false, say), or use another one",
    )
    at, said = text.find(completion, same), completion[:40]
    check(at >= 0, f"tokenizer: its chat template rewrites the answer {said!r} as {answered!r}; use another one")
    whole = user.strip() in prompt
    check(whole, f"tokenizer: its chat template leaves out or rewrites the question {user[:40]!r}; use another one")
    said, rest = text[same : at + len(completion)], text[at + len(completion) :]
    if _end(rest, special) is None:
        rest = write([*turns, {"role": "user", "content": "Go on."}]).rpartition(completion)[2]
    end = _end(rest, special)
    check(end is not None, "tokenizer: its chat template ends no turn with a special token; no stop could be learned")
    return prompt, said + rest[:end]


def _end(text: str, special: set[str]) -> int | None:
    """Where the first special token in a text ends."""
    return min((at + len(token) for token in special if (at := text.find(token)) >= 0), default=None)


# --- responses


def add_teacher(rows: list[dict], path: Path, special: set[str]) -> tuple[list[dict], Counter]:
    """The rows that have a good completion, with it as `completion`; and what became of every completion.

    Of several good completions of one input the first is kept. Raises ValueError if there is none at all.
    """
    labels = {_words(row["input"]): row["label"] for row in rows}
    kept, fates = {}, Counter()
    for number, record in enumerate(read_file(path, "teacher_file")):
        missing = [key for key in ("input", "completion", "finish_reason") if not isinstance(record.get(key), str)]
        check(not missing, f"teacher_file: {path}: completion {number} has no text in {' and '.join(missing)}")
        text, completion = _words(record["input"]), record["completion"].strip()
        fate = judge(completion, record["finish_reason"], labels.get(text), special)
        fate = "repeated" if fate == "kept" and text in kept else fate
        fates[fate] += 1
        if fate == "kept":
            kept[text] = completion
    check(len(kept) > 0, f"teacher_file: {path}: no finished, right completion of a row of train: {dict(fates)}")
    return [row | {"completion": kept[text]} for row in rows if (text := _words(row["input"])) in kept], fates


def _words(text: str) -> str:
    """A text whatever spaces and line ends are typed in it."""
    return " ".join(text.split())


def judge(completion: str, finish_reason: str, label: int | None, special: set[str]) -> str:
    """What becomes of a teacher's completion for a row of `label` (None: no row of train)."""
    if label is None:
        return "not_in_train"
    if finish_reason != "stop":
        return "unfinished"
    if any(token in completion for token in special):
        return "special_token"
    answer = extract_answer(completion)
    return "no_answer" if answer is None else "kept" if answer == bool(label) else "wrong"


def completion_of(row: dict, target: str, style: str) -> str:
    """What the assistant says, before the chat template."""
    if target == "trace":
        return trace(*parse_claim(row["premise"], row["hypothesis"]), style)
    return row.get("completion", ANSWER_LINES[row["label"]])


# --- rows with their chat


def add_chat(
    rows: Iterable[dict],
    tokenizer,
    target: str = "answer",
    trace_style: str = "compact",
    instruction: str | None = None,
    chat_template_args: dict | None = None,
) -> list[dict]:
    """Rows with `prompt`, `response`, and `tokens`, the lengths of the two.

    `instruction` is the text before the premise, None: that of the target. Raises ValueError if it holds a special
    token, and as `chat_writer`, `templated` and `encode_rows` do.
    """
    special, ids, write = special_tokens(tokenizer), special_ids(tokenizer), chat_writer(tokenizer, chat_template_args)
    instruction = INSTRUCTIONS[target] if instruction is None else instruction
    held = [token for token in special if token in instruction]
    check(not held, f"instruction: holds the special token {' '.join(held)}, which the model reads as the chat format")
    chats = []
    for row in rows:
        user = prompt_of(row["input"], instruction)
        prompt, response = templated(write, user, completion_of(row, target, trace_style), special)
        asked, said = encode_pair(tokenizer, ids, prompt, response)
        chats.append(row | {"prompt": prompt, "response": response, "tokens": (len(asked), len(said))})
    return chats


def as_trained(rows: Iterable[dict], tokenizer, model: str, chat_template_args: dict) -> list[dict]:
    """Rows with the prompts that `model` was trained on, as far as is known, and an answer alone as the response."""
    form = training_data(model)
    instruction = form.get("instruction")
    instruction = INSTRUCTIONS[form.get("target", "answer")] if instruction is None else instruction
    return add_chat(rows, tokenizer, instruction=instruction, chat_template_args=chat_template_args)


def leave_out_long(splits: dict, max_length: int) -> tuple[dict[str, list[dict]], list[dict]]:
    """The rows of at most `max_length` tokens, and {split, row, tokens} of the others. Raises if a split gets empty.

    Test and its perturbations stay row by row the same: a row that is too long in one of them leaves them all.
    """
    lengths = [{"split": s, "row": row["row"], "tokens": sum(row["tokens"])} for s in splits for row in splits[s]]
    long = [entry for entry in lengths if entry["tokens"] > max_length]
    out = {(entry["split"].partition("_")[0], entry["row"]) for entry in long}
    kept = {s: [row for row in rows if (s.partition("_")[0], row["row"]) not in out] for s, rows in splits.items()}
    empty, need = ", ".join(name for name, rows in kept.items() if not rows), max(entry["tokens"] for entry in lengths)
    check(not empty, f"max_length: no row of {empty} has {max_length} tokens or fewer; {need} keeps all rows")
    return kept, long
