"""Rows to batches: groups of rows with one premise, shuffled by a function of (seed, epoch), shared out to ranks."""

import math
import random
from collections.abc import Callable, Sequence


def premise_groups(premise_ids: Sequence[str], size: int, rng: random.Random | None = None) -> list[list[int]]:
    """Row indices grouped by premise, at most `size` a group; with `rng`, rows within a premise are shuffled first."""
    by_premise: dict[str, list[int]] = {}
    for index, premise in enumerate(premise_ids):
        by_premise.setdefault(premise, []).append(index)
    groups = []
    for rows in by_premise.values():
        if rng is not None:
            rng.shuffle(rows)
        groups += [rows[start : start + size] for start in range(0, len(rows), size)]
    return groups


def epoch_batches(
    premise_ids: Sequence[str],
    seed: int,
    epoch: int,
    claims_per_prefix: int,
    batch_size: int,
    sizes: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """The optimizer steps of an epoch, each a list of premise groups of row indices with `batch_size` rows together.

    A function of its arguments alone, so that a position in the data is just (epoch, step). A last step with fewer
    rows is kept: losses are normalised by what a step holds. A group is cut where a step is full. With `sizes`, of the
    rows, small ones come first.
    """
    rng = random.Random(f"{seed}-{epoch}")
    groups = premise_groups(premise_ids, claims_per_prefix, rng)
    rng.shuffle(groups)
    if sizes is not None:
        groups.sort(key=lambda group: sizes[group[0]])  # those of one size stay shuffled
    steps: list[list[list[int]]] = [[]]
    room = batch_size
    for group in groups:
        while group:
            if room == 0:
                steps.append([])
                room = batch_size
            steps[-1].append(group[:room])
            group, room = group[room:], room - len(steps[-1][-1])
    return steps


def steps_of_epoch(batches: int, epochs_left: float) -> int:
    """How many of an epoch's `batches` are taken where so many epochs are left, 0.5 say: one at least, and none that
    rounding adds."""
    return max(1, math.ceil(round(batches * min(1.0, epochs_left), 6)))


def share_of_rank(
    groups: list[list[int]], rank: int, world_size: int, cost: Callable[[list[int]], int] = len
) -> list[list[int]]:
    """The groups of a step that this rank computes: about equal in summed `cost`, every row on exactly one rank.

    Groups are split where there are fewer than ranks; a rank gets nothing only if there are fewer rows than ranks.
    """
    groups = [list(group) for group in groups]
    while len(groups) < world_size and max(map(len, groups)) > 1:
        longest = groups.pop(max(range(len(groups)), key=lambda g: len(groups[g])))
        groups += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
    shares: list[list[list[int]]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for weight, group in sorted(((cost(group), group) for group in groups), key=lambda pair: -pair[0]):
        least = loads.index(min(loads))
        shares[least].append(group)
        loads[least] += weight
    return shares[rank]
