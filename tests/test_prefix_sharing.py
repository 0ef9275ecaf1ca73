"""Packed log-probabilities and gradients against one padded row a sequence; the packed layout against brute force."""

import pytest
import torch
from conftest import VOCABULARY, assert_same_gradients, build_model, gradients, random_groups
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_sharing import pack, padded_logps, plan_micro_batches, sequence_logps

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=6)
token_groups = st.lists(st.lists(sequences, min_size=1, max_size=6), min_size=1, max_size=4)


def flat(groups: list[list]) -> list:
    return [sequence for group in groups for sequence in group]


# --- layout


@settings(max_examples=60, deadline=None)
@given(token_groups)
def test_every_sequence_sees_itself_and_nothing_else(groups):
    tree = pack(groups)
    inputs = tree.tensors(torch.device("cpu"))
    visible = inputs["attention_mask"][0, 0]
    for sequence, path in zip(flat(groups), tree.paths, strict=True):
        assert inputs["input_ids"][0, path].tolist() == sequence
        assert inputs["position_ids"][0, path].tolist() == list(range(len(sequence)))
        for depth, node in enumerate(path):
            assert visible[node].nonzero()[:, 0].tolist() == path[: depth + 1]
            assert tree.parents[node] == (path[depth - 1] if depth else -1)


@settings(max_examples=60, deadline=None)
@given(token_groups)
def test_one_node_for_each_distinct_prefix_of_a_group(groups):
    prefixes = {(g, tuple(s[:k])) for g, group in enumerate(groups) for s in group for k in range(1, len(s) + 1)}
    assert len(pack(groups)) == len(prefixes)
    assert len(pack(groups, share=False)) == sum(map(len, flat(groups)))


@settings(max_examples=60, deadline=None)
@given(token_groups, st.integers(1, 30), st.booleans())
def test_plan_holds_every_group_once_within_the_budget(groups, budget, share):
    plan = plan_micro_batches(groups, budget, share)
    assert sorted(g for batch in plan for g in batch) == list(range(len(groups)))
    sizes = [len(pack([groups[g] for g in batch], share)) for batch in plan]
    for batch, size in zip(plan, sizes, strict=True):
        assert len(batch) >= 1 and (size <= budget or len(batch) == 1)
    largest = max(len(pack([group], share)) for group in groups)
    assert largest == len(pack([groups[plan[0][0]]], share)), "the largest group comes first"


def test_plan_leaves_room_for_new_tokens():
    groups = [[[1, 2], [1, 3]], [[4]], [[5, 6, 7]]]  # 3, 1 and 3 packed tokens, and 2, 1 and 1 sequences that grow
    assert plan_micro_batches(groups, 12, new_tokens=2) == [[0, 2], [1]]
    assert plan_micro_batches(groups, 15, new_tokens=2) == [[0, 2, 1]]
    assert plan_micro_batches(groups, 12) == [[0, 2, 1]]


# --- numbers


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_packed_equals_padded(family, lora, seed):
    model = build_model(family, lora, seed)
    prompts, completions = random_groups(seed)
    expected, expected_mask = padded_logps(model, flat(prompts), flat(completions))
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed))
    (expected * weights).sum().backward()
    expected_gradients = gradients(model)
    for share in (True, False):
        logps, _, mask = sequence_logps(model, prompts, completions, share=share)
        assert torch.equal(mask, expected_mask)
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
        (logps * weights).sum().backward()
        assert_same_gradients(gradients(model), expected_gradients)


def test_sharing_saves_tokens_of_these_groups():
    prompts, completions = random_groups(0)
    groups = [[p + c for p, c in zip(*group, strict=True)] for group in zip(prompts, completions, strict=True)]
    assert len(pack(groups)) < 0.7 * len(pack(groups, share=False))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(family, temperature):
    model = build_model(family)
    prompt, completion = [5, 9, 2], [7, 3, 3, 1]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, 2:6] / temperature
        logps, entropies, _ = sequence_logps(model, [[prompt]], [[completion]], temperature)
    expected = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(logps[0], expected.log_prob(torch.tensor(completion)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies[0], expected.entropy(), atol=1e-5, rtol=1e-5)


def test_values_are_zero_beyond_a_completion_and_entropies_without_gradient():
    model = build_model("phi3")
    logps, entropies, mask = sequence_logps(model, [[[4, 5], [4, 5]]], [[[1], [2, 3, 4]]])
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert (logps[~mask] == 0).all() and (entropies[~mask] == 0).all()
    assert (logps[mask] < 0).all() and not entropies.requires_grad and logps.requires_grad


def test_rows_come_in_the_order_of_the_groups():
    model = build_model("qwen2")
    prompts, completions = random_groups(7)
    with torch.no_grad():
        together, _, _ = sequence_logps(model, prompts, completions)
        b = 0
        for group_prompts, group_completions in zip(prompts, completions, strict=True):
            for prompt, completion in zip(group_prompts, group_completions, strict=True):
                alone, _, _ = sequence_logps(model, [[prompt]], [[completion]])
                torch.testing.assert_close(together[b, : len(completion)], alone[0], atol=1e-5, rtol=1e-5)
                b += 1


def test_checkpointed_backward_gives_the_same_gradients(family):
    model = build_model(family, lora=True)
    prompts, completions = random_groups(3)
    sequence_logps(model, prompts, completions)[0].sum().backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    sequence_logps(model, prompts, completions)[0].sum().backward()
    assert_same_gradients(gradients(model), expected)


def test_half_precision_logits_are_normalised_in_fp32():
    model = build_model("qwen2").to(torch.bfloat16)
    with torch.no_grad():
        logps, entropies, _ = sequence_logps(model, [[[3, 4]] * VOCABULARY], [[[v] for v in range(VOCABULARY)]])
    assert logps.dtype == entropies.dtype == torch.float32
    assert abs(float(logps.exp().sum()) - 1) < 1e-5
