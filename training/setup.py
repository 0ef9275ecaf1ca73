"""What the two training scripts do before their loops: the run's directory, its data, a policy that can learn.

`open_run` is quick and refuses what it can; `Opened.ready` takes a policy, proves that it can be trained, puts it under
the launch's optimizer and continues an interrupted run. Every rank calls both.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter

from dataset.chat import encode, longest_sequence
from dataset.reading import choose_rows, load_split, read_dataset_hash, write_training_data
from policy.adapters import add_reference, disable_dropout, experts_note
from policy.loading import emulation_note, load_policy, load_tokenizer, stop_token_ids, training_dtype
from policy.prefix_sharing import Tokens
from policy.sampling import Sampler
from policy.self_check import check_gradients, check_model_numbers
from policy.shapes import check_context, check_model
from runtime.processes import device_name, start
from runtime.settings import AUTO, check
from training.budgets import find_budgets, of_all_ranks, tried_update
from training.demand import group_tokens
from training.health import Monitor, Motion, check_gradient_flow, check_optimizer, check_stop_tokens
from training.monitoring import Progress, finish, nan_means, open_writer, write_scalars
from training.optimization import check_launch, prepare
from training.runs import Run
from training.settings import BUDGETS, TrainingSettings

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Opened:
    """A run whose directory is held and whose data is read."""

    config: TrainingSettings
    stage: str  # SFT | GRPO
    accelerator: Accelerator
    run: Run
    data_hash: str
    train: "Dataset"
    validation: "Dataset"
    tokenizer: Any
    dtype: torch.dtype

    def load(self, longest: int, **adapter) -> torch.nn.Module:
        """The trainable model; `adapter`: adaptation and lora_dropout of `load_policy`.

        Raises ValueError if sequences of `longest` tokens leave its context.
        """
        names = "quantization lora_r lora_alpha lora_target_modules gradient_checkpointing revision seed"
        settings = {name: getattr(self.config, name) for name in names.split()}
        device = self.accelerator.device
        model = load_policy(self.config.model, dtype=self.dtype, device=device, **settings, **adapter)
        check_context(model, longest)
        return model

    def load_with_reference(self, longest: int, reference: bool) -> torch.nn.Module:
        """A LoRA policy without dropout, as sampling and scoring must see one, and its frozen reference if asked."""
        model = self.load(longest, adaptation="lora", lora_dropout=0.0)
        if reference:
            add_reference(model)
        disable_dropout(model)
        return model

    def ready(
        self,
        model: torch.nn.Module,
        num_steps: int,
        probe: Callable[[list[Tokens]], torch.Tensor],
        first: tuple[list[list[Tokens]], list[list[Tokens]]],
        longest: int,
    ) -> "Setup":
        """Prove that the model can be trained, put it under the optimizer, continue where a checkpoint was.

        `probe`, of some of the dataset's responses, is a loss that must reach every trainable tensor; `first` are
        prompts and completions of this rank's first step, by group: on these and on the longest of the data the numbers
        must be the model's own, as the gradients of packed attention must be SDPA's; `longest` are the tokens of the
        longest sequence. Sizes that are `auto` become numbers in the configuration. Raises TrainingFault or ValueError
        where one of that is not so.
        """
        accelerator, run, config = self.accelerator, self.run, self.config
        # Of each split, with as many tokens behind the prompt as are trained on or sampled.
        splits = (self.train, self.validation)
        sequences = [longest_sequence(self.tokenizer, rows, config.max_new_tokens) for rows in splits]
        check_context(model, max(map(len, sequences)))
        to_try = config.micro_batch_tokens == AUTO and "micro_batch_tokens" not in run.found
        use_budgets(config, run.found)
        use_budgets(config, find_budgets(accelerator, config, model.config, self.dtype))
        stop_ids = stop_token_ids(self.tokenizer, model)
        responses = [encode(self.tokenizer, text) for text in self.train["response"][:64]]
        check_stop_tokens(responses, stop_ids)
        check_model_numbers(model, *first, sequences, config.prefix_sharing)
        if config.prefix_sharing:
            check_gradients(model)
        check_gradient_flow(model, probe(responses))
        engine, optimizer = prepare(accelerator, model, config.learning_rate, config.weight_decay, config.max_grad_norm)
        policy = accelerator.unwrap_model(engine)
        check_optimizer(policy, optimizer)
        if to_try:
            group = group_tokens(config, longest)
            budget = tried_update(accelerator, policy, config.micro_batch_tokens, longest, group, config.prefix_sharing)
            use_budgets(config, {"micro_batch_tokens": budget})
        motion = Motion(policy)
        saved = run.restore(policy, optimizer, motion)
        step, writer = saved.get("step", 0), None
        if accelerator.is_main_process:
            write_training_data(run.output_dir, config.dataset, self.train, config.model)
            writer = open_writer(self.stage, config.logging_dir, run.purge_step(step))
        monitor = Monitor(asdict(config), config.stop_after, writer)
        monitor.restore(saved.get("monitor", {}))
        return Setup(
            **vars(self),
            engine=engine,
            policy=policy,
            optimizer=optimizer,
            sampler=Sampler(
                policy, self.tokenizer, stop_ids, config.max_new_tokens, config.cache_tokens, config.prefix_sharing
            ),
            end_ids={response[-1] for response in responses},
            motion=motion,
            monitor=monitor,
            writer=writer,
            num_steps=num_steps,
            first_step=step,
            saved=saved,
        )


@dataclass
class Setup(Opened):
    """What a training loop works with: `policy` is the model under `engine`, DeepSpeed's or the model itself."""

    engine: torch.nn.Module
    policy: torch.nn.Module
    optimizer: Any
    sampler: Sampler
    end_ids: set[int]  # of the tokens that end a response
    motion: Motion
    monitor: Monitor
    writer: SummaryWriter | None  # on the main process
    num_steps: int
    first_step: int
    saved: dict[str, Any]  # what the loop has saved where it continues; empty at the start

    def announce(self, what: str) -> None:
        """What the run does, and with which sizes."""
        sizes = "".join(f", {name} {getattr(self.config, name):,}" for name in BUDGETS)
        lines = filter(None, [f"{self.stage}: {what}{sizes}", experts_note(self.policy)])
        self.accelerator.print(*lines, sep="\n", flush=True)

    def start_progress(self) -> Progress:
        """The console's view of the steps that are left, from now on."""
        return Progress(self.stage, self.num_steps, self.first_step, self.accelerator.is_main_process)

    def is_time(self, step: int, every: int) -> bool:
        """Whether `step` is the last one or a multiple of `every`, if that is not 0."""
        return step == self.num_steps or (every > 0 and step % every == 0)

    def save(self, step: int, **state) -> None:
        """Write a checkpoint from which the run continues as if undisturbed; `state` is the loop's, as JSON."""
        # A resumed run must round as this one does from here on: with one number for the caches of all ranks.
        use_budgets(self.config, of_all_ranks(self.accelerator, {"cache_tokens": self.sampler.cache_tokens}))
        self.sampler.cache_tokens = self.config.cache_tokens
        state["monitor"] = self.monitor.state()
        self.run.save(step, self.policy, self.tokenizer, self.optimizer, self.writer, state)

    def log(self, window: list[dict[str, float]], step: int, more: dict[str, float]) -> None:
        """Write to TensorBoard, by tag: the means of a window's values, and what is known at its last step."""
        if self.writer is not None:
            moved = {"health/weight_change": self.motion.change(self.policy)}
            write_scalars(self.writer, nan_means(window) | more | moved | self.monitor.flags(), step)

    def finish(self, kept: dict[str, Any]) -> None:
        """End the run: `kept` has the step and the scores of the model in output_dir."""
        finish(self.run, self.writer, self.stage, kept, self.num_steps)
        self.accelerator.end_training()


