"""verifiers asks our questions of a server and rewards its replies with its own code."""

import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from causal.reasoning import trace
from causal.rewards import PARTIAL_CREDIT
from causal.wording import parse_input

from .conftest import asked, label_of

pytestmark = pytest.mark.integrations
ID = "corr2cause-verifiers"
# kind of reply: the reward and the metrics that it earns
WORTH = {
    "trace": {"credit": 1.0, "right": 1.0, "process": 1.0},
    "answer": {"credit": 1.0, "right": 1.0, "process": 0.0},
    "wrong end": {"credit": PARTIAL_CREDIT, "right": 0.0, "process": 1.0},
    "wrong": {"credit": 0.0, "right": 0.0, "process": 0.0},
    "silence": {"credit": 0.0, "right": 0.0, "process": 0.0},
}


def kind_of(prompt: str) -> str:
    """One of WORTH, the same for the same question."""
    return list(WORTH)[sum(asked(prompt).encode()) % len(WORTH)]


def reply_to(prompt: str) -> str:
    kind, label = kind_of(prompt), label_of(prompt)
    right, wrong = (f"Answer: {('No', 'Yes')[k]}" for k in (label, 1 - label))
    steps = trace(*parse_input(asked(prompt)))
    return {"trace": steps, "answer": right, "wrong end": steps.replace(right, wrong), "wrong": wrong, "silence": ""}[
        kind
    ]


@pytest.fixture(scope="module")
def server():
    """(address, what it was asked): an OpenAI-compatible server on this machine alone."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append(body)
            message = {"role": "assistant", "content": reply_to(body["messages"][-1]["content"])}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            answer = {"id": "0", "object": "chat.completion", "created": 0, "model": body["model"], "usage": usage}
            data = json.dumps(answer | {"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", requests
    server.shutdown()
    server.server_close()
    thread.join()


def episodes_of(folder: Path) -> list[dict]:
    """What an evaluation has written below its output directory."""
    (file,) = folder.glob("*/traces.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def check_rewards(episodes: list[dict]) -> set[str]:
    """Each is what its kind of reply is worth, to a question whose label is exact; the kinds that there were."""
    kinds = set()
    for episode in episodes:
        assert episode["ok"], episode
        (rollout,) = episode["traces"]
        data = rollout["task"]["data"]
        kind = kind_of(data["prompt"])
        kinds.add(kind)
        assert data["label"] == label_of(data["prompt"])
        earned = {"credit": rollout["rewards"]["credit"]["score"], **rollout["metrics"]}
        assert earned == WORTH[kind]
    return kinds


def test_the_evaluation_rewards_answers_and_checked_steps(server, tmp_path):
    from verifiers.v1.cli.eval.main import main

    address, requests = server
    asked_before = len(requests)
    options = ["--client.base-url", address, "--model", "m", "--no-push", "--no-rich", "-o", str(tmp_path)]
    main([ID, "-n", "9", "-r", "2", "--env.taskset.example", "compact", *options])
    episodes = episodes_of(tmp_path)
    assert len(episodes) == 18 and check_rewards(episodes) == set(WORTH)
    assert len(requests) - asked_before == 18, "one request a rollout"
    for request in requests[asked_before:]:
        assert [message["role"] for message in request["messages"]] == ["user"] and "tools" not in request
        assert "An example:" in request["messages"][0]["content"]


def test_tasks_are_a_function_of_their_settings():
    import verifiers.v1 as vf

    def tasks(**settings):
        config = vf.taskset_config_type(ID).model_validate({"id": ID, "size": 12, **settings})
        return [(task.hash, task.data.prompt) for task in vf.load_taskset(config)]

    assert tasks(seed=1) == tasks(seed=1) != tasks(seed=2)
    assert all(" 6 variables" in prompt for _, prompt in tasks(num_variables=[6]))
    assert {prompt.split("\n\n")[0] for _, prompt in tasks(instruction="True or not?")} == {"True or not?"}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("num-variables", "[4, 11]", "num_variables is 11"),
        ("relations", '["cause"]', "relations is cause"),
        ("example", "long", "style is 'long'"),
        ("num-variables", "[2]", "set balanced to false"),
    ],
)
def test_settings_that_make_no_questions_are_refused(option, value, words, capsys, tmp_path, monkeypatch):
    from verifiers.v1.cli.eval.main import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([ID, "-n", "2", "--no-push", "--dry-run", f"--env.taskset.{option}", value])
    said = "".join([*capsys.readouterr(), str(ended.value)])
    assert words in " ".join(re.sub(r"[│╭╰─]", " ", said).split())


def test_the_page_is_right_for_somebody_who_has_installed_the_project(server, elsewhere, tmp_path):
    page = (ROOT / "docs/integrations.md").read_text().replace("\\\n", " ")
    words = shlex.split(re.search(r"^vf-eval .+$", page, re.MULTILINE)[0])
    words[words.index("http://localhost:8000/v1")] = server[0]
    words[words.index("-n") + 1] = "6"
    elsewhere([*words, "--no-rich"], tmp_path)
    episodes = episodes_of(tmp_path / "outputs")
    check_rewards(episodes)
    assert len(episodes) == 6
    assert {episode["traces"][0]["task"]["data"]["num_variables"] for episode in episodes} <= {4, 5, 6}
