"""Group relative policy optimization (GRPO) on the prompts of a dataset of preprocess.py.

    accelerate launch --config_file accelerate_configs/zero2_2xl4.yaml train_grpo.py --config configs/grpo_phi3.yaml
    accelerate launch --config_file accelerate_configs/zero2_2xcpu.yaml train_grpo.py --config configs/grpo_tiny.yaml
    tensorboard --logdir logs

DeepSeekMath (arXiv 2402.03300) for the algorithm; DAPO (2503.14476) and Dr. GRPO (2503.20783) for the other
normalisers. The policy is a LoRA adapter; the reference of the KL term is a frozen copy of that adapter as it was at
the start, on the same base. Every weight of the loss is divided by a count of the whole optimizer step, so neither
micro-batches nor processes change the gradient.

`estimator exact` is for datasets whose responses are answers alone: instead of sampling, the step takes the two answers
of every prompt, and whatever else the policy might say as a third, each with its probability as its mass. That is GRPO
in the limit of G → ∞, without sampling noise (expected policy gradients, Ciosek and Whiteson, arXiv 1706.05374).

Dimensions: N prompts of a step, G samples a prompt (with `estimator exact` 2 answers), B = N·G rows, T completion
length.
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache, partial

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from causal.rewards import COMPONENTS, give_rewards, largest_reward, reward_weights
from dataset.batches import epoch_batches, share_of_rank
from dataset.chat import encode
from dataset.reading import answer_candidates, choose_rows, data_config, load_split, read_dataset_hash
from dataset.relabelling import relabel_rows
from policy.adapters import add_reference, disable_dropout, use_reference
from policy.loading import (
    check_context,
    check_model,
    load_policy,
    load_tokenizer,
    model_card,
    stop_token_ids,
    training_dtype,
)
from policy.prefix_sharing import TOLERANCE, check_prefix_sharing, pack, plan_micro_batches, sequence_logps
from policy.sampling import Completion, generate_groups
from runtime.ending import run_script
from runtime.processes import reduce, start
from runtime.settings import arg, check, check_choice, check_ranges, parse_config
from scoring.metrics import classification_metrics
from scoring.predictions import predict
from training.health import (
    Laps,
    Monitor,
    Motion,
    check_gradient_flow,
    check_graph,
    check_optimizer,
    check_stop_tokens,
    nan_means,
    sampling_gap_cause,
)
from training.memory import print_plan
from training.monitoring import EVAL_SCORES, Progress, finish, open_writer, report_scores, write_scalars
from training.optimization import backward, prepare, set_learning_rate, step
from training.rollouts import (
    Prompt,
    PromptQueue,
    Rollout,
    Sample,
    completion_table,
    group_moments,
    is_masked,
    is_trained,
    loss_counts,
    make_prompts,
    prompts_of,
    reward_std,
    samples_of,
    sampling_gap,
    select,
    sequences,
    split_dead,
    statistics,
    step_values,
    table,
    tokens_of,
    tokens_saved,
    weight_sum,
)
from training.runs import Run

TERMS = ("policy_loss", "kl", "clip_fraction", "entropy", "weight_sum", "mask_error")  # summed over micro-batches


@dataclass
class Config:
    model: str = arg("models/tiny_sft_model", "hub name, directory of a model or of a LoRA adapter")
    revision: str | None = arg(None, "hub revision of the model")
    dataset: str = arg("data/tiny", "directory that preprocess.py wrote")
    train_split: str = arg("train", "its split to train on: train, or grpo if it has one")
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
    estimator: str = arg(
        "sampled", "sampled | exact: both answers of every prompt, weighted by their probabilities, instead of samples"
    )
    num_generations: int = arg(8, "samples G of a prompt")
    temperature: float = arg(1.0, "sampling temperature; log-probabilities are taken at the same one")
    max_new_tokens: int = arg(16, "tokens of a completion, at most")
    cache_tokens: int = arg(
        8192, "tokens in the key-value cache of a rollout on one process: prompts and longest completions"
    )
    claims_per_prefix: int = arg(4, "prompts of one premise that share its tokens")
    resample_rounds: int = arg(0, "times, at most, that a step replaces the prompts whose rewards all agree")
    relabel_each_epoch: bool = arg(False, "exchange the letters of every premise at random, anew in every epoch")
    # the reward: a weighted sum (rewards.py)
    outcome_weight: float = arg(1.0, "weight of the answer: 1 right, -1 wrong, -0.5 none")
    process_weight: float = arg(0.0, "weight of the reasoning's steps: -1 to 1, for datasets whose target is a trace")
    format_weight: float = arg(0.0, "weight of the form: 1 if the completion has that of the target, else 0")
    length_weight: float = arg(0.0, "weight of the length: 0 up to free_tokens, falling to -1 at max_new_tokens")
    free_tokens: int = arg(0, "tokens of a completion that the length costs nothing for")
    class_weights: list[float] = arg(
        [1.0, 1.0], "factor of the answer's reward where the label is No and Yes; cancels in group scaling"
    )
    # the objective
    loss_type: str = arg(
        "grpo", "grpo (mean over each sequence) | dapo (mean over the step's tokens) | dr_grpo (constant)"
    )
    scale_rewards: str = arg("group", "divide advantages by the std of the group | batch | none")
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
    eval_rows: int = arg(256, "validation rows of an evaluation, a random choice that seed fixes")
    keep_best: bool = arg(True, "output_dir gets the adapter of the evaluation with the best F1; false: the last one")
    save_steps: int = arg(50, "rollouts between checkpoints; 0: none")
    save_total_limit: int = arg(2, "checkpoints kept; 0 keeps all")
    stop_after: int = arg(20, "steps in which no weight can have moved before the run is stopped")
    num_logged_completions: int = arg(16, "sampled completions written to TensorBoard at each evaluation")
    # interruptions
    resume_from: str | None = arg(
        None, "latest, or a checkpoint of output_dir: continue its run; after a requeue: latest"
    )
    resume_weights_only: bool = arg(False, "resume with a new optimizer, on any number of processes or other settings")
    time_limit: float = arg(0.0, "minutes after which the run saves and stops, to be resumed; 0: none")
    # before a run
    plan: bool = arg(False, "print where a card's memory will go, and whether it is enough, and run nothing")
    card_gb: float = arg(0.0, "memory of the plan's card in GB; 0: of the GPU present")

    def __post_init__(self):
        check_ranges(self, {
            "at least 1": "prompts_per_step max_new_tokens cache_tokens claims_per_prefix num_iterations max_steps "
            "lora_r lora_alpha micro_batch_tokens logging_steps eval_rows stop_after",
            "above 0": "learning_rate max_grad_norm",
            "0 or more": "resample_rounds outcome_weight process_weight format_weight length_weight free_tokens "
            "eps_high beta warmup_steps weight_decay eval_steps save_steps save_total_limit num_logged_completions "
            "time_limit card_gb",
            "0 or more and less than 1": "eps_low",
        })  # fmt: skip
        check_choice("loss_type", self.loss_type, ("grpo", "dapo", "dr_grpo"))
        check_choice("importance", self.importance, ("token", "sequence"))
        bounded = self.dual_clip == 0 or self.dual_clip > 1 + self.eps_high
        check(bounded, f"dual_clip: 0 for none, or more than 1 + eps_high, {1 + self.eps_high}; got {self.dual_clip}")
        check_choice("scale_rewards", self.scale_rewards, ("group", "batch", "none"))
        check(self.num_generations >= 2, f"num_generations: a group needs at least 2, got {self.num_generations}")
        check(self.temperature > 0, f"temperature: sampling needs more than 0, got {self.temperature}")
        two = len(self.class_weights) == 2 and min(self.class_weights) > 0
        check(two, f"class_weights: two numbers above 0, for No and Yes, got {self.class_weights}")
        check_choice("estimator", self.estimator, ("sampled", "exact"))
        exact = self.estimator == "exact"
        check(not (exact and self.resample_rounds), "resample_rounds: estimator exact has no dead groups; set 0")
        weights = [getattr(self, f"{name}_weight") for name in COMPONENTS]
        check(max(weights) > 0, "outcome_weight, process_weight, format_weight, length_weight: one must be above 0")
        fits = self.length_weight == 0 or 0 <= self.free_tokens < self.max_new_tokens
        check(fits, f"free_tokens: 0 to less than max_new_tokens ({self.max_new_tokens}), got {self.free_tokens}")


# --- the algorithm


def group_advantages(
    rewards: torch.Tensor, masses: torch.Tensor, scale: str, batch_std: float, eps: float = 1e-4
) -> torch.Tensor:
    """Advantages (N, G) of rewards (N, G): each group's mean is subtracted, then `group` or `batch` std divides.

    Mean and std are weighted by `masses` (N, G), the completions that each stands for; the std is the population's. A
    group whose rewards agree has advantage exactly 0.
    """
    mean, std = group_moments(rewards, masses)
    centred = rewards - mean
    centred[(rewards == rewards[:, :1]).all(dim=1)] = 0.0  # not rounding noise divided by eps
    if scale == "none":
        return centred
    return centred / ((std if scale == "group" else batch_std) + eps)


def token_weights(
    mask: torch.Tensor,
    masses: torch.Tensor,
    loss_type: str,
    num_sequences: float,
    num_tokens: float,
    max_new_tokens: int,
) -> torch.Tensor:
    """Weight (B, T) of each token in the loss, from counts of the whole step over all ranks; `masses` are (B,).

    grpo: the mean over sequences of each sequence's token mean; dapo: the mean over all tokens; dr_grpo: the sum
    divided by a constant, the step's largest possible token count.
    """
    held = mask * masses[:, None]
    if loss_type == "grpo":
        return held / mask.sum(dim=1, keepdim=True) / num_sequences
    return held / (num_tokens if loss_type == "dapo" else num_sequences * max_new_tokens)


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


def sample(
    model, tokenizer, groups: list[list[Prompt]], stop_ids: set[int], number: int, attempt: int, config: Config
) -> Rollout:
    """G completions of every prompt in `groups`, in step `number`; `attempt` counts the times that it has drawn."""
    size = config.num_generations
    repeated = [[prompt for prompt in group for _ in range(size)] for group in groups]
    # What is sampled depends on (seed, step, prompt, sample) alone: not on the batch, nor on the number of processes.
    seeds = [
        [(config.seed, number, prompt.row, attempt * size + k % size) for k, prompt in enumerate(group)]
        for group in repeated
    ]
    model.eval()  # dropout or checkpointing would sample from another policy
    completions = generate_groups(
        model, [[prompt.tokens for prompt in group] for group in repeated],
        cache_tokens=config.cache_tokens, seeds=seeds, stop_ids=stop_ids,
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, share=config.prefix_sharing,
    )  # fmt: skip
    drawn = (
        Sample(prompt, completion, tokenizer.decode(completion.tokens, skip_special_tokens=True))
        for pair in zip(repeated, completions, strict=True)
        for prompt, completion in zip(*pair, strict=True)
    )
    return [[[next(drawn) for _ in range(size)] for _ in group] for group in groups]


@torch.no_grad()
def enumerate_answers(model, tokenizer, groups: list[list[Prompt]], config: Config) -> Rollout:
    """Both answers of every prompt, each with its probability as its mass, from one packed forward pass.

    A third sample without a text or tokens stands for all else: it has no answer, and the rest of the probability.
    """
    model.eval()
    rollout: Rollout = [[[] for _ in group] for group in groups]
    for group, prompts in zip(rollout, groups, strict=True):
        for samples, prompt in zip(group, prompts, strict=True):
            for answer in prompt.answers:
                text = tokenizer.decode(answer, skip_special_tokens=True)
                samples.append(Sample(prompt, Completion(list(answer), stopped=True), text))
    for batch in micro_batches(rollout, config):
        logps = policy_logps(model, batch, config)[0].cpu()  # (B, T)
        for s, row in zip(samples_of(batch), logps.tolist(), strict=True):
            s.completion.logps = row[: len(s.completion.tokens)]
            s.mass = math.exp(sum(s.completion.logps))
    for samples in prompts_of(rollout):
        rest = max(0.0, 1.0 - sum(s.mass for s in samples))
        samples.append(Sample(samples[0].prompt, Completion(stopped=True), "", mass=rest))
    return rollout


def give_advantages(rollout: Rollout, scale: str, batch_std: float) -> None:
    """Each sample's advantage. Where one has no tokens, and so no gradient of its own, the others take it over.

    With probabilities p that add up to 1 the gradient of the last one is minus that of all others, so that the sum of
    p·A·grad(log p) is that of p·(A - A of the last)·grad(log p) over the others.
    """
    if not rollout:  # a rank without prompts
        return
    advantages = group_advantages(table(rollout, "reward"), table(rollout, "mass"), scale, batch_std).tolist()
    for samples, row in zip(prompts_of(rollout), advantages, strict=True):
        silent = sum(advantage for s, advantage in zip(samples, row, strict=True) if not s.completion.tokens)
        for s, advantage in zip(samples, row, strict=True):
            s.advantage = advantage - silent


def micro_batches(rollout: Rollout, config: Config) -> list[Rollout]:
    plan = plan_micro_batches(sequences(rollout), config.micro_batch_tokens, config.prefix_sharing)
    return [[rollout[g] for g in batch] for batch in plan]


def policy_logps(model, batch: Rollout, config: Config, temperature: float | None = None):
    """`sequence_logps` (B, T) of the batch's completions at the sampling temperature."""
    temperature = config.temperature if temperature is None else temperature
    return sequence_logps(model, *tokens_of(batch), temperature, config.prefix_sharing)