def use_budgets(config: TrainingSettings, found: dict[str, int]) -> None:
    """Write what was found into the configuration, which is saved, logged and compared with as it was used."""
    for name, tokens in found.items():
        setattr(config, name, tokens)


def open_run(config: TrainingSettings, stage: str, labels: bool | None) -> Opened | None:
    """Start this process, hold the output directory, read the data; None for a run that has already finished.

    `labels`: the rows must have labels, and both; None: if they have any. Raises ValueError, before anything slow, for
    what the user can mend.
    """
    accelerator = start(config.seed)
    dtype = training_dtype(accelerator)
    count, kind = accelerator.num_processes, accelerator.distributed_type.value
    where = f"{device_name(accelerator.device)}, {count} process{'es' * (count > 1)}, {dtype}, {kind}"
    note = emulation_note(dtype, accelerator.device)
    accelerator.print(f"{stage} on {where}", *filter(None, [note]), sep="\n", flush=True)
    check_launch(accelerator)
    check_model(config.model)
    data_hash = read_dataset_hash(config.dataset)
    run = Run(accelerator, config, data_hash)
    if run.finished:
        run.end_at_once()
        return None
    for name, use in (("validation", "by which the best model is chosen"), ("test", "that a model is scored on")):
        held_out = config.train_split.startswith(name)
        check(not held_out, f"train_split: {config.train_split} has the rows {use}; name another, train say")
    train = load_split(config.dataset, config.train_split, both_answers=labels is not False, labels=labels)
    validation = load_split(config.dataset, "validation", labels=labels)
    validation = choose_rows(validation, config.eval_rows, config.seed)
    tokenizer = load_tokenizer(config.model, config.revision)
    return Opened(config, stage, accelerator, run, data_hash, train, validation, tokenizer, dtype)
