"""Answers of a model to a split, their scores with intervals, and paired comparisons of models.

    python evaluate.py --model models/tiny_sft_model --split test
    python evaluate.py --num_samples 9 --model models/tiny_sft_model --split test
    python evaluate.py --mode score --model models/tiny_sft_model --split test
    accelerate launch --config_file accelerate_configs/zero2_2xl4.yaml evaluate.py --model models/phi3_grpo_model \\
        --dataset data/phi3 --quantization nf4 --output_dir evaluation_results/phi3_grpo_model
    python evaluate.py --compare evaluation_results/phi3_sft_model evaluation_results/phi3_grpo_model
    python evaluate.py --curves logs/sft logs/grpo

The first four write metrics.json, predictions.jsonl (a line a row), confusion_matrix.png and scores.png to
`output_dir`. Mode generate takes the greedy answer, or the majority of `num_samples` sampled ones. Mode score samples
nothing: it asks how probable Yes is against No, on datasets whose responses are answers alone, and writes
calibration.png besides. `--compare` reads such directories and writes comparison.json and comparison.png; `--curves`
reads TensorBoard directories and writes learning_curves.png. Neither needs a model.

Most rows are No, so an accuracy says little: every table starts with the two answers that need no model. Rows of a
premise are right or wrong together, so the intervals resample premises (metrics.py).
"""

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metrics
from arguments import arg, check, check_choice, check_ranges, parse_config, run_script
from checkpoints import claim_output_dir, list_checkpoints
from data import answer_candidates, choose_rows, load_split, premise_groups
from distributed import start
from generation import predict, score_answers
from models import (
    BF16_CAPABILITY,
    check_context,
    check_model,
    encode,
    load_for_inference,
    load_tokenizer,
    stop_token_ids,
)
from prefix_sharing import check_prefix_sharing

RESULTS = "evaluation_results"
MODES = ("generate", "score")
RECORDED = ("mode", "model", "revision", "quantization", "dataset", "split", "max_rows", "seed")
RECORDED_OF_MODE = {"generate": ("max_new_tokens", "num_samples", "temperature"), "score": ("threshold",)}
SCORE_NAMES = {"f1": "F1", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "mcc": "MCC"}
LOW_MASS = 0.5  # below it, the two answers are not what the model would say
BASELINE_NAMES = {"majority": "majority answer", "always_yes": "always Yes"}
BASELINE_STYLES = {"always_yes": ("#D55E00", "--", 3), "majority": ("black", ":", 1.5)}  # colour, line, width (points)
CURVES = {
    "eval/f1": "F1",
    "eval/balanced_accuracy": "balanced accuracy",
    "train/loss": "loss (nats per token)",
    "reward/mean": "reward",
    "policy/kl": "KL (nats per token)",
}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")  # Okabe and Ito: safe for colour blindness
LINES = ("-", "--", "-.", ":")
LEGEND = {"loc": "outside lower center", "ncols": 3, "frameon": False}  # below the panels, where it hides nothing
MARKERS = ("o", "s", "^", "D", "v")  # 6, 4 and 5 of a kind: no two of 60 runs look alike


