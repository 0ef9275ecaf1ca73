"""Packed log-probabilities and gradients against one padded row a sequence; the packed layout against brute force."""

import random

import pytest
import torch
from conftest import (
    LORA_TARGETS,
    SMALL,
    VOCABULARY,
    assert_same_gradients,
    build_model,
    gradients,
    padded_logps,
    random_groups,
    randomize_lora_b,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Phi3Config, Phi3ForCausalLM

from policy import prefix_sharing
from policy.loading import load_policy, save_model
from policy.prefix_sharing import (
    pack,
    plan_micro_batches,
    sequence_logps,
)

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=6)
token_groups = st.lists(st.lists(sequences, min_size=1, max_size=6), min_size=1, max_size=4)
CPU = torch.device("cpu")


def flat(groups: list[list]) -> list:
    return [sequence for group in groups for sequence in group]


@pytest.fixture(params=[3, 128])
def tile(request, monkeypatch) -> int:
    """Few queries a tile, so that short rows have many tiles; and the tile that is used."""
    monkeypatch.setattr(prefix_sharing, "TILE", request.param)
    return request.param


# --- layout


def visible_pairs(tree, window=None) -> torch.Tensor:
    """The (L, L) mask that the pieces stand for."""
    visible = torch.zeros((len(tree), len(tree)), dtype=torch.int)
    met = set()
    for piece in tree.pieces(CPU, window):
        rows, keys = (range(len(tree))[s] for s in (piece.rows, piece.keys))
        seen = torch.ones((len(rows), len(keys)), dtype=torch.bool)
        if piece.causal:
            seen = seen.tril()
        if piece.mask is not None:
            seen = piece.mask[0, 0, :, : len(keys)] == 0
            assert (piece.mask[0, 0][:, : len(keys)][~seen] == prefix_sharing.UNSEEN).all()
        if rows == keys:
            assert not met & set(rows), "the first piece of a token is written, not added"
            met |= set(rows)
        assert seen.any(), "a piece for nothing"
        assert rows != keys or seen.any(dim=-1).all(), "what is written first is what is added to"
        assert met.issuperset(rows), "the others are added to it"
        visible[piece.rows, piece.keys] += seen
    assert met == set(range(len(tree)))
    assert visible.max() == 1, "a key that is seen twice counts twice"
    return visible.bool()


@pytest.mark.parametrize("tile", [1, 4, 128])
@settings(max_examples=60)
@given(groups=token_groups, window=st.none() | st.integers(1, 9), window_tile=st.integers(1, 9))
def test_every_sequence_sees_itself_within_its_window_and_nothing_else(tile, groups, window, window_tile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_sharing, "TILE", tile)
        patch.setattr(prefix_sharing, "WINDOW_TILE", window_tile)
        tree = pack(groups)
        inputs, visible = tree.inputs(CPU), visible_pairs(tree, window)
    for sequence, path in zip(flat(groups), tree.paths, strict=True):
        assert inputs["input_ids"][0, path].tolist() == sequence
        assert inputs["position_ids"][0, path].tolist() == list(range(len(sequence)))
        for depth, node in enumerate(path):
            first = 0 if window is None else max(0, depth + 1 - window)
            assert visible[node].nonzero()[:, 0].tolist() == path[first : depth + 1]
            assert tree.parents[node] == (path[depth - 1] if depth else -1)


@settings(max_examples=60)
@given(token_groups)
def test_one_node_for_each_distinct_prefix_of_a_group(groups):
    prefixes = {(g, tuple(s[:k])) for g, group in enumerate(groups) for s in group for k in range(1, len(s) + 1)}
    assert len(pack(groups)) == len(prefixes)


def test_the_mask_grows_with_the_tokens_not_with_their_square():
    """A prompt of 300 tokens with 8 completions of 60, once, twice and four times in a row."""
    rng = random.Random(0)
    groups = []
    for _ in range(4):
        prompt = [rng.randrange(50) for _ in range(300)]
        groups.append([prompt + [rng.randrange(50) for _ in range(60)] for _ in range(8)])
    pairs = []
    for taken in (groups[:1], groups[:2], groups):
        tree = pack(taken)
        pieces = tree.pieces(CPU)
        masks = sum(piece.mask.numel() for piece in pieces if piece.mask is not None)
        assert 0 < masks <= (prefix_sharing.TILE + 7) * len(tree)
        assert len(pieces) <= 4 * len(tree.paths)
        pairs.append(sum((p.rows.stop - p.rows.start) * (p.keys.stop - p.keys.start) for p in pieces))
    assert pairs[0] < 0.6 * len(pack(groups[:1])) ** 2
    assert pairs[2] < 2.2 * pairs[1]


