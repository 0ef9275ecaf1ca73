"""Configuration: YAML, then the command line; every mistake is one line that names the field."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing
from dataclasses import dataclass

import pytest
import torch
from conftest import ROOT

import evaluate
import preprocess
import train_grpo
import train_sft
from runtime.ending import run_script
from runtime.settings import (
    AUTO,
    ELSEWHERE,
    GONE,
    AutoInt,
    Settings,
    arg,
    check,
    check_choice,
    parse_config,
    read_yaml,
    section_of_fields,
    write_config,
)
from training.settings import TrainingSettings

SCRIPTS = {
    "preprocess": preprocess.DataConfig,
    "train_sft": train_sft.Config,
    "train_grpo": train_grpo.Config,
    "evaluate": evaluate.Config,
}


@dataclass
class Config(Settings):
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
    options: dict = arg({}, "some values by name")


@dataclass
class Sized(Settings):
    size: AutoInt = arg(AUTO, "a count, or found by itself", at_least=2)


@dataclass
class Smaller(Sized):
    size: AutoInt = 7


def yaml_file(tmp_path, text: str) -> list[str]:
    (tmp_path / "config.yaml").write_text(text)
    return ["--config", str(tmp_path / "config.yaml")]


def error_of(argv: list[str]) -> str:
    with pytest.raises(ValueError) as error:
        parse_config(Config, argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def option_of(name: str, value) -> list[str]:
    return [f"--{name}", *(str(part) for part in (value if isinstance(value, list) else [value]))]


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
    of_file = yaml_file(tmp_path, "cap: 3\npath: x\nratio: 2")
    assert parse_config(Config, [*of_file, "--cap", "null", "--path", "null", "--ratio", "null"]) == Config()
    with pytest.raises(ValueError, match="--cap: invalid int value: 'none'"):
        parse_config(Config, ["--cap", "none"])
    with pytest.raises(ValueError, match="--steps: invalid int value: 'null'"):
        parse_config(Config, ["--steps", "null"])


def test_lists(tmp_path):
    assert parse_config(Config, yaml_file(tmp_path, "weights: [1e-1, 2]")).weights == [0.1, 2.0]
    assert parse_config(Config, ["--sizes", "2", "5", "--words", "a", "b"]) == Config(sizes=[2, 5], words=["a", "b"])
    argv = yaml_file(tmp_path, "sizes: [6]\nweights: [0.5, 2.0]\nwords: [x]")
    assert parse_config(Config, argv) == Config(sizes=[6], weights=[0.5, 2.0], words=["x"])
    assert parse_config(Config, [*argv, "--sizes", "2"]).sizes == [2]


def test_mappings(tmp_path):
    argv = yaml_file(tmp_path, "options: {think: false, day: 2024-07-26, deep: {1: [x]}}")
    assert parse_config(Config, argv).options == {"think": False, "day": "2024-07-26", "deep": {"1": ["x"]}}
    words = ["--options", "think=false", "count=3", "day=2024-07-26", "text=26 Jul 2024", "both=a=b", "none="]
    given = {"think": False, "count": 3, "day": "2024-07-26", "text": "26 Jul 2024", "both": "a=b", "none": None}
    assert parse_config(Config, [*argv, *words]).options == given
    json.dumps(given)
    assert Config().options is not Config().options
    for word in ("think", "=false"):
        assert error_of(["--options", word]) == f"options: {word!r} is not NAME=VALUE"
    for word in (1, None):
        assert error_of(yaml_file(tmp_path, f"options: [{'null' if word is None else word}]")).startswith("options: ")


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
    assert "torch's SDPA" in error_of(["--attn_implementation", "flash_attention_2"])


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
        "sizes: {a: 3}",
        "sizes: a",
        "rate: [1.0]",
        "sizes: [a]",
        "sizes: [1.5]",
        "weights: [x]",
        "weights: null",
        "words: [1]",
        "options: [a]",
        "options: null",
    ],
)
def test_a_wrong_type_in_yaml_names_the_field(tmp_path, text):
    assert text.split(":")[0] in error_of(yaml_file(tmp_path, text))


def test_an_option_without_its_value_and_stray_words():
    assert "steps" in error_of(["--steps"])
    assert "stray" in error_of(["stray"])


def test_a_field_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\nname: x\nseed: 2\n")
    with pytest.raises(ValueError, match=r"--config .*config.yaml: not valid YAML: seed is there twice .*line 1"):
        read_yaml(str(tmp_path / "config.yaml"))


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


# --- bounds


@dataclass
class Bounded(Settings):
    count: int = arg(1, "a count", at_least=1)
    size: int = arg(3, "a size", at_least=2, at_most=8)
    rate: float = arg(0.5, "a rate", above=0)
    weight: float = arg(0.0, "a weight", at_least=0)
    share: float = arg(0.5, "a share", at_least=0, at_most=1)
    dropout: float = arg(0.0, "a probability", at_least=0, below=1)
    threshold: float = arg(0.5, "a probability", above=0, below=1)
    loss: float = arg(-1.0, "a loss", at_most=-1)
    cap: int | None = arg(None, "a count or nothing", at_least=1)
    ratio: float | None = arg(None, "a number or nothing", above=0)
    sizes: list[int] = arg([2], "some counts", at_least=1)
    group: int = arg(2, "a count", at_least=2, words="a group needs at least 2")
    kind: str = arg("a", "a | b", choices=("a", "b"))
    kinds: list[str] = arg([], "of a and b", choices=("a", "b"))


OUT_OF_BOUNDS = [
    ("count", 0, "count: must be at least 1, got 0"),
    ("size", 1, "size: must be between 2 and 8, got 1"),
    ("size", 9, "size: must be between 2 and 8, got 9"),
    ("rate", 0.0, "rate: must be above 0, got 0.0"),
    ("rate", float("inf"), "rate: must be above 0 and finite, got inf"),
    ("rate", float("nan"), "rate: must be above 0 and finite, got nan"),
    ("weight", -0.5, "weight: must be 0 or more, got -0.5"),
    ("share", 1.5, "share: must be between 0 and 1, got 1.5"),
    ("share", float("nan"), "share: must be between 0 and 1 and finite, got nan"),
    ("dropout", 1.0, "dropout: must be 0 or more and less than 1, got 1.0"),
    ("threshold", 0.0, "threshold: must be above 0 and less than 1, got 0.0"),
    ("loss", 0.0, "loss: must be at most -1, got 0.0"),
    ("loss", float("-inf"), "loss: must be at most -1 and finite, got -inf"),
    ("cap", 0, "cap: must be at least 1, got 0"),
    ("ratio", -1.0, "ratio: must be above 0, got -1.0"),
    ("sizes", [3, 0], "sizes: must be at least 1, got 0"),
    ("group", 1, "group: a group needs at least 2, got 1"),
    ("kind", "c", "kind: 'c' is not one of a, b"),
    ("kinds", ["a", "c"], "kinds: 'c' is not one of a, b"),
]


@pytest.mark.parametrize(("name", "value", "message"), OUT_OF_BOUNDS)
def test_a_value_out_of_its_bounds_is_named(tmp_path, name, value, message):
    """Constructed directly, in a file and on the command line alike."""
    words = option_of(name, value) if isinstance(value, list) else [f"--{name}={value}"]
    argv = yaml_file(tmp_path, f"{name}: {json.dumps(value).replace('Infinity', '.inf').replace('NaN', '.nan')}")
    for construct in (
        lambda: Bounded(**{name: value}),
        lambda: parse_config(Bounded, words),
        lambda: parse_config(Bounded, argv),
    ):
        with pytest.raises(ValueError) as error:
            construct()
        assert str(error.value) == message


def test_what_is_in_bounds_passes():
    Bounded(count=1, size=2, share=0.0, dropout=0.0, loss=-1.0, cap=None, ratio=None, sizes=[], kinds=["a", "b", "a"])
    Bounded(size=8, share=1.0, dropout=0.999, cap=1, ratio=0.1, sizes=[1, 2])


def test_a_wrong_type_is_named_before_a_bound(tmp_path):
    """A bound could not be asked of it."""
    for text in ("rate: [1.0]", "count: null", "rate: fast"):
        with pytest.raises(ValueError, match=f"^(argument --)?{text.split(':')[0]}: "):
            parse_config(Bounded, yaml_file(tmp_path, text))


@dataclass
class Narrower(Bounded):
    rate: float = 0.25
    sizes: list[int] = [7]  # noqa: RUF012 (Settings makes a field of it)
    extra: int = arg(0, "one more", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        check(self.extra <= self.count, "extra: more than count")


def test_another_default_leaves_a_field_its_bounds_and_its_help(capsys):
    assert (Narrower().rate, Narrower().sizes, Narrower().count) == (0.25, [7], 1)
    assert Narrower().sizes is not Narrower().sizes and Bounded().rate == 0.5
    for options, message in (({"rate": 0.0}, "rate: must be above 0"), ({"extra": 2}, "extra: more than count")):
        with pytest.raises(ValueError, match=message):
            Narrower(**options)
    assert "a rate (default: 0.25)" in " ".join(help_of(Narrower, capsys).split())


# --- --help


def help_of(cls, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_config(cls, ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def sections_of_help(text: str) -> dict[str, list[str]]:
    """The options under each heading, in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\S[^:]*):", line):
            found[heading[1]] = []
        elif option := re.match(r"  --(\w+)", line):
            found[list(found)[-1]].append(option[1])
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_every_field_in_a_section(script, capsys):
    config = SCRIPTS[script]
    found = sections_of_help(help_of(config, capsys))
    assert found.pop("options") == ["config", "debug"]
    names = [field.name for field in dataclasses.fields(config)]
    assert sorted(name for section in found.values() for name in section) == sorted(names)
    assert {name: section for section, names in found.items() for name in names} == section_of_fields(config)
    assert all(found.values()) and "settings" not in found, "a field before the first section"


