"""preprocess.py --export: what `datasets.load_dataset` finds in the folder, and what its card says of it."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from datasets import get_dataset_config_names, load_dataset
from datasets.utils.metadata import known_task_ids
from huggingface_hub import DatasetCard
from made_up import write_jsonl
from sklearn.metrics import accuracy_score, f1_score

import preprocess
from causal import wording
from causal.classes import LETTERS, Premise
from causal.rows import PERTURBATIONS, generate_rows
from dataset.sources import HUB_CONFIGS, HUB_NAME, LABEL_2
from preprocess import DataConfig, build
from runtime.settings import parse_config

FLIPPED = (2, 50, 100)


@pytest.fixture
def export(monkeypatch, tmp_path):
    """Run the script and return the folder, and a function that loads it as anybody would."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "exported"

    def export(*arguments):
        words = ["preprocess.py", *map(str, arguments), "--export", str(folder)]
        monkeypatch.setattr(sys, "argv", words)
        preprocess.main()
        return folder, lambda *name: load_dataset(str(folder), *name, cache_dir=str(tmp_path / "cache"))

    return export


@pytest.fixture(scope="module")
def records() -> list[dict]:
    """Rows of N = 3 under several letters with three wrong labels, and one that no graph satisfies."""
    rows = list(generate_rows(3, relabel_seed=5, relabelings=6))
    records = [{"input": row["input"], "label": row["label"] ^ (k in FLIPPED)} for k, row in enumerate(rows)]
    odd = Premise(LETTERS[:3], frozenset({(0, 1, 4), (1, 2, 1)}))
    return [*records, {"input": wording.write_input(wording.write_premise(odd), "A directly causes B."), "label": 1}]


def tables(folder: Path) -> dict[str, list[list[str]]]:
    """The card's tables by two words of their headers, as cells."""
    blocks = re.findall(r"((?:^\|.*\|$\n?)+)", (folder / "README.md").read_text(), re.MULTILINE)
    cells = [[line.strip("| ").replace("`", "").split(" | ") for line in block.splitlines()] for block in blocks]
    return {" ".join(" ".join(header).split()[:2]): lines for header, _, *lines in cells}


def numbers(cells: list[str]) -> list[float]:
    return [float(cell.split(" ")[0].replace(",", "")) for cell in cells]


def check_card(folder: Path, load) -> None:
    """Every count and score of the card, once more from the rows that are loaded; the header as the hub wants it."""
    found = tables(folder)
    of_default = load()
    for name, split, *counts, by_size in found["configuration split"]:
        frame = load(name)[split].to_pandas()
        expected = [len(frame), frame.label.sum(), frame.premise_id.nunique(), frame.structure_id.nunique()]
        assert numbers(counts) == expected, (name, split)
        sizes = frame.num_variables.value_counts().sort_index()
        assert by_size == ", ".join(f"{n}: {rows:,}" for n, rows in sizes.items())
    rows = [row for part in of_default.values() for row in part]
    wrong = [(row["num_variables"], wording.RELATION_OF[row["template"]]) for row in rows if row["given_label_wrong"]]
    for n, relation, _, *counts in found.get("variables relation", []):
        assert sum(numbers(counts)) == wrong.count((int(n), relation))
    assert sum(sum(numbers(line[3:])) for line in found.get("variables relation", [])) == len(wrong)
    assert ("split wrong" in found) == (len(wrong) > 0)
    for split, *scores in found.get("split wrong", []):
        both = [(r["given_label"], r["exact_label"]) for r in of_default[split] if r["exact_label"] is not None]
        given, exact = zip(*both, strict=True)
        expected = [sum(a != b for a, b in both), f1_score(given, exact), accuracy_score(given, exact)]
        assert numbers(scores) == pytest.approx(expected, abs=6e-4)
    header = DatasetCard.load(folder / "README.md").data
    assert set(header.task_categories) <= known_task_ids.keys() and header.language == "en"
    listed = {config["config_name"] for config in header.configs}
    assert listed == set(get_dataset_config_names(str(folder))) == {line[0] for line in found["configuration split"]}
    explained = {name for line in found["column what"] for name in line[0].split(", ")}
    assert explained == set(rows[0]), "the card explains every column"


