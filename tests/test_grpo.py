"""The GRPO objective against NumPy and hand-computed cases, and the invariances that a step must have."""

import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import VOCABULARY, assert_same_gradients, build_model, gradients, padded_logps

from generation import Completion
from models import add_reference, encode, use_reference
from train_grpo import (
    Config,
    Rollout,
    completion_table,
    group_advantages,
    grpo_loss,
    num_tokens,
    reward_std,
    rollout_means,
    rollout_statistics,
    sample,
    sampling_gap,
    score_reference,
    token_weights,
    update_micro_batch,
    with_gradient,
)

# --- advantages


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, -1.0], [-0.5, -0.5, -0.5, 1.0]])
    got = group_advantages(rewards, "group", batch_std=7.0, eps=0.0)
    third = 3**-0.5  # mean 0.5, std sqrt(0.75): (1 - 0.5) / 0.866 = 0.577 and -1.732
    expected = [[1, -1, 1, -1], [third, third, third, -3 * third], [-third, -third, -third, 3 * third]]
    torch.testing.assert_close(got, torch.tensor(expected))
    batch = group_advantages(rewards, "batch", batch_std=2.0, eps=0.0)
    torch.testing.assert_close(batch[1], torch.tensor([0.25, 0.25, 0.25, -0.75]))
    none = group_advantages(rewards, "none", batch_std=2.0)
    torch.testing.assert_close(none[2], torch.tensor([-0.375, -0.375, -0.375, 1.125]))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [1.0, -0.5, 0.1, 1 / 3])
