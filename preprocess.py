"""Corr2Cause rows, from the hub, a file or the generator, made into a checked, split, chat-templated dataset.

    python preprocess.py --config configs/data_tiny.yaml
    python preprocess.py --source rows.csv --tokenizer Qwen/Qwen2.5-1.5B-Instruct --output_dir data/qwen
    python preprocess.py --source generate --num_variables 2 3 4 5 6 --labels released --raw true --output_dir data/raw
    python preprocess.py --audit rows.csv --output_dir data/audit

Every row is parsed, and its label recomputed from the premise's Markov equivalence class. `output_dir` gets a
`datasets.DatasetDict` (train, validation, test, and a test_<perturbation> for each of `perturbations`) of COLUMNS and a
report.json. Without `--raw true` there are also

    prompt    the chat template's text up to where the assistant begins
    response  the assistant's text, up to and including the end-of-turn token

which are tokenized apart, both with add_special_tokens=False. Rows over `max_length` are left out and named, never cut.
`--audit` writes no dataset but what audit.py finds: the rows whose label is wrong, with the proof.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value, disable_progress_bars
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from causal import reasoning, wording
from causal.answers import extract_answer
from causal.graphs import MAX_VARIABLES, NUM_CLASSES, markov_equivalence_class
from causal.released import NUM_RELEASED_CLASSES
from causal.rows import PERTURBATIONS, generate_rows
from dataset import audit
from dataset.chat import special_tokens, templated
from dataset.sources import HUB_CONFIGS, HUB_NAME, parse_row, read_file, read_hub, read_label
from dataset.splits import BALANCE, SPLITS, STRATEGIES, label_weights, perturbed, relation_of, split_rows, subsample
from runtime.ending import run_script
from runtime.files import replacing
from runtime.settings import arg, check, check_choice, parse_config

EDGES = List(List(Value("int64")))
COLUMNS = {
    **dict.fromkeys(("input", "premise", "hypothesis", "premise_id", "structure_id"), Value("string")),
    **dict.fromkeys(("label", "given_label", "num_variables"), Value("int64")),
    "template": Value("string"),
    "edges": {"directed": EDGES, "undirected": EDGES},
}
CHAT_COLUMNS = {"prompt": Value("string"), "response": Value("string")}
ANSWERS = ("Answer: No", "Answer: Yes")  # by label
QUESTION = "Decide whether the hypothesis follows from the premise. "
REASONING = QUESTION + "Reason step by step. End with a line 'Answer: Yes' or 'Answer: No'."
ANSWER_ALONE = QUESTION + "Reply with one line, 'Answer: Yes' or 'Answer: No'."
INSTRUCTIONS = {"answer": ANSWER_ALONE, "trace": REASONING, "teacher": REASONING}  # by target
GRPO = "grpo"  # the split of prompts that SFT has not seen
WRITE_BATCH = 2000  # rows
HASHED = ("input", "label", "given_label", "template", "prompt", "response")  # the others follow from the input
OVER_LONG_SHARE = 0.05  # beyond it, what is left out changes what the dataset measures


@dataclass
class DataConfig:
    source: str = arg("generate", "generate, hub, or a .csv, .json or .jsonl file with columns input and label")
    hub_config: str = arg("default", f"configuration of {HUB_NAME}: {', '.join(HUB_CONFIGS)}")
    audit: str | None = arg(None, "a file as of source: check its labels and write what is wrong; no dataset")
    num_variables: list[int] = arg([3, 4], "generate: sizes of the systems, 2 to 8 variables; 7 and 8 need structures")
    structures: int | None = arg(None, "generate: at most so many classes of each size, at random; null: all (2 to 6)")
    relabelings: int = arg(0, "generate: random relabelings a class; 0: the released letters, in topological order")
    labels: str = arg("exact", "column `label`: exact, given (the source's), released (generate: as the public rows)")
    skip_unparsable: bool = arg(False, "leave out and count rows that have no such label, instead of stopping")
    tokenizer: str = arg("tiny", "model or tokenizer: hub name, folder, or tiny (embedded)")
    revision: str | None = arg(None, "the tokenizer's revision on the hub")
    raw: bool = arg(False, "write the task's columns alone, without prompt and response; needs no tokenizer")
    target: str = arg("answer", "response: answer (that line alone), trace (exact reasoning) or teacher (teacher_file)")
    trace_style: str = arg("compact", f"target trace: {' or '.join(reasoning.STYLES)}")
    teacher_file: str | None = arg(None, "target teacher: .jsonl with input, completion and finish_reason")
    instruction: str | None = arg(None, "text before the premise, so that claims share a prefix; null: by target")
    max_length: int = arg(1024, "longest prompt + response, in tokens; longer rows are left out")
    split: str = arg("auto", "premise, structure, size, released (public recipe), given; auto: given, else premise")
    test_sizes: list[int] = arg([], "split size: numbers of variables of test; train and validation have the others")
    validation_fraction: float = arg(0.1, "share of premises or structures in validation; 0: no such split")
    test_fraction: float = arg(0.1, "share of premises or structures in test; 0: no such split")
    max_train_samples: int | None = arg(None, "rows of train, a random choice; null: all")
    max_grpo_samples: int | None = arg(
        None, "rows of a further split grpo, prompts for train_grpo.py that train does not have; null: no such split"
    )
    max_validation_samples: int | None = arg(None, "rows of validation, a random choice; null: all")
    max_test_samples: int | None = arg(None, "rows of test, a random choice; null: all")
    balance: list[str] = arg([], f"train: columns to balance, of {', '.join(BALANCE)}")
    perturbations: list[str] = arg([], f"more test sets, test_<perturbation>: {', '.join(PERTURBATIONS)}")
    seed: int = arg(0, "of the relabelings, the splits and the random choices")
    output_dir: str = arg("data/corr2cause", "dataset folder to write")
    overwrite: bool = arg(False, "replace output_dir if a dataset of this script is there")


def check_config(config: DataConfig) -> None:
    """Raises ValueError for settings that are out of range or contradict each other."""
    allowed = ("exact", "released") if config.source == "generate" else ("exact", "given")
    check_choice(f"labels (source {config.source})", config.labels, allowed)
    check_choice("target", config.target, tuple(INSTRUCTIONS))
    check_choice("trace_style", config.trace_style, reasoning.STYLES)
    check_choice("split", config.split, STRATEGIES)
    for name, choices in (("balance", BALANCE), ("perturbations", PERTURBATIONS)):
        for value in getattr(config, name):
            check_choice(name, value, choices)
    check_choice("hub_config", config.hub_config, HUB_CONFIGS)
    fractions = config.validation_fraction, config.test_fraction
    check(min(fractions) >= 0 and sum(fractions) <= 1, "validation_fraction, test_fraction: expected 0 to 1 in all")
    check(len(config.num_variables) > 0, f"num_variables: name at least one size, 2 to {MAX_VARIABLES}")
    for n in config.num_variables:
        check(2 <= n <= MAX_VARIABLES, f"num_variables: {n}: use 2 to {MAX_VARIABLES}")
        sampled = config.structures is not None and config.labels == "exact"
        check(n in NUM_CLASSES or sampled, f"num_variables: {n} has too many classes to list; set structures")
    check((config.split == "size") == bool(config.test_sizes), "test_sizes: split size needs them, no other split does")
    for name in ("relabelings", "structures", "max_length", *(f"max_{split}_samples" for split in (*SPLITS, GRPO))):
        value, least = getattr(config, name), int(name != "relabelings")
        check(value is None or value >= least, f"{name}: {value} is too small; use {least} or more")
    has_file = config.teacher_file is not None
    check((config.target == "teacher") == has_file, "target teacher needs teacher_file, and no other target has it")
    check(config.target != "trace" or config.labels == "exact", "target trace ends in the exact answer: labels exact")
    check(not config.raw or config.target == "answer", f"raw writes no response: leave out target {config.target}")


# ---------------------------------------------------------------- rows


def generated_rows(config: DataConfig) -> Iterator[dict]:
    """The rows of every size in `num_variables`, in order."""
    relabel_seed = config.seed if config.relabelings else None
    for n in dict.fromkeys(config.num_variables):
        rows = generate_rows(n, config.labels, relabel_seed, max(1, config.relabelings), config.structures, config.seed)
        yield from rows


def expected_rows(config: DataConfig) -> int | None:
    """How many rows will be generated; None where that depends on the classes' symmetries."""
    counts = NUM_RELEASED_CLASSES if config.labels == "released" else NUM_CLASSES
    sizes = dict.fromkeys(config.num_variables)
    if config.relabelings > 1:
        return None
    most = config.structures or max(counts.values())
    return sum(3 * n * (n - 1) * min(most, counts.get(n, most)) for n in sizes)


