"""Corr2Cause rows, from the hub, a file or the generator, made into a checked, split, chat-templated dataset.

    python preprocess.py --config configs/data_tiny.yaml
    python preprocess.py --source rows.csv --tokenizer Qwen/Qwen2.5-1.5B-Instruct --output_dir data/qwen
    python preprocess.py --source generate --num_variables 2 3 4 --raw true --output_dir data/raw

Every row is parsed, and its label recomputed from the premise's Markov equivalence class. `output_dir` gets a
`datasets.DatasetDict` (train, validation, test) of COLUMNS and a report.json. Without `--raw true` there are also

    prompt    the chat template's text up to where the assistant begins
    response  the assistant's text, up to and including the end-of-turn token

which are tokenized apart, both with add_special_tokens=False. Rows over `max_length` are left out and named, never cut.
"""

import csv
import hashlib
import json
import random
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value, disable_progress_bars, load_dataset

import corr2cause
from arguments import arg, check, check_choice, parse_config, run_script
from models import encode, load_tokenizer
from rewards import extract_answer

HUB_NAME = "causal-nlp/corr2cause"
HUB_CONFIGS = ("default", "perturbation_by_paraphrasing", "perturbation_by_refactorization")
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {**{name: name for name in SPLITS}, "dev": "validation", "valid": "validation"}
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
OVER_LONG_SHARE = 0.05  # beyond it, what is left out changes what the dataset measures


@dataclass
class DataConfig:
    source: str = arg("generate", "generate, hub, or a .csv, .json or .jsonl file with columns input and label")
    hub_config: str = arg("default", f"configuration of {HUB_NAME}: {', '.join(HUB_CONFIGS)}")
    num_variables: list[int] = arg([3, 4], "generate: sizes of the systems, 2 to 6 variables")
    relabelings: int = arg(0, "generate: random relabelings a class; 0: the released letters, in topological order")
    labels: str = arg("exact", "column `label`: exact (recomputed from the premise) or given (as in the source)")
    skip_unparsable: bool = arg(False, "leave out and count rows that cannot be read, instead of stopping")
    tokenizer: str = arg("tiny", "model or tokenizer: hub name, folder, or tiny (embedded)")
    revision: str | None = arg(None, "the tokenizer's revision on the hub")
    raw: bool = arg(False, "write the task's columns alone, without prompt and response; needs no tokenizer")
    target: str = arg("answer", "response: answer (that line alone), trace (exact reasoning) or teacher (teacher_file)")
    teacher_file: str | None = arg(None, "target teacher: .jsonl with input, completion and finish_reason")
    instruction: str | None = arg(None, "text before the premise, so that claims share a prefix; null: by target")
    max_length: int = arg(1024, "longest prompt + response, in tokens; longer rows are left out")
    split: str = arg("auto", "by premise, by structure, given (the source's), or auto (given if there is any)")
    validation_fraction: float = arg(0.1, "share of premises or structures in validation; 0: no such split")
    test_fraction: float = arg(0.1, "share of premises or structures in test; 0: no such split")
    max_train_samples: int | None = arg(None, "rows of train, a random choice; null: all")
    max_validation_samples: int | None = arg(None, "rows of validation, a random choice; null: all")
    max_test_samples: int | None = arg(None, "rows of test, a random choice; null: all")
    balance: str = arg("none", "train: none, or classes (as many rows of label 0 as of label 1)")
    seed: int = arg(0, "of the relabelings, the splits and the random choices")
    output_dir: str = arg("data/corr2cause", "dataset folder to write")
    overwrite: bool = arg(False, "replace output_dir if a dataset of this script is there")


def check_config(config: DataConfig) -> None:
    """Raises ValueError for settings that are out of range or contradict each other."""
    check_choice("labels", config.labels, ("exact", "given"))
    check_choice("target", config.target, tuple(INSTRUCTIONS))
    check_choice("split", config.split, ("auto", "given", "premise", "structure"))
    check_choice("balance", config.balance, ("none", "classes"))
    check_choice("hub_config", config.hub_config, HUB_CONFIGS)
    fractions = config.validation_fraction, config.test_fraction
    check(min(fractions) >= 0 and sum(fractions) <= 1, "validation_fraction, test_fraction: expected 0 to 1 in all")
    check(len(config.num_variables) > 0, "num_variables: name at least one size, 2 to 6")
    for name in ("relabelings", "max_length", *(f"max_{split}_samples" for split in SPLITS)):
        value, least = getattr(config, name), int(name != "relabelings")
        check(value is None or value >= least, f"{name}: {value} is too small; use {least} or more")
    has_file = config.teacher_file is not None
    check((config.target == "teacher") == has_file, "target teacher needs teacher_file, and no other target has it")
    check(config.target != "trace" or config.labels == "exact", "target trace ends in the exact answer: labels exact")
    check(not config.raw or config.target == "answer", f"raw writes no response: leave out target {config.target}")


