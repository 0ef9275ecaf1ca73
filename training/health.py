"""Is it learning? Checks before training, and in every step the known signs of trouble, each with what to do about it.

`check_gradient_flow` and `check_optimizer` prove before training that the loss reaches every trainable tensor and that
the optimizer holds it. In the loop a `Monitor` looks at each step's values: a sign that holds for as many steps as it
must becomes one line of advice that names the settings to change. While no weight can be moving the run is stopped: a
`TrainingFault`, after `stop_after` such steps.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from policy.adapters import POLICY

MEMORY = 400  # steps of values that trends are read from
BEGINNING = 50  # and the first ones, which are kept
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # as wide as a weight of so many bytes
REMIND_AFTER = 100  # steps before a sign that holds on, or comes back, is spoken of again


class TrainingFault(ValueError):
    """Training cannot go on, or would change nothing: the message names the fault and the remedy."""


# --- before training


def _zero_by_construction(model: torch.nn.Module) -> set[str]:
    """Names of the weights whose first gradient may be exactly zero without a fault: those of LoRA whose partner is
    still zero, and the rows of single tokens, which the first texts need not hold."""
    names = set()
    for prefix, module in model.named_modules():
        if hasattr(module, "lora_B"):
            for adapter, b in module.lora_B.items():
                if not b.weight.any():
                    names.add(f"{prefix}.lora_A.{adapter}.weight")
            for adapter, a in module.lora_embedding_A.items():  # of embeddings, where A begins at zero
                if not a.any():
                    names.add(f"{prefix}.lora_embedding_B.{adapter}")
        for adapter in getattr(module, "trainable_tokens_delta", {}):
            names.add(f"{prefix}.trainable_tokens_delta.{adapter}")
    return names


def frozen_adapter_tensors(model: torch.nn.Module) -> list[str]:
    """The tensors of the policy's adapter that take no gradient, as a careless switch of adapters leaves them."""
    return [name for name, p in model.named_parameters() if f".{POLICY}." in name and not p.requires_grad]


def check_graph(model: torch.nn.Module, loss: torch.Tensor) -> None:
    """Raises TrainingFault for a loss that depends on no trainable tensor, saying which fault that is."""
    frozen = frozen_adapter_tensors(model)
    if frozen:
        raise TrainingFault(f"frozen adapter: {len(frozen)} of its tensors take no gradient, {frozen[:2]}")
    if not loss.requires_grad:
        raise TrainingFault("detached graph: the loss does not depend on any trainable tensor")


def check_gradient_flow(model: torch.nn.Module, loss: torch.Tensor) -> None:
    """A probe backward before training: proves that the loss reaches every trainable tensor, and clears the gradients.

    Raises TrainingFault if the loss is not finite, or naming the tensors with no gradient, or a zero or non-finite one.
    A zero gradient of lora_A is expected while lora_B is zero.
    """
    check_graph(model, loss)
    if not loss.isfinite():
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        remedy = "launch in bf16 or fp32" if dtype == torch.float16 else "its weights may be damaged"
        raise TrainingFault(f"model: the loss is {loss.item()} before training, in {dtype}: {remedy}")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss.backward()
    expected_zero = _zero_by_construction(model)
    missing = [name for name, p in trainable.items() if p.grad is None]
    zero = [n for n, p in trainable.items() if p.grad is not None and not p.grad.any() and n not in expected_zero]
    not_finite = [name for name, p in trainable.items() if p.grad is not None and not p.grad.isfinite().all()]
    model.zero_grad(set_to_none=True)
    for what, names in (
        ("no gradient", missing),
        ("a zero gradient", zero),
        ("a NaN or infinite gradient", not_finite),
    ):
        if names:
            raise TrainingFault(
                f"broken graph: {what} in {len(names)} of {len(trainable)} trainable tensors: {names[:4]}"
            )


def check_optimizer(model: torch.nn.Module, optimizer: Any) -> None:
    """Raises TrainingFault unless the optimizer, DeepSpeed's or torch's, holds every trainable tensor of the model."""
    while hasattr(optimizer, "optimizer") and not hasattr(optimizer, "bit16_groups"):
        optimizer = optimizer.optimizer
    groups = getattr(optimizer, "bit16_groups", None) or [group["params"] for group in optimizer.param_groups]
    held = {id(p) for group in groups for p in group}
    lost = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if lost:
        raise TrainingFault(
            f"dead optimizer: it does not hold {len(lost)} trainable tensors, {lost[:2]}; "
            "make it after the last change of adapters"
        )


