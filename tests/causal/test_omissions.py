"""Premises that list too little: what is labelled all the same, what is refused, and what is said to be missing."""

import random
from collections import defaultdict
from itertools import combinations

import pytest
from brute_force import LETTERS, all_claims, as_dag, brute_force_classes, nx_d_separations, nx_graph, nx_holds

from causal import rows as r
from causal import wording as c
from causal.claims import exact_label, holds
from causal.classes import (
    Premise,
    UnderdeterminedError,
    UnsatisfiableError,
    markov_equivalence_class,
    pdag,
    premise_of,
    some_member,
    structure_id,
    undecided_pairs,
)
from causal.enumeration import MAX_DRAWS, _drawn_classes, labelled_premises, representatives
from causal.graphs import Corr2CauseError, ancestral_sets, d_separations
from causal.omissions import MAX_PAIRS, omission, unsaid_limit
from causal.reasoning import check_trace, trace


def limited(independences, limit):
    return frozenset(stated for stated in independences if stated[2].bit_count() <= limit)


def every_dag(n):
    """All labelled DAGs."""
    dags = {tuple(0 for _ in range(n))}
    for i, j in combinations(range(n), 2):
        dags |= {tuple(mask | (v == b) << a for v, mask in enumerate(dag)) for dag in dags for a, b in ((i, j), (j, i))}
    return [dag for dag in dags if ancestral_sets(dag) is not None]


def assert_labels_follow(groups, n, limit):
    """`groups`: what sets up to the limit say, and all graphs of which it is so. (premises refused, accepted)"""
    counts = [0, 0]
    for independences, dags in groups.items():
        premise = Premise(tuple(LETTERS[:n]), independences, limit)
        try:
            labels = {claim: exact_label(premise, claim) for claim in all_claims(n)}
        except UnderdeterminedError:
            counts[0] += 1
            continue
        counts[1] += 1
        assert set(markov_equivalence_class(premise)) == set(dags)
        for claim, label in labels.items():
            assert label == all(holds(dag, claim) for dag in dags)
    return counts


@pytest.mark.parametrize("n, limit, refused", [(3, 0, 1), (4, 0, 23), (4, 1, 19)])
def test_what_is_labelled_follows_from_the_sets_that_are_listed(n, limit, refused):
    """Against all labelled graphs. For so few variables no premise is refused that has one class."""
    groups, classes = defaultdict(list), defaultdict(int)
    for separations, graphs in brute_force_classes(n).items():
        groups[limited(separations, limit)] += map(as_dag, graphs)
        classes[limited(separations, limit)] += 1
    assert assert_labels_follow(groups, n, limit) == [refused, len(groups) - refused]
    assert refused == sum(number > 1 for number in classes.values())


@pytest.mark.slow
@pytest.mark.parametrize("limit, accepted", [(0, 111), (1, 1886), (2, 6261)])
def test_what_is_labelled_of_five_variables_follows_from_the_sets_that_are_listed(limit, accepted):
    groups = defaultdict(list)
    for dag in every_dag(5):
        groups[d_separations(dag, limit)].append(dag)
    assert assert_labels_follow(groups, 5, limit)[1] == accepted


def test_rows_with_small_sets_have_the_labels_of_all_sets():
    """They are of the same class, and are read from their text; what larger sets say is not in it."""
    for n, limit in ((5, 1), (7, 2), (8, 2)):
        for dag in representatives(n, 2, seed=2, max_given=limit):
            (premise,) = labelled_premises(dag, relabel_seed=1, max_given=limit)
            assert d_separations(some_member(pdag(premise)), limit) == premise.independences
            for row in list(r.rows_of_premise(premise))[::11]:
                read, claim = c.parse_input(row["input"])
                assert read == premise and f" given at most {limit} of the others are" in row["premise"]
                assert row["label"] == exact_label(premise_of(some_member(pdag(premise))), claim)
                assert row["structure_id"] == structure_id(premise_of(dag))
                assert check_trace(trace(read, claim), read, claim).complete
                texts = r.perturb(read, claim, row["template"], "refactorization", "k")
                changed, same = c.parse_claim(*texts)
                assert (changed.independences, changed.max_given, same) == (read.independences, limit, claim)
                drawn = r.render(read, claim, row["template"], range(n), read.variables)
                assert c.parse_premise(drawn.premise) == read


def said_to_be_limited(dag, limit):
    """All independences of a graph, in a premise that says that it has those of small sets alone."""
    text = c.write_premise(premise_of(dag))
    return text.replace("variables are as", f"variables given at most {limit} of the others are as")


def test_a_limit_that_leaves_out_no_set_is_none():
    dag = (0, 1, 2, 4)
    assert premise_of(dag, 2) == premise_of(dag) != premise_of(dag, 1)
    assert c.parse_premise(said_to_be_limited(dag, 2)) == premise_of(dag)


def test_what_small_sets_leave_open_is_refused_by_the_pairs_that_lack_a_set():
    """A -> B -> C and A -> D -> C need {B, D} to part A and C: with less than that all could be adjacent."""
    dag = (0, 1, 10, 1)
    with pytest.raises(UnderdeterminedError, match="open whether A and B .and 4 more pairs. are adjacent"):
        pdag(premise_of(dag, 1))
    assert (0, 2) in undecided_pairs(premise_of(dag, 1)) and not undecided_pairs(premise_of(dag))
    with pytest.raises(Corr2CauseError, match="at most 1 variables, which 'A and C are independent given B and D"):
        c.parse_premise(said_to_be_limited(dag, 1))
    with pytest.raises(Corr2CauseError, match="found only 1 classes of 7 variables that sets of at most 0"):
        list(_drawn_classes(iter([(0,) * 7] * (MAX_DRAWS + 1)), 0))


@pytest.mark.parametrize("n, structures", [(4, None), (5, 12), (6, 6)])
def test_a_pair_that_has_lost_its_separating_sets_is_named(n, structures):
    """With what is said to be missing a graph fits, by networkx too."""
    rng, named = random.Random(n), 0
    for dag in representatives(n, structures, seed=1):
        whole = premise_of(dag)
        pairs = sorted({stated[:2] for stated in whole.independences if stated[2]})
        if not pairs:
            continue
        lost = rng.choice(pairs)
        kept = frozenset(stated for stated in whole.independences if stated[:2] != lost)
        premise = Premise(whole.variables, kept)
        try:
            pdag(premise)
            continue  # that is another class
        except UnsatisfiableError:
            found = omission(premise)
        assert len(found.pairs) <= MAX_PAIRS and set(found.missing).isdisjoint(kept)
        member = some_member(pdag(Premise(whole.variables, kept | set(found.missing))))
        assert nx_d_separations(nx_graph(member)) == kept | set(found.missing)
        named += found.pairs == (lost,)
    assert named > 2


def test_a_premise_that_does_not_say_that_it_lists_small_sets_alone_is_told_so():
    whole = premise_of((0, 1, 2, 4, 8))  # a chain of five, which single variables cut
    small = Premise(whole.variables, limited(whole.independences, 1))
    assert unsaid_limit(small) == 1 and unsaid_limit(whole) is None
    with pytest.raises(UnsatisfiableError):
        pdag(small)
    members = markov_equivalence_class(Premise(small.variables, small.independences, 1))
    claims = [claim for claim in all_claims(5) if all(nx_holds(nx_graph(dag), claim) for dag in members)]
    assert [claim for claim in all_claims(5) if exact_label(whole, claim)] == claims
