"""The memory plan of a recipe: where each GB of a card goes, before any weight is loaded.

    python train_sft.py --config configs/sft_phi3.yaml --plan true --card_gb 11
    python train_grpo.py --config configs/grpo_phi3.yaml --plan true --card_gb 23

What training and sampling allocate is counted, not guessed: the product's own code runs on the meta device, whose
tensors have a shape and no data, on the model with one layer and with two and on two lengths of rows. From there memory
is linear in layers and in tokens. Weights, optimizer and gradients follow from the shapes; those of the recipes' models
are in the project: no weight, hub or GPU is needed. GB are 10⁹ bytes.
"""

import json
import warnings
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from policy.adapters import adapter_config, lora_targets
from policy.loading import empty_model, model_shape, recompute_activations, with_layers
from policy.prefix_sharing import sequence_logps
from policy.sampling import generate
from runtime.settings import check, read_yaml
from training.settings import TrainingSettings

ROOT = Path(__file__).parents[1]
GB = 1e9
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight: 4 bits, a byte a block of 64, 4 bytes a block of 256 of these
BUCKET = 5_000_000  # elements: reduce_bucket_size of ds_configs/
OUTSIDE = 0.9 * GB  # what is not counted: the CUDA context and libraries (about 0.5), NCCL, fragments (not measured)
LONGEST_ROW = 3072  # tokens, where no dataset or recipe says
CLAIM_TOKENS = 64  # of a claim in a prompt, at most
USUAL_PREMISE = 400  # tokens: a batch of short premises has more sequences, and their logits, at once
ACTIVE = ("key-value cache", "logits", "activations")
OF_TRAINING = ("optimizer", "gradients", "buckets")
GUIDE_MODEL = "Phi-3.5-mini-instruct"
GUIDE = {"model": "4", "activations": "3 to 4", "gradients": "2", "total": "9 to 10"}  # GB a card, of two, as promised
# What takes memory in a step, and its parts.
WORKS = {"sample": ("prefill", "decode"), "score": ("reference",), "update": ("forward", "backward")}
LENGTHS = (640, 896)  # tokens that memory is counted at: with a vocabulary of 26,000, logits fill a chunk at either


# --- counting


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside: `now`, and what of it is `logits`.

    `peaks` has both, (bytes, logits), at the peak of the times without logits (False) and of those with some (True):
    layers and head have a peak each, and which is the higher depends on the number of tokens.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.logits = 0
        self.peaks: dict[bool, tuple[int, int]] = {False: (0, 0)}
        self.vocabulary = model.config.vocab_size
        # Storages by address: those of the model were there before, and do not count.
        tensors = (*model.parameters(), *model.buffers())
        self.sizes: dict[int, tuple[int, bool]] = {t.untyped_storage()._cdata: (0, False) for t in tensors}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=args[0].dtype)  # sampling reads its tokens: without data all are 0
        result = func(*args, **kwargs)
        for tensor in (x for x in tree_leaves(result) if isinstance(x, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                size, of_logits = storage.nbytes(), tensor.dim() > 0 and tensor.shape[-1] == self.vocabulary
                self.sizes[storage._cdata] = size, of_logits
                self._add(size, of_logits)
                weakref.finalize(storage, self._freed, storage._cdata)
        return result

    def _add(self, size: int, of_logits: bool) -> None:
        self.now += size
        self.logits += size * of_logits
        self.peaks[self.logits > 0] = max(self.peaks.get(self.logits > 0, (0, 0)), (self.now, self.logits))

    def _freed(self, key: int) -> None:
        size, of_logits = self.sizes.pop(key)
        self._add(-size, of_logits)


@contextmanager
def fused_attention():
    """In the block, attention on the meta device holds no matrix of scores, as GPU and CPU kernels do not."""
    real = functional.scaled_dot_product_attention

    def attend(query, key, value, attn_mask=None, scale=None, **options):
        if not query.is_meta:
            return real(query, key, value, attn_mask=attn_mask, scale=scale, **options)
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask, 1.0)  # the kernels add it
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, attn_mask=bias, scale=scale)[0]

    functional.scaled_dot_product_attention = attend  # transformers looks it up there, in backward passes too
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real


class _Dequantized(torch.autograd.Function):
    """x @ W.T where W is unpacked anew in each pass, as bitsandbytes does."""

    @staticmethod
    def forward(ctx, x, packed, shape):
        ctx.shape = shape
        return functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx, grad):
        return grad @ grad.new_empty(ctx.shape), None, None


class Nf4WithoutData(torch.nn.Linear):
    """A linear layer that takes the memory of a 4-bit one."""

    def __init__(self, layer: torch.nn.Linear):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        size = round(layer.weight.numel() * NF4_BYTES)
        self.weight = torch.nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)

    def forward(self, x):
        out = _Dequantized.apply(x, self.weight, (self.out_features, self.in_features))
        return out if self.bias is None else out + self.bias