def check_stop_tokens(responses: list[list[int]], stop_ids: set[int]) -> None:
    """Raises TrainingFault if sampling would not stop where the dataset's responses (token ids) end, or before."""
    ends = {response[-1] for response in responses} - stop_ids
    if ends:
        raise TrainingFault(
            f"wrong stop token: responses of the dataset end in token {min(ends)}, sampling stops at "
            f"{sorted(stop_ids)}: was the dataset made with another model's tokenizer?"
        )
    early = {token for response in responses for token in response[:-1]} & stop_ids
    if early:
        raise TrainingFault(
            f"wrong stop token: responses of the dataset go on after token {min(early)}, where sampling stops: does "
            "the chat template write the beginning of an answer when it asks for one (add_generation_prompt)?"
        )


# --- in the loop


class Motion:
    """How far the trainable weights are from where they started, and whether the last step moved any of them."""

    def __init__(self, model: torch.nn.Module):
        self.start = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.fingerprint = self._fingerprint(model)

    def _fingerprint(self, model: torch.nn.Module) -> torch.Tensor:
        """Of every tensor the sum of its bits, read as whole numbers: exact, so equal if nothing has changed."""
        tensors = [p.detach() for name, p in model.named_parameters() if name in self.start]
        return torch.stack([t.view(INTEGER[t.element_size()]).sum(dtype=torch.int64) for t in tensors])

    def moved(self, model: torch.nn.Module) -> bool:
        """Whether a weight differs from the last call, or from the start."""
        before, self.fingerprint = self.fingerprint, self._fingerprint(model)
        return not torch.equal(before, self.fingerprint)

    def values(self, model: torch.nn.Module, steps: Sequence[tuple[float, bool]]) -> dict[str, float]:
        """What optimizer steps did, by metric name: of each its gradient norm, and whether it was taken."""
        taken = [norm for norm, stepped in steps if stepped]
        norms = taken or [norm for norm, _ in steps]
        return {
            "train/grad_norm": sum(norms) / len(norms),
            "health/step_skipped": 1 - len(taken) / len(steps),
            "health/weights_moved": float(self.moved(model)),
        }

    def change(self, model: torch.nn.Module) -> float:
        """L2 norm of (current − initial) over all trainable tensors."""
        squares = (
            (p.detach().cpu().float() - self.start[name].float()).square().sum().item()
            for name, p in model.named_parameters()
            if name in self.start
        )
        return sum(squares) ** 0.5


class History:
    """The values of the latest update, by name, of those before it, and of the first ones.

    KeyError for a value that the latest update does not have: a sign that reads it does not apply.
    """

    def __init__(self):
        self.values: dict[str, deque[float]] = {}
        self.first: dict[str, list[float]] = {}
        self.latest: dict[str, float] = {}

    def add(self, values: dict[str, float]) -> None:
        self.latest = values
        for name, value in values.items():
            self.values.setdefault(name, deque(maxlen=MEMORY)).append(value)
            first = self.first.setdefault(name, [])
            if len(first) < BEGINNING:
                first.append(value)

    def __getitem__(self, name: str) -> float:
        return self.latest[name]

    def _series(self, name: str) -> deque[float]:
        self[name]
        return self.values[name]

    def steps(self, name: str) -> int:
        """How many values there are, MEMORY at most."""
        return len(self._series(name))

    def mean(self, name: str, first: int, last: int = 0) -> float:
        """Mean over a stretch of the last steps, counted as a slice is: (-10, 0) the last ten."""
        part = list(self._series(name))[first : last or None]
        return sum(part) / len(part)

    def start(self, name: str, count: int) -> float:
        """Mean of the first `count` steps of the run, BEGINNING at most."""
        self[name]
        part = self.first[name][:count]
        return sum(part) / len(part)

    def grew(self, name: str) -> float:
        """How much the mean of the last ten steps is above that of the ten before them; NaN too early."""
        return self.mean(name, -10) - self.mean(name, -20, -10) if self.steps(name) >= 20 else math.nan


class Sign(NamedTuple):
    """A sign of trouble: when it shows, for how many steps running it must, and what to do about it."""

    name: str
    patience: int
    shows: Callable[[History], bool]
    advice: str  # {value names} are filled with the latest values, {settings} from the configuration


def _drifted(h: History) -> bool:
    """One of the answers has nearly vanished although the labels have it."""
    yes, share = h["rollout/predicted_yes_rate"], h["rollout/label_yes_rate"]
    return 0 < share < 1 and (yes < 0.1 * share or 1 - yes < 0.1 * (1 - share))


