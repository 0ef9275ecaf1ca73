"""Group relative policy optimization (GRPO) on the prompts of a dataset of preprocess.py.

    accelerate launch --config_file accelerate_configs/zero2_2xl4.yaml train_grpo.py --config configs/grpo_phi3.yaml
    accelerate launch --config_file accelerate_configs/zero2_2xcpu.yaml train_grpo.py --config configs/grpo_tiny.yaml
    tensorboard --logdir logs

DeepSeekMath (arXiv 2402.03300) for the algorithm; DAPO (2503.14476) and Dr. GRPO (2503.20783) for the other
normalisers. The policy is a LoRA adapter; the reference of the KL term is a frozen copy of that adapter as it was at
the start, on the same base. Every weight of the loss is divided by a count of the whole optimizer step, so neither
micro-batches nor processes change the gradient.

What a completion is worth is asked of one function of its text and its row (training/rewards.py); this file knows
prompts, tokens and rewards alone.

Dimensions: N prompts of a step on this rank, G samples a prompt, B sequences of a micro-batch, T completion length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from accelerate import Accelerator

from dataset.chat import check_reads_english, encode
from dataset.reading import check_whole
from dataset.relabelling import FreshRows, trace_style
from policy.adapters import use_reference
from policy.prefix_sharing import sequence_logps
from policy.sampling import Completion
from runtime.ending import run_script
from runtime.settings import arg, check, parse_config
from training.grpo_metrics import (
    LossCounts,
    Rollout,
    UpdateTerms,
    std_over_ranks,
    step_metrics,
    write_completions,
)
from training.health import check_graph, sampling_gap_cause
from training.monitoring import Laps
from training.optimization import backward, set_learning_rate, step_optimizer
from training.rewards import Part, Reward, load_reward, step_parts, whole_parts
from training.rollouts import MicroBatch, Prompt, PromptQueue, at_the_edge, micro_batches, tokens_saved
from training.settings import TrainingSettings
from training.setup import Setup, open_run
from training.validation import Validation

SHOWN = {"reward": "reward/mean", "kl": "policy/kl", "agree": "reward/frac_zero_std"}  # on the console, of every step


@dataclass
class Config(TrainingSettings):
    # Where the defaults of both stages differ, these are GRPO's.
    model: str = "models/tiny_sft_model"
    claims_per_prefix: int = 4
    output_dir: str = "models/tiny_grpo_model"
    logging_dir: str = "logs/grpo"
    learning_rate: float = 1e-5
    logging_steps: int = 5
    eval_steps: int = 50
    save_steps: int = 50

    prompts_per_step: int = arg(32, "prompts of a rollout, over all processes", at_least=1, section="rollout")
    pass_rates: str | None = arg(
        None, "directory that evaluate.py --num_samples wrote of train_split: prompts are chosen by pass_rate"
    )
    pass_rate: list[float] = arg(
        [0.1, 0.8],
        "with pass_rates: prompts whose share of right samples lies between these two",
        at_least=0,
        at_most=1,
    )
    num_generations: int = arg(8, "samples G of a prompt", at_least=2, words="a group needs at least 2")
    temperature: float = arg(
        1.0,
        "sampling temperature; log-probabilities are taken at the same one",
        above=0,
        words="sampling needs more than 0",
    )

    reward_function: str | None = arg(
        None,
        "FILE.py:NAME, a function of (completion, row): a reward of your own instead of the one below",
        section="reward",
    )
    outcome_weight: float = arg(1.0, "weight of the answer: 1 right, -1 wrong, -0.5 none", at_least=0)
    process_weight: float = arg(
        0.0, "weight of the reasoning's steps: -1 to 1, for datasets whose target is a trace", at_least=0
    )

    loss_type: str = arg(
        "grpo",
        "grpo (mean over each sequence) | dapo (mean over the step's tokens) | dr_grpo (constant)",
        choices=("grpo", "dapo", "dr_grpo"),
        section="objective",
    )
    scale_rewards: str = arg(
        "group", "divide advantages by the std of the group | batch | none", choices=("group", "batch", "none")
    )
    advantages: str = arg(
        "sequence",
        "sequence: of a completion's reward, for all its tokens | step: a token's, of the rewards of its own step and "
        "the later ones",
        choices=("sequence", "step"),
    )
    scale_components: bool = arg(
        False, "scale each component of the reward by itself, before their weighted sum (GDPO), instead of the sum"
    )
    num_iterations: int = arg(1, "optimizer steps a rollout", at_least=1)
    eps_low: float = arg(0.2, "lower clip of the probability ratio", at_least=0, below=1)
    eps_high: float = arg(0.2, "upper clip of the probability ratio", at_least=0)
    beta: float = arg(
        0.03,
        "weight of the KL to the reference; 0 computes no reference and no row without an advantage",
        at_least=0,
    )

    max_steps: int = arg(200, "steps of the run, a rollout each", at_least=1, section="optimisation")
    warmup_steps: int = arg(5, "steps in which the rate rises from 0; then it is constant", at_least=0)

    num_logged_completions: int = arg(
        16, "sampled completions written to TensorBoard at each evaluation", at_least=0, section="watching"
    )

    def __post_init__(self):
        super().__post_init__()
        weighted = self.reward_function is not None or max(self.outcome_weight, self.process_weight) > 0
        check(weighted, "outcome_weight, process_weight: one must be above 0")
        in_order = len(self.pass_rate) == 2 and self.pass_rate[0] <= self.pass_rate[1]
        check(in_order, f"pass_rate: two numbers, the lower one first, got {self.pass_rate}")
        if self.pass_rates is None:
            self.check_unread(["pass_rate"], "bounds of pass_rates, which names no directory; leave it out")


# --- the algorithm


def group_advantages(
    rewards: torch.Tensor, scale: str, batch_std: float, given: torch.Tensor | None = None, eps: float = 1e-4
) -> torch.Tensor:
    """Advantages of rewards (N, G) or (N, G, T): each group's mean is subtracted, then `group` or `batch` std divides.

    DeepSeekMath, section 4.1.2; the std is the population's. `given` marks which rewards there are, None all of them:
    the others count nowhere, and their advantage is 0. A group whose rewards agree has advantage exactly 0.
    """
    flat = rewards.flatten(1)  # (N, G·T)
    given = torch.ones_like(flat) if given is None else given.flatten(1).to(flat)
    count = given.sum(dim=1, keepdim=True).clamp(min=1)
    centred = (flat - (flat * given).sum(dim=1, keepdim=True) / count) * given
    highest, lowest = (flat.masked_fill(given == 0, -sign * torch.inf) * sign for sign in (1, -1))
    agree = highest.amax(dim=1) <= -lowest.amax(dim=1)
    group_std = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    if scale != "none":
        centred = centred / ((group_std if scale == "group" else batch_std) + eps)
    centred[agree] = 0.0  # not rounding noise divided by eps
    return centred.reshape(rewards.shape)


def add_later(advantages: torch.Tensor) -> torch.Tensor:
    """Of steps' advantages (N, G, T), each at its last token: what a token answers for, that step and all later ones.

    DeepSeekMath, section 4.1.3. With T = 1, where a completion is one step, it is the advantage itself.
    """
    return advantages.flip(-1).cumsum(dim=-1).flip(-1)


def token_advantages(accelerator: Accelerator, parts: list[Part], scale: str) -> torch.Tensor:
    """Advantages (N, G, T), or (N, G, 1), of the parts of the reward, each scaled by itself, and summed by weight.

    One part is GRPO; one for each component of the reward is GDPO (arXiv 2601.05242).
    """
    total = torch.zeros(1)
    for weight, values, given in parts:
        batch_std = std_over_ranks(accelerator, values[given]) if scale == "batch" else 0.0
        total = total + weight * add_later(group_advantages(values, scale, batch_std, given))
    return total


def token_weights(mask: torch.Tensor, loss_type: str, counts: LossCounts, max_new_tokens: int) -> torch.Tensor:
    """Weight (B, T) of each token in the loss, from counts of the whole step over all ranks.

    grpo: the mean over sequences of each sequence's token mean; dapo: the mean over all tokens; dr_grpo: the sum
    divided by a constant, the step's largest possible token count.
    """
    if loss_type == "grpo":
        return mask / mask.sum(dim=1, keepdim=True) / counts.sequences
    return mask / (counts.tokens if loss_type == "dapo" else counts.sequences * max_new_tokens)


def grpo_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    ref_logps: torch.Tensor | None,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    config: Config,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped objective with an estimate of the KL to the reference (DeepSeekMath, equations 3 and 4).

    `logps`, `old_logps`, `ref_logps`, `weights` are (B, T), `advantages` that or (B, 1); a weight is 0 beyond a
    completion's end.
    With one update a rollout (`num_iterations` 1) the policy is the one that has sampled: every ratio is 1, nothing is
    clipped, and the gradient is that of advantage times log-probability. From the second update on, the clip keeps the
    policy near the one that has sampled. Returns the loss, a scalar, and weighted sums of the terms for logging.
    """
    ratio = (logps - old_logps).exp()
    unclipped, clipped = ratio * advantages, ratio.clamp(1 - config.eps_low, 1 + config.eps_high) * advantages
    policy_loss = -(torch.minimum(unclipped, clipped) * weights).sum()
    kl = torch.zeros_like(policy_loss)
    if ref_logps is not None:
        gap = ref_logps - logps
        kl = ((gap.exp() - gap - 1) * weights).sum()  # k3: never negative, 0 where the two agree
    terms = {
        "policy_loss": policy_loss.detach(),
        "kl": kl.detach(),
        "clip_fraction": ((clipped < unclipped) * weights).sum().detach(),
        "ratio_deviation": ((ratio.detach() - 1).abs() * (weights > 0)).max(),
    }
    return policy_loss + config.beta * kl, terms


