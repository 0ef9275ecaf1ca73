"""Text as the model reads it: chat templates and token ids."""

from runtime.settings import check


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of text that already holds its special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


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
