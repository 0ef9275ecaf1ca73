"""Configuration of every script: a dataclass, filled from `--config FILE.yaml`, then from `--field value` options.

A file may stand on another beside it: `base: sft_phi3.yaml` takes that one's fields, and its own override them.

    @dataclass
    class Config:
        learning_rate: float = arg(1e-5, "peak learning rate")

    config = parse_config(Config)

Errors that a user can cause are `ValueError`s; `run_script` prints them as one line and exits with status 2.
"""

import dataclasses
import difflib
import json
import math
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

T = TypeVar("T")
_ROWS = "batch_size or prompts_per_step is of all devices and accumulation steps; micro_batch_tokens bounds memory"
_PRECISION = "the launch has it: accelerate_configs/zero2_2xl4.yaml bf16, accelerate_configs/zero2_2x2080ti.yaml fp16"
_ATTENTION = "attention is torch's SDPA, with a mask of shared prefixes that no flash kernel takes"
ELSEWHERE = {  # settings of other trainers, and what is in their place here
    "per_device_train_batch_size": _ROWS,
    "gradient_accumulation_steps": _ROWS,
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "attn_implementation": _ATTENTION,
    "use_flash_attention_2": _ATTENTION,
}


def arg(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help text (with its unit) that `--help` prints."""
    text = help.replace("%", "%%")
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def parse_config(cls: type[T], argv: list[str] | None = None) -> T:
    """Parse the command line into `cls`: the YAML file of `--config` first, then every `--field value`.

    Raises ValueError, naming the nearest field, for an unknown key or option, and for a value of the wrong type.
    """
    from transformers import HfArgumentParser  # nearly a second, which importers of `check` need not wait for

    argv = list(sys.argv[1:] if argv is None else argv)
    known = typing.get_type_hints(cls)  # not dataclasses.fields: HfArgumentParser rewrites their types
    parser = HfArgumentParser(cls, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with any of the fields below; options given here override it")
    parser.add_argument("--debug", help="true: print the traceback of an error too")
    parser.error = _raise
    for option in (a[2:].split("=")[0].replace("-", "_") for a in argv if a.startswith("--")):
        if option not in known and option not in ("config", "debug", "help"):
            raise ValueError(f"unknown option --{option}{_nearest(option, known)}")
    path = parser.parse_known_args(argv)[0].config if "--help" not in argv else None
    defaults = read_yaml(path, known) if path else {}
    parser.set_defaults(**defaults)
    config, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    for name, value in dataclasses.asdict(config).items():
        _check_type(name, value, known[name])
    return config


def _raise(message: str):
    raise ValueError(message)


def _nearest(name: str, known: dict[str, Any]) -> str:
    if name in ELSEWHERE:
        return f"; {ELSEWHERE[name]}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists the fields"


def read_yaml(path: str, known: dict[str, Any] | None = None, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a file, over those of the file beside it that its `base` names, if it names one.

    Raises ValueError for what is no such file, and for a field that is not in `known`, a type for each name.
    """
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected `field: value` lines")
    base = values.pop("base", None)
    for name in values if known is not None else ():
        if name not in known:
            raise ValueError(f"--config {path}: unknown field {name}{_nearest(str(name), known)}")
        values[name] = _as_number(values[name], known[name])
    if base is None:
        return values
    check(str(base) not in above, f"--config {path}: base {base} is above itself")
    return read_yaml(str(Path(path).parent / str(base)), known, (*above, str(base))) | values


def _as_number(value: Any, kind: Any) -> Any:
    if kind == list[float] and isinstance(value, list):
        return [_as_number(element, float) for element in value]
    # YAML 1.1 reads 1e-5 (no dot) as text.
    if kind in (float, float | None) and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_type(name: str, value: Any, kind: Any) -> None:
    if get_origin(kind) is list and isinstance(value, list):
        for element in value:
            _check_type(name, element, get_args(kind)[0])
        return
    kind = get_origin(kind) if get_origin(kind) is list else kind
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return
    wrong_bool = isinstance(value, bool) and kind in (int, float, str, int | None)
    if wrong_bool or not isinstance(value, kind):
        raise ValueError(f"{name}: expected {getattr(kind, '__name__', kind)}, got {value!r}")


def check(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition`: for settings that a user can mend."""
    if not condition:
        raise ValueError(message)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    check(value in choices, f"{name}: {value!r} is not one of {', '.join(choices)}")


RANGES: dict[str, Callable[[float], bool]] = {
    "at least 1": lambda value: value >= 1,
    "above 0": lambda value: value > 0,
    "0 or more": lambda value: value >= 0,
    "between 0 and 1": lambda value: 0 <= value <= 1,
    "0 or more and less than 1": lambda value: 0 <= value < 1,
}


def check_ranges(config: Any, ranges: dict[str, str]) -> None:
    """Raise ValueError unless the numbers are finite and in range: `ranges` maps one of RANGES to names of fields."""
    for name, words in ((name, words) for words, names in ranges.items() for name in names.split()):
        value = getattr(config, name)
        good = math.isfinite(value) and RANGES[words](value)
        check(good, f"{name}: must be {words}{'' if math.isfinite(value) else ' and finite'}, got {value}")


def write_config(config: Any, path: Path) -> None:
    """Write the resolved configuration, as the script used it, as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