def test_sections_of_both_stages_come_in_one_order(capsys):
    """A field of a script's own joins the section that it names, though the shared ones come first."""
    sft, grpo = (sections_of_help(help_of(SCRIPTS[name], capsys)) for name in ("train_sft", "train_grpo"))
    shared = ["model and data", "policy", "generation", "objective", "optimisation", "watching", "interruptions"]
    assert list(grpo) == ["options", *TrainingSettings.sections]
    assert list(sft) == [name for name in grpo if name in ("options", *shared)]
    assert "adaptation" in sft["policy"] and "max_steps" in grpo["optimisation"]
    assert set(shared) == set(section_of_fields(TrainingSettings).values())


def test_help_says_a_script_its_defaults_and_no_twins(capsys):
    text = " ".join(help_of(train_grpo.Config, capsys).split())
    assert "Group relative policy optimization" in text and "--no_keep_best" not in text and "--keep-best" not in text
    assert "samples G of a prompt (default: 8)" in text and "hub revision of the model (default: null)" in text
    assert parse_config(train_grpo.Config, ["--num-generations", "4"]).num_generations == 4


# --- settings that have gone

GONE_VALUES = {bool: True, int: 3, float: 0.5, str: "other", list: ["logs"]}  # not the harmless one


@dataclass
class Survivor(Config):
    estimator: str = arg("other", "a setting that a script still has", choices=("other", "sampled"))


