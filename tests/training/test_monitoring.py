"""What a person sees of a run: TensorBoard's pages, as TensorBoard itself reads them, and the console."""

import html
import io
import json
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from matplotlib import image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data, parse_session_start_info_plugin_data

import evaluate
import train_grpo
import train_sft
from policy.sampling import Completion
from runtime.checkpoints import list_checkpoints
from runtime.settings import parse_config
from scoring import figures, results
from scoring.metrics import classification_metrics
from training.grpo_metrics import Rollout, as_cell, completion_table
from training.monitoring import CONSOLE_LINES, LAYOUTS, Laps, Progress, report_scores
from training.rewards import Judgement
from training.rollouts import Prompt

RECIPE = "configs/grpo_tiny.yaml"
SCRIPTS = {"SFT": train_sft, "GRPO": train_grpo}
SHORT = {
    "max_steps": 3,
    "logging_steps": 1,
    "eval_steps": 2,
    "eval_rows": 10,
    "save_steps": 1,
    "micro_batch_tokens": 260,
}
STAGES = {
    "SFT": SHORT | {"batch_size": 12, "adaptation": "lora"},
    "GRPO": SHORT
    | {
        "prompts_per_step": 8,
        "num_generations": 4,
        "max_new_tokens": 6,
        "process_weight": 0.5,
        "num_logged_completions": 4,
    },
}


def train(stage: str, folder: Path, **settings) -> str:
    """Run a script's main in this process; what it prints."""
    places = {"output_dir": folder / stage, "logging_dir": folder / "logs" / stage}
    given = STAGES[stage] | places | settings
    arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as printed:
        patch.setattr(sys, "argv", [f"train_{stage.lower()}.py", *arguments])
        patch.setattr(sys, "stdout", printed)
        SCRIPTS[stage].main()
        return printed.getvalue()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset, start_adapter):
    """A short run of each stage, below one folder, and what they have printed."""
    folder = tmp_path_factory.mktemp("runs")
    places = {"dataset": dataset, "model": start_adapter}
    return SimpleNamespace(folder=folder, places=places, text={s: train(s, folder, **places) for s in SCRIPTS})


def events(folder: Path, stage: str) -> EventAccumulator:
    return EventAccumulator(str(folder / "logs" / stage), size_guidance={"images": 0, "tensors": 0}).Reload()


