"""Corr2Cause rows, from the hub, a file or the generator, made into a checked, split, chat-templated dataset.

    python preprocess.py --config configs/data_tiny.yaml
    python preprocess.py --source rows.csv --tokenizer Qwen/Qwen2.5-1.5B-Instruct --output_dir data/qwen
    python preprocess.py --source generate --num_variables 2 3 4 5 6 --labels released --raw true --output_dir data/raw
    python preprocess.py --source corrections --predictions evaluation_results/train --output_dir data/corrections
    python preprocess.py --audit rows.csv --output_dir data/audit
    python preprocess.py --source rows.csv --export exported

Every row is parsed, and its label recomputed from the premise's Markov equivalence class. `output_dir` gets a
`datasets.DatasetDict` (train, validation, test, and a test_<perturbation> for each of `perturbations`) of COLUMNS and a
report.json. Without `--raw true` there are also

    prompt    what the chat template writes to ask for an answer (add_generation_prompt)
    response  all that follows when one is given, an empty thought say, up to and including the end-of-turn token

whose tokens are those of the two as one text, with add_special_tokens=False. Rows over `max_length` are left out and
named, never cut.
Source corrections takes a dataset of traces as it is, and mixes its train with a model's traces of the same rows, right
up to their first fault and exact from there on (dataset/corrections.py): column `kept` is what the prompt has of them.
`--audit` writes no dataset but what dataset/audit.py finds: the rows whose label is wrong, with the proof. `--export`
writes the raw rows for others instead, in the layout of the hub and with a card (dataset/export.py).
"""

import json
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, List, Value, disable_progress_bars
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from causal.classes import MAX_VARIABLES
from causal.enumeration import NUM_CLASSES
from causal.questions import QUESTION
from causal.reasoning import STYLES
from causal.released import NUM_RELEASED_CLASSES
from causal.rows import PERTURBATIONS, generate_rows
from causal.vocabulary import DRAWN_WORDINGS
from dataset import audit, export
from dataset.chat import (
    ANSWER_LINES,
    INSTRUCTIONS,
    add_chat,
    add_teacher,
    chat_writer,
    check_reads_english,
    encode_rows,
    leave_out_long,
    special_tokens,
    templated,
)
from dataset.corrections import corrections_of, mixed_with
from dataset.reading import data_config, load_split, split_names
from dataset.report import make_report, summary
from dataset.sources import HUB_CONFIGS, HUB_NAME, claim_of, label_records, read_file, read_hub
from dataset.splits import (
    BALANCE,
    SPLITS,
    STRATEGIES,
    mixed,
    num_alike,
    perturbed,
    reworded,
    split_rows,
    subsample,
)
from runtime.ending import run_script
from runtime.files import check_not_read, check_vacant, check_writable, replacing
from runtime.settings import Settings, arg, check, check_choice, parse_config, seed_arg

EDGES = List(List(Value("int64")))
COLUMNS = {
    **dict.fromkeys(("input", "premise", "hypothesis", "premise_id", "structure_id"), Value("string")),
    **dict.fromkeys(("label", "given_label", "num_variables"), Value("int64")),
    "template": Value("string"),
    "edges": {"directed": EDGES, "undirected": EDGES},
}
CHAT_COLUMNS = {"prompt": Value("string"), "response": Value("string")}
SOURCES = ("generate", "hub", "corrections")  # that are no file
GRPO = "grpo"  # the split of prompts that SFT has not seen
WRITE_BATCH = 2000  # rows