@pytest.mark.parametrize("name", GONE)
def test_a_setting_that_has_gone_is_refused_where_it_did_something(tmp_path, name):
    value, remedy = GONE_VALUES[type(GONE[name][0])], GONE[name][1]
    for message in (
        error_of(yaml_file(tmp_path, f"{name}: {json.dumps(value)}\nsteps: 3")),
        error_of(option_of(name, value)),
    ):
        assert name in message and "has gone" in message and remedy in message


@pytest.mark.parametrize("name", GONE)
def test_a_setting_that_has_gone_is_left_out_where_it_did_nothing(tmp_path, name, capsys):
    harmless = GONE[name][0]
    argv = yaml_file(tmp_path, f"{name}: {json.dumps(harmless)}\nsteps: 3")
    assert parse_config(Config, argv) == Config(steps=3)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "config.yaml" in printed and f"{name} {harmless!r}" in printed
    if harmless != []:
        assert parse_config(Config, ["--rate", "2", *option_of(name, harmless), "--steps", "3"]) == Config(2.0, 3)
        assert parse_config(Config, [f"--{name}={harmless}", "--steps", "3"]) == Config(steps=3)
        assert capsys.readouterr().out.count("has gone") == 2


def test_a_setting_that_has_gone_is_told_once_a_launch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert parse_config(Config, yaml_file(tmp_path, "plan: no\ndual_clip: 0")) == Config()
    assert capsys.readouterr().out == ""