def labelled_rows(config: DataConfig) -> tuple[list[dict], list[dict]]:
    """Rows with the task's columns, `exact` and `row`; and {row, reason} of those without a label.

    Raises ValueError naming the row for a missing column, a label that is not 0 or 1, an input that cannot be read, and
    with given labels for an input that has two.
    """
    rows, unlabelled = [], []
    if config.source == "generate":  # written by the oracle itself
        generated = progress(generated_rows(config), "generate", expected_rows(config))
        return [row | {"row": f"row {i}"} for i, row in enumerate(generated)], unlabelled
    records = read_hub(config.hub_config) if config.source == "hub" else list(read_file(Path(config.source), "source"))
    for record in progress(records, "read"):
        given = read_label(record)
        try:
            row = parse_row(record)
            if config.labels == "exact" and row["exact"] is None:
                markov_equivalence_class(wording.parse_premise(row["premise"]))  # says why
        except wording.Corr2CauseError as error:
            check(config.skip_unparsable, f"{record['row']}: {error} (--skip_unparsable true leaves such rows out)")
            unlabelled.append({"row": record["row"], "reason": str(error)})
            continue
        rows.append(row | {"given_label": given, "label": row["exact"] if config.labels == "exact" else given})
    check(len(rows) + len(unlabelled) > 0, f"source: {config.source}: no rows in it")
    check(len(rows) > 0, f"source: {config.source}: no row could be read: {unlabelled[:1]}")
    if config.labels == "given":
        check_agreement(rows)
    return rows, unlabelled


