"""Output directories and checkpoints: what a killed or repeated run leaves behind."""

import pytest

from checkpoints import claim_output_dir, list_checkpoints, save_checkpoint, write_directory


def write(text: str):
    """A function that fills a directory with two files."""

    def fill(path):
        (path / "weights").write_text(text)
        (path / "nested").mkdir()
        (path / "nested" / "config").write_text(text)

    return fill


def fail(path):
    (path / "weights").write_text("half")
    raise RuntimeError("killed")


def test_an_output_dir_is_created_with_its_parents(tmp_path):
    claimed = claim_output_dir(str(tmp_path / "models" / "sft"), overwrite=False)
    assert claimed.is_dir()
    assert claim_output_dir(str(claimed), overwrite=False) == claimed, "an empty directory is free"


def test_an_occupied_output_dir_needs_overwrite(tmp_path):
    (tmp_path / "results").write_text("precious")
    with pytest.raises(ValueError, match="output_dir .*not empty.*overwrite true"):
        claim_output_dir(str(tmp_path), overwrite=False)
    claim_output_dir(str(tmp_path), overwrite=True)
    assert (tmp_path / "results").read_text() == "precious"


def test_an_output_dir_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir .*is a file"):
        claim_output_dir(str(tmp_path / "file"), overwrite=True)
    with pytest.raises(ValueError, match="output_dir .*cannot be created"):
        claim_output_dir(str(tmp_path / "file" / "below"), overwrite=True)


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "model"
    write_directory(target, write("one"))
    (target / "stale").write_text("")
    write_directory(target, write("two"))
    assert (target / "nested" / "config").read_text() == "two" and not (target / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left aside"


def test_a_write_that_dies_leaves_what_was_there(tmp_path):
    target = tmp_path / "checkpoint-3"
    with pytest.raises(RuntimeError, match="killed"):
        write_directory(target, fail)
    assert not target.exists() and list_checkpoints(tmp_path) == []
    write_directory(target, write("one"))
    with pytest.raises(RuntimeError, match="killed"):
        write_directory(target, fail)
    assert (target / "weights").read_text() == "one"
    write_directory(target, write("two"))  # in spite of what the dead one left
    assert (target / "weights").read_text() == "two"


def test_checkpoints_are_listed_by_step(tmp_path):
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "checkpoint-best", ".checkpoint-7.tmp", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


def test_the_newest_checkpoints_are_kept(tmp_path):
    for step in (8, 9, 10, 11):
        assert save_checkpoint(tmp_path, step, 2, write(str(step))).name == f"checkpoint-{step}"
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    save_checkpoint(tmp_path, 12, 0, write("12"))
    assert len(list_checkpoints(tmp_path)) == 3, "0 keeps all"


def test_a_new_run_over_an_old_one_keeps_its_own_checkpoint(tmp_path):
    """With overwrite, the directory may hold later steps of an earlier run."""
    for step in (400, 500):
        save_checkpoint(tmp_path, step, 2, write("old"))
    claim_output_dir(str(tmp_path), overwrite=True)
    assert (save_checkpoint(tmp_path, 50, 2, write("new")) / "weights").read_text() == "new"
