"""Supervised fine-tuning on the completions of a dataset of preprocess.py.

    accelerate launch --config_file accelerate_configs/zero2_2xl4.yaml train_sft.py --config configs/sft_phi3.yaml
    accelerate launch --config_file accelerate_configs/zero2_2xcpu.yaml train_sft.py --config configs/sft_tiny.yaml
    tensorboard --logdir logs

The loss of an optimizer step is the mean over all completion tokens of the step, on every rank: how the step is split
into micro-batches and processes does not change it. Claims on one premise share its tokens (prefix_sharing.py).

Dimensions: B rows of a micro-batch, T completion length.
"""

import math
import time
from dataclasses import asdict, dataclass

import torch

from dataset.batches import epoch_batches, premise_groups, share_of_rank
from dataset.chat import encode_rows
from dataset.reading import choose_rows, load_split, read_dataset_hash
from dataset.relabelling import relabel_rows, trace_style
from policy.loading import (
    check_context,
    check_model,
    load_policy,
    load_tokenizer,
    model_card,
    stop_token_ids,
    training_dtype,
)
from policy.prefix_sharing import check_prefix_sharing, pack, plan_micro_batches, sequence_logps
from runtime.ending import run_script
from runtime.processes import reduce, start
from runtime.settings import arg, check, check_ranges, parse_config
from scoring.metrics import classification_metrics
from scoring.predictions import predict
from training.health import Monitor, Motion, check_gradient_flow, check_graph, check_optimizer, check_stop_tokens
from training.memory import print_plan
from training.monitoring import EVAL_SCORES, Progress, finish, open_writer, report_scores, write_scalars
from training.optimization import backward, prepare, set_learning_rate, step
from training.runs import Run


@dataclass
class Config:
    model: str = arg("tiny", "hub name, directory of a model or of a LoRA adapter, or tiny (embedded, random weights)")
    revision: str | None = arg(None, "hub revision of the model")
    dataset: str = arg("data/tiny", "directory that preprocess.py wrote")
    train_split: str = arg("train", "its split to train on: train, or grpo if it has one")
    output_dir: str = arg("models/tiny_sft_model", "where the model, its checkpoints and its configuration go")
    logging_dir: str = arg("logs/sft", "TensorBoard directory")
    overwrite: bool = arg(False, "use an output_dir that is not empty")
    # what is trained
    adaptation: str = arg("full", "lora | full")
    quantization: str = arg("none", "nf4 | none: precision of the frozen base")
    lora_r: int = arg(16, "LoRA rank")
    lora_alpha: int = arg(32, "LoRA scale is lora_alpha / lora_r")
    lora_dropout: float = arg(0.0, "dropout probability before LoRA's A")
    lora_target_modules: str = arg("", "comma-separated names of linear layers; empty: all but the head")
    gradient_checkpointing: bool = arg(False, "recompute activations in the backward pass")
    # optimisation
    num_train_epochs: float = arg(3.0, "passes over the training rows")
    max_steps: int = arg(0, "optimizer steps, if above 0; overrides num_train_epochs")
    batch_size: int = arg(64, "rows an optimizer step, over all processes and micro-batches")
    micro_batch_tokens: int = arg(2048, "packed tokens a forward pass on one process; lower it if memory runs out")
    claims_per_prefix: int = arg(16, "rows of one premise that share its tokens")
    class_weights: list[float] = arg([1.0, 1.0], "loss weight of rows whose label is No and Yes")
    prompt_loss_weight: float = arg(
        0.0, "loss weight of a prompt token; above 0 helps a model that starts from random weights"
    )
    relabel_each_epoch: bool = arg(False, "exchange the letters of every premise at random, anew in every epoch")
    prefix_sharing: bool = arg(True, "compute shared prefixes once; false computes every row by itself")
    learning_rate: float = arg(2e-4, "peak learning rate")
    warmup_ratio: float = arg(0.05, "share of the steps in which the rate rises from 0")
    min_lr_ratio: float = arg(0.1, "final rate of the cosine as a share of the peak")
    weight_decay: float = arg(0.0, "AdamW weight decay")
    max_grad_norm: float = arg(1.0, "gradient norm beyond which gradients are clipped")
    seed: int = arg(0, "seed of initial weights and data order")
    # watching and keeping
    logging_steps: int = arg(10, "optimizer steps between logged values")
    eval_steps: int = arg(100, "optimizer steps between evaluations; 0: at the end only")
    eval_rows: int = arg(256, "validation rows of an evaluation, a random choice that seed fixes")
    max_new_tokens: int = arg(16, "tokens that an evaluation lets the model generate")
    cache_tokens: int = arg(8192, "tokens in the key-value cache of an evaluation on one process")
    keep_best: bool = arg(True, "output_dir gets the model of the evaluation with the lowest loss; false: the last one")
    save_steps: int = arg(100, "optimizer steps between checkpoints; 0: none")
    save_total_limit: int = arg(2, "checkpoints kept; 0 keeps all")
    stop_after: int = arg(20, "steps in which no weight can have moved before the run is stopped")
    # interruptions
    resume_from: str | None = arg(
        None, "latest, or a checkpoint of output_dir: continue its run; after a requeue: latest"
    )
    resume_weights_only: bool = arg(False, "resume with a new optimizer, on any number of processes or other settings")
    time_limit: float = arg(0.0, "minutes after which the run saves and stops, to be resumed; 0: none")
    # before a run
    plan: bool = arg(False, "print where a card's memory will go, and whether it is enough, and run nothing")
    card_gb: float = arg(0.0, "memory of the plan's card in GB; 0: of the GPU present")

    def __post_init__(self):
        check_ranges(self, {
            "at least 1": "batch_size micro_batch_tokens claims_per_prefix max_new_tokens cache_tokens lora_r "
            "lora_alpha logging_steps eval_rows stop_after",
            "above 0": "learning_rate max_grad_norm",
            "0 or more": "num_train_epochs max_steps prompt_loss_weight weight_decay eval_steps save_steps "
            "save_total_limit time_limit card_gb",
            "between 0 and 1": "warmup_ratio min_lr_ratio",
            "0 or more and less than 1": "lora_dropout",
        })  # fmt: skip
        check(
            len(self.class_weights) == 2 and min(self.class_weights) > 0,
            f"class_weights: two numbers above 0, for No and Yes, got {self.class_weights}",
        )
        check(self.max_steps > 0 or self.num_train_epochs > 0, "num_train_epochs: must be above 0 (or set max_steps)")