@dataclass
class DataConfig(Settings):
    source: str = arg(
        "generate",
        "generate, hub, corrections, or a .csv, .json or .jsonl file with columns input and label",
        section="rows",
    )
    hub_config: str = arg("default", f"configuration of {HUB_NAME}: {', '.join(HUB_CONFIGS)}", choices=HUB_CONFIGS)
    audit: str | None = arg(None, "a file as of source: check its labels and write what is wrong; no dataset")
    num_variables: list[int] = arg(
        [3, 4],
        f"generate: sizes of the systems, 2 to {MAX_VARIABLES} variables; 7 and more need structures",
        at_least=2,
        at_most=MAX_VARIABLES,
    )
    structures: int | None = arg(
        None, "generate: at most so many classes of each size, at random; null: all (2 to 6)", at_least=1
    )
    max_given: int | None = arg(
        None,
        "generate: premises list conditioning sets of at most so many variables, and only classes that these "
        "determine; null: all sets",
        at_least=1,
    )
    relabelings: list[int] = arg(
        [0],
        "generate: random relabelings a class, or a number for each of num_variables; 0: the released letters, in "
        "topological order",
        at_least=0,
    )
    wordings: list[str] = arg(
        [],
        f"rows in the words of these, drawn at random: {', '.join(DRAWN_WORDINGS)}; none: as they are",
        choices=DRAWN_WORDINGS,
    )
    predictions: list[str] = arg(
        [],
        "corrections: directories that evaluate.py wrote of split train of a dataset of traces",
    )
    correction_share: float = arg(
        0.5, "corrections: their share of train; the others are plain rows", above=0, at_most=1
    )
    labels: str = arg("exact", "column `label`: exact, given (the source's), released (generate: as the public rows)")
    skip_unparsable: bool = arg(False, "leave out and count rows that have no such label, instead of stopping")

    tokenizer: str = arg(
        "tiny", "model or tokenizer: hub name, folder, or tiny (embedded)", section="prompt and response"
    )
    revision: str | None = arg(None, "the tokenizer's revision on the hub")
    raw: bool = arg(False, "write the task's columns alone, without prompt and response; needs no tokenizer")
    target: str = arg(
        "answer",
        "response: answer (that line alone), trace (exact reasoning) or teacher (teacher_file)",
        choices=INSTRUCTIONS,
    )
    trace_style: str = arg("compact", f"target trace: {' or '.join(STYLES)}", choices=STYLES)
    teacher_file: str | None = arg(None, "target teacher: .jsonl with input, completion and finish_reason")
    instruction: str | None = arg(None, "text before the premise, so that claims share a prefix; null: by target")
    chat_template_args: dict = arg(
        {}, "of the chat template, as enable_thinking=false; strftime_now=2025-01-31 is the day that it writes as today"
    )
    max_length: int = arg(1024, "longest prompt + response, in tokens; longer rows are left out", at_least=1)

    split: str = arg(
        "auto",
        "premise, structure, size, released (public recipe), given; auto: given, else premise (structure, where "
        "generated rows are exported)",
        choices=STRATEGIES,
        section="splits",
    )
    test_sizes: list[int] = arg([], "split size: numbers of variables of test; train and validation have the others")
    train_sizes: list[int] = arg([], "numbers of variables that are all train: too few structures to set some aside")
    validation_fraction: float = arg(0.1, "share of premises or structures in validation; 0: no such split")
    test_fraction: float = arg(0.1, "share of premises or structures in test; 0: no such split")
    max_train_samples: int | None = arg(None, "rows of train, a random choice; null: all", at_least=1)
    max_grpo_samples: int | None = arg(
        None,
        "rows of a further split grpo, prompts for train_grpo.py that train does not have; null: no such split",
        at_least=1,
    )
    max_validation_samples: int | None = arg(None, "rows of validation, a random choice; null: all", at_least=1)
    max_test_samples: int | None = arg(None, "rows of test, a random choice; null: all", at_least=1)
    balance: list[str] = arg([], f"train: columns to balance, of {', '.join(BALANCE)}", choices=BALANCE)
    train_mix: list[float] = arg(
        [], "shares of max_train_samples for each of num_variables; none: a random choice", at_least=0
    )
    repeat_rows: bool = arg(
        False, "with train_mix: fill the share of a number of variables that has too few rows with copies of them"
    )
    perturbations: list[str] = arg(
        [], f"more test sets, test_<perturbation>: {', '.join(PERTURBATIONS)}", choices=PERTURBATIONS
    )
    seed: int = seed_arg("of the relabelings, the splits and the random choices")

    output_dir: str = arg("data/corr2cause", "dataset folder to write", section="output")
    export: str | None = arg(
        None, "instead, a folder for the raw rows in the layout of the hub, with both labels and a card; hub: all of it"
    )
    overwrite: bool = arg(False, "replace output_dir or export if a dataset of this script is there")


# What one source reads and no other does.
OF_SOURCE = {
    "generate": ("structures", "max_given", "relabelings"),
    "hub": ("hub_config",),
    "corrections": ("correction_share",),
}


def unread_fractions(config: DataConfig, rows: Iterable[dict] = ()) -> tuple[str, list[str]]:
    """The split that is made, and the fractions that it does not read. `rows` may have splits of their own."""
    own = config.split == "auto" and (config.source == "hub" or any(row.get("split") for row in rows))
    split, both = "given" if own else config.split, ["validation_fraction", "test_fraction"]
    return split, {"given": both, "released": both, "size": both[1:]}.get(split, [])