def _collapsing(h: History) -> bool:
    kl, cut, reward = (h.grew(name) for name in ("policy/kl", "rollout/truncated_rate", "reward/mean"))
    return kl > 0.02 and cut > 0.02 and reward < 0


def _length_jumped(h: History) -> bool:
    name = "rollout/completion_length"
    return h.steps(name) >= 25 and h.mean(name, -5) > 1.5 * h.mean(name, -25, -5) + 1


def _no_gain(h: History) -> bool:
    return h.mean("reward/mean", -BEGINNING) <= h.start("reward/mean", BEGINNING)


def _hardly_moves(h: History) -> bool:
    """There is a reference, the KL to it has stayed low, and nothing has been gained."""
    refers = "health/reference_kl" in h.values
    return refers and h.steps("policy/kl") >= 100 and h.mean("policy/kl", -BEGINNING) < 0.01 and _no_gain(h)


# Thresholds: KL and truncation are those users were promised to be warned of; the others leave a healthy run alone.
SIGNS = (
    Sign(
        "nan_loss", 1, lambda h: h["health/loss_finite"] == 0,
        "the loss is not finite: lower learning_rate ({learning_rate}); in fp16 use bf16 or fp32 (accelerate_configs/)",
    ),
    Sign(
        "not_finite", 1, lambda h: h["health/not_finite_rate"] > 0,
        "{health/not_finite_rate:.1%} of the completions end where the log-probabilities are not finite: lower "
        "learning_rate ({learning_rate}); in fp16 use bf16 or fp32 (accelerate_configs/)",
    ),
    Sign(
        "skipped_steps", 3, lambda h: h["health/step_skipped"] > 0,
        "steps are skipped because gradients overflow: lower learning_rate ({learning_rate}), or train in bf16 or fp32",
    ),
    Sign(
        "no_reward_signal", 3, lambda h: h["policy/mean_abs_advantage"] == 0,
        "all rewards agree in every group, so nothing can be learned (the graph is not the fault): raise temperature "
        "({temperature}) or num_generations ({num_generations}), or use other prompts",
    ),
    Sign(
        "no_gradient", 1, lambda h: h["train/grad_norm"] == 0 and h["health/signal"] > 0,
        "the gradient is 0 although there is something to learn: the graph is broken between loss and adapter",
    ),
    Sign(
        "weights_still", 3,
        lambda h: h["health/weights_moved"] == 0 and h["train/grad_norm"] > 0 and h["health/step_skipped"] < 1,
        "steps are taken and no trainable weight changes: the optimizer holds other tensors, or learning_rate "
        "({learning_rate}) is lost in rounding",
    ),
    Sign(
        "wrong_reference", 1, lambda h: h["health/reference_kl_ratio"] > 1,
        "the reference is not the starting policy: the KL before the first update is {health/reference_kl:.2g}, not 0",
    ),
    Sign(
        "sampling_gap", 2, lambda h: h["health/sampling_gap_ratio"] > 1,
        "sampling and scoring see different policies: their log-probabilities differ by {health/sampling_logp_gap:.2g} "
        "nats (root mean square)",
    ),
    Sign(
        "ratio_not_one", 1, lambda h: h["health/first_ratio_deviation"] > 0,
        "the probability ratio of the first pass is off 1 by {health/first_ratio_deviation:.2g}: old log-probabilities "
        "come from another policy",
    ),
    Sign(
        "wrong_mask", 1, lambda h: abs(h["health/mask_error"]) > 0,
        "the loss covers {health/mask_error:+.0f} tokens more than the completions have: mask by length, never by the "
        "padding token, which may be the one that ends a completion",
    ),
    Sign(
        "wrong_normaliser", 1,
        lambda h: h["health/mask_error"] == 0 and abs(h["health/weight_sum_error"]) > 1e-3,
        "the weights of the loss add up to {health/weight_sum_error:+.2%} more than they should: divide by counts of "
        "the whole step, not of a micro-batch or of a rank",
    ),
    Sign(
        "wrong_stop_token", 1, lambda h: h["health/ran_past_end"] > 0,
        "{health/ran_past_end:.0%} of the completions go on after the token that ends the dataset's responses: "
        "sampling has the wrong stop tokens",
    ),
    Sign(
        "kl_high", 5, lambda h: h["policy/kl"] > 0.1,
        "KL {policy/kl:.3f} is above 0.1: raise beta ({beta}) or lower learning_rate ({learning_rate})",
    ),
    Sign(
        "kl_low", 10, _hardly_moves,
        "KL {policy/kl:.3f} is below 0.01 after 100 steps and the reward has not risen: the policy hardly moves; raise "
        "learning_rate ({learning_rate}), or temperature ({temperature}) up to 1, or lower beta ({beta})",
    ),
    Sign(
        "dead_groups", 10, lambda h: h["reward/frac_zero_std"] > 0.95,
        "{reward/frac_zero_std:.0%} of the groups have rewards that agree ({reward/frac_all_right:.0%} all right, "
        "{reward/frac_all_wrong:.0%} all wrong): raise num_generations "
        "({num_generations}) or temperature ({temperature}), or use prompts of another difficulty",
    ),
    Sign(
        "entropy_collapse", 10, lambda h: h["policy/entropy"] < 0.05 * h.start("policy/entropy", 5),
        "entropy has fallen to {policy/entropy:.2g} nats, less than a twentieth of the start: raise beta ({beta}) or "
        "lower learning_rate ({learning_rate})",
    ),
    Sign(
        "entropy_runaway", 10, lambda h: h["policy/entropy"] > 0.5 + 3 * h.start("policy/entropy", 5),
        "entropy has risen to {policy/entropy:.2g} nats, more than three times the start: raise beta ({beta}) or lower "
        "learning_rate ({learning_rate})",
    ),
    Sign(
        "truncation", 5, lambda h: h["rollout/truncated_rate"] > 0.25,
        "{rollout/truncated_rate:.0%} of the completions are cut: raise max_new_tokens ({max_new_tokens})",
    ),
    Sign(
        "unparsable", 5, lambda h: h["rollout/unanswered_rate"] > 0.2,
        "{rollout/unanswered_rate:.0%} of the completions give no answer: look at rollout/completions in TensorBoard; "
        "start from a longer SFT, lower learning_rate ({learning_rate}), or raise max_new_tokens ({max_new_tokens})",
    ),
    Sign(
        "one_answer", 20, _drifted,
        "{rollout/predicted_yes_rate:.1%} of the completions say Yes, {rollout/label_yes_rate:.1%} of the labels do: "
        "set class_weights to the inverse of the classes' shares, with scale_rewards none (now {scale_rewards})",
    ),
    Sign(
        "length_jump", 3, _length_jumped,
        "completions are suddenly much longer ({rollout/completion_length:.0f} tokens): raise beta ({beta}), or lower "
        "learning_rate ({learning_rate})",
    ),
    Sign(
        "collapse", 3, _collapsing,
        "KL and truncation rise while the reward falls, a collapse under way: go back to a checkpoint, raise beta "
        "({beta}) and lower learning_rate ({learning_rate})",
    ),
    Sign(
        "reward_flat", 50, lambda h: h.steps("reward/mean") >= 150 and _no_gain(h),
        "the reward is not above that of the first 50 steps: raise learning_rate ({learning_rate}) or prompts_per_step",
    ),
    Sign(
        "eval_one_answer", 3, lambda h: h["eval/predicted_yes_rate"] in (0.0, 1.0),
        "every validation row gets the same answer: balance the classes by class_weights ({class_weights}), train "
        "longer, and look at the first example that preprocess.py prints",
    ),
    Sign(
        "eval_unparsable", 2, lambda h: h["eval/unanswered_rate"] > 0.2,
        "{eval/unanswered_rate:.0%} of the validation completions give no answer: train longer, or raise "
        "max_new_tokens ({max_new_tokens})",
    ),
    Sign(
        "eval_not_finite", 1, lambda h: h["eval/not_finite_rate"] > 0,
        "{eval/not_finite_rate:.1%} of the validation completions end where the log-probabilities are not finite: in "
        "fp16 use bf16 or fp32 (accelerate_configs/), or lower learning_rate ({learning_rate})",
    ),
    Sign(
        "overfitting", 3, lambda h: h["eval/loss"] > 1.1 * min(h.values["eval/loss"]),
        "the validation loss has risen: use more rows, fewer epochs or relabel_each_epoch; output_dir "
        "has the best model (keep_best {keep_best})",
    ),
)  # fmt: skip