@dataclass
class Config:
    model: str = arg("", "hub name, directory of a model or of a LoRA adapter, or tiny (embedded, random weights)")
    revision: str | None = arg(None, "hub revision of the model")
    quantization: str = arg("", "nf4 | none: precision of the weights, or of an adapter's base; empty: as in training")
    dtype: str = arg("auto", "auto | float32 | bfloat16 | float16; auto: what the GPU computes in, float32 without one")
    name: str = arg("", "label in tables and figures; empty: the model's directory")
    dataset: str = arg("", "directory that preprocess.py wrote; empty: the one that the model was trained on")
    split: str = arg("test", "train | validation | test")
    mode: str = arg("generate", "generate: answers in text | score: how probable Yes is against No, without sampling")
    num_samples: int = arg(1, "generate: samples of a row, whose majority is the prediction; 1: greedy answers")
    temperature: float | None = arg(None, "generate: sampling temperature of num_samples; none given: 1")
    threshold: float = arg(0.5, "score: probability of Yes above which the prediction is Yes, between 0 and 1")
    micro_batch_tokens: int = arg(2048, "score: packed tokens a forward pass on one process; less needs less memory")
    max_rows: int = arg(0, "rows to evaluate, a random choice that seed fixes; 0: all")
    max_new_tokens: int = arg(0, "tokens of a completion, at most; 0: as in training, or 16, enough for an answer")
    cache_tokens: int = arg(8192, "tokens in the key-value cache of one process: prompts and longest completions")
    prefix_sharing: bool = arg(True, "compute a premise once for all its claims; false: every sequence by itself")
    cluster: str = arg("premise_id", "premise_id | structure_id: what the intervals resample")
    num_resamples: int = arg(2000, "resamples of the intervals")
    seed: int = arg(0, "seed of the resamples, of the choice of max_rows and of sampling")
    compare: list[str] = arg([], "instead of a model: output directories of earlier runs, the baseline first")
    curves: list[str] = arg([], "instead of a model: TensorBoard directories of runs")
    output_dir: str = arg(
        "",
        f"where results go; empty: {RESULTS}/ and the model's name, comparison or curves "
        "(mode score: name-score, 9 samples: name-majority-9)",
    )
    overwrite: bool = arg(False, "use an output_dir that is not empty")

    def __post_init__(self):
        trained = training_settings(self.model)
        self.dataset = self.dataset or trained.get("dataset", "")
        self.quantization = self.quantization or trained.get("quantization", "none")
        self.max_new_tokens = self.max_new_tokens or trained.get("max_new_tokens", 16)
        ranges = {"at least 1": "max_new_tokens num_samples cache_tokens micro_batch_tokens num_resamples"}
        check_ranges(self, ranges | {"0 or more": "max_rows"})
        check_choice("mode", self.mode, MODES)
        check(0 < self.threshold < 1, f"threshold: a probability between 0 and 1, got {self.threshold}")
        has_threshold = self.mode == "score" or self.threshold == 0.5
        check(has_threshold, "threshold: mode generate reads answers, not probabilities; add --mode score")
        several = self.num_samples > 1
        check(not several or self.mode == "generate", "num_samples: mode score samples nothing; use --mode generate")
        if self.temperature is None:
            self.temperature = 1.0 if several else 0.0
        check(several or self.temperature == 0, "temperature: a single answer is greedy; add --num_samples above 1")
        remedy = "give more, or leave num_samples out for greedy answers"
        check(not several or self.temperature > 0, f"temperature: no sampling at {self.temperature}; {remedy}")
        check_choice("cluster", self.cluster, ("premise_id", "structure_id"))
        check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        reads_only = bool(self.compare or self.curves)
        check(not (reads_only and self.model), "model: compare and curves run no model; leave one of them out")
        check(reads_only or self.model != "", "model: name a directory or a hub model (or directories to compare)")
        check(len(self.compare) != 1, "compare: name at least two directories, the baseline first")


def training_settings(model: str) -> dict:
    """The settings that a model, or the run that its checkpoint is of, was trained with; none if they are unknown."""
    for directory in (Path(model), Path(model).parent):
        if model and (directory / "training_config.json").is_file():
            return json.loads((directory / "training_config.json").read_text())
    return {}


def claim_results_dir(directory: str, overwrite: bool) -> Path:
    """Create the output directory. One with checkpoints is a model's: `overwrite` would delete them."""
    check(not list_checkpoints(Path(directory)), f"output_dir {directory}: holds a model's checkpoints; name another")
    return claim_output_dir(directory, overwrite)


def default_name(model: str) -> str:
    """`models/sft` -> `sft`, `models/sft/checkpoint-20` -> `sft-checkpoint-20`."""
    path = Path(model).resolve()
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name


def inference_dtype(name: str, capability: tuple[int, int] | None) -> torch.dtype:
    """The dtype to compute in on a GPU of this compute capability (None: no GPU)."""
    has_bf16 = capability is None or capability >= BF16_CAPABILITY
    check(name != "bfloat16" or has_bf16, f"dtype bfloat16: this GPU ({capability}) only emulates it; use float16")
    if name != "auto":
        return getattr(torch, name)
    return torch.float32 if capability is None else torch.bfloat16 if has_bf16 else torch.float16


