"""Where each GB of a card will go in a recipe's training, whether it is enough, and the largest token budgets that fit.

    python plan.py --config configs/sft_phi3.yaml --card_gb 11
    python plan.py --config configs/grpo_phi3.yaml --card_gb 23 --hours        # and how long it will take
    python plan.py --config configs/grpo_phi3.yaml --card_gb 23 --micro_batch_tokens 8192
    python plan.py --stage sft --model Qwen/Qwen2.5-1.5B-Instruct --adaptation lora --quantization nf4 --card_gb 11

It needs no weights, and for the models of the recipes no hub. With --card_gb it needs no GPU either. What it counts and
how is in training/demand.py, memory.py and hours.py. GB are 1e9 bytes.
"""

import argparse
import dataclasses
import math
import sys
import warnings
from collections.abc import Collection

import torch

import train_grpo
import train_sft
from runtime.ending import run_script
from runtime.settings import AUTO, check, parse_config, read_yaml
from training.budgets import SHARE, with_budgets
from training.demand import CLAIM_TOKENS, USUAL_PREMISE, demand_of
from training.hours import Clock, Rates, lengths_of, nearest_rates, parts_of, read_rates, run_of, size_of
from training.memory import GB, WORKS, Phase, Plan
from training.settings import BUDGETS

STAGES = {"sft": train_sft.Config, "grpo": train_grpo.Config}
NUMBERS_OF_CARDS = (2, 1)  # the table is of the first
# In the time of one token of an update, forward and backward: one of a forward pass alone, and a sampled one. The last
# is an estimate: 24 sequences at once on an L4, where a step waits for its kernels' launches.
SCORED, SAMPLED = 1 / 3, 3.0


# --- the command line