def test_a_group_whose_rewards_agree_has_advantage_exactly_zero(scale, value):
    rewards = torch.tensor([[value] * 7, [1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    advantages = group_advantages(rewards, scale, batch_std=0.3)
    assert (advantages[0] == 0).all() and (advantages[1] != 0).all()
    assert (group_advantages(rewards[:1], scale, batch_std=0.0) == 0).all()


def test_reward_std_is_that_of_all_rewards():
    rewards = torch.tensor([[1.0, -1.0, -0.5], [1.0, 1.0, -0.5]])
    assert reward_std(Accelerator(cpu=True), rewards) == pytest.approx(np.std(rewards.numpy()), rel=1e-6)


# --- loss


def test_token_weights():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    grpo = token_weights(mask, "grpo", num_sequences=3, num_tokens=7, max_new_tokens=5)
    torch.testing.assert_close(grpo.sum(dim=1), torch.full((3,), 1 / 3))  # every sequence counts alike
    dapo = token_weights(mask, "dapo", num_sequences=3, num_tokens=7, max_new_tokens=5)
    torch.testing.assert_close(dapo[mask], torch.full((7,), 1 / 7))  # every token counts alike
    dr_grpo = token_weights(mask, "dr_grpo", num_sequences=3, num_tokens=7, max_new_tokens=5)
    torch.testing.assert_close(dr_grpo[mask], torch.full((7,), 1 / 15))  # whatever the lengths
    for weights in (grpo, dapo, dr_grpo):
        assert (weights[~mask] == 0).all()


def numpy_loss(logps, old, reference, advantages, weights, config: Config) -> float:
    """The objective token by token, as the papers write it."""
    total = 0.0
    for b, t in np.argwhere(weights > 0):
        token_ratio = ratio = np.exp(logps[b, t] - old[b, t])
        if config.importance == "sequence":
            held = weights[b] > 0
            ratio = np.exp((logps[b] - old[b])[held].mean())
        bounded = min(max(ratio, 1 - config.eps_low), 1 + config.eps_high)
        objective = min(ratio * advantages[b], bounded * advantages[b])
        if config.dual_clip and advantages[b] < 0:
            objective = max(objective, config.dual_clip * advantages[b])
        gap = reference[b, t] - logps[b, t]
        k3 = (np.exp(gap) - gap - 1) * (token_ratio if config.kl_correction else 1)
        total += weights[b, t] * (config.beta * k3 - objective)
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options", [{}, {"dual_clip": 1.5}, {"importance": "sequence"}, {"kl_correction": True}], ids=str
)
def test_loss_equals_numpy(seed, options):
    rng = np.random.default_rng(seed)
    logps, old, reference = -rng.exponential(1.0, (3, 6, 5)).astype(np.float64)
    advantages, mask = rng.normal(size=6), rng.random((6, 5)) < 0.8
    weights = mask * rng.random((6, 5))
    values = [torch.tensor(x) for x in (logps, old, reference, advantages, weights)]
    config = Config(eps_low=0.2, eps_high=0.3, beta=0.1, **options)
    loss, terms = grpo_loss(*values, config)
    expected = numpy_loss(logps, old, reference, advantages, weights, config)
    assert float(loss) == pytest.approx(expected, rel=1e-10)
    assert float(terms["policy_loss"] + 0.1 * terms["kl"]) == pytest.approx(expected, rel=1e-10)
    without = grpo_loss(values[0], values[1], None, *values[3:], config)[0]
    assert float(without) == pytest.approx(numpy_loss(logps, old, logps, advantages, weights, config), rel=1e-10)


CLIPPING = [  # ratio, advantage, d loss / d logp = -A·ratio, or 0 where it is clipped
    (1.5, 1.0, 0.0),  # already above 1 + eps_high and asked to rise: clipped
    (1.5, -1.0, 1.5),  # asked to fall: not clipped
    (0.5, -1.0, 0.0),  # already below 1 - eps_low and asked to fall: clipped
    (0.5, 1.0, -0.5),
    (1.25, 1.0, -1.25),  # inside the upper bound of 0.3, outside the lower one of 0.2
    (0.75, -1.0, 0.0),
    (1.0, 1.0, -1.0),
    (4.0, -1.0, 4.0),  # a token that has become likely and is bad: unbounded
]
DUAL_CLIPPING = [(4.0, -1.0, 0.0), (1.9, -1.0, 1.9), (4.0, 1.0, 0.0), (1.1, 1.0, -1.1)]  # but for dual_clip 2


@pytest.mark.parametrize(
    ("dual_clip", "ratio", "advantage", "gradient"),
    [*((0.0, *case) for case in CLIPPING), *((2.0, *case) for case in DUAL_CLIPPING)],
)
def test_clipping_by_hand(dual_clip, ratio, advantage, gradient):
    logps = torch.tensor([[np.log(ratio)]], requires_grad=True)
    one = torch.ones(1, 1)
    config = Config(eps_low=0.2, eps_high=0.3, beta=0.0, dual_clip=dual_clip)
    loss, terms = grpo_loss(logps, 0 * one, None, torch.tensor([advantage]), one, config)
    loss.backward()
    assert float(logps.grad) == pytest.approx(gradient)
    assert float(terms["clip_fraction"]) == (gradient == 0)
    assert float(terms["ratio_deviation"]) == pytest.approx(abs(ratio - 1))


def test_the_ratio_of_a_sequence_by_hand():
    """Two tokens, ratios 2 and 1/2: the sequence's is 1, and nothing is clipped; the padding has no say."""
    logps = torch.tensor([[np.log(2.0), np.log(0.5), 7.0]], requires_grad=True)
    weights = torch.tensor([[0.5, 0.5, 0.0]])
    for importance, clipped, gradient in (("sequence", 0.0, [-0.5, -0.5, 0.0]), ("token", 0.5, [0.0, -0.25, 0.0])):
        config = Config(importance=importance, beta=0.0)
        loss, terms = grpo_loss(logps, torch.zeros(1, 3), None, torch.tensor([1.0]), weights, config)
        (got,) = torch.autograd.grad(loss, logps)
        torch.testing.assert_close(got, torch.tensor([gradient], dtype=got.dtype))
        assert float(terms["clip_fraction"]) == clipped


def test_corrected_k3_has_the_gradient_of_the_kl():
    """Expected over what an older policy samples, k3 times the ratio has the exact KL's gradient; k3 alone has not."""
    torch.manual_seed(0)
    new, old, reference = torch.randn(3, 7, dtype=torch.float64)
    new.requires_grad_()
    logps, old, reference = new.log_softmax(0), old.log_softmax(0), reference.log_softmax(0)
    (exact,) = torch.autograd.grad((logps.exp() * (logps - reference)).sum(), new, retain_graph=True)
    found = {}
    for correction in (False, True):
        config = Config(beta=1.0, kl_correction=correction)
        columns = [x[:, None] for x in (logps, old, reference)]
        # every token once, weighted by its probability under the policy that sampled
        loss, _ = grpo_loss(*columns, torch.zeros(7, dtype=torch.float64), old.exp()[:, None], config)
        (found[correction],) = torch.autograd.grad(loss, new, retain_graph=True)
    torch.testing.assert_close(found[True], exact)
    assert (found[False] - exact).abs().max() > 0.01


# --- one step


def make_rollout(seed: int, groups: int = 8, samples: int = 4) -> Rollout:
    """Groups of one or two prompts with a common beginning; each prompt has `samples` completions, some equal."""
    rng = random.Random(seed)
    rows, prompts, completions = [], [], []
    for g in range(groups):
        premise = [rng.randrange(VOCABULARY) for _ in range(4)]
        claims = [premise + [rng.randrange(VOCABULARY)] for _ in range(rng.randint(1, 2))]
        rows.append([10 * g + c for c in range(len(claims)) for _ in range(samples)])
        prompts.append([claim for claim in claims for _ in range(samples)])
        completions.append([Completion([rng.randrange(1, 4) for _ in range(rng.randint(1, 5))]) for _ in rows[-1]])
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 2, (sum(map(len, rows)) // samples, samples), generator=generator) * 2.0 - 1
    texts = [["" for _ in group] for group in rows]
    rollout = Rollout(rows, prompts, completions, texts, rewards)
    rollout.set_advantages(group_advantages(rewards, "group", 0.0))
    return rollout


def counts_of(rollout: Rollout) -> dict[str, float]:
    lengths = [len(c.tokens) for group in rollout.completions for c in group]
    return {"sequences": len(lengths)} | dict.fromkeys(("tokens", "loss_tokens", "trained_tokens"), sum(lengths))


def step_gradients(model, rollout, plan, config, old_shift: float = 0.0):
    """Gradients, loss and terms of a step over the micro-batches of `plan`."""
    counts, total = counts_of(rollout), {}
    for batch in plan:
        reference = score_reference(model, rollout, batch, config) if config.beta > 0 else None
        old = None
        if old_shift:
            rng = torch.Generator().manual_seed(batch[0])
            logps = update_micro_batch(model, rollout, batch, None, reference, counts, config)[2]
            old = logps + old_shift * torch.randn(logps.shape, generator=rng)
        loss, terms, _ = update_micro_batch(model, rollout, batch, old, reference, counts, config)
        loss.backward()
        for name, value in {"loss": loss.detach(), **terms}.items():
            total[name] = total.get(name, 0.0) + float(value)
    return gradients(model), total


def trained_policy(family: str):
    """A policy whose adapter has moved away from its reference, an adapter that is not zero."""
    model = build_model(family, lora=True)
    add_reference(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_micro_batches_do_not_change_the_step(family, loss_type):
    model, rollout = trained_policy(family), make_rollout(1)
    config = Config(loss_type=loss_type, beta=0.1, max_new_tokens=5, temperature=0.9)
    expected, whole = step_gradients(model, rollout, [list(range(8))], config)
    for plan in ([[g] for g in range(8)], [[3, 1], [0, 7, 2, 5], [6, 4]]):
        got, parts = step_gradients(model, rollout, plan, config)
        assert_same_gradients(got, expected)
        for name in ("loss", "policy_loss", "kl", "entropy"):
            assert parts[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-7)


def test_prefix_sharing_does_not_change_the_step(family):
    model, rollout = trained_policy(family), make_rollout(2)
    plan = [[0, 1, 2, 3], [4, 5, 6, 7]]
    packed = step_gradients(model, rollout, plan, Config(beta=0.1), old_shift=0.3)
    plain = step_gradients(model, rollout, plan, Config(beta=0.1, prefix_sharing=False), old_shift=0.3)
    assert_same_gradients(packed[0], plain[0])
    assert packed[1]["clip_fraction"] > 0


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_step_equals_the_definition(loss_type):
    """The step's gradient from one padded row a sequence and the formula of the paper, written out."""
    model, rollout = trained_policy("qwen2"), make_rollout(3)
    config = Config(loss_type=loss_type, beta=0.2, max_new_tokens=7, temperature=1.3)
    got, terms = step_gradients(model, rollout, [[0, 1, 2], [3, 4, 5, 6, 7]], config)
    prompts = [p for group in rollout.prompts for p in group]
    tokens = [c.tokens for group in rollout.completions for c in group]
    logps, mask = padded_logps(model, prompts, tokens, 1.3)
    with torch.no_grad(), use_reference(model):
        reference, _ = padded_logps(model, prompts, tokens, 1.3)
    advantages = torch.cat(rollout.advantages)
    total = torch.zeros(())
    for b, completion in enumerate(tokens):
        length = len(completion)
        share = {
            "grpo": 1 / (len(tokens) * length),
            "dapo": 1 / sum(map(len, tokens)),
            "dr_grpo": 1 / (len(tokens) * 7),
        }[loss_type]
        gap = reference[b, :length] - logps[b, :length]
        ratio = (logps[b, :length] - logps[b, :length].detach()).exp()
        total = total + share * (-ratio * advantages[b] + 0.2 * (gap.exp() - gap - 1)).sum()
    total.backward()
    assert_same_gradients(got, gradients(model))
    assert terms["loss"] == pytest.approx(float(total.detach()), rel=1e-4)
    assert mask.sum() == sum(map(len, tokens))


def test_first_pass_has_ratio_exactly_one_and_no_kl(family):
    """At step 0 the policy is the SFT adapter, and so is the reference."""
    model, rollout = build_model(family, lora=True), make_rollout(4)
    add_reference(model)
    _, terms = step_gradients(model, rollout, [[0, 1, 2, 3], [4, 5, 6, 7]], Config(beta=0.1))
    assert terms["ratio_deviation"] == 0 and terms["clip_fraction"] == 0
    assert abs(terms["kl"]) < 1e-9
    # Each group's advantages add up to 0, and under grpo with ratio 1 so does the loss.
    assert abs(terms["policy_loss"]) < 1e-6


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_without_a_kl_rows_without_advantage_are_not_computed(family, loss_type):
    model, rollout = build_model(family, lora=True), make_rollout(8)
    advantages = group_advantages(rollout.rewards, "group", 0.0)
    advantages[1] = 0.0
    advantages[2, 1:3] = 0.0
    rollout.set_advantages(advantages)
    config = Config(beta=0.0, loss_type=loss_type, max_new_tokens=5)
    live = with_gradient(rollout, Config(beta=0.0))
    assert 0 < sum(map(len, live.rows)) == int((advantages != 0).sum()) < advantages.numel()
    counts = counts_of(rollout)
    for taken in (rollout, live):
        counts["trained_tokens"] = num_tokens(taken)
        loss, _, _ = update_micro_batch(model, taken, list(range(len(taken.rows))), None, None, counts, config)
        loss.backward()
        if taken is rollout:
            expected, expected_loss = gradients(model), float(loss.detach())
    assert_same_gradients(gradients(model), expected)
    assert float(loss.detach()) == pytest.approx(expected_loss, abs=1e-6)
    every = with_gradient(rollout, Config(beta=0.1))
    assert (every.rows, every.completions) == (rollout.rows, rollout.completions), "the KL term needs every row"


def test_a_rank_without_any_advantage_has_nothing_to_compute():
    rollout = make_rollout(5)
    rollout.set_advantages(torch.zeros_like(rollout.rewards))
    assert with_gradient(rollout, Config(beta=0.0)).rows == []


def test_completions_that_were_cut_can_be_left_out(family):
    """The gradient is that of a rollout in which they have advantage 0, but a token mean counts no token of theirs."""
    model, rollout = build_model(family, lora=True), make_rollout(9)
    flat = [completion for group in rollout.completions for completion in group]
    for b, completion in enumerate(flat):
        completion.stopped = b % 3 > 0
    config = Config(beta=0.0, mask_truncated=True, loss_type="dapo")
    live = with_gradient(rollout, config)
    assert all(completion.stopped for group in live.completions for completion in group)
    counts = counts_of(rollout) | {"loss_tokens": sum(len(c.tokens) for c in flat if c.stopped)}
    update_micro_batch(model, live, list(range(len(live.rows))), None, None, counts, config)[0].backward()
    got = gradients(model)
    for group, advantages in zip(rollout.completions, rollout.advantages, strict=True):
        advantages[[k for k, completion in enumerate(group) if not completion.stopped]] = 0.0
    inputs = (rollout, list(range(8)), None, None, counts, Config(beta=0.0, loss_type="dapo"))
    update_micro_batch(model, *inputs)[0].backward()
    assert_same_gradients(got, gradients(model))


def test_a_rollout_without_signal_leaves_only_the_kl():
    model, rollout = trained_policy("phi3"), make_rollout(5)
    rollout.set_advantages(torch.zeros_like(rollout.rewards))
    without, _ = step_gradients(model, rollout, [list(range(8))], Config(beta=0.0))
    assert all((gradient == 0).all() for gradient in without.values())
    with_kl, _ = step_gradients(model, rollout, [list(range(8))], Config(beta=0.1))
    assert all(gradient.any() for gradient in with_kl.values())


# --- the reference


def scores(model, rollout) -> torch.Tensor:
    prompts = [p for group in rollout.prompts for p in group]
    with torch.no_grad():
        return padded_logps(model, prompts, [c.tokens for group in rollout.completions for c in group])[0]


def test_the_reference_is_the_starting_adapter_and_not_the_base(family):
    model, rollout = build_model(family, lora=True), make_rollout(6)
    before = scores(model, rollout)
    add_reference(model)
    with model.disable_adapter():
        assert (scores(model, rollout) - before).abs().max() > 0.1, "an adapter that does nothing tests nothing"
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.mul_(3)
    assert (scores(model, rollout) - before).abs().max() > 0.1
    with use_reference(model):
        assert torch.equal(scores(model, rollout), before)
    assert (scores(model, rollout) - before).abs().max() > 0.1, "the policy is active again"


def test_use_reference_touches_no_requires_grad(family):
    model = build_model(family, lora=True)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    add_reference(model)
    after = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: after[name] for name in before} == before
    assert any(before.values()) and not any(after[name] for name in after.keys() - before.keys())
    with use_reference(model):
        assert {name: p.requires_grad for name, p in model.named_parameters()} == after
    with pytest.raises(KeyError), use_reference(model):
        raise KeyError
    assert {name: p.requires_grad for name, p in model.named_parameters()} == after
    rollout = make_rollout(7)
    loss, _, _ = update_micro_batch(model, rollout, [0, 1], None, None, counts_of(rollout), Config(beta=0.0))
    loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, trainable in after.items() if trainable}


def test_use_reference_needs_one():
    with pytest.raises(AssertionError, match="add_reference"), use_reference(build_model("phi3", lora=True)):
        pass


# --- sampling and bookkeeping


@torch.no_grad()
def test_a_rank_samples_what_one_process_samples_for_those_prompts(tokenizer):
    model = build_model("phi3", vocab_size=len(tokenizer))
    prompts = [encode(tokenizer, f"Premise: {letter} causes B.") for letter in "ACDEF"]
    labels = [0, 1, 0, 1, 1]
    config = Config(num_generations=3, max_new_tokens=6, prompts_per_step=5, seed=4)
    stops = set(range(0, len(tokenizer), 20))
    together = sample(model, tokenizer, prompts, labels, [[0, 1], [2], [3, 4]], stops, 9, config)
    assert [group[::3] for group in together.rows] == [[0, 1], [2], [3, 4]]
    assert together.rewards.shape == (5, 3)
    by_row = {}
    for rows, group in zip(together.rows, together.completions, strict=True):
        for row, completion in zip(rows, group, strict=True):
            by_row.setdefault(row, []).append(completion.tokens)
    assert all(len(set(map(tuple, tokens))) > 1 for tokens in by_row.values()), "samples of a prompt differ"
    for groups in ([[2], [4]], [[1, 3], [0]]):
        share = sample(model, tokenizer, prompts, labels, groups, stops, 9, config)
        for rows, group in zip(share.rows, share.completions, strict=True):
            assert [c.tokens for c in group] == [tokens for row in dict.fromkeys(rows) for tokens in by_row[row]]
    later = sample(model, tokenizer, prompts, labels, [[0, 1], [2], [3, 4]], stops, 10, config)
    assert [c.tokens for c in later.completions[0]] != [c.tokens for c in together.completions[0]]


def scored_rollout() -> Rollout:
    texts = [["Answer: Yes", "Answer: No", "hm"], ["Answer: No", "Answer: No", "Answer: No"], ["Answer: Yes"] * 3]
    completions = [[Completion([1] * (k + 1), [-1.0] * (k + 1), stopped=k < 2) for k in range(3)] for _ in texts]
    rewards = torch.tensor([[1.0, -1.0, -0.5], [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    rows = [[0] * 3, [1] * 3, [2] * 3]
    rollout = Rollout(rows, [[[5]] * 3] * 3, completions, texts, rewards)
    rollout.set_advantages(group_advantages(rewards, "none", 0.0))
    return rollout


def test_rollout_metrics_by_hand():
    means = rollout_means(rollout_statistics(scored_rollout(), labels=[1, 0, 0]))
    expected = {
        "reward/mean": -0.5 / 9,
        "reward/group_std": np.std([1, -1, -0.5]) / 3,
        "reward/accuracy": 4 / 9,
        "reward/frac_zero_std": 2 / 3,
        "reward/frac_all_right": 1 / 3,
        "reward/frac_all_wrong": 1 / 3,
        "policy/mean_abs_advantage": (7 / 6 + 5 / 6 + 1 / 3) / 9,
        "rollout/completion_length": 2.0,
        "rollout/unanswered_rate": 1 / 9,
        "rollout/predicted_yes_rate": 4 / 9,
        "rollout/truncated_rate": 1 / 3,
    }
    assert {name: means[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_sampling_gap_is_the_largest_difference():
    logps = torch.full((6, 3), -1.0)
    logps[4, 1] = -1.25
    logps[3, 1:] = -9.0  # beyond the end of that completion
    assert sampling_gap(scored_rollout(), [1, 2], logps) == pytest.approx(0.25)


def test_completion_table_shows_label_reward_and_text():
    hypotheses, config = [f"claim {k}" for k in range(3)], Config(num_logged_completions=4, num_generations=3)
    lines = completion_table(scored_rollout(), hypotheses, [0, 1, 0], config).splitlines()
    assert len(lines) == 2 + 4
    assert "claim 0" in lines[2] and "No" in lines[2] and "+1.00" in lines[2] and "Answer: Yes" in lines[2]
    assert "claim 1" in lines[5] and "Yes" in lines[5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type.*dr_grpo"),
        ({"scale_rewards": "max"}, "scale_rewards"),
        ({"num_generations": 1}, "num_generations"),
        ({"temperature": 0.0}, "temperature"),
        ({"beta": -0.1}, "beta"),
        ({"class_weights": [1.0]}, "class_weights"),
        ({"num_iterations": 0}, "num_iterations"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)