# ---------------------------------------------------------------- sources


def read_source(config: DataConfig) -> list[dict]:
    """The source's records as they are, each with `row`, its name in messages: the 0-based number (in its split)."""
    if config.source == "hub":
        splits = load_hub(config.hub_config)
        return [r | {"split": s, "row": f"row {i} of {s}"} for s, rows in splits.items() for i, r in enumerate(rows)]
    if config.source == "generate":
        seed = config.seed if config.relabelings else None
        sizes = dict.fromkeys(config.num_variables)
        records = [row for n in sizes for row in corr2cause.generate_rows(n, seed, max(1, config.relabelings))]
    else:
        records = read_file(Path(config.source), "source")
    check(len(records) > 0, f"source: {config.source}: no rows in it")
    return [record | {"row": f"row {i}"} for i, record in enumerate(records)]


def load_hub(hub_config: str) -> DatasetDict:
    try:
        return load_dataset(HUB_NAME, hub_config)
    except Exception as error:  # offline, blocked, moved: the libraries raise a dozen types for it
        reason = f"cannot load {HUB_NAME} ({hub_config}): {' '.join(str(error).split())[:200]}"
        remedy = "without a network use --source FILE.csv (columns input and label) or --source generate"
        raise ValueError(f"source hub: {reason}; {remedy}") from None


def read_file(path: Path, setting: str) -> list[dict]:
    """Records of a .csv, .json (a list of objects) or .jsonl file. Raises ValueError naming the file and the fault."""
    check(path.suffix in (".csv", ".json", ".jsonl"), f"{setting}: {path} is no .csv, .json or .jsonl file")
    check(path.is_file(), f"{setting}: {path}: no such file")
    at = ""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix == ".csv":
                return list(csv.DictReader(file, strict=True))
            if path.suffix == ".json":
                records = json.load(file)
            else:
                records = []
                for number, line in enumerate(file, 1):
                    at = f", line {number}"
                    records += [json.loads(line)] if line.strip() else []
    except (csv.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting}: {path}{at}: not valid {path.suffix[1:].upper()} in UTF-8: {error}") from None
    is_list = isinstance(records, list) and all(isinstance(record, dict) for record in records)
    check(is_list, f"{setting}: {path}: expected a list of objects (.json), or one object a line (.jsonl)")
    return records


# ---------------------------------------------------------------- rows


@lru_cache(maxsize=8192)
def premise_columns(text: str) -> tuple[corr2cause.Premise, dict]:
    """What all rows of a premise share: worked out once, since a premise of 6 variables has 90 rows."""
    premise = corr2cause.parse_premise(text)
    return premise, corr2cause.premise_columns(premise, text)


def parse_row(record: dict) -> dict:
    """The task's columns of one record, and its label as `exact`. Raises Corr2CauseError if it cannot be read."""
    premise_text, hypothesis = corr2cause.split_input(record["input"])
    premise, shared = premise_columns(premise_text)
    claim, template = corr2cause.read_hypothesis(hypothesis, premise.variables)
    n, template = record.get("num_variables") or shared["num_variables"], record.get("template") or template
    if str(n) != str(shared["num_variables"]):
        raise corr2cause.Corr2CauseError(f"num_variables is {n}, but the premise has {shared['num_variables']}")
    if template not in corr2cause.TEMPLATES:
        raise corr2cause.Corr2CauseError(f"template {template!r} is not one of {', '.join(corr2cause.TEMPLATES)}")
    exact = corr2cause.exact_label(corr2cause.markov_equivalence_class(premise), claim)
    kept = {key: record.get(key) for key in ("input", "row", "split")}
    return {**kept, **shared, "hypothesis": hypothesis, "template": template, "exact": exact}


