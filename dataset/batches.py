"""Datasets on disk to training batches: groups of rows with one premise, shuffled by a function of (seed, epoch)."""

import json
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from causal import wording
from causal.answers import extract_answer
from causal.reasoning import trace
from causal.rows import perturb
from dataset.chat import encode
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset


def load_split(directory: str, split: str, both_answers: bool = False, texts: bool = True) -> "Dataset":
    """A split of a dataset that preprocess.py wrote, of which every row has a prompt, a response and a label.

    Without `texts` a label is enough. Raises ValueError if that is not so, and with `both_answers` if all labels agree.
    """
    check((Path(directory) / "dataset_dict.json").is_file(), f"dataset {directory}: not a dataset of preprocess.py")
    from datasets import load_from_disk  # seconds to import, which wrong settings need not wait for

    try:
        dataset = load_from_disk(directory)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"dataset {directory}: cannot be read ({reason}); write it again by preprocess.py") from None
    place = f"split {split}: dataset {directory}"
    check(split in dataset, f"{place} has {', '.join(dataset)}; preprocess.py makes the splits")
    rows = dataset[split]
    has_texts = "prompt" in rows.column_names
    check(has_texts or not texts, f"dataset {directory} was written with raw true: run preprocess.py with a tokenizer")
    check(len(rows) > 0, f"{place} has no rows in it; write it again by preprocess.py")
    labels = set(rows["label"])
    check(labels <= {0, 1}, f"{place} has labels {sorted(map(str, labels))[:4]}, not 0 or 1")
    columns = ("prompt", "response") if texts else ()
    empty = [k for column in columns for k, text in enumerate(rows[column]) if not text]
    check(not empty, f"{place}: row {empty[:1]} has no prompt or no response; write it again by preprocess.py")
    check(not both_answers or len(labels) == 2, f"{place}: every label is {min(labels, default=0)}; nothing to learn")
    return rows


def choose_rows(rows: "Dataset", count: int, seed: int) -> "Dataset":
    """At most `count` rows, in their order: a random choice, since the first ones are the claims of a few premises."""
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows)))))


def read_report(directory: str) -> dict:
    """What preprocess.py has written of a dataset in its report.json; empty if there is none."""
    report = Path(directory) / "report.json"
    try:
        return dict(json.loads(report.read_text())) if report.is_file() else {}
    except (ValueError, TypeError):
        raise ValueError(f"dataset {directory}: report.json cannot be read; write it again by preprocess.py") from None


def data_config(directory: str, setting: str, remedy: str) -> dict:
    """The configuration that preprocess.py wrote the dataset with; a ValueError names `setting`, which needs it."""
    report = read_report(directory)
    check(bool(report), f"{setting}: dataset {directory} has no report.json, which names its target; {remedy}")
    return report["config"]


def dataset_hash(directory: str) -> str:
    """The SHA-256 of its rows that preprocess.py has written beside them; unknown without one."""
    return read_report(directory).get("dataset_hash", "unknown")


def trace_style(directory: str) -> str | None:
    """The style of the dataset's traces; None if its responses are answers alone.

    Raises ValueError if they are neither: letters in a teacher's free text cannot be told from words.
    """
    config = data_config(directory, "relabel_each_epoch", "use relabel_each_epoch false")
    check(config["target"] != "teacher", "relabel_each_epoch: not for target teacher; use target answer or trace")
    return config["trace_style"] if config["target"] == "trace" else None


def answer_candidates(directory: str, rows: "Dataset | dict", setting: str, remedy: str) -> list[tuple[str, str]]:
    """(No, Yes) for every row: its response, and the same with the answer swapped, whichever of them is the target.

    Raises ValueError, naming `setting` and `remedy`, unless the responses are answers alone: given only the prompt, the
    answer line that ends a reasoning is not what a model of reasoning was trained to say.
    """
    target = data_config(directory, setting, remedy)["target"]
    check(target == "answer", f"{setting}: dataset {directory} has target {target}, not answers alone; {remedy}")
    pairs = {}
    for response in set(rows["response"]):
        (no, count), (yes, _) = (re.subn(r"\b(?:Yes|No)\b", answer, response) for answer in ("No", "Yes"))
        readable = count == 1 and extract_answer(no) is False and extract_answer(yes) is True
        text = f"the response {response[:80]!r} of dataset {directory}"
        check(readable, f"{setting}: {text} is not one Yes or No; {remedy}")
        pairs[response] = no, yes
    return [pairs[response] for response in rows["response"]]