def test_a_switch_without_a_value_is_on_and_the_words_of_others_stay(tmp_path):
    assert "--plan True: this setting has gone; use python plan.py --config FILE" in error_of(["--plan"])
    assert "--curves ['a', 'b']: this setting has gone" in error_of(["--steps", "3", "--curves", "a", "b"])
    assert "--free_tokens '[: *'" in error_of(["--free-tokens", "[: *"])
    (tmp_path / "first.yaml").write_text("card_gb: 11\n")
    assert "first.yaml: card_gb 11: this setting has gone" in error_of(yaml_file(tmp_path, "base: first.yaml"))


def test_a_field_that_a_script_still_has_has_not_gone(tmp_path, capsys):
    assert parse_config(Survivor, ["--estimator", "sampled"]).estimator == "sampled"
    assert parse_config(Survivor, yaml_file(tmp_path, "estimator: sampled")).estimator == "sampled"
    assert capsys.readouterr().out == ""
    assert not GONE.keys() & ELSEWHERE.keys()


# --- what the two stages share

OTHER_DEFAULTS = {"model", "claims_per_prefix", "output_dir", "logging_dir", "learning_rate"}
OTHER_DEFAULTS |= {"logging_steps", "eval_steps", "save_steps"}
OTHER_MEANINGS = {"max_steps"}  # optional in SFT


def test_fields_that_both_stages_share_stand_once():
    sft, grpo = ({f.name: f for f in dataclasses.fields(x)} for x in (train_sft.Config, train_grpo.Config))
    kinds = [typing.get_type_hints(x) for x in (train_sft.Config, train_grpo.Config)]
    assert sft.keys() & grpo.keys() == {f.name for f in dataclasses.fields(TrainingSettings)} | OTHER_MEANINGS
    assert {name for name in sft if name in grpo and sft[name].metadata != grpo[name].metadata} == OTHER_MEANINGS
    assert all(kinds[0][name] == kinds[1][name] for name in sft.keys() & grpo.keys())
    defaults = [vars(train_sft.Config()), vars(train_grpo.Config())]
    shared = sft.keys() & grpo.keys() - OTHER_MEANINGS
    assert {name for name in shared if defaults[0][name] != defaults[1][name]} == OTHER_DEFAULTS


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


SCRIPT = '''"""A script of two settings.

And more about it."""

from dataclasses import dataclass

from runtime.ending import run_script
from runtime.settings import Settings, arg, parse_config


@dataclass
class Config(Settings):
    rate: float = arg(1e-3, "a rate, 100% of it")
    sizes: list[int] = arg([3, 4], "some counts", at_least=1)


run_script(lambda: print(parse_config(Config)))
'''


def test_help_of_a_script_in_a_shell(tmp_path):
    """As a user meets it: exit status 0, what the script does, every field with its default."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def shell(*words: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, tmp_path / "script.py", *words], capture_output=True, text=True, env=environment
        )

    done = shell("--help")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and "a rate, 100% of it (default: 0.001)" in text and "--sizes" in text
    assert "A script of two settings." in text and "And more" not in text
    for words in (("--rate", "x"), ("--sizes", "0")):
        done = shell(*words)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ")


# --- sizes that may be auto


def test_a_size_is_a_number_or_auto(tmp_path):
    assert parse_config(Sized, []).size == AUTO and parse_config(Smaller, []).size == 7
    assert parse_config(Smaller, ["--size", "auto"]).size == AUTO and parse_config(Sized, ["--size", "3"]).size == 3
    assert parse_config(Smaller, yaml_file(tmp_path, "size: auto")).size == AUTO
    assert parse_config(Sized, yaml_file(tmp_path, "size: 3")).size == 3


@pytest.mark.parametrize("value", ["1", "-5", "2.5", "many", "true", "1e3", "Auto", "null", "[]", "[4, 5]"])
@pytest.mark.parametrize("config", [Sized, Smaller])
def test_a_size_that_is_neither_is_refused(value, config, tmp_path):
    for argv in (["--size", value], yaml_file(tmp_path, f"size: {value}")):
        with pytest.raises(ValueError, match=r"^size: must be auto or at least 2, got "):
            parse_config(config, argv)