@pytest.mark.parametrize("labels", ["exact", "given"])
def test_a_file(export, tmp_path, records, labels):
    source = write_jsonl(tmp_path / "rows.jsonl", records)
    options = ("--source", source, "--labels", labels, "--perturbations", *PERTURBATIONS, "--seed", 3)
    folder, load = export(*options, *(["--skip_unparsable", "true"] if labels == "exact" else []))
    config = {"labels": labels, "perturbations": list(PERTURBATIONS), "seed": 3, "skip_unparsable": True, "raw": True}
    splits, _, _ = build(DataConfig(source=str(source), **config))
    loaded = load()
    assert set(loaded) == {"train", "validation", "test"}
    for name, rows in splits.items():
        kind = name.removeprefix("test_")
        part = load(kind)["test"] if kind != name else loaded[name]
        for row, other in zip(rows, part, strict=True):
            assert {key: row[key] for key in ("row", *preprocess.COLUMNS)}.items() <= other.items()
            assert other["exact_label"] == row["exact"]
            unknown = row["exact"] is None
            assert other["given_label_wrong"] == (None if unknown else row["given_label"] != row["exact"])
    every = [row for part in loaded.values() for row in part]
    assert {row["row"] for row in every if row["given_label_wrong"]} == {f"row {k}" for k in FLIPPED}
    assert [row["row"] for row in every if row["exact_label"] is None] == (["row 198"] if labels == "given" else [])
    check_card(folder, load)
    text = (folder / "README.md").read_text() + (folder / "report.json").read_text()
    assert str(tmp_path) not in text, "the places of a user are nobody's business"
    assert ("1 rows of `default` without an exact label are left out" in text) == (labels == "exact")
    assert DatasetCard.load(folder / "README.md").data.license == "unknown" and "name it above before" in text


def test_the_hub_with_all_its_configurations(export, monkeypatch, records):
    """Its own splits, and its perturbed sets beside them, in which label 2 is a 0."""

    def read_hub(name):
        splits = ("train", "dev", "test") if name == "default" else ("test",)
        for k, record in enumerate(records):
            more = {LABEL_2: True} if name == HUB_CONFIGS[1] and record["label"] == 0 and k % 2 else {}
            yield record | more | {"split": splits[k % len(splits)], "row": f"row {k} of {splits[k % len(splits)]}"}

    monkeypatch.setattr(preprocess, "read_hub", read_hub)
    options = ("--source", "hub", "--skip_unparsable", "true", "--overwrite", "true")
    folder, load = export(*options, "--split", "premise", "--test_fraction", "0.4")
    assert set(load()) == {"train", "validation", "test"} and set(load(HUB_CONFIGS[1])) == {"test"}, "as it is there"
    folder, load = export(*options)
    assert set(get_dataset_config_names(str(folder))) == set(HUB_CONFIGS)
    assert set(load()) == {"train", "validation", "test"} and set(load(HUB_CONFIGS[1])) == {"test"}
    check_card(folder, load)
    text = (folder / "README.md").read_text()
    assert f"rows of `{HUB_CONFIGS[1]}` had label 2" in text and f"rows of `{HUB_CONFIGS[2]}` had" not in text
    header = DatasetCard.load(folder / "README.md").data
    assert (header.license, header.source_datasets) == ("unknown", [HUB_NAME])
    assert "three mistakes" in text and "a perfect reasoner has 0.952" in text, "beside the published figures"


