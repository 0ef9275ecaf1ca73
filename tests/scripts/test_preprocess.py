"""preprocess.py: settings with messages, splits, labels, chat text, teacher completions, report, output folder."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from made_up import all_rows, write_csv, write_jsonl
from sklearn.metrics import f1_score

import preprocess
from causal import reasoning, wording
from causal.claims import exact_label
from causal.classes import LETTERS, Premise, markov_equivalence_class
from causal.graphs import bits
from causal.rows import PERTURBATIONS, generate_rows
from causal.vocabulary import HELD_OUT_WORDINGS
from dataset.chat import encode
from dataset.reading import check_whole, load_split
from dataset.report import perfect_reasoner
from dataset.sources import HUB_CONFIGS
from dataset.splits import perturbed
from policy import loading
from policy.loading import load_tokenizer
from preprocess import DataConfig, build, write_dataset

pytestmark = pytest.mark.usefixtures("one_tokenizer")
ROOT = Path(preprocess.__file__).parent
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def run_main(monkeypatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["preprocess.py", *map(str, argv)])
    preprocess.main()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "poem"}, "target: 'poem' is not one of answer, trace, teacher"),
        ({"labels": "given"}, r"labels \(source generate\): 'given' is not one of exact, released"),
        ({"labels": "released", "source": "a.csv"}, r"labels \(source a.csv\): 'released' is not one of exact, given"),
        ({"labels": "released", "relabelings": [2]}, "no relabelings, all structures"),
        ({"labels": "released", "max_given": 1}, "all structures, no max_given"),
        ({"num_variables": [7], "structures": 9, "max_given": 0}, "max_given: must be at least 1, got 0"),
        ({"num_variables": [3, 7]}, "num_variables: 7 has too many classes to list; set structures"),
        ({"structures": 0}, "structures: must be at least 1, got 0"),
        ({"split": "size"}, "test_sizes: split size needs them, no other split does"),
        ({"test_sizes": [3]}, "test_sizes: split size needs them, no other split does"),
        ({"split": "size", "test_sizes": [4], "test_fraction": 0.1}, r"test_sizes: \[4\]: name some but not all of"),
        ({"train_sizes": [3], "split": "given"}, "train_sizes: split given has its own rule; set split premise"),
        ({"train_sizes": [3], "test_sizes": [3], "split": "size"}, r"train_sizes, test_sizes: \[3\] cannot be both"),
        ({"train_sizes": [3], "split": "structure"}, "split: no rows for validation, test"),
        ({"perturbations": ["noise"]}, "perturbations: 'noise' is not one of paraphrase, recombined, recast"),
        ({"perturbations": ["paraphrase"], "test_fraction": 0.0}, "perturbations: they need a test split"),
        (
            {"perturbations": ["natural"]},
            "perturbations: the tokenizer has .* for an English word; leave natural out, or",
        ),
        (
            {"wordings": ["effect", "ledger", "names"]},
            "wordings: the tokenizer has .*; leave ledger, names out, or use a",
        ),
        ({"trace_style": "long"}, "trace_style: 'long' is not one of compact, full"),
        ({"split": "rows"}, "split: 'rows' is not one of"),
        ({"balance": ["label", "size"]}, "balance: 'size' is not one of label, relation, num_variables"),
        ({"hub_config": "v1"}, "hub_config: 'v1' is not one of"),
        ({"validation_fraction": 0.7, "test_fraction": 0.5}, "validation_fraction, test_fraction"),
        ({"test_fraction": -0.1}, "validation_fraction, test_fraction"),
        ({"max_length": 0}, "max_length: must be at least 1, got 0"),
        ({"max_train_samples": 0}, "max_train_samples: must be at least 1, got 0"),
        ({"max_grpo_samples": 0}, "max_grpo_samples: must be at least 1, got 0"),
        ({"relabelings": [-1]}, "relabelings: must be 0 or more, got -1"),
        ({"relabelings": [1, 2]}, "relabelings: give a number for each of num_variables, 1 of them"),
        ({"relabelings": []}, "relabelings: give a number for each of num_variables, 1 of them"),
        ({"train_mix": [0.5, 0.5], "max_train_samples": 9}, "train_mix: give a number for each of num_variables"),
        ({"train_mix": [1.0]}, "train_mix: needs max_train_samples"),
        ({"repeat_rows": True}, "repeat_rows: train_mix has the shares"),
        (
            {"train_mix": [1.0], "max_train_samples": 9, "balance": ["num_variables"]},
            "train_mix: leave num_variables out of balance",
        ),
        ({"num_variables": []}, "num_variables: name at least one"),
        ({"num_variables": [11]}, "num_variables: must be between 2 and 10, got 11"),
        ({"target": "teacher"}, "needs teacher_file"),
        ({"teacher_file": "a.jsonl"}, "no other target has it"),
        ({"target": "trace", "labels": "released"}, "labels exact"),
        ({"raw": True, "target": "trace"}, "raw writes no response"),
        ({"source": "corrections"}, "predictions: source corrections needs them"),
        ({"predictions": ["a"]}, "predictions: source corrections needs them, and no other source does"),
        ({"source": "corrections", "predictions": ["a"]}, "predictions: a has no metrics.json; write it with"),
        ({"correction_share": 0.0}, "correction_share: must be above 0"),
        ({"correction_share": 0.4}, "correction_share: only source corrections reads that, not generate"),
        ({"source": "hub", "structures": 3, "relabelings": [2]}, "structures, relabelings: only source generate reads"),
        ({"source": "rows.csv"}, "num_variables: rows.csv has the sizes that it has; leave it out"),
        ({"source": "hub", "hub_config": HUB_CONFIGS[1]}, "num_variables: hub has the sizes that it has"),
        ({"hub_config": HUB_CONFIGS[1]}, "hub_config: only source hub reads that, not generate"),
        (
            {"target": "teacher", "teacher_file": "a.jsonl", "wordings": ["effect"]},
            "wordings: a teacher's texts have their rows' words",
        ),
        ({"seed": -1}, "seed: must be between 0 and"),
        (
            {"split": "given", "validation_fraction": 0.1, "test_fraction": 0.1},
            "split given: row 0 has no column split",
        ),
        ({"split": "given"}, "^validation_fraction, test_fraction: split given has the rows' own splits; add --split"),
        ({"split": "released", "test_fraction": 0.1}, "^validation_fraction: split released has its own rule; add --s"),
        (
            {"split": "size", "test_sizes": [3]},
            "^test_fraction: split size has test_sizes for test; add --split premise",
        ),
        (
            {"source": "hub", "num_variables": [3, 4]},
            "^validation_fraction, test_fraction: split given has the rows' o",
        ),
        ({"instruction": "Say <|end|>"}, "instruction: holds the special token <|end|>"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        build(DataConfig(**{"num_variables": [3], "validation_fraction": 0.2, "test_fraction": 0.2} | settings))


def test_sizes_have_relabelings_and_shares_of_their_own():
    settings = {"num_variables": [3, 4], "relabelings": [0, 2], "split": "structure", "raw": True}
    options = {"max_train_samples": 40, "train_mix": [1.0, 3.0], "validation_fraction": 0.2, "test_fraction": 0.2}
    splits, _, _ = build(DataConfig(**settings, **options))
    sizes = Counter(row["num_variables"] for row in splits["train"])
    assert sizes == {3: 10, 4: 30}
    filled, _, _ = build(DataConfig(**settings, **options | {"max_train_samples": 400}, repeat_rows=True))
    sizes = Counter(row["num_variables"] for row in filled["train"])
    assert sizes == {3: 100, 4: 300} and len({row["row"] for row in filled["train"]}) == 400
    of_three = [row for row in filled["train"] if row["num_variables"] == 3]
    times = Counter(row["input"] for row in of_three)
    assert len(times) < 100 and set(times.values()) <= {100 // len(times), 100 // len(times) + 1}
    everything = all_rows(build(DataConfig(**settings))[0])
    letterings = {n: Counter() for n in (3, 4)}
    for row in everything:
        letterings[row["num_variables"]][row["structure_id"]] += 1
    assert max(letterings[3].values()) == 18  # one premise's claims
    assert max(letterings[4].values()) == 2 * 36


def test_every_size_of_a_file_has_a_share(source):
    options = {"source": source, "raw": True, "max_train_samples": 20}
    splits, _, _ = build(DataConfig(**options, num_variables=[3], train_mix=[1.0]))
    assert len(splits["train"]) == 20
    with pytest.raises(ValueError, match="train_mix: train has rows of 3 variables; name them in num_variables"):
        build(DataConfig(**options, num_variables=[4, 5], train_mix=[0.5, 0.5]))


def test_no_chat_template(monkeypatch, tokenizer):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="tokenizer: it has no chat template; use an instruction-tuned"):
        build(DataConfig())


# ---------------------------------------------------------------- labels


def test_relabelings_make_later_causes_earlier_possible():
    released = all_rows(build(DataConfig(num_variables=[4], raw=True))[0])
    shuffled = all_rows(build(DataConfig(num_variables=[4], relabelings=[3], raw=True))[0])
    assert len(released) == 720 and sum(row["label"] for row in released) == 57
    assert not any(row["label"] for row in released if row["template"] == "child")
    assert any(row["label"] for row in shuffled if row["template"] == "child")
    assert {row["structure_id"] for row in shuffled} == {row["structure_id"] for row in released}


def test_wrong_given_labels_are_replaced_and_counted(tmp_path, rows):
    flipped = {2, 50, 197}
    given = [row | {"label": 1 - row["label"] if i in flipped else row["label"]} for i, row in enumerate(rows)]
    path = write_csv(tmp_path / "rows.csv", given)
    exact = {row["input"]: row["label"] for row in rows}
    splits, _, report = build(DataConfig(source=path))
    assert all(row["label"] == exact[row["input"]] for row in all_rows(splits))
    wrong = [row for row in all_rows(splits) if row["given_label"] != row["label"]]
    assert {row["input"] for row in wrong} == {rows[i]["input"] for i in flipped}
    assert report["given_label_not_exact"]["rows"] == 3
    assert report["given_label_not_exact"]["first"][0] == {
        "row": "row 2", "given_label": 1 - rows[2]["label"], "exact": rows[2]["label"]
    }  # fmt: skip
    labels = [(row["given_label"], row["exact"]) for row in splits["train"]]
    perfect = report["splits"]["train"]["perfect_reasoner"]
    assert perfect["f1"] == pytest.approx(f1_score(*zip(*labels, strict=True))) and perfect["wrong"] > 0
    assert f"on the labels as given: train {perfect['f1']:.3f}, " in preprocess.summary(report)
    splits, _, report = build(DataConfig(source=path, labels="given"))
    assert report["splits"]["train"]["perfect_reasoner"] == perfect
    assert {row["input"] for row in all_rows(splits) if row["label"] != exact[row["input"]]} == {
        rows[i]["input"] for i in flipped
    }
    assert report["given_label_not_exact"]["rows"] == 3


def test_what_a_perfect_reasoner_scores_on_the_public_test_labels():
    """1,162 rows, 180 of them Yes; by the public audit 15 should be Yes that are not, 3 should not."""
    counts = {(0, 0): 967, (0, 1): 15, (1, 0): 3, (1, 1): 177, (1, None): 4}
    found = perfect_reasoner(pair for pair, count in counts.items() for _ in range(count))
    assert (found["rows"], found["wrong"]) == (1162, 18)
    assert (round(found["f1"], 3), round(found["accuracy"], 3)) == (0.952, 0.985)
    assert perfect_reasoner([(0, 0)])["f1"] is None and perfect_reasoner([])["accuracy"] is None


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("split", ["premise", "structure"])
def test_splits_share_no_premise_or_structure(split, seed):
    config = DataConfig(num_variables=[3, 4], relabelings=[2], split=split, seed=seed, raw=True)
    splits, _, report = build(config)
    rows, count = all_rows(splits), Counter()
    for part in splits.values():
        count.update({row[f"{split}_id"] for row in part})
    assert set(count.values()) == {1}
    assert len(rows) == len({(row["input"]) for row in rows}) == report["source_rows"]
    assert all(both[f"{split}s"] == 0 for both in report["overlap"].values())
    sizes = {name: report["splits"][name][f"{split}s"] for name in splits}
    assert sizes["validation"] == sizes["test"] and sizes["train"] > 0.7 * sum(sizes.values())


def test_same_seed_same_dataset_other_seed_other_dataset():
    settings = {"num_variables": [3], "relabelings": [3], "max_train_samples": 50, "split": "premise"}
    digest = [build(DataConfig(seed=seed, **settings))[2]["dataset_hash"] for seed in (0, 0, 1)]
    assert digest[0] == digest[1] != digest[2]


def test_empty_split_is_an_error_and_share_0_leaves_it_out():
    with pytest.raises(ValueError, match="split: no rows for validation; change validation_fraction"):
        build(DataConfig(num_variables=[3], split="structure", validation_fraction=0.05, test_fraction=0.4))
    assert list(build(DataConfig(num_variables=[3], validation_fraction=0.0, test_fraction=1.0))[0]) == ["test"]


def test_shares_that_the_rows_own_splits_leave_unread(tmp_path, rows):
    """A file with a column split has its own, unless another split is asked for."""
    part = ("train", "validation")
    own = write_jsonl(tmp_path / "rows.jsonl", [row | {"split": part[k % 20 == 0]} for k, row in enumerate(rows)])
    build(DataConfig(source=own, raw=True))
    with pytest.raises(ValueError, match="^test_fraction: split given has the rows' own splits; add --split premise"):
        build(DataConfig(source=own, raw=True, test_fraction=0.3))
    perturbations = {"source": own, "raw": True, "perturbations": ["paraphrase"]}
    with pytest.raises(ValueError, match="^perturbations: .* test split, and column split names none; .* --split p"):
        build(DataConfig(**perturbations))
    assert "test_paraphrase" in build(DataConfig(**perturbations, split="premise", test_fraction=0.3))[0]
    with pytest.raises(ValueError, match="^perturbations: they need a test split; raise test_fraction"):
        build(DataConfig(**perturbations, split="premise", test_fraction=0.0))


def test_balance_is_exact_in_train_alone(source):
    splits, _, _ = build(DataConfig(source=source, balance=["label"]))
    plain, _, _ = build(DataConfig(source=source))
    count = Counter(row["label"] for row in splits["train"])
    assert count[0] == count[1] == sum(row["label"] for row in plain["train"]) > 0
    assert splits["test"] == plain["test"] and splits["validation"] == plain["validation"]
    order = [row["input"] for row in plain["train"]]
    assert [order.index(row["input"]) for row in splits["train"]] == sorted(
        order.index(row["input"]) for row in splits["train"]
    )


def test_caps_choose_a_random_part(source):
    caps = {"max_train_samples": 9, "max_validation_samples": 4, "max_test_samples": 5}
    splits, _, _ = build(DataConfig(source=source, balance=["label"], **caps))
    assert {name: len(part) for name, part in splits.items()} == {"train": 8, "validation": 4, "test": 5}
    assert Counter(row["label"] for row in splits["train"]) == {0: 4, 1: 4}
    chosen = {s: preprocess.subsample(list(range(100)), 10, [], s) for s in ("0", "1")}
    assert all(rows == sorted(set(rows)) and rows[-1] > 20 for rows in chosen.values()) and chosen["0"] != chosen["1"]
    with pytest.raises(ValueError, match="max_train_samples: balance label needs 2 or more"):
        build(DataConfig(source=source, balance=["label"], max_train_samples=1))


def test_the_split_for_grpo_has_rows_that_train_has_not(source):
    settings = {"source": source, "max_train_samples": 9, "balance": ["label"]}
    splits, _, report = build(DataConfig(**settings, max_grpo_samples=7))
    rows = {name: {row["row"] for row in part} for name, part in splits.items()}
    assert len(rows["grpo"]) == 7 and not rows["grpo"] & rows["train"]
    whole = {row["row"] for row in build(DataConfig(source=source))[0]["train"]}
    assert rows["grpo"] < whole and report["splits"]["grpo"]["rows"] == 7
    labels = [row["label"] for row in splits["train"]]
    assert sum(labels) * 2 == len(labels)
    lines = Path(source).read_bytes().decode().partition("\r\n")
    twice = source.replace("rows", "twice")
    Path(twice).write_text(f"{lines[0]}\r\n{lines[2] * 2}", newline="")
    repeated, _, report = build(DataConfig(source=twice, max_grpo_samples=40))
    assert not {row["input"] for row in repeated["grpo"]} & {row["input"] for row in repeated["train"]}
    kept, every = sum(map(len, repeated.values())), len(build(DataConfig(source=twice))[0]["train"])
    dropped = every - len(repeated["train"]) - 40
    assert 0 < dropped == report["asked_in_grpo"] == report["source_rows"] - kept
    assert f"left out: {dropped} rows of train that ask what a row of grpo asks" in preprocess.summary(report)
    plain = build(DataConfig(**settings))[0]
    assert "grpo" not in plain and plain["test"] == splits["test"]
    with pytest.raises(ValueError, match=f"max_grpo_samples: leaves nothing of the {len(whole)} rows for train"):
        build(DataConfig(source=source, max_grpo_samples=len(whole)))


def test_balance_leaves_the_prompts_of_grpo_as_they_come():
    settings = {"num_variables": [3, 4], "split": "structure", "balance": ["label"], "max_grpo_samples": 200}
    splits, _, _ = build(DataConfig(source="generate", relabelings=[3], **settings))
    shares = {name: sum(row["label"] for row in part) / len(part) for name, part in splits.items()}
    assert shares["train"] == 0.5 and 0.03 < shares["grpo"] < 0.3


def test_balance_needs_both_classes(tmp_path, rows):
    no = [row for row in rows if row["label"] == 0]
    with pytest.raises(ValueError, match="balance label: train has one class only"):
        build(DataConfig(source=write_csv(tmp_path / "no.csv", no), balance=["label"]))


def test_perturbed_test_sets_are_row_by_row_the_test_set():
    kinds = list(PERTURBATIONS)
    splits, _, report = build(DataConfig(num_variables=[4], perturbations=kinds, max_test_samples=40, raw=True))
    assert list(splits) == ["train", "validation", "test", *(f"test_{kind}" for kind in kinds)]
    for kind in kinds:
        changed = splits[f"test_{kind}"]
        assert [row["label"] for row in changed] == [row["label"] for row in splits["test"]]
        assert [row["row"] for row in changed] == [row["row"] for row in splits["test"]]
        both = report["overlap"][f"test/test_{kind}"]
        assert both["structures"] == report["splits"]["test"]["structures"]
        same = (*HELD_OUT_WORDINGS, "hypotheses", "reordering", "story")  # a premise is what it says
        if kind in (*same, "refactorization"):
            assert both["premises"] == (both["structures"] if kind in same else 0)
        assert kind in same or both["premises"] < both["structures"]  # a symmetric class looks the same
        assert report["overlap"][f"train/test_{kind}"]["structures"] == 0
    shown = preprocess.summary(report)
    assert "test_refactorization " in shown and "test/test_" not in shown


def test_rows_that_a_perturbation_leaves_as_they_are_are_counted(tmp_path):
    """Rows in other letters, put in these letters once more; and of one independence there is no other order."""
    rows = perturbed([row | {"row": f"row {k}"} for k, row in enumerate(generate_rows(3))], "refactorization", 0)
    source = write_jsonl(tmp_path / "rows.jsonl", [row | {"split": "test"} for row in rows])
    kinds = ["refactorization", "reordering", "paraphrase"]
    _, _, report = build(DataConfig(source=source, raw=True, perturbations=kinds))
    single = sum(row["premise"].count("independent") < 2 for row in rows)
    assert report["as_in_test"] == {"refactorization": len(rows), "reordering": single} and single > 0
    for kind, count in report["as_in_test"].items():
        assert f"test_{kind}: {count} rows are as in test" in preprocess.summary(report)


def test_a_row_too_long_in_one_test_set_leaves_them_all(tokenizer):
    settings = {"num_variables": [3, 4], "perturbations": ["paraphrase"], "seed": 1}
    splits, _, _ = build(DataConfig(**settings))
    lengths = {name: [sum(row["tokens"]) for row in splits[name]] for name in ("test", "test_paraphrase")}
    unequal = sorted(min(pair) for pair in zip(*lengths.values(), strict=True) if len(set(pair)) == 2)
    limit = unequal[len(unequal) // 2]  # one of the two rows is longer
    kept, _, report = build(DataConfig(**settings, max_length=limit))
    assert [row["row"] for row in kept["test"]] == [row["row"] for row in kept["test_paraphrase"]]
    both = [max(pair) <= limit for pair in zip(*lengths.values(), strict=True)]
    assert [row["row"] for row, fits in zip(splits["test"], both, strict=True) if fits] == [
        row["row"] for row in kept["test"]
    ]
    assert {entry["split"] for entry in report["over_long"]} >= {"test", "test_paraphrase"}


# ---------------------------------------------------------------- released labels, premises that no graph satisfies


def test_released_labels_of_the_generator():
    splits, _, report = build(DataConfig(num_variables=[3, 4, 5], labels="released", split="released", raw=True))
    everything = all_rows(splits)
    assert sum(row["label"] for row in everything) == 3 + 54 + 1104
    assert preprocess.expected_rows(DataConfig(num_variables=[3, 4, 5], labels="released")) == len(everything) == 9330
    assert preprocess.expected_rows(DataConfig(relabelings=[2])) is None
    assert report["given_label_not_exact"]["rows"] == 207 and report["without_exact_label"] == 0
    assert {name: len(part) for name, part in splits.items()} == {"train": 7392, "validation": 969, "test": 969}
    assert report["overlap"]["train/test"]["premises"] <= 2  # the public recipe cuts through a class


def test_rows_whose_premise_no_graph_satisfies_keep_a_given_label(tmp_path, rows):
    every = Premise(LETTERS[:3], frozenset({(0, 1, 4), (1, 2, 1)}))
    text = wording.write_input(wording.write_premise(every), "A directly causes B.")
    records = [{"input": row["input"], "label": row["label"]} for row in rows] + [{"input": text, "label": 1}]
    path = write_jsonl(tmp_path / "rows.jsonl", records)
    with pytest.raises(ValueError, match=r"row 198: no graph satisfies the premise.*--skip_unparsable true"):
        build(DataConfig(source=path, raw=True))
    splits, _, report = build(DataConfig(source=path, raw=True, skip_unparsable=True))
    assert len(all_rows(splits)) == 198 and [entry["row"] for entry in report["unparsable"]] == ["row 198"]
    splits, columns, report = build(DataConfig(source=path, raw=True, labels="given", perturbations=["reordering"]))
    odd = [row for row in all_rows(splits) if row["row"] == "row 198"]
    assert odd[0]["label"] == 1 and odd[0]["edges"] is None and odd[0]["structure_id"].startswith("3-unsatisfiable-")
    assert report["without_exact_label"] == 1 and "1 rows have no exact label" in preprocess.summary(report)
    preprocess.write_dataset(splits, columns, report, tmp_path / "out")
    written = [row for part in load_from_disk(tmp_path / "out").values() for row in part]
    assert [row["edges"] for row in written if row["input"] == text] == [None] * len(odd)


def test_written_rows_are_the_built_ones_in_any_batch(monkeypatch, tmp_path):
    splits, columns, report = build(DataConfig(num_variables=[3, 4], raw=True))
    monkeypatch.setattr(preprocess, "WRITE_BATCH", 7)
    preprocess.write_dataset(splits, columns, report, tmp_path / "out")
    written = load_from_disk(tmp_path / "out")
    for name, part in splits.items():
        assert [{column: row[column] for column in columns} for row in part] == list(written[name])


def test_seven_variables_are_sampled():
    config = DataConfig(
        num_variables=[3, 7], structures=4, raw=True, test_sizes=[7], split="size", validation_fraction=0.25
    )
    splits, _, report = build(config)
    assert report["splits"]["test"]["structures"] == 4 and len(splits["test"]) == 4 * 3 * 7 * 6
    assert preprocess.expected_rows(config) == len(all_rows(splits)) == report["source_rows"]
    again = build(config)[2]["dataset_hash"]
    assert report["dataset_hash"] == again != build(DataConfig(**{**vars(config), "seed": 1}))[2]["dataset_hash"]


def test_ten_variables_in_premises_of_small_sets():
    config = DataConfig(
        num_variables=[8, 10], structures=4, max_given=1, relabelings=[1], raw=True, split="structure",
        validation_fraction=0.25, test_fraction=0.25, perturbations=["relabeling"],
    )  # fmt: skip
    splits, _, report = build(config)
    assert {name: part["structures"] for name, part in report["splits"].items()} == {
        "train": 4, "validation": 2, "test": 2, "test_relabeling": 2
    }  # fmt: skip
    assert all(counts["structures"] == 0 for pair, counts in report["overlap"].items() if pair.startswith("train/"))
    assert report["source_rows"] == 4 * (168 + 270) and preprocess.expected_rows(config) is None
    for row in all_rows(splits)[::97]:
        premise, claim = wording.parse_claim(row["premise"], row["hypothesis"])
        assert premise.max_given == 1 and len(row["premise"]) < 20_000
        assert exact_label(premise, claim) == row["label"]


def test_full_traces_are_right(rows):
    splits, _, _ = build(DataConfig(num_variables=[4], target="trace", trace_style="full", max_length=4000))
    for row in splits["test"]:
        premise, claim = wording.parse_claim(row["premise"], row["hypothesis"])
        assert reasoning.check_trace(row["response"].removesuffix("<|end|>"), premise, claim).complete
        assert row["response"].startswith("Pair A and B: ")


# ---------------------------------------------------------------- prompt and response


@pytest.mark.parametrize(("template", "end"), [(None, "<|end|>"), (CHATML, "<|im_end|>")])
@pytest.mark.parametrize("target", ["answer", "trace"])
def test_response_is_the_templates_text_up_to_the_end_of_turn(monkeypatch, template, end, target):
    tokenizer = load_tokenizer("tiny")
    if template:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
    monkeypatch.setattr(loading, "load_tokenizer", lambda name, revision: tokenizer)
    splits, _, _ = build(DataConfig(num_variables=[3], target=target, split="premise", test_fraction=0.2,
                                    validation_fraction=0.2, instruction="Decide."))  # fmt: skip
    for row in all_rows(splits):
        answer = row["response"].removesuffix(end)
        messages = [{"role": "user", "content": f"Decide.\n\n{row['input']}"}, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
        ids, response_ids = encode(tokenizer, row["prompt"]), encode(tokenizer, row["response"])
        assert ids + response_ids == whole[: len(ids) + len(response_ids)]
        assert response_ids[-1] == tokenizer.convert_tokens_to_ids(end) not in response_ids[:-1]
        assert answer.endswith(("Answer: No", "Answer: Yes")[row["label"]])
        assert (answer.count("\n") > 0) == (target == "trace")


def test_claims_of_one_premise_share_the_prompt_up_to_the_hypothesis(source):
    splits, _, _ = build(DataConfig(source=source))
    for row in all_rows(splits):
        before, _, after = row["prompt"].partition(row["premise"])
        assert after.startswith(f"\nHypothesis: {row['hypothesis']}<|end|>")
        assert before == all_rows(splits)[0]["prompt"].partition("Premise: ")[0] + "Premise: "


def test_over_long_rows_are_left_out_counted_and_named(source, tokenizer):
    whole, _, report = build(DataConfig(source=source))
    lengths = {row["row"]: len(encode(tokenizer, row["prompt"] + row["response"])) for row in all_rows(whole)}
    assert report["over_long"] == []
    limit = max(min(sum(row["tokens"]) for row in rows) for rows in whole.values())  # no split gets empty
    splits, _, report = build(DataConfig(source=source, max_length=limit))
    over = {name: tokens for name, tokens in lengths.items() if tokens > limit}
    assert {entry["row"]: entry["tokens"] for entry in report["over_long"]} == over and over
    assert {row["row"] for row in all_rows(splits)} == lengths.keys() - over.keys()
    text = preprocess.summary(report)
    assert f"left out: {len(over)} rows over max_length {limit}" in text
    assert f"--max_length {max(over.values())} would keep them all" in text
    with pytest.raises(ValueError, match=f"max_length: no row of .*train.* {max(lengths.values())} keeps all rows"):
        build(DataConfig(source=source, max_length=10))


def test_a_few_over_long_rows_give_no_warning(source, tokenizer):
    longest = build(DataConfig(source=source))[2]["tokens"]["train"]["total"]["p99"]
    report = build(DataConfig(source=source, max_length=longest))[2]
    assert len(report["over_long"]) < 0.05 * 198 and "warning" not in preprocess.summary(report)


# ---------------------------------------------------------------- teacher


def test_teacher_keeps_only_right_and_finished_completions(tmp_path, source):
    train = build(DataConfig(source=source))[0]["train"]
    other = build(DataConfig(source=source))[0]["test"][0]
    say = {0: "So it fails.\n\nAnswer: No", 1: "So it holds.\n\nAnswer: Yes"}

    def record(row, text, finish_reason="stop"):
        return {"input": row["input"], "completion": text, "finish_reason": finish_reason}

    a, b, c, d, e, f = train[:6]
    completions = [
        record(a, say[a["label"]] + "\n"),
        record(a, say[a["label"]] + " again: " + say[a["label"]]),
        record(b, say[1 - b["label"]]),
        record(c, say[c["label"]], "length"),
        record(d, "I cannot tell from this"),
        record(e, "<|end|>" + say[e["label"]]),
        record(other, say[other["label"]]),
        record(f, say[1 - f["label"]]),
        record(f, say[f["label"]]),
    ]
    path = write_jsonl(tmp_path / "teacher.jsonl", completions)
    splits, _, report = build(DataConfig(source=source, target="teacher", teacher_file=path))
    assert {row["input"]: row["response"] for row in splits["train"]} == {
        row["input"]: say[row["label"]] + "<|end|>" for row in (a, f)
    }
    counts = {"kept": 2, "repeated": 1, "wrong": 2, "unfinished": 1, "no_answer": 1, "special_token": 1}
    assert report["teacher"] == counts | {"not_in_train": 1}
    assert {row["response"] for row in splits["test"]} <= {"Answer: Yes<|end|>", "Answer: No<|end|>"}
    assert "kept 2" in preprocess.summary(report)


def test_teacher_file_without_use(tmp_path, source):
    def attempt(records):
        path = write_jsonl(tmp_path / "teacher.jsonl", records)
        build(DataConfig(source=source, target="teacher", teacher_file=path))

    with pytest.raises(ValueError, match="no finished, right completion of a row of train: .'not_in_train': 1"):
        attempt([{"input": "?", "completion": "Answer: No", "finish_reason": "stop"}])
    with pytest.raises(ValueError, match="completion 0 has no text in finish_reason"):
        attempt([{"input": "?", "completion": "Answer: No"}])
    with pytest.raises(ValueError, match="teacher_file: .*teacher.txt is no"):
        build(DataConfig(source=source, target="teacher", teacher_file="teacher.txt"))


# ---------------------------------------------------------------- corrections


def write_answers(folder, dataset, rows, completion_of):
    """What evaluate.py writes of rows of a dataset that a model has answered."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"name": folder.name, "dataset": dataset}))
    answers = [{key: row[key] for key in ("input", "label")} for row in rows]
    answers = [a | {"prediction": 0, "completion": completion_of(row)} for a, row in zip(answers, rows, strict=True)]
    write_jsonl(folder / "predictions.jsonl", answers)
    return str(folder)


