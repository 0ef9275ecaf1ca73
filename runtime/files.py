"""Output directories and checkpoints on disk: filled aside, synced and renamed, so that none is half-written."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.settings import check

SET_APART = "set_apart-"  # and a number: a folder in a run's, of checkpoints from which it has turned back

# --- files that are whole or not there


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A new directory to fill, in the end put in the place of `directory`, or of what it links to: until then that
    stays as it was. ValueError if another process is filling one for that place."""
    directory = directory.resolve()
    aside = aside_of(directory)
    aside.mkdir(parents=True, exist_ok=True)
    held = os.open(aside, os.O_RDONLY)  # the lock is of the directory itself, and goes where that goes
    try:
        _hold(held, f"{directory}: another run is writing there")
        for entry in aside.iterdir():  # what a run left behind that was killed
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        try:
            yield aside
            put_in_place(aside, directory)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(held)


def write_into(directory: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a directory aside, then move its files, synced, into `directory`, over those of their names."""
    aside = directory / ".saving"
    make_empty(aside)
    write(aside)
    for path in sorted(aside.iterdir()):
        for part in (path, *path.rglob("*")):
            _sync(part)
        if path.is_dir():  # which does not go over another, as a tokenizer's further chat templates
            shutil.rmtree(directory / path.name, ignore_errors=True)
        os.replace(path, directory / path.name)
    aside.rmdir()
    _sync(directory)


def aside_of(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.tmp")


def make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def put_in_place(aside: Path, directory: Path) -> None:
    for path in (*aside.rglob("*"), aside):
        _sync(path)
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
    os.replace(aside, directory)
    _sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_beside(model: str, file: str) -> dict:
    """A JSON file beside a model, or beside the run that its checkpoint is of; empty if there is none."""
    folder = Path(model).parent
    # What was set apart is of the run around it, until another goes on there.
    run = folder.parent if folder.name.startswith(SET_APART) else folder
    for directory in (Path(model), folder, run):
        if model and (directory / file).is_file():
            return json.loads((directory / file).read_text(encoding="utf-8"))
    return {}


# --- may something be written here?


@contextmanager
def naming(place: str) -> Iterator[None]:
    """An OSError inside becomes one line, a ValueError: what cannot be written. `place` is the setting and its path."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{place}: cannot be written ({error.strerror}); name another") from None


def check_writable(folder: Path, place: str) -> None:
    """Make the folder if it is not there; ValueError, beginning with `place`, unless files can be made in it."""
    with naming(place):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder, prefix=".").cleanup()


def check_vacant(path: Path, overwrite: bool, remedy: str, setting: str = "output_dir") -> None:
    """ValueError, naming `setting`, if `path` is a file, or without `overwrite` a folder that holds any."""
    check(not path.exists() or path.is_dir(), f"{setting} {path}: is a file; name another")
    vacant = overwrite or not path.exists() or not is_occupied(path)
    check(vacant, f"{setting} {path}: is not empty; {remedy}")


def check_not_read(path: Path, *sources: str, setting: str = "output_dir") -> None:
    """ValueError, naming `setting`, if one of `sources`, files and directories that are read, is `path` or in it."""
    for source in filter(os.path.exists, sources):
        inside = path.resolve() in (Path(source).resolve(), *Path(source).resolve().parents)
        check(not inside, f"{setting} {path}: {source} is read from there; name another")


def make_output_dir(directory: str, setting: str = "output_dir") -> Path:
    """Create the directory that `setting` names; ValueError where that cannot be or nothing can be written in it."""
    path = Path(directory)
    check_vacant(path, overwrite=True, remedy="", setting=setting)
    check_writable(path, f"{setting} {directory}")
    return path


def is_occupied(path: Path) -> bool:
    return any(not entry.name.startswith(".") for entry in path.iterdir())


def lock(directory: Path, setting: str = "output_dir") -> Any:
    """Hold the directory that `setting` names until this process ends, however it ends; ValueError if another does."""
    file = (directory / ".lock").open("a")
    _hold(file.fileno(), f"{setting} {directory}: another run is using it")
    return file


def _hold(descriptor: int, taken: str) -> None:
    """Lock an open file or directory until it is closed; ValueError, beginning with `taken`, if another has done so."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{taken}; wait for it, or name another") from None
    except OSError as error:  # some network file systems have no locks
        print(f"{taken}? cannot be told, for there are no locks ({error.strerror})", flush=True)
