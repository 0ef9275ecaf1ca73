"""Questions drawn at random: exact labels, no bias, refusals; and what an answer to one is worth."""

from collections import Counter

import pytest
from brute_force import brute_force_classes, nx_holds, parsed

from causal.claims import RELATIONS
from causal.classes import Premise
from causal.questions import REASONING, YES_FROM, Questions, prompt_of
from causal.reasoning import STYLES, check_trace, trace
from causal.rewards import PARTIAL_CREDIT, credit
from causal.rows import DRAWN_LETTERINGS, generate_rows
from causal.vocabulary import DRAWN_WORDINGS, GROUPS, variants
from causal.wording import RELATION_OF, parse_claim, read_hypothesis, split_input, wording_of, write_premise

WORDINGS = [name for name in DRAWN_WORDINGS if variants("hypotheses", name)]
FREE = Questions(seed=3, num_variables=(2, 3, 4), wordings=WORDINGS, letterings=DRAWN_LETTERINGS)


def test_labels_are_those_of_brute_force():
    for k in range(80):
        row = FREE[k]
        premise, claim = parsed(row)
        members = brute_force_classes(row["num_variables"])[premise.independences]
        assert row["label"] == all(nx_holds(graph, claim) for graph in members)
        assert split_input(row["input"]) == (row["premise"], row["hypothesis"])
        assert (row["num_variables"], row["relation"]) == (len(premise.variables), claim.relation)
        assert row["template"] == read_hypothesis(row["hypothesis"], premise.variables)[1]
        assert row["trace"] == trace(premise, claim, "compact")


def test_a_question_is_a_function_of_the_settings_and_its_number():
    again = Questions(seed=3, num_variables=(2, 3, 4), wordings=WORDINGS, letterings=DRAWN_LETTERINGS)
    first = [FREE[k] for k in range(20)]
    assert [again[k] for k in reversed(range(20))][::-1] == first
    assert [Questions(seed=4)[k] for k in range(20)] != [Questions(seed=5)[k] for k in range(20)]
    assert len({FREE[k]["input"] for k in range(80)}) > 60


def test_everything_that_is_asked_for_is_drawn_and_yes_is_as_likely_as_no():
    rows = [FREE[k] for k in range(400)]
    count = Counter(row["label"] for row in rows)
    assert abs(count[1] - count[0]) < 60  # 3 standard deviations
    assert {row["relation"] for row in rows} == set(RELATIONS) == {row["relation"] for row in rows if row["label"]}
    assert {row["num_variables"] for row in rows} == {2, 3, 4}
    names = [parse_claim(row["premise"], row["hypothesis"])[0].variables for row in rows]
    said = {wording_of(row["hypothesis"], variables) for row, variables in zip(rows, names, strict=True)}
    assert said - {*GROUPS["composed"]} == {*WORDINGS} - {*GROUPS} and said & {*GROUPS["composed"]}
    letters = {variables[0] for variables in names}
    assert {"A", "Z"} < letters  # both letterings, and spread
    as_they_come = Questions(num_variables=[4], balanced=False)
    assert sum(as_they_come[k]["label"] for k in range(200)) < 70


def test_relations_can_be_yes_from_so_many_variables_on():
    yes = {(n, RELATION_OF[row["template"]]) for n in (2, 3, 4) for row in generate_rows(n) if row["label"]}
    assert {relation: min(n for n, kind in yes if kind == relation) for relation in RELATIONS} == YES_FROM


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_variables": [4, 11]}, "num_variables is 11; use a list of some of 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        ({"num_variables": []}, "num_variables is empty"),
        ({"num_variables": 4}, "num_variables is 4; use a list"),
        ({"relations": "direct"}, "relations is 'direct'"),
        ({"relations": ["cause"]}, "relations is cause; use a list of some of direct, indirect"),
        ({"wordings": ["mine"]}, "wordings is mine"),
        ({"letterings": ["greek"]}, "letterings is greek"),
        ({"style": "long"}, "style is 'long'; use one of compact, full"),
        ({"num_variables": [2, 3], "relations": ["indirect"]}, "add 4 to num_variables, or set balanced to false"),
    ],
)
def test_settings_that_make_no_questions_are_refused(settings, words):
    with pytest.raises(ValueError) as error:
        Questions(**settings)
    assert words in str(error.value)


def test_the_remedies_that_the_refusal_of_a_balance_names_work():
    assert Questions(num_variables=[2, 3, 4], relations=["indirect"])[0]["relation"] == "indirect"
    assert Questions(num_variables=[2, 3], relations=["indirect"], balanced=False)[0]["label"] == 0


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_can_show_a_worked_question(style):
    text = FREE[0]["input"]
    assert prompt_of(text) == f"{REASONING}\n\n{text}" and prompt_of(text, "") == text
    prompt = prompt_of(text, example=style)
    assert prompt.startswith(REASONING) and prompt.endswith(f"\n\n{text}")
    premise, _, reasoning = prompt.partition("An example:\n\n")[2].partition("\n\n")
    assert check_trace(reasoning.partition("\n\nThe question:")[0], *parse_claim(*split_input(premise))).complete


def test_credit_is_whole_for_the_right_answer_and_less_for_the_steps_alone():
    for row in (FREE[k] for k in range(30)):
        answers = ("Answer: No", "Answer: Yes")
        right, wrong = answers[row["label"]], answers[1 - row["label"]]
        steps = row["trace"].splitlines()[:-1]
        assert credit(row["trace"], row) == credit(right, row) == credit(f"Nonsense.\n{right}", row) == 1.0
        parts = [credit("\n".join([*steps[:k], wrong]), row) for k in range(len(steps) + 1)]
        assert parts[0] == 0 and parts == sorted(set(parts)) and parts[-1] == PARTIAL_CREDIT < 1
        assert credit("\n".join(steps), row) == PARTIAL_CREDIT
        assert credit("", row) == credit(f"Well, who knows.\n{wrong}", row) == credit(f"{right} {wrong}", row) == 0


def test_where_no_graph_satisfies_the_premise_the_answer_alone_earns():
    premise = write_premise(Premise(("A", "B", "C"), frozenset({(0, 1, 0), (1, 2, 0)})))
    row = {"premise": premise, "hypothesis": "A directly causes C.", "label": 1}
    assert credit("Pair A C -\nAnswer: Yes", row) == 1 and credit("Pair A C -\nAnswer: No", row) == 0
