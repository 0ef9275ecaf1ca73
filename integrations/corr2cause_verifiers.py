"""Corr2Cause as an environment of verifiers: questions without end, rewarded for their answer and for checked steps.

    vf-eval corr2cause-verifiers -n 20 --model MODEL --client.base-url http://localhost:8000/v1 --no-push
    ... --env.taskset.num-variables '[4, 5, 6]' --env.taskset.example full

A rollout is one request to the model and its reply, from this process: no tools, no sandbox. Other harnesses and
runtimes are set as ever (`--env.agent.harness.id`, `--env.agent.runtime.type`).
"""

from collections.abc import Iterator
from typing import Self

import verifiers.v1 as vf
from openai import AsyncOpenAI
from pydantic import model_validator

from causal.answers import extract_answer
from causal.claims import RELATIONS
from causal.questions import REASONING, Questions, prompt_of
from causal.rewards import credit, process_of_row

__all__ = ["Corr2CauseEnv", "Corr2CauseTaskset", "OneReply"]


class Corr2CauseData(vf.TaskData):
    premise: str
    hypothesis: str
    label: int
    num_variables: int
    relation: str


class Corr2CauseTask(vf.Task[Corr2CauseData]):
    @vf.reward
    async def credit(self, trace: vf.Trace) -> float:
        """1 for the right answer; else partial credit for right steps (`causal.rewards.credit`)."""
        return credit(trace.last_reply, self.data.model_dump())

    @vf.metric
    async def right(self, trace: vf.Trace) -> float:
        """Is the answer right?"""
        return float(extract_answer(trace.last_reply) is bool(self.data.label))

    @vf.metric
    async def process(self, trace: vf.Trace) -> float:
        """How much of the exact reasoning the reply gives, in [-1, 1] (`causal.rewards.process_reward`)."""
        return process_of_row(trace.last_reply, self.data.model_dump())[0]


class Corr2CauseConfig(vf.TasksetConfig):
    """The settings of `causal.questions.Questions`, how many there are, and how a model is asked."""

    size: int = 1000
    seed: int = 0
    num_variables: list[int] = [3, 4, 5]
    relations: list[str] = list(RELATIONS)
    wordings: list[str] = ["released"]
    letterings: list[str] = ["released"]
    balanced: bool = True
    instruction: str = REASONING
    example: str | None = None
    """A style of traces (compact, full): the prompt then shows a worked question in it, without which only a model that
    knows these traces can earn partial credit."""

    def questions(self) -> Questions:
        names = ("seed", "num_variables", "relations", "wordings", "letterings", "balanced")
        return Questions(**{name: getattr(self, name) for name in names}, style=self.example or "compact")

    @model_validator(mode="after")
    def check(self) -> Self:
        """Raises ValueError for settings that make no questions."""
        self.questions()
        return self


class Corr2CauseTaskset(vf.Taskset[Corr2CauseTask, Corr2CauseConfig]):
    def load(self) -> Iterator[Corr2CauseTask]:
        questions = self.config.questions()
        for k in range(self.config.size):
            row = questions[k]
            prompt = prompt_of(row["input"], self.config.instruction, self.config.example)
            known = {name: value for name, value in row.items() if name in Corr2CauseData.model_fields}
            yield Corr2CauseTask(Corr2CauseData(prompt=prompt, **known), self.config.task)


class OneReply(vf.Harness[vf.HarnessConfig]):
    """Asks the model once, from this process."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        system, prompt = self.resolve_text_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        async with AsyncOpenAI(base_url=endpoint, api_key=secret) as client:
            await client.chat.completions.create(model=ctx.model, messages=messages)
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


class Corr2CauseEnvConfig(vf.SingleAgentEnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class Corr2CauseEnv(vf.SingleAgentEnv, vf.Env[Corr2CauseEnvConfig]):
    """A single agent, which needs no sandbox unless one is asked for."""