def page(folder: Path) -> CustomScalarsPlugin:
    """TensorBoard's CUSTOM SCALARS page of all runs below a folder."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder / "logs")).Reload()
    return CustomScalarsPlugin(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))


# --- CUSTOM SCALARS


def test_every_tag_of_the_layout_is_logged(runs):
    """As TensorBoard matches them; a tag that is no pattern finds itself alone."""
    for stage, layout in LAYOUTS.items():
        assert list(layout) == ["is it learning", "is it healthy", "is it fast"]
        logged = events(runs.folder, stage).Tags()["scalars"]
        for tag in (tag for charts in layout.values() for tags in charts.values() for tag in tags):
            found = [name for name in logged if re.match(f"{tag}$", name)]
            assert found == [tag] if re.fullmatch(r"[\w/]+", tag) else found, f"{stage}: {tag} finds {found}"


def test_tensorboard_shows_one_layout_of_both_stages(runs):
    layout = json.loads(page(runs.folder).layout_impl(RequestContext(), ""))
    charts = {category["title"]: [chart["title"] for chart in category["chart"]] for category in layout["category"]}
    assert charts.keys() == LAYOUTS["SFT"].keys()
    for question, titles in charts.items():
        assert len(titles) == len(set(titles)), f"{titles}: a chart twice"
        assert set(titles) == {title for stage in LAYOUTS.values() for title in stage[question]}
    assert layout["category"][0]["chart"][0]["multiline"]["tag"][0] == "reward/mean$"


# --- scores: figures and HPARAMS


def test_every_evaluation_has_its_confusion_matrix(runs):
    for stage, steps in (("SFT", [2, 3]), ("GRPO", [0, 2, 3])):
        read = events(runs.folder, stage)
        assert [e.step for e in read.Scalars("eval/f1")] == steps
        figures = read.Images("eval/confusion_matrix")
        assert [e.step for e in figures] == steps
        pixels = image.imread(io.BytesIO(figures[-1].encoded_image_string), format="png")
        assert pixels.shape == (320, 500, 3) and len(set(pixels.mean(axis=2).ravel().round(2))) > 10


def test_the_confusion_matrix_is_of_the_labels_and_answers(monkeypatch):
    drawn, tags = [], []
    monkeypatch.setattr(figures, "confusion_figure", lambda rows, title: drawn.append((rows, title)))
    writer = SimpleNamespace(add_scalar=lambda tag, *_: tags.append(tag), add_figure=lambda *_, **__: None)
    labels, answers = [0, 1, 1], [0, 1, None]
    report_scores(writer, classification_metrics(labels, answers), labels, answers, 7)
    rows = [{"label": 0, "prediction": 0}, {"label": 1, "prediction": 1}, {"label": 1, "prediction": None}]
    assert drawn == [(rows, "step 7")] and "eval/loss" not in tags


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_finished_run_is_a_row_of_the_hparams_page(runs, stage):
    assert len(list((runs.folder / "logs" / stage).rglob("[!.]*"))) == 1, "one event file, and no run beside it"
    read = events(runs.folder, stage)
    content = read.PluginTagToContent("hparams")
    assert content.keys() == {f"_hparams_/{name}" for name in ("experiment", "session_start_info", "session_end_info")}
    settings = parse_session_start_info_plugin_data(content["_hparams_/session_start_info"]).hparams
    assert settings["learning_rate"].number_value == SCRIPTS[stage].Config().learning_rate
    assert settings["dataset"].string_value == str(runs.places["dataset"])
    assert settings["keep_best"].string_value == "True" and settings["class_weights"].string_value == "[1.0, 1.0]"
    assert not {"output_dir", "overwrite", "plan"} & set(settings)
    names = [m.name.tag for m in parse_experiment_plugin_data(content["_hparams_/experiment"]).metric_infos]
    logged = {name for stage in SCRIPTS for name in events(runs.folder, stage).Tags()["scalars"]}
    assert set(names) <= logged, "a score that is not logged is an empty column"
    assert "reward/mean" in names and "train/loss" in names
    best = json.loads((runs.folder / stage / "best.json").read_text())
    assert {"step", "f1", "balanced_accuracy"} < best.keys() and ("loss" in best) == (stage == "SFT")
    for name, value in best.items():
        (point,) = read.Scalars(f"kept/{name}")
        assert (point.step, point.value) == (3, pytest.approx(value))


def test_a_resumed_run_ends_with_everything_once(tmp_path, runs):
    shutil.copytree(runs.folder, tmp_path, dirs_exist_ok=True)
    model = tmp_path / "GRPO"
    shutil.rmtree(list_checkpoints(model)[-1])
    (model / "finished.json").unlink()
    assert "continues from" in train("GRPO", tmp_path, **runs.places, resume_from="latest")
    before, after = (events(folder, "GRPO") for folder in (runs.folder, tmp_path))
    assert before.Tags() == after.Tags()
    for tag in after.Tags()["scalars"]:
        steps = [e.step for e in after.Scalars(tag)]
        assert steps == [e.step for e in before.Scalars(tag)] and len(set(steps)) == len(steps), tag
    assert [e.step for e in after.Images("eval/confusion_matrix")] == [0, 2, 3]
    assert page(tmp_path).layout_impl(RequestContext(), "") == page(runs.folder).layout_impl(RequestContext(), "")


# --- completions

NASTY = [
    "a | b || c",
    "`code` ``` and **bold** _it_ # no ~~gone~~",
    "<script>alert(1)</script> <b>bold</b> &amp; &lt;|end|&gt; <|end|>",
    "[link](https://x.y) ![image](z.png) <https://x.y> \\| \\",
    "one\ntwo\r\nthree\n\n| --- |\n\n    four",
    "$x_1$ {y} ^ ~ 1 * 2 * 3 \x02 ∧ é",
    "",
]


def cells(row: str) -> list[str]:
    """The texts of a row of an HTML table, as a browser shows them."""
    found = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)
    assert not any(re.search(r"<(?!br\s*/?>)", cell) for cell in found), f"markup in {found}"
    return [html.unescape(re.sub(r"<br\s*/?>", "\n", cell)) for cell in found]


def test_any_text_stays_in_its_cell_and_is_shown_as_it_is():
    table = "\n".join(
        ["| k | text | end |", "|---|---|---|", *(f"| {k} | {as_cell(t)} | . |" for k, t in enumerate(NASTY))]
    )
    rows = markdown_to_safe_html(table).split("<tr>")[2:]
    assert len(rows) == len(NASTY)
    for k, (row, text) in enumerate(zip(rows, NASTY, strict=True)):
        shown = cells(row)
        assert (shown[0], shown[2], len(shown)) == (str(k), ".", 3)
        assert shown[1].split() == text.replace("\x02", "").split(), shown[1]
        assert shown[1].count("\n") == max(0, len(text.splitlines()) - 1)


def test_completions_are_shown_with_claim_target_rewards_and_advantage():
    prompt = Prompt(17, [5], {"prompt": "?", "hypothesis": "A | B", "response": "Edge A B: -.\nAnswer: Yes<|end|>"})
    written, judged = Completion([1], text="Answer: No"), Judgement(1.25, {"outcome": 1.0, "process": 0.5})
    tensor = torch.full((2, 2), -0.75)
    rollout = Rollout([prompt] * 2, [[written] * 2] * 2, [[judged] * 2] * 2, tensor, tensor[..., None], tensor != 0)
    lines = completion_table(rollout, 3).splitlines()
    head, *rows = (cells(row) for row in markdown_to_safe_html("\n".join(lines)).split("<tr>")[1:])
    assert head == ["prompt", "claim", "target", "outcome", "process", "reward", "advantage", "completion"]
    assert rows == [["17", "A | B", "Answer: Yes<|end|>", "+1.00", "+0.50", "+1.25", "-0.75", "Answer: No"]] * 3
    assert completion_table(Rollout([], [], [], tensor[:0], tensor[:0, :, None], tensor[:0] > 0), 3).count("\n") == 1


def test_a_run_shows_its_completions(runs):
    texts = events(runs.folder, "GRPO").Tensors("rollout/completions/text_summary")
    assert [e.step for e in texts] == [2, 3]
    rows = markdown_to_safe_html(texts[0].tensor_proto.string_val[0]).split("<tr>")[1:]
    assert [len(cells(row)) for row in rows] == [8] * 5


# --- the console


@pytest.mark.parametrize(("total", "first"), [(3, 0), (1000, 0), (10**6, 10**6 - 5000)])
def test_a_run_without_a_terminal_shows_that_it_lives(capsys, total, first):
    progress, silent = Progress("SFT", total, first, True), Progress("SFT", total, first, False)
    for step in range(first + 1, total + 1):
        progress.update(step, loss=0.12345, tokens_per_second=12345.6)
        silent.update(step, loss=0.12345)
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= CONSOLE_LINES + 1
    start = f"SFT step {first + 1} of {total}: loss 0.123, tokens_per_second 12,346, "
    assert lines[0].startswith(start) and re.search(r", \d+:\d\d left$", lines[0])
    assert lines[-1].startswith(f"SFT step {total} of {total}: ") and lines[-1].endswith(" 00:00 left")


def test_the_last_lines_say_where_everything_is_and_what_to_type(runs, monkeypatch):
    """Their commands are of settings that the scripts take."""
    monkeypatch.chdir(ROOT)
    configs = {"train_grpo.py": train_grpo.Config, "evaluate.py": evaluate.Config}
    for stage, typed in (("SFT", ["evaluate.py", "train_grpo.py"]), ("GRPO", ["evaluate.py"] * 3)):
        output = str(runs.folder / stage)
        last = runs.text[stage].splitlines()[-3 - len(typed) :]
        step = json.loads((Path(output) / "best.json").read_text())["step"]
        assert last[0].startswith(f"{'model' if stage == 'SFT' else 'adapter'}: {output} (step {step}, the ")
        assert last[1].endswith("checkpoint-2, checkpoint-3")
        assert last[2] == f"curves: tensorboard --logdir {runs.folder / 'logs' / stage}"
        commands = [shlex.split(line.split(": python ")[1].replace("RECIPE", RECIPE)) for line in last[3:]]
        assert [words[0] for words in commands] == typed
        given = [parse_config(configs[words[0]], words[1:]) for words in commands]
        if stage == "SFT":
            assert [g.model for g in given] == [output, output]
        else:
            assert [g.model for g in given] == [output, str(runs.places["model"]), ""]
            names = [results.model_name(one.model) for one in (given[1], given[0])]
            assert given[2].compare == [f"evaluation_results/{name}" for name in names]
        assert {one.dataset for one in given[:2]} == {str(runs.places["dataset"])}
        assert [one.max_new_tokens for one in given[:2]] == ([16, 8] if stage == "SFT" else [6, 6])  # 8: the recipe's


def test_a_lap_ends_when_the_gpu_has_done_what_it_was_given(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(time.perf_counter()))
    laps = Laps()
    began = time.perf_counter()
    laps.end("rollout")
    assert len(waited) == 2 and waited[0] <= began <= waited[1] <= laps.mark
