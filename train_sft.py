"""Supervised fine-tuning on the completions of a dataset of preprocess.py.

    accelerate launch --config_file accelerate_configs/zero2_2xl4.yaml train_sft.py --config configs/sft_phi3.yaml
    accelerate launch --config_file accelerate_configs/zero2_2xcpu.yaml train_sft.py --config configs/sft_tiny.yaml
    tensorboard --logdir logs

The loss of an optimizer step is the mean over all completion tokens of the step, on every rank: how the step is split
into micro-batches and processes does not change it. Claims on one premise share its tokens (prefix_sharing.py).

Dimensions: B rows of a micro-batch, T completion length.
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from dataset.batches import epoch_batches, premise_groups, share_of_rank, steps_of_epoch
from dataset.chat import check_reads_english, encode_rows
from dataset.reading import premise_ids_of
from dataset.relabelling import FreshRows, trace_style
from policy.prefix_sharing import alone, pack, plan_micro_batches, sequence_logps
from policy.shapes import check_context
from runtime.ending import run_script
from runtime.processes import gather, reduce
from runtime.settings import arg, check, parse_config
from training.health import check_graph
from training.optimization import backward, set_learning_rate, step_optimizer
from training.settings import TrainingSettings
from training.setup import Setup, open_run
from training.validation import Validation

if TYPE_CHECKING:
    from datasets import Dataset


OF_LORA = ("lora_r", "lora_alpha", "lora_target_modules", "lora_dropout")


@dataclass
class Config(TrainingSettings):
    adaptation: str = arg("full", "lora | full", choices=("lora", "full"), section="policy")
    lora_dropout: float = arg(0.0, "dropout probability before LoRA's A", at_least=0, below=1)

    unknown_words: float = arg(
        0.0,
        "relabel_each_epoch: share of the rows in whose hypothesis the verb and others are made up, so that the model "
        "stays undecided where it knows none, and GRPO has something to choose from",
        at_least=0,
        at_most=1,
        section="model and data",
    )

    prompt_loss_weight: float = arg(
        0.0,
        "loss weight of a prompt token; above 0 helps a model that starts from random weights",
        at_least=0,
        section="objective",
    )

    position_stretch: float = arg(
        1.0,
        "above 1: positions with gaps, in rows up to so many times as long, so that longer rows than it sees are read",
        at_least=1,
    )

    num_train_epochs: float = arg(3.0, "passes over the training rows", at_least=0, section="optimisation")
    max_steps: int = arg(0, "optimizer steps, if above 0; overrides num_train_epochs", at_least=0)
    small_first: bool = arg(False, "the first epoch goes from few variables to many")
    batch_size: int = arg(64, "rows an optimizer step, over all processes and micro-batches", at_least=1)
    warmup_ratio: float = arg(0.05, "share of the steps in which the rate rises from 0", at_least=0, at_most=1)
    min_lr_ratio: float = arg(0.1, "final rate of the cosine as a share of the peak", at_least=0, at_most=1)

    def __post_init__(self):
        super().__post_init__()
        check(self.max_steps > 0 or self.num_train_epochs > 0, "num_train_epochs: must be above 0 (or set max_steps)")
        if not self.relabel_each_epoch:
            self.check_unread(["unknown_words"], "set relabel_each_epoch true too")
        if self.adaptation == "full":
            self.check_unread(OF_LORA, "adaptation full trains the whole model; set adaptation lora, or leave it out")


def learning_rate(step: int, total: int, config: Config) -> float:
    """Linear warm-up, then cosine to `min_lr_ratio` of the peak; `step` counts from 0."""
    warmup = max(1, round(total * config.warmup_ratio))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


AS_THEY_ARE = 0.3  # share of the steps without gaps between positions, as rows are read later


def positions_at(step: int, longest: int, config: Config) -> torch.Tensor | None:
    """Where token k of the step's sequences stands: `longest` rising integers below `position_stretch` times as many.

    A model that has seen distances only up to the length of its rows fails on longer ones. Gaps show it the distances
    without the tokens: randomized positional encodings (Ruoss et al. 2023, https://arxiv.org/abs/2305.16843). All
    sequences of a step have the same ones. None: 0, 1, 2…
    """
    drawn = random.Random(f"{config.seed} {step}")
    if config.position_stretch == 1 or drawn.random() < AS_THEY_ARE:
        return None
    reach = int(longest * drawn.uniform(1, config.position_stretch))
    return torch.tensor(sorted(drawn.sample(range(reach), longest)))


def plan_steps(
    premise_ids: list[str], config: Config, sizes: list[int] | None = None
) -> list[tuple[int, list[list[int]]]]:
    """The epoch and the groups of row indices of every optimizer step of the run; the first epoch by `sizes` of rows,
    if there are any."""
    steps: list[tuple[int, list[list[int]]]] = []
    epoch = 0
    while config.max_steps > 0 or epoch < config.num_train_epochs:
        in_order = sizes if epoch == 0 else None
        batches = epoch_batches(premise_ids, config.seed, epoch, config.claims_per_prefix, config.batch_size, in_order)
        if config.max_steps == 0:
            batches = batches[: steps_of_epoch(len(batches), config.num_train_epochs - epoch)]
        steps += [(epoch, batch) for batch in batches]
        epoch += 1
        if 0 < config.max_steps <= len(steps):
            return steps[: config.max_steps]
    return steps


@dataclass
class Rows:
    """Tokenized rows, each cut into context and targets, and the loss weight of every target token."""

    contexts: list[list[int]]
    targets: list[list[int]]
    weights: list[list[float]]

    def of(self, groups: list[list[int]]) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
        """Contexts and targets of the rows in `groups`, group by group."""
        contexts, targets = ([[column[i] for i in g] for g in groups] for column in (self.contexts, self.targets))
        return contexts, targets

    def packed_tokens(self, group: list[int]) -> int:
        return len(pack([[self.contexts[i] + self.targets[i] for i in group]]))

    def longest(self, groups: list[list[int]]) -> int:
        return max(len(self.contexts[i]) + len(self.targets[i]) for group in groups for i in group)

    def total_weight(self, groups: list[list[int]]) -> float:
        return sum(sum(self.weights[i]) for group in groups for i in group)


def make_rows(prompts, completions, labels, class_weights: list[float], prompt_loss_weight: float = 0.0) -> Rows:
    """Targets are the completion's tokens, weighted by class; with a prompt weight, the prompt's tokens too."""
    rows = Rows([], [], [])
    for prompt, completion, label in zip(prompts, completions, labels, strict=True):
        cut, weight = len(prompt) if prompt_loss_weight == 0 else 1, 1.0 if label is None else class_weights[label]
        rows.contexts.append(prompt[:cut])
        rows.targets.append(prompt[cut:] + completion)
        rows.weights.append([prompt_loss_weight] * (len(prompt) - cut) + [weight] * len(completion))
    return rows


def labels_of(rows: "Dataset") -> list[int | None]:
    """The classes that `class_weights` weighs; rows of another task have none."""
    return rows["label"] if "label" in rows.column_names else [None] * len(rows)


def loss_sum(
    model, rows: Rows, groups: list[list[int]], share: bool, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Negative log-likelihood of the target tokens of the rows in `groups`: a weighted sum."""
    logps, _, _ = sequence_logps(model, *rows.of(groups), share=share, positions=positions)  # (B, T)
    weights = [torch.tensor(rows.weights[i]) for g in groups for i in g]
    return -(logps * torch.nn.utils.rnn.pad_sequence(weights, batch_first=True).to(logps.device)).sum()


def micro_batches(groups: list[list[int]], rows: Rows, config: Config) -> list[list[list[int]]]:
    """The groups of one rank's step, packed into micro-batches; without prefix sharing row by row."""
    groups = groups if config.prefix_sharing else alone(groups)
    sequences = [[rows.contexts[i] + rows.targets[i] for i in group] for group in groups]
    plan = plan_micro_batches(sequences, config.micro_batch_tokens, config.prefix_sharing)
    return [[groups[g] for g in batch] for batch in plan]


def groups_of_rank(accelerator, groups: list[list[int]], rows: Rows) -> list[list[int]]:
    """This rank's groups of a step."""
    return share_of_rank(groups, accelerator.process_index, accelerator.num_processes, rows.packed_tokens)


def window_means(window: list[dict[str, float]]) -> dict[str, float]:
    """Of the steps in the window: the mean loss of a target token, rows and tokens a second."""
    sums = {name: sum(done[name] for done in window) for name in window[-1]}
    return {
        "train/loss": sums["loss"] / sums["weight"],
        "perf/rows_per_second": sums["rows"] / sums["seconds"],
        "perf/tokens_per_second": sums["tokens"] / sums["seconds"],
    }


@torch.no_grad()
def evaluation_loss(accelerator, model, rows: Rows, premise_ids: list[str], config: Config) -> float:
    """Mean negative log-likelihood over all completion tokens of the rows, weighted as in training, on all ranks."""
    model.eval()
    groups = premise_groups(premise_ids, config.claims_per_prefix)
    mine = groups_of_rank(accelerator, groups, rows)
    sums = {"loss": 0.0, "weight": 0.0}
    for batch in micro_batches(mine, rows, config):
        sums["loss"] += float(loss_sum(model, rows, batch, config.prefix_sharing))
        sums["weight"] += rows.total_weight(batch)
    model.train()
    sums = reduce(accelerator, sums)
    return sums["loss"] / sums["weight"]


def set_up(config: Config) -> tuple[Setup, Callable[[int], Rows], Rows, list] | None:
    """What the loop needs: the rows of an epoch, those of validation, the steps; None for a run that has finished."""
    opened = open_run(config, "SFT", labels=None)
    if opened is None:
        return None
    accelerator, train, tokenizer = opened.accelerator, opened.train, opened.tokenizer
    sized = "num_variables" in train.column_names
    check(sized or not config.small_first, f"small_first: {config.dataset} has no num_variables; set it false")
    asked, world_size = f"batch_size: {config.batch_size}", accelerator.num_processes
    check(config.batch_size >= world_size, f"{asked} is less than one row for each of {world_size} processes")
    # Each rank writes and encodes its part of an epoch's rows, for all of them.
    part, fresh = train.shard(accelerator.num_processes, accelerator.process_index, contiguous=True), None
    if config.relabel_each_epoch:
        check_reads_english(tokenizer, "wordings", config.wordings)
        drawn = config.wordings, config.letterings, config.unknown_words
        fresh = FreshRows(part, trace_style(config.dataset), config.seed, *drawn)

    @lru_cache(maxsize=1)
    def rows_of(epoch: int) -> Rows:
        texts = part if fresh is None else fresh.columns(epoch)
        encoded = gather(accelerator, list(zip(*encode_rows(tokenizer, texts), strict=True)))
        prompts, responses = zip(*encoded, strict=True)
        return make_rows(prompts, responses, labels_of(train), config.class_weights, config.prompt_loss_weight)

    rows, held_out = rows_of(0), opened.validation
    validation_rows = make_rows(*encode_rows(tokenizer, held_out), labels_of(held_out), config.class_weights)
    sizes = train["num_variables"] if config.small_first else None
    steps = plan_steps(premise_ids_of(train), config, sizes)
    opened.run.check_length(len(steps))
    longest = rows.longest([range(len(train))])
    if fresh is not None:  # a later epoch's rows may be longer
        ahead = reduce(accelerator, {"tokens": fresh.longest(tokenizer, responses=True)}, "max")
        longest = max(longest, int(ahead["tokens"]))
    model = opened.load(longest, adaptation=config.adaptation, lora_dropout=config.lora_dropout)
    if config.position_stretch > 1:
        check_context(model, math.ceil(longest * config.position_stretch), "position_stretch: ", "lower it")
    first = groups_of_rank(accelerator, steps[0][1], rows)

    def probe(responses: list[list[int]]) -> torch.Tensor:
        return loss_sum(model, rows, first[:1], config.prefix_sharing) / rows.total_weight(first[:1])

    return opened.ready(model, len(steps), probe, rows.of(first), longest), rows_of, validation_rows, steps


def main() -> None:
    config = parse_config(Config)
    found = set_up(config)
    if found is None:
        return
    s, rows_of, validation_rows, steps = found
    accelerator, engine, policy = s.accelerator, s.engine, s.policy
    world_size, premise_ids = accelerator.num_processes, premise_ids_of(s.validation)
    validation = Validation(s)
    window: list[dict[str, float]] = s.saved.get("window", [])  # sums of the steps not yet logged
    window = [done for done in window if "seconds" in done]  # as earlier versions did not write
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    s.announce(
        f"{len(s.train)} rows, {len(steps)} steps of {config.batch_size} rows, {trainable:,} trainable parameters"
    )
    engine.train()
    progress = s.start_progress()
    for step in range(s.first_step, len(steps)):
        if s.run.must_stop():
            s.save(step, best=validation.best, window=window)
            s.run.leave(step)
        began = time.perf_counter()
        epoch, groups = steps[step]
        rows = rows_of(epoch if config.relabel_each_epoch else 0)
        step_weight = rows.total_weight(groups)
        rate = learning_rate(step, len(steps), config)
        set_learning_rate(s.optimizer, rate)

        # --- forward and backward: every rank equally often, since ZeRO-2 reduces gradients in each backward
        mine = groups_of_rank(accelerator, groups, rows)
        batches = micro_batches(mine, rows, config)
        count = int(reduce(accelerator, {"n": len(batches)}, "max")["n"])
        loss_of_step, positions = 0.0, positions_at(step, rows.longest(groups), config)
        for k in range(count):
            batch, scale = (batches[k], 1.0) if k < len(batches) else (groups[:1], 0.0)
            loss = loss_sum(engine, rows, batch, config.prefix_sharing, positions)
            check_graph(policy, loss)
            # DeepSpeed averages over ranks: times world_size, it is the weighted mean over the whole step's tokens.
            backward(accelerator, scale * loss * world_size / step_weight, last=k == count - 1)
            loss_of_step += scale * loss.item()
        taken = step_optimizer(accelerator, engine, s.optimizer, config.max_grad_norm)

        # --- watch, evaluate, save
        done = {"loss": loss_of_step, "weight": rows.total_weight(mine), "rows": sum(map(len, mine))}
        done["tokens"] = sum(len(rows.contexts[i]) + len(rows.targets[i]) for group in mine for i in group)
        window.append(reduce(accelerator, done) | {"seconds": time.perf_counter() - began})
        # In GRPO the signal is the mean advantage; here every row has something to teach.
        values = {"health/loss_finite": float(math.isfinite(window[-1]["loss"])), "health/signal": 1.0}
        values |= s.motion.values(policy, [taken]) | {"train/learning_rate": rate}
        s.monitor.update(step + 1, values)
        means = window_means(window)
        speed = means["perf/tokens_per_second"]
        progress.update(step + 1, loss=window[-1]["loss"] / window[-1]["weight"], tokens_per_second=speed)
        if s.is_time(step + 1, config.logging_steps):
            s.log([values], step + 1, means)
            window.clear()
        if s.is_time(step + 1, config.eval_steps):
            loss = evaluation_loss(accelerator, policy, validation_rows, premise_ids, config)
            validation(step + 1, loss)
        if config.save_steps > 0 and s.is_time(step + 1, config.save_steps):
            s.save(step + 1, best=validation.best, window=window)
    progress.close()
    s.finish(validation.best)


if __name__ == "__main__":
    run_script(main)
