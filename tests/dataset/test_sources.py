"""Rows from files and from the hub: every form that is read, and what is refused, with its message."""

import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import all_rows, write_csv, write_jsonl

import preprocess
from causal import wording
from causal.classes import relabel_premise
from causal.graphs import bits
from causal.rows import premise_id
from dataset.sources import label_records, read_file
from preprocess import DataConfig, build

pytestmark = pytest.mark.usefixtures("one_tokenizer")

# ---------------------------------------------------------------- what is refused


def test_missing_file_names_setting_and_path(tmp_path):
    with pytest.raises(ValueError, match=r"source: .*nowhere\.csv: no such file"):
        build(DataConfig(source=str(tmp_path / "nowhere.csv")))


def test_unknown_kind_of_file(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.parquet is no \.csv, \.json or \.jsonl file"):
        build(DataConfig(source=str(tmp_path / "rows.parquet")))


def test_empty_rows_of_a_spreadsheet_count_in_the_numbers(tmp_path, rows):
    text = json.dumps(rows[0]["input"])[1:-1].replace("\\n", " ")
    (tmp_path / "rows.csv").write_text(f'input,label\n,\n"{text}",1\n,\n"{text}",maybe\n')
    with pytest.raises(ValueError, match="row 3: label is 'maybe'"):
        build(DataConfig(source=str(tmp_path / "rows.csv")))


def test_missing_column_names_it_and_those_found(tmp_path, rows):
    path = write_csv(tmp_path / "rows.csv", rows, ("input", "template"))
    with pytest.raises(ValueError, match="row 0: no column label; the columns are input, template"):
        build(DataConfig(source=path))


@pytest.mark.parametrize("label", [2, "maybe", None, 0.5, "", "01"])
def test_label_other_than_0_and_1_names_row_and_value(tmp_path, rows, label):
    records = [{"input": row["input"], "label": row["label"]} for row in rows[:5]]
    records[3]["label"] = label
    with pytest.raises(ValueError) as error:
        build(DataConfig(source=write_jsonl(tmp_path / "rows.jsonl", records)))
    assert f"row 3: label is {label!r}" in str(error.value)


@pytest.mark.parametrize("shape", [list, lambda column: dict(enumerate(column))], ids=["list", "pandas"])
def test_a_file_of_columns_is_refused_in_a_short_line(tmp_path, rows, shape):
    """As to_dict("list") has it, and as to_json() writes it."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({name: shape([row[name] for row in rows]) for name in ("input", "label")}))
    with pytest.raises(ValueError, match="the file has columns, not rows; write it with orient='records'$") as error:
        build(DataConfig(source=str(path)))
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("Premise: ", ""), "expected 'Premise: "),
        (
            lambda text: text.split("Hypothesis")[0] + "Hypothesis: A loves B.",
            "cannot read the hypothesis 'A loves B.'",
        ),
        (lambda text: text.replace("3 variables", "4 variables"), "says 4 and 4 variables but lists 3"),
        (lambda text: None, "the input is NoneType"),
    ],
)
def test_unparsable_input_is_an_error_or_counted(tmp_path, rows, change, reason):
    records = [{"input": row["input"], "label": row["label"]} for row in rows]
    records[7]["input"] = change(records[7]["input"])
    path = write_jsonl(tmp_path / "rows.jsonl", records)
    with pytest.raises(ValueError, match="--skip_unparsable true") as error:
        build(DataConfig(source=path))
    assert str(error.value).startswith("row 7: ") and reason in str(error.value)
    splits, _, report = build(DataConfig(source=path, skip_unparsable=True))
    assert len(all_rows(splits)) == len(rows) - 1
    assert [entry["row"] for entry in report["unparsable"]] == ["row 7"] and reason in report["unparsable"][0]["reason"]
    assert "1 rows without a label" in preprocess.summary(report)


def test_premise_that_no_graph_satisfies_is_unparsable(tmp_path):
    premise = (
        "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
        "variables are as follows: A correlates with B. B correlates with C. However, A is independent of C."
    )
    both = "A is independent of C. A and C are independent given B."
    record = {"input": f"Premise: {premise}\nHypothesis: A directly causes B.", "label": 1}
    splits, _, _ = build(DataConfig(source=write_jsonl(tmp_path / "ok.jsonl", [record]), test_fraction=1.0,
                                    validation_fraction=0.0))  # fmt: skip
    assert splits["test"][0]["label"] == 1  # A -> B <- C alone fits
    path = write_jsonl(
        tmp_path / "bad.jsonl", [record | {"input": record["input"].replace("A is independent of C.", both)}]
    )
    with pytest.raises(ValueError, match="row 0: no graph satisfies the premise"):
        build(DataConfig(source=path))


def test_labels_need_not_be_there_but_inputs_must():
    for record, message in (
        ({"Input": "x"}, "row 0: no column input; the columns are Input"),
        ({"input": ["x"]}, "row 0: the file has columns, not rows"),
    ):
        with pytest.raises(ValueError, match=message):
            label_records([record | {"row": "row 0"}], "exact", skip_unparsable=True, given=False)


def test_a_number_of_variables_that_contradicts_the_text(tmp_path, rows):
    changed = [*rows[:2], rows[2] | {"num_variables": 4}]
    with pytest.raises(ValueError, match="row 2: num_variables is 4, but the premise has 3"):
        build(DataConfig(source=write_csv(tmp_path / "rows.csv", changed)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "no rows in it"),
        ("a.csv", "input,label\n", "no rows in it"),
        ("a.jsonl", "\n", "no rows in it"),
        ("a.json", "[]", "no rows in it"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '[{"label": 1, "input": "", "label": 0}]', "label is there twice; keep one"),
        ("a.jsonl", '{"label": 1, "input": "", "label": 0}', "label is there twice; keep one"),
        ("a.csv", "input,label,label\nx,0,1\n", "label is there twice; keep one"),
        ("a.json", "3", "row 0 is no object"),
        ("a.jsonl", '{"input": ""}\nnonsense\n', "after 1 rows: not valid JSONL"),
        ("a.jsonl", "[1]\n", "row 0 is no object"),
        ("a.csv", 'input,label\n"open', "not valid CSV"),
        ("a.csv", "input,label\nA, B and C,1\n", "a row has more cells than the header: .'1'"),
        ("a.json", '{\n "data": []}', "not valid JSON in UTF-8, a list of objects or an object a line"),
    ],
)
def test_empty_or_broken_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        build(DataConfig(source=str(tmp_path / name)))
    assert name in str(error.value)


FORMS = {
    "words": lambda label: ("no", "Yes")[label],
    "booleans": bool,
    "floats": float,
    "as text": str,
    "inference": lambda label: ("not_entailment", "entailment")[label],
    "three classes": lambda label: ("neutral", "entailment")[label],
    "in words": lambda label: ("Not entailment", "Entailment ")[label],
}


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_labels_are_read_in_the_forms_that_files_have(tmp_path, rows, source, name):
    plain = build(DataConfig(source=source))[2]["dataset_hash"]
    for form in FORMS.values():
        records = [{"input": row["input"], "label": form(row["label"])} for row in rows]
        write = write_csv if name.endswith("csv") else write_jsonl
        path = write(tmp_path / f"form-{name}", records, *([("input", "label")] if write is write_csv else []))
        assert build(DataConfig(source=path))[2]["dataset_hash"] == plain


def test_files_are_read_in_the_layouts_that_they_have(tmp_path, rows, source):
    plain = build(DataConfig(source=source))[2]["dataset_hash"]
    records = [
        {"input": row["input"], "label": row["label"], "num_variables": 3.0, "template": "uncle"} for row in rows
    ]
    comma = Path(write_csv(tmp_path / "comma.csv", records)).read_text()
    lines = "\n".join(map(json.dumps, records))
    layouts = {
        "lines.json": lines.encode(),
        "list.JSON": json.dumps(records, indent=1).encode(),
        "UPPER.CSV": comma.encode(),
        "mark.csv": comma.encode("utf-8-sig"),
        "wide.csv": comma.encode("utf-16"),
        "wide.jsonl": lines.encode("utf-16"),
        "unmarked.csv": comma.encode("utf-16-le"),
        "wider.csv": comma.encode("utf-32"),
        "unix.csv": comma.replace("\r\n", "\n").encode(),
        "windows.csv": comma.replace("\r\n", "\n").replace("\n", "\r\n").encode(),  # also within a cell
        "spreadsheet.csv": "".join(f"{line},,\r\n" for line in comma.split("\r\n")).encode(),
        "spaces.csv": comma.replace(". ", ".\u00a0\t").replace("\nHyp", "  Hyp").encode(),
    }
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter=sign)
            writer.writeheader()
            writer.writerows(records)
        layouts[f"{name}.csv"] = (tmp_path / f"{name}.csv").read_bytes()
    for name, content in layouts.items():
        (tmp_path / name).write_bytes(content)
        assert build(DataConfig(source=str(tmp_path / name)))[2]["dataset_hash"] == plain, name


@pytest.mark.parametrize("split", ["premise", "structure"])
def test_a_premise_is_what_it_says_however_it_is_typed(tmp_path, rows, split):
    typed = [{"input": row["input"], "label": row["label"]} for row in rows]
    spaced = [row | {"input": row["input"].replace(". ", ".  ")} for row in typed]
    premises = [wording.write_premise(wording.parse_premise(row["premise"]), random.Random(7)) for row in rows]
    shuffled = [
        new | {"input": wording.write_input(premise, row["hypothesis"])}
        for new, premise, row in zip(typed, premises, rows, strict=True)
    ]
    letters, order = ("C", "A", "B"), (1, 2, 0)  # the premise lists its variables in another order
    turned = [
        {"input": wording.write_input(wording.write_premise(premise), row["hypothesis"]), "label": row["label"]}
        for row in rows
        for premise in [relabel_premise(wording.parse_premise(row["premise"]), order)]
        for premise in [replace(premise, variables=letters)]
    ]
    path = write_jsonl(tmp_path / "often.jsonl", [*typed, *spaced, *shuffled, *turned])
    splits, _, report = build(DataConfig(source=path, split=split, validation_fraction=0.2, test_fraction=0.2))
    meant = {name: {meaning(row["premise"]) for row in part} for name, part in splits.items()}
    assert not meant["train"] & meant["test"] and not meant["train"] & meant["validation"]
    assert report["overlap"]["train/test"]["premises"] == 0
    assert report["splits"]["train"]["premises"] == len(meant["train"])


def meaning(premise: str) -> frozenset:
    """What it says, by names alone."""
    parsed = wording.parse_premise(premise)
    names = parsed.variables
    return frozenset(
        (frozenset({names[i], names[j]}), frozenset(names[v] for v in bits(given)))
        for i, j, given in parsed.independences
    )


def test_one_question_with_two_labels_is_named_however_it_is_typed(tmp_path, rows):
    typed = [{"input": row["input"], "label": row["label"]} for row in rows]
    k = max(range(len(rows)), key=lambda k: len(rows[k]["premise"]))
    premise, claim = wording.parse_claim(rows[k]["premise"], rows[k]["hypothesis"])
    shuffled = wording.write_premise(premise, random.Random(0))
    assert shuffled != rows[k]["premise"]
    others = (wording.write_hypothesis(claim, premise.variables, rows[k]["template"], w) for w in ("effect", "recast"))
    texts = [typed[k]["input"].replace(" ", "  "), wording.write_input(shuffled, rows[k]["hypothesis"])]
    for text in (*texts, *(wording.write_input(rows[k]["premise"], other) for other in others)):
        path = write_jsonl(tmp_path / "rows.jsonl", [*typed, {"input": text, "label": 1 - typed[k]["label"]}])
        with pytest.raises(ValueError, match=f"row {k} and row 198: one input with two labels"):
            build(DataConfig(source=path, labels="given"))


def test_the_template_is_that_of_the_hypothesis(tmp_path, rows):
    wrong = [row | {"template": "has_collider"} for row in rows]
    splits, _, _ = build(DataConfig(source=write_csv(tmp_path / "rows.csv", wrong)))
    right = {row["input"]: row["template"] for row in rows}
    assert all(row["template"] == right[row["input"]] for row in all_rows(splits))


def test_label_2_of_the_hub_is_0_and_counted(monkeypatch, rows):
    hub = [{"input": row["input"], "label": row["label"]} for row in rows]
    for record in hub[3:8]:
        record["label"] = 2
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: {"test": hub})
    splits, _, report = build(DataConfig(source="hub", hub_config="perturbation_by_paraphrasing", labels="given"))
    assert [row["given_label"] for row in splits["test"]] == [0 if r["label"] == 2 else r["label"] for r in hub]
    assert report["label_2_as_0"] == 5 and "5 rows of the hub have label 2" in preprocess.summary(report)


def test_a_symmetric_claim_has_one_label_in_either_order(tmp_path, rows):
    k = next(k for k, row in enumerate(rows) if row["template"] == "has_collider")
    premise, claim = wording.parse_claim(rows[k]["premise"], rows[k]["hypothesis"])
    first, second = (premise.variables[v] for v in (claim.i, claim.j))
    swapped = rows[k]["hypothesis"].replace(first, "#").replace(second, first).replace("#", second)
    assert swapped != rows[k]["hypothesis"]
    other = {"input": wording.write_input(rows[k]["premise"], swapped), "label": 1 - rows[k]["label"]}
    records = [*({"input": row["input"], "label": row["label"]} for row in rows), other]
    with pytest.raises(ValueError, match=f"row {k} and row 198: one input with two labels"):
        build(DataConfig(source=write_jsonl(tmp_path / "rows.jsonl", records), labels="given"))


def test_cells_may_be_long(tmp_path, rows):
    """As those of large systems are."""
    long = {"input": rows[0]["input"] + " " * 200_000, "label": rows[0]["label"]}
    (record,) = read_file(Path(write_csv(tmp_path / "long.csv", [long], ("input", "label"))), "source")
    assert record["input"] == long["input"]


def test_file_that_is_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"input,label\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match=r"a\.csv: not valid CSV in UTF-8"):
        build(DataConfig(source=str(tmp_path / "a.csv")))


# ---------------------------------------------------------------- what is read


def test_csv_json_and_jsonl_are_read_alike(tmp_path, rows):
    records = [{key: row[key] for key in ("input", "label", "num_variables", "template")} for row in rows]
    (tmp_path / "rows.json").write_text(json.dumps(records))
    paths = [write_csv(tmp_path / "rows.csv", rows), str(tmp_path / "rows.json"),
             write_jsonl(tmp_path / "rows.jsonl", records)]  # fmt: skip
    hashes = {build(DataConfig(source=path))[2]["dataset_hash"] for path in paths}
    assert len(hashes) == 1


def test_input_and_label_are_enough(tmp_path, rows, source):
    """num_variables and template are read off the text."""
    bare = build(DataConfig(source=write_csv(tmp_path / "bare.csv", rows, ("input", "label"))))
    assert bare[2]["dataset_hash"] == build(DataConfig(source=source))[2]["dataset_hash"]


def test_columns_of_the_file_never_reach_the_response(tmp_path, rows):
    records = [{key: row[key] for key in ("input", "label")} | {"completion": "Answer: Maybe", "prompt": "?"}
               for row in rows]  # fmt: skip
    splits, _, _ = build(DataConfig(source=write_jsonl(tmp_path / "rows.jsonl", records)))
    assert {row["response"] for row in all_rows(splits)} == {"Answer: Yes<|end|>", "Answer: No<|end|>"}


def test_hub_rows_keep_their_splits(monkeypatch, rows):
    parts = {"train": rows[:60], "dev": rows[60:120], "test": rows[120:]}
    hub = {name: [{key: row[key] for key in ("input", "label")} for row in part] for name, part in parts.items()}
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: hub)
    splits, _, report = build(DataConfig(source="hub"))
    for (_, part), kept in zip(parts.items(), splits.values(), strict=True):
        assert [row["input"] for row in part] == [row["input"] for row in kept]
    assert list(splits) == ["train", "validation", "test"]
    ids = [{premise_id(wording.parse_premise(row["premise"])) for row in part} for part in parts.values()]
    assert report["overlap"]["train/validation"]["premises"] == len(ids[0] & ids[1]) > 0
    splits, _, report = build(DataConfig(source="hub", split="premise"))
    assert all(both["premises"] == 0 for both in report["overlap"].values())


def test_split_column_of_a_file(tmp_path, rows):
    named = [row | {"split": ("train", "test")[i % 2]} for i, row in enumerate(rows)]
    path = write_csv(tmp_path / "rows.csv", named, ("input", "label", "split"))
    splits, _, _ = build(DataConfig(source=path))
    assert {name: len(part) for name, part in splits.items()} == {"train": 99, "test": 99}
    with pytest.raises(ValueError, match="split given: unknown split holdout; known: train"):
        odd = [*named[:3], named[3] | {"split": "holdout"}]
        build(DataConfig(source=write_csv(tmp_path / "odd.csv", odd, ("input", "label", "split"))))
    with pytest.raises(ValueError, match="row 1 has no column split"):
        odd = [named[0], named[1] | {"split": ""}]
        build(DataConfig(source=write_csv(tmp_path / "odd.csv", odd, ("input", "label", "split"))))


def test_hub_without_a_network_names_the_other_sources(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ValueError) as error:
        build(DataConfig(source="hub"))
    message = str(error.value)
    assert message.startswith("source hub: cannot load causal-nlp/corr2cause (default): ") and "\n" not in message
    assert "--source FILE.csv" in message and "--source generate" in message
