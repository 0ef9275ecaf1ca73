"""The embedded tiny model: a Phi-3 with random weights and a tokenizer made from the task's own text."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

from causal import reasoning
from causal.rows import generate_rows
from causal.wording import parse_claim

PHI3_SPECIAL = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>")
PHI3_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI3_STOPS = ("<|end|>", "<|assistant|>", "<|endoftext|>")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the task's own text, with Phi-3.5's special tokens and chat format. Lossless on any text.

    A variable, "and", a comma with the word behind it, a full stop with the first word of the next line are tokens of
    their own; phrases between them become tokens.
    """
    corpus = [f" {letter}" for letter in "ABCDEFGHSTUVWXYZ"] + ["Answer: Yes", "Answer: No"]
    for n in (2, 3, 4):
        for row in generate_rows(n):
            corpus += [row["input"], reasoning.trace(*parse_claim(row["premise"], row["hypothesis"]))]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" [A-Z]\b| and|,(?: [a-z]+)?|\.(?:\n[A-Z][a-z]+)?|\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(PHI3_SPECIAL),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
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