def check_agreement(rows: list[dict]) -> None:
    """ValueError naming two rows that give one input two labels."""
    first: dict[str, dict] = {}
    for row in rows:
        other = first.setdefault(row["input"], row)
        agree = other["given_label"] == row["given_label"]
        check(agree, f"{other['row']} and {row['row']}: one input with two labels; use labels exact, or mend the file")


def progress(items: Iterable[dict], name: str, total: int | None = None) -> Iterator[dict]:
    """The items, with a progress bar on a terminal."""
    return tqdm(items, desc=name, total=total, unit=" rows", mininterval=0.5, disable=None)


# ---------------------------------------------------------------- responses and chat template


def add_teacher(rows: list[dict], path: Path, special: set[str]) -> tuple[list[dict], Counter]:
    """The rows that have a good completion, with it as `completion`; and what became of every completion.

    Of several good completions of one input the first is kept. Raises ValueError if there is none at all.
    """
    labels = {row["input"].strip(): row["label"] for row in rows}
    kept, fates = {}, Counter()
    for number, record in enumerate(read_file(path, "teacher_file")):
        missing = [key for key in ("input", "completion", "finish_reason") if not isinstance(record.get(key), str)]
        check(not missing, f"teacher_file: {path}: completion {number} has no text in {' and '.join(missing)}")
        text, completion = record["input"].strip(), record["completion"].strip()
        fate = judge(completion, record["finish_reason"], labels.get(text), special)
        fate = "repeated" if fate == "kept" and text in kept else fate
        fates[fate] += 1
        if fate == "kept":
            kept[text] = completion
    check(len(kept) > 0, f"teacher_file: {path}: no finished, right completion of a row of train: {dict(fates)}")
    return [row | {"completion": kept[text]} for row in rows if (text := row["input"].strip()) in kept], fates


def judge(completion: str, finish_reason: str, label: int | None, special: set[str]) -> str:
    """What becomes of a teacher's completion for a row of `label` (None: no row of train)."""
    if label is None:
        return "not_in_train"
    if finish_reason != "stop":
        return "unfinished"
    if any(token in completion for token in special):
        return "special_token"
    answer = extract_answer(completion)
    return "no_answer" if answer is None else "kept" if answer == bool(label) else "wrong"


def completion_of(row: dict, target: str, style: str) -> str:
    """What the assistant says, before the chat template."""
    if target == "trace":
        return reasoning.trace(*wording.parse_claim(row["premise"], row["hypothesis"]), style)
    return row.get("completion", ANSWERS[row["label"]])


