"""How much memory of a card a recipe takes, before any weight is loaded: what plan.py prints.

What training and sampling allocate is counted, not guessed: the product's own code runs on the meta device, whose
tensors have a shape and no data. It runs on the model with one layer and with two, and on rows of two lengths. From
there memory is linear in layers and in tokens:

    Demand -> policy_without_data (1 and 2 layers) -> Counted (at 2 lengths) -> Lines -> Plan -> Phases

What a recipe demands, demand.py says. From a card's memory back to the largest sizes that fit it, budgets.py goes.

Weights, gradients and the optimizer's state follow from the shapes. Those of the recipes' models are in configs/shapes,
so that no weight, hub or GPU is needed. GB are 1e9 bytes.
"""

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from policy.loading import recompute_activations
from policy.prefix_sharing import sequence_logps
from policy.sampling import generate
from policy.shapes import empty_model, with_layers
from training.demand import Demand

GB = 1e9
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight: 4 bits, a byte a block of 64, 4 bytes a block of 256 of these
BUCKET = 5_000_000  # elements: reduce_bucket_size of ds_configs/
OUTSIDE = 0.9 * GB  # what is not counted: the CUDA context and libraries (about 0.5), NCCL, fragments (not measured)
# What takes memory in a step, and its parts.
WORKS = {"sample": ("prefill", "decode"), "score": ("reference",), "update": ("forward", "backward")}
LENGTHS = (640, 896)  # tokens that memory is counted at: with a vocabulary of 26,000, logits fill a chunk at either


# --- the policy, without data


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

    def __init__(self, layer: torch.nn.Module, demand: Demand, lean: bool):
        super().__init__()
        self.layer, self.dropout, self.lean = layer, torch.nn.Dropout(demand.lora_dropout), lean
        # DeepSpeed trains adapters in the run's precision, beside an fp32 copy.
        with torch.device("meta"):
            for name in ("policy", "reference")[: 1 + demand.reference]:
                a = torch.empty(demand.lora_r, layer.in_features, dtype=demand.dtype)
                b = torch.empty(layer.out_features, demand.lora_r, dtype=demand.dtype)
                for kind, weight in {"a": a, "b": b}.items():
                    self.register_parameter(f"{name}_{kind}", torch.nn.Parameter(weight, name == "policy"))

    def forward(self, x):
        inner = functional.linear(self.dropout(x) if self.dropout.p else x, self.policy_a)
        if self.lean:
            out = self.layer(x)
            out.flatten(0, -2).addmm_(inner.flatten(0, -2), self.policy_b.T, alpha=2.0)
            return out
        return self.layer(x) + functional.linear(inner, self.policy_b) * 2.0


def policy_without_data(demand: Demand, layers: int, lean: bool = False) -> torch.nn.Module:
    """The policy with `layers` layers, without data, ready to train; or `lean`, as inside policy.adapters.lean_lora."""
    model = empty_model(with_layers(demand.shape, layers), demand.dtype).requires_grad_(demand.lora_r == 0)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, torch.nn.Linear) and layer is not head:
                layer = Nf4WithoutData(layer) if demand.quantization == "nf4" else layer
                layer = LoraWithoutData(layer, demand, lean) if name in demand.lora_targets else layer
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


def perform(model: torch.nn.Module, work: str, tokens: int, sequences: int, pause: Callable = lambda: None) -> None:
    """Do a `work` of WORKS on `tokens` packed or cached tokens, and call `pause` between its two parts.

    `update` scores all tokens but the first and goes back, `score` only goes forward, `sample` lets `sequences` samples
    of one prompt, each in a row of its own, grow by two tokens.
    """
    ids = [k % 50 for k in range(tokens)]
    model.train(work == "update")
    if work == "sample":
        prompts, seeds = [[ids[2 * sequences :]] * sequences], [[(0, k) for k in range(sequences)]]
        forwards = count()
        hook = model.register_forward_pre_hook(lambda *_: pause() if next(forwards) == 1 else None)
        generate(model, prompts, stop_ids=set(), max_new_tokens=2, temperature=1.0, seeds=seeds, fork=False)
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

    with Allocations(model) as allocations:
        perform(model, work, tokens, sequences, pause)
    close(WORKS[work][-1])
    return found


# --- from two layers and two lengths to all


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


class Plan:
    """What a demand takes of a card, part by part of a step. Counting takes a second or two; less for a few `works`."""

    def __init__(self, demand: Demand, works: Collection[str] = WORKS):
        self.demand = demand
        models = policy_without_data(demand, 1), policy_without_data(demand, 2)
        self.weights = held(demand, *models)
        works = [work for work in works if work != "score" or demand.reference]
        self.lines = {work: lines(demand, *models, work) for work in works}

    def phases(self, cards: int) -> list[Phase]:
        """The phases on each of `cards` cards. A part has two where logits are in memory at times and at times not."""
        return [self._phase(work, *kind, cards) for work in self.lines for kind in self.lines[work].peaks]

    def peak(self, cards: int) -> Phase:
        """The phase that takes most."""
        return max(self.phases(cards), key=lambda phase: phase.total)

    def largest(self, setting: str, cards: int, card: float) -> int:
        """Tokens of this setting with which all parts of a step fit `card` bytes; 0 if not even none do."""
        return min(phase.largest(card) for phase in self.phases(cards) if phase.setting == setting)

    def _phase(self, work: str, part: str, with_logits: bool, cards: int) -> Phase:
        demand, trained = self.demand, self.weights["count"]
        sampling, updating = work == "sample", work == "update"
        tokens = demand.cache_tokens if sampling else demand.update_tokens
        computed = demand.prefill_tokens if part == "prefill" else tokens
        peak_line, logits_line = self.lines[work].peaks[part, with_logits]
        logits, kept = logits_line.at(computed), self.lines[work].kept
        parts = {
            "weights": self.weights["frozen"],
            "trained weights": self.weights["trained"],
            "optimizer": 12 * trained / cards,  # AdamW's two moments and a copy of the weights, in fp32
            "gradients": 4 * trained / cards * updating,
            "buckets": 8 * min(BUCKET, trained) * updating,
            "key-value cache": kept.at(tokens) * sampling,  # which is nearly full when something joins
            "logits": logits,
            "activations": peak_line.at(computed) - kept.at(computed) * sampling - logits,
            "CUDA and the rest": OUTSIDE,
        }
        setting = "cache_tokens" if sampling else "micro_batch_tokens"
        return Phase(part, setting, tokens, parts, kept.slope if part == "prefill" else peak_line.slope)
