"""The GRPO objective against NumPy and hand-computed cases, and the invariances that a step must have."""

import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import VOCABULARY, assert_same_gradients, build_model, gradients, padded_logps

from causal.rewards import give_rewards
from causal.wording import parse_hypothesis, parse_premise
from dataset.chat import encode
from policy.adapters import add_reference, use_reference
from policy.prefix_sharing import sequence_logps
from policy.sampling import Completion
from train_grpo import (
    TERMS,
    Config,
    enumerate_answers,
    give_advantages,
    group_advantages,
    grpo_loss,
    sample,
    score_reference,
    token_weights,
    update_micro_batch,
)
from training.rollouts import (
    Prompt,
    PromptQueue,
    Rollout,
    Sample,
    completion_table,
    is_masked,
    is_trained,
    loss_counts,
    make_prompts,
    means,
    prompts_of,
    reward_std,
    samples_of,
    sampling_gap,
    select,
    split_dead,
    statistics,
    step_values,
    table,
    tokens_of,
    tokens_saved,
    weight_sum,
)

# --- advantages


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, -1.0], [-0.5, -0.5, -0.5, 1.0]])
    ones = torch.ones_like(rewards)
    got = group_advantages(rewards, ones, "group", batch_std=7.0, eps=0.0)
    third = 3**-0.5  # mean 0.5, std sqrt(0.75): (1 - 0.5) / 0.866 = 0.577 and -1.732
    expected = [[1, -1, 1, -1], [third, third, third, -3 * third], [-third, -third, -third, 3 * third]]
    torch.testing.assert_close(got, torch.tensor(expected))
    batch = group_advantages(rewards, ones, "batch", batch_std=2.0, eps=0.0)
    torch.testing.assert_close(batch[1], torch.tensor([0.25, 0.25, 0.25, -0.75]))
    none = group_advantages(rewards, ones, "none", batch_std=2.0)
    torch.testing.assert_close(none[2], torch.tensor([-0.375, -0.375, -0.375, 1.125]))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [1.0, -0.5, 0.1, 1 / 3])
def test_a_group_whose_rewards_agree_has_advantage_exactly_zero(scale, value):
    rewards = torch.tensor([[value] * 7, [1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    masses = torch.tensor([[0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]] * 2)
    advantages = group_advantages(rewards, masses, scale, batch_std=0.3)
    assert (advantages[0] == 0).all() and (advantages[1] != 0).all()
    assert (group_advantages(rewards[:1], masses[:1], scale, batch_std=0.0) == 0).all()


def test_a_mass_counts_as_so_many_completions():
    """Advantages and token weights of two answers with masses 3 and 1 are those of four completions."""
    rewards, masses = torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, 1.0]])
    drawn = torch.tensor([[1.0, 1.0, 1.0, -1.0]])
    for scale in ("group", "none"):
        few, many = (
            group_advantages(r, m, scale, 0.0, eps=0.0) for r, m in ((rewards, masses), (drawn, torch.ones(1, 4)))
        )
        torch.testing.assert_close(few[0, [0, 0, 0, 1]], many[0])
    mask = torch.tensor([[1, 1], [1, 0]], dtype=torch.bool)
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        few = token_weights(mask, masses[0], loss_type, 4, 7, 2)
        many = token_weights(mask[[0, 0, 0, 1]], torch.ones(4), loss_type, 4, 7, 2)
        torch.testing.assert_close(few.sum(dim=1), torch.stack((many[:3].sum(), many[3].sum())))


def test_reward_std_is_that_of_all_rewards():
    rewards = torch.tensor([[1.0, -1.0, -0.5], [1.0, 1.0, -0.5]])
    rollout = [[[rewarded(float(reward)) for reward in row] for row in rewards]]
    assert reward_std(Accelerator(cpu=True), rollout) == pytest.approx(np.std(rewards.numpy()), rel=1e-6)
    samples_of(rollout)[2].mass = 3.0
    expected = np.std([1.0, -1.0, -0.5, -0.5, -0.5, 1.0, 1.0, -0.5])
    assert reward_std(Accelerator(cpu=True), rollout) == pytest.approx(expected, rel=1e-6)


# --- loss