def read_label(record: dict) -> int:
    missing = [column for column in ("input", "label") if column not in record]
    found = ", ".join(str(column) for column in record if column != "row")
    check(not missing, f"{record['row']}: no column {' and '.join(missing)}; the columns are {found}")
    valid = type(record["label"]) in (int, str) and record["label"] in (0, 1, "0", "1")
    check(valid, f"{record['row']}: label is {record['label']!r}; use 1 (the hypothesis follows) or 0 (it does not)")
    return int(record["label"])


def label_rows(records: list[dict], config: DataConfig) -> tuple[list[dict], list[dict]]:
    """Rows with the task's columns, `exact` and `row`; and {row, reason} of those that cannot be read.

    Raises ValueError naming the row for a missing column, a label that is not 0 or 1, or an input that cannot be read.
    """
    if config.source == "generate":  # written by the oracle itself
        return [row | {"exact": row["label"]} for row in records], []
    rows, unparsable = [], []
    for record in records:
        given = read_label(record)
        try:
            row = parse_row(record)
        except corr2cause.Corr2CauseError as error:
            check(config.skip_unparsable, f"{record['row']}: {error} (--skip_unparsable true leaves such rows out)")
            unparsable.append({"row": record["row"], "reason": str(error)})
            continue
        rows.append(row | {"given_label": given, "label": row["exact"] if config.labels == "exact" else given})
    check(len(rows) > 0, f"source: {config.source}: no row could be read: {unparsable[:1]}")
    return rows, unparsable


# ---------------------------------------------------------------- splits


def split_rows(rows: list[dict], config: DataConfig) -> dict[str, list[dict]]:
    """{split: rows}, in the source's order, deterministic in the seed. Raises ValueError for an empty split."""
    if config.split == "given" or (config.split == "auto" and any(row.get("split") for row in rows)):
        bare = [row["row"] for row in rows if not row.get("split")]
        check(not bare, f"split given: {', '.join(bare[:1])} has no column split; use split premise or structure")
        unknown = sorted({str(row["split"]) for row in rows} - SPLIT_NAMES.keys())
        check(not unknown, f"split given: unknown split {', '.join(unknown)}; known: {', '.join(SPLIT_NAMES)}")
        split_of, fractions = [SPLIT_NAMES[row["split"]] for row in rows], {}
    else:
        key = "structure_id" if config.split == "structure" else "premise_id"
        assigned = assign_groups({row[key]: row["num_variables"] for row in rows}, config)
        split_of = [assigned[row[key]] for row in rows]
        fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
        fractions["train"] = round(1 - sum(fractions.values()), 9)
    splits = {name: [row for row, of in zip(rows, split_of, strict=True) if of == name] for name in SPLITS}
    empty = ", ".join(name for name, share in fractions.items() if share and not splits[name])
    check(not empty, f"split: no rows for {empty}; change validation_fraction and test_fraction, or use more data")
    return {name: part for name, part in splits.items() if part}


def assign_groups(sizes: dict[str, int], config: DataConfig) -> dict[str, str]:
    """{group: split} for {group: number of variables}; every number of variables is shared out by itself."""
    assigned = {}
    for n in sorted(set(sizes.values())):
        groups = sorted(group for group, size in sizes.items() if size == n)
        random.Random(f"{config.seed}-{n}").shuffle(groups)
        counts = {s: round(len(groups) * getattr(config, f"{s}_fraction")) for s in ("test", "validation")}
        names = [name for name, count in counts.items() for _ in range(count)]
        assigned |= dict.fromkeys(groups, "train") | dict(zip(groups, names, strict=False))
    return assigned