# --- one step


def sample(s: Setup, groups: list[list[Prompt]], step: int, config: Config) -> list[list[Completion]]:
    """G completions of each of the N prompts in `groups`: (N, G)."""
    size = config.num_generations
    # What is sampled depends on (seed, step, prompt, sample) alone: not on the batch, nor on the number of processes.
    seeds = [[(config.seed, step, prompt.index, g) for prompt in group for g in range(size)] for group in groups]
    repeated = [[prompt.tokens for prompt in group for _ in range(size)] for group in groups]
    # A sample that writes what the dataset's response says takes fewer steps, and is the same.
    responses = [[encode(s.sampler.tokenizer, prompt.row["response"]) for prompt in group] for group in groups]
    drafts = [[response for response in group for _ in range(size)] for group in responses]
    drawn = list(chain.from_iterable(s.sampler.sample(repeated, config.temperature, seeds, drafts)))
    return [drawn[n : n + size] for n in range(0, len(drawn), size)]


def parts_of_reward(s: Setup, reward: Reward, judgements, completions, config: Config) -> list[Part]:
    """What the advantages of completions (N, G) are of: rewards of steps or of wholes, summed or by component."""
    if config.advantages == "step":
        return step_parts(judgements, completions, reward.weights, config.scale_components, s.tokenizer)
    return whole_parts(judgements, reward.weights, config.scale_components)


