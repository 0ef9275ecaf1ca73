"""The prompts of a GRPO run: their queue, in groups of one premise, and those that are chosen by their pass rate."""

from types import SimpleNamespace

import pytest
from datasets import Dataset
from made_up import write_jsonl

from dataset.chat import encode
from train_grpo import Config
from training.rollouts import PromptQueue, at_the_edge, make_prompts


def toy_rows(size: int = 20) -> Dataset:
    """Rows of a task of its own, five on each premise, as a user's dataset may have them."""
    columns = {"prompt": [f"say {k}" for k in range(size)], "response": [f"{k}" for k in range(size)]}
    return Dataset.from_dict(columns | {"premise_id": [f"p{k // 5}" for k in range(size)], "word": columns["response"]})


def queue_of(tokenizer, rows: Dataset, seed: int, rank: int = 0, ranks: int = 1) -> PromptQueue:
    accelerator = SimpleNamespace(process_index=rank, num_processes=ranks)
    return PromptQueue(accelerator, tokenizer, rows, seed, claims_per_prefix=2, new_tokens=8)


def test_the_queue_gives_every_prompt_once_an_epoch_in_groups_of_one_premise(tokenizer):
    rows = toy_rows()

    def taken(queue, counts):
        return [[[p.index for p in group] for group in queue.take(count)] for count in counts]

    def ordered(steps):
        return [sorted(sum(step, [])) for step in steps]

    queue = queue_of(tokenizer, rows, 3)
    steps = taken(queue, [7, 7, 6, 7])
    assert queue.epoch == 1
    first = [row for step in steps[:3] for group in step for row in group]
    assert sorted(first) == list(range(20)) and first != list(range(20))
    for step, size in zip(steps, (7, 7, 6, 7), strict=True):
        assert sum(map(len, step)) == size
        assert all(len(group) <= 2 and len({rows["premise_id"][row] for row in group}) == 1 for group in step)
    assert taken(queue_of(tokenizer, rows, 3), [7, 7, 6, 7]) == steps
    assert taken(queue_of(tokenizer, rows, 4), [7, 7, 6, 7]) != steps
    dropped = queue_of(tokenizer, rows, 3)
    taken(dropped, [15])
    assert taken(dropped, [15]) != [[]] and dropped.epoch == 1, "what an epoch has left over is dropped"
    halves = [taken(queue_of(tokenizer, rows, 3, rank, 2), [7, 7, 6, 7]) for rank in (0, 1)]
    assert ordered(a + b for a, b in zip(*halves, strict=True)) == ordered(steps), "ranks share each step"
    assert all(a and b for a, b in zip(*halves, strict=True))


def test_the_first_step_is_seen_without_being_taken(tokenizer):
    queue = queue_of(tokenizer, toy_rows(), 3)
    prompts, responses = queue.first(6)
    assert queue.state() | {"rows": ""} == {"epoch": -1, "taken": 0, "rows": ""}
    groups = queue.take(6)
    assert prompts == [[prompt.tokens for prompt in group] for group in groups]
    assert responses == [[encode(tokenizer, prompt.row["response"]) for prompt in group] for group in groups]


def test_a_queue_goes_on_where_another_stopped(tokenizer):
    whole, other = queue_of(tokenizer, toy_rows(), 3), queue_of(tokenizer, toy_rows(), 3)
    for count in (7, 7, 6, 4):
        whole.take(count)
    other.restore(whole.state())
    assert other.take(5) == whole.take(5) and other.state() == whole.state()
    fewer = queue_of(tokenizer, toy_rows().select(range(10)), 3)  # another choice of rows, in another order, is begun
    fewer.restore(whole.state())
    assert fewer.state() == queue_of(tokenizer, toy_rows().select(range(10)), 3).state()
    assert len(sum(fewer.take(10), [])) == 10


def test_prompts_hold_what_their_rows_say(tokenizer):
    rows = toy_rows(2)
    one, two = make_prompts(tokenizer, rows)
    assert one.tokens == encode(tokenizer, "say 0") and (one.index, two.index) == (0, 1)
    assert two.row == {"prompt": "say 1", "response": "1", "premise_id": "p0", "word": "1"}
    changed = {"prompt": ["tell 0", "tell 1"], "word": ["zero", "one"]}
    other = make_prompts(tokenizer, rows.add_column("edges", ["A", "B"]), changed)[1]
    assert other.tokens == encode(tokenizer, "tell 1")
    assert other.row == {"prompt": "tell 1", "response": "1", "premise_id": "p0", "word": "one"}


# --- prompts at the edge


def scored_directory(place, pass_at_1: dict[str, float]):
    place.mkdir()
    shared = {"label": 1, "prediction": 1}
    rows = [{"input": text, **shared, "means": {"pass@1": rate}} for text, rate in pass_at_1.items()]
    write_jsonl(place / "predictions.jsonl", rows)
    (place / "metrics.json").write_text('{"name": "scored"}')
    return str(place)


def test_prompts_are_chosen_by_their_pass_rate(tmp_path):
    rows = Dataset.from_dict({"input": list("abcdef")})
    place = scored_directory(tmp_path / "scored", {"a": 0.0, "b": 0.125, "c": 0.5, "d": 0.8, "e": 1.0, "z": 0.5})
    kept, said = at_the_edge(rows, place, 0.1, 0.8)
    assert kept["input"][:] == ["b", "c", "d"]
    assert said == "pass rates of a model: 3 of 6 prompts are within 0.1 to 0.8; 1 above, 1 below, 1 unknown"
    with pytest.raises(ValueError, match=r"no prompt is left. pass rates of a model: 0 of 6 .* name other bounds"):
        at_the_edge(rows, place, 0.9, 0.95)
    with pytest.raises(ValueError, match="pass_rates: .*nowhere has no metrics.json; write it with python evaluate.py"):
        at_the_edge(rows, str(tmp_path / "nowhere"), 0.1, 0.8)
    greedy = tmp_path / "greedy"
    scored_directory(greedy, {"a": 0.5})
    (greedy / "predictions.jsonl").write_text('{"input": "a", "label": 1, "prediction": 1}\n')
    with pytest.raises(ValueError, match="pass_rates: .* has one answer a row; .*--num_samples 8, of this run"):
        at_the_edge(rows, str(greedy), 0.1, 0.8)
    with pytest.raises(ValueError, match="pass_rate: two numbers, the lower one first, got"):
        Config(pass_rate=[0.8, 0.1])
    with pytest.raises(ValueError, match="pass_rate: bounds of pass_rates, which names no directory"):
        Config(pass_rate=[0.2, 0.6])