def subsample(rows: list[dict], cap: int | None, balanced: bool, seed: str) -> list[dict]:
    """At most `cap` rows at random, in their order; if `balanced`, equally many of either label."""
    classes = [range(len(rows))]
    if balanced:
        classes = [[i for i, row in enumerate(rows) if row["label"] == label] for label in (0, 1)]
        check(all(classes), "balance classes: train has one class only; use balance none or more data")
        check(cap is None or cap >= 2, "max_train_samples: balance classes needs 2 or more")
    size = min(*map(len, classes), (cap or len(rows)) // len(classes), len(rows))
    rng = random.Random(seed)
    return [rows[i] for i in sorted(i for members in classes for i in rng.sample(members, size))]


# ---------------------------------------------------------------- responses and chat template


def special_tokens(tokenizer) -> set[str]:
    return {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(tokenizer.all_special_tokens)


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


def completion_of(row: dict, target: str) -> str:
    """What the assistant says, before the chat template."""
    if target == "trace":
        premise, _ = premise_columns(row["premise"])
        return corr2cause.trace(premise, corr2cause.parse_hypothesis(row["hypothesis"], premise.variables))
    return row.get("completion", ANSWERS[row["label"]])


def templated(tokenizer, user: str, completion: str, special: set[str]) -> tuple[str, str]:
    """(prompt, response) as the chat template writes them; the response ends in the end-of-turn token.

    That is the first special token after the completion; what follows it (Phi-3.5 adds <|endoftext|>, Qwen a line
    break) is never sampled, so it is not trained on. Raises ValueError for a template that does not work so.
    """
    question = {"role": "user", "content": user}
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template([question, {"role": "assistant", "content": completion}], tokenize=False)
    start = len(prompt) + len(completion)
    check(text[:start] == prompt + completion, "tokenizer: its chat template rewrites a turn's text; use another one")
    ends = [at + len(token) for token in special if (at := text.find(token, start)) >= 0]
    check(len(ends) > 0, "tokenizer: its chat template ends no turn with a special token; no stop could be learned")
    return prompt, text[len(prompt) : min(ends)]


def add_chat(rows: list[dict], tokenizer, config: DataConfig) -> list[dict]:
    """Rows with `prompt`, `response`, and `tokens`, the lengths of the two."""
    special, instruction = special_tokens(tokenizer), config.instruction
    instruction = INSTRUCTIONS[config.target] if instruction is None else instruction
    held = [token for token in special if token in instruction]
    check(not held, f"instruction: holds the special token {' '.join(held)}, which the model reads as the chat format")
    chats = []
    for row in rows:
        user = f"{instruction}\n\n{row['input']}".strip()
        prompt, response = templated(tokenizer, user, completion_of(row, config.target), special)
        tokens = len(encode(tokenizer, prompt)), len(encode(tokenizer, response))
        chats.append(row | {"prompt": prompt, "response": response, "tokens": tokens})
    return chats


def leave_out_long(splits: dict, max_length: int) -> tuple[dict[str, list[dict]], list[dict]]:
    """The rows of at most `max_length` tokens, and {split, row, tokens} of the others. Raises if a split gets empty."""
    kept = {name: [row for row in rows if sum(row["tokens"]) <= max_length] for name, rows in splits.items()}
    lengths = [{"split": s, "row": row["row"], "tokens": sum(row["tokens"])} for s in splits for row in splits[s]]
    long = [entry for entry in lengths if entry["tokens"] > max_length]
    empty, need = ", ".join(name for name, rows in kept.items() if not rows), max(entry["tokens"] for entry in lengths)
    check(not empty, f"max_length: no row of {empty} has {max_length} tokens or fewer; {need} keeps all rows")
    return kept, long


# ---------------------------------------------------------------- report


def split_figures(rows: list[dict]) -> dict:
    return {
        "rows": len(rows),
        "label_1": sum(row["label"] for row in rows),
        **{f"{key}s": len({row[f"{key}_id"] for row in rows}) for key in ("premise", "structure")},
        **{key: dict(sorted(Counter(str(row[key]) for row in rows).items())) for key in ("num_variables", "template")},
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
    for name, row in ((name, row) for name, rows in splits.items() for row in rows):
        digest.update(json.dumps([name, *(row[column] for column in columns)], sort_keys=True).encode())
    return digest.hexdigest()


def make_report(splits: dict, columns: dict, config: DataConfig, source_rows: list[dict], left_out: dict) -> dict:
    """What report.json says; `left_out` (unparsable, over_long, teacher) is part of it."""
    wrong = [row for row in source_rows if row["given_label"] != row["exact"]]
    first_wrong = [{key: row[key] for key in ("row", "given_label", "exact")} for row in wrong[:10]]
    report = {
        "source": f"{HUB_NAME} ({config.hub_config})" if config.source == "hub" else config.source,
        "source_rows": len(source_rows) + len(left_out["unparsable"]),
        "seed": config.seed,
        "dataset_hash": dataset_hash(splits, columns),
        "splits": {name: split_figures(rows) for name, rows in splits.items()},
        "overlap": overlaps(splits),
        "given_label_not_exact": {"rows": len(wrong), "first": first_wrong},
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
    if report["unparsable"]:
        lines.append(f"left out: {len(report['unparsable']):,} rows that cannot be read (report.json names them)")
    if "teacher" in report:
        fates = ", ".join(f"{fate.replace('_', ' ')} {count:,}" for fate, count in report["teacher"].items())
        lines.append(f"teacher completions: {fates}; rows of train without one are left out")
    lines += ["", f"{'split':<11}{'rows':>9}{'label 1':>9}{'premises':>10}{'structures':>12}   rows by variables"]
    for name, split in report["splits"].items():
        sizes = ", ".join(f"N={n}: {rows:,}" for n, rows in split["num_variables"].items())
        share = f"{split['label_1'] / split['rows']:.1%}"
        numbers = f"{split['rows']:>9,}{share:>9}{split['premises']:>10,}{split['structures']:>12,}"
        lines.append(f"{name:<11}{numbers}   {sizes}")
    shared = "; ".join(f"{pair} {n['premises']:,}, {n['structures']:,}" for pair, n in report["overlap"].items())
    lines.append(f"premises, structures in two splits: {shared or 'there is only one split'}")
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


def check_output(path: Path, overwrite: bool) -> None:
    """Refuses a folder with anything in it; with `overwrite`, one with anything that this script has not written."""
    check(path.is_dir() or not path.exists(), f"output_dir: {path} is a file")
    found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    check(
        overwrite or not found,
        f"output_dir: {path} is not empty; name another, or replace a dataset with --overwrite true",
    )
    written = {"dataset_dict.json", "report.json"}
    ours = not found or written <= found <= written | set(SPLITS)
    check(ours, f"output_dir: {path} is not (only) a dataset of this script, so it is not overwritten; name another")


def write_dataset(splits: dict[str, list[dict]], columns: dict, report: dict, path: Path) -> None:
    """Written beside `path` and then renamed: a run that dies leaves what was there."""
    disable_progress_bars()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        new, old = Path(folder) / "new", Path(folder) / "old"
        chosen = {name: [{column: row[column] for column in columns} for row in rows] for name, rows in splits.items()}
        parts = {name: Dataset.from_list(rows, Features(columns)) for name, rows in chosen.items()}
        DatasetDict(parts).save_to_disk(new)
        (new / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if path.exists():
            path.rename(old)
        new.rename(path)


def build(config: DataConfig) -> tuple[dict[str, list[dict]], dict, dict]:
    """({split: rows}, columns, report), nothing written."""
    check_config(config)
    tokenizer = None if config.raw else load_tokenizer(config.tokenizer, config.revision)
    has_template = config.raw or tokenizer.chat_template is not None
    check(has_template, f"tokenizer: {config.tokenizer} has no chat template; use an instruction-tuned model's")
    source_rows, unparsable = label_rows(read_source(config), config)
    splits, left_out = split_rows(source_rows, config), {"unparsable": unparsable}
    if config.target == "teacher":
        train, special = splits.get("train", []), special_tokens(tokenizer)
        splits["train"], left_out["teacher"] = add_teacher(train, Path(config.teacher_file), special)
    for name, rows in splits.items():
        balanced = name == "train" and config.balance == "classes"
        splits[name] = subsample(rows, getattr(config, f"max_{name}_samples"), balanced, f"{config.seed}-{name}")
    if tokenizer is not None:
        splits = {name: add_chat(rows, tokenizer, config) for name, rows in splits.items()}
        splits, left_out["over_long"] = leave_out_long(splits, config.max_length)
    columns = COLUMNS | ({} if config.raw else CHAT_COLUMNS)
    return splits, columns, make_report(splits, columns, config, source_rows, left_out)


def main() -> None:
    config = parse_config(DataConfig)
    output_dir = Path(config.output_dir)
    check_output(output_dir, config.overwrite)
    splits, columns, report = build(config)
    write_dataset(splits, columns, report, output_dir)
    print(summary(report), f"wrote {output_dir} (sha256 {report['dataset_hash'][:12]})", sep="\n\n")


if __name__ == "__main__":
    run_script(main)