def check_fractions(config: DataConfig, rows: Iterable[dict] = ()) -> None:
    """Raises ValueError for fractions that the user has set and nothing would read."""
    split, unread = unread_fractions(config, rows)
    reasons = {"given": "has the rows' own splits", "size": "has test_sizes for test"}
    reason = f"split {split} {reasons.get(split, 'has its own rule')}"
    config.check_unread(unread, f"{reason}; add --split premise, or leave it out")


def check_config(config: DataConfig) -> None:
    """Raises ValueError for settings that contradict each other, or that nothing would read."""
    corrects = config.source == "corrections"
    check(corrects == bool(config.predictions), "predictions: source corrections needs them, and no other source does")
    given = config.changed()
    for source, names in OF_SOURCE.items():
        if source != config.source:
            config.check_unread(names, f"only source {source} reads that, not {config.source}; leave it out")
    allowed = ("exact", "released") if config.source == "generate" else ("exact", "given")
    check_choice(f"labels (source {config.source})", config.labels, allowed)
    sized = config.source == "generate" or corrects or "num_variables" not in given or bool(config.train_mix)
    check(sized, f"num_variables: {config.source} has the sizes that it has; leave it out, or add train_mix")
    fractions = config.validation_fraction, config.test_fraction
    check(min(fractions) >= 0 and sum(fractions) <= 1, "validation_fraction, test_fraction: expected 0 to 1 in all")
    check(len(config.num_variables) > 0, f"num_variables: name at least one size, 2 to {MAX_VARIABLES}")
    for n in config.num_variables:
        sampled = config.structures is not None and config.labels == "exact"
        check(n in NUM_CLASSES or sampled, f"num_variables: {n} has too many classes to list; set structures")
    check((config.split == "size") == bool(config.test_sizes), "test_sizes: split size needs them, no other split does")
    shared_out = config.split not in ("given", "released") or not config.train_sizes
    check(shared_out, f"train_sizes: split {config.split} has its own rule; set split premise, structure or size")
    both = sorted(set(config.train_sizes) & set(config.test_sizes))
    check(not both, f"train_sizes, test_sizes: {both} cannot be both")
    check_fractions(config)
    sizes = len(config.num_variables)
    for name, allowed in (("relabelings", (1, sizes)), ("train_mix", (0, sizes))):
        fits = len(getattr(config, name)) in allowed
        check(fits, f"{name}: give a number for each of num_variables, {sizes} of them")
    if config.train_mix:
        enough = config.max_train_samples is not None and sum(config.train_mix) > 0
        check(enough, "train_mix: needs max_train_samples, and a share above 0")
        check("num_variables" not in config.balance, "train_mix: leave num_variables out of balance")
    check(not config.repeat_rows or bool(config.train_mix), "repeat_rows: train_mix has the shares that copies fill")
    has_file = config.teacher_file is not None
    check((config.target == "teacher") == has_file, "target teacher needs teacher_file, and no other target has it")
    worded = has_file and bool(config.wordings)
    check(not worded, "wordings: a teacher's texts have their rows' words; leave wordings out, or set target trace")
    check(config.target != "trace" or config.labels == "exact", "target trace ends in the exact answer: labels exact")
    bare = "export" if config.export is not None else "raw" if config.raw else ""
    check(not bare or config.target == "answer", f"{bare} writes no response: set target answer, not {config.target}")
    if config.export is not None:
        check(not corrects, "export: corrections are texts of a model; name the source of the rows that they are of")
        whole = config.source != "hub" or config.hub_config == HUB_CONFIGS[0]
        check(whole, "export: source hub writes all of its configurations; leave hub_config out")


# ---------------------------------------------------------------- rows


def generated_rows(config: DataConfig) -> Iterator[dict]:
    """The rows of every size in `num_variables`, in order."""
    counts = config.relabelings * (len(config.num_variables) if len(config.relabelings) == 1 else 1)
    for n, count in dict(zip(config.num_variables, counts, strict=True)).items():
        seed = config.seed if count else None
        yield from generate_rows(
            n, config.labels, seed, max(1, count), config.structures, config.seed, config.max_given
        )


def expected_rows(config: DataConfig) -> int | None:
    """How many rows will be generated; None where that depends on the classes."""
    counts = NUM_RELEASED_CLASSES if config.labels == "released" else NUM_CLASSES
    sizes = dict.fromkeys(config.num_variables)
    if max(config.relabelings) > 1 or config.max_given is not None:
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
    rows, unlabelled = label_records(progress(records, "read"), config.labels, config.skip_unparsable)
    check(len(rows) + len(unlabelled) > 0, f"source: {config.source}: no rows in it")
    check(len(rows) > 0, f"source: {config.source}: no row could be read: {unlabelled[:1]}")
    return rows, unlabelled