def learning_rate(step: int, total: int, config: Config) -> float:
    """Linear warm-up, then cosine to `min_lr_ratio` of the peak; `step` counts from 0."""
    warmup = max(1, round(total * config.warmup_ratio))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def plan_steps(premise_ids: list[str], config: Config) -> list[tuple[int, list[list[int]]]]:
    """The epoch and the groups of row indices of every optimizer step of the run."""
    steps: list[tuple[int, list[list[int]]]] = []
    epoch = 0
    while config.max_steps > 0 or epoch < config.num_train_epochs:
        batches = epoch_batches(premise_ids, config.seed, epoch, config.claims_per_prefix, config.batch_size)
        if config.max_steps == 0:
            batches = batches[: math.ceil(len(batches) * min(1.0, config.num_train_epochs - epoch))]
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

    def total_weight(self, groups: list[list[int]]) -> float:
        return sum(sum(self.weights[i]) for group in groups for i in group)


def make_rows(prompts, completions, labels, class_weights: list[float], prompt_loss_weight: float = 0.0) -> Rows:
    """Targets are the completion's tokens, weighted by class; with a prompt weight, the prompt's tokens too."""
    rows = Rows([], [], [])
    for prompt, completion, label in zip(prompts, completions, labels, strict=True):
        cut = len(prompt) if prompt_loss_weight == 0 else 1
        rows.contexts.append(prompt[:cut])
        rows.targets.append(prompt[cut:] + completion)
        rows.weights.append([prompt_loss_weight] * (len(prompt) - cut) + [class_weights[label]] * len(completion))
    return rows


def loss_sum(model, rows: Rows, groups: list[list[int]], share: bool) -> torch.Tensor:
    """Negative log-likelihood of the target tokens of the rows in `groups`: a weighted sum."""
    logps, _, _ = sequence_logps(model, *rows.of(groups), share=share)  # (B, T)
    weights = [torch.tensor(rows.weights[i]) for g in groups for i in g]
    return -(logps * torch.nn.utils.rnn.pad_sequence(weights, batch_first=True).to(logps.device)).sum()


