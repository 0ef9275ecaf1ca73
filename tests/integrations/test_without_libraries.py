"""What of the integrations needs no other library: the functions of the tasks' files, and what is installed."""

import importlib.util
import re
import tomllib

import pytest
from conftest import ROOT
from datasets import Dataset

FOLDER = ROOT / "integrations/corr2cause_lm_eval"


@pytest.fixture(scope="module")
def utils():
    """The functions of the lm-evaluation-harness's tasks, from their file, as the harness reads it."""
    spec = importlib.util.spec_from_file_location("corr2cause_utils", FOLDER / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_without_an_exact_label_are_asked_where_the_given_one_counts_alone(utils):
    rows = Dataset.from_dict({"exact_label": [1, None, 0], "given_label": [0, 1, 0]})
    assert utils.exact(rows)["target"][:] == [1, 0] and utils.given(rows)["target"][:] == [0, 1, 0]


@pytest.mark.parametrize("label", [0, 1])
def test_no_answer_is_a_wrong_one(utils, label):
    right, wrong = {"f1": (label, label), "acc": 1.0}, {"f1": (label, 1 - label), "acc": 0.0}
    answers = ("Answer: No", "Answer: Yes")
    assert utils.score({"target": label}, [answers[label]]) == right | {"unanswered": 0.0}
    assert utils.score({"target": label}, [answers[1 - label]]) == wrong | {"unanswered": 0.0}
    assert utils.score({"target": label}, ["Who knows?"]) == wrong | {"unanswered": 1.0}


def test_a_folder_without_rows_is_refused_with_a_remedy(utils, tmp_path):
    with pytest.raises(ValueError, match="corr2cause_data: .* has no rows; write some with preprocess.py --export DIR"):
        utils.load(corr2cause_data=str(tmp_path), version=1.0)


def test_what_a_choice_continues_is_no_part_of_the_question(utils):
    """Else it would stand in the user's turn of a chat template, before the model's own begins."""
    task = (FOLDER / "corr2cause_choice.yaml").read_text()
    asked = utils.asked_for_a_choice({"input": "Premise: P\nHypothesis: H"})
    assert 'gen_prefix: "Answer:"' in task and asked.endswith("Premise: P\nHypothesis: H")


def test_the_tasks_call_functions_that_there_are(utils):
    texts = [path.read_text() for path in FOLDER.glob("*.yaml")]
    called = {name for text in texts for name in re.findall(r"!function utils\.(\w+)", text)}
    assert len(texts) == 3 and all(callable(getattr(utils, name)) for name in called)


def test_the_page_names_the_versions_that_are_tested():
    pins = re.findall(
        r"^([\w-]+)(?:\[\w+\])?==(\S+)", (ROOT / "integrations/requirements.txt").read_text(), re.MULTILINE
    )
    page = (ROOT / "docs/integrations.md").read_text()
    tested = [f"{name} {version}" for name, version in pins if name not in ("pytest", "setuptools")]
    assert len(tested) == 3 and all(pin in page for pin in tested)


def test_every_module_is_installed():
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(installed["py-modules"]) == {path.stem for path in (ROOT / "integrations").glob("*.py")}
    assert installed["packages"] == ["causal"]
