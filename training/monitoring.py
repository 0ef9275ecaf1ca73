"""What a person sees of a training run: TensorBoard's pages and the console. Rank 0 alone shows either.

`LAYOUTS` sorts the curves of TensorBoard's CUSTOM SCALARS page by the question that they answer. A finished run is also
a row of the HPARAMS page, with its settings and the scores of the model that it has kept.
"""

import math
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from runtime.checkpoints import CONFIGURATION, list_checkpoints
from scoring.metrics import COMPARED_SCORES, baselines
from training.runs import OUTWARD, Run
from training.settings import TrainingSettings

EVAL_SCORES = ("f1", "accuracy", "balanced_accuracy", "mcc", "unanswered_rate", "predicted_yes_rate")
CONSOLE_LINES = 20  # of a run whose output is no terminal, besides those of its evaluations
CLOSING_SCORES = ("loss", "f1", "balanced_accuracy", "reward")  # in the last lines
# Which model is kept, by the score that decides:
KEPT_BY = {
    "loss": "the lowest validation loss",
    "f1": "the best validation F1",
    "reward": "the best validation reward",
}
# The scores on the HPARAMS page, the same for both stages, as TensorBoard takes its columns from one of the runs.
COMPARED = ("kept/step", "kept/f1", "kept/balanced_accuracy", "kept/mcc", "kept/loss", "eval/f1")
COMPARED += ("eval/balanced_accuracy", "eval/loss", "train/loss", "reward/mean")

# The tags of each chart are regular expressions. A chart that both stages have must be the same in both: TensorBoard
# shows the layouts of all runs as one.
Charts = dict[str, list[str]]
VALIDATION_SCORES: Charts = {"validation scores": ["eval/f1", "eval/balanced_accuracy", "eval/mcc"]}
HEALTH: Charts = {
    "signs of trouble": [r"health/sign(s|_.+)"],
    "validation answers": ["eval/unanswered_rate", "eval/predicted_yes_rate"],
    "gradient norm": ["train/grad_norm"],
    "distance from the start": ["health/weight_change"],
    "skipped steps": ["health/step_skipped"],
}
LAYOUTS: dict[str, dict[str, Charts]] = {
    "SFT": {
        "is it learning": {"loss of SFT": ["train/loss", "eval/loss"]} | VALIDATION_SCORES,
        "is it healthy": HEALTH,
        "is it fast": {
            "SFT tokens per second": ["perf/tokens_per_second"],
            "SFT rows per second": ["perf/rows_per_second"],
        },
    },
    "GRPO": {
        "is it learning": {
            "reward": ["reward/mean", "reward/(outcome|process)"],
            "accuracy of the samples": ["reward/accuracy", "reward/accuracy_of_yes", "reward/accuracy_of_no"],
        }
        | VALIDATION_SCORES,
        "is it healthy": {
            "KL to the reference": ["policy/kl"],
            "entropy": ["policy/entropy"],
            "answers of the samples": [
                "rollout/truncated_rate",
                "rollout/unanswered_rate",
                "rollout/predicted_yes_rate",
                "rollout/label_yes_rate",
            ],
            "groups whose rewards agree": ["reward/frac_zero_std", "reward/frac_all_right", "reward/frac_all_wrong"],
            "clipped tokens": ["policy/clip_fraction"],
            "length of the samples": ["rollout/completion_length"],
            "tokens in which the samples of a prompt differ": ["rollout/distinct_share"],
        }
        | HEALTH,
        "is it fast": {
            "seconds of a GRPO step": [r"perf/.+_seconds"],
            "tokens saved by shared prefixes": ["perf/tokens_saved"],
        },
    },
}


# --- TensorBoard


