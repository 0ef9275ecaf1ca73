"""The GRPO objective against NumPy and hand-computed cases, and the invariances that a step must have."""

import random
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import VOCABULARY, assert_same_gradients, build_model, gradients, padded_logps
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from causal.rewards import corr2cause_reward
from dataset.chat import encode
from policy.adapters import add_reference, use_reference
from policy.prefix_sharing import joined
from policy.sampling import Completion, Sampler, character_ends
from train_grpo import (
    Config,
    group_advantages,
    grpo_loss,
    micro_batch_loss,
    sample,
    score_reference,
    token_advantages,
    token_weights,
)
from training.grpo_metrics import (
    TERMS,
    LossCounts,
    Rollout,
    UpdateTerms,
    completion_table,
    rollout_means,
    rollout_sums,
    std_over_ranks,
    step_metrics,
    weight_sum,
)
from training.rewards import Judgement, Part, Reward, step_parts, whole_parts
from training.rollouts import Prompt, micro_batches, tokens_saved

ALONE = Accelerator(cpu=True)

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


def test_the_std_over_ranks_is_that_of_all_rewards():
    rewards = torch.tensor([[1.0, -1.0, -0.5], [1.0, 1.0, -0.5]])
    assert std_over_ranks(ALONE, rewards) == pytest.approx(np.std(rewards.numpy()), rel=1e-6)


