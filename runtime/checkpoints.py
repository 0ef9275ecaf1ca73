"""Checkpoints on disk: `checkpoint-<step>` directories of a run, each with a manifest of its files' hashes."""

import json
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from runtime.files import SET_APART, check_vacant, lock, make_output_dir, sha256
from runtime.settings import check

MANIFEST = "manifest.json"
RUN_OF_CURVES = ".run"  # in a logging_dir: the id and the output_dir of the run whose curves are in it
CONFIGURATION = "training_config.json"  # that a run notes as it begins
STATE = ("finished.json", "best.json", "branch.json")  # of a run, besides its checkpoints
MERGED = "merged.json"  # in a model that merge.py has made: what it is made of
MODEL = (  # what the libraries write of a model, by their names for it
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
    "adapter_config.json", "config.json", "generation_config.json", "README.md", "training_data.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates",
)  # fmt: skip


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Directories `checkpoint-<step>` of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(filter(Path.is_dir, found), key=step_of)


def _delete(path: Path) -> None:
    """A file or a directory; of a link, which a user has made to another place, only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def write_manifest(directory: Path) -> None:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != MANIFEST]
    hashes = {str(path.relative_to(directory)): sha256(path) for path in files}
    (directory / MANIFEST).write_text(json.dumps(hashes, indent=2) + "\n")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: a file that is missing or is not as it was written; None if nothing is."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text())
        for name, digest in hashes.items():
            if sha256(checkpoint / name) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, AttributeError, OSError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def prune(output_dir: Path, step: int, save_total_limit: int) -> None:
    """Delete the oldest checkpoints up to `step`, the one just written, beyond `save_total_limit` (0 keeps all)."""
    upto = [path for path in list_checkpoints(output_dir) if step_of(path) <= step]
    for old in upto[:-save_total_limit] if save_total_limit > 0 else []:
        _delete(old)


def set_apart(output_dir: Path, step: int) -> None:
    """Move the checkpoints later than `step`, from which the run goes another way, into a folder `set_apart-<n>`."""
    later = [path for path in list_checkpoints(output_dir) if step_of(path) > step]
    if not later:
        return
    number = 1 + max((int(path.name.removeprefix(SET_APART)) for path in output_dir.glob(f"{SET_APART}*")), default=0)
    folder = output_dir / f"{SET_APART}{number}"
    folder.mkdir()
    for path in later:
        path.rename(folder / path.name)
    names = ", ".join(path.name for path in later)
    print(f"{names}: of steps that are now taken anew; moved to {folder}", flush=True)


def hold_logging_dir(directory: str, output_dir: Path, adopt: bool) -> tuple[Any, bool]:
    """Hold a directory for the curves of the run in `output_dir`; ValueError if there are those of another run in it.

    A run knows its own (`sign_curves`), also where both have been moved or copied. `adopt`: curves of nobody known are
    taken for its own. Returns what holds the directory (of `lock`; None if that is output_dir, which is held), and
    whether the run has curves there already.
    """
    path = make_output_dir(directory, "logging_dir")
    held = None if path.resolve() == output_dir.resolve() else lock(path, "logging_dir")
    signature = path / RUN_OF_CURVES
    of, place, *_ = [*(signature.read_text().splitlines() if signature.is_file() else ()), "", ""]
    there = any(path.glob("events.out.tfevents.*"))
    own = of == _id_of(output_dir) or place == str(output_dir.resolve()) or (adopt and of == "")
    if there and not own:
        if held:
            held.close()
        remedy = "name another logging_dir, or delete it"
        raise ValueError(f"logging_dir {directory}: has the curves of {place or 'another run'}; {remedy}")
    return held, there


def sign_curves(logging_dir: str, output_dir: Path) -> None:
    """Note in `logging_dir` of which run its curves will be."""
    if not _id_of(output_dir):
        (output_dir / ".id").write_text(secrets.token_hex(8))
    (Path(logging_dir) / RUN_OF_CURVES).write_text(f"{_id_of(output_dir)}\n{output_dir.resolve()}\n")


def _id_of(output_dir: Path) -> str | None:
    file = output_dir / ".id"
    return file.read_text() if file.is_file() else None


def make_vacant_output_dir(directory: str, overwrite: bool) -> Path:
    """Create the output directory; ValueError, without `overwrite`, for one that holds files, and for one that holds a
    model that no run has made."""
    path = make_output_dir(directory)
    remedy, a_run = "name another, or set overwrite true", (path / CONFIGURATION).is_file()
    if a_run:
        remedy = "set resume_from latest to continue its run, name another, or set overwrite true"
    check_vacant(path, overwrite, remedy)
    strange = not a_run and any(path.glob("*.safetensors"))
    check(not strange, f"output_dir {directory}: holds a model that no run here has made; name another")
    return path


def check_no_merged(output_dir: Path) -> None:
    """ValueError for a merged model, which has the configuration of its adapter's run and is none itself."""
    is_merged = (output_dir / MERGED).is_file()
    check(not is_merged, f"output_dir {output_dir}: holds a model that merge.py has made, and no run; name another")


def drop_run(output_dir: Path) -> None:
    """Delete what is known of the run that was there, its model too: they would be taken for the new one's."""
    for checkpoint in list_checkpoints(output_dir):
        _delete(checkpoint)
    names = STATE + (MODEL if (output_dir / CONFIGURATION).is_file() else ())
    for path in [path for name in names for path in output_dir.glob(name)]:
        _delete(path)
