"""Texts and token ids."""

from datasets import Dataset

from dataset.chat import encode_rows


def test_prompts_and_responses_are_encoded_apart(tokenizer):
    rows = Dataset.from_list([{"prompt": "<|user|>\nA<|end|>\n<|assistant|>\n", "response": "Answer: No<|end|>"}])
    (prompt,), (response,) = encode_rows(tokenizer, rows)
    assert tokenizer.decode(prompt) == rows[0]["prompt"] and tokenizer.decode(response) == rows[0]["response"]