def evaluate(config: Config) -> None:
    """Run the model on the split, on all processes; rank 0 writes the results and prints the table."""
    name = config.name or default_name(config.model)
    check_model(config.model)
    check(config.dataset != "", f"dataset: name one; {config.model} has no training_config.json that does")
    data = load_split(config.dataset, config.split)
    data = choose_rows(data, config.max_rows or len(data), config.seed)
    scored = config.mode == "score"
    candidates = answer_candidates(config.dataset, data, "mode score", "use --mode generate") if scored else []
    way = "-score" if scored else f"-majority-{config.num_samples}" if config.num_samples > 1 else ""
    output_dir = claim_results_dir(config.output_dir or f"{RESULTS}/{name}{way}", config.overwrite)
    tokenizer = load_tokenizer(config.model, config.revision)

    accelerator = start(config.seed)
    device = accelerator.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    dtype = inference_dtype(config.dtype, capability)
    model = load_for_inference(config.model, config.quantization, dtype, device, config.revision)
    answers = {text for pair in candidates for text in pair}
    room = max((len(encode(tokenizer, text)) for text in answers), default=config.max_new_tokens)
    prompts = [encode(tokenizer, text) for text in data["prompt"]]
    check_context(model, max(map(len, prompts)) + room)
    accelerator.print(f"{name}: {len(data):,} rows on {accelerator.num_processes} x {device.type}, {dtype}", flush=True)
    if config.prefix_sharing:
        first = premise_groups(data["premise_id"], len(data))[0]
        responses = [encode(tokenizer, text) for text in data.select(first)["response"]]
        check_prefix_sharing(model, [[prompts[row] for row in first]], [responses], config.micro_batch_tokens)
    start_time = time.perf_counter()
    if scored:
        rows = score_answers(
            accelerator, model, tokenizer, data, candidates,
            micro_batch_tokens=config.micro_batch_tokens, threshold=config.threshold, share=config.prefix_sharing,
        )  # fmt: skip
    else:
        rows = predict(
            accelerator, model, tokenizer, data, stop_ids=stop_token_ids(tokenizer, model),
            max_new_tokens=config.max_new_tokens, cache_tokens=config.cache_tokens, share=config.prefix_sharing,
            num_samples=config.num_samples, temperature=config.temperature, seed=config.seed,
        )  # fmt: skip
    seconds = time.perf_counter() - start_time
    if accelerator.is_main_process:
        results = {
            "name": name,
            **{key: getattr(config, key) for key in (*RECORDED, *RECORDED_OF_MODE[config.mode])},
            "dtype": str(dtype).removeprefix("torch."),
            "num_processes": accelerator.num_processes,
            "seconds": seconds,
            **whole_answers(rows),
            **metrics.report(rows, config.cluster, config.num_resamples, config.seed),
        }
        write_results(rows, results, output_dir)
        print_results(results)
        print(f"{len(rows)} rows in {seconds:.1f} s; results: {output_dir}")
    accelerator.end_training()


def whole_answers(rows: list[dict]) -> dict[str, float]:
    """Of generated answers the share of rows with a cut one; of several samples a row, how far they agree.

    Of scored answers how probable it is that the model says either at all.
    """
    if "stopped" not in rows[0]:
        return {"answer_mass": float(np.mean([np.exp([row["logp_no"], row["logp_yes"]]).sum() for row in rows]))}
    figures = {"truncated_rate": sum(not row["stopped"] for row in rows) / len(rows)}
    if "votes" in rows[0]:
        figures["agreement"] = float(np.mean([max(row["votes"][:2]) / sum(row["votes"]) for row in rows]))
    return figures