def relabel_rows(rows: "Dataset", style: str | None, seed: int, epoch: int) -> dict[str, list[str]]:
    """Columns prompt, response, premise and hypothesis with the letters of every premise exchanged at random.

    A function of (seed, epoch, premise): rows of one premise stay together, and an epoch repeats itself. Labels stay;
    a trace of `style` is written anew. Raises ValueError for a row whose prompt or response has other text in it.
    """
    columns: dict[str, list[str]] = {"prompt": [], "response": [], "premise": [], "hypothesis": []}
    parse = cache(wording.parse_premise)
    for row in rows:
        check(row["input"] in row["prompt"], f"relabel_each_epoch: the prompt does not hold its input {row['input']!r}")
        premise = parse(row["premise"])
        claim = wording.parse_hypothesis(row["hypothesis"], premise.variables)
        key = f"{seed}-{epoch}-{row['premise_id']}"
        text, hypothesis = perturb(premise, claim, row["template"], "relabeling", key)
        response = row["response"]
        if style is not None:
            old = trace(premise, claim, style)
            check(old in response, f"relabel_each_epoch: the response to {row['input']!r} is not its trace")
            new = trace(parse(text), wording.parse_hypothesis(hypothesis, premise.variables), style)
            response = response.replace(old, new)
        columns["prompt"].append(row["prompt"].replace(row["input"], wording.write_input(text, hypothesis)))
        columns["response"].append(response)
        columns["premise"].append(text)
        columns["hypothesis"].append(hypothesis)
    return columns


def encode_rows(tokenizer, rows: "Dataset | dict") -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of every row's prompt and target, encoded apart so that sampling sees the same prompt."""
    return [encode(tokenizer, text) for text in rows["prompt"]], [encode(tokenizer, text) for text in rows["response"]]


def premise_groups(premise_ids: Sequence[str], size: int, rng: random.Random | None = None) -> list[list[int]]:
    """Row indices grouped by premise, at most `size` a group; with `rng`, rows within a premise are shuffled first."""
    by_premise: dict[str, list[int]] = {}
    for index, premise in enumerate(premise_ids):
        by_premise.setdefault(premise, []).append(index)
    groups = []
    for rows in by_premise.values():
        if rng is not None:
            rng.shuffle(rows)
        groups += [rows[start : start + size] for start in range(0, len(rows), size)]
    return groups


def epoch_batches(
    premise_ids: Sequence[str], seed: int, epoch: int, claims_per_prefix: int, batch_size: int
) -> list[list[list[int]]]:
    """The optimizer steps of an epoch, each a list of premise groups of row indices with `batch_size` rows together.

    A function of its arguments alone, so that a position in the data is just (epoch, step). A last step with fewer
    rows is kept: losses are normalised by what a step holds. A group is cut where a step is full.
    """
    rng = random.Random(f"{seed}-{epoch}")
    groups = premise_groups(premise_ids, claims_per_prefix, rng)
    rng.shuffle(groups)
    steps: list[list[list[int]]] = [[]]
    room = batch_size
    for group in groups:
        while group:
            if room == 0:
                steps.append([])
                room = batch_size
            steps[-1].append(group[:room])
            group, room = group[room:], room - len(steps[-1][-1])
    return steps


def share_of_rank(
    groups: list[list[int]], rank: int, world_size: int, cost: Callable[[list[int]], int] = len
) -> list[list[int]]:
    """The groups of a step that this rank computes: about equal in summed `cost`, every row on exactly one rank.

    Groups are split where there are fewer than ranks; a rank gets nothing only if there are fewer rows than ranks.
    """
    groups = [list(group) for group in groups]
    while len(groups) < world_size and max(map(len, groups)) > 1:
        longest = groups.pop(max(range(len(groups)), key=lambda g: len(groups[g])))
        groups += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
    shares: list[list[list[int]]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for weight, group in sorted(((cost(group), group) for group in groups), key=lambda pair: -pair[0]):
        least = loads.index(min(loads))
        shares[least].append(group)
        loads[least] += weight
    return shares[rank]
