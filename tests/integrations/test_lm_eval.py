"""lm-evaluation-harness asks our rows and scores the answers with its own code."""

import json
import re
import shlex

import pytest
from conftest import ROOT
from datasets import load_dataset
from sklearn.metrics import accuracy_score, f1_score

from .conftest import label_of

pytestmark = pytest.mark.integrations
TASKS = ["corr2cause", "corr2cause_released", "corr2cause_choice"]
FOLDER = ROOT / "integrations/corr2cause_lm_eval"


@pytest.fixture
def ask(exported, monkeypatch):
    """ask(reply): what `simple_evaluate` says of a model that answers a prompt with reply(prompt)."""
    from lm_eval import evaluator, simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Replying(LM):
        def __init__(self, reply):
            super().__init__()
            self.reply = reply

        def generate_until(self, requests):
            return [self.reply(request.args[0]) for request in requests]

        def loglikelihood(self, requests):
            """Of a choice: whether it is what the reply says."""
            return [(float(request.args[1].strip() in self.reply(request.args[0])), False) for request in requests]

        tokenizer_name = "none"

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            turns = "".join(f"<{turn['role']}>{turn['content']}" for turn in chat_history)
            return turns + ("<assistant>" if add_generation_prompt else "")

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

    def ask(reply, tasks=TASKS, **options):
        monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # it asks pip for a list of all packages
        ours = {"include_path": str(FOLDER), "include_defaults": False}
        manager = TaskManager(**ours, metadata={"corr2cause_data": str(exported)})
        return simple_evaluate(Replying(reply), tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)

    return ask


def say(label: int) -> str:
    return f"Some reasons.\n\nAnswer: {('No', 'Yes')[label]}"


def scores(results: dict, task: str) -> dict[str, float]:
    names = ("f1", "acc", "unanswered")
    return {
        name: results["results"][task][f"{name},none"] for name in names if f"{name},none" in results["results"][task]
    }


def test_labels_are_the_exact_ones_and_the_given_ones(ask, exported):
    results = ask(lambda prompt: say(label_of(prompt)))
    rows = load_dataset(str(exported))["test"]
    given, exact = rows["given_label"], rows["exact_label"]
    assert list(given) != list(exact)
    for task, labels in zip(TASKS, (exact, given, exact), strict=True):
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        assert [sample["doc"]["target"] for sample in samples] == list(labels)
        assert [sample["doc"]["input"] for sample in samples] == list(rows["input"])
    whole = {"f1": 1.0, "acc": 1.0}
    assert (
        scores(results, "corr2cause") == whole | {"unanswered": 0.0} and scores(results, "corr2cause_choice") == whole
    )
    perfect = {"f1": f1_score(given, exact), "acc": accuracy_score(given, exact), "unanswered": 0.0}
    assert scores(results, "corr2cause_released") == pytest.approx(perfect)


def test_no_answer_is_a_wrong_one(ask, exported):
    """Wrong on every third row, silent on every fifth, as evaluate.py counts it."""
    number = {row["input"]: k for k, row in enumerate(load_dataset(str(exported))["test"])}

    def reply(prompt):
        k = number[prompt[prompt.index("Premise:") :]]
        return "I cannot tell." if k % 5 == 0 else say(label_of(prompt) ^ (k % 3 == 0))

    results = ask(reply, ["corr2cause"])
    labels = load_dataset(str(exported))["test"]["exact_label"]
    said = [label ^ (k % 3 == 0 or k % 5 == 0) for k, label in enumerate(labels)]
    silent = sum(k % 5 == 0 for k in range(len(labels))) / len(labels)
    expected = {"f1": f1_score(labels, said), "acc": accuracy_score(labels, said), "unanswered": silent}
    assert scores(results, "corr2cause") == pytest.approx(expected)


def test_examples_come_from_train_with_their_answers(ask):
    prompts = []
    ask(lambda prompt: prompts.append(prompt) or "Answer: No", ["corr2cause"], num_fewshot=2, limit=3)
    for prompt in prompts:
        shown = re.findall(r"(Premise: [^\n]+\nHypothesis: [^\n]+)\n\nAnswer: (\w+)", prompt)
        assert len(shown) == 2 and prompt.count("Premise:") == 3
        assert [answer for _, answer in shown] == [("No", "Yes")[label_of(text)] for text, _ in shown]


@pytest.mark.parametrize("templated", [True, False])
def test_a_choice_continues_the_models_own_turn(ask, templated):
    prompts = []
    options = {"num_fewshot": 1, "limit": 2, "apply_chat_template": templated, "fewshot_as_multiturn": templated}
    ask(lambda prompt: prompts.append(prompt) or "No", ["corr2cause_choice"], **options)
    begins = "<assistant>Answer:" if templated else " Answer:"
    assert prompts
    for prompt in prompts:
        assert len(re.findall(rf"{begins} (?:No|Yes)(?!')", prompt)) == 1, "the example's"
        assert re.search(rf"Hypothesis: [^\n]+\.{begins}$", prompt)


def test_the_page_is_right_for_somebody_who_has_installed_the_project(elsewhere, exported, tmp_path):
    """The command with the reasoner as its model, four rows of each task; scores are those of what it has said."""
    page = (ROOT / "docs/integrations.md").read_text().replace("\\\n", " ")
    words = shlex.split(re.search(r"^lm_eval .+$", page, re.MULTILINE)[0])
    (tmp_path / "data").mkdir()
    (tmp_path / "data/exported").symlink_to(exported)
    (tmp_path / "integrations").symlink_to(ROOT / "integrations")
    words[words.index("pretrained=MODEL")] = f"pretrained={ROOT / 'reasoner'}"
    brief = ["--limit", "4", "--device", "cpu", "--gen_kwargs", "max_gen_toks=60", "--log_samples"]
    elsewhere([*words, *brief, "--output_path", "results"], tmp_path)
    results = json.loads(next(tmp_path.glob("results/*/results_*.json")).read_text())["results"]
    assert set(results) == set(TASKS)
    assert {scores["f1_stderr,none"] for scores in results.values()} == {"N/A"}, "no minutes of resampling"
    samples = next(tmp_path.glob("results/*/samples_corr2cause_choice_*.jsonl")).read_text().splitlines()
    right = []
    for sample in map(json.loads, samples):
        no, yes = (float(response[0][0]) for response in sample["resps"])
        right.append((yes > no) == label_of(sample["doc"]["input"]))
    assert len(right) == 4 and results["corr2cause_choice"]["acc,none"] == sum(right) / 4