@settings(max_examples=100)
@given(token_groups, st.integers(1, 30), st.booleans())
def test_plan_holds_every_group_once_within_the_budget(groups, budget, share):
    plan = plan_micro_batches(groups, budget, share)
    assert sorted(g for batch in plan for g in batch) == list(range(len(groups)))

    def computed(batch: list[int]) -> int:
        """Tokens of a forward pass over these groups."""
        if share:
            return len(pack([groups[g] for g in batch]))
        rows = [sequence for g in batch for sequence in groups[g]]
        return len(rows) * max(map(len, rows))

    for batch in plan:
        assert len(batch) >= 1 and (computed(batch) <= budget or len(batch) == 1)
    if share:
        assert computed([plan[0][0]]) == max(computed([g]) for g in range(len(groups))), "the largest comes first"


def test_plan_of_three_groups_by_hand():
    groups = [[[1, 2], [1, 3]], [[4]], [[5, 6, 7]]]  # 3, 1 and 3 packed tokens
    assert plan_micro_batches(groups, 6) == [[0, 2], [1]]
    assert plan_micro_batches(groups, 7) == [[0, 2, 1]]


# --- numbers


def assert_paths_agree(model, prompts, completions, seed: int = 0) -> None:
    """Log-probabilities within 1e-5 and gradients within 1e-4, packed and plain, of those of ordinary padded rows."""
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


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_filling_a_row_changes_nothing_of_it(multiple):
    tree = pack([[[1, 2, 3], [1, 2, 4]], [[5, 6]]])
    before, visible = len(tree), visible_pairs(tree)
    tree.fill(multiple)
    assert len(tree) == -(-before // multiple) * multiple
    after = visible_pairs(tree)
    assert torch.equal(after[:before, :before], visible)
    assert not after[:before, before:].any() and not after[before:, :before].any()


@pytest.mark.parametrize("prompt_length", [1, 7])
def test_rows_in_bf16_on_a_cpu_meet_few_shapes(prompt_length, monkeypatch):
    model = build_model("phi3").to(torch.bfloat16)
    prompts, completions = [[[3] * prompt_length] * 2, [[4] * prompt_length]], [[[5, 6, 7], [5, 8]], [[9]]]
    shapes = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[-2]))
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[1]))
    found = []
    for multiple in (1, 16):
        monkeypatch.setattr(prefix_sharing, "CPU_BF16_TOKENS", multiple)
        logps, _, mask = sequence_logps(model, prompts, completions)
        logps.sum().backward()
        found.append((logps, mask, gradients(model)))
    plain, filled = shapes[: len(shapes) // 2], shapes[len(shapes) // 2 :]
    assert any(n % 16 for n in plain) and not any(n % 16 for n in filled)
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][0], found[1][0], atol=0.03, rtol=0.01)
    for name, gradient in found[0][2].items():
        assert (found[1][2][name] - gradient).norm() <= 0.03 * gradient.norm(), name


KINDS = ("full", "lora", "nf4")


@pytest.fixture(scope="module")
def model_of(tokenizer, tmp_path_factory):
    """model_of(family, kind, checkpointing): a full model, LoRA on it, or LoRA on its nf4 weights."""

    def build(family: str, kind: str, checkpointing: bool):
        if kind != "nf4":
            model = build_model(family, lora=kind == "lora")
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            return model.train(checkpointing)  # checkpointing is only active in training
        directory = tmp_path_factory.mktemp("base")
        save_model(build_model(family), tokenizer, directory)
        model = load_policy(
            str(directory), adaptation="lora", quantization="nf4", dtype=torch.float32, device=CPU, lora_r=4,
            lora_target_modules=",".join(LORA_TARGETS[family]), gradient_checkpointing=checkpointing,
        )  # fmt: skip
        randomize_lora_b(model)
        return model

    built = {}
    return lambda *key: built[key] if key in built else built.setdefault(key, build(*key))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [5, 128])
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), num_groups=st.integers(1, 5))
def test_packed_equals_padded(model_of, family, kind, checkpointing, tile, seed, num_groups):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_sharing, "TILE", tile)
        assert_paths_agree(model_of(family, kind, checkpointing), *random_groups(seed, num_groups), seed)


def test_premise_claims_and_completions_share_in_one_tree(family, tile):
    """Nested sharing: G completions of every claim of a premise."""
    rng = random.Random(0)
    premise, claims = [7] * 9, [[20, c] for c in range(3)]
    prompts = [[premise + claim for claim in claims for _ in range(4)]]
    completions = [[[30, rng.randrange(40, 44), 50 + k % 4] for k in range(12)]]
    assert len(pack([[p + c for p, c in zip(prompts[0], completions[0], strict=True)]])) <= 9 + 1 + 3 + 12 * 3
    assert_paths_agree(build_model(family), prompts, completions)


