"""Datasets on disk: splits, rows chosen of them, the two answers; and datasets that are not there or cannot be used."""

import pytest
from datasets import Dataset, DatasetDict

from dataset.chat import ANSWER_LINES, chat_writer, special_tokens, templated
from dataset.reading import answer_candidates, choose_rows, load_split, read_dataset_hash
from preprocess import DataConfig, build, write_dataset


def save(path, **splits) -> str:
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(path)
    return str(path)


def test_load_split(tmp_path):
    directory = save(
        tmp_path / "d",
        train=[{"prompt": "a", "response": "Yes", "label": 1}],
        test=[{"prompt": "b", "response": "No", "label": 0}],
    )
    assert load_split(directory, "test")["prompt"][0] == "b"
    with pytest.raises(ValueError, match="split validation: .* has train, test"):
        load_split(directory, "validation")


def test_a_dataset_that_cannot_be_used_is_one_line(tmp_path):
    for directory in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match="not a dataset of preprocess.py"):
            load_split(str(directory), "train")
    raw = save(tmp_path / "raw", train=[{"input": "a", "label": 1}])
    with pytest.raises(ValueError, match="raw"):
        load_split(raw, "train")


def test_a_dataset_of_another_task_is_known_by_its_rows(tmp_path):
    """No report.json is beside it: a run must not be resumed on other rows."""
    parts = [{"prompt": str(k), "response": "a"} for k in range(4)]
    hashes = [
        read_dataset_hash(save(tmp_path / name, **splits))
        for name, splits in {
            "one": {"train": parts[:2], "validation": parts[2:]},
            "same": {"train": parts[:2], "validation": parts[2:]},
            "exchanged": {"train": parts[2:], "validation": parts[:2]},
            "other": {"train": parts[:2], "validation": parts[1:3]},
        }.items()
    ]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_rows_are_chosen_at_random_and_by_the_seed_alone():
    rows = Dataset.from_dict({"x": list(range(50))})
    chosen = [choose_rows(rows, 10, seed)["x"] for seed in (0, 0, 1)]
    assert list(chosen[0]) == list(chosen[1]) == sorted(set(chosen[0])) and len(chosen[0]) == 10
    assert list(chosen[2]) != list(chosen[0]) and chosen[0][-1] >= 10, "not the first ones"
    assert list(choose_rows(rows, 80, 0)["x"]) == list(range(50))


# --- the two answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> str:
    """A dataset whose responses are answers alone."""
    folder = tmp_path_factory.mktemp("data") / "answers"
    write_dataset(*build(DataConfig(num_variables=[4], instruction="")), folder)
    return str(folder)


REQUEST = ("mode score", "use --mode generate")


def test_candidates_are_the_two_targets_whatever_the_label(answers, tokenizer):
    rows = load_split(answers, "train")
    no, yes = (templated(chat_writer(tokenizer), "", answer, special_tokens(tokenizer))[1] for answer in ANSWER_LINES)
    assert set(rows["label"]) == {0, 1} and {no, yes} == set(rows["response"])
    assert answer_candidates(answers, rows, *REQUEST) == [(no, yes)] * len(rows)
    swapped = {"response": [response.replace("No", "Yes") for response in rows["response"]]}
    assert answer_candidates(answers, swapped, *REQUEST) == [(no, yes)] * len(rows)


@pytest.mark.parametrize("response", ["Answer: Maybe", "", "Answer: Yes or No", "The node is the answer."])
def test_responses_that_are_not_one_answer(answers, response):
    message = "mode score: the response .* of dataset .* is not one Yes or No; use --mode generate"
    with pytest.raises(ValueError, match=message):
        answer_candidates(answers, {"response": ["Answer: Yes<|end|>", response]}, *REQUEST)


def test_candidates_of_a_dataset_of_other_targets(traces, tmp_path):
    with pytest.raises(ValueError, match="mode score: .* target trace, not answers alone; use --mode generate"):
        answer_candidates(traces, load_split(traces, "train"), *REQUEST)
    with pytest.raises(ValueError, match="mode score: dataset .* has no report.json, .*; use --mode generate"):
        answer_candidates(str(tmp_path), {"response": ["Answer: Yes<|end|>"]}, *REQUEST)