def update_micro_batch(model, batch: Rollout, old, reference, counts, config: Config):
    """Loss of the samples in `batch`; returns it with its terms and the micro-batch's log-probabilities (B, T)."""
    logps, entropies, mask = policy_logps(model, batch, config)
    samples = samples_of(batch)
    advantages, masses = (torch.tensor([getattr(s, name) for s in samples]).to(logps) for name in ("advantage", "mass"))
    weights = token_weights(
        mask, masses, config.loss_type, counts["loss_sequences"], counts["loss_tokens"], config.max_new_tokens
    )
    # On the first pass the policy is the one that sampled, and the ratio is exactly 1.
    old_logps = logps.detach() if old is None else old
    loss, terms = grpo_loss(logps, old_logps, reference, advantages, weights, config)
    terms |= {
        "entropy": (masses[:, None] * entropies).sum() / max(1e-9, counts["trained_tokens"]),
        "weight_sum": weights.sum(),
        "mask_error": mask.sum() - sum(len(s.completion.tokens) for s in samples),
    }
    return loss, terms, logps.detach()


@torch.no_grad()
def score_reference(model, batch: Rollout, config: Config) -> torch.Tensor:
    """Log-probabilities (B, T) of the completions under the frozen reference adapter."""
    with use_reference(model):
        return policy_logps(model, batch, config)[0]


