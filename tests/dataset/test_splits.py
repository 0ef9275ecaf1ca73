"""Splits, balance and perturbed sets: what they promise, on generated rows."""

from collections import Counter

import pytest
from brute_force import rows

from causal import vocabulary as v
from causal import wording as c
from causal.classes import structure_id
from causal.rows import PERTURBATIONS, generate_rows, premise_id
from dataset.splits import (
    BALANCE,
    label_weights,
    mixed,
    perturbed,
    relation_of,
    released_recipe,
    reworded,
    split_rows,
    subsample,
)

FRACTIONS = {"validation": 0.1, "test": 0.1}


def named(*sizes):
    return [row | {"row": f"row {i}"} for i, row in enumerate(row for n in sizes for row in rows(n))]


@pytest.mark.parametrize("seed", range(3))
def test_size_tests_on_what_training_never_has(seed):
    splits = split_rows(named(3, 4, 5), "size", {"validation": 0.2, "test": 0.5}, seed, test_sizes=(5,))
    assert {name: {row["num_variables"] for row in part} for name, part in splits.items()} == {
        "train": {3, 4},
        "validation": {3, 4},
        "test": {5},
    }
    assert len(splits["test"]) == 8520
    structures = {name: {row["structure_id"] for row in part} for name, part in splits.items()}
    assert not structures["train"] & structures["validation"]


@pytest.mark.parametrize(("strategy", "test_sizes"), [("structure", ()), ("premise", ()), ("size", (5,))])
def test_train_sizes_are_all_train_and_the_others_are_where_they_were(strategy, test_sizes):
    rows, fractions = named(2, 3, 4, 5), {"validation": 0.2, "test": 0.3}
    before, after = (split_rows(rows, strategy, fractions, 0, test_sizes, sizes) for sizes in ((), (2, 3)))
    assert {row["row"] for row in rows if row["num_variables"] < 4} <= {row["row"] for row in after["train"]}
    for name in ("validation", "test"):
        assert after[name] == [row for row in before[name] if row["num_variables"] > 3]
        assert len(after[name]) < len(before[name]) or (name, strategy) == ("test", "size")


