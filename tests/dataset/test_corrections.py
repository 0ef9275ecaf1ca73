"""Corrections: prompt and response are one exact trace, cut at the same tokens as the model has written it in."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from causal import reasoning, wording
from causal.tiny import tiny_tokenizer
from dataset.chat import encode, encode_rows
from dataset.corrections import corrected, corrections_of, mixed_with
from dataset.reading import load_split
from dataset.relabelling import FreshRows


@pytest.fixture(scope="module")
def train(traces):
    return load_split(traces, "train").select(range(40))


def faulty(row, line):
    """The row's trace as a model would have written it that goes wrong in a line."""
    trace = row["response"].removesuffix("<|end|>").splitlines()
    return "\n".join([*trace[:line], "Therefore it follows.", *trace[line:]])


def correct(row, line):
    return corrected(row, faulty(row, line), "full")


def test_prompt_and_response_are_the_exact_trace(train):
    for k, row in enumerate(train):
        new = correct(row, k % 7)
        assert new["prompt"] + new["response"] == row["prompt"] + row["response"]
        assert new["prompt"] == row["prompt"] + new["kept"] and len(new["kept"].splitlines()) == k % 7
        whole = (new["kept"] + new["response"]).removesuffix("<|end|>")
        premise, claim = wording.parse_claim(row["premise"], row["hypothesis"])
        assert reasoning.check_trace(whole, premise, claim).complete
        assert corrected(row, row["response"].removesuffix("<|end|>"), "full") is None


def metaspace_tokenizer():
    """One that writes a space before the first word of a text, as Llama's and Phi-3.5's do."""
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    lines = [
        "Pair A and B: no edge; independent given nothing.",
        "Around A and B: no edge - -> that is all; no change.",
    ]
    trainer = trainers.BpeTrainer(special_tokens=["<|end|>"], show_progress=False, vocab_size=300)
    backend.train_from_iterator([*lines, *map(str.lower, lines), "\n", *map(chr, range(32, 127))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("make", [tiny_tokenizer, metaspace_tokenizer])
def test_a_row_is_cut_at_the_tokens_of_the_whole_response(train, make):
    tokenizer = make()
    plain, new = train[0], [correct(train[0], line) for line in range(7)]
    rows = {name: [row[name] for row in [plain | {"kept": ""}, *new]] for name in ("prompt", "response", "kept")}
    (prompt, *prompts), (response, *responses) = encode_rows(tokenizer, rows)
    assert prompt == encode(tokenizer, plain["prompt"])
    assert prompt + response == encode(tokenizer, plain["prompt"] + plain["response"])
    lengths = [len(tokens) for tokens in prompts]
    assert lengths == sorted(set(lengths)) and lengths[0] == len(prompt)
    for asked, answered, row in zip(prompts, responses, new, strict=True):
        assert asked + answered == prompt + response
        kept = tokenizer.decode(asked[len(prompt) :])
        assert "".join(kept.split()) == "".join(row["kept"].split())


def test_an_epoch_leaves_corrections_alone(train):
    plain, new = train[0] | {"kept": ""}, correct(train[1], 3)
    columns = FreshRows(Dataset.from_list([plain, new]), "full", 0).columns(2)
    assert columns["kept"] == ["", new["kept"]]
    assert columns["prompt"][1] == new["prompt"] and columns["response"][1] == new["response"]
    assert columns["prompt"][0] != plain["prompt"]


def test_what_becomes_of_every_trace(train):
    answers = [{"input": row["input"], "completion": faulty(row, k % 7)} for k, row in enumerate(train)]
    right = {"input": train[0]["input"], "completion": train[0]["response"].removesuffix("<|end|>")}
    found, fates = corrections_of(train, [("a", answer) for answer in [*answers, answers[0], right]], "full")
    assert fates == {"corrected": 40, "repeated": 1, "right": 1} and len(found) == 40
    assert len({row["row"] for row in found}) == 40
    samples = {"input": train[0]["input"], "completion": "", "completions": [faulty(train[0], k) for k in (1, 3, 3)]}
    assert corrections_of(train, [("a", samples)], "full")[1] == {"corrected": 2, "repeated": 1}
    with pytest.raises(ValueError, match="nothing to correct, all 1 traces are right"):
        corrections_of(train, [("a", right)], "full")
    with pytest.raises(ValueError, match="predictions: a has a row that is not of the dataset's train: 'Other'"):
        corrections_of(train, [("a", {"input": "Other", "completion": ""})], "full")
    with pytest.raises(ValueError, match="predictions: a has no completions; use .*--mode generate"):
        corrections_of(train, [("a", {"input": train[0]["input"]})], "full")
    with pytest.raises(ValueError, match="predictions: a has no completions"):
        corrections_of(train, [("a", {"input": train[0]["input"], "completion": None})], "full")


@pytest.mark.parametrize(
    ("share", "cap", "counts"), [(0.5, None, (8, 8)), (0.25, None, (8, 24)), (1.0, None, (8, 0)), (0.25, 12, (3, 9)),
    (0.1, None, (8, 30)), (0.01, 4, (1, 3))]
)  # fmt: skip
def test_the_share_of_corrections(share, cap, counts):
    new, plain = [{"new": k} for k in range(8)], [{"plain": k} for k in range(30)]
    rows = mixed_with(new, plain, share, cap, 0)
    assert (sum("new" in row for row in rows), sum("plain" in row for row in rows)) == counts