def progress(items: Iterable[dict], name: str, total: int | None = None) -> Iterator[dict]:
    """The items, with a progress bar on a terminal."""
    return tqdm(items, desc=name, total=total, unit=" rows", mininterval=0.5, disable=None)


# ---------------------------------------------------------------- corrections

FORM = (  # of a dataset's texts
    "tokenizer", "revision", "target", "trace_style", "instruction", "chat_template_args", "max_length",
)  # fmt: skip
OF_MIXTURE = {"source", "predictions", "correction_share", "max_train_samples", "seed", "output_dir", "overwrite"}


def build_corrections(config: DataConfig) -> tuple[dict[str, list[dict]], dict, dict]:
    """As `build`, of the dataset that the predictions are of."""
    from policy.loading import load_tokenizer  # seconds to import, as the next one
    from scoring.results import read_results

    read = {directory: read_results(directory, "predictions") for directory in config.predictions}
    names = sorted({results.get("dataset") or "" for results, _ in read.values()})
    one = len(names) == 1 and names[0] != ""
    check(one, f"predictions: all must be of one dataset of preprocess.py, found {', '.join(filter(None, names))}")
    form = data_config(names[0], "predictions", "answer a dataset of preprocess.py")
    traces = form["target"] == "trace"
    check(traces, f"predictions: dataset {names[0]} has target {form['target']}; there are corrections of traces alone")
    as_there = {name for name in FORM if getattr(config, name) == form.get(name)}
    unread = sorted(config.changed() - OF_MIXTURE - as_there)
    config.check_unread(unread, f"corrections are as their dataset {names[0]} is; leave that out")
    check_not_read(Path(config.output_dir), names[0])
    config = replace(config, **{name: form[name] for name in FORM if name in form})
    tokenizer = load_tokenizer(config.tokenizer, config.revision)
    check(tokenizer.is_fast, f"tokenizer: {config.tokenizer} is no fast one, which tells where a kept part ends")
    splits = {name: list(load_split(names[0], name)) for name in split_names(names[0])}
    for name, rows in splits.items():
        splits[name] = [row | {"row": f"row {k} of {name}", "kept": ""} for k, row in enumerate(rows)]
    answers = ((directory, answer) for directory, (_, rows) in read.items() for answer in rows)
    corrections, fates = corrections_of(splits["train"], progress(answers, "correct"), config.trace_style)
    splits["train"] = mixed_with(
        corrections, splits["train"], config.correction_share, config.max_train_samples, config.seed
    )
    for rows in splits.values():
        texts = {name: [row[name] for row in rows] for name in ("prompt", "response", "kept")}
        for row, *pair in zip(rows, *encode_rows(tokenizer, texts), strict=True):
            row |= {"tokens": tuple(map(len, pair)), "exact": row["label"]}
    splits, over_long = leave_out_long(splits, config.max_length)
    columns = COLUMNS | CHAT_COLUMNS | {"kept": Value("string")}
    left_out = {"unparsable": [], "corrections": fates, "over_long": over_long}
    return splits, columns, make_report(splits, columns, asdict(config), splits["train"], left_out)


# ---------------------------------------------------------------- output

PARTS = ("data-*.arrow", "dataset_info.json", "state.json")  # of a split, as `datasets` writes it


def check_output(
    path: Path,
    config: DataConfig,
    files: set[str],
    folders: Iterable[str] = (),
    inside: Iterable[str] = (),
    setting: str = "output_dir",
) -> None:
    """Refuses a folder that is read, and one with anything in it; with `overwrite`, one with anything that this script
    has not written: `files`, and `folders` of what is named like one of the patterns `inside`."""
    check_vacant(
        path, config.overwrite, "name another, or replace what this script wrote with --overwrite true", setting
    )
    source = None if config.source in SOURCES else config.source
    read = filter(None, [source, config.audit, config.teacher_file, *config.predictions])
    check_not_read(path, *read, setting=setting)
    found = set(path.iterdir()) if path.is_dir() else set()
    folders = {entry for entry in found if entry.name in set(folders) and entry.is_dir()}
    within = [part for folder in folders for part in folder.iterdir()]
    ours = files == {entry.name for entry in found - folders}
    ours = ours and all(part.is_file() and any(map(part.match, inside)) for part in within)
    remedy = "so it is not overwritten; name another"
    check(ours or not found, f"{setting} {path}: has files that are not of this script, {remedy}")
    check_writable(path.parent, f"{setting} {path}")