def main() -> None:
    config = parse_config(Config)
    if config.plan:
        return print_plan(config)
    accelerator = start(config.seed)
    main_process = accelerator.is_main_process
    rank, world_size = accelerator.process_index, accelerator.num_processes
    check_model(config.model)
    data_hash = read_dataset_hash(config.dataset)
    run = Run(accelerator, config, data_hash)
    if run.finished:
        return run.end_at_once()

    # --- data
    train = load_split(config.dataset, config.train_split, both_answers=True)
    validation = choose_rows(load_split(config.dataset, "validation"), config.eval_rows, config.seed)
    tokenizer = load_tokenizer(config.model, config.revision)
    exact = config.estimator == "exact"
    answers = answer_candidates(config.dataset, train, "estimator exact", "use estimator sampled") if exact else None
    target = data_config(config.dataset, "format_weight", "set it to 0")["target"] if config.format_weight > 0 else ""

    @lru_cache(maxsize=1)
    def prompts_of_epoch(epoch: int) -> list[Prompt]:
        rows = relabel_rows(train, None, config.seed, epoch) if config.relabel_each_epoch else train
        return make_prompts(tokenizer, rows, train["label"], answers)

    def longest_tokens(group: list[Prompt]) -> int:
        """Packed tokens of all samples of a group, if none stops early: what a rank's work is shared out by."""
        samples = len(group) * (2 if exact else config.num_generations)
        return len(pack([[prompt.tokens for prompt in group]])) + samples * config.max_new_tokens

    components = list(reward_weights(config))
    queue = PromptQueue(train["premise_id"], config.seed, config.claims_per_prefix, prompts_of_epoch)
    check(
        config.prompts_per_step <= len(train),
        f"prompts_per_step: {config.prompts_per_step} is more than the {len(train)} training rows",
    )
    check(config.prompts_per_step >= world_size, f"prompts_per_step: at least one for each of {world_size} processes")

    # --- policy and reference
    dtype = training_dtype(accelerator)
    model = load_policy(
        config.model, adaptation="lora", quantization=config.quantization, dtype=dtype, device=accelerator.device,
        lora_r=config.lora_r, lora_alpha=config.lora_alpha, lora_target_modules=config.lora_target_modules,
        gradient_checkpointing=config.gradient_checkpointing, revision=config.revision, seed=config.seed,
    )  # fmt: skip
    prompts = prompts_of_epoch(0)
    check_context(model, max(len(prompt.tokens) for prompt in prompts) + config.max_new_tokens)
    if config.beta > 0:
        add_reference(model)
    disable_dropout(model)  # sampling and scoring must see one policy
    stop_ids = stop_token_ids(tokenizer, model)
    responses = [encode(tokenizer, text) for text in train["response"][:64]]
    check_stop_tokens(responses, stop_ids)
    end_ids = {response[-1] for response in responses}
    probe = sequence_logps(model, [[prompts[0].tokens]], [responses[:1]], config.temperature)[0]
    check_gradient_flow(model, probe.mean())
    if config.prefix_sharing:
        first = epoch_batches(train["premise_id"], config.seed, 0, config.claims_per_prefix, config.prompts_per_step)[0]
        first = [[prompts[row] for row in group] for group in first]
        first = share_of_rank(first, rank, world_size, longest_tokens)
        given = [[encode(tokenizer, train[prompt.row]["response"]) for prompt in group] for group in first]
        check_prefix_sharing(
            model, [[prompt.tokens for prompt in group] for group in first], given, config.micro_batch_tokens
        )
    engine, optimizer = prepare(accelerator, model, config.learning_rate, config.weight_decay, config.max_grad_norm)
    policy = accelerator.unwrap_model(engine)
    check_optimizer(policy, optimizer)
    motion = Motion(policy)

    saved = run.restore(policy, optimizer, motion)
    first_step: int = saved.get("step", 0)
    best = saved.get("best", {"f1": -1.0, "step": 0})
    queue.restore(saved.get("queue", {}))
    writer = open_writer("GRPO", config.logging_dir, run.purge_step(first_step)) if main_process else None
    monitor = Monitor(asdict(config), config.stop_after, writer)
    monitor.restore(saved.get("monitor", {}))
    if main_process:
        drawn = "both answers" if exact else f"{config.num_generations} completions"
        print(
            f"GRPO: {len(train)} prompts, {config.max_steps} steps of {config.prompts_per_step} prompts × {drawn} "
            f"on {world_size} processes, {dtype}, {accelerator.distributed_type.value}",
            flush=True,
        )

    def evaluate(step_number: int, rollout: Rollout | None = None) -> None:
        results = predict(
            accelerator, policy, tokenizer, validation,
            stop_ids=stop_ids, max_new_tokens=config.max_new_tokens, cache_tokens=config.cache_tokens,
            share=config.prefix_sharing,
        )  # fmt: skip
        predictions = [result["prediction"] for result in results]
        scores = classification_metrics(validation["label"], predictions)
        values = {name: scores[name] for name in EVAL_SCORES}
        if not config.keep_best or scores["f1"] >= best["f1"]:
            best.update(values, step=step_number)
            run.keep_model(policy, tokenizer, model_card("GRPO", asdict(config), data_hash, step_number, values), best)
        if main_process:
            report_scores(writer, scores, validation["label"], predictions, step_number)
            if rollout:
                table = completion_table(rollout, config.num_logged_completions)
                writer.add_text("rollout/completions", table, step_number)
        monitor.update(step_number, {f"eval/{name}": value for name, value in values.items()})

    def draw(groups: list[list[Prompt]], number: int, attempt: int) -> Rollout:
        """This rank's share of the prompts, answered and judged."""
        mine = share_of_rank(groups, rank, world_size, longest_tokens)
        if exact:
            rollout = enumerate_answers(policy, tokenizer, mine, config)
        else:
            rollout = sample(policy, tokenizer, mine, stop_ids, number, attempt, config)
        give_rewards(samples_of(rollout), target != "answer", config)
        return rollout

    def save(step_number: int) -> None:
        state = {"best": best, "monitor": monitor.state(), "window": window, "queue": queue.state()}
        run.save(step_number, policy, tokenizer, optimizer, writer, state)

    if not saved:
        evaluate(0)
    window: list[dict[str, float]] = saved.get("window", [])  # values of the steps since the last logged ones
    progress = Progress("GRPO", config.max_steps, first_step, main_process)
    for number in range(first_step, config.max_steps):
        if run.must_stop():
            save(number)
            run.leave(number)
        laps = Laps()

        # ------------------------------------------------------------ sample, reward
        rollout = draw(queue.take(config.prompts_per_step), number, 0)
        spare = select(rollout, lambda s: bool(s.completion.tokens))[:1]
        counts, replaced = statistics(rollout, components, end_ids), 0
        for attempt in range(1, config.resample_rounds + 1):
            live, dead = split_dead(rollout)
            dead = int(reduce(accelerator, {"dead": dead})["dead"])
            if dead == 0:
                break
            fresh = draw(queue.take(dead), number, attempt)
            more = statistics(fresh, components, end_ids)
            rollout, counts = live + fresh, {name: value + more[name] for name, value in counts.items()}
            replaced += dead
        laps.end("rollout")

        # ------------------------------------------------------------ advantages
        give_advantages(rollout, config.scale_rewards, reward_std(accelerator, rollout))
        trained = select(rollout, lambda s: is_trained(s, config))
        unmasked = select(rollout, lambda s: not is_masked(s, config))
        counts = reduce(accelerator, counts | loss_counts(rollout, unmasked, trained))
        counts["loss_tokens"] = max(1.0, counts["loss_tokens"])  # every completion may be masked
        batches = micro_batches(trained, config)
        # ZeRO-2 reduces gradients in each backward: every rank does equally many, the extra ones with weight 0.
        num_batches = int(reduce(accelerator, {"n": max(1, len(batches))}, "max")["n"])
        laps.end("wait")

        # ------------------------------------------------------------ reference log-probabilities
        reference = [score_reference(policy, batch, config) if config.beta > 0 else None for batch in batches]
        laps.end("score")

        # ------------------------------------------------------------ update
        rate = config.learning_rate * min(1.0, (number + 1) / max(1, config.warmup_steps))
        set_learning_rate(optimizer, rate)
        engine.train()
        old: list[torch.Tensor | None] = [None] * len(batches)
        terms = dict.fromkeys((*TERMS, "first_kl", "gap_square", "gap_tokens"), 0.0)
        ratio_deviation = 0.0
        for iteration in range(config.num_iterations):
            for k in range(num_batches):
                if k >= len(batches):
                    unused = update_micro_batch(engine, spare, None, None, counts, config)[0]
                    backward(accelerator, 0.0 * unused, last=k == num_batches - 1)
                    continue
                loss, found, logps = update_micro_batch(engine, batches[k], old[k], reference[k], counts, config)
                check_graph(policy, loss)
                # DeepSpeed averages over ranks: times world_size, the sum over ranks is the loss of the whole step.
                backward(accelerator, world_size * loss, last=k == num_batches - 1)
                for name in TERMS:
                    terms[name] += float(found[name]) / config.num_iterations
                if iteration == 0:
                    old[k] = logps
                    ratio_deviation = max(ratio_deviation, float(found["ratio_deviation"]))
                    for name, value in {"first_kl": float(found["kl"]), **sampling_gap(batches[k], logps)}.items():
                        terms[name] += value
            grad_norm, stepped = step(accelerator, engine, optimizer, config.max_grad_norm)
        laps.end("update")

        # ------------------------------------------------------------ health
        terms = reduce(accelerator, terms)
        expected_weight = weight_sum(counts, config.loss_type, config.max_new_tokens)
        values = step_values(counts, terms, expected_weight) | {
            "train/learning_rate": rate,
            "train/grad_norm": grad_norm,
            "health/step_skipped": float(not stepped),
            "health/weights_moved": float(motion.moved(policy)),
            "health/first_ratio_deviation": reduce(accelerator, {"max": ratio_deviation}, "max")["max"],
            "rollout/replaced_rate": replaced / config.prompts_per_step,
            **laps.seconds,
        }
        values["health/sampling_gap_ratio"] = values["health/sampling_logp_gap"] / TOLERANCE[dtype]
        if not exact:
            error = values["reward/group_std"] / config.num_generations**0.5
            values["health/baseline_error"] = error / largest_reward(config)
        if number == 0 and config.beta > 0:  # the policy is still the reference
            values["health/reference_kl"] = terms["first_kl"]
            values["health/reference_kl_ratio"] = terms["first_kl"] / max(1e-5, TOLERANCE[dtype] ** 2)
        advised = monitor.update(number + 1, values)
        if "sampling_gap" in advised and main_process and batches:
            score = partial(policy_logps, policy, batches[0], config)
            sampled = pad_sequence([torch.tensor(s.completion.logps) for s in samples_of(batches[0])], batch_first=True)
            cause = sampling_gap_cause(policy, score, sampled.to(old[0]), old[0], config.temperature)
            tqdm.write(f"  sampling_gap: {cause}")

        # ------------------------------------------------------------ log
        window.append(values)
        dead = values["reward/frac_zero_std"]
        progress.update(number + 1, reward=values["reward/mean"], kl=values["policy/kl"], dead=dead)
        if (number + 1) % config.logging_steps == 0 or number + 1 == config.max_steps:
            if main_process:
                logged = nan_means(window)
                logged |= {"health/weight_change": motion.change(policy), "perf/tokens_saved": tokens_saved(trained)}
                logged |= monitor.flags()
                write_scalars(writer, logged, number + 1)
            window = []

        # ------------------------------------------------------------ evaluate, save
        last = number + 1 == config.max_steps
        if last or (config.eval_steps > 0 and (number + 1) % config.eval_steps == 0):
            evaluate(number + 1, rollout)
        if config.save_steps > 0 and ((number + 1) % config.save_steps == 0 or last):
            save(number + 1)
    progress.close()
    finish(run, writer, "GRPO", best, config.max_steps)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