def test_corrections_are_mixed_with_the_dataset_that_was_answered(tmp_path, source):
    form = {"target": "trace", "trace_style": "full", "instruction": "", "max_length": 2000}
    written = build(DataConfig(source=source, validation_fraction=0.2, test_fraction=0.2, **form))
    plain = str(tmp_path / "plain")
    write_dataset(*written, Path(plain))
    train = written[0]["train"]
    first, second = train[:10], train[5:20]
    lines = {row["input"]: row["response"].removesuffix("<|end|>").splitlines() for row in train}
    answers = [
        write_answers(tmp_path / "a", plain, first, lambda row: "\n".join(lines[row["input"]][:2])),
        write_answers(tmp_path / "b", plain, second, lambda row: "I give up."),
    ]
    config = DataConfig(source="corrections", predictions=answers, correction_share=0.5)
    splits, columns, report = build(config)
    assert report["corrections"] == {"corrected": 25} and report["config"]["trace_style"] == "full"
    assert {name: len(splits[name]) for name in splits} == {
        "train": 50, "validation": len(written[0]["validation"]), "test": len(written[0]["test"])
    }  # fmt: skip
    texts = {row["input"]: row["prompt"] + row["response"] for row in train}
    assert all(row["prompt"] + row["response"] == texts[row["input"]] for row in splits["train"])
    assert sorted(len(row["kept"].splitlines()) for row in splits["train"]) == [0] * 40 + [2] * 10
    assert [row["response"] for row in splits["test"]] == [row["response"] for row in written[0]["test"]]
    write_dataset(splits, columns, report, tmp_path / "new")
    rows = load_split(str(tmp_path / "new"), "train")
    assert rows["kept"] == [row["kept"] for row in splits["train"]]
    with pytest.raises(ValueError, match="its train has corrections, for train_sft.py"):
        check_whole(rows, "new")

    unread = {"max_length": 300, "wordings": ["effect"], "trace_style": "full", "test_fraction": 0.3}
    with pytest.raises(ValueError, match="^max_length, test_fraction, wordings: corrections are as their dataset"):
        build(replace(config, **unread))
    with pytest.raises(ValueError, match="plain is read from there; name another"):
        build(replace(config, output_dir=plain, overwrite=True))
    test = write_answers(tmp_path / "c", plain, written[0]["test"], lambda row: "No.")
    with pytest.raises(ValueError, match="c has a row that is not of the dataset's train.*--split train"):
        build(DataConfig(source="corrections", predictions=[test]))
    bare = str(tmp_path / "bare")
    write_dataset(*build(DataConfig(source=source)), Path(bare))
    of_bare = write_answers(tmp_path / "d", bare, train[:2], lambda row: "No.")
    with pytest.raises(ValueError, match="has target answer; there are corrections of traces alone"):
        build(DataConfig(source="corrections", predictions=[of_bare]))
    with pytest.raises(ValueError, match="all must be of one dataset"):
        build(DataConfig(source="corrections", predictions=[of_bare, answers[0]]))