def write_results(rows: list[dict], results: dict, output_dir: Path) -> None:
    """predictions.jsonl, metrics.json and the figures of one model."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (output_dir / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (output_dir / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    confusion_figure(rows, results["name"]).savefig(output_dir / "confusion_matrix.png", dpi=150)
    figure = score_figure(grouped_summaries(results), results["confidence"], results["name"])
    figure.savefig(output_dir / "scores.png", dpi=150)
    if "calibration" in results:
        figure = calibration_figure(results["calibration"], results["confidence"], results["name"])
        figure.savefig(output_dir / "calibration.png", dpi=150)


def print_table(constants: dict[str, dict], entries: list[tuple[str, dict]]) -> None:
    print(metrics.format_table([*((BASELINE_NAMES[key], scores) for key, scores in constants.items()), *entries]))


def print_results(results: dict) -> None:
    groups = [(f"  {label}", summary) for label, summary in grouped_summaries(results).items()]
    print_table(results["baselines"], [(results["name"], results["overall"]), *groups[1:]])
    print(f"intervals: {results['confidence']:.0%}, from {results['num_clusters']} clusters ({results['cluster']})")
    if "calibration" in results:
        print_probabilities(results)
    if "agreement" in results:
        samples = f"{results['num_samples']} samples a row at temperature {results['temperature']:g}"
        print(f"{samples}: {results['agreement']:.1%} of them give their row's more frequent answer")
    if results.get("truncated_rate", 0) > 0:
        print(f"{results['truncated_rate']:.1%} of rows have a completion cut at max_new_tokens; raise it if many do")


def print_probabilities(results: dict) -> None:
    overall, bins = results["overall"], results["calibration"]
    entries = [("share of Yes, for every row", results["constant_probability"]), (results["name"], overall)]
    print("\n" + metrics.format_probability_table(entries))
    if "note" in overall:
        print(overall["note"])
    means = [sum(part["n"] * part[key] for part in bins) / overall["n"] for key in ("mean_probability", "frequency")]
    print("calibration: mean probability of Yes {:.1%}, share of Yes {:.1%}; calibration.png by bins".format(*means))
    mass = results["answer_mass"]
    if mass < LOW_MASS:
        print(f"the model says one of the two answers with probability {mass:.1%}: the rest is not scored")


def grouped_summaries(results: dict) -> dict[str, dict]:
    """metrics.report's summaries of all rows, of every number of variables N and of every relation, by label."""
    sizes = {f"N = {size}": summary for size, summary in results["by_num_variables"].items()}
    groups = {"all": results["overall"], **sizes, **results["by_relation"]}
    return {f"{label} ({summary['n']:,} rows)": summary for label, summary in groups.items()}


def read_results(directory: str) -> tuple[str, list[dict]]:
    """(name, prediction rows) of a directory that `evaluate` wrote; ValueError naming what is missing or broken."""
    remedy = f"write it with python evaluate.py --model MODEL --dataset DATASET --output_dir {directory}"
    texts = {}
    for file in ("metrics.json", "predictions.jsonl"):
        check((Path(directory) / file).is_file(), f"compare: {directory} has no {file}; {remedy}")
        texts[file] = (Path(directory) / file).read_text(encoding="utf-8", errors="replace")
    try:
        name = json.loads(texts["metrics.json"])["name"]
        rows = [json.loads(line) for line in texts["predictions.jsonl"].split("\n") if line]
        inputs = [row["input"] for row in rows if row["label"] in (0, 1) and row["prediction"] in (0, 1, None)]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"compare: {directory} is damaged ({error!r}); {remedy} --overwrite true") from None
    check(len(inputs) == len(rows) > 0, f"compare: {directory} has rows without a label; {remedy} --overwrite true")
    return name, rows


def distinct(names: list[str], directories: list[str]) -> list[str]:
    """The names, with their directories where a name occurs more than once."""
    count = Counter(names)
    return [f"{n} ({d})" if count[n] > 1 else n for n, d in zip(names, directories, strict=True)]


def compare_results(directories: list[str], **resampling) -> dict:
    """Scores with intervals of every directory, and metrics.compare of each with the first and the one before it.

    `resampling`: `cluster`, `num_resamples` and `seed` of metrics.py. Raises ValueError if the rows are not the same.
    """
    names, rows = zip(*map(read_results, directories), strict=True)
    names = distinct(names, directories)
    models = [
        {"name": name, "directory": directory, **metrics.report(part, **resampling)["overall"]}
        for name, directory, part in zip(names, directories, rows, strict=True)
    ]
    pairs = []
    for a, b in [(0, k) for k in range(1, len(names))] + [(k - 1, k) for k in range(2, len(names))]:
        try:
            pairs.append({"names": [names[a], names[b]], **metrics.compare(rows[a], rows[b], **resampling)})
        except ValueError as error:
            raise ValueError(f"compare: {directories[a]} and {directories[b]}: {error}") from None
    constants = metrics.baselines([row["label"] for row in rows[0]])
    shared = {key: pairs[0][key] for key in ("num_rows", "num_clusters", "confidence")}
    return {**resampling, **shared, "baselines": constants, "models": models, "pairs": pairs}


