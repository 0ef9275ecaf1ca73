"""The model of time: its counts against other ways to count, and a plan by hand."""

import json
from dataclasses import replace
from heapq import heapify, heapreplace

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

import train_grpo
import train_sft
from policy.shapes import empty_model, with_layers
from runtime.settings import parse_config
from training import hours
from training.demand import Demand, demand_of
from training.hours import Clock, Lengths, Rates, Run, Size, lengths_of, nearest_rates, parts_of, read_rates, run_of

RATES = Rates(
    memory_gb=1, bandwidth=100, operations=1000, bandwidth_share=0.5, operations_share=0.1, launch_us=1e6, nf4_rows=8
)
SIZE = Size(base=10, lora=2, head=5, width=3, cached=4, nf4=False, passes=3, sequences=4, launches=7)


@pytest.fixture(scope="module")
def demand() -> Demand:
    _, found = demand_of(train_grpo.Config(model="tiny", num_generations=4, max_new_tokens=8))
    return replace(found, shape=with_layers(found.shape, 4))


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"),
    [(65, 64, 3.0), (105, 10, 3.0), (1000, 10, 2.1), (1000, 10, 1.1), (64, 64, 0.5), (64, 8, 1e-9)],
)
def test_as_many_steps_of_sft_are_foreseen_as_are_taken(tmp_path, rows, batch, epochs):
    (tmp_path / "report.json").write_text(json.dumps({"splits": {"train": {"rows": rows}}}))
    config = train_sft.Config(dataset=str(tmp_path), batch_size=batch, num_train_epochs=epochs)
    taken = train_sft.plan_steps([str(k) for k in range(rows)], config)
    assert hours.sft_steps(config) == len(taken)
    if rows == 1000:
        assert len(taken) == round(100 * epochs), "and no step is of rounding"


def test_operations_are_those_that_torch_counts(demand):
    """On the plain path, whose kernels compute every pair; the adapter by its formula, as torch sees none here."""
    model = empty_model(demand.shape)
    model.set_attn_implementation("sdpa")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=torch.zeros((1, 24), dtype=torch.long, device="meta"))
    size = hours.size_of(replace(demand, lora_targets=()))
    assert size.lora == 0 and size.operations(24, 24 * 24, 24) == counted.get_total_flops()
    one = hours.size_of(replace(demand, lora_targets=("o_proj",), lora_r=3))
    assert one.lora == 4 * 3 * 2 * demand.shape.hidden_size and one.base == size.base


@pytest.mark.parametrize("rank, recompute, passes", [(4, False, 2), (4, True, 3), (0, False, 3), (0, True, 4)])
def test_an_update_costs_forward_recomputation_and_backward(demand, rank, recompute, passes):
    assert hours.size_of(replace(demand, lora_r=rank, gradient_checkpointing=recompute)).passes == passes


def test_launches_grow_by_a_layer_as_counted(demand):
    two, three = (hours.launches(replace(demand, shape=with_layers(demand.shape, n))) for n in (2, 3))
    model = hours.policy_without_data(replace(demand, shape=with_layers(demand.shape, 3)), 3, lean=True)
    with hours.Launches(model) as seen:
        hours.perform(model, "sample", 2 * demand.sequences + 9, demand.sequences, seen.restart)
    assert three == seen.count and 20 < three - two < 200


def test_nf4_weights_are_unpacked_for_many_rows():
    size = replace(SIZE, base=1000, nf4=True)
    few, many = (size.weight_bytes(rows, nf4_rows=8) for rows in (8, 9))
    assert 500 < few - 14 < 550 and many - few == 4000  # 4 bits and their scales; written and read in half precision
    assert SIZE.weight_bytes(9, nf4_rows=8) == 2 * 17


def served(lengths: list[int], places: int) -> int:
    """Steps until all are done, if each that is done leaves its place to the next."""
    ends = [0] * places
    heapify(ends)
    for length in lengths:
        heapreplace(ends, ends[0] + length)
    return max(ends)


@pytest.mark.parametrize("sequences", [3, 4, 20])
def test_decoding_steps_are_those_of_a_queue(sequences):
    equal = Clock(SIZE, RATES, Lengths(10, 6, 6)).decoding(sequences, 1)
    assert equal.steps == pytest.approx(max(sequences, 4) / 4 * 6)
    if sequences % 4 == 0:
        assert equal.steps == served([6] * sequences, 4) and equal.sequences == min(sequences, 4)
    lengths = [4, 8] * sequences
    varied = Clock(SIZE, RATES, Lengths(10, 6, 8)).decoding(len(lengths), 1)
    assert abs(varied.steps - served(lengths, 4)) <= 2  # tokens by which the longest is longer than most


def test_a_step_of_decoding_by_hand():
    """Four sequences of two prompts, each with half of its 6 tokens: 2 · 10 + 4 · 3 tokens are read, 4 bytes each."""
    seconds = Clock(SIZE, RATES, Lengths(10, 6, 6)).decoding(4, 2).seconds
    assert seconds == {
        "7 launches": pytest.approx(7),
        "memory": pytest.approx((2 * 17 + 4 * 32) / 50),
        "operations": pytest.approx((4 * 2 * 17 + 4 * 3 * 4 * 13) / 100),
    }