def policy_logps(model, batch: MicroBatch, config: Config, temperature: float | None = None):
    """Log-probabilities, entropies and mask (`sequence_logps`) of the batch's completions, (B, T) each."""
    temperature = config.temperature if temperature is None else temperature
    inputs = (batch.prompts, batch.completions, temperature, config.prefix_sharing)
    return sequence_logps(model, *inputs, entropy=torch.is_grad_enabled())  # the reference's are not logged


@torch.no_grad()
def score_reference(model, batch: MicroBatch, config: Config) -> torch.Tensor | None:
    """Log-probabilities (B, T) of the completions under the frozen reference adapter; None where nobody reads them."""
    if config.beta == 0 or batch.scale == 0:
        return None
    with use_reference(model):
        return policy_logps(model, batch, config)[0]


def micro_batch_loss(model, batch: MicroBatch, old_logps, ref_logps, advantages: torch.Tensor, counts, config: Config):
    """The batch's part of the loss, terms to log, and its log-probabilities (B, T); `advantages` (N, G, T)."""
    logps, entropies, mask = policy_logps(model, batch, config)  # (B, T)
    weights = token_weights(mask, config.loss_type, counts, config.max_new_tokens)
    of_batch = advantages.flatten(0, 1)[batch.index, : logps.shape[1]].to(logps)  # (B, T) or (B, 1)
    # On the first pass the policy is the one that sampled, and the ratio is exactly 1.
    old_logps = logps.detach() if old_logps is None else old_logps
    loss, terms = grpo_loss(logps, old_logps, ref_logps, of_batch, weights, config)
    terms |= {
        "entropy": entropies.sum(),
        "weight_sum": weights.sum(),
        "mask_error": mask.sum() - batch.mask.sum(),
    }
    return loss, terms, logps.detach()


