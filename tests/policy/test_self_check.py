"""The self-check passes for models that work, and refuses whatever makes a run's numbers another model's."""

import pytest
import torch
from conftest import SMALL, VOCABULARY, build_model, random_groups
from transformers import Qwen2Config, Qwen2ForCausalLM

from policy import prefix_sharing, sampling, self_check
from policy.prefix_sharing import ATTENTION
from policy.self_check import TOLERANCE, check_gradients, check_model_numbers

LONG = [[(7 * k) % VOCABULARY for k in range(90)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [True, False])
def test_a_model_that_works_passes(family, dtype, share):
    model = build_model(family, lora=True).to(dtype).train()
    check_gradients(model)
    gap = check_model_numbers(model, *random_groups(2), LONG, share)
    assert 0 <= gap <= TOLERANCE[dtype] and model.training
    assert model.get_base_model().config._attn_implementation == ATTENTION


def with_large_scores(score: float) -> torch.nn.Module:
    """A Qwen2 whose biases add `score` to the product of any query and key, which changes nothing but its rounding."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY}
    config = Qwen2Config(**SMALL | shape, tie_word_embeddings=False, rope_theta=1e6)
    model = Qwen2ForCausalLM(config).eval()
    for layer in model.model.layers:
        for projection, of_one in ((layer.self_attn.q_proj, 1.0), (layer.self_attn.k_proj, score * 8 / 2)):
            for slowest in (31, 63):  # of 64 dimensions, a pair that rotates by next to nothing
                projection.weight.data.unflatten(0, (-1, 64))[:, slowest] = 0
                projection.bias.data.unflatten(0, (-1, 64))[:, slowest] = of_one
    return model


@pytest.mark.parametrize("dtype, score", [(torch.bfloat16, -128.0), (torch.float16, -12_000.0)])
def test_large_scores_of_a_right_model_are_no_fault(dtype, score, monkeypatch):
    """Its own eager attention has them in half precision: rounded in bf16, beyond the largest number in fp16."""
    model = with_large_scores(score).to(dtype)
    check_model_numbers(model, *random_groups(2), LONG)
    monkeypatch.setattr(self_check, "TRUTH", "eager")
    with pytest.raises(ValueError, match="differ by|are not finite"):
        check_model_numbers(model, *random_groups(2), LONG)


@pytest.mark.parametrize("fault", ["scale", "swapped", "causal", "log-sum-exp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_gradients_are_refused(family, fault, dtype, monkeypatch):
    """What a kernel's backward pass gets wrong, the log-probabilities do not show."""
    model = build_model(family).to(dtype)
    real = prefix_sharing._attend_backward

    def faulty(grad, query, key, value, output, total, piece, scale):
        if fault == "causal" and piece.causal:
            piece = prefix_sharing.Piece(piece.rows, slice(piece.keys.start, piece.keys.stop + 1))
        if fault == "log-sum-exp":
            total = total - 0.1
        parts = real(grad, query, key, value, output, total, piece, scale * 1.1 if fault == "scale" else scale)
        return (parts[0], parts[2], parts[1]) if fault == "swapped" else parts

    monkeypatch.setattr(prefix_sharing, "_attend_backward", faulty)
    with pytest.raises(ValueError, match="prefix_sharing: attention on packed rows, or its gradient, differs by"):
        check_gradients(model)


@pytest.mark.parametrize("fault", ["sees other branches", "misses its prefix", "running positions"])
def test_wrong_packed_rows_are_refused(family, fault, monkeypatch):
    """Sampling packs its prompts by the same trees: plain rows alone would not help."""
    model = build_model(family)
    inputs = prefix_sharing.PackedTree.inputs

    def faulty(tree, device):
        good = inputs(tree, device)
        masks = [piece.mask[0, 0] for piece in tree.pieces(device) if piece.mask is not None]
        for mask in masks:
            seen = torch.ones_like(mask, dtype=torch.bool).tril()
            if fault == "sees other branches":
                mask[seen] = 0.0
            if fault == "misses its prefix":
                mask[2:, :2] = prefix_sharing.UNSEEN
        if fault == "running positions":
            good["position_ids"] = torch.arange(len(tree))[None]
        return good

    monkeypatch.setattr(prefix_sharing.PackedTree, "inputs", faulty)
    with pytest.raises(ValueError, match=r"log-probabilities of packed rows differ by .* (false|another model)$"):
        check_model_numbers(model, *random_groups(2), LONG)


def test_packed_rows_alone_that_are_wrong_have_a_remedy(monkeypatch):
    logps = prefix_sharing.sequence_logps

    def faulty(model, prompts, completions, share):
        values, *others = logps(model, prompts, completions, share=share)
        return values + 0.01 * share, *others

    monkeypatch.setattr(self_check, "sequence_logps", faulty)
    with pytest.raises(ValueError, match="^prefix_sharing: .* of packed rows .*; set prefix_sharing false"):
        check_model_numbers(build_model("qwen2"), *random_groups(2), LONG)
    check_model_numbers(build_model("qwen2"), *random_groups(2), LONG, share=False)


@pytest.mark.parametrize("fault", ["temperature", "window", "depth", "last"])
def test_wrong_sampling_is_refused(fault, monkeypatch):
    attend, choose = sampling.BranchCache.attend, sampling._choose
    if fault == "temperature":
        monkeypatch.setattr(sampling, "_choose", lambda logits, *rest: choose(logits * 1.01, *rest))
    elif fault == "last":
        monkeypatch.setattr(sampling, "_choose", lambda logits, *rest: choose(-logits, *rest))
    elif fault == "window":
        monkeypatch.setattr(sampling.BranchCache, "attend", lambda *args: attend(*args[:-1], 60))
    else:
        depth = sampling.Branch.depth.fget
        monkeypatch.setattr(sampling.Branch, "depth", property(lambda branch: depth(branch) + 1))
    with pytest.raises(
        ValueError, match="^model: log-probabilities in greedy sampling differ by .*; name another model"
    ):
        check_model_numbers(build_model("phi3"), *random_groups(2), LONG)


def test_a_fault_that_only_long_rows_show(monkeypatch):
    """Both of the project's paths would agree, and on the first batch they are right."""
    model = build_model("phi3")
    model.config.sliding_window = 40
    for layer in model.model.layers:
        layer.self_attn.config.sliding_window = 40
    for name in ("sdpa_attention_forward", "_window_pieces"):
        assert hasattr(prefix_sharing if name.startswith("sdpa") else prefix_sharing.PackedTree, name)
    monkeypatch.setattr(prefix_sharing.PackedTree, "_window_pieces", lambda tree, device, _: tree.pieces(device))
    check_model_numbers(model, *random_groups(2), [])
    with pytest.raises(ValueError, match=r"of packed rows .* \(it has sliding_window 40\)"):
        check_model_numbers(model, *random_groups(2), LONG)


def test_numbers_that_are_not_finite_name_the_dtype():
    model = build_model("qwen2").to(torch.float16)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e6)
    with pytest.raises(ValueError, match="^model: Qwen2ForCausalLM .*not finite in torch.float16; launch with another"):
        check_model_numbers(model, *random_groups(2), LONG)


