"""How long a recipe trains on a card: what `plan.py --hours` prints.

Counted work over rates. Counted are steps, rows, tokens, and of the model its weights and the kernels that a decoding
step launches; the rates are a card's, from configs/rates, from a file of the user's, or measured by benchmarks/gpu.py.

    prefill, reference, update   operations / (operations of the card · operations_share)
    a step of decoding           the longest of: launches · launch_us; bytes / (bandwidth · bandwidth_share); operations
                                 as above. A GPU works while the host launches, so that they do not add up.

Operations are 2 a weight and token, 4 a layer and attention width for each pair of a token and one that it sees, and
the head's where a token is predicted. An update is a forward pass, one more if activations are recomputed, and a
backward pass, which costs one if the base is frozen and two if all weights learn. A decoding step reads the weights and
the keys and values of all sequences. Sequences are sampled S at a time, S by the memory plan; each that stops makes
room for the next, so that B of them take longest + (B/S - 1) · mean steps.

What the samples of a prompt begin with alike is computed once: they count as so many fewer.

Left out: start-up, checkpoints, communication, uneven ranks, padding in a batch, and what a group that is sampled in
parts, or a fork that has waited, prefills again.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from dataset.batches import steps_of_epoch
from dataset.reading import read_report
from policy.prefix_sharing import attention_shape, cached_elements
from policy.shapes import empty_model
from runtime.settings import Settings, arg, check, parse_config
from training.demand import CLAIM_TOKENS, ROOT, USUAL_PREMISE, Demand, GrpoRecipe, SftRecipe, recipe_that_writes
from training.memory import GB, LENGTHS, NF4_BYTES, Allocations, perform, policy_without_data

UNLAUNCHED = ("aten._unsafe_view.default", "aten.new_empty.default")  # no kernels; new_empty stands for unpacked nf4
HALF = 2  # bytes of bf16 and fp16


# --- a card


@dataclass
class Rates(Settings):
    """What a card does in a second. The defaults are assumptions, and docs/memory.md says where they come from."""

    name: str = arg("a card", "what the print-out calls it")
    source: str = arg("not measured", "where the rates are from, for the print-out")
    memory_gb: float = arg(0.0, "memory in GB", above=0)
    bandwidth: float = arg(0.0, "bytes a second from the card's memory", above=0)
    operations: float = arg(0.0, "operations a second of dense products in half precision, summed in fp32", above=0)
    bandwidth_share: float = arg(0.8, "share of the bandwidth that decoding reaches", above=0, at_most=1)
    operations_share: float = arg(0.35, "share of the operations that the passes reach", above=0, at_most=1)
    launch_us: float = arg(20.0, "microseconds of the host for a kernel launched from Python", above=0)
    nf4_rows: int = arg(128, "rows up to which a product reads nf4 weights as they are, and not unpacked", at_least=0)


def read_rates(path: str) -> Rates:
    check(Path(path).is_file(), f"rates: {path} is no file; those of the project are in configs/rates")
    return parse_config(Rates, ["--config", path])


def nearest_rates(card: float) -> Rates:
    """Those of configs/rates for the card whose memory is nearest to `card` bytes."""
    known = [read_rates(str(path)) for path in sorted((ROOT / "configs/rates").glob("*.yaml"))]
    return min(known, key=lambda rates: abs(rates.memory_gb * GB - card))


# --- a recipe


@dataclass(frozen=True)
class Lengths:
    """Tokens: of a prompt and of a completion on average, and of the longest completion.

    `distinct`: the share of a prompt's sampled tokens that is left if what its samples begin with alike counts once.
    """

    prompt: float
    completion: float
    longest: float
    distinct: float = 1.0


def lengths_of(
    recipe: SftRecipe | GrpoRecipe, prompt_tokens: int = 0, completion_tokens: int = 0, distinct: float = 1.0
) -> Lengths:
    """What is given, else the means of the dataset, else a usual prompt and the longest completion that is allowed."""
    found = read_report(recipe.dataset).get("tokens", {}).get(recipe.train_split, {})
    most = recipe.max_new_tokens

    def mean(part: str, default: int) -> float:
        return found[part].get("mean", found[part]["p50"]) if found else default

    longest = min(most, found["response"]["max"]) if found else most
    completion = min(most, completion_tokens or mean("response", most))
    prompt = prompt_tokens or mean("prompt", USUAL_PREMISE + CLAIM_TOKENS)
    return Lengths(prompt, completion, max(longest, completion), distinct)


@dataclass(frozen=True)
class Run:
    """What a recipe does, over all cards."""

    steps: int
    rows: int  # of a step: prompts, or rows of SFT
    samples: int  # completions of each
    claims: int  # rows that share a premise
    updates: int  # passes over a step's sequences that learn
    evaluations: int
    eval_rows: int


def run_of(recipe: SftRecipe | GrpoRecipe) -> Run:
    """ValueError if nothing tells how many rows SFT trains on."""
    claims = recipe.claims_per_prefix if recipe.prefix_sharing else 1
    grpo = isinstance(recipe, GrpoRecipe)
    steps = recipe.max_steps if grpo else sft_steps(recipe)
    evaluations = math.ceil(steps / recipe.eval_steps) if recipe.eval_steps else 1
    evaluated = {"evaluations": evaluations + grpo, "eval_rows": recipe.eval_rows}  # GRPO's first is before any step
    if not grpo:
        return Run(steps, recipe.batch_size, 1, claims, 1, **evaluated)
    return Run(steps, recipe.prompts_per_step, recipe.num_generations, claims, recipe.num_iterations, **evaluated)


def sft_steps(recipe: SftRecipe) -> int:
    if recipe.max_steps:
        return recipe.max_steps
    made = read_report(recipe.dataset).get("splits", {}).get(recipe.train_split, {}).get("rows")
    rows = made or recipe_that_writes(recipe.dataset).get("max_train_samples")
    remedy = f"make {recipe.dataset} with preprocess.py, or give --max_steps"
    check(bool(rows), f"dataset: nothing tells how many rows it trains on; {remedy}")
    epochs, batches = recipe.num_train_epochs, math.ceil(rows / recipe.batch_size)
    return sum(steps_of_epoch(batches, epochs - done) for done in range(math.ceil(epochs)))


# --- a model


@dataclass(frozen=True)
class Size:
    """What of a model decides the time of a pass."""

    base: int  # weights of the layers' matrices
    lora: int  # and of the adapter's
    head: int
    width: int  # of the queries of all layers
    cached: int  # bytes of a token's keys and values
    nf4: bool
    passes: int  # that an update costs, in forward passes
    sequences: int  # that are sampled at once
    launches: int  # kernels of a step of decoding

    def operations(self, tokens: float, pairs: float, predicted: float) -> float:
        """Of a forward pass."""
        return 2 * (self.base + self.lora) * tokens + 4 * self.width * pairs + 2 * self.head * predicted

    def weight_bytes(self, rows: float, nf4_rows: int) -> float:
        """That a pass over `rows` tokens reads."""
        unpacked = 0 if rows <= nf4_rows else 2 * HALF  # written and read again
        of_base = NF4_BYTES + unpacked if self.nf4 else HALF
        return of_base * self.base + HALF * (self.lora + self.head)


def size_of(demand: Demand) -> Size:
    shape = demand.shape
    model = empty_model(shape)
    head = model.get_output_embeddings()
    linear = [
        (n.split(".")[-1], m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    ]
    rank, targets = demand.lora_r, demand.lora_targets
    heads, _, head_width = attention_shape(shape)
    return Size(
        base=sum(m.weight.numel() for _, m in linear),
        lora=sum(rank * (m.in_features + m.out_features) for name, m in linear if name in targets),
        head=head.weight.numel(),
        width=shape.num_hidden_layers * heads * head_width,
        cached=HALF * cached_elements(shape),
        nf4=demand.quantization == "nf4",
        passes=1 + demand.gradient_checkpointing + (1 if rank else 2),
        sequences=demand.sequences,
        launches=launches(demand),
    )


class Launches(Allocations):
    """Counts the operations inside that run a kernel."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and str(func) not in UNLAUNCHED
        return super().__torch_dispatch__(func, types, args, kwargs)

    def restart(self) -> None:
        self.count = 0