def print_comparison(comparison: dict) -> None:
    print_table(comparison["baselines"], [(model["name"], model) for model in comparison["models"]])
    lines = [["difference", *SCORE_NAMES.values(), "McNemar p"]]
    for pair in comparison["pairs"]:
        cells = [_difference(pair, score) for score in SCORE_NAMES]
        lines.append([" − ".join(pair["names"][::-1]), *cells, f"{pair['mcnemar']['p_value']:.2g}"])
    print("\n" + metrics.align(lines))
    scored = [pair for pair in comparison["pairs"] if "brier" in pair["difference"]]
    if scored:
        lines = [["difference", *metrics.PROBABILITY_SCORES.values()]]
        lines += [
            [" − ".join(p["names"][::-1]), *(_difference(p, s) for s in metrics.PROBABILITY_SCORES)] for p in scored
        ]
        print("\n" + metrics.align(lines))
    print(
        f"intervals: {comparison['confidence']:.0%}, paired, from {comparison['num_clusters']} clusters "
        f"({comparison['cluster']}); McNemar's exact test takes rows as independent: trust the intervals"
    )


def _difference(pair: dict, score: str) -> str:
    if pair["intervals"].get(score) is None:
        return "none"
    low, high = pair["intervals"][score]
    return f"{pair['difference'][score]:+.3f} [{low:+.3f}, {high:+.3f}]"


def confusion_figure(rows: list[dict], title: str) -> Figure:
    """Rows by label (down) and answer (across): counts, and shares of each label's rows."""
    count = Counter((row["label"], row["prediction"]) for row in rows)
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    ax = figure.subplots()
    for label in (0, 1):
        total = max(1, sum(count[label, answer] for answer in (0, 1, None)))
        for x, answer in enumerate((0, 1, None)):
            share = count[label, answer] / total
            ax.add_patch(Rectangle((x - 0.5, label - 0.5), 1, 1, facecolor=str(1 - 0.6 * share), edgecolor="white"))
            ax.text(x, label, f"{count[label, answer]:,}\n{share:.1%} of label", ha="center", va="center")
    ax.set(xticks=range(3), xticklabels=("No", "Yes", "no answer"), xlabel="prediction", xlim=(-0.5, 2.5))
    ax.set(yticks=range(2), yticklabels=("No", "Yes"), ylabel="label", ylim=(1.5, -0.5), title=title)
    return figure


