"""Configuration: YAML, then the command line; every mistake is one line that names the field."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from runtime.ending import run_script
from runtime.settings import arg, check, check_choice, parse_config, write_config


@dataclass
class Config:
    rate: float = arg(1e-3, "a rate, 100% of it")
    steps: int = arg(5, "a count")
    name: str = arg("tiny", "a name")
    flag: bool = arg(False, "a switch")
    strict: bool = arg(True, "a switch that is on")
    cap: int | None = arg(None, "a count or nothing")
    ratio: float | None = arg(None, "a number or nothing")
    path: str | None = arg(None, "a name or nothing")
    sizes: list[int] = arg([3, 4], "some counts")
    weights: list[float] = arg([1.0, 1.0], "some numbers")
    words: list[str] = arg([], "some names")


def yaml_file(tmp_path, text: str) -> list[str]:
    (tmp_path / "config.yaml").write_text(text)
    return ["--config", str(tmp_path / "config.yaml")]


def error_of(argv: list[str]) -> str:
    with pytest.raises(ValueError) as error:
        parse_config(Config, argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults():
    assert parse_config(Config, []) == Config()
    assert parse_config(Config, []).sizes is not parse_config(Config, []).sizes


def test_the_command_line_overrides_the_file_which_overrides_defaults(tmp_path):
    argv = yaml_file(tmp_path, "steps: 7\nname: other\nrate: 0.5\n")
    config = parse_config(Config, [*argv, "--steps", "9"])
    assert (config.steps, config.name, config.rate, config.flag) == (9, "other", 0.5, False)
    assert parse_config(Config, ["--steps=9", *argv]) == config


def test_a_file_stands_on_its_base(tmp_path):
    (tmp_path / "first.yaml").write_text("steps: 1\nname: first\nsizes: [1]\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nname: second\nrate: 1e-5\n")
    config = parse_config(Config, yaml_file(tmp_path, "base: second.yaml\nsteps: 3\n"))
    assert (config.steps, config.name, config.sizes, config.rate) == (3, "second", [1], 1e-5)


def test_a_wrong_base_is_named(tmp_path):
    assert "nowhere.yaml: no such file" in error_of(yaml_file(tmp_path, "base: nowhere.yaml"))
    assert "base config.yaml is above itself" in error_of(yaml_file(tmp_path, "base: config.yaml"))
    (tmp_path / "first.yaml").write_text("stepps: 1\n")
    assert "first.yaml: unknown field stepps; did you mean steps?" in error_of(yaml_file(tmp_path, "base: first.yaml"))


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", '"1e-5"'])
def test_yaml_numbers(tmp_path, text):
    """YAML 1.1 reads 1e-5 as text."""
    config = parse_config(Config, yaml_file(tmp_path, f"rate: {text}\nratio: {text}"))
    assert config.rate == config.ratio == 1e-5 and isinstance(config.rate, float)


def test_whole_numbers_are_numbers(tmp_path):
    config = parse_config(Config, yaml_file(tmp_path, "rate: 2\nratio: 3\nweights: [1, 5]"))
    assert (config.rate, config.ratio, config.weights) == (2.0, 3.0, [1, 5])
    assert isinstance(config.rate, float)


def test_switches(tmp_path):
    assert parse_config(Config, ["--flag", "true", "--strict", "false"]) == Config(flag=True, strict=False)
    assert parse_config(Config, yaml_file(tmp_path, "flag: true\nstrict: no")) == Config(flag=True, strict=False)
    assert parse_config(Config, [*yaml_file(tmp_path, "flag: true"), "--flag", "false"]).flag is False


def test_nothing_and_something(tmp_path):
    assert parse_config(Config, yaml_file(tmp_path, "cap: 3\npath: x")) == Config(cap=3, path="x")
    assert parse_config(Config, yaml_file(tmp_path, "cap: null\npath:\nratio: ~")) == Config()
    assert parse_config(Config, ["--cap", "8", "--ratio", "0.5"]) == Config(cap=8, ratio=0.5)


def test_lists(tmp_path):
    assert parse_config(Config, yaml_file(tmp_path, "weights: [1e-1, 2]")).weights == [0.1, 2.0]
    assert parse_config(Config, ["--sizes", "2", "5", "--words", "a", "b"]) == Config(sizes=[2, 5], words=["a", "b"])
    argv = yaml_file(tmp_path, "sizes: [6]\nweights: [0.5, 2.0]\nwords: [x]")
    assert parse_config(Config, argv) == Config(sizes=[6], weights=[0.5, 2.0], words=["x"])
    assert parse_config(Config, [*argv, "--sizes", "2"]).sizes == [2]


def test_text_may_be_empty_or_look_like_a_number(tmp_path):
    assert parse_config(Config, yaml_file(tmp_path, 'name: ""')).name == ""
    assert parse_config(Config, ["--name", "12"]).name == "12"


# --- mistakes


@pytest.mark.parametrize("argv", [["--stepz", "3"], ["--stepz=3"]])
def test_an_unknown_option_names_the_nearest(argv):
    assert error_of(argv) == "unknown option --stepz; did you mean steps?"


def test_a_setting_of_other_trainers_is_told_its_place(tmp_path):
    assert "accelerate_configs/zero2_2x2080ti.yaml fp16" in error_of(yaml_file(tmp_path, "bf16: true"))
    assert "micro_batch_tokens" in error_of(["--per_device_train_batch_size", "2"])
    assert "no flash kernel" in error_of(["--attn_implementation", "flash_attention_2"])


def test_an_unknown_field_names_the_nearest_and_the_file(tmp_path):
    message = error_of(yaml_file(tmp_path, "nmae: x"))
    assert "config.yaml" in message and "unknown field nmae" in message and "did you mean name?" in message
    assert "--help lists the fields" in error_of(yaml_file(tmp_path, "zzzzzz: 1"))


@pytest.mark.parametrize("option", ["--step", "--s"])
def test_no_abbreviations(option):
    assert "unknown option" in error_of([option, "3"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "abc"), ("steps", "1.5"), ("rate", "fast"), ("flag", "maybe"), ("cap", "many"), ("sizes", "two")],
)
def test_a_wrong_type_names_the_field(tmp_path, name, value):
    assert name in error_of([f"--{name}", value])
    assert name in error_of(yaml_file(tmp_path, f"{name}: {value}"))


@pytest.mark.parametrize(
    "text",
    [
        "steps: true",
        "rate: false",
        "steps: null",
        "name: null",
        "name: 3",
        "path: [a]",
        "cap: 1.5",
        "flag: 3",
        "sizes: 3",
        "rate: [1.0]",
        "sizes: [a]",
        "sizes: [1.5]",
        "weights: [x]",
        "weights: null",
        "words: [1]",
    ],
)
def test_a_wrong_type_in_yaml_names_the_field(tmp_path, text):
    assert text.split(":")[0] in error_of(yaml_file(tmp_path, text))


def test_an_option_without_its_value_and_stray_words():
    assert "steps" in error_of(["--steps"])
    assert "stray" in error_of(["stray"])


def test_a_config_that_cannot_be_read(tmp_path):
    assert "no such file" in error_of(["--config", str(tmp_path / "none.yaml")])
    assert "no such file" in error_of(["--config", str(tmp_path)])
    assert "not valid YAML" in error_of(yaml_file(tmp_path, "a: [1\nb: 2"))
    assert "field: value" in error_of(yaml_file(tmp_path, "- 1\n- 2"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00name")
    assert "not valid YAML" in error_of(["--config", str(tmp_path / "bytes.yaml")])
    assert parse_config(Config, yaml_file(tmp_path, "# nothing\n")) == Config()


def test_checks():
    check(True, "fine")
    with pytest.raises(ValueError, match="^steps: too few$"):
        check(False, "steps: too few")
    check_choice("name", "a", ("a", "b"))
    with pytest.raises(ValueError, match="^name: 'c' is not one of a, b$"):
        check_choice("name", "c", ("a", "b"))


# --- scripts


def test_a_user_error_is_one_line_and_exit_status_2(capsys):
    def main():
        raise ValueError("steps: too few")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: steps: too few\n"


def test_out_of_memory_is_one_line_with_the_remedy(capsys):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: out of memory: lower micro_batch_tokens")
    assert error.count("\n") == 1 and "2.00 GiB" in error


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(KeyError):
        run_script(lambda: {}["x"])


def test_written_config_reads_back(tmp_path):
    config = Config(rate=0.25, sizes=[1], cap=4)
    write_config(config, tmp_path / "config.json")
    assert Config(**json.loads((tmp_path / "config.json").read_text())) == config


def test_help_lists_fields_with_defaults():
    with pytest.raises(SystemExit) as stop:
        parse_config(Config, ["--help"])
    assert stop.value.code == 0


def test_help_of_a_script_in_a_shell():
    """As a user meets it: exit status 0, every field with its default."""
    code = "from runtime.ending import *; from test_settings import *; run_script(lambda: print(parse_config(Config)))"
    shell = [sys.executable, "-c", f"import sys; sys.path[:0] = ['.', 'tests/runtime']; {code}"]
    done = subprocess.run([*shell, "--help"], capture_output=True, text=True)
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and "a rate, 100% of it (default: 0.001)" in text and "--sizes" in text
    done = subprocess.run([*shell, "--steps", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
