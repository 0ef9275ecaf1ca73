"""Group relative policy optimization (GRPO) on the prompts of a dataset of preprocess.py.

    accelerate launch --config_file accelerate_configs/zero2_2xl4.yaml train_grpo.py --config configs/grpo_phi3.yaml
    accelerate launch --config_file accelerate_configs/zero2_2xcpu.yaml train_grpo.py --config configs/grpo_tiny.yaml
    tensorboard --logdir logs

DeepSeekMath (arXiv 2402.03300) for the algorithm; DAPO (2503.14476) and Dr. GRPO (2503.20783) for the other
normalisers. The policy is a LoRA adapter; the reference of the KL term is a frozen copy of that adapter as it was at
the start, on the same base. Every weight of the loss is divided by a count of the whole optimizer step, so neither
micro-batches nor processes change the gradient.

Dimensions: N prompts of a step, G samples a prompt, B = N·G rows, T completion length.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from arguments import arg, check, check_choice, parse_config, run_script, write_config
from checkpoints import claim_output_dir, save_checkpoint
from data import epoch_batches, load_split, relabel_rows, share_of_rank
from distributed import backward, on_main, prepare, reduce, set_learning_rate, start, step
from generation import Completion, generate_groups, predict
from health import AdapterMotion, check_gradient_flow, report_scores
from metrics import classification_metrics
from models import (
    add_reference,
    check_context,
    check_model,
    disable_dropout,
    encode,
    load_policy,
    load_tokenizer,
    save_model,
    stop_token_ids,
    training_dtype,
    use_reference,
)
from prefix_sharing import check_prefix_sharing, pack, plan_micro_batches, sequence_logps
from rewards import extract_answer, outcome_reward


@dataclass
class Config:
    model: str = arg("models/tiny_sft_model", "hub name, directory of a model or of a LoRA adapter")
    revision: str | None = arg(None, "hub revision of the model")
    dataset: str = arg("data/tiny", "directory that preprocess.py wrote")
    output_dir: str = arg("models/tiny_grpo_model", "where the adapter, its checkpoints and its configuration go")
    logging_dir: str = arg("logs/grpo", "TensorBoard directory")
    overwrite: bool = arg(False, "use an output_dir that is not empty")
    # the policy
    quantization: str = arg("none", "nf4 | none: precision of the frozen base")
    lora_r: int = arg(16, "LoRA rank of a new adapter; a model that is an adapter keeps its own")
    lora_alpha: int = arg(32, "LoRA scale is lora_alpha / lora_r")
    lora_target_modules: str = arg("", "comma-separated names of linear layers; empty: all but the head")
    gradient_checkpointing: bool = arg(False, "recompute activations in the backward pass")
    # rollout
    prompts_per_step: int = arg(32, "prompts N of a rollout, over all processes")
    num_generations: int = arg(8, "samples G of a prompt")
    temperature: float = arg(1.0, "sampling temperature; log-probabilities are taken at the same one")
    max_new_tokens: int = arg(16, "tokens of a completion, at most")
    cache_tokens: int = arg(
        8192, "tokens in the key-value cache of a rollout on one process: prompts and longest completions"
    )
    claims_per_prefix: int = arg(4, "prompts of one premise that share its tokens")
    relabel_each_epoch: bool = arg(False, "exchange the letters of every premise at random, anew in every epoch")
    # the objective
    loss_type: str = arg(
        "grpo", "grpo (mean over each sequence) | dapo (mean over the step's tokens) | dr_grpo (constant)"
    )
    scale_rewards: str = arg("group", "divide advantages by the std of the group | batch | none")
    class_weights: list[float] = arg(
        [1.0, 1.0], "reward scale of rows whose label is No and Yes; cancels in group scaling"
    )
    num_iterations: int = arg(1, "optimizer steps a rollout")
    eps_low: float = arg(0.2, "lower clip of the probability ratio")
    eps_high: float = arg(0.2, "upper clip of the probability ratio")
    dual_clip: float = arg(0.0, "bound of the ratio where the advantage is negative, above 1 + eps_high; 0: none")
    importance: str = arg("token", "probability ratio of each token | sequence (GSPO: of a completion, by its length)")
    mask_truncated: bool = arg(False, "leave completions that were cut at max_new_tokens out of the loss")
    beta: float = arg(
        0.03, "weight of the KL to the reference; 0 computes no reference and no row without an advantage"
    )
    kl_correction: bool = arg(
        False, "weight k3 by the probability ratio: then its gradient is that of the KL, off policy too"
    )
    # optimisation
    max_steps: int = arg(200, "rollouts")
    learning_rate: float = arg(1e-5, "learning rate after the warm-up, constant")
    warmup_steps: int = arg(5, "rollouts in which the rate rises from 0")
    weight_decay: float = arg(0.0, "AdamW weight decay")
    max_grad_norm: float = arg(1.0, "gradient norm beyond which gradients are clipped")
    micro_batch_tokens: int = arg(2048, "packed tokens a forward pass on one process; lower it if memory runs out")
    prefix_sharing: bool = arg(True, "compute shared prefixes once; false computes every row by itself")
    seed: int = arg(0, "seed of a new adapter, of the data order and of sampling")
    # watching and keeping
    logging_steps: int = arg(5, "rollouts between logged values")
    eval_steps: int = arg(50, "rollouts between evaluations; 0: at the end only")
    eval_rows: int = arg(256, "validation rows of an evaluation, at most")
    keep_best: bool = arg(True, "output_dir gets the adapter of the evaluation with the best F1; false: the last one")
    save_steps: int = arg(50, "rollouts between checkpoints; 0: none")
    save_total_limit: int = arg(2, "checkpoints kept; 0 keeps all")
    num_logged_completions: int = arg(4, "sampled completions written to TensorBoard at each evaluation")

    def __post_init__(self):
        check_choice("loss_type", self.loss_type, ("grpo", "dapo", "dr_grpo"))
        check_choice("importance", self.importance, ("token", "sequence"))
        bounded = self.dual_clip == 0 or self.dual_clip > 1 + self.eps_high
        check(bounded, f"dual_clip: 0 for none, or more than 1 + eps_high, {1 + self.eps_high}; got {self.dual_clip}")
        check_choice("scale_rewards", self.scale_rewards, ("group", "batch", "none"))
        check(self.num_generations >= 2, f"num_generations: a group needs at least 2, got {self.num_generations}")
        check(self.temperature > 0, f"temperature: sampling needs more than 0, got {self.temperature}")
        check(self.beta >= 0, f"beta: must not be negative, got {self.beta}")
        check(len(self.class_weights) == 2, f"class_weights: two numbers, for No and Yes, got {self.class_weights}")
        for name in ("prompts_per_step", "max_new_tokens", "max_steps", "num_iterations", "logging_steps", "eval_rows"):
            check(getattr(self, name) >= 1, f"{name}: must be at least 1, got {getattr(self, name)}")


# --- the algorithm


def group_advantages(rewards: torch.Tensor, scale: str, batch_std: float, eps: float = 1e-4) -> torch.Tensor:
    """Advantages (N, G) of rewards (N, G): each group's mean is subtracted, then `group` or `batch` std divides.

    A group whose rewards agree has advantage exactly 0. The group's std is the population's over its G samples.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    centred[(rewards == rewards[:, :1]).all(dim=1)] = 0.0  # not rounding noise divided by eps
    if scale == "none":
        return centred
    std = rewards.std(dim=1, keepdim=True, unbiased=False) if scale == "group" else batch_std
    return centred / (std + eps)


