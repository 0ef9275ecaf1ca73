"""Batches by premise: every row once, a function of (seed, epoch), fair shares."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.batches import epoch_batches, premise_groups, share_of_rank

premise_lists = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60)
group_lists = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def numbered(sizes: list[int]) -> list[list[int]]:
    """Groups of those sizes that hold 0, 1, 2, ..."""
    rows = iter(range(sum(sizes)))
    return [[next(rows) for _ in range(size)] for size in sizes]


def flat(groups) -> list[int]:
    return [row for group in groups for row in group]


@settings(max_examples=100)
@given(premise_lists, st.integers(1, 8), st.booleans())
def test_groups_hold_one_premise_and_every_row_once(premises, size, shuffled):
    groups = premise_groups(premises, size, random.Random(0) if shuffled else None)
    assert sorted(flat(groups)) == list(range(len(premises)))
    for group in groups:
        assert 1 <= len(group) <= size and len({premises[row] for row in group}) == 1
        assert shuffled or group == sorted(group)
    of = Counter(premises[group[0]] for group in groups)
    assert all(of[p] == -(-count // size) for p, count in Counter(premises).items()), "as few groups as fit"


@settings(max_examples=100)
@given(premise_lists, st.integers(1, 8), st.integers(1, 20), st.integers(0, 3))
def test_epochs_hold_every_row_once_in_full_steps(premises, size, batch_size, seed):
    steps = epoch_batches(premises, seed, 0, size, batch_size)
    assert sorted(row for step in steps for row in flat(step)) == list(range(len(premises)))
    lengths = [len(flat(step)) for step in steps]
    assert all(length == batch_size for length in lengths[:-1]) and 1 <= lengths[-1] <= batch_size
    for group in (group for step in steps for group in step):
        assert 1 <= len(group) <= size and len({premises[row] for row in group}) == 1
    assert steps == epoch_batches(premises, seed, 0, size, batch_size)


def test_order_depends_on_seed_and_epoch():
    premises = [f"p{i // 6}" for i in range(60)]
    orders = {str(epoch_batches(premises, seed, epoch, 4, 8)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_small_systems_come_first_where_sizes_are_given():
    premises = [f"{n}-{k}" for k in range(6) for n in (5, 3, 4)]
    sizes = [int(premise[0]) for premise in premises]
    steps = epoch_batches(premises, 0, 0, 1, 4, sizes)
    order = [row for step in steps for group in step for row in group]
    assert sorted(order) == list(range(18))
    assert [sizes[row] for row in order] == [3] * 6 + [4] * 6 + [5] * 6
    again = [row for step in epoch_batches(premises, 1, 0, 1, 4, sizes) for group in step for row in group]
    assert again != order


def test_a_premise_is_not_always_cut_at_the_same_rows():
    premises = ["p"] * 8
    assert len({str(sorted(map(sorted, epoch_batches(premises, 0, e, 4, 8)[0]))) for e in range(5)}) > 1


@settings(max_examples=150)
@given(group_lists, st.integers(1, 6))
def test_every_row_is_on_one_rank_and_shares_are_fair(sizes, world_size):
    groups = numbered(sizes)
    shares = [share_of_rank(groups, rank, world_size) for rank in range(world_size)]
    assert sorted(row for share in shares for row in flat(share)) == list(range(sum(sizes)))
    whole = {row: g for g, group in enumerate(groups) for row in group}
    for group in (group for share in shares for group in share):
        assert len({whole[row] for row in group}) == 1, "groups are split, never merged"
    counts = [len(flat(share)) for share in shares]
    assert max(counts) - min(counts) <= max(sizes)
    assert min(counts) >= 1 or sum(sizes) < world_size
    assert groups == numbered(sizes), "the caller's groups stay as they are"


@settings(max_examples=100)
@given(group_lists, st.integers(1, 4))
def test_shares_are_fair_in_what_a_group_costs(sizes, world_size):
    groups = numbered(sizes)
    cost = lambda group: 100 // len(group)  # noqa: E731  the smallest groups cost most
    shares = [share_of_rank(groups, rank, world_size, cost) for rank in range(world_size)]
    assert sorted(row for share in shares for row in flat(share)) == list(range(sum(sizes)))
    loads = [sum(map(cost, share)) for share in shares]
    assert max(loads) - min(loads) <= max(cost(group) for share in shares for group in share)


def test_nothing_to_share_for_more_ranks_than_rows():
    shares = [share_of_rank([[5, 6]], rank, 4) for rank in range(4)]
    assert sorted(map(len, shares)) == [0, 0, 1, 1] and sorted(row for share in shares for row in flat(share)) == [5, 6]
