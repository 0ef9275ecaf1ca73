"""What can be wrong with settings, data, models and the machine: each is one line that names it and the remedy.

The scripts run as a user runs them, in this process: exit status 2, no traceback, nothing written or changed.
"""

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from conftest import ROOT, build_model
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from causal.tiny import tiny_model
from policy.loading import save_model
from policy.prefix_sharing import ATTENTION
from runtime.checkpoints import damage, list_checkpoints
from runtime.ending import run_script


def files_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture
def refusal(tmp_path, monkeypatch, capfd, dataset):
    """Runs a script that must refuse; returns its one line. It may create an empty output_dir, and no more."""
    monkeypatch.chdir(tmp_path)
    defaults = {"dataset": dataset, "output_dir": tmp_path / "out", "logging_dir": tmp_path / "logs"}
    defaults |= {"max_steps": 1, "eval_rows": 4, "max_new_tokens": 4}
    usual = {
        "train_sft": defaults | {"model": "tiny", "batch_size": 4},
        "train_grpo": defaults | {"prompts_per_step": 2, "num_generations": 2},
        "evaluate": {"dataset": dataset, "output_dir": tmp_path / "out", "num_resamples": 10},
        "preprocess": {"output_dir": tmp_path / "out"},
    }

    def run(script: str, **options) -> str:
        argv = [f"{script}.py"]
        for name, value in (usual[script] | options).items():
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        monkeypatch.setattr(sys, "argv", argv)
        before = files_of(tmp_path)
        with pytest.raises(SystemExit) as stop:
            run_script(importlib.import_module(script).main)
        text = capfd.readouterr().err
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert stop.value.code == 2 and len(lines) == 1 and "Traceback" not in text, text
        assert files_of(tmp_path) == before
        return lines[0]

    return run


# --- settings

