"""Answers of a model to a split, their scores with intervals, and paired comparisons of models.

    python evaluate.py --model models/tiny_sft_model --split test
    python evaluate.py --num_samples 9 --model models/tiny_sft_model --split test
    python evaluate.py --mode score --model models/tiny_sft_model --split test
    accelerate launch --config_file accelerate_configs/zero2_2xl4.yaml evaluate.py --model models/phi3_grpo_model \\
        --dataset data/phi3 --quantization nf4 --output_dir evaluation_results/phi3_grpo_model
    python evaluate.py --model models/phi3_grpo_model --rows rows.csv --perturbations paraphrase relabeling
    python evaluate.py --compare evaluation_results/phi3_sft_model evaluation_results/phi3_grpo_model

The first five write report.html, metrics.json, predictions.jsonl (a line a row), confusion_matrix.png and scores.png to
`output_dir`. Mode generate takes the greedy answer, or the majority of `num_samples` sampled ones. Mode score samples
nothing: it asks how probable Yes is against No, on datasets whose responses are answers alone, and writes
calibration.png besides. `--compare` reads such directories and writes report.html, comparison.json and comparison.png;
it needs no model.

Most rows are No, so an accuracy says little: every table starts with the two answers that need no model. Rows of a
premise are right or wrong together, so the intervals resample premises (scoring/metrics.py).
"""

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from causal.rows import PERTURBATIONS
from dataset.batches import premise_groups
from dataset.chat import as_trained, check_reads_english, encode, encode_rows, longest_sequence
from dataset.reading import answer_candidates, check_whole, choose_rows, load_split, read_report, training_data
from dataset.sources import label_records, parse_row, read_file
from dataset.splits import num_alike, perturbed
from policy.loading import BF16_CAPABILITY, load_for_inference, load_tokenizer, stop_token_ids
from policy.sampling import Sampler
from policy.self_check import check_model_numbers
from policy.shapes import check_context, check_model
from runtime.checkpoints import CONFIGURATION, list_checkpoints
from runtime.ending import run_script
from runtime.files import check_vacant, make_output_dir, read_beside
from runtime.processes import start
from runtime.settings import AUTO, AutoInt, Settings, arg, check, parse_config, seed_arg
from scoring import metrics
from scoring.predictions import RESULT_COLUMNS, predict, score_answers
from scoring.resampling import Bootstrap
from scoring.results import (
    RESULTS,
    answer_figures,
    clear_results,
    compare_results,
    model_name,
    write_comparison,
    write_results,
)
from scoring.tables import comparison_lines, result_lines
from training.budgets import cache_of_evaluation
from training.health import check_stop_tokens

if TYPE_CHECKING:
    from datasets import Dataset

MODES = ("generate", "score")
RECORDED = (
    "mode", "model", "revision", "quantization", "dataset", "rows", "labels", "perturbations", "skip_unparsable",
    "max_rows", "seed", "chat_template_args",
)  # fmt: skip
RECORDED_OF_MODE = {"generate": ("max_new_tokens", "num_samples", "temperature"), "score": ("threshold",)}
OF_COMPARE = {"compare", "split", "cluster", "num_resamples", "seed", "output_dir", "overwrite"}