def open_writer(stage: str, logging_dir: str, purge_step: int | None) -> SummaryWriter:
    """The writer of a run's curves, with the layout of its stage.

    A run that continues writes the layout again, at step 0 as before: TensorBoard shows one.
    """
    writer = SummaryWriter(logging_dir, purge_step=purge_step)
    # TensorBoard matches the beginning of a tag alone: "reward/accuracy" would be "reward/accuracy_of_yes" too.
    layout = {
        question: {title: ["Multiline", [f"{tag}$" for tag in tags]] for title, tags in charts.items()}
        for question, charts in LAYOUTS[stage].items()
    }
    writer.add_custom_scalars(layout)
    return writer


def report_scores(
    writer: SummaryWriter,
    scores: dict,
    labels: list[int],
    predictions: list[int | None],
    step: int,
    loss: float | None = None,
) -> None:
    """Write an evaluation to TensorBoard, with its confusion matrix, and in one line to the console."""
    from scoring.figures import confusion_figure  # matplotlib takes a second, and only this rank draws

    if loss is not None:
        writer.add_scalar("eval/loss", loss, step)
    for name in EVAL_SCORES:
        writer.add_scalar(f"eval/{name}", scores[name], step)
    rows = [{"label": label, "prediction": answer} for label, answer in zip(labels, predictions, strict=True)]
    writer.add_figure("eval/confusion_matrix", confusion_figure(rows, f"step {step}"), step, close=False)
    tqdm.write(
        f"step {step}: {'' if loss is None else f'eval loss {loss:.4f}, '}F1 {scores['f1']:.3f} "
        f"(always Yes {baselines(labels)['always_yes']['f1']:.3f}), "
        f"balanced accuracy {scores['balanced_accuracy']:.3f}, {scores['n']} rows"
    )


def report_means(writer: SummaryWriter, means: dict[str, float], rows: int, step: int) -> None:
    """Write the means of an evaluation to TensorBoard and in one line to the console."""
    for name, value in means.items():
        writer.add_scalar(f"eval/{name}", value, step)
    tqdm.write(f"step {step}: {', '.join(f'{name} {value:.3f}' for name, value in means.items())}, {rows} rows")


def write_scalars(writer: SummaryWriter, values: dict[str, float], step: int) -> None:
    """A step's values by tag; on a GPU, with the most memory that this rank has used, and held, so far."""
    if torch.cuda.is_available():
        used, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        values = values | {"perf/peak_gb": used / 1e9, "perf/peak_reserved_gb": held / 1e9}
    for name, value in values.items():
        writer.add_scalar(name, value, step)


def write_hparams(writer: SummaryWriter, settings: dict[str, Any], kept: dict, step: int) -> None:
    """A row of the HPARAMS page: the settings that make a run what it is, and its scores.

    Those are of the model that is kept, as `kept/<score>`, and of the run's end. They go into the run's own event file:
    SummaryWriter.add_hparams would make a run of its own beside it.
    """
    for name, value in kept.items():
        writer.add_scalar(f"kept/{name}", value, step)
    shown = {name: value for name, value in settings.items() if name not in OUTWARD or name == "dataset"}
    shown = {x: str(value) if isinstance(value, bool | list) else value for x, value in shown.items()}
    for summary in hparams(shown, dict.fromkeys(COMPARED)):
        writer.file_writer.add_summary(summary)


# --- the console


class Progress:
    """A bar with the time left; where the output is no terminal, a line now and then. Silent unless `shown`."""

    def __init__(self, stage: str, total: int, first: int, shown: bool):
        self.shown, self.stage, self.total, self.first = shown, stage, total, first
        self.start = time.monotonic()
        self.bar = tqdm(
            total=total, initial=first, desc=stage, disable=None if shown else True, mininterval=2, dynamic_ncols=True
        )

    def update(self, step: int, **figures: float) -> None:
        """`step` steps are done; `figures` are shown beside them."""
        shown = {name: f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}" for name, x in figures.items()}
        text = ", ".join(f"{name} {value}" for name, value in shown.items())
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
        # The first step's line says early that the run is on its way, and how long it will take.
        elif self.shown and (step == self.first + 1 or self._part(step) > self._part(step - 1)):
            left = (time.monotonic() - self.start) / (step - self.first) * (self.total - step)
            tqdm.write(f"{self.stage} step {step} of {self.total}: {text}, {tqdm.format_interval(left)} left")
            sys.stdout.flush()

    def _part(self, step: int) -> int:
        return step * CONSOLE_LINES // self.total

    def close(self) -> None:
        self.bar.close()