class LoraWithoutData(torch.nn.Module):
    """A linear layer with peft's LoRA; peft itself takes seconds to import."""

    def __init__(self, layer: torch.nn.Module, demand: "Demand"):
        super().__init__()
        self.layer, self.dropout = layer, torch.nn.Dropout(demand.lora_dropout)
        # DeepSpeed trains adapters in the run's precision, beside an fp32 copy.
        with torch.device("meta"):
            for name in ("policy", "reference")[: 1 + demand.reference]:
                a = torch.empty(demand.lora_r, layer.in_features, dtype=demand.dtype)
                b = torch.empty(layer.out_features, demand.lora_r, dtype=demand.dtype)
                for kind, weight in {"a": a, "b": b}.items():
                    self.register_parameter(f"{name}_{kind}", torch.nn.Parameter(weight, name == "policy"))

    def forward(self, x):
        inner = functional.linear(self.dropout(x) if self.dropout.p else x, self.policy_a)
        return self.layer(x) + functional.linear(inner, self.policy_b) * 2.0


@dataclass(frozen=True)
class Demand:
    """What of a run takes memory. Token counts are of one process."""

    shape: PreTrainedConfig
    dtype: torch.dtype
    quantization: str  # nf4 | none
    lora_r: int  # 0: all weights are trained
    lora_dropout: float
    lora_targets: tuple[str, ...]
    reference: bool  # a second, frozen adapter, and a pass for its log-probabilities
    gradient_checkpointing: bool
    update_tokens: int  # packed tokens of a forward and backward pass
    cache_tokens: int  # of the key-value cache in sampling
    sequences: int  # that are sampled at once
    prompt_share: float  # of the cache's tokens


def policy_without_data(demand: Demand, layers: int) -> torch.nn.Module:
    """The policy with `layers` layers, without data, ready to train."""
    model = empty_model(with_layers(demand.shape, layers), demand.dtype).requires_grad_(demand.lora_r == 0)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, torch.nn.Linear) and layer is not head:
                layer = Nf4WithoutData(layer) if demand.quantization == "nf4" else layer
                layer = LoraWithoutData(layer, demand) if name in demand.lora_targets else layer
                setattr(parent, name, layer)
    if demand.gradient_checkpointing:
        recompute_activations(model)
    free_gradients(model)
    return model


def free_gradients(model: torch.nn.Module) -> None:
    """Let each weight's gradient go as soon as it is there, as ZeRO-2 takes it into its bucket."""
    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))


# --- what a stage needs


def held(demand: Demand, one: torch.nn.Module, two: torch.nn.Module) -> dict[str, float]:
    """Bytes of the frozen weights and of the trained ones, and how many of the latter there are.

    `one` and `two` are `policy_without_data` with one layer and with two; the others are like the second.
    """

    def of(model: torch.nn.Module) -> dict[str, float]:
        tensors = {id(x): x for x in (*model.parameters(), *model.buffers())}.values()
        trained = [x for x in tensors if x.requires_grad]
        frozen = sum(x.nbytes for x in tensors if not x.requires_grad)
        return {"frozen": frozen, "trained": sum(x.nbytes for x in trained), "count": sum(x.numel() for x in trained)}

    first, both = of(one), of(two)
    return {name: first[name] + (demand.shape.num_hidden_layers - 1) * (both[name] - first[name]) for name in first}


def perform(model: torch.nn.Module, work: str, tokens: int, sequences: int, pause: Callable = lambda: None) -> None:
    """Do a `work` of WORKS on `tokens` packed or cached tokens, and call `pause` between its two parts.

    `update` scores all tokens but the first and goes back, `score` only goes forward, `sample` lets `sequences` samples
    of one prompt grow by two tokens each.
    """
    ids = [k % 50 for k in range(tokens)]
    model.train(work == "update")
    if work == "sample":
        prompts, seeds = [[ids[2 * sequences :]] * sequences], [[(0, k) for k in range(sequences)]]
        forwards = count()
        hook = model.register_forward_pre_hook(lambda *_: pause() if next(forwards) == 1 else None)
        generate(model, prompts, stop_ids=set(), max_new_tokens=2, temperature=1.0, seeds=seeds)
        hook.remove()
        return
    with torch.set_grad_enabled(work == "update"):
        logps = sequence_logps(model, [[ids[:1]]], [[ids[1:]]])[0]
    if work == "update":
        pause()
        logps.sum().backward()


@dataclass
class Counted:
    """Bytes beyond the weights: `kept` between the parts of a work, and the `peaks` of a part, see Allocations."""

    kept: float
    peaks: dict[tuple[str, bool], tuple[float, float]]