def step_case(seed: int, shape=(3, 4, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards (N, G, T) of steps at some of the tokens, at least one in each completion, and where they are."""
    rng = np.random.default_rng(seed)
    values, given = rng.normal(size=shape), rng.random(shape) < 0.4
    given[..., -1] |= ~given.any(axis=-1)
    return torch.tensor(values * given), torch.tensor(given)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_step_advantages_equal_numpy(scale, seed):
    """As DeepSeekMath writes it: rewards of all steps of a group, normalised together; a token gets its own and later
    ones. Two such parts of the reward are normalised apart."""
    parts = [Part(weight, *step_case(seed + k)) for k, weight in enumerate((1.0, 0.5))]
    got = token_advantages(ALONE, parts, scale)
    expected = np.zeros(got.shape)
    for weight, values, given in parts:
        spread = np.std([r for r, there in zip(values.flatten(), given.flatten(), strict=True) if there])
        for n, (rows, where) in enumerate(zip(values.numpy(), given.numpy(), strict=True)):
            rewards = rows[where]
            divisor = {"group": np.std(rewards) + 1e-4, "batch": spread + 1e-4, "none": 1.0}[scale]
            for g, t in np.ndindex(where.shape):
                later = [rows[g, k] for k in range(t, where.shape[1]) if where[g, k]]
                expected[n, g, t] += weight * sum((r - np.mean(rewards)) / divisor for r in later)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_a_completion_that_is_one_step_has_the_advantages_of_a_sequence():
    rewards = torch.tensor([[1.0, -1.0, -0.5], [1.0, 1.0, 1.0]])
    whole = [Part(1.0, rewards[..., None], torch.ones(2, 3, 1, dtype=torch.bool))]
    torch.testing.assert_close(token_advantages(ALONE, whole, "group")[..., 0], group_advantages(rewards, "group", 1.0))
    at_the_end, given = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)
    at_the_end[..., 2], given[..., 2] = rewards, True
    by_step = token_advantages(ALONE, [Part(1.0, at_the_end, given)], "group")
    torch.testing.assert_close(by_step[..., :3], group_advantages(rewards, "group", 1.0)[..., None].expand(-1, -1, 3))
    assert (by_step[..., 3] == 0).all()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_steps_whose_rewards_agree_have_advantage_exactly_zero(scale):
    _, given = step_case(0)
    values = torch.where(given, 1 / 3, 0.0)
    assert (token_advantages(ALONE, [Part(1.0, values, given)], scale) == 0).all()


LETTER = {"w": 1.0, "x": -1.0}


def spelled(text: str, row) -> dict:
    """A reward of steps that are single words, w and x; and one of the whole text."""
    words = [(k, k + 1, LETTER[letter]) for k, letter in enumerate(text) if letter in LETTER]
    return {"words": (sum(value for *_, value in words), words), "long": float(len(text) > 4)}


def judged_words(tokenizer):
    texts = [["w x w", "x"], ["w é w w", "?"]]
    completions = [
        [Completion(encode(tokenizer, f"{text}<|end|>"), text=text) for text in row] for row in texts
    ]  # fmt: skip
    reward = Reward(spelled, {"words": 2.0})
    return completions, reward.judge([make_prompt(k) for k in range(2)], completions), reward.weights


def test_bytes_that_are_no_characters_end_no_run():
    """Of a tokenizer that falls back to bytes, as Phi-3.5's: tokenizers' stream of texts fails on them."""
    pieces = ["A", "B", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE({piece: k for k, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    newline, stray, other = (pieces.index(name) for name in ("<0x0A>", "<0xA9>", "<0xE2>"))
    for tokens in ([0, newline, stray, 1], [0, stray, newline, other, other, 0, 1], [0, newline, 1]):
        ends = character_ends(tokenizer, tokens)
        assert ends == sorted(ends) and ends[0] == 1 and ends[-1] == len(tokenizer.decode(tokens))
    with pytest.raises(Exception, match="Invalid prefix"):
        stream = DecodeStream(skip_special_tokens=True)
        for token in [0, newline, stray, 1]:
            stream.step(backend, token)


def test_steps_are_found_at_the_tokens_that_end_them(tokenizer):
    completions, judgements, weights = judged_words(tokenizer)
    words, whole = step_parts(judgements, completions, weights, True, tokenizer)
    assert (words.weight, whole.weight) == (2.0, 1.0)
    for n, row in enumerate(completions):
        for g, completion in enumerate(row):
            ends = character_ends(tokenizer, completion.tokens)
            assert ends[-1] == ends[-2] == len(completion.text), "the last token, <|end|>, adds nothing"
            last = len(completion.tokens) - 1
            expected = {}
            for k, letter in enumerate(completion.text):
                if letter in LETTER:
                    t = next(t for t, end in enumerate(ends) if end > k)
                    assert letter in tokenizer.decode(completion.tokens[t])
                    expected[t] = expected.get(t, 0.0) + LETTER[letter]
            expected = expected or {last: 0.0}  # silence is not average
            found = {int(t): float(words.values[n, g, t]) for t in words.given[n, g].nonzero().flatten()}
            assert found == expected
            assert whole.given[n, g].nonzero().flatten().tolist() == [last]
            assert float(whole.values[n, g, last]) == judgements[n][g].components["long"]
    (both,) = step_parts(judgements, completions, weights, False, tokenizer)
    torch.testing.assert_close(both.values.sum(-1), torch.tensor([[j.reward for j in row] for row in judgements]))
    assert both.weight == 1.0 and (both.given == (words.given | whole.given)).all()


def test_components_are_scaled_apart_or_summed_first(tokenizer):
    _, judgements, weights = judged_words(tokenizer)
    (total,) = whole_parts(judgements, weights, apart=False)
    torch.testing.assert_close(total.values[..., 0], torch.tensor([[j.reward for j in row] for row in judgements]))
    parts = whole_parts(judgements, weights, apart=True)
    got = token_advantages(ALONE, parts, "group")[..., 0].numpy()
    for n, row in enumerate(judgements):
        expected = np.zeros(2)
        for name, weight in (("words", 2.0), ("long", 1.0)):
            values = np.array([judged.components[name] for judged in row])
            expected += weight * (values - values.mean()) / (values.std() + 1e-4)
        np.testing.assert_allclose(got[n], expected, rtol=1e-5)


def test_a_component_of_weight_0_is_no_step(tokenizer):
    completions, _, _ = judged_words(tokenizer)
    prompts, found = [make_prompt(k) for k in range(2)], []
    for function, weights in ((spelled, {"long": 0.0}), (lambda *asked: {"words": spelled(*asked)["words"]}, {})):
        reward = Reward(function, weights)
        parts = step_parts(reward.judge(prompts, completions), completions, reward.weights, False, tokenizer)
        found.append(token_advantages(ALONE, parts, "group"))
    assert found[0].any() and torch.equal(*found)


# --- loss


def test_token_weights():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    counts = LossCounts(sequences=3, tokens=7)
    grpo = token_weights(mask, "grpo", counts, max_new_tokens=5)
    torch.testing.assert_close(grpo.sum(dim=1), torch.full((3,), 1 / 3))  # every sequence counts alike
    dapo = token_weights(mask, "dapo", counts, max_new_tokens=5)
    torch.testing.assert_close(dapo[mask], torch.full((7,), 1 / 7))  # every token counts alike
    dr_grpo = token_weights(mask, "dr_grpo", counts, max_new_tokens=5)
    torch.testing.assert_close(dr_grpo[mask], torch.full((7,), 1 / 15))  # whatever the lengths
    for weights in (grpo, dapo, dr_grpo):
        assert (weights[~mask] == 0).all()


def numpy_loss(logps, old, reference, advantages, weights, config: Config) -> float:
    """The objective token by token, as the papers write it."""
    total = 0.0
    for b, t in np.argwhere(weights > 0):
        ratio = np.exp(logps[b, t] - old[b, t])
        bounded = min(max(ratio, 1 - config.eps_low), 1 + config.eps_high)
        objective = min(ratio * advantages[b, t], bounded * advantages[b, t])
        gap = reference[b, t] - logps[b, t]
        k3 = np.exp(gap) - gap - 1
        total += weights[b, t] * (config.beta * k3 - objective)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_loss_equals_numpy(seed):
    rng = np.random.default_rng(seed)
    logps, old, reference = -rng.exponential(1.0, (3, 6, 5)).astype(np.float64)
    advantages, mask = rng.normal(size=(6, 5)), rng.random((6, 5)) < 0.8
    weights = mask * rng.random((6, 5))
    values = [torch.tensor(x) for x in (logps, old, reference, advantages, weights)]
    config = Config(eps_low=0.2, eps_high=0.3, beta=0.1)
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


@pytest.mark.parametrize(("ratio", "advantage", "gradient"), CLIPPING)
def test_clipping_by_hand(ratio, advantage, gradient):
    logps = torch.tensor([[np.log(ratio)]], requires_grad=True)
    one = torch.ones(1, 1)
    config = Config(eps_low=0.2, eps_high=0.3, beta=0.0)
    loss, terms = grpo_loss(logps, 0 * one, None, torch.tensor([[advantage]]), one, config)
    loss.backward()
    assert float(logps.grad) == pytest.approx(gradient)
    assert float(terms["clip_fraction"]) == (gradient == 0)
    assert float(terms["ratio_deviation"]) == pytest.approx(abs(ratio - 1))


# --- one step


class Step(NamedTuple):
    """What the loop has after sampling: groups of prompts, and completions, rewards (N, G) and advantages (N, G, 1)."""

    groups: list[list[Prompt]]
    completions: list[list[Completion]]
    rewards: torch.Tensor
    advantages: torch.Tensor

    @property
    def prompts(self) -> list[Prompt]:
        return sum(self.groups, [])

    @property
    def counts(self) -> LossCounts:
        return LossCounts.over_ranks(ALONE, self.completions)

    def batches(self, trained=None, plan: list[list[int]] | None = None, budget: int = 10**6, share: bool = True):
        """Micro-batches: one for each list of groups in `plan`, or as many as the budget makes."""
        trained = torch.ones_like(self.rewards, dtype=torch.bool) if trained is None else trained
        if plan is None:
            return micro_batches(ALONE, self.groups, self.completions, trained, budget, share)
        group_of = torch.tensor([g for g, group in enumerate(self.groups) for _ in group])
        chosen = [trained & torch.isin(group_of, torch.tensor(groups))[:, None] for groups in plan]
        return sum((self.batches(part, budget=budget) for part in chosen), [])

    def flat(self) -> tuple[list, list]:
        """Prompt and completion tokens of every sequence, in the order of (N, G)."""
        pairs = [(p.tokens, c.tokens) for p, row in zip(self.prompts, self.completions, strict=True) for c in row]
        return tuple(map(list, zip(*pairs, strict=True)))


def make_prompt(index: int = 0, tokens=(5,), label: int = 0) -> Prompt:
    row = {"prompt": "?", "response": f"Answer: {('No', 'Yes')[label]}", "hypothesis": f"claim {index}", "label": label}
    return Prompt(index, list(tokens), row)


def make_step(seed: int, groups: int = 8, samples: int = 4) -> Step:
    """Groups of one or two prompts of a premise with completions of 1 to 5 tokens, and rewards +1 and -1."""
    rng = random.Random(seed)
    prompts: list[list[Prompt]] = []
    completions, rewards = [], []
    for g in range(groups):
        premise = [rng.randrange(VOCABULARY) for _ in range(4)]
        names = range(10 * g, 10 * g + rng.randint(1, 2))
        prompts.append([make_prompt(index, [*premise, rng.randrange(VOCABULARY)]) for index in names])
        for _ in prompts[-1]:
            drawn = [[rng.randrange(1, 4) for _ in range(rng.randint(1, 5))] for _ in range(samples)]
            completions.append([Completion(tokens, [-1.0] * len(tokens), stopped=True) for tokens in drawn])
            rewards.append([rng.choice([-1.0, 1.0]) for _ in range(samples)])
    rewards = torch.tensor(rewards)
    return Step(prompts, completions, rewards, group_advantages(rewards, "group", 0.0)[..., None])


def step_gradients(model, step: Step, plan, config, old_shift: float = 0.0):
    """Gradients, loss and terms of a step over the micro-batches of `plan`, lists of groups."""
    total = {}
    for batch in step.batches(plan=plan):
        reference = score_reference(model, batch, config)
        old = None
        if old_shift:
            rng = torch.Generator().manual_seed(int(batch.index[0]))
            logps = micro_batch_loss(model, batch, None, reference, step.advantages, step.counts, config)[2]
            old = logps + old_shift * torch.randn(logps.shape, generator=rng)
        loss, terms, _ = micro_batch_loss(model, batch, old, reference, step.advantages, step.counts, config)
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
    model, step = trained_policy(family), make_step(1)
    config = Config(loss_type=loss_type, beta=0.1, max_new_tokens=5, temperature=0.9)
    expected, whole = step_gradients(model, step, [list(range(8))], config)
    for plan in ([[g] for g in range(8)], [[3, 1], [0, 7, 2, 5], [6, 4]]):
        got, parts = step_gradients(model, step, plan, config)
        assert_same_gradients(got, expected)
        for name in ("loss", "policy_loss", "kl", "entropy"):
            assert parts[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("share", [True, False])
def test_micro_batches_hold_every_marked_completion_once_at_its_place(share):
    step = make_step(3)
    trained = torch.rand(step.rewards.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    batches = step.batches(trained, budget=60, share=share)
    assert len(batches) > 2
    for batch in () if share else batches:  # nothing keeps a group together
        lengths = [len(sequence) for (sequence,) in joined(batch.prompts, batch.completions)]
        assert len(lengths) * max(lengths) <= 60 or len(lengths) == 1
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == trained.flatten().nonzero().flatten().tolist()
    prompts, completions = step.flat()
    for batch in batches:
        assert sum(batch.prompts, []) == [prompts[i] for i in batch.index]
        assert sum(batch.completions, []) == [completions[i] for i in batch.index]
        assert batch.mask.sum(dim=1).tolist() == [len(completions[i]) for i in batch.index]
        assert (batch.sampled_logps == torch.where(batch.mask, -1.0, 0.0)).all() and batch.scale == 1


def test_a_rank_with_less_to_do_repeats_a_sequence_at_scale_0(monkeypatch):
    """Another rank has three micro-batches; this one's gradient stays what it was."""
    model, step, config = build_model("phi3", lora=True), make_step(5), Config(beta=0.0)
    expected, _ = step_gradients(model, step, [list(range(8))], config)
    monkeypatch.setattr("training.rollouts.reduce", lambda accelerator, values, how: {"n": 3.0})
    every = torch.ones_like(step.rewards, dtype=torch.bool)
    for trained, scales in ((every, [1, 0, 0]), (~every, [0, 0, 0])):
        batches = step.batches(trained)
        assert [batch.scale for batch in batches] == scales
        for batch in batches:
            loss = micro_batch_loss(model, batch, None, None, step.advantages, step.counts, config)[0]
            (batch.scale * loss).backward()
        got = gradients(model)
        if trained.any():
            assert_same_gradients(got, expected, relative=0.0)
        else:
            assert not any(gradient.any() for gradient in got.values())


def test_prefix_sharing_does_not_change_the_step(family):
    model, step = trained_policy(family), make_step(2)
    plan = [[0, 1, 2, 3], [4, 5, 6, 7]]
    packed = step_gradients(model, step, plan, Config(beta=0.1), old_shift=0.3)
    plain = step_gradients(model, step, plan, Config(beta=0.1, prefix_sharing=False), old_shift=0.3)
    assert_same_gradients(packed[0], plain[0])
    assert packed[1]["clip_fraction"] > 0


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_step_equals_the_definition(loss_type):
    """The step's gradient from one padded row a sequence and the formula of the paper, written out."""
    model, step = trained_policy("qwen2"), make_step(3)
    config = Config(loss_type=loss_type, beta=0.2, max_new_tokens=7, temperature=1.3)
    got, terms = step_gradients(model, step, [[0, 1, 2], [3, 4, 5, 6, 7]], config)
    prompts, tokens = step.flat()
    logps, mask = padded_logps(model, prompts, tokens, 1.3)
    with torch.no_grad(), use_reference(model):
        reference, _ = padded_logps(model, prompts, tokens, 1.3)
    advantages = step.advantages.flatten()
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
    model, step = build_model(family, lora=True), make_step(4)
    add_reference(model)
    _, terms = step_gradients(model, step, [[0, 1, 2, 3], [4, 5, 6, 7]], Config(beta=0.1))
    assert terms["ratio_deviation"] == 0 and terms["clip_fraction"] == 0
    assert abs(terms["kl"]) < 1e-9
    # Each group's advantages add up to 0, and under grpo with ratio 1 so does the loss.
    assert abs(terms["policy_loss"]) < 1e-6


def test_the_second_update_of_a_rollout_is_clipped_against_the_policy_that_sampled():
    """With num_iterations 2 the ratio leaves 1 after the first update, and what is beyond the clip has no gradient."""
    model, step = build_model("phi3", lora=True), make_step(4)
    config = Config(beta=0.0, num_iterations=2, eps_low=1e-3, eps_high=1e-3)
    (batch,) = step.batches()
    loss, first, old_logps = micro_batch_loss(model, batch, None, None, step.advantages, step.counts, config)
    loss.backward()
    assert float(first["ratio_deviation"]) == 0 == float(first["clip_fraction"])
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.5 * p.grad
    model.zero_grad(set_to_none=True)
    loss, second, logps = micro_batch_loss(model, batch, old_logps, None, step.advantages, step.counts, config)
    assert float(second["ratio_deviation"]) > 1e-3 and 0 < float(second["clip_fraction"]) <= 1
    loss.backward()
    got = gradients(model)
    ratio, advantages = (logps - old_logps).exp(), step.advantages.flatten()[batch.index][:, None]
    beyond = ((ratio > 1 + 1e-3) & (advantages > 0)) | ((ratio < 1 - 1e-3) & (advantages < 0))
    again = padded_logps(model, sum(batch.prompts, []), sum(batch.completions, []))[0]
    weights = token_weights(batch.mask, "grpo", step.counts, 16)
    (-((again - old_logps).exp() * advantages * weights * ~beyond).sum()).backward()
    assert_same_gradients(got, gradients(model))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_the_token_weights_of_a_step_add_up_to_what_its_counts_say(loss_type):
    model, step = build_model("phi3", lora=True), make_step(4)
    config = Config(loss_type=loss_type, beta=0.0, max_new_tokens=5)
    trained = (torch.arange(step.rewards.numel()) % 5 > 0).view(step.rewards.shape)
    found = 0.0
    for batch in step.batches(trained, budget=60):
        terms = micro_batch_loss(model, batch, None, None, step.advantages, step.counts, config)[1]
        found += float(terms["weight_sum"])
    judgements = [[Judgement(float(r), {"outcome": float(r)}) for r in row] for row in step.rewards]
    rollout = Rollout(step.prompts, step.completions, judgements, step.rewards, step.advantages, trained)
    expected = weight_sum(rollout_sums(rollout, set()), step.counts, loss_type, 5)
    assert 0 < found < 1 and found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_without_a_kl_samples_without_advantage_are_not_computed(family, loss_type):
    model, step = build_model(family, lora=True), make_step(8)
    step.advantages[1] = 0.0
    step.advantages[2, 1:3] = 0.0
    config = Config(beta=0.0, loss_type=loss_type, max_new_tokens=5)
    live = (step.advantages != 0).any(dim=-1)
    assert 0 < live.sum() < live.numel()
    found = []
    for trained in (torch.ones_like(live), live):
        (batch,) = step.batches(trained)
        assert len(batch.index) == trained.sum()
        loss = micro_batch_loss(model, batch, None, None, step.advantages, step.counts, config)[0]
        loss.backward()
        found.append((gradients(model), float(loss.detach())))
    (expected, expected_loss), (got, got_loss) = found
    assert_same_gradients(got, expected)
    assert got_loss == pytest.approx(expected_loss, abs=1e-6)


def test_a_rollout_without_signal_leaves_only_the_kl():
    model, step = trained_policy("phi3"), make_step(5)
    step.advantages[:] = 0.0
    without, _ = step_gradients(model, step, [list(range(8))], Config(beta=0.0))
    assert all((gradient == 0).all() for gradient in without.values())
    with_kl, _ = step_gradients(model, step, [list(range(8))], Config(beta=0.1))
    assert all(gradient.any() for gradient in with_kl.values())


# --- the reference


def scores(model, step: Step) -> torch.Tensor:
    with torch.no_grad():
        return padded_logps(model, *step.flat())[0]


def test_the_reference_is_the_starting_adapter_and_not_the_base(family):
    model, step = build_model(family, lora=True), make_step(6)
    before = scores(model, step)
    add_reference(model)
    with model.disable_adapter():
        assert (scores(model, step) - before).abs().max() > 0.1, "an adapter that does nothing tests nothing"
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.mul_(3)
    assert (scores(model, step) - before).abs().max() > 0.1
    with use_reference(model):
        assert torch.equal(scores(model, step), before)
    assert (scores(model, step) - before).abs().max() > 0.1, "the policy is active again"


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
    step = make_step(7)
    batch = step.batches(plan=[[0, 1]])[0]
    micro_batch_loss(model, batch, None, None, step.advantages, step.counts, Config(beta=0.0))[0].backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, trainable in after.items() if trainable}


def test_use_reference_needs_one():
    with pytest.raises(AssertionError, match="add_reference"), use_reference(build_model("phi3", lora=True)):
        pass


# --- sampling and bookkeeping


@torch.no_grad()
def test_a_rank_samples_what_one_process_samples_for_those_prompts(tokenizer):
    model = build_model("phi3", vocab_size=len(tokenizer))
    prompts = [make_prompt(k, encode(tokenizer, f"Premise: {letter} causes B.")) for k, letter in enumerate("ACDEF")]
    config = Config(num_generations=3, max_new_tokens=6, prompts_per_step=5, seed=4)
    s = SimpleNamespace(sampler=Sampler(model, tokenizer, set(range(0, len(tokenizer), 20)), 6, 8192))

    def drawn(groups: list[list[int]], step: int = 9) -> dict[int, list]:
        rows = sum(groups, [])
        completions = sample(s, [[prompts[row] for row in group] for group in groups], step, config)
        assert [len(row) for row in completions] == [3] * len(rows)
        assert all(c.text == tokenizer.decode(c.tokens, skip_special_tokens=True) for row in completions for c in row)
        return {row: [c.tokens for c in drawn] for row, drawn in zip(rows, completions, strict=True)}

    together = drawn([[0, 1], [2], [3, 4]])
    assert all(len(set(map(tuple, tokens))) > 1 for tokens in together.values()), "samples of a prompt differ"
    for groups in ([[2], [4]], [[1, 3], [0]]):
        for row, tokens in drawn(groups).items():
            assert tokens == together[row]
    assert drawn([[0, 1]], step=10)[0] != together[0]


def scored_rollout() -> Rollout:
    """Three prompts, labels 1, 0, 0, with three completions of 1, 2 and 3 tokens, the last of which was cut."""
    texts = [["Answer: Yes", "Answer: No", "hm"], ["Answer: No", "Answer: No", "Answer: No"], ["Answer: Yes"] * 3]
    prompts = [make_prompt(row, label=label) for row, label in enumerate((1, 0, 0))]
    completions = [
        [Completion([1] * (k + 1), [-1.0] * (k + 1), stopped=k < 2, text=text) for k, text in enumerate(row)]
        for row in texts
    ]
    judgements = Reward(corr2cause_reward()).judge(prompts, completions)
    rewards = torch.tensor([[judgement.reward for judgement in row] for row in judgements])
    advantages = group_advantages(rewards, "none", 0.0)[..., None]
    return Rollout(prompts, completions, judgements, rewards, advantages, (advantages != 0).any(dim=-1))


def test_rollout_metrics_by_hand():
    got = rollout_means(rollout_sums(scored_rollout(), end_ids={7}))
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
        "rollout/distinct_share": 3 / 6,
        "rollout/unanswered_rate": 1 / 9,
        "rollout/predicted_yes_rate": 4 / 9,
        "rollout/label_yes_rate": 1 / 3,
        "rollout/truncated_rate": 1 / 3,
        "health/ran_past_end": 0.0,
        "health/not_finite_rate": 0.0,
    }
    assert got == pytest.approx(expected, rel=1e-5)
    sums = rollout_sums(scored_rollout(), set())
    assert sums["abs_advantage"] == pytest.approx(7 / 6 + 5 / 6 + 1 / 3)
    assert (sums["trained_sequences"], sums["trained_tokens"]) == (3, 6)