def micro_batches(groups: list[list[int]], rows: Rows, config: Config) -> list[list[list[int]]]:
    """The groups of one rank's step, packed into micro-batches."""
    sequences = [[rows.contexts[i] + rows.targets[i] for i in group] for group in groups]
    plan = plan_micro_batches(sequences, config.micro_batch_tokens, config.prefix_sharing)
    return [[groups[g] for g in batch] for batch in plan]


@torch.no_grad()
def evaluation_loss(accelerator, model, rows: Rows, premise_ids: list[str], config: Config) -> float:
    """Mean negative log-likelihood over all completion tokens of the rows, weighted as in training, on all ranks."""
    model.eval()
    groups = premise_groups(premise_ids, config.claims_per_prefix)
    mine = share_of_rank(groups, accelerator.process_index, accelerator.num_processes, rows.packed_tokens)
    sums = {"loss": 0.0, "weight": 0.0}
    for batch in micro_batches(mine, rows, config):
        sums["loss"] += float(loss_sum(model, rows, batch, config.prefix_sharing))
        sums["weight"] += rows.total_weight(batch)
    model.train()
    sums = reduce(accelerator, sums)
    return sums["loss"] / sums["weight"]


def main() -> None:
    config = parse_config(Config)
    if config.plan:
        return print_plan(config)
    accelerator = start(config.seed)
    main_process = accelerator.is_main_process
    device, world_size = accelerator.device, accelerator.num_processes
    check_model(config.model)
    data_hash = read_dataset_hash(config.dataset)
    run = Run(accelerator, config, data_hash)
    if run.finished:
        return run.end_at_once()

    # --- data
    train = load_split(config.dataset, config.train_split, both_answers=True)
    validation = choose_rows(load_split(config.dataset, "validation"), config.eval_rows, config.seed)
    tokenizer = load_tokenizer(config.model, config.revision)
    style = trace_style(config.dataset) if config.relabel_each_epoch else None

    def rows_of_epoch(epoch: int) -> Rows:
        texts = relabel_rows(train, style, config.seed, epoch) if config.relabel_each_epoch else train
        encoded = encode_rows(tokenizer, texts)
        return make_rows(*encoded, train["label"], config.class_weights, config.prompt_loss_weight)

    rows, rows_epoch = rows_of_epoch(0), 0
    eval_rows = make_rows(*encode_rows(tokenizer, validation), validation["label"], config.class_weights)
    steps = plan_steps(train["premise_id"], config)

    # --- model
    dtype = training_dtype(accelerator)
    model = load_policy(
        config.model,
        adaptation=config.adaptation,
        quantization=config.quantization,
        dtype=dtype,
        device=device,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        lora_target_modules=config.lora_target_modules,
        gradient_checkpointing=config.gradient_checkpointing,
        revision=config.revision,
        seed=config.seed,
    )
    check_context(model, max(len(c) + len(t) for c, t in zip(rows.contexts, rows.targets, strict=True)))
    stop_ids = stop_token_ids(tokenizer, model)
    check_stop_tokens(rows.targets, stop_ids)
    first = share_of_rank(steps[0][1], accelerator.process_index, world_size, rows.packed_tokens)
    check_gradient_flow(model, loss_sum(model, rows, first[:1], config.prefix_sharing) / rows.total_weight(first[:1]))
    if config.prefix_sharing:
        check_prefix_sharing(model, *rows.of(first), config.micro_batch_tokens)
    engine, optimizer = prepare(accelerator, model, config.learning_rate, config.weight_decay, config.max_grad_norm)
    policy = accelerator.unwrap_model(engine)
    check_optimizer(policy, optimizer)
    motion = Motion(policy)

    saved = run.restore(policy, optimizer, motion)
    first_step: int = saved.get("step", 0)
    best = saved.get("best", {"loss": math.inf, "step": 0})
    writer = open_writer("SFT", config.logging_dir, run.purge_step(first_step)) if main_process else None
    monitor = Monitor(asdict(config), config.stop_after, writer)
    monitor.restore(saved.get("monitor", {}))
    if main_process:
        trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        print(
            f"SFT: {len(train)} rows, {len(steps)} steps of {config.batch_size} rows on {world_size} processes, "
            f"{trainable:,} trainable parameters, {dtype}, {accelerator.distributed_type.value}",
            flush=True,
        )

    def evaluate(step_number: int) -> None:
        loss = evaluation_loss(accelerator, policy, eval_rows, validation["premise_id"], config)
        answers = predict(
            accelerator, policy, tokenizer, validation,
            stop_ids=stop_ids, max_new_tokens=config.max_new_tokens, cache_tokens=config.cache_tokens,
            share=config.prefix_sharing,
        )  # fmt: skip
        predictions = [answer["prediction"] for answer in answers]
        scores = classification_metrics(validation["label"], predictions)
        values = {"loss": loss} | {name: scores[name] for name in EVAL_SCORES}
        if not config.keep_best or loss <= best["loss"]:
            best.update(values, step=step_number)
            run.keep_model(policy, tokenizer, model_card("SFT", asdict(config), data_hash, step_number, values), best)
        if main_process:
            report_scores(writer, scores, validation["label"], predictions, step_number, loss)
        monitor.update(step_number, {f"eval/{name}": value for name, value in values.items()})

    def save(step_number: int) -> None:
        state = {"best": best, "monitor": monitor.state(), "window": window}
        run.save(step_number, policy, tokenizer, optimizer, writer, state)

    # --- train
    engine.train()
    progress = Progress("SFT", len(steps), first_step, main_process)
    window = saved.get("window", dict.fromkeys(("loss", "weight", "rows", "tokens"), 0.0))
    window_start = time.perf_counter()
    for number in range(first_step, len(steps)):
        if run.must_stop():
            save(number)
            run.leave(number)
        epoch, groups = steps[number]
        if config.relabel_each_epoch and epoch != rows_epoch:
            rows, rows_epoch = rows_of_epoch(epoch), epoch
        step_weight = rows.total_weight(groups)
        set_learning_rate(optimizer, learning_rate(number, len(steps), config))

        # forward and backward: every rank equally often, since ZeRO-2 reduces gradients in each backward
        mine = share_of_rank(groups, accelerator.process_index, world_size, rows.packed_tokens)
        batches = micro_batches(mine, rows, config)
        count = int(reduce(accelerator, {"n": len(batches)}, "max")["n"])
        loss_of_step = 0.0
        for k in range(count):
            batch, weight = (batches[k], 1.0) if k < len(batches) else (groups[:1], 0.0)
            loss = loss_sum(engine, rows, batch, config.prefix_sharing)
            check_graph(policy, loss)
            # DeepSpeed averages over ranks: times world_size, it is the weighted mean over the whole step's tokens.
            backward(accelerator, weight * loss * world_size / step_weight, last=k == count - 1)
            loss_of_step += weight * loss.item()
        grad_norm, stepped = step(accelerator, engine, optimizer, config.max_grad_norm)

        # health
        done = {
            "loss": loss_of_step,
            "weight": rows.total_weight(mine),
            "rows": sum(map(len, mine)),
            "tokens": sum(len(rows.contexts[i]) + len(rows.targets[i]) for group in mine for i in group),
        }
        done = reduce(accelerator, done)
        window = {name: value + done[name] for name, value in window.items()}
        health = {
            "health/loss_finite": float(math.isfinite(done["loss"])),
            "health/step_skipped": float(not stepped),
            "health/weights_moved": float(motion.moved(policy)),
            "health/signal": 1.0,  # every row has a label
            "train/grad_norm": grad_norm,
        }
        monitor.update(number + 1, health)

        # log
        seconds = time.perf_counter() - window_start
        progress.update(number + 1, loss=done["loss"] / done["weight"], tokens_per_second=window["tokens"] / seconds)
        if (number + 1) % config.logging_steps == 0 or number + 1 == len(steps):
            if main_process:
                values = health | monitor.flags()
                values |= {
                    "train/loss": window["loss"] / window["weight"],
                    "train/learning_rate": learning_rate(number, len(steps), config),
                    "health/weight_change": motion.change(policy),
                    "perf/rows_per_second": window["rows"] / seconds,
                    "perf/tokens_per_second": window["tokens"] / seconds,
                }
                write_scalars(writer, values, number + 1)
            window = dict.fromkeys(window, 0.0)
            window_start = time.perf_counter()

        # evaluate, save
        last = number + 1 == len(steps)
        if last or (config.eval_steps > 0 and (number + 1) % config.eval_steps == 0):
            evaluate(number + 1)
        if config.save_steps > 0 and (number + 1) % config.save_steps == 0 and not last:
            save(number + 1)
    progress.close()
    finish(run, writer, "SFT", best, len(steps))
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
