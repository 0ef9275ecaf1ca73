"""Texts and token ids: what chat templates of every kind make of a question and its answer."""

import datetime
import re

import pytest
from datasets import Dataset
from transformers.utils import chat_template_utils

from causal.tiny import tiny_tokenizer
from dataset.chat import as_trained, chat_writer, encode, encode_rows, special_tokens, templated
from dataset.corrections import corrected
from dataset.report import hash_of_rows
from policy import loading
from preprocess import CHAT_COLUMNS, COLUMNS, DataConfig, build
from scoring.asking import marked

SPECIAL = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "</s>", "<|observation|>"]
THOUGHT = "<think>\n\n</think>\n\n"
ASKED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
EACH = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' "
CHATML = EACH + "+ m.content + '<|im_end|>\n' }}{% endfor %}" + ASKED
# An empty thought before the last answer; it is cut from earlier ones, and is the prompt's with enable_thinking false.
THINKING = (
    EACH
    + "}}{% if m.role == 'assistant' and loop.last %}{{ thought }}{% endif %}"
    + "{{ m.content.split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    + ASKED
    + "{% if add_generation_prompt and enable_thinking is false %}{{ thought }}{% endif %}"
)
THINKING = f"{{% set thought = {THOUGHT!r} %}}{THINKING}"
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
FORCED = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
HEADLESS = CHATML.removesuffix(ASKED)
# No end of a turn but the beginning of the next one, and a thought that is cut from all answers but the last.
UNENDED = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '\n<think></think>' }}{% endif %}{{ '\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OPENED = CHATML + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"  # and never written in a turn
CLOSED = CHATML + "{% if add_generation_prompt %}{{ '<|observation|>' }}{% endif %}"
DATED = "{% set day = strftime_now('%d %b %Y') if date_string is not defined else date_string %}{{ day + '\n' }}"
MAYBE_DATED = f"{{% if strftime_now is defined %}}{DATED}{{% endif %}}{CHATML}"
HEAD = "<|im_start|>assistant\n"
ON = {"strftime_now": "2024-07-26"}
KINDS = {  # template, its arguments, how the prompt ends, what is before the answer, what ends it
    "plain": (CHATML, {}, HEAD, "", "<|im_end|>"),
    "thought": (THINKING, {}, HEAD, THOUGHT, "<|im_end|>"),
    "no thought": (THINKING, {"enable_thinking": False}, HEAD + THOUGHT, "", "<|im_end|>"),
    "space": (SPACED, {}, "[/INST]", " ", "</s>"),
    "system": (FORCED, {}, HEAD, "", "<|im_end|>"),
    "headless": (HEADLESS, {}, "<|im_end|>\n", HEAD, "<|im_end|>"),
    "unended": (UNENDED, {}, "<|assistant|>", "\n<think></think>\n", "<|user|>"),
    "opened": (OPENED, {}, HEAD + "<think>\n", "\n</think>\n\n", "<|im_end|>"),
    "closed": (CLOSED, {}, HEAD + "<|observation|>", "", "<|im_end|>"),
    "dated": (MAYBE_DATED, ON, HEAD, "", "<|im_end|>"),
    "dated by itself": (MAYBE_DATED, {"date_string": "26 Jul 2024"}, HEAD, "", "<|im_end|>"),
}


@pytest.fixture
def speak(monkeypatch):
    """speak(template): the tiny tokenizer with it, which is also what `preprocess.py` then loads."""

    def speak(template: str):
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
        tokenizer.chat_template = template
        monkeypatch.setattr(loading, "load_tokenizer", lambda name, revision=None: tokenizer)
        return tokenizer

    return speak


def test_a_thought_after_a_thought_that_the_prompt_has_ended_is_refused(speak):
    """A teacher's, where thinking is off."""
    tokenizer, thought = speak(THINKING), "<think>\nWe see.\n</think>\n\nAnswer: No"
    with pytest.raises(ValueError, match="ends the thought that a completion begins; leave enable_thinking false out"):
        templated(chat_writer(tokenizer, {"enable_thinking": False}), "Is it?", thought, special_tokens(tokenizer))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["Answer: No", "Pair A B\nAnswer: Yes"])
def test_the_prompt_asks_and_the_response_is_what_follows(speak, kind, answer):
    template, arguments, lead, before, end = KINDS[kind]
    tokenizer = speak(template)
    write = chat_writer(tokenizer, arguments)
    question = "Say 'Answer: No' or 'Answer: Yes'."
    prompt, response = templated(write, question, answer, special_tokens(tokenizer))
    assert prompt == write([{"role": "user", "content": question}], add_generation_prompt=True)
    assert prompt.endswith(lead) and response == before + answer + end
    (asked,), (said,) = encode_rows(tokenizer, {"prompt": [prompt], "response": [response]})
    assert asked == encode(tokenizer, prompt) and asked + said == encode(tokenizer, prompt + response)
    assert said[-1] == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("+ m.content", "+ m.content | upper"), "rewrites the answer 'Answer: No' as 'ANSWER: NO<"),
        (CHATML.replace("m.content", "m.content.split(': ')[-1]"), "rewrites the answer 'Answer: No' as 'No<"),
        (CHATML.replace("m.content", "m.content[1:-1]"), "rewrites the answer"),
        (
            CHATML.replace("m.content", "(m.content if m.role == 'assistant' else '')"),
            "leaves out or rewrites the question",
        ),
        (CHATML.replace("m.content", "m.content[-20:]"), "leaves out or rewrites the question"),
        ("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", "ends no turn with a special token"),
        (
            THINKING + "{% if add_generation_prompt %}Sure{% endif %}",
            "with 'Sure' and writes one with '<think>",
        ),
        (CHATML.replace("+ '", "+ raise_exception('no system turn') + '", 1), "cannot be used: no system turn"),
        (CHATML.replace("m.content", "m.content + 1", 1), "cannot be used: can only concatenate"),
        (MAYBE_DATED, r"writes today's date.*add a day to chat_template_args, strftime_now: 2025-01-31$"),
        ("{% set now = strftime_now %}{{ now('%d') }}" + CHATML, "writes today's date"),
        (CHATML + "{% if not add_generation_prompt %}{{ strftime_now(messages[0].role) }}{% endif %}", "today's date"),
    ],
)
def test_templates_that_could_not_be_trained_on_are_refused_before_the_rows_are_read(speak, template, message):
    speak(template)
    with pytest.raises(ValueError, match=message) as error:
        build(DataConfig(source="nowhere.csv"))
    assert str(error.value).startswith("tokenizer: its chat template") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_thinkin": False}, "this chat template has no argument enable_thinkin; leave it out"),
        ({"add_generation_prompt": False}, "has no argument add_generation_prompt"),
        ({"tokenize": True}, "has no argument tokenize"),
        ({"messages": []}, "has no argument messages"),
        ({"strftime_now": "26 Jul 2024"}, "strftime_now is a day such as 2025-01-31, not '26 Jul 2024'"),
        ({"strftime_now": None}, "strftime_now is a day such as"),
    ],
)
def test_arguments_that_the_template_does_not_have(speak, arguments, message):
    speak(THINKING)
    with pytest.raises(ValueError, match=f"^chat_template_args: .*{message}"):
        build(DataConfig(source="nowhere.csv", chat_template_args=arguments))