# ---------------------------------------------------------------- report and output


def test_report_figures_recomputed_from_the_written_dataset(monkeypatch, tmp_path, source, tokenizer, capsys):
    out = tmp_path / "out"
    run_main(monkeypatch, "--source", source, "--target", "trace", "--output_dir", out)
    dataset, report = load_from_disk(out), json.loads((out / "report.json").read_text())
    assert list(dataset) == ["train", "validation", "test"]
    assert dataset["train"].column_names == [*preprocess.COLUMNS, "prompt", "response"]
    for name, part in dataset.items():
        figures, frame = report["splits"][name], part.to_pandas()
        assert figures["rows"] == len(frame) and figures["label_1"] == frame.label.sum()
        assert figures["premises"] == frame.premise.nunique() and figures["structures"] == frame.structure_id.nunique()
        assert figures["template"] == frame.template.value_counts().to_dict()
        for column, key in (("prompt", "prompt"), ("response", "response")):
            lengths = sorted(len(encode(tokenizer, text)) for text in part[column])
            points = report["tokens"][name][key]
            assert points["max"] == lengths[-1]
            below = np.mean([length < points["p90"] for length in lengths])
            assert below <= 0.9 <= np.mean([length <= points["p90"] for length in lengths])
        totals = [len(encode(tokenizer, p + r)) for p, r in zip(part["prompt"], part["response"], strict=True)]
        assert report["tokens"][name]["total"]["max"] == max(totals)
    first = dataset["train"][0]
    assert (
        report["first_example"]["prompt"] == first["prompt"]
        and report["first_example"]["response"] == first["response"]
    )
    shown = capsys.readouterr().out
    assert first["prompt"] in shown and first["response"] in shown and f"wrote {out}" in shown
    assert report["config"]["target"] == "trace" and report["seed"] == 0