def parse(argv: list[str]) -> tuple[train_sft.Config | train_grpo.Config, argparse.Namespace]:
    """The recipe, by the parser of the script that it is for, and plan.py's own options. ValueError as there."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        usage="plan.py --config FILE.yaml [--card_gb GB] [--hours] [--stage {sft,grpo}] [--field value ...]",
        epilog="Fields are those of train_sft.py or train_grpo.py, whose --help lists them.",
        allow_abbrev=False,
    )
    parser.error = _raise
    parser.add_argument("--config", metavar="FILE.yaml", help="recipe of train_sft.py or train_grpo.py")
    gb = "memory of one card in GB; default 0: that of the GPU present"
    parser.add_argument("--card_gb", type=float, default=0.0, metavar="GB", help=gb)
    parser.add_argument("--card-gb", type=float, default=argparse.SUPPRESS, dest="card_gb", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=tuple(STAGES), help="what the recipe is for, if its fields do not tell")
    parser.add_argument("--hours", action="store_true", help="say how long it takes, too")
    rates = "a card's rates, as in configs/rates; default: those there whose memory is nearest to the card's"
    parser.add_argument("--rates", metavar="FILE.yaml", help=rates)
    for what in ("prompt", "completion"):
        help = f"of a {what} on average; default 0: what the dataset says, if it is there"
        parser.add_argument(f"--{what}_tokens", type=int, default=0, metavar="N", help=help)
    alike = "rollout/distinct_share of a run like it; default 1: the samples of a prompt have nothing in common"
    parser.add_argument("--distinct_share", type=float, default=1.0, metavar="S", help=alike)
    own, fields = parser.parse_known_args(argv)
    for name in ("rates", "prompt_tokens", "completion_tokens", "distinct_share"):
        given = getattr(own, name)
        check(own.hours or given == parser.get_default(name), f"{name}: add --hours, which it is for")
        check(name == "rates" or given >= 0, f"{name}: must be 0 or more, got {given}")
    check(0 < own.distinct_share <= 1, f"distinct_share: must be above 0 and at most 1, got {own.distinct_share}")
    given = {word[2:].split("=")[0].replace("-", "_") for word in fields if word.startswith("--")}
    recipe = "a recipe, as in --config configs/sft_phi3.yaml, or a model, as in --stage sft --model tiny"
    check(own.config is not None or "model" in given, f"nothing to plan: name {recipe}")
    if own.config is not None:
        given |= read_yaml(own.config).keys()
        fields = ["--config", own.config, *fields]
    return parse_config(STAGES[own.stage or stage_of(given)], fields), own


def _raise(message: str):
    raise ValueError(message)


def stage_of(names: Collection[str]) -> str:
    """The stage that has more of the named fields: those that it lacks, its parser refuses. ValueError in a tie."""
    has = {stage: sum(f.name in names for f in dataclasses.fields(config)) for stage, config in STAGES.items()}
    first, second = sorted(has, key=has.get, reverse=True)
    unclear = "no field tells whether this is a recipe of train_sft.py or of train_grpo.py"
    check(has[first] > has[second], f"stage: {unclear}; add --stage sft or --stage grpo")
    return first


def card_bytes(card_gb: float) -> float:
    """Memory of a card of `card_gb` GB, or with 0 of the GPU that is present. ValueError if there is none."""
    good = math.isfinite(card_gb) and card_gb >= 0
    check(good, f"card_gb: must be above 0, or 0 for the card present, got {card_gb}")
    check(card_gb > 0 or torch.cuda.is_available(), "card_gb: no GPU here to ask; name its memory, as in --card_gb 11")
    return card_gb * GB or torch.cuda.get_device_properties(0).total_memory


# --- time


def evaluation_share(recipe: train_sft.Config | train_grpo.Config) -> float:
    """The share of a run's time that its evaluations take, as far as it goes by tokens: sampled, scored, trained on.

    Every completion is taken to be as long as `max_new_tokens` lets it be.
    """
    new, grpo = recipe.max_new_tokens, isinstance(recipe, train_grpo.Config)
    premise = USUAL_PREMISE / recipe.claims_per_prefix  # of each of the prompts that share it
    if grpo:
        samples = recipe.num_generations
        completion = (premise + CLAIM_TOKENS) / samples + new  # packed tokens
        passes = recipe.num_iterations + SCORED * (recipe.beta > 0)
        step = recipe.prompts_per_step * samples * (SAMPLED * new + passes * completion)
    else:
        step = recipe.batch_size * (premise + CLAIM_TOKENS + new)
    answer = SAMPLED * new + SCORED * (premise + CLAIM_TOKENS)
    evaluation = recipe.eval_rows * (answer if grpo else answer + SCORED * (premise + CLAIM_TOKENS + new))
    every = recipe.eval_steps or recipe.max_steps or math.inf  # SFT by epochs that is only evaluated at its end
    before = 1 / recipe.max_steps if grpo else 0.0  # GRPO evaluates what it starts from too
    in_step = (1 / every + before) * evaluation  # of an evaluation's cost, what falls to one step
    return in_step / (in_step + step)


# --- the print-out, in ASCII alone


def table(phases: list[Phase]) -> list[str]:
    """A column for each part of a step, of its phase with the highest total; a row for what the memory is for."""
    highest = {phase.name: phase for phase in sorted(phases, key=lambda phase: phase.total)}
    columns = [highest[part] for parts in WORKS.values() for part in parts if part in highest]

    def row(name: str, sizes: list[float]) -> str:
        return f"{name:<20}" + "".join(f"{size / GB:>12.2f}" for size in sizes)

    head = f"{'':<20}" + "".join(f"{phase.name:>12}" for phase in columns)
    body = [row(name, [phase.parts[name] for phase in columns]) for name in columns[0].parts]
    return [head, *body, row("total", [phase.total for phase in columns])]


def verdict(plan: Plan, cards: int, card: float) -> str:
    """Whether the run fits on each of `cards` cards of `card` bytes, and the largest settings with which it does."""
    peak = plan.peak(cards)
    fits = "fits" if peak.total <= card else "DOES NOT FIT"
    planned = {phase.setting: phase.tokens for phase in plan.phases(cards)}
    largest = [f"{x} {plan.largest(x, cards, card):,} ({tokens:,} planned)" for x, tokens in planned.items()]
    name = f"{cards} card{'s' * (cards > 1)}"
    return f"{name}: peak {peak.total / GB:.2f} GB in {peak.name}: {fits}; at most {' '.join(largest)}"


def report(recipe: train_sft.Config | train_grpo.Config, card: float, found: Collection[str]) -> list[str]:
    """The lines that are printed, for a card of `card` bytes; `found` are the sizes that were `auto`."""
    cards = NUMBERS_OF_CARDS[0]
    auto = [f"{name} {getattr(recipe, name):,}" for name in found]
    base, demand = demand_of(recipe)
    plan = Plan(demand)
    where = f"GB (1e9 bytes) on each of {cards} cards of {card / GB:.1f} GB"
    return [
        f"{base}, {demand.quantization}, half precision: {where}",
        *table(plan.phases(cards)),
        *(verdict(plan, cards, card) for cards in NUMBERS_OF_CARDS),
        f"auto: {', '.join(auto) or 'nothing'}, for {SHARE:.0%} of a card; {demand.sequences} sequences at once",
        f"planned: the setting, or for an update {recipe.claims_per_prefix} claims on the longest premise, if more",
        f"time: evaluations take {evaluation_share(recipe):.0%} of the run, by their tokens",
    ]


def hours(recipe: train_sft.Config | train_grpo.Config, rates: Rates, own: argparse.Namespace) -> list[str]:
    """The lines that --hours adds."""
    _, demand = demand_of(recipe)
    run = run_of(recipe)
    lengths = lengths_of(recipe, own.prompt_tokens, own.completion_tokens, own.distinct_share)
    clock = Clock(size_of(demand), rates, lengths)
    (parts, sampling), (alone, _) = (parts_of(run, clock, cards, demand.reference) for cards in NUMBERS_OF_CARDS)
    rows = [(part.name, part.tokens, part.seconds, one.seconds) for part, one in zip(parts, alone, strict=True)]
    rows.append(("total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    by = ", ".join(f"{1000 * seconds:.0f} by {name}" for name, seconds in sampling.seconds.items())
    return [
        f"hours of {run.steps:,} steps and {run.evaluations} evaluations on {rates.name} ({rates.source})",
        f"{'':<20}{'M tokens':>12}{'2 cards':>12}{'1 card':>12}",
        *(f"{name:<20}{n / 1e6:>12.1f}" + "".join(f"{s / 3600:>12.2f}" for s in seconds) for name, n, *seconds in rows),
        f"lengths: prompts of {lengths.prompt:,.0f} tokens, completions of {lengths.completion:,.0f}, "
        f"the longest of {lengths.longest:,.0f}; {lengths.distinct:.0%} of the sampled tokens are distinct",
        f"decoding on each of 2 cards: {sampling.sequences:.0f} sequences at a time; ms of a step: {by}",
    ]


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    sys.stdout.reconfigure(errors="backslashreplace")  # a model's directory may have letters that a terminal has not
    asked, own = parse(sys.argv[1:])
    card = card_bytes(own.card_gb)
    recipe = with_budgets(asked, NUMBERS_OF_CARDS[0], card)
    lines = report(recipe, card, [name for name in BUDGETS if getattr(asked, name) == AUTO])
    if own.hours:
        lines += hours(recipe, read_rates(own.rates) if own.rates else nearest_rates(card), own)
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main)