def test_a_label_that_no_prompt_has_leaves_its_metric_nan():
    rollout = scored_rollout()
    sums = rollout_sums(Rollout(*(column[1:] for column in rollout)), set())
    assert np.isnan(rollout_means(sums)["reward/accuracy_of_yes"])


def test_an_end_inside_a_completion_is_counted():
    sums = rollout_sums(scored_rollout(), end_ids={1})  # three have 1 token, six go on after the first
    assert sums["past_end"] == 6


def test_a_completion_that_is_not_finite_is_counted_and_not_as_a_cut_one():
    rollout = scored_rollout()
    broken = next(one for one in chain.from_iterable(rollout.completions) if not one.stopped)
    broken.logps[-1] = float("nan")
    means = rollout_means(rollout_sums(rollout, end_ids=set()))
    assert (means["health/not_finite_rate"], means["rollout/truncated_rate"]) == pytest.approx((1 / 9, 2 / 9))


def test_step_metrics_by_hand():
    """Three micro-batches and an idle one: terms of a token of mean weight, and the gap to sampling."""
    rollout = scored_rollout()
    every = torch.ones_like(rollout.rewards, dtype=torch.bool)
    batches = micro_batches(ALONE, [[prompt] for prompt in rollout.prompts], rollout.completions, every, 4, True)
    assert len(batches) == 3
    terms = UpdateTerms(num_iterations=2)
    for k, batch in enumerate([*batches, replace(batches[0], scale=0.0)]):
        logps = batch.sampled_logps.clone()
        logps[0, 0] += 0.5 * (k == 1)
        logps[~batch.mask] = -9.0  # beyond the end of a completion
        found = dict.fromkeys(TERMS, torch.tensor(float(k))) | {"ratio_deviation": torch.tensor(0.25 * k)}
        terms.add(batch, found, logps, first=True)
        terms.add(batch, found, logps, first=False)
    s = SimpleNamespace(
        accelerator=ALONE, dtype=torch.float32, end_ids=set(), sampler=SimpleNamespace(max_new_tokens=5)
    )
    values = step_metrics(s, rollout, terms, LossCounts(9, 18), "dapo", is_reference=True)
    assert values["policy/policy_loss"] == values["health/mask_error"] == 3.0  # (0 + 1 + 2) twice, of two passes
    expected_weight = 6 / 18  # 6 of the step's 18 tokens are trained
    assert values["policy/kl"] == values["policy/clip_fraction"] == pytest.approx(3.0 / expected_weight)
    assert values["policy/entropy"] == pytest.approx(3.0 / 6)
    assert values["health/first_ratio_deviation"] == 0.5
    assert values["health/sampling_logp_gap"] == pytest.approx((0.25 / 18) ** 0.5)
    assert values["health/reference_kl"] == pytest.approx(3.0 / expected_weight)
    assert values["health/weight_sum_error"] == pytest.approx(3.0 / expected_weight - 1)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_kl_and_clip_fraction_are_of_a_token_whatever_its_weight(loss_type):
    """Every token 0.2 nats below the reference, half of them clipped, and completions half as long as they may be."""
    rollout, length = scored_rollout(), 2
    for one in chain.from_iterable(rollout.completions):
        one.tokens[:], one.logps[:] = [1] * length, [-1.0] * length
    counts = LossCounts(9, 9 * length)
    mask = torch.ones(9, length)
    logps = torch.full((9, length), -1.0)
    old_logps = logps - torch.tensor([1.0, 0.0])  # beyond the clip, and 1
    advantages = torch.ones(9, 1)
    weights = token_weights(mask, loss_type, counts, 2 * length)
    _, terms = grpo_loss(logps, old_logps, logps + 0.2, advantages, weights, Config(loss_type=loss_type))
    terms |= {"entropy": torch.tensor(0.0), "weight_sum": weights.sum(), "mask_error": torch.tensor(0.0)}
    every = torch.ones_like(rollout.rewards, dtype=torch.bool)
    batches = micro_batches(ALONE, [[p] for p in rollout.prompts], rollout.completions, every, 10**6, True)
    update = UpdateTerms(num_iterations=1)
    update.add(batches[0], terms, batches[0].sampled_logps, first=True)
    s = SimpleNamespace(
        accelerator=ALONE, dtype=torch.float32, end_ids=set(), sampler=SimpleNamespace(max_new_tokens=2 * length)
    )
    values = step_metrics(s, rollout._replace(trained=every), update, counts, loss_type, is_reference=True)
    assert values["policy/kl"] == values["health/reference_kl"] == pytest.approx(np.exp(0.2) - 1.2, rel=1e-4)
    assert values["policy/clip_fraction"] == pytest.approx(0.5)


