"""Evaluations during training: greedy answers to the validation rows, and the best model so far in output_dir."""

import math
from dataclasses import asdict
from typing import Any

from dataset.chat import encode
from dataset.reading import premise_ids_of
from policy.loading import model_card
from scoring.metrics import classification_metrics
from scoring.predictions import complete, not_finite, predict
from training.monitoring import EVAL_SCORES, report_means, report_scores
from training.rewards import Reward
from training.setup import Setup


class Validation:
    """Scores the policy and keeps the model with the best score, or with keep_best false the last one.

    The score is the validation loss where the caller has one, else F1; with a `reward` of the user's own its mean, as
    the rows need not be questions with a Yes or a No. Of rows without labels the loss alone is known.
    """

    def __init__(self, s: Setup, reward: Reward | None = None):
        self.s, self.reward = s, reward
        self.prompts = [encode(s.tokenizer, text) for text in s.validation["prompt"]]
        self.best: dict[str, Any] = s.saved.get("best", {"step": 0})

    def __call__(self, step: int, loss: float | None = None) -> None:
        """Evaluate after `step` steps, on all ranks together."""
        s = self.s
        values = {} if loss is None else {"loss": loss}
        if self.reward is not None:
            values |= self._rewards(step)
        elif "label" in s.validation.column_names:
            values |= self._answers(step, loss)
        elif s.writer is not None:
            report_means(s.writer, values, len(s.validation), step)
        if not s.config.keep_best or is_best(values, self.best):
            self.best.clear()
            self.best.update(values, step=step)
            card = model_card(s.stage, asdict(s.config), s.data_hash, step, values)
            s.run.keep_model(s.policy, s.tokenizer, card, self.best)
        s.monitor.update(step, {f"eval/{name}": value for name, value in values.items()})

    def _answers(self, step: int, loss: float | None) -> dict[str, float]:
        rows = self.s.validation
        answered = predict(self.s.accelerator, self.s.sampler, rows, self.prompts)
        predictions = [row["prediction"] for row in answered]
        scores = classification_metrics(rows["label"], predictions)
        if self.s.writer is not None:
            report_scores(self.s.writer, scores, rows["label"], predictions, step, loss)
        return {name: scores[name] for name in EVAL_SCORES} | not_finite(answered)

    def _rewards(self, step: int) -> dict[str, float]:
        rows = self.s.validation
        answers = complete(self.s.accelerator, self.s.sampler, self.prompts, premise_ids_of(rows))
        judged = [self.reward(sample.text, row).reward for [sample], row in zip(answers, rows, strict=True)]
        means = {"reward": sum(judged) / len(judged)}
        if self.s.writer is not None:
            report_means(self.s.writer, means, len(judged), step)
        return means


def is_best(values: dict[str, float], before: dict[str, Any]) -> bool:
    """Whether none before had a better score, the first of `values`: of equal ones the last is kept, and of NaN any."""
    name = next(iter(values))  # loss, f1 or reward
    score, best = values[name], before.get(name, math.nan)
    return math.isnan(best) or (score <= best if name == "loss" else score >= best)