def test_released_recipe_has_the_published_sizes():
    """Per N: half and half where a tenth is fewer than 10 rows, else a tenth, at most 1,000; 576 of 720 for train."""
    everything = named(2, 3, 4, 5)
    split_of = released_recipe(everything, seed=0)
    counts = Counter((row["num_variables"], split) for row, split in zip(everything, split_of, strict=True))
    assert counts == {
        (2, "test"): 6, (2, "validation"): 6,
        (3, "test"): 45, (3, "validation"): 45,
        (4, "test"): 72, (4, "validation"): 72, (4, "train"): 576,
        (5, "test"): 852, (5, "validation"): 852, (5, "train"): 6816,
    }  # fmt: skip
    assert split_of == released_recipe(everything, 0) != released_recipe(everything, 1)
    many = [{"num_variables": 6, "premise_id": str(i // 90)} for i in range(198_630)]
    assert Counter(released_recipe(many, 0)) == {"test": 1000, "validation": 1000, "train": 196_630}


def test_released_recipe_shuffles_classes_and_cuts_few():
    everything = named(5)
    split_of = released_recipe(everything, seed=0)
    splits_of = {}
    for row, split in zip(everything, split_of, strict=True):
        splits_of.setdefault(row["premise_id"], set()).add(split)
    assert sum(len(splits) > 1 for splits in splits_of.values()) <= 2
    test = [i for i, row in enumerate(everything) if splits_of[row["premise_id"]] == {"test"}]
    assert max(test) - min(test) > 4000, "classes in the source's order"


def cells_of(chosen, columns):
    return Counter(tuple(relation_of(r) if column == "relation" else r[column] for column in columns) for r in chosen)


@pytest.mark.parametrize("cap", [None, 120, 1000])
def test_relations_and_sizes_are_balanced_as_evenly_as_they_can_be(cap):
    chosen = subsample(named(3, 4, 5), cap, ["relation", "num_variables"], "0")
    counts = cells_of(chosen, ("relation", "num_variables"))
    assert len(counts) == 12
    if cap is None:
        assert set(counts.values()) == {15}  # the smallest cell: colliders of three variables
    elif cap == 120:
        assert set(counts.values()) == {10}
    else:  # two cells of N = 3 have 15 rows, two have 30; the other eight share the rest
        small = sorted(counts.values())[:4]
        assert small == [15, 15, 30, 30] and sum(counts.values()) <= 1000
        assert max(counts.values()) - sorted(counts.values())[4] <= 1 and sum(counts.values()) >= 990


def test_label_is_balanced_within_every_cell():
    everything = named(4, 5)
    chosen = subsample(everything, None, list(BALANCE), "0")
    by_cell = cells_of(chosen, ("relation", "num_variables", "label"))
    assert set(by_cell.values()) == {3}  # the three confounders of four variables
    chosen = subsample(everything, 400, ["label", "relation"], "0")
    by_cell = cells_of(chosen, ("relation", "label"))
    assert len(by_cell) == 8 and set(by_cell.values()) == {50}
    order = {id(row): i for i, row in enumerate(everything)}
    assert [order[id(row)] for row in chosen] == sorted(order[id(row)] for row in chosen)


def test_label_weights_make_a_constant_answer_worth_nothing():
    chosen = named(4)
    no, yes = label_weights(chosen)
    ones = sum(row["label"] for row in chosen)
    assert yes * ones == pytest.approx(no * (len(chosen) - ones), rel=1e-3)
    assert yes * ones + no * (len(chosen) - ones) == pytest.approx(len(chosen), rel=1e-3)
    assert label_weights([row for row in chosen if row["label"]]) is None


@pytest.mark.parametrize("cap", [3, 10, 101, 103])
def test_shares_of_a_mix_add_up_to_its_cap(cap):
    rows = named(2, 3, 4)
    for mix in ({2: 0.5, 3: 0.5}, {2: 0.5, 3: 0.3, 4: 0.2}, {2: 1, 3: 1, 4: 1}):
        chosen = mixed(rows, cap, mix, [], "0", repeat=True)
        assert len(chosen) == cap
        for n, share in mix.items():
            count = sum(row["num_variables"] == n for row in chosen)
            assert abs(count - cap * share / sum(mix.values())) <= 1


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_perturbed_rows_keep_order_labels_and_structure(kind):
    source = named(4)[::5]
    changed = perturbed(source, kind, seed=0)
    for old, new in zip(source, changed, strict=True):
        kept = ("row", "label", "given_label", "exact", "structure_id", "num_variables")
        assert {key: old[key] for key in kept} == {key: new[key] for key in kept}
        assert new["input"] == c.write_input(new["premise"], new["hypothesis"])
        assert new["premise_id"] == premise_id(c.parse_premise(new["premise"]))
        assert relation_of(new) == relation_of(old)
        assert (new["premise"] == old["premise"]) or kind not in ("paraphrase", "recombined", "hypotheses")
        if relation_of(old) == "indirect":
            assert new["template"] == old["template"]
    assert sum(old["input"] != new["input"] for old, new in zip(source, changed, strict=True)) > 0.6 * len(source)
    assert len({row["premise_id"] for row in changed}) <= len({row["premise_id"] for row in source})


def test_a_wrong_label_is_kept_by_perturbation():
    wrong = [row | {"row": "x"} for row in generate_rows(4, labels="released") if row["label"] != row["exact"]]
    for kind in PERTURBATIONS:
        assert [row["label"] for row in perturbed(wrong, kind, 0)] == [row["label"] for row in wrong]


def test_unknown_splits_of_a_file_are_named():
    records = [row | {"split": "holdout"} for row in named(3)]
    with pytest.raises(ValueError, match="unknown split holdout"):
        split_rows(records, "auto", FRACTIONS, 0)


def words_of(row):
    """What a row is told in: its wording, its telling, and the subject of its names."""
    names = c.parse_premise(row["premise"]).variables
    subject = next((subject for subject, known in v.NAMES.items() if set(names) <= set(known)), "released")
    return c.wording_of(row["hypothesis"], names), c.telling_of(row["premise"]), subject


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_rows_in_other_words_keep_them_where_letters_change(kind):
    names = ["effect", "arrow", "ledger", "health"]
    rows = reworded(named(3), names, seed=0)
    assert {words_of(row)[0] for row in rows} == {"effect", "arrow"}
    for row, original in zip(rows, named(3), strict=True):
        (premise, claim), (first, asked) = c.parse_input(row["input"]), c.parse_input(original["input"])
        assert (premise.independences, claim) == (first.independences, asked)
        assert words_of(row)[1:] == ("ledger", "health")
    may_be = {kind: [kind], "hypotheses": v.HELD_OUT_WORDINGS, "natural": v.HELD_OUT_WORDINGS}
    for row, changed in zip(rows, perturbed(rows, kind, 0), strict=True):
        (wording, telling, subject), (before, *_) = words_of(changed), words_of(row)
        assert wording in (may_be[kind] if kind in (*v.WORDINGS, "hypotheses", "natural") else [before])
        assert telling in (v.HELD_OUT_TELLINGS if kind in ("story", "natural") else ["ledger"])
        named_anew = {"names": v.HELD_OUT_NAMES, "natural": v.HELD_OUT_NAMES, "refactorization": ["released"]}
        assert subject in named_anew.get(kind, ["health"])


def test_rows_are_in_all_the_words_that_are_named_and_a_premise_in_one():
    kinds = {"hypotheses": 0, "story": 1, "names": 2}
    rows = reworded(named(4, 5)[::7], ["released", *kinds], seed=0)
    for kind, place in kinds.items():
        assert {words_of(row)[place] for row in rows} == {"released", *v.TRAINED[kind]}
    of_premise = {}
    for row in rows:
        of_premise.setdefault(row["premise_id"], set()).add(row["premise"])
        assert row["premise_id"] == premise_id(c.parse_premise(row["premise"]))
        assert c.parse_input(row["input"]) == c.parse_claim(row["premise"], row["hypothesis"])
    assert set(map(len, of_premise.values())) == {1} and len(of_premise) == 162
    explicit = reworded(named(3), [v.HELD_OUT_NAMES[0], v.HELD_OUT_TELLINGS[0]], seed=0)
    assert {words_of(row)[1:] for row in explicit} == {(v.HELD_OUT_TELLINGS[0], v.HELD_OUT_NAMES[0])}


def test_no_structure_is_in_two_splits_in_other_words():
    """A premise is what it says: its story has its identity, and under other names it is the same structure."""
    parts = [named(4), *(perturbed(named(4), kind, 0) for kind in ("story", "names", "natural"))]
    everything = [row | {"row": f"row {k}"} for k, row in enumerate(row for part in parts for row in part)]
    story, names = parts[1], parts[2]
    assert [row["premise_id"] for row in story] == [row["premise_id"] for row in parts[0]]
    assert {row["premise_id"] for row in names}.isdisjoint(row["premise_id"] for row in parts[0])
    splits = split_rows(everything, "structure", {"validation": 0.2, "test": 0.2}, 0)
    found = {name: {structure_id(c.parse_premise(row["premise"])) for row in part} for name, part in splits.items()}
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 20
    splits = split_rows(everything[: 2 * len(story)], "premise", {"validation": 0.2, "test": 0.2}, 0)
    found = {name: {row["structure_id"] for row in part} for name, part in splits.items()}
    assert sum(map(len, found.values())) == 20
