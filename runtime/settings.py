"""Configuration of every script: a dataclass, filled from `--config FILE.yaml`, then from `--field value` options.

A file may stand on another beside it: `base: sft_phi3.yaml` takes that one's fields, and its own override them.

    @dataclass
    class Config(Settings):
        learning_rate: float = arg(1e-5, "peak learning rate", above=0, section="optimisation")

    config = parse_config(Config)

Errors that a user can cause are `ValueError`s; `run_script` prints them as one line and exits with status 2.
"""

import argparse
import copy
import dataclasses
import difflib
import inspect
import json
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml

_ROWS = "batch_size or prompts_per_step is of all devices and accumulation steps; micro_batch_tokens bounds memory"
_PRECISION = "the launch has it: accelerate_configs/zero2_2xl4.yaml bf16, accelerate_configs/zero2_2x2080ti.yaml fp16"
_ATTENTION = "attention is the project's own on packed rows (policy/prefix_sharing.py), and torch's SDPA on padded ones"
ELSEWHERE = {  # settings of other trainers, and what is in their place here
    "per_device_train_batch_size": _ROWS,
    "gradient_accumulation_steps": _ROWS,
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "attn_implementation": _ATTENTION,
    "use_flash_attention_2": _ATTENTION,
}
_OWN_REWARD = "write a reward of your own, --reward_function FILE.py:NAME"
_PLAN = "use python plan.py --config FILE --card_gb 11"
GONE: dict[str, tuple[Any, str]] = {  # settings of earlier versions: the value that changed nothing, and the remedy
    "estimator": ("sampled", "raise num_generations for less noise"),
    "dual_clip": (0.0, "bound the ratio with eps_low and eps_high"),
    "importance": ("token", "leave it out: the ratio is that of each token"),
    "kl_correction": (False, "leave it out: the KL is estimated by k3 alone"),
    "format_weight": (0.0, _OWN_REWARD),
    "length_weight": (0.0, _OWN_REWARD),
    "free_tokens": (0, _OWN_REWARD),
    "resample_rounds": (0, "raise prompts_per_step"),
    "mask_truncated": (False, "raise max_new_tokens until few completions are cut"),
    "plan": (False, _PLAN),
    "card_gb": (0.0, _PLAN),
    "curves": ([], "use tensorboard --logdir DIR"),
}


# --- a field, and what it may be