def add_chat(rows: list[dict], tokenizer, config: DataConfig) -> list[dict]:
    """Rows with `prompt`, `response`, and `tokens`, the lengths of the two."""
    from dataset.chat import encode

    special, instruction = special_tokens(tokenizer), config.instruction
    instruction = INSTRUCTIONS[config.target] if instruction is None else instruction
    held = [token for token in special if token in instruction]
    check(not held, f"instruction: holds the special token {' '.join(held)}, which the model reads as the chat format")
    chats = []
    for row in progress(rows, "tokenize"):
        user = f"{instruction}\n\n{row['input']}".strip()
        prompt, response = templated(tokenizer, user, completion_of(row, config.target, config.trace_style), special)
        tokens = len(encode(tokenizer, prompt)), len(encode(tokenizer, response))
        chats.append(row | {"prompt": prompt, "response": response, "tokens": tokens})
    return chats


def leave_out_long(splits: dict, max_length: int) -> tuple[dict[str, list[dict]], list[dict]]:
    """The rows of at most `max_length` tokens, and {split, row, tokens} of the others. Raises if a split gets empty.

    Test and its perturbations stay row by row the same: a row that is too long in one of them leaves them all.
    """
    lengths = [{"split": s, "row": row["row"], "tokens": sum(row["tokens"])} for s in splits for row in splits[s]]
    long = [entry for entry in lengths if entry["tokens"] > max_length]
    out = {(entry["split"].partition("_")[0], entry["row"]) for entry in long}
    kept = {s: [row for row in rows if (s.partition("_")[0], row["row"]) not in out] for s, rows in splits.items()}
    empty, need = ", ".join(name for name, rows in kept.items() if not rows), max(entry["tokens"] for entry in lengths)
    check(not empty, f"max_length: no row of {empty} has {max_length} tokens or fewer; {need} keeps all rows")
    return kept, long


# ---------------------------------------------------------------- report


def split_figures(rows: list[dict]) -> dict:
    """Counts of one split. `cells`: [N, relation, rows, rows of label 1]; `label_weights`: what class_weights takes."""
    cells: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        cell = cells.setdefault((row["num_variables"], relation_of(row)), [0, 0])
        cell[0] += 1
        cell[1] += row["label"]
    return {
        "rows": len(rows),
        "label_1": sum(row["label"] for row in rows),
        "label_weights": label_weights(rows),
        **{f"{key}s": len({row[f"{key}_id"] for row in rows}) for key in ("premise", "structure")},
        **{key: dict(sorted(Counter(str(row[key]) for row in rows).items())) for key in ("num_variables", "template")},
        "cells": [[*cell, *counts] for cell, counts in sorted(cells.items())],
    }


def overlaps(splits: dict[str, list[dict]]) -> dict[str, dict[str, int]]:
    """How many premises and structures two splits have in common."""
    keys = ("premise", "structure")
    ids = {name: {key: {row[f"{key}_id"] for row in rows} for key in keys} for name, rows in splits.items()}
    return {f"{a}/{b}": {f"{k}s": len(ids[a][k] & ids[b][k]) for k in keys} for a, b in combinations(splits, 2)}


def token_figures(rows: list[dict]) -> dict[str, dict[str, int]]:
    lengths = np.array([row["tokens"] for row in rows])  # (rows, 2)
    counts = {"prompt": lengths[:, 0], "response": lengths[:, 1], "total": lengths.sum(axis=1)}
    points = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    figures = {part: np.percentile(values, list(points.values()), method="higher") for part, values in counts.items()}
    return {part: dict(zip(points, map(int, values), strict=True)) for part, values in figures.items()}


def dataset_hash(splits: dict[str, list[dict]], columns: dict) -> str:
    digest = hashlib.sha256()
    hashed = [column for column in HASHED if column in columns]
    for name, row in ((name, row) for name, rows in splits.items() for row in rows):
        digest.update("\x1f".join([name, *(str(row[column]) for column in hashed), ""]).encode())
    return digest.hexdigest()


