"""The embedded model: its tokenizer, made from the task's own text, and its weights."""

import random
from itertools import combinations

import torch
from conftest import CPU
from hypothesis import given, settings
from hypothesis import strategies as st

from causal import reasoning, wording
from causal.rows import LETTERINGS, generate_rows
from causal.tiny import PHI3_SPECIAL, TOKEN_WORDINGS, tiny_model, tiny_tokenizer
from dataset.chat import encode
from policy.loading import load_policy, load_tokenizer
from policy.prefix_sharing import ATTENTION


@settings(max_examples=100)
@given(text=st.text(max_size=40))
def test_tiny_tokenizer_is_lossless_on_any_text(tokenizer, text):
    if not any(token in text for token in PHI3_SPECIAL):
        assert tokenizer.decode(encode(tokenizer, text)) == text


def test_tiny_tokenizer_is_lossless_and_short_on_the_task(tokenizer):
    for row in list(generate_rows(3))[::9] + list(generate_rows(4))[::90]:
        ids = encode(tokenizer, row["input"])
        assert tokenizer.decode(ids) == row["input"]
        assert len(ids) < len(row["input"]) / 3
        premise = wording.parse_premise(row["premise"])
        trace = reasoning.trace(premise, wording.parse_hypothesis(row["hypothesis"], premise.variables))
        assert tokenizer.decode(encode(tokenizer, trace)) == trace


def test_a_pair_and_a_set_are_one_token_in_every_lettering(tokenizer):
    def pieces(text):
        ids = encode(tokenizer, text)
        assert tokenizer.decode(ids) == text
        return [tokenizer.decode([k]) for k in ids]

    for letters in LETTERINGS.values():
        for n in (3, 4, 5, 6):
            names = letters[:n]
            for a, b in combinations(names, 2):
                for text in (f", {a} {b}", f"Pair {a} {b}", f"Ends {a} {b}", f"Round 2 {a} {b}"):
                    assert pieces(text) == [text]
                rest = [v for v in names if v not in (a, b)]
                for held in (held for k in range(1, n - 1) for held in combinations(rest, k)):
                    listed = wording.listing(held)
                    statement = f" {a} and {b} are independent given"
                    assert pieces(f"{statement} {listed}.") == [statement, f" {listed}."]
                    assert pieces(f"Pair {a} {b} none given {' '.join(held)}")[1:] == [
                        " none given",
                        f" {' '.join(held)}",
                    ]
    assert pieces(" There is a path of arrows from A to Z.") == [
        " There", " is", " a", " path", " of", " arrows", " from", " A", " to", " Z."
    ]  # fmt: skip
    assert [pieces(f"Answer: {answer}") for answer in ("Yes", "No")] == [["Answer: Yes"], ["Answer: No"]]
    assert pieces(" - same\nRound 1 A B none changed\n") == [" - same\n", "Round 1 A B", " none changed\n"]


def test_no_words_of_a_hypothesis_are_one_token_together(tokenizer):
    """Else who was taught one wording has not read these words apart, as others have them."""
    for name in TOKEN_WORDINGS:
        for sentence in wording.WORDINGS[name].values():
            ids = encode(tokenizer, "\nHypothesis: " + sentence.format(a="C", b="E"))
            pieces = [tokenizer.decode([k]).strip() for k in ids[1:]]
            assert not [piece for piece in pieces if " " in piece and piece not in ("C and E", "C and E.")]


def test_prompts_and_traces_are_short(tokenizer):
    """Mean tokens of a row's input and of its trace: docs/traces.md."""
    for n, most in ((4, (33, 100)), (5, (59, 205))):
        lengths = []
        for row in random.Random(0).sample(list(generate_rows(n)), 200):
            trace = reasoning.trace(*wording.parse_claim(row["premise"], row["hypothesis"]))
            lengths.append((len(encode(tokenizer, row["input"])), len(encode(tokenizer, trace))))
        assert all(sum(some) / len(some) <= limit for some, limit in zip(zip(*lengths, strict=True), most, strict=True))


def test_tiny_tokenizer_is_the_same_each_time(tokenizer):
    assert tiny_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_special_tokens_are_single_and_not_added(tokenizer):
    for token in PHI3_SPECIAL:
        assert len(encode(tokenizer, token)) == 1
        assert tokenizer.decode(encode(tokenizer, f"yes{token}"), skip_special_tokens=True) == "yes"
    assert encode(tokenizer, "") == []


def test_chat_template_is_phi3s(tokenizer):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>\nWhy?<|end|>\n<|assistant|>\n"
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole == "<|user|>\nWhy?<|end|>\n<|assistant|>\nSo.<|end|>\n<|endoftext|>"


def test_tokenizer_survives_saving_with_its_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.chat_template == tokenizer.chat_template
    text = " <|user|>\n Z and  Y, é<|end|>"
    assert encode(loaded, text) == encode(tokenizer, text) and loaded.decode(encode(loaded, text)) == text


def test_tiny_model_is_a_function_of_the_seed():
    one, same, other = (dict(tiny_model(seed, ATTENTION).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    policy = load_policy("tiny", adaptation="full", quantization="none", seed=1, **CPU)
    assert all(p.requires_grad and torch.equal(p, one[name]) for name, p in policy.named_parameters())
