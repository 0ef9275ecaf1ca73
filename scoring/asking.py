"""Questions to a model: its own reasoning, each sentence marked by the checker, and its answer beside the true one.

respondent = load("reasoner")                        # seconds, once
found = marked(respondent.ask(text), text)           # text: 'Premise: P\\nHypothesis: H'
"""

from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import torch
from transformers.utils.logging import disable_progress_bar

from causal.answers import extract_answer
from causal.classes import structure_id
from causal.reasoning import CheckedSentence, check_trace, required_steps, write_step
from causal.wording import parse_input
from dataset.chat import DAY, as_trained, encode
from dataset.reading import training_data
from policy.loading import load_for_inference, load_tokenizer, stop_token_ids
from policy.sampling import Sampler
from policy.shapes import check_context, check_model
from runtime.files import read_beside

NEW_TOKENS = 1024  # of a model that does not say how many it was trained with


@dataclass(frozen=True)
class Respondent:
    """A loaded model that is asked one text of Corr2Cause after another, in the chat that it was trained on."""

    name: str
    model: torch.nn.Module
    tokenizer: Any
    max_new_tokens: int

    def ask(self, text: str) -> str:
        """The greedy completion. Raises ValueError if the text does not fit into the model's context."""
        chat = {DAY: str(date.today())} | training_data(self.name).get("chat_template_args", {})
        (row,) = as_trained([{"input": text, "label": 0}], self.tokenizer, self.name, chat)
        prompt = encode(self.tokenizer, row["prompt"])
        room = len(prompt) + self.max_new_tokens
        check_context(self.model, room)
        stop_ids = stop_token_ids(self.tokenizer, self.model)
        sampler = Sampler(self.model, self.tokenizer, stop_ids, self.max_new_tokens, room)
        return sampler.sample([[prompt]])[0][0].text.strip()

    def familiarity(self, text: str) -> str:
        """Whether the model has seen the graph of the text, under any letters, in its training."""
        seen = training_data(self.name).get("structures")
        if not seen:
            return "which graphs it has seen is not known"
        return f"a graph that it has {'' if structure_id(parse_input(text)[0]) in seen else 'not '}seen in its training"


def load(model: str) -> Respondent:
    """The model in fp32 on the CPU. Raises ValueError if it cannot be loaded."""
    check_model(model)
    disable_progress_bar()  # it would stand between a question and its answer
    tokenizer = load_tokenizer(model)
    loaded = load_for_inference(model, "none", torch.float32, torch.device("cpu"))
    new = read_beside(model, "training_config.json").get("max_new_tokens", NEW_TOKENS)
    return Respondent(model, loaded, tokenizer, new)


class Marked(NamedTuple):
    """A completion as the checker sees it."""

    sentences: list[tuple[str, CheckedSentence]]  # after right, wrong, unreadable or, the next step, missing
    answer: str  # Yes, No or none
    true: str  # Yes or No
    verdict: str  # of the answer: right, wrong or no answer
    counts: str  # of all sentences


def marked(completion: str, text: str) -> Marked:
    """The sentences of a completion with their marks, and its answer with the true one.

    Raises Corr2CauseError for a text that cannot be read, or that no graph satisfies.
    """
    premise, claim = parse_input(text)
    found = check_trace(completion, premise, claim)
    sentences = [
        ("unreadable" if sentence.step is None else "right" if sentence.right else "wrong", sentence)
        for sentence in found.sentences
    ]
    for step in found.missing[:1]:
        sentences.append(("missing", CheckedSentence(write_step(step, premise.variables), step, False)))
    answer, (_, exact) = extract_answer(completion), required_steps(premise, claim)["answer",].head
    verdict = "no answer" if answer is None else "right" if answer is exact else "wrong"
    words = {True: "Yes", False: "No", None: "none"}
    return Marked(sentences, words[answer], words[exact], verdict, found.counts)