AUTO = "auto"  # of a size that the run finds by itself
AutoInt = int | Literal["auto"]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a field's value, or every element of its list, may be; `words` say why, where the bounds alone do not.

    With `auto` the value is that word or a whole number.
    """

    above: float | None
    at_least: float | None
    below: float | None
    at_most: float | None
    choices: Collection[str] | None
    words: str
    auto: bool

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError for a value out of bounds; None, of an optional field, is in bounds."""
        if self.auto:
            whole = isinstance(value, int) and not isinstance(value, bool)
            check(
                value == AUTO or whole and self._holds(value), f"{name}: must be auto or {self._range()}, got {value}"
            )
            return
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            if self.choices is not None:
                check_choice(name, one, self.choices)
            else:
                finite = "" if math.isfinite(one) else " and finite"
                words = self.words or f"must be {self._range()}{finite}"
                check(not finite and self._holds(one), f"{name}: {words}, got {one}")

    def _holds(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def _range(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least} and {self.at_most}"
        least = "0 or more" if self.at_least == 0 else f"at least {self.at_least}"
        parts = {f"above {self.above}": self.above, least: self.at_least}
        parts |= {f"less than {self.below}": self.below, f"at most {self.at_most}": self.at_most}
        return " and ".join(words for words, bound in parts.items() if bound is not None)


def arg(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Collection[str] | None = None,
    words: str = "",
    section: str | None = None,
) -> Any:
    """A field of a Settings class: its default, the help text (with its unit) that `--help` prints, its bounds.

    A number with a bound must be finite too; a whole one whose default is `auto` is an AutoInt. Bounds and `choices`
    are of each element of a list; None passes. `words` say in an error what is wanted, instead of "must be at least 1".
    `section` begins a section of `--help`, which the fields below belong to as well, up to the next field that begins
    one.
    """
    limits = (above, at_least, below, at_most, choices)
    auto = default == AUTO and choices is None
    bounds = None if all(limit is None for limit in limits) else Bounds(*limits, words, auto)
    return _field(default, {"help": help, "bounds": bounds, "section": section})


def seed_arg(help: str) -> Any:
    """A seed, whose every value torch takes."""
    return arg(0, help, at_least=0, at_most=2**63 - 1)


def _field(default: Any, metadata: Any) -> Any:
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class Settings:
    """What the configuration of a script is made from: a dataclass whose fields are `arg`s, within their bounds.

    A subclass that gives an inherited field another default, as in `learning_rate: float = 1e-5`, leaves it its help,
    bounds and section.
    """

    sections: ClassVar[tuple[str, ...]] = ()  # in the order of `--help`, where that is not the order of the fields

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        inherited = getattr(cls, "__dataclass_fields__", {})
        for name in inspect.get_annotations(cls).keys() & inherited.keys() & vars(cls).keys():
            if not isinstance(vars(cls)[name], dataclasses.Field):
                setattr(cls, name, _field(vars(cls)[name], inherited[name].metadata))

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.metadata["bounds"] is not None:
                field.metadata["bounds"].check(field.name, getattr(self, field.name))

    def changed(self) -> set[str]:
        """The settings that are not at their defaults."""

        def default(field: dataclasses.Field) -> Any:
            return field.default_factory() if field.default is dataclasses.MISSING else field.default

        return {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != default(field)}

    def check_unread(self, names: Collection[str], remedy: str) -> None:
        """Raise ValueError for those of the settings `names`, which nothing reads, that are not at their defaults."""
        changed = self.changed()
        unread = [name for name in names if name in changed]
        check(not unread, f"{', '.join(unread)}: {remedy}")


T = TypeVar("T", bound=Settings)


# --- the command line


def parse_config(cls: type[T], argv: list[str] | None = None) -> T:
    """Parse the command line into `cls`: the YAML file of `--config` first, then every `--field value`.

    Raises ValueError, naming the nearest field, for an unknown key or option, for a value of the wrong type or out of
    its bounds, and for a setting of GONE that once changed something.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    argv = _without_gone(list(sys.argv[1:] if argv is None else argv), known)
    for option in (_name(word) for word in argv if word.startswith("--")):
        if option not in known and option not in ("config", "debug", "help"):
            raise ValueError(f"unknown option --{option}{_nearest(option, known)}")
    parser = _parser(cls, known)
    path = parser.parse_known_args(argv)[0].config if "--help" not in argv else None
    parser.set_defaults(**(read_yaml(path, known) if path else {}))
    given = vars(parser.parse_args(argv))
    values = {name: given[name] for name in known}
    for name, value in values.items():
        if known[name] is dict and isinstance(value, list):
            values[name] = _as_mapping(name, value)
        _check_type(name, values[name], known[name])
    return cls(**values)


def _parser(cls: type[Settings], known: dict[str, Any]) -> argparse.ArgumentParser:
    """The parser of `--config`, `--debug` and an option for each field, in the sections of the fields."""
    from transformers import HfArgumentParser  # nearly a second, which importers of `check` need not wait for

    def style(prog: str) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(prog, max_help_position=36)

    usage = "%(prog)s [--config FILE.yaml] [--field value ...]"
    about = (sys.modules[cls.__module__].__doc__ or "").split("\n")[0]  # of the script
    parser = HfArgumentParser((), allow_abbrev=False, usage=usage, description=about, formatter_class=style)
    parser.error = _raise
    config = "YAML file with any of the fields below; options given here override it"
    parser.add_argument("--config", metavar="FILE.yaml", help=config)
    parser.add_argument("--debug", metavar="true|false", help="true: print the traceback of an error too")
    section = section_of_fields(cls)
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys((*cls.sections, *section.values()))}
    for field in dataclasses.fields(cls):
        plain = copy.copy(field)  # HfArgumentParser rewrites the type
        plain.type = {AutoInt: str, dict: list[str]}.get(known[field.name], known[field.name])
        plain.metadata = {"help": f"{field.metadata['help']} (default: {_shown(field)})".replace("%", "%%")}
        HfArgumentParser._parse_dataclass_field(groups[section[field.name]], plain)
    for action in parser._actions:
        if action.dest in known:  # --output-dir is taken too, but one name is enough to read
            action.option_strings = action.option_strings[:1]
            action.metavar = _metavar(known[action.dest])
            action.type = _auto_or_int if known[action.dest] == AutoInt else action.type
            if type(None) in get_args(known[action.dest]):
                action.type = _null_or(action.type)
            if action.option_strings != [f"--{action.dest}"]:
                action.help = argparse.SUPPRESS  # --no_<field>: a switch is set to false
    return parser


def section_of_fields(cls: type[Settings]) -> dict[str, str]:
    """The section of `--help` that each field is in."""
    found, section = {}, "settings"
    for field in dataclasses.fields(cls):
        section = field.metadata["section"] or section
        found[field.name] = section
    return found


def _shown(field: dataclasses.Field) -> str:
    """A field's default as a YAML file would have it."""
    has_factory = field.default_factory is not dataclasses.MISSING
    default = field.default_factory() if has_factory else field.default
    return default if isinstance(default, str) and default else json.dumps(default)


def _auto_or_int(text: str) -> int | str:
    """An AutoInt of the command line; what is neither is for its bounds to refuse."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def _null_or(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """What reads the value of an option that may have none, which is said as in a YAML file: null."""
    return wraps(kind)(lambda text: None if text == "null" else kind(text))


def _as_mapping(name: str, words: list[str]) -> dict[str, Any]:
    """The NAME=VALUE words of an option as a mapping; the values are read as in YAML."""
    for word in words:
        check(isinstance(word, str) and word.find("=") > 0, f"{name}: {word!r} is not NAME=VALUE")
    return _as_kind({key: _as_yaml(value) for key, _, value in (word.partition("=") for word in words)}, dict)


def _metavar(kind: Any) -> str:
    """What the value of an option of this type is called in `--help`."""
    if kind == AutoInt:
        return "auto|int"
    kind = next((part for part in get_args(kind) if part is not type(None)), kind)  # of X | None and of list[X]: X
    return {bool: "true|false", str: "text", dict: "NAME=VALUE"}.get(kind, kind.__name__)


def _raise(message: str):
    raise ValueError(message)


def _nearest(name: str, known: dict[str, Any]) -> str:
    if name in ELSEWHERE:
        return f"; {ELSEWHERE[name]}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists the fields"


def _name(option: str) -> str:
    """The field that an option is of: --output_dir=x, --output-dir -> output_dir."""
    return option[2:].split("=")[0].replace("-", "_")


def _without_gone(argv: list[str], known: Collection[str]) -> list[str]:
    """The command line without options of GONE and their values; ValueError if one of them changed something."""
    parts: list[list[str]] = [[]]
    for word in argv:
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    kept = parts[0]
    for words in parts[1:]:
        name = _name(words[0])
        if name not in GONE or name in known:
            kept += words
            continue
        values = [_as_yaml(text) for text in (*words[0].split("=")[1:], *words[1:])]
        _drop_gone(name, values[0] if len(values) == 1 else values or True, f"--{name}")
    return kept


def _as_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _drop_gone(name: str, value: Any, where: str) -> None:
    """Say that a setting of GONE is left out; raise ValueError, with the remedy, unless its value changed nothing."""
    harmless, remedy = GONE[name]
    check(value == harmless, f"{where} {value!r}: this setting has gone; {remedy}")
    if os.environ.get("RANK", "0") == "0":
        print(f"{where} {value!r}: this setting has gone; with this value it did nothing, and is left out", flush=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader takes the last of a name's values without a word; this one takes no name twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        twice = [str(name) for k, name in enumerate(names) if name in names[:k]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str, known: dict[str, Any] | None = None, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a file, over those of the file beside it that its `base` names, if it names one.

    Raises ValueError for what is no such file, and for a field that is not in `known`, a type for each name.
    """
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        values = yaml.load(Path(path).read_text(), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected `field: value` lines")
    base = values.pop("base", None)
    for name in list(values) if known is not None else ():
        if name in GONE and name not in known:
            _drop_gone(name, values.pop(name), f"--config {path}: {name}")
            continue
        if name not in known:
            raise ValueError(f"--config {path}: unknown field {name}{_nearest(str(name), known)}")
        values[name] = _as_kind(values[name], known[name])
    if base is None:
        return values
    check(str(base) not in above, f"--config {path}: base {base} is above itself")
    return read_yaml(str(Path(path).parent / str(base)), known, (*above, str(base))) | values


def _as_kind(value: Any, kind: Any) -> Any:
    """A value of YAML as the field's: one alone where a list is expected is a list of one, a date in a mapping text."""
    if kind is dict and isinstance(value, dict):
        return json.loads(json.dumps(value, default=str))
    if get_origin(kind) is list and not isinstance(value, dict | None):
        values = value if isinstance(value, list) else [value]
        return [_as_kind(element, get_args(kind)[0]) for element in values]
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
    if kind == AutoInt:
        return  # its bounds say more
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


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    check(value in choices, f"{name}: {value!r} is not one of {', '.join(choices)}")


def write_config(config: Settings, path: Path) -> None:
    """Write the resolved configuration, as the script used it, as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