def test_a_group_whose_rewards_agree_is_not_dead_if_its_steps_differ():
    """One completion goes right and then wrong, one wrong and then right."""
    steps = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    advantages = token_advantages(ALONE, [Part(1.0, steps, torch.ones_like(steps, dtype=torch.bool))], "group")
    whole = scored_rollout()
    rollout = Rollout(
        whole.prompts[:1],
        [[replace(completion, tokens=[1, 1]) for completion in whole.completions[0][:2]]],
        [whole.judgements[0][:2]],
        steps.sum(dim=-1),
        advantages,
        torch.ones(1, 2, dtype=torch.bool),
    )
    means = rollout_means(rollout_sums(rollout, set()))
    assert means["reward/group_std"] == 0.0 and means["reward/frac_zero_std"] == 0.0


def test_tokens_saved_by_hand():
    prompt, completions = make_prompt(0, [5, 6, 7]), [[Completion([1, 2], [-1.0] * 2), Completion([1, 3], [-1.0] * 2)]]
    batches = micro_batches(ALONE, [[prompt]], completions, torch.ones(1, 2, dtype=torch.bool), 100, True)
    assert tokens_saved(batches) == pytest.approx(1 - 6 / 10)
    assert tokens_saved([]) == 0.0


def test_completion_table_shows_target_reward_and_text():
    lines = completion_table(scored_rollout(), 4).splitlines()
    assert len(lines) == 2 + 4
    assert "claim 0" in lines[2] and "Answer: Yes | +1.00" in lines[2] and lines[2].endswith("| Answer: Yes |")
    assert "claim 1" in lines[5] and "Answer: No | +1.00" in lines[5]


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
        ({"outcome_weight": 0.0}, "outcome_weight"),
        ({"process_weight": -1.0}, "process_weight: must be 0 or more"),
        ({"stop_after": 0}, "stop_after"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)