def test_token_weights():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    ones = torch.ones(3)
    grpo = token_weights(mask, ones, "grpo", num_sequences=3, num_tokens=7, max_new_tokens=5)
    torch.testing.assert_close(grpo.sum(dim=1), torch.full((3,), 1 / 3))  # every sequence counts alike
    dapo = token_weights(mask, ones, "dapo", num_sequences=3, num_tokens=7, max_new_tokens=5)
    torch.testing.assert_close(dapo[mask], torch.full((7,), 1 / 7))  # every token counts alike
    dr_grpo = token_weights(mask, ones, "dr_grpo", num_sequences=3, num_tokens=7, max_new_tokens=5)
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

PREMISE_TEXT = (
    "Suppose there is a closed system of 2 variables, A and B. All the statistical relations among these "
    "2 variables are as follows: A correlates with B."
)
PREMISE = parse_premise(PREMISE_TEXT)
CLAIM = parse_hypothesis("A directly causes B.", PREMISE.variables)


def make_prompt(row: int = 0, tokens=(5,), label: int = 0, answers=None) -> Prompt:
    return Prompt(row, list(tokens), label, PREMISE, CLAIM, f"claim {row}", answers)


def rewarded(reward: float, completion: Completion | None = None, prompt: Prompt | None = None, text: str = ""):
    rewards = {"outcome": reward}
    return Sample(prompt or make_prompt(), completion or Completion([1]), text, rewards=rewards, reward=reward)


def make_rollout(seed: int, groups: int = 8, samples: int = 4) -> Rollout:
    """Groups of one or two prompts of a premise with completions of 1 to 5 tokens, and rewards +1 and -1."""
    rng = random.Random(seed)
    rollout: Rollout = []
    for g in range(groups):
        premise = [rng.randrange(VOCABULARY) for _ in range(4)]
        prompts = [make_prompt(10 * g + c, [*premise, rng.randrange(VOCABULARY)]) for c in range(rng.randint(1, 2))]
        rollout.append([])
        for prompt in prompts:
            completions = [
                Completion([rng.randrange(1, 4) for _ in range(rng.randint(1, 5))], stopped=True)
                for _ in range(samples)
            ]
            rollout[-1].append([rewarded(rng.choice([-1.0, 1.0]), c, prompt) for c in completions])
    give_advantages(rollout, "group", 0.0)
    return rollout


def counts_of(rollout: Rollout, trained: Rollout | None = None, config: Config | None = None) -> dict[str, float]:
    unmasked = select(rollout, lambda s: not is_masked(s, config or Config()))
    return loss_counts(rollout, unmasked, rollout if trained is None else trained)


def set_advantages(rollout: Rollout, advantages: torch.Tensor) -> None:
    for held, advantage in zip(samples_of(rollout), advantages.flatten().tolist(), strict=True):
        held.advantage = advantage