@pytest.mark.parametrize("share", [True, False])
def test_positions_with_gaps_are_what_the_model_gets(family, share):
    prompts, completions = random_groups(1, 4)
    longest = max(len(p) + len(c) for p, c in zip(flat(prompts), flat(completions), strict=True))
    positions = torch.tensor(sorted(random.Random(0).sample(range(3 * longest), longest)))
    model = build_model(family)
    got, _, mask = sequence_logps(model, prompts, completions, share=share, positions=positions)
    expected, _ = padded_logps(model, flat(prompts), flat(completions), positions=positions)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    plain, _, _ = sequence_logps(model, prompts, completions, share=share)
    assert (got - plain)[mask].abs().max() > 1e-3, "positions make no difference here"


def long_group(seed: int, prompt: int, new_tokens: list[int]) -> tuple[list, list]:
    """Completions of one prompt; the first two begin alike."""
    rng = random.Random(seed)
    shared, *completions = ([rng.randrange(VOCABULARY) for _ in range(n)] for n in (prompt, *new_tokens))
    completions[1][: new_tokens[0] // 2] = completions[0][: new_tokens[0] // 2]
    return [[shared] * len(completions)], [completions]


def test_long_sequences_attend_in_every_kind_of_piece(family):
    """At the size that is used: causal, without a mask, and with one; longer than the blocks of the kernels."""
    prompts, completions = long_group(0, 300, [270, 280, 150, 3, 40, 30])
    tree = pack([[p + c for p, c in zip(prompts[0], completions[0], strict=True)]])
    pieces = tree.pieces(CPU)
    masked = [piece for piece in pieces if piece.mask is not None]
    ancestors = [(p.rows.stop - p.rows.start, p.keys.stop - p.keys.start) for p in pieces if p.rows != p.keys]
    assert len(masked) == 1 and sum(piece.causal for piece in pieces) == 5
    # Below the prompt everything; below what two completions begin with, the rest of the two.
    assert sorted(ancestors) == [(280, 135), (638, 300)]
    assert_paths_agree(build_model(family, lora=True), prompts, completions)


def test_dropout_in_attention_is_refused():
    model = build_model("phi3").train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="prefix_sharing: .* 0.1; set it false"):
        sequence_logps(model, *random_groups(0))


def test_long_rope_stays_short_while_sequences_do(monkeypatch):
    """The packed row is longer than LongRoPE's switch, no sequence is: the short factors hold, as for each alone."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.3, 1.5]}
    rope |= {"long_factor": [9.0, 10.0, 11.0, 12.0], "original_max_position_embeddings": 16}
    torch.manual_seed(0)
    config = Phi3Config(**SMALL, vocab_size=VOCABULARY, original_max_position_embeddings=16, rope_parameters=rope)
    model = Phi3ForCausalLM(config).eval()
    prompts, completions = random_groups(5)
    longest = max(len(p) + len(c) for p, c in zip(flat(prompts), flat(completions), strict=True))
    assert (
        longest
        <= 16
        < len(pack([[p + c for p, c in zip(*g, strict=True)] for g in zip(prompts, completions, strict=True)]))
    )
    assert_paths_agree(model, prompts, completions)
    long = [[flat(prompts)[0] * 8]]
    assert len(long[0][0]) > 16  # and the switch is real: with the long factors these tokens have other numbers
    short_logps = sequence_logps(model, [[long[0][0][:4]]], [[long[0][0][4:12]]])[0]
    all_logps = sequence_logps(model, [[long[0][0][:4]]], [[long[0][0][4:]]])[0]
    assert (short_logps - all_logps[:, :8]).abs().max() > 1e-3


def test_sharing_saves_tokens_of_these_groups():
    prompts, completions = random_groups(0)
    groups = [[p + c for p, c in zip(*group, strict=True)] for group in zip(prompts, completions, strict=True)]
    assert len(pack(groups)) < 0.7 * sum(map(len, flat(groups)))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(family, temperature):
    model = build_model(family)
    prompt, completion = [5, 9, 2], [7, 3, 3, 1]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, 2:6] / temperature
        logps, entropies, _ = sequence_logps(model, [[prompt]], [[completion]], temperature, entropy=True)
    expected = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(logps[0], expected.log_prob(torch.tensor(completion)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies[0], expected.entropy(), atol=1e-5, rtol=1e-5)


def test_values_are_zero_beyond_a_completion_and_entropies_without_gradient():
    model = build_model("phi3")
    inputs = (model, [[[4, 5], [4, 5]]], [[[1], [2, 3, 4]]])
    assert not sequence_logps(*inputs)[1].any(), "nobody has asked for entropies"
    logps, entropies, mask = sequence_logps(*inputs, entropy=True)
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


def test_autocast_holds_in_the_backward_pass(family):
    """As on one GPU without DeepSpeed: fp32 weights, products in bf16."""
    model = build_model(family)
    prompts, completions = random_groups(3)
    found = []
    for share in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            logps, _, _ = sequence_logps(model, prompts, completions, share=share)
        logps.sum().backward()
        found.append(gradients(model))
    assert_same_gradients(*found, relative=0.1)


def test_half_precision_logits_are_normalised_in_fp32():
    model = build_model("qwen2").to(torch.bfloat16)
    with torch.no_grad():
        logps, entropies, _ = sequence_logps(model, [[[3, 4]] * VOCABULARY], [[[v] for v in range(VOCABULARY)]])
    assert logps.dtype == entropies.dtype == torch.float32
    assert abs(float(logps.exp().sum()) - 1) < 1e-5


# --- memory


class HeadCalls:
    """Counts the rows that a model's head is given."""

    def __init__(self, model, monkeypatch):
        self.rows = []
        head = model.get_output_embeddings()
        forward = head.forward
        monkeypatch.setattr(head, "forward", lambda hidden: (self.rows.append(hidden.shape[-2]), forward(hidden))[1])