@dataclass
class Config(Settings):
    model: str = arg(
        "",
        "hub name, directory of a model or of a LoRA adapter, or tiny (embedded, random weights)",
        section="model and data",
    )
    revision: str | None = arg(None, "hub revision of the model")
    quantization: str = arg(
        "",
        "nf4 | none: precision of the weights, or of an adapter's base; empty: as in training",
        choices=("nf4", "none"),
    )
    dtype: str = arg(
        "auto",
        "auto | float32 | bfloat16 | float16; auto: what the GPU computes in, float32 without one",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    dataset: str = arg("", "directory that preprocess.py wrote; empty: the one that the model was trained on")
    split: list[str] = arg(
        [],
        "test | validation | train; more (test_paraphrase, ...) are compared with the first; empty: test, "
        "of compare what each directory has first",
    )
    rows: str | None = arg(
        None,
        "a .csv, .json or .jsonl file with a column input, and label if its own are to count, instead of a dataset",
    )
    labels: str = arg("exact", "rows: exact: computed from the text | given: the file's", choices=("exact", "given"))
    perturbations: list[str] = arg(
        [], f"rows: compared with themselves in other words, letters or order: {', '.join(PERTURBATIONS)}",
        choices=PERTURBATIONS,
    )  # fmt: skip
    chat_template_args: dict = arg({}, "rows: of the chat template, as in preprocess.py; none: as in training")
    skip_unparsable: bool = arg(False, "rows: leave out and count what has no exact label, instead of stopping")
    max_rows: int = arg(0, "rows to evaluate, a random choice that seed fixes; 0: all", at_least=0)

    mode: str = arg(
        "generate",
        "generate: answers in text | score: how probable Yes is against No, without sampling",
        choices=MODES,
        section="answers",
    )
    num_samples: int = arg(
        1, "generate: samples of a row, whose majority is the prediction; 1: greedy answers", at_least=1
    )
    temperature: float | None = arg(None, "generate: sampling temperature of num_samples; none given: 1", at_least=0)
    max_new_tokens: int = arg(
        0, "tokens of a completion, at most; 0: as in training, or 16, enough for an answer", at_least=0
    )
    threshold: float = arg(
        0.5,
        "score: probability of Yes above which the prediction is Yes, between 0 and 1",
        above=0,
        below=1,
        words="a probability between 0 and 1",
    )
    cache_tokens: AutoInt = arg(
        AUTO,
        "tokens in the key-value cache of one process, prompts and longest completions; auto: what its memory holds",
        at_least=1,
    )
    micro_batch_tokens: int = arg(
        2048, "score: packed tokens a forward pass on one process; less needs less memory", at_least=1
    )
    prefix_sharing: bool = arg(True, "compute a premise once for all its claims; false: every sequence by itself")

    cluster: str = arg(
        "premise_id",
        "premise_id | structure_id: what the intervals resample",
        choices=("premise_id", "structure_id"),
        section="scores",
    )
    num_resamples: int = arg(2000, "resamples of the intervals", at_least=1)
    seed: int = seed_arg("seed of the resamples, of the choice of max_rows and of sampling")

    compare: list[str] = arg(
        [], "instead of a model: output directories of earlier runs, the baseline first", section="earlier runs"
    )

    output_dir: str = arg(
        "",
        f"where results go; empty: {RESULTS}/ and the model's name, or comparison "
        "(mode score: name-score, 9 samples: name-majority-9)",
        section="output",
    )
    overwrite: bool = arg(False, "use an output_dir that is not empty")
    name: str = arg("", "label in tables and figures; empty: the model's directory")

    def __post_init__(self):
        check(len(self.compare) != 1, "compare: name at least two directories, the baseline first")
        if self.compare:
            unread = sorted(self.changed() - OF_COMPARE)
            self.check_unread(unread, "compare reads earlier runs and runs no model; leave it out")
        trained = read_beside(self.model, CONFIGURATION)
        check(not (self.rows and self.dataset), "rows: a file takes the place of dataset; leave one of them out")
        self.dataset = self.dataset or ("" if self.rows else trained.get("dataset", ""))
        self.quantization = self.quantization or trained.get("quantization", "none")
        self.max_new_tokens = self.max_new_tokens or trained.get("max_new_tokens", 16)
        super().__post_init__()
        check(self.rows is None or self.mode == "generate", "rows: mode score needs a dataset of preprocess.py")
        of_file = self.perturbations or self.skip_unparsable or self.labels != "exact" or self.chat_template_args
        they = "labels, perturbations, skip_unparsable, chat_template_args"
        check(self.rows is not None or not of_file, f"{they}: they are of --rows FILE")
        if self.rows is not None and not self.chat_template_args:
            self.chat_template_args = training_data(self.model).get("chat_template_args", {})
        has_threshold = self.mode == "score" or self.threshold == 0.5
        check(has_threshold, "threshold: mode generate reads answers, not probabilities; add --mode score")
        several = self.num_samples > 1
        check(not several or self.mode == "generate", "num_samples: mode score samples nothing; use --mode generate")
        if self.temperature is None:
            self.temperature = 1.0 if several else 0.0
        check(several or self.temperature == 0, "temperature: a single answer is greedy; add --num_samples above 1")
        remedy = "give more, or leave num_samples out for greedy answers"
        check(not several or self.temperature > 0, f"temperature: no sampling at {self.temperature}; {remedy}")
        check(bool(self.compare or self.model), "model: name a directory or a hub model (or directories to compare)")
        if self.compare:
            check(len(self.split) < 2, "split: a comparison is of one; write one for each")
        else:
            check(not (self.rows and self.split), "split: a file of rows has none; leave it out")
            self.split = self.split or ["test"]

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.cluster, self.num_resamples, self.seed)


