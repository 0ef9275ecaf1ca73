"""Which rows go where: splits by premise, structure, size or the public recipe; balance; perturbed test sets.

Every choice is a function of the rows and the seed. A row is what sources.py and causal.rows.generate_rows make.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

from causal import wording
from causal.classes import Premise
from causal.rows import draw_names, perturb, premise_columns
from causal.vocabulary import RELATION_OF, draw
from dataset.sources import parse_row
from runtime.settings import check

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {**{name: name for name in SPLITS}, "dev": "validation", "valid": "validation"}
STRATEGIES = ("auto", "given", "premise", "structure", "size", "released")
BALANCE = ("label", "relation", "num_variables")
RELEASED_CAP = 1000  # rows of test, and of validation, for each number of variables


def relation_of(row: dict) -> str:
    """The relation that a row's template words."""
    return RELATION_OF[row["template"]]


def split_rows(
    rows: list[dict],
    strategy: str,
    fractions: dict[str, float],
    seed: int,
    test_sizes: Sequence[int] = (),
    train_sizes: Sequence[int] = (),
) -> dict[str, list[dict]]:
    """{split: rows}, in the source's order; `strategy` is one of STRATEGIES.

    given: by the rows' own `split`; auto: given if there is one, else premise. premise, structure: whole groups, each
    number of variables by itself, `fractions` of them to validation and test, but for `train_sizes`, which are all
    train. size: the rows of `test_sizes` variables are test, the others are shared out by structure. released:
    `released_recipe`. Raises ValueError for an empty split.
    """
    if strategy == "given" or (strategy == "auto" and any(row.get("split") for row in rows)):
        bare = [row["row"] for row in rows if not row.get("split")]
        check(not bare, f"split given: {', '.join(bare[:1])} has no column split; use split premise or structure")
        unknown = sorted({str(row["split"]) for row in rows} - SPLIT_NAMES.keys())
        check(not unknown, f"split given: unknown split {', '.join(unknown)}; known: {', '.join(SPLIT_NAMES)}")
        split_of, wanted = [SPLIT_NAMES[row["split"]] for row in rows], []
    elif strategy == "released":
        split_of, wanted = released_recipe(rows, seed), ["validation", "test"]
    else:
        if strategy == "size":
            found = sorted({row["num_variables"] for row in rows})
            mixed = set(test_sizes) <= set(found) and 0 < len(set(test_sizes)) < len(found)
            check(mixed, f"test_sizes: {list(test_sizes)}: name some but not all of the sizes {found}, for split size")
            fractions = fractions | {"test": 0.0}
        key = "premise_id" if strategy in ("auto", "premise") else "structure_id"
        whole = dict.fromkeys(test_sizes, "test") | dict.fromkeys(train_sizes, "train")
        shared = {row[key]: row["num_variables"] for row in rows if row["num_variables"] not in whole}
        assigned = assign_groups(shared, fractions, seed)
        split_of = [whole.get(row["num_variables"]) or assigned[row[key]] for row in rows]
        train = round(1 - fractions["validation"] - fractions["test"], 9)
        wanted = [name for name, share in {**fractions, "train": train}.items() if share]
    splits = {name: [row for row, of in zip(rows, split_of, strict=True) if of == name] for name in SPLITS}
    empty = ", ".join(name for name in wanted if not splits[name])
    check(not empty, f"split: no rows for {empty}; change validation_fraction and test_fraction, or use more data")
    return {name: part for name, part in splits.items() if part}