def test_generated_rows_are_split_by_structure_and_made_again_by_the_command_of_the_card(export, monkeypatch):
    folder, load = export("--num_variables", 3, 4, "--relabelings", 4, "--max_train_samples", 500)
    first = load()
    ids = [set(part["structure_id"]) for part in first.values()]
    assert sum(map(len, ids)) == len(set.union(*ids)) and len(ids) == 3
    check_card(folder, load)
    text = (folder / "README.md").read_text()
    assert "None: all of the" in text and DatasetCard.load(folder / "README.md").data.license == "mit"
    command = shlex.split(re.search(r"```bash\n(.+)\n```", text)[1])
    assert command[:2] == ["python", "preprocess.py"] and command[-2:] == ["--export", "DIR"]
    export(*command[2:-2], "--overwrite", "true")
    assert (folder / "README.md").read_text() == text
    assert {name: part["input"][:] for name, part in load().items()} == {n: p["input"][:] for n, p in first.items()}


def test_the_command_of_the_card_has_every_setting_that_made_the_rows_in_a_form_that_is_read():
    """And none of prompts, which an export has not."""
    other = {
        "source": "rows.csv", "hub_config": HUB_CONFIGS[1], "num_variables": [3, 5], "structures": 7, "max_given": 2,
        "relabelings": [1, 2], "wordings": ["names", "story"], "predictions": ["a", "b"], "correction_share": 0.3,
        "labels": "given", "skip_unparsable": True, "split": "size", "test_sizes": [5], "train_sizes": [3, 4],
        "validation_fraction": 0.2, "test_fraction": 0.0, "max_train_samples": 90, "max_grpo_samples": 30,
        "max_validation_samples": 8, "max_test_samples": 9, "balance": ["label", "relation"], "train_mix": [0.5, 2.0],
        "repeat_rows": True, "perturbations": ["names", "paraphrase"], "seed": 5, "teacher_file": "t.jsonl",
    }  # fmt: skip
    of_prompts = {"target": "trace", "trace_style": "full", "instruction": "Why?", "max_length": 90}
    of_prompts |= {"tokenizer": "other", "revision": "main", "chat_template_args": {"enable_thinking": False}}
    elsewhere = {"audit", "raw", "output_dir", "export", "overwrite"}
    assert {*other, *of_prompts, *elsewhere} == set(vars(DataConfig()))
    command = shlex.split(preprocess.command_of(DataConfig(**other, **of_prompts, raw=True)))
    assert parse_config(DataConfig, command[2:]) == DataConfig(**other, export="DIR")


def test_the_card_says_whose_words_the_rows_have(export):
    options = ("--num_variables", 4, "--overwrite", "true")
    for wordings, labels in (((), "exact"), (("names", "story"), "exact"), (("names", "story"), "released")):
        folder, _ = export(*options, "--labels", labels, *(["--wordings", *wordings] if wordings else []))
        text = (folder / "README.md").read_text()
        assert ("in the words of the public rows" in text) == (not wordings)
        assert ("Their words are drawn at random from `names`, `story`." in text) == bool(wordings)


def test_generated_rows_with_the_released_labels(export):
    folder, load = export("--num_variables", 4, "--labels", "released", "--split", "released")
    every = [row for part in load().values() for row in part]
    assert sum(row["given_label_wrong"] for row in every) == 7 and all(r["label"] == r["given_label"] for r in every)
    check_card(folder, load)
    text = (folder / "README.md").read_text()
    assert "mistakes included" in text and "The licence is unknown: the public rows, which these equal" in text
    assert DatasetCard.load(folder / "README.md").data.license == "unknown"


def test_nothing_else_is_overwritten(export, tmp_path):
    folder = tmp_path / "exported"
    (folder / "default").mkdir(parents=True)
    (folder / "README.md").write_text("mine")
    for overwrite, reason in (("false", "is not empty"), ("true", "has files that are not of this script")):
        with pytest.raises(ValueError, match=f"export .*exported: {reason}"):
            export("--num_variables", 4, "--overwrite", overwrite)
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--target", "trace"), "export writes no response: set target answer, not trace"),
        (("--audit", "rows.csv"), "export: an audit writes no rows"),
        (("--source", "corrections", "--predictions", "a"), "export: corrections are texts of a model"),
        (("--source", "hub", "--hub_config", HUB_CONFIGS[1]), "export: source hub writes all of its configurations"),
    ],
)
def test_what_cannot_be_exported(export, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export(*arguments)
    assert not (tmp_path / "exported").exists()