def counted(model: torch.nn.Module, work: str, tokens: int, sequences: int) -> Counted:
    """What `perform` takes; the model has data or has none."""
    found = Counted(0.0, {})

    def close(part: str) -> None:
        found.peaks |= {(part, head): peak for head, peak in allocations.peaks.items()}

    def pause() -> None:
        close(WORKS[work][0])
        found.kept = allocations.now
        allocations.peaks = {False: (allocations.now, 0)}

    with fused_attention(), Allocations(model) as allocations:
        perform(model, work, tokens, sequences, pause)
    close(WORKS[work][-1])
    return found


@dataclass(frozen=True)
class Line:
    """Bytes as a straight line in tokens."""

    start: float
    slope: float

    def at(self, tokens: float) -> float:
        return self.start + self.slope * tokens

    @classmethod
    def through(cls, tokens: tuple[int, int], bytes: tuple[float, float]) -> "Line":
        slope = (bytes[1] - bytes[0]) / (tokens[1] - tokens[0])
        return cls(bytes[0] - slope * tokens[0], slope)


@dataclass
class Lines:
    """`Counted` as lines in tokens: of the prompts in prefill, of the cache in decode, else of the packed row."""

    kept: Line
    peaks: dict[tuple[str, bool], tuple[Line, Line]]


def lines(demand: Demand, one: torch.nn.Module, two: torch.nn.Module, work: str) -> Lines:
    """What a work takes of the whole model; `one` and `two` as for `held`: each layer keeps as much as the second."""
    new_tokens = 2 * demand.sequences * (work == "sample")
    cached = tuple(length + new_tokens for length in LENGTHS)
    of_one, of_two = ([counted(model, work, n, demand.sequences) for n in cached] for model in (one, two))
    layer = Line.through(cached, tuple(b.kept - a.kept for a, b in zip(of_one, of_two, strict=True)))
    layers = demand.shape.num_hidden_layers
    found = Lines(Line(layers * layer.start, layers * layer.slope), {})
    for part, head in of_two[0].peaks:
        tokens = LENGTHS if part == "prefill" else cached
        peak, logits = (Line.through(tokens, pair) for pair in zip(*(x.peaks[part, head] for x in of_two), strict=True))
        whole = Line(peak.start + (layers - 2) * layer.start, peak.slope + (layers - 2) * layer.slope)
        found.peaks[part, head] = whole, logits
    return found


# --- the plan


@dataclass
class Phase:
    """A part of a step: bytes by what they are for, and how they grow with a setting of the recipe."""

    name: str
    setting: str  # that bounds its tokens
    tokens: int
    parts: dict[str, float]
    slope: float  # bytes a token

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def largest(self, card: float) -> int:
        """Tokens that fit `card` bytes; 0 if not even none do."""
        return max(0, int(self.tokens + (card - self.total) / self.slope))


def plan(demand: Demand) -> Callable[[int], list[Phase]]:
    """The phases of a run, by number of cards; of one name are two, where logits are in memory and where none are."""
    models = policy_without_data(demand, 1), policy_without_data(demand, 2)
    weights = held(demand, *models)
    found = {work: lines(demand, *models, work) for work in WORKS if work != "score" or demand.reference}

    def phase(work: str, part: str, head: bool, cards: int) -> Phase:
        tokens = demand.cache_tokens if work == "sample" else demand.update_tokens
        share = demand.prompt_share if part == "prefill" else 1.0
        peak, logits = (line.at(share * tokens) for line in found[work].peaks[part, head])
        cache = found[work].kept.at(share * tokens) * (work == "sample")
        updating = work == "update"
        parts = {
            "weights": weights["frozen"],
            "trained weights": weights["trained"],
            "optimizer": 12 * weights["count"] / cards,  # AdamW's two moments and a copy of the weights, in fp32
            "gradients": 4 * weights["count"] / cards * updating,
            "buckets": 8 * min(BUCKET, weights["count"]) * updating,
            "key-value cache": cache,
            "logits": logits,
            "activations": peak - cache - logits,
            "CUDA and the rest": OUTSIDE,
        }
        setting = "cache_tokens" if work == "sample" else "micro_batch_tokens"
        return Phase(part, setting, tokens, parts, share * found[work].peaks[part, head][0].slope)

    return lambda cards: [phase(work, *kind, cards) for work in found for kind in found[work].peaks]


def recipe_that_writes(directory: str) -> dict[str, Any]:
    """The recipe of configs/ whose output_dir is `directory`; empty if none is."""
    recipes = (read_yaml(str(path)) for path in sorted((ROOT / "configs").glob("*.yaml")))
    return next((recipe for recipe in recipes if recipe.get("output_dir") == directory), {})