def test_the_same_seed_gives_the_same_rows_on_every_day(speak, monkeypatch):
    speak(MAYBE_DATED)
    hashes, prompts = {}, []
    for arguments in (ON, {"date_string": "1 May 2030"}):
        for year in (2025, 2031):
            monkeypatch.setattr(
                chat_template_utils,
                "datetime",
                type("Day", (datetime.datetime,), {"now": classmethod(lambda cls: cls(year, 3, 4))}),  # noqa: B023
            )
            splits, columns, report = build(
                DataConfig(num_variables=[3], relabelings=[3], chat_template_args=arguments)
            )
            assert columns == COLUMNS | CHAT_COLUMNS and report["config"]["chat_template_args"] == arguments
            hashes.setdefault(str(arguments), set()).add(hash_of_rows(splits, columns))
        prompts.append(splits["train"][0]["prompt"])
    assert [len(found) for found in hashes.values()] == [1, 1] and len(set.union(*hashes.values())) == 2
    assert prompts[0].startswith("26 Jul 2024\n") and prompts[1].startswith("1 May 2030\n")


@pytest.mark.parametrize("prompt", ["Answ", "<|user|>\nA<|end|>\nAnsw", "<|user|>The<|im_end|>Answ"])
def test_a_prompt_that_its_response_makes_other_tokens_is_refused_with_the_place(speak, prompt):
    tokenizer = speak(CHATML)
    assert len(encode(tokenizer, "Answer: No")) == 1
    message = "a prompt's end 'Answ' becomes the token 'Answer: No' where the response 'er: No<|end|>' follows"
    with pytest.raises(ValueError, match=f"^tokenizer: {re.escape(message)}"):
        encode_rows(tokenizer, {"prompt": [prompt], "response": ["er: No<|end|>"]})


def test_prompts_and_responses_are_the_tokens_of_one_text(tokenizer):
    rows = Dataset.from_list([{"prompt": "<|user|>\nA<|end|>\n<|assistant|>\n", "response": "Answer: No<|end|>"}])
    (prompt,), (response,) = encode_rows(tokenizer, rows)
    assert tokenizer.decode(prompt) == rows[0]["prompt"] and tokenizer.decode(response) == rows[0]["response"]
    assert encode_rows(tokenizer, {"prompt": ["", "A"], "response": ["A", ""]})[0] == [[], encode(tokenizer, "A")]


@pytest.mark.parametrize("kind", ["thought", "space", "opened"])
def test_what_is_before_a_trace_is_no_part_of_it(speak, kind):
    """Its sentences are read as without, and a correction of it begins with it."""
    template, arguments, _, before, end = KINDS[kind]
    speak(template)
    config = DataConfig(num_variables=[3], relabelings=[3], target="trace", chat_template_args=arguments)
    row = build(config)[0]["train"][-1]
    said = row["response"].removesuffix(end)
    found = marked(said, row["input"])
    assert said.startswith(before) and {mark for mark, _ in found.sentences} == {"right"}
    assert found.verdict == "right"
    assert corrected(row, said, "compact") is None
    first, second, *_ = said.removeprefix(before).splitlines(keepends=True)
    new = corrected(row, f"{before}{first}nonsense", "compact")
    assert new["kept"] == before + first and new["response"].startswith(second)
    assert new["prompt"] + new["response"] == row["prompt"] + row["response"]


def test_questions_to_a_model_have_the_arguments_of_its_training(speak, tmp_path):
    tokenizer = speak(THINKING)
    rows = [{"input": "Is it?", "label": 0}]
    for arguments in ({}, {"enable_thinking": False}):
        (row,) = as_trained(rows, tokenizer, str(tmp_path), arguments)
        assert row["prompt"].endswith(THOUGHT) == (arguments != {})
