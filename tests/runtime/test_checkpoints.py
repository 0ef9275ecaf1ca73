"""Output directories and checkpoints on disk: what a killed or repeated run leaves behind."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from runtime.checkpoints import (
    MANIFEST,
    damage,
    drop_run,
    list_checkpoints,
    make_vacant_output_dir,
    prune,
    write_manifest,
)
from runtime.files import lock, replacing, write_into


def fill(directory, text: str) -> None:
    (directory / "weights").write_text(text)
    (directory / "nested").mkdir()
    (directory / "nested" / "config").write_text(text)


def write(directory, text: str) -> None:
    with replacing(directory) as new:
        fill(new, text)
        write_manifest(new)


def write_half(directory) -> None:
    with replacing(directory) as new:
        (new / "weights").write_text("half")
        raise RuntimeError("killed")


def test_an_output_dir_is_created_with_its_parents(tmp_path):
    claimed = make_vacant_output_dir(str(tmp_path / "models" / "sft"), overwrite=False)
    assert claimed.is_dir()
    assert make_vacant_output_dir(str(claimed), overwrite=False) == claimed, "an empty directory is free"


def test_an_occupied_output_dir_needs_overwrite(tmp_path):
    (tmp_path / "results").write_text("precious")
    with pytest.raises(ValueError, match="output_dir .*not empty.*overwrite true"):
        make_vacant_output_dir(str(tmp_path), overwrite=False)
    drop_run(make_vacant_output_dir(str(tmp_path), overwrite=True))
    assert (tmp_path / "results").read_text() == "precious"


def test_an_output_dir_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir .*is a file"):
        make_vacant_output_dir(str(tmp_path / "file"), overwrite=True)
    with pytest.raises(ValueError, match="output_dir .*cannot be written"):
        make_vacant_output_dir(str(tmp_path / "file" / "below"), overwrite=True)


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "model"
    write(target, "one")
    (target / "stale").write_text("")
    write(target, "two")
    assert (target / "nested" / "config").read_text() == "two" and not (target / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left aside"


def test_a_link_stays_and_what_it_links_to_is_replaced(tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    (real / "old").touch()
    link.symlink_to(real)
    for name in ("new", "newer"):
        with replacing(link) as folder:
            (folder / name).touch()
        assert link.is_symlink() and [path.name for path in real.iterdir()] == [name]
    assert {path.name for path in [*tmp_path.iterdir(), *real.parent.iterdir()]} == {"disk", "link", "real"}


def test_a_write_that_dies_leaves_what_was_there(tmp_path):
    target = tmp_path / "checkpoint-3"
    with pytest.raises(RuntimeError, match="killed"):
        write_half(target)
    assert not target.exists() and list_checkpoints(tmp_path) == []
    write(target, "one")
    with pytest.raises(RuntimeError, match="killed"):
        write_half(target)
    assert (target / "weights").read_text() == "one"
    (tmp_path / ".checkpoint-3.tmp" / "left").mkdir(parents=True)  # by a process that was killed
    write(target, "two")
    assert (target / "weights").read_text() == "two"


def test_two_runs_do_not_fill_one_place(tmp_path):
    """The second is refused and takes nothing away; what a killed one has left aside is not in the next one's way."""
    target = tmp_path / "dataset"
    with replacing(target) as first:
        fill(first, "first")
        with pytest.raises(ValueError, match="dataset: another run is writing there; wait for it, or name another"):
            write(target, "second")
    assert (target / "weights").read_text() == (target / "nested" / "config").read_text() == "first"
    left = tmp_path / ".dataset.tmp"
    left.mkdir()
    fill(left, "killed")
    (left / "stale").symlink_to(target)
    write(target, "third")
    assert (target / "weights").read_text() == "third" and not (target / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_files_are_put_beside_others_only_when_all_are_written(tmp_path):
    (tmp_path / "other").write_text("stays")
    write_into(tmp_path, lambda path: [(path / name).write_text("one") for name in ("config", "weights")])

    def die(path):
        (path / "config").write_text("two")
        raise OSError("no space left")

    with pytest.raises(OSError):
        write_into(tmp_path, die)
    files = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert files == {"other": "stays", "config": "one", "weights": "one"}


def test_checkpoints_are_listed_by_step(tmp_path):
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "checkpoint-best", ".checkpoint-7.tmp", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


def test_the_newest_checkpoints_are_kept(tmp_path):
    for step in (8, 9, 10, 11):
        write(tmp_path / f"checkpoint-{step}", "")
        prune(tmp_path, step, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    write(tmp_path / "checkpoint-12", "")
    prune(tmp_path, 12, 0)
    assert len(list_checkpoints(tmp_path)) == 3, "0 keeps all"


def test_of_a_checkpoint_that_lies_elsewhere_the_link_is_deleted(tmp_path):
    run, disk = tmp_path / "run", tmp_path / "disk"
    for delete in (lambda: prune(run, 2, 1), lambda: drop_run(run)):
        write(disk, "precious")
        run.mkdir(exist_ok=True)
        (run / "checkpoint-1").symlink_to(disk)
        write(run / "checkpoint-2", "")
        delete()
        assert not (run / "checkpoint-1").exists() and (disk / "weights").read_text() == "precious"


def test_checkpoints_beyond_the_one_just_written_do_not_count(tmp_path):
    """A run that goes on from step 20 since checkpoint-40 is damaged must not delete what it has just written."""
    for step in (20, 40, 30):
        write(tmp_path / f"checkpoint-{step}", "")
    prune(tmp_path, 30, 1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-30", "checkpoint-40"]


def test_a_new_run_over_an_old_one_drops_its_checkpoints(tmp_path):
    """With overwrite, the directory may hold later steps of an earlier run."""
    write(tmp_path / "checkpoint-400", "old")
    (tmp_path / "finished.json").write_text("{}")
    drop_run(make_vacant_output_dir(str(tmp_path), overwrite=True))
    assert list_checkpoints(tmp_path) == [] and not (tmp_path / "finished.json").exists()


def test_a_new_run_drops_the_old_one_s_model_and_nothing_of_the_user_s(tmp_path):
    model = ("training_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja")
    mine = ("mine.safetensors", "tokenizer_study.md", "vocab_notes.txt", "chat_template_mine.jinja", "notes.txt")
    for name in (*model, *mine):
        (tmp_path / name).write_text(name)
    (tmp_path / "tokenizer_tests").mkdir()
    drop_run(make_vacant_output_dir(str(tmp_path), overwrite=True))
    assert {path.name for path in tmp_path.iterdir()} == {*mine, "tokenizer_tests", "training_config.json"}


def test_every_kind_of_damage_is_found(tmp_path):
    checkpoint = tmp_path / "checkpoint-1"

    def fresh():
        write(checkpoint, "some weights")
        return checkpoint

    assert damage(fresh()) is None
    (fresh() / "weights").write_text("some weight?")
    assert damage(checkpoint) == "weights is not as it was written"
    (fresh() / "weights").write_text("some")  # torn
    assert "weights is not" in damage(checkpoint)
    (fresh() / "nested" / "config").unlink()
    assert damage(checkpoint) == "config is missing"
    (fresh() / MANIFEST).unlink()
    assert damage(checkpoint) == f"{MANIFEST} is missing"
    for text in ("", "[1]", json.dumps({"weights": 3}), "\x00" * 40):
        (fresh() / MANIFEST).write_text(text)
        assert damage(checkpoint) is not None, text


def test_a_directory_is_held_until_its_process_ends(tmp_path):
    program = """if True:
        import pathlib, sys; from runtime import files
        held = files.lock(pathlib.Path(sys.argv[1]))
        print("held", flush=True)
        input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is using it"):
            lock(tmp_path)
        process.kill()
        process.wait()
        lock(tmp_path).close()
