"""Checkpoints on disk: `checkpoint-<step>` directories of a run, each with a manifest of its files' hashes."""

import json
import re
import shutil
from pathlib import Path

from runtime.files import check_vacant, make_output_dir, sha256

MANIFEST = "manifest.json"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Directories `checkpoint-<step>` of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of)


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
        shutil.rmtree(old)


def claim_output_dir(directory: str, overwrite: bool) -> Path:
    """Create the output directory; one that holds files is only used with `overwrite`, which drops its checkpoints."""
    path = make_output_dir(directory)
    remedy = "name another, or set overwrite true"
    if (path / "training_config.json").is_file():
        remedy = "set resume_from latest to continue its run, name another, or set overwrite true"
    check_vacant(path, overwrite, remedy)
    for checkpoint in list_checkpoints(path):  # another run's steps would be taken for this one's
        shutil.rmtree(checkpoint)
    for name in ("finished.json", "best.json"):
        (path / name).unlink(missing_ok=True)
    return path