def finish(run: Run, writer: SummaryWriter | None, stage: str, kept: dict, step: int) -> None:
    """End a run on all ranks: its last entries in TensorBoard, its note that it is complete, and where everything is.

    `kept` has the step and the scores of the model in output_dir.
    """
    if writer is not None:
        write_hparams(writer, asdict(run.config), kept, step)
        writer.close()
    run.finish(kept)
    if writer is not None:
        print("\n".join(closing_lines(run.config, stage, kept)), flush=True)


def closing_lines(config: TrainingSettings, stage: str, kept: dict) -> list[str]:
    """Where a run's results are, and the commands that come next."""
    from scoring.results import RESULTS, model_name  # matplotlib takes a second, and only this rank needs it

    scores = ", ".join(f"{COMPARED_SCORES.get(name, name)} {kept[name]:.3f}" for name in CLOSING_SCORES if name in kept)
    rule = next(words for name, words in KEPT_BY.items() if name in kept)
    chosen = f"{rule}: {scores}" if config.keep_best else f"the last: {scores}"
    checkpoints = ", ".join(path.name for path in list_checkpoints(Path(config.output_dir))) or "none"
    lines = [
        f"{'model' if stage == 'SFT' else 'adapter'}: {config.output_dir} (step {kept['step']}, {chosen})",
        f"beside it: {CONFIGURATION}, every setting as used; checkpoints: {checkpoints}",
        f"curves: tensorboard --logdir {config.logging_dir}",
    ]
    if "f1" not in kept:  # another task's rows, which evaluate.py does not know
        return lines
    lines.append(f"next, scores on the test split: {evaluate_command(config, config.output_dir)}")
    if stage == "SFT":
        options = ("--config", "RECIPE", "--model", config.output_dir, "--dataset", config.dataset)
        return [*lines, f"and GRPO, RECIPE being one of configs/grpo_*.yaml: {command('train_grpo.py', *options)}"]
    results = [f"{RESULTS}/{model_name(model)}" for model in (config.model, config.output_dir)]
    return [
        *lines,
        f"and of what it began with: {evaluate_command(config, config.model)}",
        f"then: {command('evaluate.py', '--compare', *results)}",
    ]


def command(*words: str) -> str:
    return shlex.join(["python", *words])


def evaluate_command(config: TrainingSettings, model: str) -> str:
    """Scores on the test split. A model that was trained here knows its dataset, precision and length of answers."""
    options = {"dataset": config.dataset, "quantization": config.quantization, "max_new_tokens": config.max_new_tokens}
    known = (Path(model) / CONFIGURATION).is_file()
    more = [] if known else [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return command("evaluate.py", "--model", model, *more)


# --- what is logged of a step


class Laps:
    """Seconds that the parts of a step take, by `perf/` name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.mark = now_on_device()

    def end(self, name: str) -> None:
        """The part that ran since the last one's end was this."""
        now = now_on_device()
        self.seconds[f"perf/{name}_seconds"] = now - self.mark
        self.mark = now


def now_on_device() -> float:
    """Seconds of a clock, once the GPU has done what it has been given: it works while Python goes on."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def nan_means(values: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every name over the dicts that have it as a number; a name that none has is left out."""
    found: dict[str, list[float]] = {}
    for name, value in ((name, value) for step in values for name, value in step.items()):
        if not math.isnan(value):
            found.setdefault(name, []).append(value)
    return {name: sum(part) / len(part) for name, part in found.items()}
