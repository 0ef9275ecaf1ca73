"""Text as the model reads and writes it: instructions, responses, chat templates, token ids.

A row's response is an answer line, an exact trace, or a teacher's completion that has been judged.
"""

from collections import Counter
from collections.abc import Iterable
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING

from causal.answers import extract_answer
from causal.reasoning import trace
from causal.wording import parse_claim
from dataset.reading import training_data
from dataset.sources import read_file
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset

ANSWER_LINES = ("Answer: No", "Answer: Yes")  # by label
QUESTION = "Decide whether the hypothesis follows from the premise. "
REASONING = QUESTION + "Reason step by step. End with a line 'Answer: Yes' or 'Answer: No'."
ANSWER_ALONE = QUESTION + "Reply with one line, 'Answer: Yes' or 'Answer: No'."
INSTRUCTIONS = {"answer": ANSWER_ALONE, "trace": REASONING, "teacher": REASONING}  # by target


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of text that already holds its special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_rows(tokenizer, rows: "Dataset | dict") -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of every row's prompt and response, encoded apart so that sampling sees the same prompt.

    A prompt that ends in the beginning of a response (`kept`, see corrections.py) is cut from the response by tokens:
    the two are encoded as one text, as the model has written it.
    """
    encoded, columns = [], getattr(rows, "column_names", rows)
    kept_parts = rows["kept"] if "kept" in columns else [""] * len(rows["prompt"])
    for prompt, response, kept in zip(rows["prompt"], rows["response"], kept_parts, strict=True):
        asked = encode(tokenizer, prompt.removesuffix(kept))
        if kept:
            found = tokenizer(kept + response, add_special_tokens=False, return_offsets_mapping=True)
            cut = sum(end <= len(kept) for _, end in found["offset_mapping"])
            encoded.append((asked + found["input_ids"][:cut], found["input_ids"][cut:]))
        else:
            encoded.append((asked, encode(tokenizer, response)))
    return [prompt for prompt, _ in encoded], [response for _, response in encoded]


def longest_sequence(tokenizer, rows: "Dataset | dict", new_tokens: int) -> list[int]:
    """The longest prompt with its response, which is repeated to the `new_tokens` that may be sampled.

    It is looked for among the 16 that have the most characters.
    """
    candidates = nlargest(16, zip(rows["prompt"], rows["response"], strict=True), key=lambda row: len(row[0] + row[1]))
    encoded = [(encode(tokenizer, prompt), encode(tokenizer, response)) for prompt, response in candidates]
    return max((p + (r * new_tokens)[: max(len(r), new_tokens)] for p, r in encoded), key=len)


def special_tokens(tokenizer) -> set[str]:
    return {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(tokenizer.all_special_tokens)


def templated(tokenizer, user: str, completion: str, special: set[str]) -> tuple[str, str]:
    """(prompt, response) as the chat template writes them; the response ends in the end-of-turn token.

    That is the first special token after the completion; what follows it (Phi-3.5 adds <|endoftext|>, Qwen a line
    break) is never sampled, so it is not trained on. Raises ValueError for a template that does not work so.
    """
    question = {"role": "user", "content": user}
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template([question, {"role": "assistant", "content": completion}], tokenize=False)
    start = len(prompt) + len(completion)
    check(text[:start] == prompt + completion, "tokenizer: its chat template rewrites a turn's text; use another one")
    ends = [at + len(token) for token in special if (at := text.find(token, start)) >= 0]
    check(len(ends) > 0, "tokenizer: its chat template ends no turn with a special token; no stop could be learned")
    return prompt, text[len(prompt) : min(ends)]


# --- responses


def add_teacher(rows: list[dict], path: Path, special: set[str]) -> tuple[list[dict], Counter]:
    """The rows that have a good completion, with it as `completion`; and what became of every completion.

    Of several good completions of one input the first is kept. Raises ValueError if there is none at all.
    """
    labels = {row["input"].strip(): row["label"] for row in rows}
    kept, fates = {}, Counter()
    for number, record in enumerate(read_file(path, "teacher_file")):
        missing = [key for key in ("input", "completion", "finish_reason") if not isinstance(record.get(key), str)]
        check(not missing, f"teacher_file: {path}: completion {number} has no text in {' and '.join(missing)}")
        text, completion = record["input"].strip(), record["completion"].strip()
        fate = judge(completion, record["finish_reason"], labels.get(text), special)
        fate = "repeated" if fate == "kept" and text in kept else fate
        fates[fate] += 1
        if fate == "kept":
            kept[text] = completion
    check(len(kept) > 0, f"teacher_file: {path}: no finished, right completion of a row of train: {dict(fates)}")
    return [row | {"completion": kept[text]} for row in rows if (text := row["input"].strip()) in kept], fates


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
) -> list[dict]:
    """Rows with `prompt`, `response`, and `tokens`, the lengths of the two.

    `instruction` is the text before the premise, None: that of the target. Raises ValueError if it holds a special
    token, and as `templated` does.
    """
    special = special_tokens(tokenizer)
    instruction = INSTRUCTIONS[target] if instruction is None else instruction
    held = [token for token in special if token in instruction]
    check(not held, f"instruction: holds the special token {' '.join(held)}, which the model reads as the chat format")
    chats = []
    for row in rows:
        user = f"{instruction}\n\n{row['input']}".strip()
        prompt, response = templated(tokenizer, user, completion_of(row, target, trace_style), special)
        tokens = len(encode(tokenizer, prompt)), len(encode(tokenizer, response))
        chats.append(row | {"prompt": prompt, "response": response, "tokens": tokens})
    return chats


def as_trained(rows: Iterable[dict], tokenizer, model: str) -> list[dict]:
    """Rows with the prompts that `model` was trained on, as far as is known, and an answer alone as the response."""
    form = training_data(model)
    instruction = form.get("instruction")
    instruction = INSTRUCTIONS[form.get("target", "answer")] if instruction is None else instruction
    return add_chat(rows, tokenizer, "answer", instruction=instruction)


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