def token_weights(
    mask: torch.Tensor, loss_type: str, num_sequences: float, num_tokens: float, max_new_tokens: int
) -> torch.Tensor:
    """Weight (B, T) of each token in the loss, from counts of the whole step over all ranks.

    grpo: the mean over sequences of each sequence's token mean; dapo: the mean over all tokens; dr_grpo: the sum
    divided by a constant, the step's largest possible token count.
    """
    if loss_type == "grpo":
        return mask / mask.sum(dim=1, keepdim=True) / num_sequences
    return mask / (num_tokens if loss_type == "dapo" else num_sequences * max_new_tokens)


def grpo_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    ref_logps: torch.Tensor | None,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    config: Config,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped objective with an estimate of the KL to the reference (DeepSeekMath, equations 3 and 4).

    `logps`, `old_logps`, `ref_logps`, `weights` are (B, T), `advantages` (B,); a weight is 0 beyond a completion's end.
    `importance` sequence: the ratio of GSPO (arXiv 2507.18071, equation 7), the geometric mean of the tokens' ratios.
    `dual_clip`: a bound of the loss where the advantage is negative (arXiv 1912.09729, equation 5). `kl_correction`:
    k3 times the ratio, whose gradient is that of the KL; k3's own is not, least of all off policy (TRL #4967).
    Returns the loss, a scalar, and weighted sums of the terms for logging.
    """
    log_ratio, advantage = logps - old_logps, advantages[:, None]
    if config.importance == "sequence":
        held = weights > 0
        log_ratio = (log_ratio * held).sum(dim=1, keepdim=True) / held.sum(dim=1, keepdim=True).clamp_min(1)
    ratio = log_ratio.exp()  # (B, T), or (B, 1)
    unclipped, clipped = ratio * advantage, ratio.clamp(1 - config.eps_low, 1 + config.eps_high) * advantage
    objective = torch.minimum(unclipped, clipped)
    bounded = objective
    if config.dual_clip > 0:
        bounded = torch.where(advantage < 0, torch.maximum(objective, config.dual_clip * advantage), objective)
    policy_loss = -(bounded * weights).sum()
    kl = torch.zeros_like(policy_loss)
    if ref_logps is not None:
        gap = ref_logps - logps
        k3 = gap.exp() - gap - 1
        kl = (k3 * (logps - old_logps).exp() * weights if config.kl_correction else k3 * weights).sum()
    terms = {
        "policy_loss": policy_loss.detach(),
        "kl": kl.detach(),
        "clip_fraction": (((clipped < unclipped) | (bounded > objective)) * weights).sum().detach(),
        "ratio_deviation": ((ratio.detach() - 1).abs() * (weights > 0)).max(),
    }
    return policy_loss + config.beta * kl, terms


# --- one rollout


@dataclass
class Rollout:
    """The completions of this rank's prompts, group by group; a group holds the G samples of each of its prompts."""

    rows: list[list[int]]  # per group: row index of each sequence
    prompts: list[list[list[int]]]  # per group and sequence: tokens
    completions: list[list[Completion]]
    texts: list[list[str]]
    rewards: torch.Tensor  # (N, G)
    advantages: list[torch.Tensor] = field(default_factory=list)  # per group: one for each sequence

    def tokens(self, g: int) -> list[list[int]]:
        return [completion.tokens for completion in self.completions[g]]

    def set_advantages(self, advantages: torch.Tensor) -> None:
        """Advantages (N, G), in the order of the rewards."""
        self.advantages = list(advantages.flatten().split([len(rows) for rows in self.rows]))


