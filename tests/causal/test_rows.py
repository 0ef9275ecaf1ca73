"""Rows: their columns, relabelling, perturbations, and settings that are out of range."""

import re
from pathlib import Path

import pytest
from brute_force import premises_and_claims, rows, statements
from hypothesis import given, settings
from hypothesis import strategies as st

from causal import wording as c
from causal.claims import Claim, exact_label, relabel_claim
from causal.classes import LETTERS, Premise, UnsatisfiableError, premise_of, relabel_premise, structure_id
from causal.enumeration import labelled_premises, representatives
from causal.graphs import Corr2CauseError, renaming, renamings
from causal.reasoning import STYLES, trace
from causal.rows import LETTERINGS, PERTURBATIONS, generate_rows, perturb, render
from causal.vocabulary import HELD_OUT, KINDS, TELLINGS, TRAINED

GOOD = (
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B."
)


def test_rows_have_the_columns_and_templates_of_the_release():
    columns = {"input", "premise", "hypothesis", "premise_id", "structure_id", "label", "given_label", "exact"}
    for row in rows(4):
        assert set(row) == columns | {"num_variables", "template", "edges"}
        assert row["input"] == f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}"
        first, last = re.findall(r"\b[A-D]\b", row["hypothesis"])
        if row["template"] not in ("non-parent ancestor", "non-child descendant"):
            assert (first < last) == (row["template"] != "child")
        assert set(row["edges"]) == {"directed", "undirected"}
    assert {row["template"] for row in rows(4)} == set(c.TEMPLATES)
    assert len({row["structure_id"] for row in rows(4)}) == len({row["premise_id"] for row in rows(4)}) == 20


def test_released_order_never_lets_a_later_letter_cause_an_earlier_one_and_relabelling_does():
    def backward(generated):
        return sum(row["label"] for row in generated if row["template"] == "child")

    assert backward(rows(4)) == 0
    assert backward(generate_rows(4, relabel_seed=0, relabelings=3)) > 0


def test_relabelling_is_deterministic_distinct_and_exhaustive():
    first, again = ([*generate_rows(4, relabel_seed=7, relabelings=4)] for _ in range(2))
    assert first == again
    assert first != [*generate_rows(4, relabel_seed=8, relabelings=4)]
    per_structure = {}
    for row in first:
        per_structure.setdefault(row["structure_id"], set()).add(row["premise"])
    assert len(per_structure) == 20
    versions = {structure_id(premise_of(dag)): len(labelled_premises(dag, 0, 99)) for dag in representatives(4)}
    assert {key: len(texts) for key, texts in per_structure.items()} == {k: min(4, v) for k, v in versions.items()}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: list(generate_rows(7)), "num_variables 7 has too many classes to list; set structures"),
        (lambda: list(generate_rows(1)), "num_variables is 1"),
        (lambda: list(generate_rows(11)), "num_variables is 11"),
        (
            lambda: perturb(c.parse_premise(GOOD), Claim("direct", 0, 1), "parent", "noise", ""),
            "perturbation 'noise'",
        ),
        (lambda: list(generate_rows(3, relabelings=2)), "relabel_seed"),
        (lambda: list(generate_rows(3, relabel_seed=1, relabelings=0)), "relabelings is 0"),
        (lambda: c.write_hypothesis(Claim("direct", 0, 1), "AB", "has_collider"), "does not word a direct claim"),
        (lambda: trace(c.parse_premise(GOOD), Claim("direct", 0, 1), style="verbose"), "trace style 'verbose'"),
    ],
)
def test_settings_out_of_range_are_named(call, message):
    with pytest.raises(Corr2CauseError, match=message):
        call()


def test_rows_of_ten_variables_in_random_letters():
    generated = list(generate_rows(10, relabel_seed=1, relabelings=2, structures=4, seed=1))
    assert len(generated) == 4 * 2 * 270 and len({row["premise"] for row in generated}) == 8
    assert len({row["structure_id"] for row in generated}) == 4
    for row in generated[::199]:
        premise, claim = c.parse_input(row["input"])
        assert exact_label(premise, claim) == row["label"] and structure_id(premise) == row["structure_id"]
    nothing = labelled_premises((0,) * 10, relabel_seed=0, relabelings=3)
    assert len(nothing) == 1


def test_a_renaming_is_the_one_of_its_number_in_the_list():
    assert [renaming(5, k) for k in range(120)] == renamings(5)


# ---------------------------------------------------------------- perturbations


