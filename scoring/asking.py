"""One question to a model: its own reasoning, each sentence marked by the checker, and whether its answer is right."""

from datetime import date

import torch

from causal.answers import extract_answer
from causal.graphs import structure_id
from causal.reasoning import check_trace, required_steps
from causal.trace_text import write_step
from causal.wording import parse_input
from dataset.chat import DAY, as_trained, encode
from dataset.reading import training_data
from policy.loading import check_context, check_model, load_for_inference, load_tokenizer, stop_token_ids
from policy.sampling import Sampler
from runtime.files import read_beside

MARKS = {True: "right", False: "wrong", None: "unread"}
NEW_TOKENS = 1024  # of a model that does not say how many it was trained with


def ask(model: str, text: str) -> str:
    """The model's greedy completion, in fp32 on the CPU, to a text of Corr2Cause in the chat that it was trained on.

    Raises ValueError for a model that cannot be loaded, or whose context the text does not fit into.
    """
    check_model(model)
    settings = read_beside(model, "training_config.json")
    tokenizer = load_tokenizer(model)
    loaded = load_for_inference(model, "none", torch.float32, torch.device("cpu"))
    chat = {DAY: str(date.today())} | training_data(model).get("chat_template_args", {})
    (row,) = as_trained([{"input": text, "label": 0}], tokenizer, model, chat)
    prompt, new = encode(tokenizer, row["prompt"]), settings.get("max_new_tokens", NEW_TOKENS)
    check_context(loaded, len(prompt) + new)
    sampler = Sampler(loaded, tokenizer, stop_token_ids(tokenizer, loaded), new, len(prompt) + new)
    return sampler.sample([[prompt]])[0][0].text.strip()


def marked(completion: str, text: str) -> tuple[list[str], list[str]]:
    """The sentences of a completion, each with its mark; and what is to be said of the whole: counts, and the answer.

    Raises Corr2CauseError for a text that cannot be read, or that no graph satisfies.
    """
    premise, claim = parse_input(text)
    found = check_trace(completion, premise, claim)
    sentences = [
        f"{MARKS[None if sentence.step is None else sentence.right]:<7}{sentence.text}" for sentence in found.sentences
    ]
    sentences += [f"missing {write_step(step, premise.variables)}" for step in found.missing[:1]]
    answer, (_, exact) = extract_answer(completion), required_steps(premise, claim)["answer",].head
    verdict = "no answer" if answer is None else "right" if answer is exact else "wrong"
    return sentences, [f"{verdict}; of its sentences {found.counts}"]


def familiarity(model: str, text: str) -> str:
    """Whether the model has seen the graph of the text, under any letters, in its training."""
    seen = training_data(model).get("structures")
    if not seen:
        return "which graphs it has seen is not known"
    return f"a graph that it has {'' if structure_id(parse_input(text)[0]) in seen else 'not '}seen in its training"