def causes(policy, batch: MicroBatch, scored: torch.Tensor, config: Config) -> dict[str, Callable[[], str]]:
    """What there is to find out about a sign of trouble, once it shows."""
    score = partial(policy_logps, policy, batch, config)
    return {"sampling_gap": partial(sampling_gap_cause, policy, score, batch.sampled_logps, scored, config.temperature)}


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then constant; `step` counts from 0."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


# --- the run


def set_up(config: Config) -> tuple[Setup, PromptQueue, Reward] | None:
    """All that the loop needs; None for a run that has already finished."""
    reward = load_reward(config.reward_function, config.outcome_weight, config.process_weight, config.class_weights)
    opened = open_run(config, "GRPO", labels=config.reward_function is None)
    if opened is None:
        return None
    opened.run.check_length(config.max_steps)
    check_whole(opened.train, config.dataset)
    if config.pass_rates is not None:
        opened.train, said = at_the_edge(opened.train, config.pass_rates, *config.pass_rate)
        opened.accelerator.print(said)
    fast = config.advantages == "sequence" or getattr(opened.tokenizer, "is_fast", False)
    check(fast, f"advantages step: {config.model} has no fast tokenizer, which tells where a step ends; use sequence")
    rows, world_size = len(opened.train), opened.accelerator.num_processes
    asked = f"prompts_per_step: {config.prompts_per_step}"
    check(config.prompts_per_step <= rows, f"{asked} is more than the {rows} training rows")
    check(config.prompts_per_step >= world_size, f"{asked} is less than one for each of {world_size} processes")
    fresh = None
    if config.relabel_each_epoch:
        check_reads_english(opened.tokenizer, "wordings", config.wordings)
        style = trace_style(config.dataset)
        fresh = FreshRows(opened.train, style, config.seed, config.wordings, config.letterings)
    queue = PromptQueue(
        opened.accelerator, opened.tokenizer, opened.train, config.seed, config.claims_per_prefix,
        new_tokens=config.num_generations * config.max_new_tokens, fresh=fresh,
    )  # fmt: skip
    row = queue.prompts[0].row
    for text in (row["response"], ""):  # a function of the user's that cannot be used is found out here
        reward(text, row)
    ahead = 0 if fresh is None else fresh.longest(opened.tokenizer, responses=False)  # in a later epoch
    longest = max(queue.longest, ahead) + config.max_new_tokens
    model = opened.load_with_reference(longest, reference=config.beta > 0)

    def probe(responses: list[list[int]]) -> torch.Tensor:
        return sequence_logps(model, [[queue.prompts[0].tokens]], [responses[:1]], config.temperature)[0].mean()

    s = opened.ready(model, config.max_steps, probe, queue.first(config.prompts_per_step), longest)
    queue.restore(s.saved.get("queue", {}))
    return s, queue, reward