@pytest.mark.parametrize("cards", [1, 2])
def test_a_run_by_hand(cards):
    """GRPO: 2 prompts of 100 tokens (64 of them the claim) share a premise; 3 samples of 10 tokens each."""
    clock = Clock(SIZE, RATES, Lengths(100, 10, 10))
    run = Run(steps=5, rows=2 * cards, samples=3, claims=2, updates=2, evaluations=4, eval_rows=8 * cards)
    parts, sampling = parts_of(run, clock, cards, reference=True)
    prompts, completions = 2 * 64 + 36, 2 * 3 * 10
    prefill, forward = clock.forward(prompts, 0), clock.forward(prompts, completions)
    assert prefill == pytest.approx((2 * 12 * prompts + 4 * 3 * prompts * 50) / 100)
    assert forward - prefill == pytest.approx((2 * 17 + 4 * 3 * 105) * completions / 100)
    assert sampling == clock.decoding(6, 3)
    evaluation = 4 * (clock.forward(8 * 100, 0) + clock.decoding(8, 1).total)
    expected = {
        "prefill": (prompts, prefill),
        "decode": (completions, sampling.total),
        "reference": (prompts + completions, forward),
        "update": (2 * (prompts + completions), 2 * 3 * forward),
    }
    assert [part.name for part in parts] == [*expected, "evaluation"]
    for part, (tokens, seconds) in zip(parts, expected.values(), strict=False):
        assert part.tokens == 5 * cards * tokens and part.seconds == pytest.approx(5 * seconds)
    assert parts[-1].tokens == 4 * 8 * cards * 110 and parts[-1].seconds == pytest.approx(evaluation)


def test_sft_learns_and_evaluates_alone():
    clock = Clock(SIZE, RATES, Lengths(100, 10, 10))
    parts, sampling = parts_of(Run(5, 8, 1, 1, 1, 4, 8), clock, 1, reference=False)
    update, evaluation = parts
    assert (update.name, evaluation.name) == ("update", "evaluation") and sampling == clock.decoding(8, 1)
    assert update.seconds == pytest.approx(5 * 3 * clock.forward(800, 80))
    assert evaluation.seconds == pytest.approx(4 * (clock.forward(800, 0) + sampling.total + clock.forward(800, 80)))


def test_steps_and_evaluations_of_recipes(tmp_path):
    grpo = run_of(train_grpo.Config(model="tiny", max_steps=101, eval_steps=50, prefix_sharing=False))
    assert (grpo.steps, grpo.evaluations, grpo.claims, grpo.samples) == (101, 4, 1, 8)  # at 0, 50, 100, 101
    recipe = ROOT / "configs/sft_phi3.yaml"
    sft = run_of(parse_config(train_sft.Config, ["--config", str(recipe), "--eval_steps", "0"]))
    assert (sft.steps, sft.evaluations, sft.samples, sft.claims) == (939, 1, 1, 16)  # 3 times 10,000 by 32
    nothing = train_sft.Config(dataset=str(tmp_path))
    with pytest.raises(ValueError, match="dataset: nothing tells how many rows .* preprocess.py, or give --max_steps"):
        run_of(nothing)
    (tmp_path / "report.json").write_text(json.dumps({"splits": {"train": {"rows": 640}}}))
    assert run_of(nothing).steps == 30


def test_lengths_are_given_or_the_datasets_or_the_bound(tmp_path):
    recipe = train_grpo.Config(dataset=str(tmp_path), max_new_tokens=500)
    assert lengths_of(recipe) == Lengths(464, 500, 500)
    points = {"prompt": {"mean": 120, "p50": 100, "max": 900}, "response": {"mean": 300, "p50": 310, "max": 800}}
    (tmp_path / "report.json").write_text(json.dumps({"tokens": {"train": points}}))
    assert lengths_of(recipe) == Lengths(120, 300, 500)
    assert lengths_of(recipe, prompt_tokens=70, completion_tokens=900) == Lengths(70, 500, 500)
    assert lengths_of(replace(recipe, max_new_tokens=900)) == Lengths(120, 300, 800)
    del points["prompt"]["mean"]  # as datasets had it before
    (tmp_path / "report.json").write_text(json.dumps({"tokens": {"train": points}}))
    assert lengths_of(recipe).prompt == 100


def test_a_card_is_known_by_its_memory_or_by_a_file(tmp_path):
    assert [nearest_rates(gb * 1e9).name for gb in (11, 23, 80)] == [
        "NVIDIA RTX 2080 Ti", "NVIDIA L4", "NVIDIA H100"
    ]  # fmt: skip
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: {ROOT / 'configs/rates/l4.yaml'}\nlaunch_us: 5\n")
    assert read_rates(str(mine)) == replace(read_rates(str(ROOT / "configs/rates/l4.yaml")), launch_us=5.0)
    mine.write_text("memory_gb: 11\nbandwidth: 1e9\n")
    with pytest.raises(ValueError, match="operations: must be above 0"):
        read_rates(str(mine))
    with pytest.raises(ValueError, match="rates: nowhere.yaml is no file; those of the project are in configs/rates"):
        read_rates("nowhere.yaml")