def claim_results_dir(directory: str, overwrite: bool) -> Path:
    """Create the output directory. One with checkpoints is a model's, and never taken, not even with `overwrite`."""
    path = Path(directory)
    check(not list_checkpoints(path), f"output_dir {directory}: holds a model's checkpoints; name another")
    check_vacant(path, overwrite, "name another, or set overwrite true")
    return make_output_dir(directory)


def inference_dtype(name: str, capability: tuple[int, int] | None) -> torch.dtype:
    """The dtype to compute in on a GPU of this compute capability (None: no GPU)."""
    has_bf16 = capability is None or capability >= BF16_CAPABILITY
    check(name != "bfloat16" or has_bf16, f"dtype bfloat16: this GPU ({capability}) only emulates it; use float16")
    if name != "auto":
        return getattr(torch, name)
    return torch.float32 if capability is None else torch.bfloat16 if has_bf16 else torch.float16


def read_rows(config: Config) -> tuple["Dataset", list[str], list[str]]:
    """The rows of all splits, one after the other, the split of each, and what there is to say of them."""
    parts = [load_split(config.dataset, split) for split in config.split]
    for part in parts:
        check_whole(part, config.dataset)
    parts = [choose_rows(part, config.max_rows or len(part), config.seed) for part in parts]
    from datasets import concatenate_datasets  # seconds to import, which wrong settings need not wait for

    splits = [split for split, part in zip(config.split, parts, strict=True) for _ in range(len(part))]
    return concatenate_datasets(parts), splits, []


def read_file_rows(config: Config, tokenizer) -> tuple["Dataset", list[str], list[str]]:
    """The same of a file: its rows, then perturbed, in the chat form that the model was trained on."""
    check_reads_english(tokenizer, "perturbations", config.perturbations)
    records = read_file(Path(config.rows), "rows")
    rows, left_out = label_records(records, config.labels, config.skip_unparsable, given=config.labels == "given")
    check(len(rows) > 0, f"rows: {config.rows}: none could be read: {left_out[:1]}")
    notes = []
    parts = {"rows": rows} | {f"rows_{kind}": perturbed(rows, kind, config.seed) for kind in config.perturbations}
    for name, part in parts.items():
        alike = num_alike(rows, part) if part is not rows else 0
        if alike:
            notes.append(f"{name}: {alike:,} of {len(rows):,} rows are as they were, for there is nothing to change")
    from datasets import Dataset

    chosen = sorted(random.Random(config.seed).sample(range(len(rows)), min(config.max_rows or len(rows), len(rows))))
    # Nobody reads the responses but the check of shared prefixes: an answer, whatever the model says before it.
    form = tokenizer, config.model, config.chat_template_args
    chats = {name: as_trained([part[k] for k in chosen], *form) for name, part in parts.items()}
    if left_out:
        notes.append(f"{len(left_out)} rows left out, the first: {left_out[0]['row']}: {left_out[0]['reason']}")
    splits = [name for name, part in chats.items() for _ in part]
    columns = ("prompt", "response", "given_label", *RESULT_COLUMNS)
    chosen_rows = [{name: row[name] for name in columns} for part in chats.values() for row in part]
    return Dataset.from_list(chosen_rows), splits, notes


def form_of(config: Config) -> dict:
    """How the responses to the rows are written, as far as is known: `target`, ..."""
    return training_data(config.model) if config.rows else read_report(config.dataset).get("config", {})


def both_labels(config: Config, data: "Dataset") -> list[dict]:
    """`given_label` and `exact_label` of every row; of neither, where a dataset has no given ones."""
    if "given_label" not in data.column_names:
        return [{}] * len(data)
    labels = config.labels if config.rows else form_of(config).get("labels", "exact")
    exact = data["label"] if labels == "exact" else [parse_row({"input": text})["exact"] for text in data["input"]]
    return [{"given_label": own, "exact_label": label} for own, label in zip(data["given_label"], exact, strict=True)]