def on_disk(rows: list[dict], columns: dict, file: Path) -> Dataset:
    """Batch by batch, so that the full set of rows does not stand in memory twice."""
    with ArrowWriter(features=Features(columns), path=str(file)) as writer:
        for start in range(0, len(rows), WRITE_BATCH):
            batch = rows[start : start + WRITE_BATCH]
            writer.write_batch({column: [row[column] for row in batch] for column in columns})
        writer.finalize()
    return Dataset.from_file(str(file))


def write_dataset(splits: dict[str, list[dict]], columns: dict, report: dict, path: Path) -> None:
    """Into the directory `path`, which is there and empty or not there."""
    disable_progress_bars()
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path, prefix=".") as folder:
        parts = {name: on_disk(rows, columns, Path(folder) / f"{name}.arrow") for name, rows in splits.items()}
        DatasetDict(parts).save_to_disk(path)
    (path / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def set_aside(train: list[dict], count: int, seed: int) -> tuple[list[dict], list[dict]]:
    """The rows of train without `count` of them, a random choice, and these: prompts for GRPO that it does not have.

    Rows that ask the same as one of these, in whatever words, are in neither.
    """
    check(count < len(train), f"max_grpo_samples: leaves nothing of the {len(train)} rows for train; lower it")
    given = subsample(train, count, [], f"{seed}-{GRPO}")
    taken = set(map(claim_of, given))  # which may stand in a file twice
    return [row for row in train if claim_of(row) not in taken], given


def build(config: DataConfig) -> tuple[dict[str, list[dict]], dict, dict]:
    """({split: rows}, columns, report), nothing written."""
    check_config(config)
    if config.source == "corrections":
        return build_corrections(config)
    tokenizer = None
    if not config.raw:
        from policy.loading import load_tokenizer  # torch: seconds to import, and raw does not need it

        tokenizer = load_tokenizer(config.tokenizer, config.revision)
        special = special_tokens(tokenizer)
        for setting in ("wordings", "perturbations"):
            check_reads_english(tokenizer, setting, getattr(config, setting))
        # What the template cannot do is said before the rows are read.
        templated(chat_writer(tokenizer, config.chat_template_args), QUESTION, ANSWER_LINES[0], special)
    source_rows, unparsable = labelled_rows(config)
    check_fractions(config, source_rows)
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    splits = split_rows(source_rows, config.split, fractions, config.seed, config.test_sizes, config.train_sizes)
    left_out = {"unparsable": unparsable}
    if config.target == "teacher":
        teacher_file = Path(config.teacher_file)
        splits["train"], left_out["teacher"] = add_teacher(splits.get("train", []), teacher_file, special)
    if config.max_grpo_samples is not None:  # before train is balanced: prompts of GRPO are as those it is for
        train = splits.get("train", [])
        splits["train"], splits[GRPO] = set_aside(train, config.max_grpo_samples, config.seed)
        left_out["asked_in_grpo"] = len(train) - len(splits["train"]) - len(splits[GRPO])
    for name in (name for name in SPLITS if name in splits):
        balance, cap = (config.balance if name == "train" else []), getattr(config, f"max_{name}_samples")
        if name == "train" and config.train_mix:
            mix = dict(zip(config.num_variables, config.train_mix, strict=True))
            others = sorted({row["num_variables"] for row in splits[name]} - set(mix))
            remedy = "name them in num_variables too, with a share each (0: none of them)"
            check(not others, f"train_mix: train has rows of {', '.join(map(str, others))} variables; {remedy}")
            splits[name] = mixed(splits[name], cap, mix, balance, f"{config.seed}-{name}", config.repeat_rows)
        else:
            splits[name] = subsample(splits[name], cap, balance, f"{config.seed}-{name}")
    if config.wordings:
        splits = {name: reworded(rows, config.wordings, config.seed) for name, rows in splits.items()}
    raised = "test_fraction" not in unread_fractions(config, source_rows)[1]
    remedy = "; raise test_fraction" if raised else ", and column split names none; name one, or add --split premise"
    check(not config.perturbations or "test" in splits, f"perturbations: they need a test split{remedy}")
    for kind in config.perturbations:
        splits[f"test_{kind}"] = perturbed(splits["test"], kind, config.seed)
    alike = {kind: num_alike(splits["test"], splits[f"test_{kind}"]) for kind in config.perturbations}
    left_out["as_in_test"] = {kind: count for kind, count in alike.items() if count}
    if tokenizer is not None:
        form = {name: getattr(config, name) for name in ("target", "trace_style", "instruction", "chat_template_args")}
        splits = {n: add_chat(progress(rows, "tokenize"), tokenizer, **form) for n, rows in splits.items()}
        splits, left_out["over_long"] = leave_out_long(splits, config.max_length)
    columns = COLUMNS | ({} if config.raw else CHAT_COLUMNS)
    return splits, columns, make_report(splits, columns, asdict(config), source_rows, left_out)


# ---------------------------------------------------------------- export


def export_rows(config: DataConfig, path: Path) -> dict[str, dict]:
    """Write the raw rows of `source` to the directory `path`; {configuration: report}."""
    if config.split == "auto" and config.source == "generate":
        config = replace(config, split="structure")
    config = replace(config, raw=True)
    splits, _, report = build(config)
    if config.split == "auto":
        given = any(row.get("split") for rows in splits.values() for row in rows)
        config = replace(config, split="given" if given else "premise")
    found, reports = {"default": {}}, {"default": report}
    for name, rows in splits.items():  # a perturbed test set is a configuration, as on the hub
        kind = name.removeprefix("test_")
        found.setdefault("default" if kind == name else kind, {})[name if kind == name else "test"] = rows
    if config.source == "hub":
        for name in HUB_CONFIGS[1:]:
            own = {"hub_config": name, "split": "given", "perturbations": [], "max_grpo_samples": None, "export": None}
            own |= {share: getattr(DataConfig, share) for share in ("validation_fraction", "test_fraction")}
            found[name], _, reports[name] = build(replace(config, **own))
    columns = export.columns_of(COLUMNS)
    disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=path, prefix=".") as folder:
        parts = {}
        for name, of_split in found.items():
            parts[name] = {}
            for split, rows in of_split.items():
                file = Path(folder) / f"{name}-{split}.arrow"
                parts[name][split] = on_disk(list(map(export.with_both_labels, rows)), columns, file)
        export.write_export(parts, reports, asdict(config), command_of(config), path)
    return reports


