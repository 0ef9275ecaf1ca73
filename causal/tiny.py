"""The embedded tiny model: a Phi-3 with random weights and a tokenizer made from the task's own text."""

import re
from collections.abc import Iterator
from itertools import chain, combinations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

from causal import reasoning
from causal.classes import LETTERS
from causal.rows import LETTERINGS, SPREAD, generate_rows
from causal.trace_text import FIXED_WORDS, MARKS, STYLES
from causal.vocabulary import WORDINGS
from causal.wording import listing, parse_claim

PHI3_SPECIAL = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>")
PHI3_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI3_STOPS = ("<|end|>", "<|assistant|>", "<|endoftext|>")


# Wordings that it has words for. Others would change its tokens, and with them every tiny model.
TOKEN_WORDINGS = ("released", "paraphrase", "recombined", "effect", "influence", "affect", "cause", "arrow")
TOKEN_SET = 4  # variables; a premise of N = 6 has no larger set
TOKEN_ROUNDS = 3  # few classes take more
TOKEN_SIZES = range(2, 9)  # systems whose opening words are tokens


def _phrases() -> Iterator[str]:
    """What is one token in the texts of the task: a pair or a set of variables with the words that always go with it.

    So a look-up of a pair has one key and one value. In other letters, or of more variables, the same text is made of
    smaller tokens. The words of a hypothesis stay apart: who only knows " directly causes" has never read " directly".
    """
    for letters in (lettering[:SPREAD] for lettering in LETTERINGS.values()):
        for a, b in combinations(letters, 2):
            yield from (f" {a} correlates with {b}.", f" {a} is independent of {b}.")
            yield f" {a} and {b} are independent given"
            yield from (f"Pair {a} {b}", f"Ends {a} {b}", f", {a} {b}")
            yield from (f"Round {number} {a} {b}" for number in range(1, TOKEN_ROUNDS + 1))
        for names in chain.from_iterable(combinations(letters, k + 1) for k in range(TOKEN_SET)):
            if len(names) > 1:  # a letter alone is a word to the BPE: here it would be cut off other words
                yield " " + " ".join(names)
            yield f" {listing(names)}."
        for a in letters:
            yield from (f"From {a}", f"Into {a}", f"Way {a}", f" without {a}", f" past {a}", f" at {a}")
    for n in TOKEN_SIZES:
        yield f"Premise: Suppose there is a closed system of {n} variables,"
        yield f" All the statistical relations among these {n} variables are as follows:"
    for mark in MARKS:
        yield from (f" {mark}", f" {mark} same\n", f" {mark} changed\n")
    ends = ("-", "same", "changed", "end same", "end changed", "found", "missing", "far", "open", "both found")
    yield from (f" {words}\n" for words in ends)
    yield from (" none given", "\nHypothesis:", " However,", "Answer: Yes", "Answer: No")
    # A single word is the BPE's: it would be cut off longer ones (" in" off " influences").
    yield from (word for word in FIXED_WORDS if not re.fullmatch(r" ?\w+", word))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the task's own text, with Phi-3.5's special tokens and chat format. Lossless on any text.

    Pairs and sets of variables, and what else is always said in the same words, are tokens (`_phrases`).
    """
    words = [f" {letter}" for letter in LETTERS] + [*FIXED_WORDS]
    words += [f" {sentence}" for name in TOKEN_WORDINGS for sentence in WORDINGS[name].values()]
    corpus = words * 99  # each becomes a token, or a token a word
    for row in generate_rows(3):
        corpus += [row["input"]]
        corpus += [reasoning.trace(*parse_claim(row["premise"], row["hypothesis"]), style) for style in STYLES]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(PHI3_SPECIAL),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    backend.add_tokens([AddedToken(phrase, normalized=False) for phrase in dict.fromkeys(_phrases())])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = PHI3_CHAT_TEMPLATE
    return tokenizer


def tiny_model(seed: int, attn_implementation: str = "sdpa") -> Phi3ForCausalLM:
    """A Phi-3 of about 0.7 million parameters with random weights that `seed` determines."""
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(token) for token in PHI3_STOPS]
    torch.manual_seed(seed)
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            original_max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=ids[-1],
            bos_token_id=None,
            eos_token_id=ids[-1],
            attn_implementation=attn_implementation,
        )
    )
    model.generation_config.eos_token_id = ids
    return model