SETTINGS = [
    ("train_sft", {"batch_sise": 3}, "unknown option --batch_sise; did you mean batch_size"),
    ("train_sft", {"fp16": True}, "the launch has it: accelerate_configs"),
    ("train_sft", {"batch_size": "many"}, "batch_size.*many"),
    ("train_sft", {"batch_size": 0}, "batch_size: must be at least 1"),
    ("train_sft", {"micro_batch_tokens": 0}, "micro_batch_tokens: must be auto or at least 1, got 0"),
    ("train_sft", {"micro_batch_tokens": "many"}, "micro_batch_tokens: must be auto or at least 1, got many"),
    ("train_sft", {"learning_rate": 0}, "learning_rate: must be above 0"),
    ("train_sft", {"learning_rate": "nan"}, "learning_rate: must be above 0 and finite"),
    ("train_sft", {"learning_rate": "inf"}, "learning_rate: must be above 0 and finite"),
    ("train_sft", {"max_steps": 0, "num_train_epochs": 0}, "num_train_epochs: must be above 0"),
    ("train_sft", {"max_steps": -1}, "max_steps: must be 0 or more"),
    ("train_sft", {"warmup_ratio": 2}, "warmup_ratio: must be between 0 and 1"),
    ("train_sft", {"min_lr_ratio": -0.1}, "min_lr_ratio: must be between 0 and 1"),
    ("train_sft", {"position_stretch": 0.5}, "position_stretch: must be at least 1"),
    ("train_sft", {"position_stretch": 1000}, r"position_stretch: sequences of up to \d+ tokens: .* 4096; lower it"),
    ("train_sft", {"unknown_words": 1.5, "relabel_each_epoch": True}, "unknown_words: must be between 0 and 1"),
    ("train_sft", {"unknown_words": 0.4}, "unknown_words: set relabel_each_epoch true too"),
    ("train_sft", {"lora_dropout": 1}, "lora_dropout: must be 0 or more and less than 1"),
    ("train_sft", {"weight_decay": -1}, "weight_decay: must be 0 or more"),
    ("train_sft", {"max_grad_norm": 0}, "max_grad_norm: must be above 0"),
    ("train_sft", {"save_steps": -1}, "save_steps: must be 0 or more"),
    ("train_sft", {"time_limit": -5}, "time_limit: must be 0 or more"),
    ("train_sft", {"class_weights": [1]}, "class_weights: two numbers"),
    ("train_sft", {"class_weights": [1, -1]}, "class_weights: two numbers above 0"),
    ("train_sft", {"lora_r": 64}, "lora_r: adaptation full trains the whole model; set adaptation lora"),
    ("train_sft", {"adaptation": "prefix"}, "adaptation: 'prefix' is not one of"),
    ("train_sft", {"quantization": "int3"}, "quantization: 'int3' is not one of"),
    ("train_sft", {"quantization": "nf4", "adaptation": "full"}, "adaptation full.*lora|quantization nf4.*lora"),
    ("train_sft", {"adaptation": "lora"}, "model tiny has random weights: train it in full first"),
    ("train_sft", {"resume_weights_only": True}, "resume_weights_only: needs resume_from"),
    ("train_sft", {"resume_from": "checkpoint-3"}, "resume_from checkpoint-3: no checkpoint of a run"),
    ("train_grpo", {"num_generations": 1}, "num_generations: a group needs at least 2"),
    ("train_grpo", {"temperature": 0}, "temperature: sampling needs more than 0"),
    ("train_grpo", {"beta": -1}, "beta: must be 0 or more, got -1"),
    ("train_grpo", {"eps_low": 1.5}, "eps_low: must be 0 or more and less than 1"),
    ("train_grpo", {"loss_type": "mean"}, "loss_type: 'mean' is not one of grpo, dapo, dr_grpo"),
    ("train_grpo", {"scale_rewards": "std"}, "scale_rewards: 'std' is not one of"),
    ("train_grpo", {"outcome_weight": 0}, "outcome_weight, process_weight: one must be above 0"),
    ("train_grpo", {"class_weights": [0, 1]}, "class_weights: two numbers above 0"),
    ("train_grpo", {"cache_tokens": 0}, "cache_tokens: must be auto or at least 1, got 0"),
    ("train_grpo", {"max_steps": 0}, "max_steps: must be at least 1"),
    ("train_sft", {"train_split": "validation"}, "train_split: validation has the rows by which the best model is"),
    ("train_sft", {"train_split": "test"}, "train_split: test has the rows that a model is scored on; name another"),
    ("train_sft", {"train_split": "test_names"}, "train_split: test_names has the rows that a model is scored on"),
    ("evaluate", {}, "model: name a directory or a hub model"),
    ("evaluate", {"model": "tiny", "cache_tokens": 1.5}, "cache_tokens: must be auto or at least 1, got 1.5"),
    ("evaluate", {"model": "tiny", "split": "dev"}, "split dev: dataset .* has "),
    ("evaluate", {"model": "tiny", "mode": "guess"}, "mode: 'guess' is not one of"),
    ("evaluate", {"model": "tiny", "num_samples": 3, "temperature": 0}, "temperature: no sampling at 0"),
    ("evaluate", {"compare": ["a"]}, "compare: name at least two directories"),
    ("evaluate", {"compare": ["a", "b"]}, "compare.* a"),
    ("preprocess", {"source": "nowhere.csv"}, "source: nowhere.csv: no such file"),
    ("preprocess", {"num_variables": [1]}, "num_variables"),
    ("preprocess", {"num_variables": [3], "test_fraction": 1.5}, "test_fraction"),
    ("preprocess", {"num_variables": [3], "target": "poem"}, "target: 'poem' is not one of"),
    ("preprocess", {"num_variables": [3], "split": "random"}, "split: 'random' is not one of"),
]


@pytest.mark.parametrize("script, options, message", SETTINGS, ids=lambda value: str(value)[:40])
def test_settings(refusal, script, options, message):
    line = refusal(script, **options)
    assert re.search(message, line), line


# --- a dataset that is none