def evaluate(config: Config) -> None:
    """Run the model on the split, on all processes; rank 0 writes the results and prints the table."""
    name = config.name or model_name(config.model)
    check_model(config.model)
    named = config.dataset != "" or config.rows is not None
    check(named, f"dataset: name one, or a file of --rows; {config.model} has no {CONFIGURATION} that does")
    check(len(set(config.split)) == len(config.split) > 0, "split: name each split once")
    tokenizer = load_tokenizer(config.model, config.revision)
    data, splits, notes = read_rows(config) if config.rows is None else read_file_rows(config, tokenizer)
    scored = config.mode == "score"
    candidates = answer_candidates(config.dataset, data, "mode score", "use --mode generate") if scored else []
    way = "-score" if scored else f"-majority-{config.num_samples}" if config.num_samples > 1 else ""
    output_dir = claim_results_dir(config.output_dir or f"{RESULTS}/{name}{way}", config.overwrite)

    accelerator = start(config.seed)
    device = accelerator.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    dtype = inference_dtype(config.dtype, capability)
    model = load_for_inference(config.model, config.quantization, dtype, device, config.revision)
    stop_ids = stop_token_ids(tokenizer, model)
    check_stop_tokens([encode(tokenizer, text) for text in data["response"][:64]], stop_ids)
    prompts = [encode(tokenizer, text) for text in data["prompt"]]
    texts = ({"prompt": data["prompt"], "response": texts} for texts in zip(*candidates, strict=True))
    answers = list(zip(*(encode_rows(tokenizer, rows)[1] for rows in texts), strict=True))
    room = max((len(ids) for pair in answers for ids in pair), default=config.max_new_tokens)
    longest = max(map(len, prompts))
    check_context(model, longest + room)
    cache = config.cache_tokens
    if cache == AUTO and not scored:
        cache = cache_of_evaluation(
            device, dtype, config.model, config.quantization, longest, config.max_new_tokens, config.revision
        )
    budget = "" if scored else f", cache_tokens {cache:,}"
    where = f"{accelerator.num_processes} x {device.type}, {dtype}{budget}"
    accelerator.print(*notes, f"{name}: {len(data):,} rows on {where}", sep="\n", flush=True)
    first = premise_groups(data["premise_id"], len(data))[0]
    _, responses = encode_rows(tokenizer, data.select(first))
    sequences = [longest_sequence(tokenizer, data, room)]
    check_model_numbers(model, [[prompts[row] for row in first]], [responses], sequences, config.prefix_sharing)
    if accelerator.is_main_process:
        clear_results(output_dir)
    start_time = time.perf_counter()
    if scored:
        rows = score_answers(
            accelerator, model, data, prompts, answers,
            micro_batch_tokens=config.micro_batch_tokens, threshold=config.threshold, share=config.prefix_sharing,
        )  # fmt: skip
    else:
        sampler = Sampler(model, tokenizer, stop_ids, config.max_new_tokens, cache, config.prefix_sharing)
        sampling = {"num_samples": config.num_samples, "temperature": config.temperature, "seed": config.seed}
        sampling["check_traces"] = form_of(config).get("target") == "trace"
        rows = predict(accelerator, sampler, data, prompts, **sampling)
    seconds = time.perf_counter() - start_time
    if accelerator.is_main_process:
        traceless = sum(row.get("means", {}).get("exact_trace", 0) is None for row in rows)
        if traceless:
            print(f"{traceless:,} rows have no exact trace, for no graph satisfies their premise: not counted there")
        labels = both_labels(config, data)
        rows = [{**row, **known, "split": split} for row, known, split in zip(rows, labels, splits, strict=True)]
        seen = training_data(config.model).get("structures")
        if seen:  # else nobody knows
            seen = set(seen)
            rows = [{**row, "seen": row["structure_id"] in seen} for row in rows]
        results = {
            "name": name,
            **{key: getattr(config, key) for key in (*RECORDED, *RECORDED_OF_MODE[config.mode])},
            "split": list(dict.fromkeys(splits)),
            "dtype": str(dtype).removeprefix("torch."),
            "num_processes": accelerator.num_processes,
            "seconds": seconds,
            **answer_figures(metrics.main_rows(rows)),
            **metrics.report(rows, config.bootstrap),
        }
        write_results(rows, results, output_dir)
        print("\n".join(result_lines(results)))
        print(f"{len(rows)} rows in {seconds:.1f} s; results: {output_dir}, to be read in {output_dir / 'report.html'}")
    accelerator.end_training()


def compare(config: Config) -> None:
    """`--compare`: everything is read before anything is written."""
    check(os.environ.get("WORLD_SIZE", "1") == "1", "compare: run python evaluate.py, not accelerate launch")
    split = config.split[0] if config.split else None
    comparison, models = compare_results(config.compare, split, config.bootstrap)
    output_dir = claim_results_dir(config.output_dir or f"{RESULTS}/comparison", config.overwrite)
    clear_results(output_dir)
    write_comparison(comparison, models, output_dir)
    print("\n".join(comparison_lines(comparison)))
    print(f"results: {output_dir}")


def main() -> None:
    config = parse_config(Config)
    (compare if config.compare else evaluate)(config)


if __name__ == "__main__":
    run_script(main)
