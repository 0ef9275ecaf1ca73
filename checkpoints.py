"""Output directories and checkpoints: written aside and renamed, so that a killed run leaves no half-written one."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from arguments import check


def claim_output_dir(directory: str, overwrite: bool) -> Path:
    """Create the output directory; one that holds files is only used with `overwrite`, which drops its checkpoints."""
    path = Path(directory)
    check(not path.exists() or path.is_dir(), f"output_dir {directory}: is a file")
    occupied = path.is_dir() and any(path.iterdir())
    check(overwrite or not occupied, f"output_dir {directory}: not empty; name another or set overwrite true")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {directory}: cannot be created ({error.strerror})") from None
    for checkpoint in list_checkpoints(path):  # another run's steps would be taken for this one's
        shutil.rmtree(checkpoint)
    return path


def write_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a directory beside the target, then put it in the target's place in one rename."""
    aside = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(aside, directory)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Directories `checkpoint-<step>` of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(output_dir: Path, step: int, save_total_limit: int, write: Callable[[Path], None]) -> Path:
    """Write `checkpoint-<step>` and delete the oldest ones beyond `save_total_limit` (0 keeps all)."""
    target = output_dir / f"checkpoint-{step}"
    write_directory(target, write)
    if save_total_limit > 0:
        for old in list_checkpoints(output_dir)[:-save_total_limit]:
            shutil.rmtree(old)
    return target