def step_gradients(model, rollout, plan, config, old_shift: float = 0.0):
    """Gradients, loss and terms of a step over the micro-batches of `plan`, lists of groups."""
    counts, total = counts_of(rollout), {}
    for chosen in plan:
        batch = [rollout[g] for g in chosen]
        reference = score_reference(model, batch, config) if config.beta > 0 else None
        old = None
        if old_shift:
            rng = torch.Generator().manual_seed(chosen[0])
            logps = update_micro_batch(model, batch, None, reference, counts, config)[2]
            old = logps + old_shift * torch.randn(logps.shape, generator=rng)
        loss, terms, _ = update_micro_batch(model, batch, old, reference, counts, config)
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
    prompts, tokens = (sum(column, []) for column in tokens_of(rollout))
    logps, mask = padded_logps(model, prompts, tokens, 1.3)
    with torch.no_grad(), use_reference(model):
        reference, _ = padded_logps(model, prompts, tokens, 1.3)
    advantages = table(rollout, "advantage").flatten()
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
def test_the_token_weights_of_a_step_add_up_to_what_its_counts_say(loss_type):
    model, rollout = build_model("phi3", lora=True), make_rollout(4)
    config = Config(loss_type=loss_type, beta=0.0, max_new_tokens=5, mask_truncated=True)
    for k, held in enumerate(samples_of(rollout)):
        held.completion.stopped, held.mass = k % 5 > 0, 0.5 + k % 3
    trained = select(rollout, lambda s: is_trained(s, config))
    counts = counts_of(rollout, trained, config)
    batches = [trained[:3], trained[3:]]
    found = sum(float(update_micro_batch(model, b, None, None, counts, config)[1]["weight_sum"]) for b in batches)
    assert 0 < found < 1 and found == pytest.approx(weight_sum(counts, loss_type, 5), rel=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_without_a_kl_samples_without_advantage_are_not_computed(family, loss_type):
    model, rollout = build_model(family, lora=True), make_rollout(8)
    advantages = table(rollout, "advantage")
    advantages[1] = 0.0
    advantages[2, 1:3] = 0.0
    set_advantages(rollout, advantages)
    config = Config(beta=0.0, loss_type=loss_type, max_new_tokens=5)
    live = select(rollout, lambda s: is_trained(s, config))
    assert 0 < len(samples_of(live)) == int((advantages != 0).sum()) < advantages.numel()
    for taken in (rollout, live):
        loss, _, _ = update_micro_batch(model, taken, None, None, counts_of(rollout, taken), config)
        loss.backward()
        if taken is rollout:
            expected, expected_loss = gradients(model), float(loss.detach())
    assert_same_gradients(gradients(model), expected)
    assert float(loss.detach()) == pytest.approx(expected_loss, abs=1e-6)
    every = select(rollout, lambda s: is_trained(s, Config(beta=0.1)))
    assert samples_of(every) == samples_of(rollout), "the KL term needs every sample"


def test_a_rank_without_any_advantage_has_nothing_to_compute():
    rollout = make_rollout(5)
    set_advantages(rollout, torch.zeros_like(table(rollout, "reward")))
    assert select(rollout, lambda s: is_trained(s, Config(beta=0.0))) == []


def test_completions_that_were_cut_can_be_left_out(family):
    """The gradient is that of a rollout in which they have advantage 0, but a token mean counts no token of theirs."""
    model, rollout = build_model(family, lora=True), make_rollout(9)
    for b, held in enumerate(samples_of(rollout)):
        held.completion.stopped = b % 3 > 0
    config = Config(beta=0.0, mask_truncated=True, loss_type="dapo")
    live = select(rollout, lambda s: is_trained(s, config))
    assert all(held.completion.stopped for held in samples_of(live))
    counts = counts_of(rollout, live, config)
    assert counts["loss_tokens"] == sum(len(s.completion.tokens) for s in samples_of(rollout) if s.completion.stopped)
    update_micro_batch(model, live, None, None, counts, config)[0].backward()
    got = gradients(model)
    for held in samples_of(rollout):
        held.advantage *= held.completion.stopped
    update_micro_batch(model, rollout, None, None, counts, Config(beta=0.0, loss_type="dapo"))[0].backward()
    assert_same_gradients(got, gradients(model))


def test_a_rollout_without_signal_leaves_only_the_kl():
    model, rollout = trained_policy("phi3"), make_rollout(5)
    set_advantages(rollout, torch.zeros_like(table(rollout, "reward")))
    without, _ = step_gradients(model, rollout, [list(range(8))], Config(beta=0.0))
    assert all((gradient == 0).all() for gradient in without.values())
    with_kl, _ = step_gradients(model, rollout, [list(range(8))], Config(beta=0.1))
    assert all(gradient.any() for gradient in with_kl.values())


# --- the reference


def scores(model, rollout) -> torch.Tensor:
    with torch.no_grad():
        return padded_logps(model, *(sum(column, []) for column in tokens_of(rollout)))[0]


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
    loss, _, _ = update_micro_batch(model, rollout[:2], None, None, counts_of(rollout), Config(beta=0.0))
    loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, trainable in after.items() if trainable}


def test_use_reference_needs_one():
    with pytest.raises(AssertionError, match="add_reference"), use_reference(build_model("phi3", lora=True)):
        pass


# --- the exact estimator