def sample(
    model, tokenizer, prompts, labels, groups: list[list[int]], stop_ids, rollout_step: int, config: Config
) -> Rollout:
    """G completions of every prompt in `groups`, scored."""
    rows = [[row for row in group for _ in range(config.num_generations)] for group in groups]
    tokens = [[prompts[row] for row in group] for group in rows]
    # What is sampled depends on (seed, step, prompt, sample) alone: not on the batch, nor on the number of processes.
    seeds = [
        [(config.seed, rollout_step, row, k % config.num_generations) for k, row in enumerate(group)] for group in rows
    ]
    model.eval()  # dropout or checkpointing would sample from another policy
    completions = generate_groups(
        model, tokens, cache_tokens=config.cache_tokens, seeds=seeds, stop_ids=stop_ids,
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, share=config.prefix_sharing,
    )  # fmt: skip
    texts = [[tokenizer.decode(c.tokens, skip_special_tokens=True) for c in group] for group in completions]
    rewards = [
        outcome_reward(text, labels[row], config.class_weights)
        for group_rows, group in zip(rows, texts, strict=True)
        for row, text in zip(group_rows, group, strict=True)
    ]
    return Rollout(rows, tokens, completions, texts, torch.tensor(rewards).view(-1, config.num_generations))


def with_gradient(rollout: Rollout, config: Config) -> Rollout:
    """The sequences that a step must compute: not masked ones, nor, without a KL term, those of advantage 0."""
    kept = []
    for advantages, completions in zip(rollout.advantages, rollout.completions, strict=True):
        live = (advantages != 0).tolist() if config.beta == 0 else [True] * len(completions)
        kept.append([k for k, c in enumerate(completions) if live[k] and not is_masked(c, config)])
    groups = [g for g, chosen in enumerate(kept) if chosen]
    columns = {
        name: [[getattr(rollout, name)[g][k] for k in kept[g]] for g in groups]
        for name in ("rows", "prompts", "completions", "texts")
    }
    return replace(rollout, **columns, advantages=[rollout.advantages[g][kept[g]] for g in groups])