def command_of(config: DataConfig) -> str:
    """The command that makes these rows again, without the user's places, and without settings of prompts."""
    default, words = export.public(asdict(DataConfig())), ["python", "preprocess.py"]
    for name, value in export.public(asdict(config)).items():
        if name not in ("raw", *FORM) and value != default[name]:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([*words, "--export", "DIR"])


def main() -> None:
    config = parse_config(DataConfig)
    check(config.audit is None or config.export is None, "export: an audit writes no rows; leave one of them out")
    output_dir = Path(config.output_dir)
    if config.audit is not None:
        unread = sorted(config.changed() - {"audit", "output_dir", "overwrite"})
        config.check_unread(unread, "an audit reads the rows of its file alone; leave that out")
        check_output(output_dir, config, set(audit.FILES))
        with replacing(output_dir) as new:
            records = list(read_file(Path(config.audit), "audit"))
            check(len(records) > 0, f"audit: {config.audit}: no rows in it")
            found = audit.write_audit(progress(records, "audit"), new)
        print(audit.audit_table(found), f"wrote {output_dir}: {', '.join(audit.FILES)}", sep="\n\n")
        return
    if config.export is not None:
        path, configurations = Path(config.export), {"default", *HUB_CONFIGS, *PERTURBATIONS}
        check_output(path, config, set(export.FILES), configurations, export.INSIDE, "export")
        with replacing(path) as new:
            reports = export_rows(config, new)
        print(*map(summary, reports.values()), sep="\n\n", end="\n\n")
        print(f"wrote {path}: {', '.join(export.FILES)} and parquet files, for datasets.load_dataset({str(path)!r})")
        return
    folders = {*SPLITS, GRPO, *(f"test_{kind}" for kind in PERTURBATIONS)}
    check_output(output_dir, config, {"dataset_dict.json", "report.json"}, folders, PARTS)
    with replacing(output_dir) as new:  # from here on: rows take a while, and a second run is not to lose them
        splits, columns, report = build(config)
        write_dataset(splits, columns, report, new)
    print(summary(report), f"wrote {output_dir} (sha256 {report['dataset_hash'][:12]})", sep="\n\n")


if __name__ == "__main__":
    run_script(main)