@pytest.mark.parametrize("kind", PERTURBATIONS)
@settings(max_examples=80)
@given(case=premises_and_claims(), key=st.text(max_size=3))
def test_perturbations_keep_the_label(kind, case, key):
    premise, claim, template = case
    text, hypothesis = perturb(premise, claim, template, kind, key)
    assert (text, hypothesis) == perturb(premise, claim, template, kind, key)
    changed = c.parse_premise(text)
    read = c.parse_hypothesis(hypothesis, changed.variables)
    assert exact_label(changed, read) == exact_label(premise, claim)
    assert structure_id(changed) == structure_id(premise)
    assert (changed.variables == premise.variables) != (kind in ("refactorization", "names", "natural"))
    if kind != "relabeling":
        assert (changed.independences, read) == (premise.independences, claim)


def test_perturbations_change_what_they_are_named_for():
    premise = premise_of((0, 1, 2, 4))  # A -> B -> C -> D
    text, claim = c.write_premise(premise), Claim("direct", 0, 1)
    changed = {kind: perturb(premise, claim, "parent", kind, "key") for kind in PERTURBATIONS}
    assert changed["paraphrase"] == (text, "A directly affects B.")
    assert changed["recombined"] == (text, "A directly influences B.")
    assert changed["refactorization"][1] == "Z directly causes Y." and "Z, Y, X and W." in changed["refactorization"][0]
    assert changed["relabeling"][0] != text and "A, B, C and D." in changed["relabeling"][0]
    reordered, hypothesis = changed["reordering"]
    assert hypothesis == "A directly causes B." and reordered != text
    assert sorted(reordered.split(". ")) != reordered.split(". ")
    assert statements(reordered) == statements(text)
    keys = {perturb(premise, claim, "parent", "relabeling", str(key))[0] for key in range(30)}
    assert len(keys) > 5


def test_the_examples_of_the_page_are_what_is_written():
    """docs/data.md: each kind of natural text, on the collider A -> C <- B; "…" is what is left out."""
    premise, claim = c.parse_premise(GOOD), Claim("direct", 0, 1)
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(names|story|hypotheses)`.* \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert {kind for kind, *_ in found} == set(KINDS)
    for kind, trained, held_out, example in found:
        assert tuple(re.findall(r"`(\w+)`", trained)) == TRAINED[kind]
        assert tuple(re.findall(r"`(\w+)`", held_out)) == HELD_OUT[kind]
        written = (" ".join(perturb(premise, claim, "parent", kind, str(key))) for key in range(2000))
        pattern = ".*".join(map(re.escape, example.split("…")))
        assert any(re.search(pattern, text) for text in written), example


# ---------------------------------------------------------------- fresh letters and words


@settings(max_examples=80)
@given(case=premises_and_claims(), rng=st.randoms(use_true_random=False))
def test_a_rendered_row_is_what_the_slow_way_writes(case, rng):
    premise, claim, template = case
    n = len(premise.variables)
    order, wording, style = rng.sample(range(n), n), rng.choice([*c.WORDINGS]), rng.choice(STYLES)
    variables, telling = rng.choice([*LETTERINGS.values(), *KINDS["names"].values()])[:n], rng.choice([*TELLINGS])
    text, hypothesis, reasons = render(premise, claim, template, order, variables, wording, style, telling)
    written = Premise(variables, relabel_premise(premise, order).independences)
    asked = relabel_claim(claim, order)
    said = c.write_hypothesis(asked, variables, template, wording)
    assert (text, hypothesis) == (c.write_premise(written, telling=telling), said)
    assert reasons == trace(*c.parse_claim(text, hypothesis), style)


def test_letterings_are_those_of_the_rows_and_of_the_refactorization():
    assert [letters[:3] for letters in LETTERINGS.values()] == [("A", "B", "C"), ("Z", "Y", "X")]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"style": "verbose"}, "trace style 'verbose'"),
        ({"wording": "plain"}, "wording 'plain' is not one of released"),
        ({"telling": "plain"}, "telling 'plain' is not one of released"),
    ],
)
def test_a_row_is_not_rendered_in_an_unknown_way(options, message):
    with pytest.raises(Corr2CauseError, match=message):
        render(c.parse_premise(GOOD), Claim("direct", 0, 1), "parent", (0, 1, 2), "ABC", **options)


def test_no_row_is_rendered_of_a_premise_that_no_graph_satisfies():
    premise = Premise(LETTERS[:3], frozenset({(0, 1, 4), (0, 2, 2), (1, 2, 1)}))
    with pytest.raises(UnsatisfiableError):
        render(premise, Claim("direct", 0, 1), "parent", (0, 1, 2), "ABC")