def is_masked(completion: Completion, config: Config) -> bool:
    """Whether the loss leaves it out: cut at max_new_tokens, its reward says little about the tokens it has."""
    return config.mask_truncated and not completion.stopped


def reward_std(accelerator, rewards: torch.Tensor) -> float:
    """Population standard deviation of the rewards of all ranks."""
    sums = {
        "n": rewards.numel(),
        "sum": float(rewards.double().sum()),
        "square": float(rewards.double().square().sum()),
    }
    sums = reduce(accelerator, sums)
    return max(0.0, sums["square"] / sums["n"] - (sums["sum"] / sums["n"]) ** 2) ** 0.5


def num_tokens(rollout: Rollout) -> int:
    return sum(len(completion.tokens) for group in rollout.completions for completion in group)


def rollout_statistics(rollout: Rollout, labels) -> dict[str, float]:
    """Sums over this rank's rollout, to be added over ranks and divided by their counts (see `rollout_means`)."""
    flat = [(row, c, t) for g in range(len(rollout.rows))
            for row, c, t in zip(rollout.rows[g], rollout.completions[g], rollout.texts[g], strict=True)]  # fmt: skip
    answers = [extract_answer(text) for _, _, text in flat]
    dead = (rollout.rewards == rollout.rewards[:, :1]).all(dim=1)
    right = [
        answer is not None and int(answer) == labels[row] for answer, (row, _, _) in zip(answers, flat, strict=True)
    ]
    return {
        "sequences": len(flat),
        "groups": len(rollout.rewards),
        "tokens": num_tokens(rollout),
        "reward": float(rollout.rewards.sum()),
        "group_std": float(rollout.rewards.std(dim=1, unbiased=False).sum()),
        "dead_right": float((dead & (rollout.rewards[:, 0] > 0)).sum()),
        "dead_wrong": float((dead & (rollout.rewards[:, 0] <= 0)).sum()),
        "abs_advantage": float(sum(advantages.abs().sum() for advantages in rollout.advantages)),
        "right": sum(right),
        "unanswered": sum(answer is None for answer in answers),
        "yes": sum(answer is True for answer in answers),
        "truncated": sum(not c.stopped for _, c, _ in flat),
    }


def rollout_means(s: dict[str, float]) -> dict[str, float]:
    """Named metrics from the sums of `rollout_statistics`, over all ranks and the steps of a logging window."""
    return {
        "reward/mean": s["reward"] / s["sequences"],
        "reward/group_std": s["group_std"] / s["groups"],
        "reward/accuracy": s["right"] / s["sequences"],
        "reward/frac_zero_std": (s["dead_right"] + s["dead_wrong"]) / s["groups"],
        "reward/frac_all_right": s["dead_right"] / s["groups"],
        "reward/frac_all_wrong": s["dead_wrong"] / s["groups"],
        "policy/mean_abs_advantage": s["abs_advantage"] / s["sequences"],
        "rollout/completion_length": s["tokens"] / s["sequences"],
        "rollout/unanswered_rate": s["unanswered"] / s["sequences"],
        "rollout/predicted_yes_rate": s["yes"] / s["sequences"],
        "rollout/truncated_rate": s["truncated"] / s["sequences"],
    }


def update_micro_batch(model, rollout: Rollout, batch: list[int], old, reference, counts, config: Config):
    """Loss of the groups in `batch`; returns it with its terms and the micro-batch's log-probabilities (B, T)."""
    prompts, completions = [rollout.prompts[g] for g in batch], [rollout.tokens(g) for g in batch]
    logps, entropies, mask = sequence_logps(model, prompts, completions, config.temperature, config.prefix_sharing)
    advantages = torch.cat([rollout.advantages[g] for g in batch]).to(logps.device)
    weights = token_weights(mask, config.loss_type, counts["sequences"], counts["loss_tokens"], config.max_new_tokens)
    # On the first pass the policy is the one that sampled, and the ratio is exactly 1.
    old_logps = logps.detach() if old is None else old
    loss, terms = grpo_loss(logps, old_logps, reference, advantages, weights, config)
    terms["entropy"] = entropies.sum() / max(1, counts["trained_tokens"])
    return loss, terms, logps.detach()