def assign_groups(sizes: dict[str, int], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """{group: split} for {group: number of variables}; every number of variables is shared out by itself."""
    assigned = {}
    for n in sorted(set(sizes.values())):
        groups = sorted(group for group, size in sizes.items() if size == n)
        random.Random(f"{seed}-{n}").shuffle(groups)
        counts = {split: round(len(groups) * fractions[split]) for split in ("test", "validation")}
        names = [name for name, count in counts.items() for _ in range(count)]
        assigned |= dict.fromkeys(groups, "train") | dict(zip(groups, names, strict=False))
    return assigned


def released_recipe(rows: list[dict], seed: int) -> list[str]:
    """The split of every row by the recipe of the public data: for each N the classes shuffled, then cut by rows.

    A tenth of the rows each, at most RELEASED_CAP, is test and validation; where that would be fewer than 10 rows
    (N = 2 and 3), half and half, nothing for train. A cut goes through a class, so that two splits may share a premise.
    """
    split_of = [""] * len(rows)
    for n in sorted({row["num_variables"] for row in rows}):
        premises: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            if row["num_variables"] == n:
                premises.setdefault(row["premise_id"], []).append(index)
        shuffled = random.Random(f"{seed}-{n}").sample(list(premises.values()), len(premises))
        order = [index for group in shuffled for index in group]
        part = min(RELEASED_CAP, len(order) // 10)
        ends = (part, 2 * part) if part >= 10 else (len(order) // 2, len(order))
        for position, index in enumerate(order):
            split_of[index] = "test" if position < ends[0] else "validation" if position < ends[1] else "train"
    return split_of


def mixed(
    rows: list[dict], cap: int, mix: Mapping[int, float], balance: Sequence[str], seed: str, repeat: bool = False
) -> list[dict]:
    """At most `cap` rows, in their order: of each number of variables its share in `mix`, or all that there are.

    The rows of a number are a `subsample`, with `balance`. With `repeat` they are followed by copies of those that are
    too few, until their share is filled; a copy is as a premise of its own, which gets other letters and words.
    """
    kept: set[int] = set()
    copies: list[dict] = []
    ends = [0, *(round(cap * end / sum(mix.values())) for end in accumulate(mix.values()))]
    for n, start, end in zip(mix, ends, ends[1:], strict=False):
        of_size, room = [row for row in rows if row["num_variables"] == n], end - start
        if of_size and room:
            chosen = subsample(of_size, room, balance, f"{seed}-{n}")
            kept |= {id(row) for row in chosen}
            for k in range(len(chosen), room if repeat else 0):
                number, row = k // len(chosen), chosen[k % len(chosen)]
                copies.append(row | {name: f"{row[name]}, copy {number}" for name in ("row", "premise_id")})
    return [row for row in rows if id(row) in kept] + copies


def subsample(rows: list[dict], cap: int | None, balance: Sequence[str], seed: str) -> list[dict]:
    """At most `cap` rows at random, in their order, balanced over the columns named, of BALANCE.

    label: exactly as many rows of label 0 as of label 1. relation, num_variables: the cells of these columns get equal
    numbers; with a cap, a small cell gives all it has and the others share what it leaves. With label too, every cell
    is balanced by itself. Raises ValueError if no cell has both labels, or if the cap is too small.
    """
    if cap is None and not balance:
        return rows
    by_label, columns = "label" in balance, [column for column in balance if column != "label"]
    cells: dict[tuple, tuple[list[int], ...]] = {}
    for index, row in enumerate(rows):
        key = tuple(relation_of(row) if column == "relation" else row[column] for column in columns)
        members = cells.setdefault(key, ([], []) if by_label else ([],))
        members[row["label"] if by_label else 0].append(index)
    classes = 1 + by_label
    rooms = {key: min(map(len, members)) for key, members in sorted(cells.items())}
    check(any(rooms.values()), "balance label: train has one class only; leave label out or use more data")
    check(cap is None or cap >= classes, "max_train_samples: balance label needs 2 or more")
    smallest = min(room for room in rooms.values() if room)
    left = len(rows) if cap is None else cap // classes
    sizes = {}
    for place, key in enumerate(sorted(rooms, key=rooms.get)):  # the smallest cell first: what it leaves is shared
        room = min(rooms[key], smallest) if columns and cap is None else rooms[key]
        sizes[key] = min(room, left // (len(rooms) - place))
        left -= sizes[key]
    rng = random.Random(seed)
    kept = (index for key in rooms for members in cells[key] for index in rng.sample(members, sizes[key]))
    return [rows[index] for index in sorted(kept)]


def label_weights(rows: list[dict]) -> list[float] | None:
    """[weight of No, weight of Yes], inverse to the classes' shares, mean 1 over the rows; None if a class is missing.

    What `class_weights` of the training scripts takes: with them a constant answer is worth nothing.
    """
    ones = sum(row["label"] for row in rows)
    if ones in (0, len(rows)):
        return None
    return [round(len(rows) / (2 * count), 4) for count in (len(rows) - ones, ones)]


def reworded(rows: list[dict], wordings: Sequence[str], seed: int) -> list[dict]:
    """The rows in other words, drawn of `wordings` (vocabulary.DRAWN_WORDINGS): hypotheses for every row by itself, how
    a premise is told and what its variables are called for all rows of it."""
    changed = []
    for row in rows:
        parsed, claim = wording.parse_claim(row["premise"], row["hypothesis"])
        premise, text = _retold(parsed, row["premise"], tuple(wordings), f"{seed}-{row['premise_id']}")
        name = draw("hypotheses", wordings, random.Random(f"{seed}-{row['row']}"))
        name = name or wording.wording_of(row["hypothesis"], parsed.variables)
        hypothesis = wording.write_hypothesis(claim, premise.variables, row["template"], name)
        new = premise_columns(premise, text) if text != row["premise"] else {}
        changed.append(row | new | {"hypothesis": hypothesis, "input": wording.write_input(text, hypothesis)})
    return changed


@lru_cache(maxsize=1024)
def _retold(premise: Premise, text: str, wordings: tuple[str, ...], key: str) -> tuple[Premise, str]:
    """A premise under the names, and its text in the telling, that are drawn for it; as they are if none is."""
    rng = random.Random(f"{key}-premise")
    subject, telling = draw("names", wordings, rng), draw("story", wordings, rng)
    if subject not in (None, "released"):
        premise = replace(premise, variables=draw_names(subject, len(premise.variables), rng))
    elif telling is None:
        return premise, text
    return premise, wording.write_premise(premise, telling=telling or wording.telling_of(text))


def perturbed(rows: list[dict], kind: str, seed: int) -> list[dict]:
    """The rows in other words, letters or order (`causal.rows.perturb`), in the same order and with the same labels.

    Each is read again from its new text; AssertionError if the oracle's label of that is another.
    """
    changed = []
    for row in rows:
        parsed = wording.parse_claim(row["premise"], row["hypothesis"])
        words = wording.wording_of(row["hypothesis"], parsed[0].variables), wording.telling_of(row["premise"])
        texts = perturb(*parsed, row["template"], kind, f"{seed}-{row['premise_id']}", *words)
        new = parse_row({"input": wording.write_input(*texts)})
        assert new["exact"] == row["exact"], f"{row['row']}: {kind} changed the label"
        new = {column: new[column] for column in ("input", "premise", "hypothesis", "premise_id", "edges", "template")}
        if relation_of(row) == "indirect":  # its two wordings mean the same, and the paraphrase is one for both
            new["template"] = row["template"]
        changed.append(row | new)
    return changed


def num_alike(rows: list[dict], changed: list[dict]) -> int:
    """How many rows have kept their text: with one independence, say, there is no other order."""
    return sum(row["input"] == new["input"] for row, new in zip(rows, changed, strict=True))