class Monitor:
    """The signs of a run: what shows now, since when, and what has been said about it."""

    def __init__(self, settings: dict, stop_after: int, writer: SummaryWriter | None = None):
        self.settings, self.stop_after, self.writer = settings, stop_after, writer
        self.history = History()
        self.running = {sign.name: 0 for sign in SIGNS}  # steps for which it has shown
        self.spoken: dict[str, int] = {}  # step of the last advice
        self.still = 0  # steps running in which no weight can have moved

    def update(
        self, step: int, values: dict[str, float], causes: Mapping[str, Callable[[], str]] | None = None
    ) -> list[str]:
        """Take in a step's values, the same on every rank; returns the names of the signs that are advised of now.

        Advice goes to the console and to TensorBoard on the rank that has a writer, with what `causes` finds out about
        the sign of that name. Raises TrainingFault after `stop_after` steps in which no weight can have moved.
        """
        self.history.add(values)
        advised = []
        for sign in SIGNS:
            try:
                shows = sign.shows(self.history)
            except KeyError:
                continue
            self.running[sign.name] = self.running[sign.name] + 1 if shows else 0
            recently = step - self.spoken.get(sign.name, -REMIND_AFTER) < REMIND_AFTER
            if self.running[sign.name] >= sign.patience and not recently:
                self.spoken[sign.name] = step
                advised.append(sign.name)
                if self.writer is not None:
                    self._say(step, sign)
                    if sign.name in (causes or {}):
                        tqdm.write(f"  {sign.name}: {causes[sign.name]()}")
        if "train/grad_norm" in values:
            self._count_still(step, values)
        return advised

    def state(self) -> dict[str, Any]:
        """All that it remembers, as JSON, for `restore`."""
        values = {name: list(series) for name, series in self.history.values.items()}
        seen = {"values": values, "first": self.history.first}
        return seen | {"running": self.running, "spoken": self.spoken, "still": self.still}

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what the Monitor of an interrupted run has said in `state`; nothing is the start."""
        for name, series in state.get("values", {}).items():
            self.history.values[name] = deque(series, maxlen=MEMORY)
            self.history.first[name] = state.get("first", {}).get(name, series[:BEGINNING])
        names = [sign.name for sign in SIGNS]  # an earlier version may have had others
        self.running |= {name: n for name, n in state.get("running", {}).items() if name in names}
        self.spoken = {name: step for name, step in state.get("spoken", {}).items() if name in names}
        self.still = state.get("still", 0)

    def flags(self) -> dict[str, float]:
        """For TensorBoard: how many signs show, and 0 or 1 for each that has ever been advised of."""
        shown = {sign.name: float(self.running[sign.name] >= sign.patience) for sign in SIGNS}
        return {"health/signs": sum(shown.values())} | {f"health/sign_{name}": shown[name] for name in self.spoken}

    def _say(self, step: int, sign: Sign) -> None:
        line = f"{sign.name}: {self._advice(sign)}"
        tqdm.write(f"step {step}: {line}")
        self.writer.add_text("health/advice", line, step)

    def _advice(self, sign: Sign) -> str:
        known = {name: series[-1] for name, series in self.history.values.items()}  # steps lack values of evaluations
        return sign.advice.format_map(_Lenient(known | self.settings))

    def _count_still(self, step: int, values: dict[str, float]) -> None:
        norm = values["train/grad_norm"]
        moving = values["health/weights_moved"] and norm > 0 and math.isfinite(norm)
        self.still = 0 if moving else self.still + 1
        if self.still >= self.stop_after:
            showing = [sign for sign in SIGNS if self.running[sign.name] >= sign.patience]
            why = "; ".join(f"{sign.name}: {self._advice(sign)}" for sign in showing) or "the gradient is 0"
            raise TrainingFault(f"stopped at step {step}: no weight has moved for {self.still} steps. {why}")


class _Lenient(dict):
    """A setting that this script does not have is left as it is named."""

    def __missing__(self, name: str) -> str:
        return name


def sampling_gap_cause(
    model: torch.nn.Module,
    score: Callable[[float], tuple],
    sampled: torch.Tensor,
    scored: torch.Tensor,
    temperature: float,
) -> str:
    """Why the log-probabilities (B, T) that sampling and the update have found differ, as far as it can be told.

    `score` computes them anew at the temperature that it is given, as the first value it returns.
    """
    sampled = sampled.to(scored)
    active = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    if active:
        return f"dropout is active in {len(active)} modules, {active[:1]}: set it to 0"
    with torch.no_grad():
        again, twice, plain = (score(t)[0] for t in (temperature, temperature, 1.0))
    if not torch.equal(again, twice):
        return "scoring twice gives two results: something in the model is random"
    if temperature != 1:
        for place, logps in (("scoring", scored), ("sampling", sampled)):
            if (plain - logps).abs().max() < (again - logps).abs().max():
                return f"{place} leaves the temperature ({temperature}) out"
    return "look at precision, at stop tokens and at what the model's cache holds"