@torch.no_grad()
def score_reference(model, rollout: Rollout, batch: list[int], config: Config) -> torch.Tensor:
    """Log-probabilities (B, T) of the completions under the frozen reference adapter."""
    with use_reference(model):
        prompts, completions = [rollout.prompts[g] for g in batch], [rollout.tokens(g) for g in batch]
        return sequence_logps(model, prompts, completions, config.temperature, config.prefix_sharing)[0]


def sampling_gap(rollout: Rollout, batch: list[int], logps: torch.Tensor) -> float:
    """Largest difference between a token's log-probability in sampling and in scoring."""
    sampled = [completion.logps for g in batch for completion in rollout.completions[g]]
    return max(float((logps[b, : len(s)].cpu() - torch.tensor(s)).abs().max()) for b, s in enumerate(sampled))


def main() -> None:
    config = parse_config(Config)
    accelerator = start(config.seed)
    main_process = accelerator.is_main_process
    rank, world_size = accelerator.process_index, accelerator.num_processes
    check_model(config.model)
    output_dir = Path(config.output_dir)
    on_main(accelerator, lambda: claim_output_dir(config.output_dir, config.overwrite))

    # --- data
    train = load_split(config.dataset, "train")
    validation = load_split(config.dataset, "validation")
    validation = validation.select(range(min(len(validation), config.eval_rows)))
    tokenizer = load_tokenizer(config.model, config.revision)
    labels, premise_ids = train["label"], train["premise_id"]

    def prompts_of_epoch(epoch: int) -> tuple[list[list[int]], list[str]]:
        """Token ids and hypotheses of every prompt."""
        texts = relabel_rows(train, None, config.seed, epoch) if config.relabel_each_epoch else train
        return [encode(tokenizer, text) for text in texts["prompt"]], texts["hypothesis"]

    def longest_tokens(group: list[int]) -> int:
        """Packed tokens of all samples of a group of rows, if none stops early: what a rank's work is shared out by."""
        samples = len(group) * config.num_generations
        return len(pack([[prompts[row] for row in group]])) + samples * config.max_new_tokens

    prompts, hypotheses = prompts_of_epoch(0)
    check(
        config.prompts_per_step <= len(train),
        f"prompts_per_step: {config.prompts_per_step} is more than the {len(train)} training rows",
    )
    check(config.prompts_per_step >= world_size, f"prompts_per_step: at least one for each of {world_size} processes")

    # --- policy and reference
    dtype = training_dtype(accelerator)
    model = load_policy(
        config.model,
        adaptation="lora",
        quantization=config.quantization,
        dtype=dtype,
        device=accelerator.device,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_target_modules=config.lora_target_modules,
        gradient_checkpointing=config.gradient_checkpointing,
        revision=config.revision,
        seed=config.seed,
    )
    disable_dropout(model)  # sampling and scoring must see one policy
    check_context(model, max(map(len, prompts)) + config.max_new_tokens)
    if config.beta > 0:
        add_reference(model)
    stop_ids = stop_token_ids(tokenizer, model)
    probe = sequence_logps(model, [prompts[:1]], [[encode(tokenizer, train["response"][0])]], config.temperature)[0]
    check_gradient_flow(model, probe.mean())
    if config.prefix_sharing:
        first = epoch_batches(premise_ids, config.seed, 0, config.claims_per_prefix, config.prompts_per_step)[0]
        first = share_of_rank(first, rank, world_size, longest_tokens)
        answers = [[encode(tokenizer, train[row]["response"]) for row in group] for group in first]
        check_prefix_sharing(
            model, [[prompts[row] for row in group] for group in first], answers, config.micro_batch_tokens
        )
    engine, optimizer = prepare(accelerator, model, config.learning_rate, config.weight_decay, config.max_grad_norm)
    policy = accelerator.unwrap_model(engine)
    motion = AdapterMotion(policy)

    writer = SummaryWriter(config.logging_dir) if main_process else None
    if main_process:
        write_config(config, output_dir / "training_config.json")
        print(
            f"GRPO: {len(train)} prompts, {config.max_steps} steps of "
            f"{config.prompts_per_step}×{config.num_generations} completions on {world_size} processes, "
            f"{dtype}, {accelerator.distributed_type.value}",
            flush=True,
        )

    best = {"f1": -1.0, "step": 0}

    def evaluate(step_number: int, rollout: Rollout | None = None) -> None:
        answers = predict(
            accelerator, policy, tokenizer, validation,
            stop_ids=stop_ids, max_new_tokens=config.max_new_tokens, cache_tokens=config.cache_tokens,
            share=config.prefix_sharing,
        )  # fmt: skip
        scores = classification_metrics(validation["label"], [answer["prediction"] for answer in answers])
        if config.keep_best and scores["f1"] >= best["f1"]:
            best.update(f1=scores["f1"], step=step_number)
            on_main(accelerator, lambda: save_model(policy, tokenizer, output_dir))
        if main_process:
            report_scores(writer, scores, validation["label"], step_number)
            if rollout is not None:
                table = completion_table(rollout, hypotheses, labels, config)
                writer.add_text("rollout/completions", table, step_number)

    evaluate(0)
    epoch, queue = 0, []
    window: dict[str, float] = {}
    phase = dict.fromkeys(("rollout", "score", "update"), 0.0)
    bar = tqdm(total=config.max_steps, disable=not main_process, desc="GRPO", mininterval=2, dynamic_ncols=True)
    for number in range(config.max_steps):
        while not queue:
            batches = epoch_batches(premise_ids, config.seed, epoch, config.claims_per_prefix, config.prompts_per_step)
            queue = [batch for batch in batches if sum(map(len, batch)) == config.prompts_per_step]
            if config.relabel_each_epoch and epoch > 0:
                prompts, hypotheses = prompts_of_epoch(epoch)
            epoch += 1

        # ------------------------------------------------------------ sample and score
        clock = time.perf_counter()
        groups = share_of_rank(queue.pop(0), rank, world_size, longest_tokens)
        rollout = sample(policy, tokenizer, prompts, labels, groups, stop_ids, number, config)
        phase["rollout"] += time.perf_counter() - clock

        # ------------------------------------------------------------ advantages
        batch_std = reward_std(accelerator, rollout.rewards)
        rollout.set_advantages(group_advantages(rollout.rewards, config.scale_rewards, batch_std))
        trained = with_gradient(rollout, config)
        counts = rollout_statistics(rollout, labels) | {"trained_tokens": num_tokens(trained)}
        counts["loss_tokens"] = sum(
            len(c.tokens) for group in rollout.completions for c in group if not is_masked(c, config)
        )
        counts = reduce(accelerator, counts)
        counts["loss_tokens"] = max(1.0, counts["loss_tokens"])  # every completion may be masked

        # ------------------------------------------------------------ reference log-probabilities
        clock = time.perf_counter()
        sequences = [
            [p + c for p, c in zip(prompts_of_group, trained.tokens(g), strict=True)]
            for g, prompts_of_group in enumerate(trained.prompts)
        ]
        batches = plan_micro_batches(sequences, config.micro_batch_tokens, config.prefix_sharing)
        # ZeRO-2 reduces gradients in each backward: every rank does equally many, the extra ones with weight 0.
        num_batches = int(reduce(accelerator, {"n": max(1, len(batches))}, "max")["n"])
        reference = [score_reference(policy, trained, batch, config) if config.beta > 0 else None for batch in batches]
        phase["score"] += time.perf_counter() - clock

        # ------------------------------------------------------------ update
        clock = time.perf_counter()
        rate = config.learning_rate * min(1.0, (number + 1) / max(1, config.warmup_steps))
        set_learning_rate(optimizer, rate)
        engine.train()
        old: list[torch.Tensor | None] = [None] * len(batches)
        sums = dict.fromkeys(("policy_loss", "kl", "clip_fraction", "entropy"), 0.0)
        maxima = {"ratio_deviation": 0.0, "logp_gap": 0.0}
        for iteration in range(config.num_iterations):
            for k in range(num_batches):
                if k >= len(batches):
                    spare = update_micro_batch(engine, rollout, [0], None, None, counts, config)[0]
                    backward(accelerator, 0.0 * spare, last=k == num_batches - 1)
                    continue
                loss, terms, logps = update_micro_batch(
                    engine, trained, batches[k], old[k], reference[k], counts, config
                )
                # DeepSpeed averages over ranks: times world_size, the sum over ranks is the loss of the whole step.
                backward(accelerator, world_size * loss, last=k == num_batches - 1)
                if iteration == 0:
                    old[k] = logps
                    maxima["ratio_deviation"] = max(maxima["ratio_deviation"], float(terms["ratio_deviation"]))
                    maxima["logp_gap"] = max(maxima["logp_gap"], sampling_gap(trained, batches[k], logps))
                for name in sums:
                    sums[name] += float(terms[name]) / config.num_iterations
            grad_norm, stepped = step(accelerator, engine, optimizer, config.max_grad_norm)
        phase["update"] += time.perf_counter() - clock

        # ------------------------------------------------------------ log
        sums, maxima = reduce(accelerator, sums), reduce(accelerator, maxima, "max")
        for name, value in {**counts, **sums, "steps": 1.0}.items():
            window[name] = window.get(name, 0.0) + value
        bar.update()
        if (number + 1) % config.logging_steps == 0 or number + 1 == config.max_steps:
            motion.assert_moved(policy, number + 1, signal=stepped and window["abs_advantage"] > 0)
            if main_process:
                values = rollout_means(window)
                values |= {f"policy/{name}": window[name] / window["steps"] for name in sums}
                values |= {
                    "train/learning_rate": rate,
                    "train/grad_norm": grad_norm,
                    "health/first_ratio_deviation": maxima["ratio_deviation"],
                    "health/sampling_logp_gap": maxima["logp_gap"],
                    "health/weight_change": motion.change(policy),
                    "health/step_skipped": float(not stepped),
                    "health/no_reward_signal": float(window["abs_advantage"] == 0),
                    **{f"perf/{name}_seconds": seconds / window["steps"] for name, seconds in phase.items()},
                }
                for name, value in values.items():
                    writer.add_scalar(name, value, number + 1)
                bar.set_postfix(
                    reward=f"{values['reward/mean']:.2f}",
                    kl=f"{values['policy/kl']:.3f}",
                    dead=f"{values['reward/frac_zero_std']:.2f}",
                )
                if window["abs_advantage"] == 0:
                    tqdm.write(
                        f"step {number + 1}: no reward signal: all rewards agree in {window['groups']:.0f} groups; "
                        "raise temperature or num_generations, or use other prompts (the graph is not the fault)"
                    )
            window, phase = {}, dict.fromkeys(phase, 0.0)

        # ------------------------------------------------------------ evaluate, save
        last = number + 1 == config.max_steps
        if last or (config.eval_steps > 0 and (number + 1) % config.eval_steps == 0):
            evaluate(number + 1, rollout)
        if config.save_steps > 0 and ((number + 1) % config.save_steps == 0 or last):
            on_main(accelerator, lambda number=number: save_checkpoint(
                output_dir, number + 1, config.save_total_limit, lambda path: save_model(policy, tokenizer, path)
            ))  # fmt: skip
    bar.close()
    if not config.keep_best:
        on_main(accelerator, lambda: save_model(policy, tokenizer, output_dir))
    if main_process:
        writer.close()
        print(f"adapter: {output_dir} (step {best['step'] if config.keep_best else config.max_steps})")
        print(f"curves: tensorboard --logdir {config.logging_dir}")
    accelerator.end_training()


def completion_table(rollout: Rollout, hypotheses: list[str], labels: list[int], config: Config) -> str:
    """A Markdown table of some sampled completions with their prompts' claims, labels, rewards and advantages."""
    lines = ["| group | claim | label | reward | advantage | completion |", "|---|---|---|---|---|---|"]
    flat_rewards, flat_advantages = rollout.rewards.flatten().tolist(), torch.cat(rollout.advantages).tolist()
    sequences = [(row, text) for rows, texts in zip(rollout.rows, rollout.texts, strict=True)
                 for row, text in zip(rows, texts, strict=True)]  # fmt: skip
    for b, (row, text) in enumerate(sequences[: config.num_logged_completions]):
        shown = text.replace("|", "\\|").replace("\n", "<br>")
        lines.append(
            f"| {b // config.num_generations} | {hypotheses[row]} | {'Yes' if labels[row] else 'No'} "
            f"| {flat_rewards[b]:+.2f} | {flat_advantages[b]:+.2f} | {shown} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
