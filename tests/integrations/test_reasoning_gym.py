"""reasoning-gym makes, mixes, schedules and scores our questions with its own code."""

import json
import re
import sys

import pytest
from conftest import ROOT

from causal.questions import prompt_of
from causal.reasoning import trace
from causal.rewards import PARTIAL_CREDIT
from causal.wording import parse_input

from .conftest import asked, label_of

pytestmark = pytest.mark.integrations


@pytest.fixture(scope="module")
def gym():
    """The library, with our dataset among its own."""
    import corr2cause_reasoning_gym  # noqa: F401
    import reasoning_gym

    return reasoning_gym


def test_answers_are_the_exact_labels_of_the_questions(gym):
    data = gym.create_dataset("corr2cause", seed=1, size=60)
    assert len(data) == len(list(data)) == 60
    for entry in data:
        assert entry["answer"] == ("No", "Yes")[label_of(entry["question"])]
        assert entry["metadata"]["label"] == label_of(entry["question"])
        assert entry["question"] == prompt_of(entry["metadata"]["input"])
    assert {entry["answer"] for entry in data} == {"Yes", "No"}
    assert {entry["metadata"]["num_variables"] for entry in data} == {3, 4, 5}


def test_entries_are_as_the_library_wants_its_own(gym):
    data = gym.create_dataset("corr2cause", seed=1, size=12)
    again = gym.create_dataset("corr2cause", seed=1, size=12)
    assert list(data) == list(data) == [again[k] for k in range(12)] == list(again)
    assert list(gym.create_dataset("corr2cause", seed=2, size=12)) != list(data)
    assert gym.create_dataset("corr2cause").seed != gym.create_dataset("corr2cause").seed
    for k, entry in enumerate(data):
        assert json.loads(json.dumps(entry)) == entry and entry.keys() == {"question", "answer", "metadata"}
        assert (entry["metadata"]["source_dataset"], entry["metadata"]["source_index"]) == ("corr2cause", k)
        assert data.score_answer(entry["answer"], entry) == 1.0
    assert gym.get_score_answer_fn("corr2cause")(data[0]["answer"], data[0]) == 1.0


def test_right_steps_earn_partial_credit(gym):
    data = gym.create_dataset("corr2cause", seed=1, size=10, example="full")
    for entry in data:
        steps = trace(*parse_input(asked(entry["question"])), "full").splitlines()
        wrong = f"Answer: {'No' if entry['answer'] == 'Yes' else 'Yes'}"
        half = "\n".join([*steps[: len(steps) // 2], wrong])
        completions = ["\n".join(steps), "\n".join([*steps[:-1], wrong]), half, wrong, "", None]
        scores = [data.score_answer(completion, entry) for completion in completions]
        assert scores[0] == 1 and scores[1] == PARTIAL_CREDIT > scores[2] > 0 == scores[3] == scores[4] == scores[5]
        assert "\n".join(steps) == entry["metadata"]["trace"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_variables": 5, "max_variables": 4}, "min_variables is 5; use at most max_variables, 4"),
        ({"max_variables": 11}, "num_variables is 11"),
        ({"size": 0}, "size is 0"),
        ({"relations": ["cause"]}, "relations is cause"),
        ({"min_variables": 2, "max_variables": 2}, "set balanced to false"),
        ({"example": "long"}, "style is 'long'"),
    ],
)
def test_settings_that_make_no_questions_are_refused(gym, settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        gym.create_dataset("corr2cause", **settings)


def test_it_mixes_with_other_datasets_and_never_ends(gym):
    from reasoning_gym.composite import CompositeConfig, CompositeDataset, DatasetSpec
    from reasoning_gym.dataset import ReseedingDataset
    from reasoning_gym.version_manager import DatasetVersionManager

    ours = DatasetSpec("corr2cause", 1.0, {"min_variables": 3, "max_variables": 3})
    config = CompositeConfig(size=20, seed=0, datasets=[ours, DatasetSpec("chain_sum", 1.0, {})])
    mixed = CompositeDataset(config, DatasetVersionManager())
    assert {entry["metadata"]["source_dataset"] for entry in mixed} == {"corr2cause", "chain_sum"}
    for entry in mixed:
        assert mixed.score_answer(entry["answer"], entry) == 1.0
        assert mixed.score_answer_with_id(entry["answer"], entry["metadata"]["entry_id"]) == 1.0
    endless = iter(ReseedingDataset(gym.create_dataset("corr2cause", seed=1, max_variables=3), chunk_size=5))
    entries = [next(endless) for _ in range(15)]
    assert entries[:5] != entries[5:10] != entries[10:]
    assert all(entry["answer"] == ("No", "Yes")[label_of(entry["question"])] for entry in entries)


def test_the_curriculum_goes_from_few_variables_and_one_relation_to_more(gym):
    from reasoning_gym.coaching.curriculum_config import CurriculumAttributeConfig, CurriculumExperimentConfig
    from reasoning_gym.coaching.experiment import CurriculumExperiment
    from reasoning_gym.factory import create_curriculum

    curriculum = create_curriculum("corr2cause")
    seen = []
    while True:
        config = curriculum.generate_configuration({"seed": 0, "size": 40})
        data = gym.create_dataset("corr2cause", **config.__dict__)
        rows = [data[k]["metadata"] for k in range(40)]
        seen.append(({row["num_variables"] for row in rows}, {row["relation"] for row in rows}))
        if len(seen) == 3 or not curriculum.increment_global_level():
            break
    assert seen[0] == ({3}, {"direct"})
    assert seen[1] == ({3, 4}, {"direct", "collider"})
    assert seen[2] == ({3, 4, 5}, {"direct", "collider", "indirect"})

    levels = CurriculumExperimentConfig({"corr2cause": CurriculumAttributeConfig({"*": 0})})
    experiment = CurriculumExperiment("ours", levels, size=10, seed=0)
    entry = experiment.get_dataset_entry(0)
    assert experiment.score_answer_with_id(entry["answer"], entry["metadata"]["entry_id"]) == 1.0
    assert "num_variables" in str(experiment.score_board.aggregate()["corr2cause"])
    experiment.update_difficulty("corr2cause", "increment")
    assert experiment.composite.datasets["corr2cause"].config.max_variables == 4


def test_the_page_is_right_for_somebody_who_has_installed_the_project(elsewhere, tmp_path):
    block = re.search(r"^```python\n(.+?)^```", (ROOT / "docs/integrations.md").read_text(), re.DOTALL | re.MULTILINE)[
        1
    ]
    script = "completions = ['Answer: Yes', 'Answer: No'] * 10\n" + block.replace("size=500", "size=20")
    (tmp_path / "script.py").write_text(f"{script}\nprint(scores, [entry['answer'] for entry in data])\n")
    scores, answers = elsewhere([sys.executable, "script.py"], tmp_path).strip()[:-1].split("] [")
    expected = [float((k % 2 == 0) == ("Yes" in answer)) for k, answer in enumerate(answers.split(", "))]
    assert json.loads(f"{scores}]") == expected and set(expected) == {0.0, 1.0}