def test_edges_are_those_of_the_class(monkeypatch, tmp_path):
    out = tmp_path / "raw"
    run_main(monkeypatch, "--source", "generate", "--num_variables", "4", "--raw", "true", "--output_dir", out)
    dataset = load_from_disk(out)
    assert dataset["train"].column_names == list(preprocess.COLUMNS)
    for row in (row for part in dataset.values() for row in part):
        members = markov_equivalence_class(wording.parse_premise(row["premise"]))
        arrows = [{(u, v) for v, mask in enumerate(dag) for u in bits(mask)} for dag in members]
        always, ever = set.intersection(*arrows), set.union(*arrows)
        assert {tuple(edge) for edge in row["edges"]["directed"]} == always
        assert {tuple(edge) for edge in row["edges"]["undirected"]} == {tuple(sorted(edge)) for edge in ever - always}


def test_nothing_of_the_users_is_lost(monkeypatch, tmp_path):
    out = tmp_path / "out"
    options = ["--num_variables", "4", "--raw", "true", "--output_dir", out]
    out.mkdir()
    run_main(monkeypatch, *options)  # an empty folder is fine
    before = (out / "report.json").read_text()
    with pytest.raises(ValueError, match="is not empty; name another, or replace what this script wrote"):
        run_main(monkeypatch, *options, "--seed", "1")
    assert (out / "report.json").read_text() == before
    run_main(monkeypatch, *options, "--seed", "1", "--overwrite", "true")
    assert (out / "report.json").read_text() != before and len(load_from_disk(out)) == 3
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="has files that are not of this script, so it is not overwritten"):
        run_main(monkeypatch, *options, "--overwrite", "true")
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").rename(out / "train" / "notes.txt")
    with pytest.raises(ValueError, match="has files that are not of this script, so it is not overwritten"):
        run_main(monkeypatch, *options, "--overwrite", "true")
    (out / "train" / "notes.txt").rename(out / "notes.txt")
    with pytest.raises(ValueError, match="output_dir .*: is a file"):
        run_main(monkeypatch, "--output_dir", out / "notes.txt")
    assert {entry.name for entry in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize(
    ("setting", "place"),
    [("source", "output_dir"), ("source", "export"), ("audit", "output_dir"), ("teacher_file", "output_dir")],
)
def test_what_is_read_is_not_written_over(monkeypatch, tmp_path, rows, setting, place):
    file = write_jsonl(tmp_path / "audit.jsonl", rows)
    for name in ("problems.jsonl", "summary.json"):  # as an audit leaves them
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{place} .* is read from there; name another"):
        run_main(monkeypatch, f"--{setting}", file, f"--{place}", tmp_path, "--overwrite", "true")
    assert Path(file).read_text().count("\n") == len(rows)


def test_a_run_that_dies_while_writing_leaves_the_old_dataset(monkeypatch, tmp_path):
    options = ["--num_variables", "4", "--raw", "true", "--output_dir", tmp_path / "out"]
    run_main(monkeypatch, *options)
    before = (tmp_path / "out" / "report.json").read_text()

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(preprocess.DatasetDict, "save_to_disk", full)
    with pytest.raises(OSError, match="no space"):
        run_main(monkeypatch, *options, "--overwrite", "true", "--seed", "1")
    assert (tmp_path / "out" / "report.json").read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