@pytest.fixture(scope="module")
def answering(tokenizer):
    """A policy that says Yes or No with a probability of 0.99 or more, and its prompts."""
    prompts = text_prompts(tokenizer)
    model = build_model("phi3", vocab_size=len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        logps = sequence_logps(model, [[p.tokens, p.tokens] for p in prompts], [list(p.answers) for p in prompts])[0]
        (-logps.sum(dim=1).view(-1, 2) * torch.tensor([0.6, 0.4])).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, prompts


def judged(rollout: Rollout, config: Config) -> Rollout:
    give_rewards(samples_of(rollout), False, config)
    give_advantages(rollout, config.scale_rewards, 0.0)
    return rollout


def answer_logps(model, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities (N, 2) of No and Yes, by the plain path."""
    flat = [s for s in samples_of(rollout) if s.completion.tokens]
    logps, _ = padded_logps(model, [s.prompt.tokens for s in flat], [s.completion.tokens for s in flat], temperature)
    return logps.sum(dim=1).view(-1, 2)


def test_both_answers_and_the_rest_are_weighted_by_their_probabilities(tokenizer, answering):
    model, prompts = answering
    config = Config(estimator="exact", temperature=1.7, beta=0.0)
    rollout = judged(enumerate_answers(model, tokenizer, in_groups(prompts, [[0, 1], [2], [3, 4]]), config), config)
    assert [s.text for s in samples_of(rollout)] == ["Answer: No", "Answer: Yes", ""] * 5
    with torch.no_grad():
        p = answer_logps(model, rollout, 1.7).exp()
    p = torch.cat((p, 1 - p.sum(dim=1, keepdim=True)), dim=1)
    torch.testing.assert_close(table(rollout, "mass"), p, rtol=1e-4, atol=1e-5)
    assert p.min() > 0.05, "probabilities near 0 test no weight"
    right = torch.tensor([p[row, prompt.label] for row, prompt in enumerate(prompts)])
    for row, samples in enumerate(prompts_of(rollout)):
        rewards = np.array([1.0, -1.0, -0.5]) if prompts[row].label == 0 else np.array([-1.0, 1.0, -0.5])
        mean = (p[row].numpy() * rewards).sum()
        spread = (p[row].numpy() * (rewards - mean) ** 2).sum() ** 0.5 + 1e-4
        for held, reward in zip(samples[:2], rewards, strict=False):
            assert held.reward == reward and held.advantage == pytest.approx((reward - -0.5) / spread, rel=1e-3)
    trained = select(rollout, lambda s: is_trained(s, config))
    assert [s.text for s in samples_of(trained)] == ["Answer: No", "Answer: Yes"] * 5
    counts = counts_of(rollout, trained, config)
    assert counts["loss_sequences"] == pytest.approx(5.0)
    terms = dict.fromkeys((*TERMS, "gap_square", "gap_tokens"), 0.0)
    values = step_values(statistics(rollout, ["outcome"], set()) | counts, terms, 1.0)
    rest = p[:, 2].mean()
    assert values["rollout/unanswered_rate"] == pytest.approx(float(rest), rel=1e-4)
    assert values["reward/accuracy"] == pytest.approx(float(right.mean()), rel=1e-4)
    assert values["reward/mean"] == pytest.approx(float(right.mean() - (1 - right.mean() - rest) - rest / 2), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_exact_gradient_is_that_of_the_expected_reward(tokenizer, answering, temperature):
    """With advantages that are not divided, policy gradients are the gradient of the mean reward itself."""
    model, prompts = answering
    config = Config(
        estimator="exact",
        scale_rewards="none",
        loss_type="dr_grpo",
        max_new_tokens=1,
        beta=0.0,
        temperature=temperature,
    )
    rollout = judged(enumerate_answers(model, tokenizer, [prompts], config), config)
    trained = select(rollout, lambda s: is_trained(s, config))
    update_micro_batch(model, trained, None, None, counts_of(rollout, trained), config)[0].backward()
    got = gradients(model)
    p = answer_logps(model, rollout, temperature).exp()
    rewards = torch.tensor([[1.0, -1.0] if prompt.label == 0 else [-1.0, 1.0] for prompt in prompts])
    expected_reward = ((p * rewards).sum(dim=1) - 0.5 * (1 - p.sum(dim=1))).mean()
    (-expected_reward).backward()
    assert_same_gradients(got, gradients(model))


@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_sampled_gradient_converges_to_the_exact_one(tokenizer, answering, scale):
    """Its distance falls like the square root of G."""
    model, prompts = answering
    ends = {prompt.answers[0][-1] for prompt in prompts}

    def gradient(estimator: str, g: int = 2) -> torch.Tensor:
        config = Config(estimator=estimator, num_generations=g, scale_rewards=scale, max_new_tokens=4, beta=0.0,
                        cache_tokens=2**20, loss_type="dr_grpo")  # fmt: skip
        if estimator == "exact":
            rollout = enumerate_answers(model, tokenizer, [prompts], config)
        else:
            rollout = sample(model, tokenizer, [prompts], ends, 0, 0, config)
        rollout = judged(rollout, config)
        trained = select(rollout, lambda s: is_trained(s, config))
        update_micro_batch(model, trained, None, None, counts_of(rollout, trained), config)[0].backward()
        return torch.cat([gradient.flatten() for gradient in gradients(model).values()])

    exact = gradient("exact")
    errors = [float((gradient("sampled", g) - exact).norm() / exact.norm()) for g in (8, 128, 2048)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.1
    assert errors[0] / errors[2] > 4, f"{errors}: 16 is what the square root of 256 promises"


# --- sampling and bookkeeping


def text_prompts(tokenizer, letters: str = "ACDEF", labels=(0, 1, 0, 1, 1)) -> list[Prompt]:
    answers = tuple(encode(tokenizer, f"Answer: {answer}<|end|>") for answer in ("No", "Yes"))
    texts = [encode(tokenizer, f"Premise: {letter} causes B.") for letter in letters]
    return [make_prompt(row, text, labels[row], answers) for row, text in enumerate(texts)]


def in_groups(prompts: list[Prompt], groups: list[list[int]]) -> list[list[Prompt]]:
    return [[prompts[row] for row in group] for group in groups]


@torch.no_grad()
def test_a_rank_samples_what_one_process_samples_for_those_prompts(tokenizer):
    model = build_model("phi3", vocab_size=len(tokenizer))
    prompts = text_prompts(tokenizer)
    config = Config(num_generations=3, max_new_tokens=6, prompts_per_step=5, seed=4)
    stops = set(range(0, len(tokenizer), 20))

    def drawn(groups: list[list[int]], number: int = 9, attempt: int = 0) -> dict[int, list]:
        rollout = sample(model, tokenizer, in_groups(prompts, groups), stops, number, attempt, config)
        assert [[[s.prompt.row for s in samples] for samples in g] for g in rollout] == [
            [[r] * 3 for r in g] for g in groups
        ]
        return {samples[0].prompt.row: [s.completion.tokens for s in samples] for samples in prompts_of(rollout)}

    together = drawn([[0, 1], [2], [3, 4]])
    assert all(len(set(map(tuple, tokens))) > 1 for tokens in together.values()), "samples of a prompt differ"
    for groups in ([[2], [4]], [[1, 3], [0]]):
        for row, tokens in drawn(groups).items():
            assert tokens == together[row]
    assert drawn([[0, 1]], number=10)[0] != together[0]
    assert drawn([[0, 1]], attempt=1)[0] != together[0], "a prompt that is drawn again gets other samples"


def scored_rollout() -> Rollout:
    texts = [["Answer: Yes", "Answer: No", "hm"], ["Answer: No", "Answer: No", "Answer: No"], ["Answer: Yes"] * 3]
    rewards = [[1.0, -1.0, -0.5], [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]
    rollout: Rollout = []
    for row, label in enumerate((1, 0, 0)):
        prompt = make_prompt(row, label=label)
        completions = [Completion([1] * (k + 1), [-1.0] * (k + 1), stopped=k < 2) for k in range(3)]
        judged = zip(rewards[row], completions, texts[row], strict=True)
        rollout.append([[rewarded(reward, completion, prompt, text) for reward, completion, text in judged]])
    give_advantages(rollout, "none", 0.0)
    return rollout


def test_rollout_metrics_by_hand():
    got = means(statistics(scored_rollout(), ["outcome"], end_ids={7}))
    expected = {
        "reward/mean": -0.5 / 9,
        "reward/outcome": -0.5 / 9,
        "reward/group_std": np.std([1, -1, -0.5]) / 3,
        "reward/accuracy": 4 / 9,
        "reward/accuracy_of_yes": 1 / 3,
        "reward/accuracy_of_no": 3 / 6,
        "reward/frac_zero_std": 2 / 3,
        "reward/frac_all_right": 1 / 3,
        "reward/frac_all_wrong": 1 / 3,
        "rollout/completion_length": 2.0,
        "rollout/unanswered_rate": 1 / 9,
        "rollout/predicted_yes_rate": 4 / 9,
        "rollout/label_yes_rate": 1 / 3,
        "rollout/truncated_rate": 1 / 3,
        "health/ran_past_end": 0.0,
    }
    assert got == pytest.approx(expected, rel=1e-5)
    assert loss_counts(scored_rollout(), [], [])["abs_advantage"] == pytest.approx(7 / 6 + 5 / 6 + 1 / 3)


def test_an_end_inside_a_completion_is_counted():
    sums = statistics(scored_rollout(), ["outcome"], end_ids={1})  # three have 1 token, six go on after the first
    assert sums["past_end"] == 6


def test_a_mass_weighs_the_metrics():
    """Masses of 1/2 are half as many completions: sums halve, means stay."""
    whole, half = scored_rollout(), scored_rollout()
    for held in samples_of(half):
        held.mass = 0.5
    sums, halves = (statistics(rollout, ["outcome"], set()) for rollout in (whole, half))
    for name, value in sums.items():
        per_group = name in ("groups", "group_std", "dead_right", "dead_wrong")
        assert halves[name] == pytest.approx(value if per_group else value / 2)
    assert means(halves) == pytest.approx(means(sums))


def test_dead_prompts_are_split_off():
    live, dead = split_dead(scored_rollout())
    assert dead == 2 and [s.prompt.row for s in samples_of(live)] == [0, 0, 0]


def test_sampling_gap_sums_squares_of_the_completion_alone():
    logps = torch.full((6, 3), -1.0)
    logps[4, 1] = -1.25
    logps[3, 1:] = -9.0  # beyond the end of that completion
    assert sampling_gap(scored_rollout()[1:], logps) == {"gap_square": pytest.approx(0.0625), "gap_tokens": 12}


def test_tokens_saved_by_hand():
    first = make_prompt(0, [5, 6, 7])
    group = [[rewarded(1.0, Completion([1, 2]), first), rewarded(1.0, Completion([1, 3]), first)]]
    assert tokens_saved([group]) == pytest.approx(1 - 6 / 10)
    assert tokens_saved([]) == 0.0


def test_completion_table_shows_label_reward_and_text():
    lines = completion_table(scored_rollout(), 4).splitlines()
    assert len(lines) == 2 + 4
    assert "claim 0" in lines[2] and "Yes" in lines[2] and "+1.00" in lines[2] and "Answer: Yes" in lines[2]
    assert "claim 1" in lines[5] and "No" in lines[5]


def test_the_queue_gives_every_prompt_once_an_epoch_in_groups_of_one_premise():
    premises = [f"p{k // 5}" for k in range(20)]
    calls = []

    def prompts_of_epoch(epoch: int) -> list[Prompt]:
        calls.append(epoch)
        return [make_prompt(row) for row in range(20)]

    def rows_of(queue, counts):
        return [[[p.row for p in group] for group in queue.take(count)] for count in counts]

    taken = rows_of(PromptQueue(premises, 3, 2, prompts_of_epoch), [7, 7, 6, 7])
    assert calls == [0, 1]
    first = [row for step in taken[:3] for group in step for row in group]
    assert sorted(first) == list(range(20)) and first != list(range(20))
    for step, size in zip(taken, (7, 7, 6, 7), strict=True):
        assert sum(map(len, step)) == size
        assert all(len(group) <= 2 and len({premises[row] for row in group}) == 1 for group in step)
    assert rows_of(PromptQueue(premises, 3, 2, prompts_of_epoch), [7, 7, 6, 7]) == taken
    assert rows_of(PromptQueue(premises, 4, 2, prompts_of_epoch), [7, 7, 6, 7]) != taken
    dropped = PromptQueue(premises, 3, 2, prompts_of_epoch)
    rows_of(dropped, [15])
    assert rows_of(dropped, [15]) != [[]] and dropped.epoch == 1, "what an epoch has left over is dropped"


def test_prompts_hold_what_their_rows_say(tokenizer):
    rows = {
        "prompt": ["Premise: x", "Premise: y"],
        "premise": [PREMISE_TEXT] * 2,
        "hypothesis": ["A directly causes B.", "B directly causes A."],
    }
    answers = [("Answer: No<|end|>", "Answer: Yes<|end|>")] * 2
    one, two = make_prompts(tokenizer, rows, [0, 1], answers)
    assert one.tokens == encode(tokenizer, "Premise: x") and (one.row, one.label, two.label) == (0, 0, 1)
    assert one.premise == PREMISE and one.claim == CLAIM != two.claim and two.hypothesis == "B directly causes A."
    assert tokenizer.decode(two.answers[1]).startswith("Answer: Yes")
    assert make_prompts(tokenizer, rows, [0, 1])[0].answers is None


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
        ({"estimator": "expected"}, "estimator.*exact"),
        ({"estimator": "exact", "resample_rounds": 1}, "resample_rounds"),
        ({"outcome_weight": 0.0}, "outcome_weight"),
        ({"process_weight": -1.0}, "process_weight: must be 0 or more"),
        ({"length_weight": 1.0, "free_tokens": 16}, "free_tokens"),
        ({"resample_rounds": -1}, "resample_rounds"),
        ({"stop_after": 0}, "stop_after"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)