def launches(demand: Demand) -> int:
    """Kernels of a step of decoding, counted without data on one layer and on two: each further one adds as many."""
    counts = []
    for layers in (1, 2):
        model = policy_without_data(demand, layers, lean=True)
        with Launches(model) as seen:
            perform(model, "sample", 2 * demand.sequences + LENGTHS[0], demand.sequences, seen.restart)
        counts.append(seen.count)
    return counts[0] + (demand.shape.num_hidden_layers - 1) * (counts[1] - counts[0])


# --- time


@dataclass(frozen=True)
class Part:
    """A part of a run: tokens of all cards, and seconds that it takes each of them."""

    name: str
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Decoding:
    """How sequences are sampled on a card: in so many steps, so many at a time on average; `seconds` of a step by what
    could bound it."""

    steps: float
    sequences: float
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return self.steps * max(self.seconds.values())


@dataclass(frozen=True)
class Clock:
    """Seconds of a model's works on a card."""

    size: Size
    rates: Rates
    lengths: Lengths

    def forward(self, prompts: float, completions: float) -> float:
        """Of a pass over so many tokens of prompts, and of completions, which are predicted."""
        prompt, completion = self.lengths.prompt, self.lengths.completion
        pairs = prompts * prompt / 2 + completions * (prompt + completion / 2)
        operations = self.size.operations(prompts + completions, pairs, completions)
        return operations / (self.rates.operations * self.rates.operations_share)

    def decoding(self, sequences: float, samples: float) -> Decoding:
        """Of so many sequences, `samples` of each prompt."""
        size, rates, prompt, mean = self.size, self.rates, self.lengths.prompt, self.lengths.completion
        steps = self.lengths.longest + max(0.0, sequences / size.sequences - 1) * mean
        live = sequences * mean / steps
        held = live * mean / 2 + max(1.0, live / samples) * prompt
        read = size.weight_bytes(live, rates.nf4_rows) + size.cached * held
        operations = size.operations(live, live * (prompt + mean / 2), live)
        seconds = {
            f"{size.launches:,} launches": size.launches * rates.launch_us / 1e6,
            "memory": read / (rates.bandwidth * rates.bandwidth_share),
            "operations": operations / (rates.operations * rates.operations_share),
        }
        return Decoding(steps, live, seconds)