def score_figure(summaries: dict[str, dict], confidence: float, title: str) -> Figure:
    """F1 and balanced accuracy with intervals, a line a summary, beside what constant answers score on its rows."""
    ys = np.arange(len(summaries))
    matrices = [summary["confusion_matrix"] for summary in summaries.values()]
    constants = [metrics.baselines([0] * sum(negative) + [1] * sum(positive)) for negative, positive in matrices]
    figure = Figure(figsize=(9, 1.9 + 0.38 * len(summaries)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, score in zip(panels, ("f1", "balanced_accuracy"), strict=True):
        for key, (colour, line, width) in BASELINE_STYLES.items():
            values = [scores[key][score] for scores in constants]
            ax.vlines(values, ys - 0.5, ys + 0.5, colour, line, label=BASELINE_NAMES[key], linewidth=width)
        for y, summary in zip(ys, summaries.values(), strict=True):
            ax.plot(summary["intervals"][score], [y, y], "-|", color=COLOURS[0], markersize=9)
        values = [summary[score] for summary in summaries.values()]
        ax.plot(values, ys, "o", color=COLOURS[0], label=f"model, {confidence:.0%} interval")
        ax.set(xlim=(-0.03, 1.03), xlabel=f"{SCORE_NAMES[score]} (0 to 1)")
        ax.grid(axis="x", color="0.9")
    panels[0].set(yticks=ys, yticklabels=list(summaries), ylim=(len(ys) - 0.5, -0.5))
    figure.suptitle(title)
    figure.legend(*panels[0].get_legend_handles_labels(), **LEGEND)
    return figure


def calibration_figure(bins: list[dict], confidence: float, title: str) -> Figure:
    """The reliability diagram: frequency of Yes against its mean probability in each bin, above the bins' rows."""
    figure = Figure(figsize=(5, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], "--", color="0.4", label="calibrated")
    xs, ys = ([part[key] for part in bins] for key in ("mean_probability", "frequency"))
    for x, part in zip(xs, bins, strict=True):
        top.plot([x, x], part["interval"], "-_", color=COLOURS[0], markersize=7)
    top.plot(xs, ys, "o-", color=COLOURS[0], label=f"model, {confidence:.0%} intervals")
    top.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="frequency of Yes", title=title)
    top.grid(color="0.9")
    for part in bins:
        middle = (part["low"] + part["high"]) / 2
        bottom.bar(middle, part["n"], width=0.09, color="0.7", edgecolor="black")
        bottom.annotate(f"{part['n']:,}", (middle, part["n"]), (0, 2), textcoords="offset points", ha="center", size=8)
    bottom.set(xlabel="probability of Yes", ylabel="rows", ylim=(0, 1.25 * max(part["n"] for part in bins)))
    figure.legend(*top.get_legend_handles_labels(), **LEGEND)
    return figure


def read_curves(directory: str) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} of the CURVES that a TensorBoard directory holds; a repeated step keeps its last value."""
    remedy = "name the logging_dir of a run of train_sft.py or train_grpo.py"
    check(any(Path(directory).glob("*tfevents*")), f"curves: {directory} has no TensorBoard events; {remedy}")
    events = EventAccumulator(directory, size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in CURVES if tag in events.Tags()["scalars"]]
    check(len(tags) > 0, f"curves: {directory} has none of {', '.join(CURVES)}; {remedy}")
    return {tag: dict(sorted({event.step: event.value for event in events.Scalars(tag)}.items())) for tag in tags}


def curves_figure(runs: dict[str, dict[str, dict[int, float]]]) -> Figure:
    """A panel for each tag that some run has, a line for each run."""
    tags = [tag for tag in CURVES if any(tag in run for run in runs.values())]
    columns = min(3, len(tags))
    rows = -(-len(tags) // columns)
    figure = Figure(figsize=(1.2 + 4.2 * columns, 0.9 + 3.0 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
    handles = {}
    for position, tag in enumerate(tags, 1):
        ax = figure.add_subplot(rows, columns, position)
        for k, (name, run) in enumerate(runs.items()):
            if tag in run:
                steps, values = list(run[tag]), list(run[tag].values())
                style = {"color": COLOURS[k % 6], "linestyle": LINES[k % 4], "marker": MARKERS[k % 5]}
                (handles[name],) = ax.plot(steps, values, markevery=-(-len(steps) // 10), markersize=4, **style)
        limits = (-0.02, 1.02) if tag.startswith("eval/") else None
        ax.set(xlabel="optimizer step", ylabel=CURVES[tag], ylim=limits, title=tag)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(color="0.9")
    figure.legend(handles.values(), handles.keys(), **LEGEND)
    return figure


def read_and_draw(config: Config) -> None:
    """`--compare` and `--curves`: everything is read before anything is written."""
    check(os.environ.get("WORLD_SIZE", "1") == "1", "compare, curves: run python evaluate.py, not accelerate launch")
    labels = distinct([Path(directory).resolve().name for directory in config.curves], config.curves)
    runs = {label: read_curves(directory) for label, directory in zip(labels, config.curves, strict=True)}
    resampling = {key: getattr(config, key) for key in ("cluster", "num_resamples", "seed")}
    comparison = compare_results(config.compare, **resampling) if config.compare else None
    default = "comparison" if config.compare else "curves"
    output_dir = claim_results_dir(config.output_dir or f"{RESULTS}/{default}", config.overwrite)
    if comparison is not None:
        (output_dir / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")
        models = {model["name"]: model for model in comparison["models"]}
        figure = score_figure(models, comparison["confidence"], f"the same {comparison['num_rows']:,} rows")
        figure.savefig(output_dir / "comparison.png", dpi=150)
        print_comparison(comparison)
    if runs:
        curves_figure(runs).savefig(output_dir / "learning_curves.png", dpi=150)
    print(f"results: {output_dir}")


def main() -> None:
    config = parse_config(Config)
    (read_and_draw if config.compare or config.curves else evaluate)(config)


if __name__ == "__main__":
    run_script(main)