@pytest.mark.parametrize("share", [True, False])
def test_the_head_runs_in_chunks_on_predicting_positions_only(family, share, monkeypatch):
    prompts, completions = random_groups(4)
    model = build_model(family)
    whole = sequence_logps(model, prompts, completions, share=share)[0]
    whole.sum().backward()
    expected = gradients(model)
    calls = HeadCalls(model, monkeypatch)
    monkeypatch.setattr(prefix_sharing, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    logps = sequence_logps(model, prompts, completions, share=share)[0]
    torch.testing.assert_close(logps, whole, atol=1e-6, rtol=1e-6)
    assert max(calls.rows) == 3 and sum(calls.rows) <= sum(map(len, flat(completions)))
    forward_calls = len(calls.rows)
    logps.sum().backward()
    assert len(calls.rows) == 2 * forward_calls, "the backward pass runs each chunk again"
    assert_same_gradients(gradients(model), expected)


def test_a_head_with_dropout_runs_again_with_the_same_dropout(monkeypatch):
    """As an adapter's may have it."""
    prompts, completions = random_groups(4)
    model = build_model("qwen2")
    head, made, dropout = model.get_output_embeddings(), [], torch.nn.Dropout(0.5)
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda hidden: made.append(dropout(forward(hidden))) or made[-1])
    monkeypatch.setattr(prefix_sharing, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    loss = sequence_logps(model, prompts, completions)[0].sum()
    first = list(made)
    loss.backward()
    again = made[len(first) :]
    assert len(first) == len(again) > 1
    for one in first:
        assert any(one.shape == other.shape and torch.equal(one, other) for other in again)


def saved_bytes(function) -> int:
    """Bytes of the distinct buffers that autograd keeps for the backward pass of `function`."""
    buffers = {}

    def keep(tensor):
        buffers[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    del result
    return sum(buffers.values())


def test_values_are_kept_without_what_they_are_a_view_of(family):
    """Phi-3's are a third of its queries, keys and values; its gate and what it gates, both kept, are half of one."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        sequence_logps(build_model(family, lora=True), *random_groups(4))
    assert kept and all(tensor.untyped_storage().nbytes() <= 2 * tensor.nbytes for tensor in kept)


@pytest.mark.parametrize("new_tokens", [4, 60])
def test_activations_grow_with_packed_tokens_and_stay_below_the_plain_path(family, new_tokens):
    model = build_model(family, lora=True)
    rng = random.Random(0)

    def group(size: int) -> tuple:
        prompt = [rng.randrange(VOCABULARY) for _ in range(40)]
        return [prompt] * size, [[rng.randrange(VOCABULARY) for _ in range(new_tokens)] for _ in range(size)]

    def bytes_of(sizes: list[int], share: bool) -> int:
        prompts, completions = zip(*map(group, sizes), strict=True)
        return saved_bytes(lambda: sequence_logps(model, prompts, completions, share=share)[0])

    weights = sum(p.numel() * 4 for p in model.parameters())
    shared, plain = (bytes_of([8, 8], share) - weights for share in (True, False))
    ratio = 8 * (40 + new_tokens) / (40 + 8 * new_tokens)
    assert shared < plain / ratio * 1.25
    twice = bytes_of([8] * 4, True) - weights
    assert 1.8 < twice / shared < 2.2