def damage_dataset(folder: Path, how: str) -> None:
    arrow = next((folder / "train").glob("*.arrow"))
    match how:
        case "a file":
            shutil.rmtree(folder)
            folder.write_text("rows")
        case "not there":
            shutil.rmtree(folder)
        case "no index":
            (folder / "dataset_dict.json").unlink()
        case "a broken index":
            (folder / "dataset_dict.json").write_text("{")
        case "a torn table":
            arrow.write_bytes(arrow.read_bytes()[:200])
        case "no table":
            arrow.unlink()
        case "no information":
            (folder / "train" / "dataset_info.json").write_text("nothing")
        case "a broken report":
            (folder / "report.json").write_text("[")
        case "no split":
            (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')


DATASETS = [
    ("a file", "dataset .*data: not a dataset of preprocess.py"),
    ("not there", "dataset .*data: not a dataset of preprocess.py"),
    ("no index", "dataset .*data: not a dataset of preprocess.py"),
    ("a broken index", "dataset .*data: cannot be read"),
    ("a torn table", "dataset .*data: cannot be read"),
    ("no table", "dataset .*data: cannot be read"),
    ("no information", "dataset .*data: cannot be read"),
    ("a broken report", "dataset .*data: report.json cannot be read"),
    ("no split", "split validation: dataset .* has train; preprocess.py makes"),
]


@pytest.mark.parametrize("how, message", DATASETS)
def test_datasets(refusal, tmp_path, dataset, how, message):
    shutil.copytree(dataset, tmp_path / "data")
    damage_dataset(tmp_path / "data", how)
    line = refusal("train_sft", dataset=tmp_path / "data")
    assert re.search(message, line) and "preprocess.py" in line, line


def change_rows(dataset: Path, to: Path, change, split: str = "train") -> Path:
    """The dataset with `change` applied to the columns (a dict of lists) of a split's rows."""
    splits = load_from_disk(dataset)
    columns = splits[split].to_dict()
    splits[split] = Dataset.from_dict(change(columns))
    splits.save_to_disk(to)
    shutil.copy(dataset / "report.json", to)
    return to


ROWS = {
    "one class": (lambda c: c | {"label": [0] * len(c["label"])}, "split train: dataset .* every label is 0"),
    "other labels": (lambda c: c | {"label": [label + 1 for label in c["label"]]}, "labels? .*0 or 1"),
    "text labels": (lambda c: c | {"label": ["No" for _ in c["label"]]}, "labels? .*0 or 1"),
    "no prompts": (lambda c: {k: v for k, v in c.items() if k != "prompt"}, "dataset .* raw true: run preprocess.py"),
    "no rows": (lambda c: {k: [] for k in c}, "dataset .*(has no rows|cannot be read)"),
    "an enormous row": (lambda c: c | {"prompt": [c["prompt"][0] * 400, *c["prompt"][1:]]}, "tokens"),
    "an empty response": (lambda c: c | {"response": ["", *c["response"][1:]]}, "response"),
    "another tokenizer": (
        lambda c: c | {"response": [r.replace("<|end|>", "<|im_end|>") for r in c["response"]]},
        "stop",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(refusal, tmp_path, dataset, name):
    change, message = ROWS[name]
    line = refusal("train_sft", dataset=change_rows(dataset, tmp_path / "data", change))
    assert re.search(message, line), line


def test_what_is_sampled_in_validation_must_fit_the_model(refusal, tmp_path, dataset):
    change, _ = ROWS["an enormous row"]
    line = refusal("train_sft", dataset=change_rows(dataset, tmp_path / "data", change, "validation"), eval_rows=10**6)
    assert re.search(r"sequences of up to \d+ tokens: the model takes \d+", line), line
    other = {"output_dir": tmp_path / "other", "logging_dir": tmp_path / "other_logs"}
    assert "tokens: the model takes" in refusal("train_sft", max_new_tokens=20_000, **other)


HEADER = "input,label\n"
GOOD = (
    '"Premise: Suppose there is a closed system of 2 variables, A and B. All the statistical relations among these 2 '
)
GOOD += 'variables are as follows: A correlates with B.\nHypothesis: A directly affects B.",{label}\n'
FILES = [
    ("rows.csv", "", "rows.csv.*(empty|no rows)"),
    ("rows.csv", HEADER, "rows.csv.*no rows"),
    ("rows.csv", "text,answer\na,b\n", "column.*input"),
    ("rows.csv", HEADER + GOOD.format(label="maybe"), "row 0.*label.*maybe"),
    ("rows.csv", HEADER + GOOD.format(label=2), "row 0.*label.*2"),
    ("rows.csv", HEADER + "Is it raining?,0\n", "row 0"),
    ("rows.csv", HEADER + GOOD.format(label=0) + GOOD.format(label=1), "row 0 and row 1: one input with two labels"),
    ("rows.jsonl", '{"input": "a", "lab', "rows.jsonl"),
    ("rows.json", '{"input": ["a"]', "rows.json"),
    ("rows.parquet", "PAR1", "rows.parquet"),
    ("rows.csv", HEADER.encode() + b"caf\xe9,0\n", "rows.csv.*UTF-8"),
    ("rows.csv", b"\xff\xfei\x00n\x00,", "rows.csv.*UTF-16"),
    ("rows.csv", b"\xff\xfei\x00n\x00", "rows.csv.*no rows"),
    ("rows.csv", b"\x00\x01\x02\x03" * 99, "rows.csv"),
]


@pytest.mark.parametrize("name, content, message", FILES, ids=lambda value: str(value)[:30])
def test_files(refusal, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    line = refusal("preprocess", source=path, labels="given", tokenizer="tiny")
    assert re.search(message, line), line


# --- models


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(tiny_model(0, ATTENTION), tokenizer, folder)
    return folder


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def damage_model(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    match how:
        case "not there":
            shutil.rmtree(folder)
        case "no weights":
            weights.unlink()
        case "pickled weights":
            torch.save({}, folder / "pytorch_model.bin")
            weights.unlink()
        case "torn weights":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "a missing shard":
            names = dict.fromkeys(load_file(weights), "model-00001-of-00002.safetensors")
            names[next(iter(names))] = "model-00002-of-00002.safetensors"
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
            weights.rename(folder / "model-00001-of-00002.safetensors")
        case "NaN":
            change_weights(folder, lambda tensors: {name: t * float("nan") for name, t in tensors.items()})
        case "missing tensors":
            change_weights(folder, lambda tensors: dict(list(tensors.items())[3:]))
        case "other shapes":
            change_config(folder, hidden_size=32)
        case "no config":
            (folder / "config.json").unlink()
        case "a broken config":
            (folder / "config.json").write_text("{")
        case "unknown architecture":
            change_config(folder, model_type="nothing")
        case "code of its own":
            change_config(
                folder, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
            )
            (folder / "own.py").write_text("raise SystemExit('foreign code was run')")
        case "no tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name).unlink()
        case "another kind of model":
            small = {"vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
            BertForMaskedLM(BertConfig(**small, intermediate_size=8)).save_pretrained(folder)


MODELS = [
    ("not there", "no such directory"),
    ("no weights", "no safetensors weights"),
    ("pickled weights", "no safetensors weights"),
    ("torn weights", "cannot be loaded"),
    ("a missing shard", "model-00002-of-00002.safetensors"),
    ("NaN", "not finite in torch.float32; its weights may be damaged"),
    ("missing tensors", "weights are missing"),
    ("other shapes", "cannot be loaded|shape"),
    ("no config", "neither config.json nor"),
    ("a broken config", "cannot be loaded"),
    ("unknown architecture", "nothing"),
    ("code of its own", "own"),
    ("no tokenizer", "no tokenizer in it; save its tokenizer beside it"),
    ("another kind of model", "a BertForMaskedLM, not a model that writes text"),
]


@pytest.mark.parametrize("how, message", MODELS)
def test_models(refusal, tmp_path, model, how, message):
    shutil.copytree(model, tmp_path / "model")
    damage_model(tmp_path / "model", how)
    line = refusal("train_sft", model=tmp_path / "model")
    assert re.search(message, line) and ("model:" in line or str(tmp_path / "model") in line), line


ADAPTERS = [
    ("base not there", "no such directory"),
    ("another base", "cannot be put on .*other"),
    ("torn weights", "cannot be put on"),
    ("no configuration", "neither config.json nor adapter_config.json"),
]


@pytest.mark.parametrize("how, message", ADAPTERS)
def test_adapters(refusal, tmp_path, start_adapter, tokenizer, how, message):
    folder = tmp_path / "adapter"
    shutil.copytree(start_adapter, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    match how:
        case "base not there":
            path.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
        case "another base":
            save_model(build_model("phi3", vocab_size=600), tokenizer, tmp_path / "other")
            path.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "other")}))
        case "torn weights":
            weights = folder / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:900])
        case "no configuration":
            path.unlink()
    line = refusal("train_grpo", model=folder)
    assert re.search(message, line) and (str(folder) in line or str(tmp_path / "gone") in line), line


# --- the machine


def test_an_output_dir_that_cannot_be_written(refusal, tmp_path):
    (tmp_path / "file").write_text("")
    assert "output_dir" in refusal("train_sft", output_dir=tmp_path / "file")
    assert "output_dir /proc/nothing: cannot be written" in refusal("train_sft", output_dir="/proc/nothing")
    assert "logging_dir /proc/nothing: cannot be written" in refusal("train_sft", logging_dir="/proc/nothing")
    assert "/proc/nothing" in refusal("preprocess", num_variables=[4], output_dir="/proc/nothing")
    assert "output_dir /proc/nothing: cannot be written" in refusal(
        "evaluate", model="tiny", output_dir="/proc/nothing"
    )


def test_what_is_there_is_not_overwritten(refusal, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years")
    for script, options in (("train_sft", {}), ("evaluate", {"model": "tiny"}), ("preprocess", {"num_variables": [3]})):
        assert "not empty" in refusal(script, **options)


# --- the machine, as two processes under the launcher meet it: its own report stays, but ends in the line

LAUNCH = "-m accelerate.commands.launch --config_file accelerate_configs/zero2_2xcpu.yaml train_sft.py".split()
BROKEN_RANK = """
import errno, os
if os.environ.get("RANK") == "1":
    import datasets
    def fail(path, *_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    datasets.load_from_disk = fail
"""


def launched(*command, **environment: str) -> str:
    """The output of a command that must fail within a minute of its error, in one line, with no process left over."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MARK": str(uuid.uuid4())} | environment
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, text=True, timeout=300, **streams)
    assert done.returncode != 0
    assert len(re.findall("^error: ", done.stdout, re.MULTILINE)) == 1, done.stdout
    assert done.stdout.count("Traceback") <= 1, done.stdout  # the launcher's own
    line = re.search("^error: .*", done.stdout, re.MULTILINE).group()
    assert f"traceback : {line}" in done.stdout.split("Root Cause")[1]
    mark = f"MARK={environment['MARK']}".encode()
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if mark in readable(path)]
    assert not left
    return line


def readable(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def test_one_rank_that_fails_takes_the_other_down(tmp_path, dataset):
    (tmp_path / "sitecustomize.py").write_text(BROKEN_RANK)
    places = ["--dataset", dataset, "--output_dir", tmp_path / "model", "--logging_dir", tmp_path / "logs"]
    line = launched(sys.executable, *LAUNCH, *places, PYTHONPATH=str(tmp_path))
    assert line.startswith(f"error: rank 1: dataset {dataset}: cannot be read ([Errno 5] Input/output error")


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, dataset):
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o size=20m tmpfs"
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} {tmp_path / 'disk'}"]).returncode != 0:
        pytest.skip("no small disk can be mounted here")
    places = ["--dataset", dataset, "--output_dir", tmp_path / "disk" / "model", "--logging_dir", tmp_path / "logs"]
    steps = ["--max_steps", 12, "--batch_size", 4, "--save_steps", 4, "--save_total_limit", 1, "--eval_steps", 0]
    words = shlex.join(map(str, [sys.executable, *LAUNCH, *places, *steps, "--eval_rows", 4]))
    kept = f"cp -r {tmp_path / 'disk' / 'model'} {tmp_path / 'kept'}"
    shell = f"{mount} {tmp_path / 'disk'} && {words}; status=$?; {kept}; exit $status"
    line = launched("unshare", "-rm", "sh", "-c", shell)
    assert "checkpoint-8: cannot be written" in line and "No space left on device" in line
    assert line.endswith("the last whole one is checkpoint-4: make room, then continue with resume_from latest")
    assert [path.name for path in list_checkpoints(tmp_path / "kept")] == ["checkpoint-4"]
    assert damage(tmp_path / "kept" / "checkpoint-4") is None