def test_a_model_that_falls_over_is_refused_in_one_line(monkeypatch):
    model = build_model("phi3")

    def broken(*args, **options):
        raise TypeError("unexpected keyword argument 'tree'")

    monkeypatch.setattr(model.model.layers[0].self_attn, "forward", broken)
    with pytest.raises(ValueError, match="^model: Phi3ForCausalLM cannot be run here .*'tree'.*; name another"):
        check_model_numbers(model, *random_groups(2), LONG)
    assert model.config._attn_implementation == ATTENTION


def test_running_out_of_memory_is_no_fault_of_the_model(monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(self_check, "sequence_logps", full)
    with pytest.raises(torch.OutOfMemoryError):
        check_model_numbers(build_model("phi3"), *random_groups(2), LONG)


def test_few_sequences_of_the_first_step_are_compared(monkeypatch):
    prompts, completions = [[[1, 2, 3]] * 6, [[4]] * 6], [[[5]] * 6, [[6]] * 6]
    monkeypatch.setattr(self_check, "SEQUENCES", 8)
    assert [len(group[0]) for group in self_check._some(prompts, completions)] == [6, 2]
    assert [len(group[0]) for group in self_check._some(prompts[:1], completions[:1])] == [6]


def test_logits_are_compared_in_fp32():
    """Rounded to bf16 they would differ by up to the tolerance by themselves."""
    for model in (build_model("phi3"), build_model("qwen2")):
        model.to(torch.bfloat16)
        with torch.no_grad(), self_check._logits_in_fp32(model):
            logits = model(torch.tensor([LONG[0]])).logits
        assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
        assert model(torch.tensor([LONG[0]])).logits.dtype == torch.bfloat16