def make_report(splits: dict, columns: dict, config: DataConfig, source_rows: list[dict], left_out: dict) -> dict:
    """What report.json says; `left_out` (unparsable, over_long, teacher) is part of it."""
    wrong = [row for row in source_rows if row["exact"] is not None and row["given_label"] != row["exact"]]
    first_wrong = [{key: row[key] for key in ("row", "given_label", "exact")} for row in wrong[:10]]
    report = {
        "source": f"{HUB_NAME} ({config.hub_config})" if config.source == "hub" else config.source,
        "source_rows": len(source_rows) + len(left_out["unparsable"]),
        "seed": config.seed,
        "dataset_hash": dataset_hash(splits, columns),
        "splits": {name: split_figures(rows) for name, rows in splits.items()},
        "overlap": overlaps(splits),
        "given_label_not_exact": {"rows": len(wrong), "first": first_wrong},
        "without_exact_label": sum(row["exact"] is None for row in source_rows),
        **left_out,
    }
    if not config.raw:
        first = next(iter(splits.values()))[0]
        report["tokens"] = {name: token_figures(rows) for name, rows in splits.items()}
        report["first_example"] = {key: first[key] for key in ("row", "prompt", "response")}
    return report | {"config": asdict(config)}


def summary(report: dict) -> str:
    """The report as the console shows it."""
    wrong, labels = report["given_label_not_exact"]["rows"], report["config"]["labels"]
    lines = [f"source {report['source']}: {report['source_rows']:,} rows; seed {report['seed']}"]
    lines.append(f"labels {labels}; {wrong:,} rows were given a label that is not the exact one")
    if report["without_exact_label"]:
        lines.append(f"{report['without_exact_label']:,} rows have no exact label: no graph satisfies their premise")
    if report["unparsable"]:
        lines.append(f"left out: {len(report['unparsable']):,} rows without a label (report.json says which and why)")
    if "teacher" in report:
        fates = ", ".join(f"{fate.replace('_', ' ')} {count:,}" for fate, count in report["teacher"].items())
        lines.append(f"teacher completions: {fates}; rows of train without one are left out")
    width = max(map(len, ["validation", *report["splits"]])) + 1
    lines += ["", f"{'split':<{width}}{'rows':>9}{'label 1':>9}{'premises':>10}{'structures':>12}   rows by variables"]
    for name, split in report["splits"].items():
        sizes = ", ".join(f"N={n}: {rows:,}" for n, rows in split["num_variables"].items())
        share = f"{split['label_1'] / split['rows']:.1%}"
        numbers = f"{split['rows']:>9,}{share:>9}{split['premises']:>10,}{split['structures']:>12,}"
        lines.append(f"{name:<{width}}{numbers}   {sizes}")
    overlap = {
        pair: n for pair, n in report["overlap"].items() if "_" not in pair
    }  # of test's perturbations: report.json
    shared = "; ".join(f"{pair} {n['premises']:,}, {n['structures']:,}" for pair, n in overlap.items())
    lines.append(f"premises, structures in two splits: {shared or 'there is only one split'}")
    weights = report["splits"].get("train", {}).get("label_weights")
    lines.append(f"class_weights that balance train: {weights or 'none, it has one class only'}")
    return "\n".join(lines + (chat_summary(report) if "tokens" in report else []))


def chat_summary(report: dict) -> list[str]:
    long, example, max_length = report["over_long"], report["first_example"], report["config"]["max_length"]
    name, tokens = next(iter(report["tokens"].items()))  # train, where there is one
    lines = ["", f"{'tokens of ' + name:<22}" + "".join(f"{point:>9}" for point in tokens["total"])]
    lines += [f"{part:<22}" + "".join(f"{n:>9,}" for n in points.values()) for part, points in tokens.items()]
    lines.append(f"left out: {len(long):,} rows over max_length {max_length:,} (report.json names them)")
    share = len(long) / (len(long) + sum(split["rows"] for split in report["splits"].values()))
    if share > OVER_LONG_SHARE:
        need = max(row["tokens"] for row in long)
        lines.append(f"warning: that is {share:.1%} of the rows, the longest; --max_length {need} would keep them all")
    lines += ["", f"first example ({example['row']}):", "---- prompt", example["prompt"]]
    return [*lines, "---- response", example["response"], "----"]


# ---------------------------------------------------------------- output