def main() -> None:
    config = parse_config(Config)
    found = set_up(config)
    if found is None:
        return
    s, queue, reward = found
    accelerator, engine, policy, optimizer = s.accelerator, s.engine, s.policy, s.optimizer
    world_size = accelerator.num_processes
    validation = Validation(s, reward if config.reward_function else None)
    window: list[dict[str, float]] = s.saved.get("window", [])  # values of the steps since the last logged ones
    groups_of = f"{config.prompts_per_step} prompts x {config.num_generations} completions"
    s.announce(f"{len(s.train)} prompts, {config.max_steps} steps of {groups_of}")
    if not s.saved:
        validation(0)
    progress = s.start_progress()
    for step in range(s.first_step, config.max_steps):
        if s.run.must_stop():
            s.save(step, best=validation.best, window=window, queue=queue.state())
            s.run.leave(step)
        laps = Laps()

        # --- sample G completions of each of N prompts, and ask what they are worth
        groups = queue.take(config.prompts_per_step)  # of one premise each; together the N prompts of this rank
        prompts = list(chain.from_iterable(groups))
        completions = sample(s, groups, step, config)  # (N, G)
        judgements = reward.judge(prompts, completions)  # (N, G)
        rewards = torch.tensor([[judgement.reward for judgement in row] for row in judgements])  # (N, G)
        laps.end("rollout")

        # --- advantages; a completion that has none is computed for the KL term alone
        parts = parts_of_reward(s, reward, judgements, completions, config)
        advantages = token_advantages(accelerator, parts, config.scale_rewards)  # (N, G, T)
        trained = (advantages != 0).any(dim=-1) | (config.beta > 0)  # (N, G)
        counts = LossCounts.over_ranks(accelerator, completions)
        batches = micro_batches(
            accelerator, groups, completions, trained, config.micro_batch_tokens, config.prefix_sharing
        )
        laps.end("wait")
        ref_logps = [score_reference(policy, batch, config) for batch in batches]  # (B, T) each
        laps.end("score")

        # --- update
        set_learning_rate(optimizer, learning_rate(step, config))
        engine.train()
        old_logps: list[torch.Tensor | None] = [None] * len(batches)  # (B, T) each, once the first pass has found them
        terms = UpdateTerms(config.num_iterations)
        steps: list[tuple[float, bool]] = []  # of each pass the norm of its gradient, and whether the weights moved
        for _ in range(config.num_iterations):
            for k, batch in enumerate(batches):
                loss, found, logps = micro_batch_loss(
                    engine, batch, old_logps[k], ref_logps[k], advantages, counts, config
                )
                check_graph(policy, loss)
                # DeepSpeed averages over ranks: times world_size, the sum over ranks is the loss of the whole step.
                backward(accelerator, batch.scale * world_size * loss, last=k == len(batches) - 1)
                terms.add(batch, found, logps, first=old_logps[k] is None)
                old_logps[k] = logps if old_logps[k] is None else old_logps[k]
            steps.append(step_optimizer(accelerator, engine, optimizer, config.max_grad_norm))
        laps.end("update")

        # --- watch, evaluate, save
        rollout = Rollout(prompts, completions, judgements, rewards, advantages, trained)
        values = step_metrics(s, rollout, terms, counts, config.loss_type, step == 0 and config.beta > 0)
        values |= {"train/learning_rate": learning_rate(step, config), **laps.seconds}
        values |= s.motion.values(policy, steps)
        s.monitor.update(step + 1, values, causes(policy, batches[0], old_logps[0], config))
        window.append(values)
        progress.update(step + 1, **{name: values[tag] for name, tag in SHOWN.items()})
        if s.is_time(step + 1, config.logging_steps):
            s.log(window, step + 1, {"perf/tokens_saved": tokens_saved(batches)})
            window.clear()
        if s.is_time(step + 1, config.eval_steps):
            validation(step + 1)
            write_completions(s.writer, rollout, config.num_logged_completions, step + 1)
        if config.save_steps > 0 and s.is_time(step + 1, config.save_steps):
            s.save(step + 1, best=validation.best, window=window, queue=queue.state())
    progress.close()
    s.finish(validation.best)


if __name__ == "__main__":
    run_script(main)
