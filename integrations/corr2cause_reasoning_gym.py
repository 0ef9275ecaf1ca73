"""Corr2Cause as a dataset of reasoning-gym: questions without end, scored by their answer and by checked steps.

    import reasoning_gym, corr2cause_reasoning_gym
    data = reasoning_gym.create_dataset("corr2cause", min_variables=4, max_variables=5, size=500, seed=0)
    data.score_answer(completion, entry=data[0])

Give `score_answer` the whole completion: of what stands between answer tags alone, no step can be credited.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reasoning_gym.coaching import BaseCurriculum, RangeAttributeDefinition, ScalarAttributeDefinition
from reasoning_gym.factory import ProceduralDataset, register_dataset

from causal.claims import RELATIONS
from causal.questions import REASONING, Questions, prompt_of
from causal.rewards import credit

NAME = "corr2cause"


@dataclass
class Corr2CauseConfig:
    """The settings of `causal.questions.Questions`, a range for N, and how a model is asked.

    `example` is a style of traces (compact, full): the prompt then shows a worked question in it, without which only a
    model that knows these traces can earn partial credit.
    """

    min_variables: int = 3
    max_variables: int = 5
    relations: Sequence[str] = RELATIONS
    wordings: Sequence[str] = ("released",)
    letterings: Sequence[str] = ("released",)
    balanced: bool = True
    instruction: str = REASONING
    example: str | None = None
    seed: int | None = None
    size: int = 500

    def validate(self) -> None:
        """Raises ValueError for settings that make no questions."""
        if self.min_variables > self.max_variables:
            raise ValueError(f"min_variables is {self.min_variables}; use at most max_variables, {self.max_variables}")
        if self.size < 1:
            raise ValueError(f"size is {self.size}; use 1 or more")
        self.questions(seed=0)

    def questions(self, seed: int) -> Questions:
        return Questions(
            seed=seed,
            num_variables=range(self.min_variables, self.max_variables + 1),
            relations=self.relations,
            wordings=self.wordings,
            letterings=self.letterings,
            balanced=self.balanced,
            style=self.example or "compact",
        )


class Corr2CauseDataset(ProceduralDataset):
    """An entry's metadata has the row (`causal.questions.Questions`), its exact trace among it."""

    def __init__(self, config: Corr2CauseConfig):
        super().__init__(config=config, seed=config.seed, size=config.size)
        self.questions = config.questions(self.seed)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        row = self.questions[idx]
        difficulty = {name: row[name] for name in ("num_variables", "relation")}
        return {
            "question": prompt_of(row["input"], self.config.instruction, self.config.example),
            "answer": "Yes" if row["label"] else "No",
            "metadata": {"source_dataset": NAME, "source_index": idx, **row, "difficulty": difficulty},
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """1 for the right answer; else partial credit for right steps (`causal.rewards.credit`), 0 for no text."""
        return credit(answer or "", entry["metadata"])


class Corr2CauseCurriculum(BaseCurriculum):
    """Levels of N, and of relations: each level has one more."""

    def __init__(self):
        super().__init__(Corr2CauseCurriculum.__name__, Corr2CauseConfig)
        easiest_first = ("direct", "collider", "indirect", "confounder")
        self._define_attributes(
            RangeAttributeDefinition(
                name="num_variables",
                levels=[3, 4, 5, 6, 7],
                lower_field_name="min_variables",
                upper_field_name="max_variables",
                description="The number of variables N",
            ),
            ScalarAttributeDefinition(
                name="relations",
                field_name="relations",
                levels=[easiest_first[: k + 1] for k in range(len(easiest_first))],
                description="The relations that are claimed",
            ),
        )


register_dataset(NAME, Corr2CauseDataset, Corr2CauseConfig, Corr2CauseCurriculum)
