"""Answers of a model to a split, their scores with intervals, and paired comparisons of models.

    python evaluate.py --model models/tiny_sft_model --split test
    python evaluate.py --num_samples 9 --model models/tiny_sft_model --split test
    python evaluate.py --mode score --model models/tiny_sft_model --split test
    accelerate launch --config_file accelerate_configs/zero2_2xl4.yaml evaluate.py --model models/phi3_grpo_model \\
        --dataset data/phi3 --quantization nf4 --output_dir evaluation_results/phi3_grpo_model
    python evaluate.py --compare evaluation_results/phi3_sft_model evaluation_results/phi3_grpo_model

The first four write report.html, metrics.json, predictions.jsonl (a line a row), confusion_matrix.png and scores.png to
`output_dir`. Mode generate takes the greedy answer, or the majority of `num_samples` sampled ones. Mode score samples
nothing: it asks how probable Yes is against No, on datasets whose responses are answers alone, and writes
calibration.png besides. `--compare` reads such directories and writes report.html, comparison.json and comparison.png;
it needs no model.

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

from dataset.batches import premise_groups
from dataset.chat import encode
from dataset.reading import answer_candidates, choose_rows, load_split
from policy.loading import (
    BF16_CAPABILITY,
    check_context,
    check_model,
    load_for_inference,
    load_tokenizer,
    stop_token_ids,
)
from policy.prefix_sharing import check_prefix_sharing
from runtime.checkpoints import list_checkpoints
from runtime.ending import run_script
from runtime.files import check_vacant, make_output_dir
from runtime.processes import start
from runtime.settings import arg, check, check_choice, check_ranges, parse_config
from scoring import metrics
from scoring.figures import (
    BASELINE_NAMES,
    SCORE_NAMES,
    calibration_figure,
    confusion_figure,
    grouped_summaries,
    score_figure,
)
from scoring.predictions import predict, score_answers
from scoring.report import page

RESULTS = "evaluation_results"
MODES = ("generate", "score")
RECORDED = ("mode", "model", "revision", "quantization", "dataset", "split", "max_rows", "seed")
RECORDED_OF_MODE = {"generate": ("max_new_tokens", "num_samples", "temperature"), "score": ("threshold",)}
LOW_MASS = 0.5  # below it, the two answers are not what the model would say


@dataclass
class Config:
    model: str = arg("", "hub name, directory of a model or of a LoRA adapter, or tiny (embedded, random weights)")
    revision: str | None = arg(None, "hub revision of the model")
    quantization: str = arg("", "nf4 | none: precision of the weights, or of an adapter's base; empty: as in training")
    dtype: str = arg("auto", "auto | float32 | bfloat16 | float16; auto: what the GPU computes in, float32 without one")
    name: str = arg("", "label in tables and figures; empty: the model's directory")
    dataset: str = arg("", "directory that preprocess.py wrote; empty: the one that the model was trained on")
    split: list[str] = arg(
        ["test"], "test | validation | train; more (test_paraphrase, ...) are compared with the first"
    )
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
    output_dir: str = arg(
        "",
        f"where results go; empty: {RESULTS}/ and the model's name, or comparison "
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
        check(not (self.compare and self.model), "model: compare runs no model; leave one of them out")
        check(bool(self.compare or self.model), "model: name a directory or a hub model (or directories to compare)")
        check(len(self.compare) != 1, "compare: name at least two directories, the baseline first")


def training_settings(model: str) -> dict:
    """The settings that a model, or the run that its checkpoint is of, was trained with; none if they are unknown."""
    for directory in (Path(model), Path(model).parent):
        if model and (directory / "training_config.json").is_file():
            return json.loads((directory / "training_config.json").read_text())
    return {}


def claim_results_dir(directory: str, overwrite: bool) -> Path:
    """Create the output directory. One with checkpoints is a model's, and never taken, not even with `overwrite`."""
    path = Path(directory)
    check(not list_checkpoints(path), f"output_dir {directory}: holds a model's checkpoints; name another")
    check_vacant(path, overwrite, "name another, or set overwrite true")
    return make_output_dir(directory)


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
    check(len(set(config.split)) == len(config.split) > 0, "split: name each split once")
    parts = [load_split(config.dataset, split) for split in config.split]
    parts = [choose_rows(part, config.max_rows or len(part), config.seed) for part in parts]
    from datasets import concatenate_datasets  # seconds to import, which wrong settings need not wait for

    data = concatenate_datasets(parts)
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
    splits = [split for split, part in zip(config.split, parts, strict=True) for _ in range(len(part))]
    rows = [{**row, "split": split} for row, split in zip(rows, splits, strict=True)]
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
        print("\n".join(result_lines(results)))
        print(f"{len(rows)} rows in {seconds:.1f} s; results: {output_dir}, to be read in {output_dir / 'report.html'}")
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
    """predictions.jsonl, metrics.json, the figures of one model, and report.html."""
    name = results["name"]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (output_dir / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (output_dir / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    scores = score_figure({name: grouped_summaries(results)}, results["confidence"], name)
    figures = {"confusion_matrix": confusion_figure(main_rows(rows), name), "scores": scores}
    if "calibration" in results:
        figures["calibration"] = calibration_figure(results, name)
    for file, figure in figures.items():
        figure.savefig(output_dir / f"{file}.png", dpi=150)
    settings = {key: value for key, value in results.items() if not isinstance(value, dict) and key != "calibration"}
    drawn = [("By number of variables, relation and wording", scores)]
    models = [{"name": name, "rows": rows, "results": results}]
    html = page(models, name, settings, "\n".join(result_lines(results)), drawn)
    (output_dir / "report.html").write_text(html, encoding="utf-8")


def table(constants: dict[str, dict], entries: list[tuple[str, dict]]) -> str:
    return metrics.format_table([*((BASELINE_NAMES[key], scores) for key, scores in constants.items()), *entries])


def result_lines(results: dict) -> list[str]:
    """The scores of one model as text."""
    groups = [(f"  {label}", summary) for label, summary in grouped_summaries(results).items()]
    lines = [table(results["baselines"], [(results["name"], results["overall"]), *groups[1:]])]
    changes = {split: part for split, part in results.get("by_split", {}).items() if "difference" in part}
    if changes:
        first = next(iter(results["by_split"]))
        cells = [["difference", *SCORE_NAMES.values()]]
        for split, part in changes.items():
            pair = {"difference": part["difference"], "intervals": part["difference_intervals"]}
            cells.append([f"{split} − {first}", *(_difference(pair, score) for score in SCORE_NAMES)])
        lines.append("\n" + metrics.align(cells))
    lines.append(
        f"intervals: {results['confidence']:.0%}, from {results['num_clusters']} clusters ({results['cluster']})"
    )
    if "calibration" in results:
        lines += probability_lines(results)
    if "agreement" in results:
        samples = f"{results['num_samples']} samples a row at temperature {results['temperature']:g}"
        lines.append(f"{samples}: {results['agreement']:.1%} of them give their row's more frequent answer")
    if results.get("truncated_rate", 0) > 0:
        lines.append(
            f"{results['truncated_rate']:.1%} of rows have a completion cut at max_new_tokens; raise it if many do"
        )
    return lines


def probability_lines(results: dict) -> list[str]:
    overall, bins = results["overall"], results["calibration"]
    entries = [("share of Yes, for every row", results["constant_probability"]), (results["name"], overall)]
    lines = ["\n" + metrics.format_probability_table(entries)]
    if "note" in overall:
        lines.append(overall["note"])
    means = [sum(part["n"] * part[key] for part in bins) / overall["n"] for key in ("mean_probability", "frequency")]
    lines.append(
        "calibration: mean probability of Yes {:.1%}, share of Yes {:.1%}; calibration.png by bins".format(*means)
    )
    mass = results["answer_mass"]
    if mass < LOW_MASS:
        lines.append(f"the model says one of the two answers with probability {mass:.1%}: the rest is not scored")
    return lines


def main_rows(rows: list[dict]) -> list[dict]:
    """Those of the first split, of which the scores are."""
    return [row for row in rows if row.get("split") == rows[0].get("split")]


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


def compare_results(directories: list[str], **resampling) -> tuple[dict, list[dict]]:
    """Scores of every directory with intervals, and metrics.compare of each with the first and the one before it.

    Returns that, for JSON, and the models as `report.page` takes them. `resampling`: `cluster`, `num_resamples` and
    `seed` of metrics.py. Raises ValueError if the rows are not the same.
    """
    names, rows = zip(*map(read_results, directories), strict=True)
    names = distinct(names, directories)
    reports = [metrics.report(part, **resampling) for part in rows]
    rows = [main_rows(part) for part in rows]
    pairs = []
    for a, b in [(0, k) for k in range(1, len(names))] + [(k - 1, k) for k in range(2, len(names))]:
        try:
            pairs.append({"names": [names[a], names[b]], **metrics.compare(rows[a], rows[b], **resampling)})
        except ValueError as error:
            raise ValueError(f"compare: {directories[a]} and {directories[b]}: {error}") from None
    models = [
        {"name": name, "rows": part, "results": {**results, "directory": directory}}
        for name, directory, part, results in zip(names, directories, rows, reports, strict=True)
    ]
    shared = {key: pairs[0][key] for key in ("num_rows", "num_clusters", "confidence")}
    shared["baselines"] = reports[0]["baselines"]
    parts = ("by_num_variables", "by_relation", "by_split")
    listed = [
        {"name": m["name"], "directory": m["results"]["directory"], **m["results"]["overall"]}
        | {part: m["results"][part] for part in parts if part in m["results"]}
        for m in models
    ]
    return {**resampling, **shared, "models": listed, "pairs": pairs}, models


def comparison_lines(comparison: dict) -> list[str]:
    """A comparison as text."""
    lines = [table(comparison["baselines"], [(model["name"], model) for model in comparison["models"]])]
    cells = [["difference", *SCORE_NAMES.values(), "McNemar p"]]
    for pair in comparison["pairs"]:
        differences = [_difference(pair, score) for score in SCORE_NAMES]
        cells.append([" − ".join(pair["names"][::-1]), *differences, f"{pair['mcnemar']['p_value']:.2g}"])
    lines.append("\n" + metrics.align(cells))
    scored = [pair for pair in comparison["pairs"] if "brier" in pair["difference"]]
    if scored:
        cells = [["difference", *metrics.PROBABILITY_SCORES.values()]]
        cells += [
            [" − ".join(p["names"][::-1]), *(_difference(p, s) for s in metrics.PROBABILITY_SCORES)] for p in scored
        ]
        lines.append("\n" + metrics.align(cells))
    lines.append(
        f"intervals: {comparison['confidence']:.0%}, paired, from {comparison['num_clusters']} clusters "
        f"({comparison['cluster']}); McNemar's exact test takes rows as independent: trust the intervals"
    )
    return lines


def write_comparison(comparison: dict, models: list[dict], output_dir: Path) -> None:
    """comparison.json, comparison.png and report.html."""
    (output_dir / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")
    groups = {model["name"]: grouped_summaries(model["results"]) for model in models}
    rows = f"the same {comparison['num_rows']:,} rows"
    figure = score_figure(groups, comparison["confidence"], rows)
    figure.savefig(output_dir / "comparison.png", dpi=150)
    title = " · ".join(model["name"] for model in models)
    settings = {model["name"]: model["results"]["directory"] for model in models}
    settings |= {key: comparison[key] for key in ("num_rows", "num_clusters", "cluster", "num_resamples", "seed")}
    lead = "\n".join(comparison_lines(comparison))
    html = page(models, title, settings, lead, [("By number of variables, relation and wording", figure)])
    (output_dir / "report.html").write_text(html, encoding="utf-8")


def _difference(pair: dict, score: str) -> str:
    if pair["intervals"].get(score) is None:
        return "none"
    low, high = pair["intervals"][score]
    return f"{pair['difference'][score]:+.3f} [{low:+.3f}, {high:+.3f}]"


def compare(config: Config) -> None:
    """`--compare`: everything is read before anything is written."""
    check(os.environ.get("WORLD_SIZE", "1") == "1", "compare: run python evaluate.py, not accelerate launch")
    resampling = {key: getattr(config, key) for key in ("cluster", "num_resamples", "seed")}
    comparison, models = compare_results(config.compare, **resampling)
    output_dir = claim_results_dir(config.output_dir or f"{RESULTS}/comparison", config.overwrite)
    write_comparison(comparison, models, output_dir)
    print("\n".join(comparison_lines(comparison)))
    print(f"results: {output_dir}")


def main() -> None:
    config = parse_config(Config)
    (compare if config.compare else evaluate)(config)


if __name__ == "__main__":
    run_script(main)