def check_output(path: Path, overwrite: bool, needed: set[str], optional: Iterable[str] = ()) -> None:
    """Refuses a folder with anything in it; with `overwrite`, one with anything that this script has not written."""
    check(path.is_dir() or not path.exists(), f"output_dir: {path} is a file")
    found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    check(
        overwrite or not found,
        f"output_dir: {path} is not empty; name another, or replace what this script wrote with --overwrite true",
    )
    ours = not found or needed <= found <= needed | set(optional)
    check(ours, f"output_dir: {path} has files that are not of this script, so it is not overwritten; name another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=path.parent).cleanup()
    except OSError as error:
        raise ValueError(f"output_dir: {path} cannot be written ({error.strerror}); name another") from None


def write_dataset(splits: dict[str, list[dict]], columns: dict, report: dict, path: Path) -> None:
    """Batch by batch, so that the full set of rows does not stand in memory twice."""
    disable_progress_bars()
    with replacing(path) as new, tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        parts = {}
        for name, rows in splits.items():
            file = Path(folder) / f"{name}.arrow"
            with ArrowWriter(features=Features(columns), path=str(file)) as writer:
                for start in range(0, len(rows), WRITE_BATCH):
                    batch = rows[start : start + WRITE_BATCH]
                    writer.write_batch({column: [row[column] for row in batch] for column in columns})
                writer.finalize()
            parts[name] = Dataset.from_file(str(file))
        DatasetDict(parts).save_to_disk(new)
        (new / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def build(config: DataConfig) -> tuple[dict[str, list[dict]], dict, dict]:
    """({split: rows}, columns, report), nothing written."""
    check_config(config)
    tokenizer = None
    if not config.raw:
        from policy.loading import load_tokenizer  # torch: seconds to import, and raw does not need it

        tokenizer = load_tokenizer(config.tokenizer, config.revision)
        has_template = tokenizer.chat_template is not None
        check(has_template, f"tokenizer: {config.tokenizer} has no chat template; use an instruction-tuned model's")
    source_rows, unparsable = labelled_rows(config)
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    splits = split_rows(source_rows, config.split, fractions, config.seed, config.test_sizes)
    left_out = {"unparsable": unparsable}
    if config.target == "teacher":
        train, special = splits.get("train", []), special_tokens(tokenizer)
        splits["train"], left_out["teacher"] = add_teacher(train, Path(config.teacher_file), special)
    if config.max_grpo_samples is not None:  # before train is balanced: prompts of GRPO are as those it is for
        everything = splits.get("train", [])
        check(
            config.max_grpo_samples < len(everything),
            f"max_grpo_samples: leaves nothing of the {len(everything)} rows for train; lower it",
        )
        splits[GRPO] = subsample(everything, config.max_grpo_samples, [], f"{config.seed}-{GRPO}")
        taken = {row["row"] for row in splits[GRPO]}
        splits["train"] = [row for row in everything if row["row"] not in taken]
    for name in (name for name in SPLITS if name in splits):
        balance = config.balance if name == "train" else []
        splits[name] = subsample(splits[name], getattr(config, f"max_{name}_samples"), balance, f"{config.seed}-{name}")
    check(not config.perturbations or "test" in splits, "perturbations: they need a test split; raise test_fraction")
    splits |= {f"test_{kind}": perturbed(splits["test"], kind, config.seed) for kind in config.perturbations}
    if tokenizer is not None:
        splits = {name: add_chat(rows, tokenizer, config) for name, rows in splits.items()}
        splits, left_out["over_long"] = leave_out_long(splits, config.max_length)
    columns = COLUMNS | ({} if config.raw else CHAT_COLUMNS)
    return splits, columns, make_report(splits, columns, config, source_rows, left_out)


def main() -> None:
    config = parse_config(DataConfig)
    output_dir = Path(config.output_dir)
    if config.audit is not None:
        check_output(output_dir, config.overwrite, set(audit.FILES))
        with replacing(output_dir) as new:
            found = audit.write_audit(progress(list(read_file(Path(config.audit), "audit")), "audit"), new)
        print(audit.audit_table(found), f"wrote {output_dir}: {', '.join(audit.FILES)}", sep="\n\n")
        return
    optional = {*SPLITS, GRPO, *(f"test_{kind}" for kind in PERTURBATIONS)}
    check_output(output_dir, config.overwrite, {"dataset_dict.json", "report.json"}, optional)
    splits, columns, report = build(config)
    write_dataset(splits, columns, report, output_dir)
    print(summary(report), f"wrote {output_dir} (sha256 {report['dataset_hash'][:12]})", sep="\n\n")


if __name__ == "__main__":
    run_script(main)