def parts_of(run: Run, clock: Clock, cards: int, reference: bool) -> tuple[list[Part], Decoding]:
    """The parts of a run on `cards` cards, and how it samples: in training, or in SFT for evaluation."""
    lengths = clock.lengths
    rows, scored = run.rows / cards, run.eval_rows / cards
    claim = min(CLAIM_TOKENS, lengths.prompt)
    prompts = rows * (claim + (lengths.prompt - claim) / run.claims)  # a premise is computed once for its claims
    samples = max(1.0, run.samples * lengths.distinct)  # rows of a prompt in the cache, on average
    completions = rows * samples * lengths.completion
    forward = clock.forward(prompts, completions)
    answers = clock.decoding(scored, 1)
    validation = clock.forward(scored * lengths.prompt, 0) + answers.total
    found, sampling = {}, answers
    if run.samples > 1:
        sampling = clock.decoding(rows * samples, samples)
        found = {"prefill": (prompts, clock.forward(prompts, 0)), "decode": (completions, sampling.total)}
        found |= {"reference": (prompts + completions, forward)} if reference else {}
    else:
        validation += clock.forward(scored * lengths.prompt, scored * lengths.completion)  # the validation loss
    found["update"] = (prompts + completions) * run.updates, forward * run.updates * clock.size.passes
    parts = [Part(name, run.steps * cards * tokens, run.steps * seconds) for name, (tokens, seconds) in found.items()]
    tokens = run.evaluations * run.eval_rows * (lengths.prompt + lengths.completion)
    return [*parts, Part("evaluation", tokens, run.evaluations * validation)], sampling
