"""Batches by premise: every row once, a function of (seed, epoch), fair shares; and datasets that are not there."""

import random
from collections import Counter

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from causal import graphs, reasoning, wording
from dataset.batches import (
    answer_candidates,
    choose_rows,
    encode_rows,
    epoch_batches,
    load_split,
    premise_groups,
    relabel_rows,
    share_of_rank,
    trace_style,
)
from dataset.chat import special_tokens, templated
from preprocess import ANSWERS, DataConfig, build, write_dataset

premise_lists = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60)
group_lists = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def numbered(sizes: list[int]) -> list[list[int]]:
    """Groups of those sizes that hold 0, 1, 2, ..."""
    rows = iter(range(sum(sizes)))
    return [[next(rows) for _ in range(size)] for size in sizes]


def flat(groups) -> list[int]:
    return [row for group in groups for row in group]


@settings(max_examples=100, deadline=None)
@given(premise_lists, st.integers(1, 8), st.booleans())
def test_groups_hold_one_premise_and_every_row_once(premises, size, shuffled):
    groups = premise_groups(premises, size, random.Random(0) if shuffled else None)
    assert sorted(flat(groups)) == list(range(len(premises)))
    for group in groups:
        assert 1 <= len(group) <= size and len({premises[row] for row in group}) == 1
        assert shuffled or group == sorted(group)
    of = Counter(premises[group[0]] for group in groups)
    assert all(of[p] == -(-count // size) for p, count in Counter(premises).items()), "as few groups as fit"


@settings(max_examples=100, deadline=None)
@given(premise_lists, st.integers(1, 8), st.integers(1, 20), st.integers(0, 3))
def test_epochs_hold_every_row_once_in_full_steps(premises, size, batch_size, seed):
    steps = epoch_batches(premises, seed, 0, size, batch_size)
    assert sorted(row for step in steps for row in flat(step)) == list(range(len(premises)))
    lengths = [len(flat(step)) for step in steps]
    assert all(length == batch_size for length in lengths[:-1]) and 1 <= lengths[-1] <= batch_size
    for group in (group for step in steps for group in step):
        assert 1 <= len(group) <= size and len({premises[row] for row in group}) == 1
    assert steps == epoch_batches(premises, seed, 0, size, batch_size)


def test_order_depends_on_seed_and_epoch():
    premises = [f"p{i // 6}" for i in range(60)]
    orders = {str(epoch_batches(premises, seed, epoch, 4, 8)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_premise_is_not_always_cut_at_the_same_rows():
    premises = ["p"] * 8
    assert len({str(sorted(map(sorted, epoch_batches(premises, 0, e, 4, 8)[0]))) for e in range(5)}) > 1


@settings(max_examples=150, deadline=None)
@given(group_lists, st.integers(1, 6))
def test_every_row_is_on_one_rank_and_shares_are_fair(sizes, world_size):
    groups = numbered(sizes)
    shares = [share_of_rank(groups, rank, world_size) for rank in range(world_size)]
    assert sorted(row for share in shares for row in flat(share)) == list(range(sum(sizes)))
    whole = {row: g for g, group in enumerate(groups) for row in group}
    for group in (group for share in shares for group in share):
        assert len({whole[row] for row in group}) == 1, "groups are split, never merged"
    counts = [len(flat(share)) for share in shares]
    assert max(counts) - min(counts) <= max(sizes)
    assert min(counts) >= 1 or sum(sizes) < world_size
    assert groups == numbered(sizes), "the caller's groups stay as they are"


@settings(max_examples=100, deadline=None)
@given(group_lists, st.integers(1, 4))
def test_shares_are_fair_in_what_a_group_costs(sizes, world_size):
    groups = numbered(sizes)
    cost = lambda group: 100 // len(group)  # noqa: E731  the smallest groups cost most
    shares = [share_of_rank(groups, rank, world_size, cost) for rank in range(world_size)]
    assert sorted(row for share in shares for row in flat(share)) == list(range(sum(sizes)))
    loads = [sum(map(cost, share)) for share in shares]
    assert max(loads) - min(loads) <= max(cost(group) for share in shares for group in share)


def test_nothing_to_share_for_more_ranks_than_rows():
    shares = [share_of_rank([[5, 6]], rank, 4) for rank in range(4)]
    assert sorted(map(len, shares)) == [0, 0, 1, 1] and sorted(row for share in shares for row in flat(share)) == [5, 6]


def test_prompts_and_responses_are_encoded_apart(tokenizer):
    rows = Dataset.from_list([{"prompt": "<|user|>\nA<|end|>\n<|assistant|>\n", "response": "Answer: No<|end|>"}])
    (prompt,), (response,) = encode_rows(tokenizer, rows)
    assert tokenizer.decode(prompt) == rows[0]["prompt"] and tokenizer.decode(response) == rows[0]["response"]


# --- datasets on disk


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


# --- relabelling


@pytest.fixture(scope="module")
def traces(tmp_path_factory) -> str:
    """A dataset whose responses are traces."""
    folder = tmp_path_factory.mktemp("data") / "traces"
    config = DataConfig(num_variables=[4], target="trace", trace_style="full", max_length=4000)
    write_dataset(*build(config), folder)
    return str(folder)


def test_relabelled_rows_ask_the_same_in_other_letters(traces):
    rows = load_split(traces, "train").select(range(72))
    columns = relabel_rows(rows, trace_style(traces), 0, 0)
    changed = 0
    for row, prompt, response, relabelled, hypothesis in zip(rows, *columns.values(), strict=True):
        text = prompt[prompt.index("Premise: ") :].split("<|end|>")[0]
        premise_text, stated = wording.split_input(text)
        premise, claim = wording.parse_claim(premise_text, hypothesis)
        assert (premise_text, stated) == (relabelled, hypothesis)
        assert graphs.structure_id(premise) == row["structure_id"]
        assert graphs.exact_label(graphs.markov_equivalence_class(premise), claim) == row["label"]
        assert response == reasoning.trace(premise, claim, "full") + "<|end|>"
        assert prompt.replace(text, row["input"]) == row["prompt"]
        changed += prompt != row["prompt"]
    assert changed > 60
    assert len({prompt.split("\nHypothesis")[0] for prompt in columns["prompt"]}) == len(set(rows["premise_id"])) == 2


def test_every_epoch_has_letters_of_its_own_and_repeats_itself(traces):
    rows = load_split(traces, "train").select(range(40))
    epochs = [tuple(relabel_rows(rows, None, 0, epoch)["prompt"]) for epoch in range(5)]
    assert len(set(epochs)) == 5 and tuple(relabel_rows(rows, None, 0, 3)["prompt"]) == epochs[3]
    assert tuple(relabel_rows(rows, None, 1, 3)["prompt"]) != epochs[3]
    assert relabel_rows(rows, None, 0, 3)["response"] == rows["response"][:]


def test_what_cannot_be_relabelled_is_refused(traces, tmp_path):
    rows = load_split(traces, "train").select(range(3))
    with pytest.raises(ValueError, match="relabel_each_epoch: the response to 'Premise: .* is not its trace"):
        relabel_rows(rows, "compact", 0, 0)
    with pytest.raises(ValueError, match="relabel_each_epoch: the prompt does not hold its input"):
        relabel_rows(rows.map(lambda row: {"prompt": "Question?"}), None, 0, 0)
    with pytest.raises(ValueError, match="relabel_each_epoch: .* has no report.json, .*; use relabel_each_epoch false"):
        trace_style(str(tmp_path))
    (tmp_path / "report.json").write_text('{"config": {"target": "teacher"}}')
    with pytest.raises(ValueError, match="not for target teacher"):
        trace_style(str(tmp_path))
    (tmp_path / "report.json").write_text('{"config": {"target": "answer", "trace_style": "compact"}}')
    assert trace_style(str(tmp_path)) is None


# --- the two answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> str:
    """A dataset whose responses are answers alone."""
    folder = tmp_path_factory.mktemp("data") / "answers"
    write_dataset(*build(DataConfig(num_variables=[4], instruction="")), folder)
    return str(folder)


REQUEST = ("estimator exact", "use estimator sampled")


def test_candidates_are_the_two_targets_whatever_the_label(answers, tokenizer):
    rows = load_split(answers, "train")
    no, yes = (templated(tokenizer, "", answer, special_tokens(tokenizer))[1] for answer in ANSWERS)
    assert set(rows["label"]) == {0, 1} and {no, yes} == set(rows["response"])
    assert answer_candidates(answers, rows, *REQUEST) == [(no, yes)] * len(rows)
    swapped = {"response": [response.replace("No", "Yes") for response in rows["response"]]}
    assert answer_candidates(answers, swapped, *REQUEST) == [(no, yes)] * len(rows)


@pytest.mark.parametrize("response", ["Answer: Maybe", "", "Answer: Yes or No", "The node is the answer."])
def test_responses_that_are_not_one_answer(answers, response):
    message = "estimator exact: the response .* of dataset .* is not one Yes or No; use estimator sampled"
    with pytest.raises(ValueError, match=message):
        answer_candidates(answers, {"response": ["Answer: Yes<|end|>", response]}, *REQUEST)


def test_candidates_of_a_dataset_of_other_targets(traces, tmp_path):
    with pytest.raises(ValueError, match="estimator exact: .* target trace, not answers alone; use estimator sampled"):
        answer_candidates(traces, load_split(traces, "train"), *REQUEST)
    with pytest.raises(ValueError, match="estimator exact: dataset .* has no report.json, .*; use estimator sampled"):
        answer_candidates(str(tmp_path), {"response": ["Answer: Yes<|end|>"]}, *REQUEST)


def test_rows_are_chosen_at_random_and_by_the_seed_alone():
    rows = Dataset.from_dict({"x": list(range(50))})
    chosen = [choose_rows(rows, 10, seed)["x"] for seed in (0, 0, 1)]
    assert list(chosen[0]) == list(chosen[1]) == sorted(set(chosen[0])) and len(chosen[0]) == 10
    assert list(chosen[2]) != list(chosen[0]) and chosen[0][-1] >= 10, "not the first ones"
    assert list(choose_rows(rows, 80, 0)["x"]) == list(range(50))