def base_and_lora(config: TrainingSettings) -> tuple[str, int, list[str]]:
    """The full model under `config.model`; rank and target modules of the adapter on it, 0 and none without one.

    The adapter is a new one, or the one that is in `config.model` or will be there.
    """
    if found := adapter_config(config.model):
        return found["base_model_name_or_path"], found["r"], found["target_modules"]
    writer = {} if Path(config.model).exists() else recipe_that_writes(config.model)
    base = writer.get("model", config.model)
    settings = vars(config) | (writer if writer.get("adaptation") == "lora" else {})
    if settings.get("adaptation", "lora") == "full":
        return base, 0, []
    return base, settings["lora_r"], lora_targets(empty_model(model_shape(base)), settings["lora_target_modules"])


def longest_row(dataset: str) -> int:
    """The max_length that the dataset was made with, or its recipe says."""
    report = Path(dataset) / "report.json"
    made = json.loads(report.read_text())["config"] if report.is_file() else recipe_that_writes(dataset)
    return made.get("max_length") or LONGEST_ROW


def demand_of(config: TrainingSettings) -> tuple[str, Demand]:
    """What a configuration of train_sft.py or train_grpo.py asks of a card, and its full model's name."""
    base, rank, targets = base_and_lora(config)
    samples = getattr(config, "num_generations", 1)
    group = longest_row(config.dataset) + config.claims_per_prefix * (CLAIM_TOKENS + samples * config.max_new_tokens)
    in_group = config.claims_per_prefix * samples
    cache_tokens = max(config.cache_tokens, group)
    usual = USUAL_PREMISE + config.claims_per_prefix * CLAIM_TOKENS + in_group * config.max_new_tokens
    sequences = in_group * max(1, config.cache_tokens // usual)
    return base, Demand(
        model_shape(base),
        torch.bfloat16,  # fp16 takes as much
        config.quantization,
        rank,
        getattr(config, "lora_dropout", 0.0),  # GRPO has none
        tuple(targets),
        getattr(config, "beta", 0.0) > 0,
        config.gradient_checkpointing,
        max(config.micro_batch_tokens, group),
        cache_tokens,
        sequences,
        max(0.1, 1 - sequences * config.max_new_tokens / cache_tokens),
    )


def card_bytes(card_gb: float) -> float:
    """Of the card of `card_gb` GB, or with 0 of the one that is present. ValueError if there is none."""
    check(card_gb >= 0, f"card_gb: must be above 0, or 0 for the card present, got {card_gb}")
    check(card_gb > 0 or torch.cuda.is_available(), "card_gb: no GPU here to ask; name its memory, as in --card_gb 11")
    return card_gb * GB or torch.cuda.get_device_properties(0).total_memory


def print_plan(config: Any) -> None:
    """Print where each GB goes on one card of two, whether it fits there or on one, and the largest token budgets."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    card = card_bytes(config.card_gb)
    base, demand = demand_of(config)
    phases_on = plan(demand)
    highest = {phase.name: phase for phase in sorted(phases_on(2), key=lambda phase: phase.total)}
    phases = [highest[part] for parts in WORKS.values() for part in parts if part in highest]
    print(f"{base}, {demand.quantization}, half precision: GB (10⁹ bytes) on each of 2 cards of {card / GB:.1f} GB")
    print(f"{'':<20}" + "".join(f"{phase.name:>12}" for phase in phases))
    for part in phases[0].parts:
        print(f"{part:<20}" + "".join(f"{phase.parts[part] / GB:>12.2f}" for phase in phases))
    print(f"{'total':<20}" + "".join(f"{phase.total / GB:>12.2f}" for phase in phases))
    for cards in (2, 1):
        peak = max(phases_on(cards), key=lambda phase: phase.total)
        fits = "fits" if peak.total <= card else "DOES NOT FIT"
        print(f"{cards} card{'s' * (cards > 1)}: peak {peak.total / GB:.2f} GB in {peak.name}: {fits}; at most", end="")
        for setting in ("cache_tokens", "micro_batch_tokens"):
            bounded = [phase for phase in phases_on(cards) if phase.setting == setting]
            fitting = min(phase.largest(card) for phase in bounded)
            print(f" {setting} {fitting:,} ({bounded[0].tokens:,} planned)", end="")
        print()
    claims = config.claims_per_prefix
    print(f"planned: the setting, or {claims} claims on the longest premise if that is more")
    if base.endswith(GUIDE_MODEL):
        largest = {part: max(phase.parts[part] for phase in phases) for part in phases[0].parts}
        ours = {
            "model": largest["weights"] + largest["trained weights"],
            "activations": max(sum(phase.parts[part] for part in ACTIVE) for phase in phases),
            "gradients": max(sum(phase.parts[part] for part in OF_TRAINING) for phase in phases),
            "total": max(phase.total for phase in phases),
        }
        told = ", ".join(f"{name} {GUIDE[name]} / {size / GB:.1f}" for name, size in ours.items())
        print(f"the guide's figures / ours: {told}")
