"""A run in its directory, in one process: what it continues, what is refused, what is kept, what it begins anew."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import build_model
from datasets import Dataset
from launching import curves
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter

from causal.tiny import tiny_model, tiny_tokenizer
from dataset.reading import TRAINING_DATA
from policy.loading import load_tokenizer, save_model
from policy.prefix_sharing import ATTENTION
from runtime.checkpoints import CONFIGURATION, damage, list_checkpoints, write_manifest
from runtime.files import lock, read_beside
from runtime.settings import GONE
from train_grpo import Config as GrpoConfig
from train_sft import Config
from training import runs
from training.health import Monitor
from training.optimization import load_optimizer, optimizer_tensors, prepare, scaler_state
from training.rollouts import PromptQueue
from training.runs import INTERRUPTED, Run, Stop

# --- what is refused, and why


def config_of(folder: Path, **options) -> Config:
    places = {"output_dir": str(folder / "model"), "logging_dir": str(folder / "logs"), "dataset": "data"}
    return Config(**(places | options))


def make_run(folder: Path, **options) -> Run:
    return Run(Accelerator(), config_of(folder, **options), "hash")


def saved_run(folder: Path, *steps: int, **options) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A run of the tiny model with checkpoints of these steps, which has then let go of its directory."""
    run = make_run(folder, **options)
    model = tiny_model(0, ATTENTION)
    model, optimizer = prepare(run.accelerator, model, 1e-3, 0.0, 1.0)
    run.restore(model, optimizer, runs.Motion(model))
    for step in steps:
        sum(p.square().sum() for p in model.parameters()).backward()
        optimizer.step()
        save(run, step, model, optimizer)
    run.close()
    return model, optimizer


def save(run: Run, step: int, model, optimizer) -> None:
    run.save(step, model, tiny_tokenizer(), optimizer, None, {"best": {"loss": 1.5, "step": step}})


def refusal(folder: Path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        make_run(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_changed_setting_is_refused_by_name(tmp_path):
    saved_run(tmp_path, 1, batch_size=8)
    message = refusal(tmp_path, resume_from="latest", batch_size=16, learning_rate=0.5)
    assert "batch_size 8 there, 16 here" in message and "learning_rate 0.0002 there, 0.5 here" in message
    assert "resume_weights_only" in message
    run = make_run(tmp_path, resume_from="latest", batch_size=16, resume_weights_only=True)
    assert run.checkpoint == tmp_path / "model" / "checkpoint-1"


def test_settings_that_change_nothing_may_change(tmp_path, capsys):
    saved_run(tmp_path, 1, micro_batch_tokens=2048)
    run = make_run(tmp_path, resume_from="latest", save_steps=3, time_limit=5.0, micro_batch_tokens=99)
    assert run.checkpoint is not None and "micro_batch_tokens 2048 there, 99 here: sums are" in capsys.readouterr().out


def test_sizes_that_are_auto_are_those_of_the_interrupted_run(tmp_path, capsys):
    saved_run(tmp_path, 1, micro_batch_tokens=99, cache_tokens=88)
    found = {"micro_batch_tokens": 99, "cache_tokens": 88}
    run = make_run(tmp_path, resume_from="latest")
    assert run.found == found and "rounded" not in capsys.readouterr().out
    run.close()
    run = make_run(tmp_path, resume_from="latest", cache_tokens=77)
    assert run.found == {"micro_batch_tokens": 99} and "cache_tokens 88 there, 77 here" in capsys.readouterr().out
    run.close()
    run = make_run(tmp_path, resume_from="latest", resume_weights_only=True)
    assert run.found == {}, "another run: it finds its own"
    run.close()
    shutil.rmtree(tmp_path / "model" / "checkpoint-1")
    assert make_run(tmp_path, resume_from="latest").found == found, "killed before its first checkpoint"


def test_a_checkpoint_of_an_earlier_version_resumes_where_its_settings_did_nothing(tmp_path):
    saved_run(tmp_path, 1)
    checkpoint = tmp_path / "model" / "checkpoint-1"
    settings = json.loads((checkpoint / "run.json").read_text())["settings"]
    del settings["stop_after"]  # came later: it counts as its default
    harmless = {name: value for name, (value, _) in GONE.items()}
    rewrite(checkpoint, settings=settings | harmless | {"card_gb": 11.0})  # a plan is no part of a run
    assert make_run(tmp_path, resume_from="latest").checkpoint == checkpoint
    assert "stop_after 20 there, 7 here" in refusal(tmp_path, resume_from="latest", stop_after=7)
    rewrite(checkpoint, settings=settings | harmless | {"dual_clip": 3.0})
    message = refusal(tmp_path, resume_from="latest")
    assert "dual_clip was 3.0, and that setting has gone; or set resume_weights_only true" in message
    assert make_run(tmp_path, resume_from="latest", resume_weights_only=True).checkpoint == checkpoint


def rewrite(checkpoint: Path, **fields) -> None:
    record = json.loads((checkpoint / "run.json").read_text()) | fields
    (checkpoint / "run.json").write_text(json.dumps(record))
    write_manifest(checkpoint)


def test_another_world_another_dataset_and_another_start_are_refused(tmp_path):
    saved_run(tmp_path, 1)
    checkpoint = tmp_path / "model" / "checkpoint-1"
    rewrite(checkpoint, launch={"num_processes": 2, "dtype": "torch.float32"})
    assert "num_processes was 2 and is 1: launch it as before" in refusal(tmp_path, resume_from="latest")
    rewrite(checkpoint, launch={"num_processes": 1, "dtype": "torch.bfloat16"})
    assert "dtype was torch.bfloat16 and is torch.float32: launch it as before" in refusal(
        tmp_path, resume_from="latest"
    )
    rewrite(checkpoint, launch={"num_processes": 1, "dtype": "torch.float32", "deepspeed": True})
    assert "deepspeed was True and is False: launch it as before; or set resume_weights_only true" in refusal(
        tmp_path, resume_from="latest"
    )
    rewrite(checkpoint, launch={"num_processes": 2, "dtype": "torch.bfloat16", "deepspeed": True})
    run, _, _ = resumed(tmp_path, 1, resume_from="latest", resume_weights_only=True, seed=1)
    assert run.began == 1, "what the messages offer"
    run.close()
    rewrite(checkpoint, launch={"num_processes": 1, "dtype": "torch.float32"}, dataset_hash="other")
    assert "dataset data is not what it was" in refusal(tmp_path, resume_from="latest", resume_weights_only=True)
    rewrite(checkpoint, dataset_hash="hash", weights="other")
    message = refusal(tmp_path, resume_from="latest", resume_weights_only=True)
    assert "model tiny (or its base) has other weights than the run began with" in message


def test_an_optimizer_of_another_kind_of_launch_is_refused(tmp_path):
    """Of a checkpoint that does not say whether DeepSpeed wrote it."""
    saved_run(tmp_path, 1)
    checkpoint = tmp_path / "model" / "checkpoint-1"
    rewrite(checkpoint, launch={"num_processes": 1, "dtype": "torch.float32"})
    tensors = load_file(checkpoint / "rank-0.safetensors")
    kept = {name: t for name, t in tensors.items() if name.startswith(("rng", "0.0."))}  # as of one flat partition
    save_file(kept, checkpoint / "rank-0.safetensors")
    write_manifest(checkpoint)
    with pytest.raises(
        ValueError, match="of another kind of launch .*: launch it as before, or set resume_weights_only"
    ):
        resumed(tmp_path, resume_from="latest")
    assert resumed(tmp_path, resume_from="latest", resume_weights_only=True)[0].began == 1


def test_a_run_knows_its_base(tmp_path):
    """Not what is trained alone: that is the same for any base of this shape."""

    def put_base(seed: int) -> None:
        save_model(tiny_model(seed, ATTENTION), tiny_tokenizer(), tmp_path / "base")

    put_base(0)
    options = {"model": str(tmp_path / "base"), "adaptation": "lora"}
    saved_run(tmp_path, 1, **options)
    put_base(1)
    for more in ({}, {"resume_weights_only": True}):
        message = refusal(tmp_path, resume_from="latest", **options, **more)
        assert "(or its base) has other weights" in message and "put those back, or start a run of its own" in message
    make_run(tmp_path / "other", **options)
    put_base(0)
    assert make_run(tmp_path, resume_from="latest", **options).checkpoint.name == "checkpoint-1"


@pytest.mark.parametrize("name", ["base/config.json", "base/tokenizer.json", "mine.py", "rates/predictions.jsonl"])
def test_a_run_knows_the_files_that_its_numbers_depend_on(tmp_path, name):
    save_model(tiny_model(0, ATTENTION), tiny_tokenizer(), tmp_path / "base")
    (tmp_path / "mine.py").write_text("def reward(completion, row): return 1.0\n")
    (tmp_path / "rates").mkdir()
    (tmp_path / "rates" / "predictions.jsonl").write_text("{}\n")
    mine = {"model": str(tmp_path / "base"), "reward_function": f"{tmp_path}/mine.py:reward"}
    places = {"output_dir": str(tmp_path / "model"), "logging_dir": str(tmp_path / "logs"), "dataset": "data"}

    def run(**options) -> Run:
        config = GrpoConfig(**mine, **places, pass_rates=str(tmp_path / "rates"), **options)
        return Run(Accelerator(), config, "hash")

    first = run()
    model, optimizer = prepare(first.accelerator, tiny_model(0, ATTENTION), 1e-3, 0.0, 1.0)
    first.restore(model, optimizer, runs.Motion(model))
    save(first, 1, model, optimizer)
    first.close()
    run(resume_from="latest").close()
    before = (tmp_path / name).read_text()
    (tmp_path / name).write_text(before + " \n")
    with pytest.raises(
        ValueError, match=f"what is in .*{name} was .*: launch it as before; or set resume_weights_only"
    ):
        run(resume_from="latest")
    run(resume_from="latest", resume_weights_only=True).close()


# --- another branch: back to a checkpoint, or on with a new optimizer


def resumed(folder: Path, of: int = 0, **options) -> tuple[Run, torch.nn.Module, torch.optim.Optimizer]:
    """A run that has gone on; before, it had the weights of the tiny model of the seed `of`."""
    run = make_run(folder, **options)
    model, optimizer = prepare(run.accelerator, tiny_model(of, ATTENTION), 1e-3, 0.0, 1.0)
    run.restore(model, optimizer, runs.Motion(model))
    return run, model, optimizer


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


@pytest.fixture
def branched(tmp_path) -> tuple[Path, dict]:
    """A run with checkpoints that a second one will leave at the first of them, and that one's options."""
    saved_run(tmp_path, 2, 4, 6, save_total_limit=0)
    model = tmp_path / "model"
    return model, {"resume_from": str(model / "checkpoint-2"), "resume_weights_only": True, "learning_rate": 0.5}


def test_latest_is_of_the_newest_branch(tmp_path, branched, capsys):
    folder, options = branched
    run, _, _ = resumed(tmp_path, **options)  # killed before it has saved
    assert f"checkpoint-4, checkpoint-6: of steps that are now taken anew; moved to {folder}/set_apart-1" in (
        capsys.readouterr().out
    )
    run.close()
    assert "learning_rate 0.5 there, 0.0002 here" in refusal(tmp_path, resume_from="latest"), "those of the branch"
    run, model, optimizer = resumed(tmp_path, resume_from="latest", learning_rate=0.5)
    assert run.checkpoint.name == "checkpoint-2" and not optimizer_tensors(model, optimizer), "a new one, as was asked"
    save(run, 3, model, optimizer)
    run.close()
    run, model, optimizer = resumed(tmp_path, resume_from="latest", learning_rate=0.5)
    assert run.checkpoint.name == "checkpoint-3" and not run.weights_only
    run.close()
    assert names(folder) == ["checkpoint-2", "checkpoint-3"] and names(folder / "set_apart-1") == [
        "checkpoint-4",
        "checkpoint-6",
    ]


def test_what_was_set_apart_can_be_gone_on_with(tmp_path, branched):
    folder, options = branched
    resumed(tmp_path, **options)[0].close()
    left = folder / "set_apart-1" / "checkpoint-6"
    assert f"set output_dir {left.parent}" in refusal(tmp_path, resume_from=str(left))
    places = {"output_dir": str(left.parent), "logging_dir": str(tmp_path / "other"), "dataset": "data"}
    run = Run(Accelerator(), Config(**places, resume_from=str(left)), "hash")
    assert run.checkpoint == left


@pytest.mark.parametrize("file", [CONFIGURATION, TRAINING_DATA])
def test_what_was_set_apart_is_of_the_run_that_it_was_in(tmp_path, branched, file):
    """Until a run goes on there: else its 4-bit adapter would be put on another base."""
    folder, options = branched
    resumed(tmp_path, **options)[0].close()
    left = folder / "set_apart-1" / "checkpoint-6"
    (folder / file).write_text('{"of": "the run"}')
    (tmp_path / file).write_text('{"of": "another"}')
    assert read_beside(str(left), file) == {"of": "the run"}
    assert read_beside(str(folder), file) == read_beside(str(folder / "checkpoint-2"), file) == {"of": "the run"}
    (left.parent / file).write_text('{"of": "the one gone on with"}')
    assert read_beside(str(left), file) == {"of": "the one gone on with"}


@pytest.mark.parametrize("given, weights_only", [("checkpoint-2", False), ("checkpoint-2", True), ("latest", True)])
def test_a_requeued_job_goes_on_where_it_was(tmp_path, monkeypatch, given, weights_only):
    """Though its command says again where to begin, and with a new optimizer."""
    saved_run(tmp_path, 2, 4)
    given = given if given == "latest" else str(tmp_path / "model" / given)
    options = {"resume_from": given, "resume_weights_only": weights_only}
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    first, model, optimizer = resumed(tmp_path, **options)
    first.close()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again, model, optimizer = resumed(tmp_path, **options)  # before it has saved: as the command says
    assert again.checkpoint == first.checkpoint and again.weights_only == weights_only
    assert bool(optimizer_tensors(model, optimizer)) != weights_only
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    save(again, 5, model, optimizer)
    again.close()
    last, model, optimizer = resumed(tmp_path, **options)
    assert last.checkpoint.name == "checkpoint-5" and optimizer_tensors(model, optimizer)
    last.close()
    monkeypatch.setenv("SLURM_JOB_ID", "18")  # another job, requeued before it began: it has not been there yet
    assert make_run(tmp_path, **options).weights_only == weights_only


def test_a_run_does_not_begin_at_its_end(tmp_path):
    saved_run(tmp_path, 2, 4)
    run = make_run(tmp_path, resume_from="latest", resume_weights_only=True)
    with pytest.raises(ValueError, match="checkpoint-4: is of step 4, and this run ends at step 4: raise max_steps"):
        run.check_length(4)
    run.check_length(5)
    run.close()
    earlier = str(tmp_path / "model" / "checkpoint-2")
    make_run(tmp_path, resume_from=earlier, resume_weights_only=True).check_length(4)


# --- another device


def test_from_a_gpu_to_a_cpu_and_back(tmp_path, monkeypatch, capsys):
    """Random numbers of the other kind of device are left out."""
    saved_run(tmp_path, 1)
    rank = tmp_path / "model" / "checkpoint-1" / "rank-0.safetensors"
    on_cpu = load_file(rank)
    save_file(on_cpu | {"rng.cuda": torch.zeros(16, dtype=torch.uint8)}, rank)  # as a GPU's
    write_manifest(rank.parent)
    run, model, optimizer = resumed(tmp_path, resume_from="latest")
    assert "checkpoint-1 is of a GPU, this is a CPU: sums are rounded differently" in capsys.readouterr().out
    assert optimizer_tensors(model, optimizer)
    run.close()
    save_file(on_cpu, rank)
    write_manifest(rank.parent)
    run = make_run(tmp_path, resume_from="latest")
    model, optimizer = prepare(run.accelerator, tiny_model(0, ATTENTION), 1e-3, 0.0, 1.0)
    motion = runs.Motion(model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run.restore(model, optimizer, motion)
    assert "checkpoint-1 is of a CPU, this is a GPU" in capsys.readouterr().out and optimizer_tensors(model, optimizer)


# --- curves


def log_something(folder: Path) -> None:
    with SummaryWriter(folder / "logs") as writer:
        writer.add_scalar("loss", 1.0, 1)


def test_two_runs_do_not_share_curves(tmp_path):
    """Neither at once nor one after the other; a run goes on with its own."""
    logs = {"logging_dir": str(tmp_path / "logs")}

    def run_of(name: str, **options) -> Run:
        return Run(Accelerator(), Config(output_dir=str(tmp_path / name), dataset="data", **(logs | options)), "hash")

    def begin(run: Run) -> None:
        model = tiny_model(0, ATTENTION)
        run.restore(model, None, runs.Motion(model))
        run.close()

    first = run_of("a")
    with pytest.raises(ValueError, match="logging_dir .*: another run is using it; wait for it, or name another"):
        run_of("b")
    first.close()
    begin(run_of("c"))  # the first has left nothing
    log_something(tmp_path)
    for options in ({}, {"overwrite": True}, {"resume_from": "latest"}):
        with pytest.raises(ValueError, match="has the curves of .*/c; name another logging_dir"):
            run_of("b", **options)
    assert run_of("b", logging_dir=str(tmp_path / "other")).purge_step(0) is None
    for options in ({"overwrite": True}, {"resume_from": "latest"}):
        run = run_of("c", **options)
        assert run.purge_step(0) == 0, "TensorBoard shows the new curves alone"
        run.close()
    for name in ("c", "logs"):
        shutil.copytree(tmp_path / name, tmp_path / "copy" / name)
    run_of("copy/c", resume_from="latest", logging_dir=str(tmp_path / "copy" / "logs")).close()
    (tmp_path / "c").rename(tmp_path / "moved")
    run_of("moved", resume_from="latest").close()
    shutil.rmtree(tmp_path / "logs")
    run_of("b").close()  # what the message offers


def test_curves_may_be_in_the_output_dir(tmp_path):
    for n, logs in enumerate(("model", "model/logs")):
        assert make_run(tmp_path / str(n), logging_dir=str(tmp_path / str(n) / logs)).checkpoint is None


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("")], ids=["not there", "empty"])
def test_curves_that_nobody_has_signed_are_gone_on_with(tmp_path, spoil):
    """As those of an earlier version, or of a run that was killed as it signed them."""
    saved_run(tmp_path, 1)
    log_something(tmp_path)
    spoil(tmp_path / "logs" / ".run")
    with pytest.raises(ValueError, match="has the curves of another run"):
        make_run(tmp_path / "other", logging_dir=str(tmp_path / "logs"))
    assert make_run(tmp_path, resume_from="latest").checkpoint is not None


def test_a_path_must_be_a_whole_checkpoint_of_this_output_dir(tmp_path):
    saved_run(tmp_path, 1, 2)
    saved_run(tmp_path / "other", 1)
    first = tmp_path / "model" / "checkpoint-1"
    assert make_run(tmp_path, resume_from=str(first)).checkpoint == first
    assert "no checkpoint of a run" in refusal(tmp_path, resume_from=str(tmp_path / "nowhere"))
    foreign = tmp_path / "other" / "model" / "checkpoint-1"
    assert f"set output_dir {foreign.parent}" in refusal(tmp_path, resume_from=str(foreign))
    (first / "model.safetensors").write_bytes(b"")
    assert "model.safetensors is not as it was written" in refusal(tmp_path, resume_from=str(first))
    (tmp_path / "model" / "checkpoint-2" / "manifest.json").unlink()
    assert "no checkpoint is whole" in refusal(tmp_path, resume_from="latest")


@pytest.mark.parametrize("place", [".", "checkpoint-1"])
@pytest.mark.parametrize("adapter", [True, False])
def test_a_run_does_not_begin_over_what_it_reads(tmp_path, place, adapter):
    """With overwrite the model, or its base, would go before it is read."""
    saved_run(tmp_path, 1)
    base = tmp_path / "model" / place
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    model = str(tmp_path / "adapter" if adapter else base)
    assert "is read from there; name another" in refusal(tmp_path, model=model, overwrite=True)
    assert damage(tmp_path / "model" / "checkpoint-1") is None


def test_a_directory_of_another_run_is_left_alone(tmp_path):
    saved_run(tmp_path)  # killed before its first checkpoint
    assert make_run(tmp_path, resume_from="latest").checkpoint is None
    assert "seed 0 there, 1 here" in refusal(tmp_path, resume_from="latest", seed=1)
    assert "set resume_from latest" in refusal(tmp_path)
    (tmp_path / "model" / "training_config.json").unlink()
    (tmp_path / "model" / "thesis.pdf").write_text("")
    assert "holds other files" in refusal(tmp_path, resume_from="latest")
    assert "not empty" in refusal(tmp_path)
    assert "needs resume_from" in refusal(tmp_path, resume_weights_only=True)


def test_two_runs_on_one_directory(tmp_path):
    (tmp_path / "model").mkdir()
    held = lock(tmp_path / "model")
    for options in ({}, {"overwrite": True}, {"resume_from": "latest"}):
        assert "another run is using it" in refusal(tmp_path, **options)
    held.close()
    make_run(tmp_path)


def test_a_requeued_job_resumes_whatever_its_settings_say(tmp_path, monkeypatch):
    saved_run(tmp_path, 3, overwrite=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = make_run(tmp_path, overwrite=True)
    assert run.checkpoint.name == "checkpoint-3"
    run.close()
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # which was killed before it had begun: what is there is another's
    run, *_ = resumed(tmp_path, overwrite=True)
    assert run.checkpoint is None and names(tmp_path / "model") == []
    run.close()
    assert make_run(tmp_path, overwrite=True).again, "and now it has begun"


@pytest.mark.parametrize("before, after", [("lora", "full"), ("full", "lora")])
def test_a_new_run_leaves_nothing_of_the_one_before(tmp_path, before, after):
    """Its model neither, which would be taken for the new one's."""
    saved_run(tmp_path, 2)
    folder = tmp_path / "model"
    tokenizer = load_tokenizer("tiny")
    models = {"lora": build_model("phi3", lora=True), "full": build_model("phi3")}
    save_model(models[before], tokenizer, folder)
    for name in ("best.json", "finished.json", "notes of mine.txt"):
        (folder / name).write_text("{}")
    there = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match="not empty"):
        make_run(tmp_path)
    assert {path.name for path in folder.iterdir()} == there
    run = make_run(tmp_path, overwrite=True)
    assert {path.name for path in folder.iterdir()} == there, "nothing is lost before all is known to be right"
    run.close()
    run, *_ = resumed(tmp_path, overwrite=True)
    left = {path.name for path in folder.iterdir() if path.name[0] != "."}
    assert left == {"training_config.json", "notes of mine.txt"}
    run.keep_model(models[after], tokenizer, "", {})
    assert (folder / "adapter_config.json").exists() == (after == "lora")
    run.close()


def test_a_model_that_no_run_has_made_is_not_overwritten(tmp_path):
    save_model(build_model("phi3"), load_tokenizer("tiny"), tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model that no run here has made; name another"):
        make_run(tmp_path, overwrite=True)


def test_further_chat_templates_are_kept_with_every_model(tmp_path):
    tokenizer = load_tokenizer("tiny")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    run, model, _ = resumed(tmp_path)
    for step in (1, 2):
        run.keep_model(model, tokenizer, "", {"step": step})
    assert (tmp_path / "model" / "additional_chat_templates" / "tool_use.jinja").is_file()
    assert json.loads((tmp_path / "model" / "best.json").read_text()) == {"step": 2}


@pytest.mark.parametrize("setting", [{"lora_r": 8}, {"lora_alpha": 64}, {"lora_target_modules": "o_proj"}])
def test_weights_of_another_shape_are_refused(tmp_path, setting):
    """Copied under another scale they would be another policy."""
    saved_run(tmp_path, 1, adaptation="lora")
    (name,) = setting
    message = refusal(tmp_path, resume_from="latest", resume_weights_only=True, adaptation="lora", **setting)
    assert f"weights of another shape, {name} " in message and message.endswith("here: set it back")
    message = refusal(tmp_path, resume_from="latest", adaptation="lora", **setting)
    assert message.endswith("here: set it back"), "what would be refused is not offered"
    changed = {"resume_from": "latest", "resume_weights_only": True, "adaptation": "full"}
    assert "weights of another shape, adaptation 'lora' there" in refusal(tmp_path, **changed)
    shutil.rmtree(tmp_path / "model")
    saved_run(tmp_path, 1, adaptation="full", overwrite=True)
    make_run(tmp_path, **changed).close()


def test_a_finished_run_is_of_its_dataset(tmp_path):
    saved_run(tmp_path, 1)
    for name, text in (("finished.json", "{}"), ("training_data.json", '{"dataset_hash": "hash"}')):
        (tmp_path / "model" / name).write_text(text)
    run = make_run(tmp_path, resume_from="latest")
    assert run.finished
    run.close()
    (tmp_path / "model" / "training_data.json").write_text('{"dataset_hash": "of other rows"}')
    assert "is not what it was trained on; set dataset to that, or train anew" in refusal(
        tmp_path, resume_from="latest"
    )


@pytest.mark.parametrize("part", ["save_model", "save_file", "write_manifest", "put_in_place"])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path, monkeypatch, part):
    model, optimizer = saved_run(tmp_path, 1)
    run = make_run(tmp_path, resume_from="latest")
    run.restore(model, optimizer, runs.Motion(tiny_model(0, ATTENTION)))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs, part, full)
    with pytest.raises(ValueError, match=r"checkpoint-2: cannot be written \(.*No space left.*checkpoint-1: make room"):
        save(run, 2, model, optimizer)
    assert [path.name for path in list_checkpoints(tmp_path / "model")] == ["checkpoint-1"]
    assert damage(tmp_path / "model" / "checkpoint-1") is None
    assert not list((tmp_path / "model").glob(".checkpoint-*")), "nothing is left aside"
    with pytest.raises(ValueError, match="model cannot be written"):
        monkeypatch.setattr(runs, "save_model", full)
        run.keep_model(model, tiny_tokenizer(), "", {"step": 2})


def test_weights_alone_leave_the_optimizer_new(tmp_path):
    trained, _ = saved_run(tmp_path, 1, 2)
    run = make_run(tmp_path, resume_from="latest", resume_weights_only=True)
    model = tiny_model(0, ATTENTION)
    model, optimizer = prepare(run.accelerator, model, 1e-3, 0.0, 1.0)
    state = run.restore(model, optimizer, runs.Motion(model))
    assert state["step"] == 2 and state["best"] == {"loss": 1.5, "step": 2}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    assert not optimizer_tensors(model, optimizer)
    run.close()
    (tmp_path / "model" / "best.json").write_text(json.dumps({"step": 7}))  # of steps that will now be others
    run = make_run(tmp_path, resume_from="latest", resume_weights_only=True)
    assert "best" not in run.restore(model, optimizer, runs.Motion(tiny_model(0, ATTENTION)))


@pytest.mark.parametrize("newer", [True, False])
def test_after_a_kill_the_best_model_is_the_one_that_is_there(tmp_path, newer):
    """It may be of a step that no checkpoint has reached: on GPUs that step's repetition need not score alike."""
    saved_run(tmp_path, 1, 2)
    there = {"loss": 0.5, "step": 7} if newer else {"loss": 2.5, "step": 1}
    (tmp_path / "model" / "best.json").write_text(json.dumps(there))
    run = make_run(tmp_path, resume_from="latest")
    model, optimizer = prepare(run.accelerator, tiny_model(0, ATTENTION), 1e-3, 0.0, 1.0)
    state = run.restore(model, optimizer, runs.Motion(model))
    assert state["best"] == (there if newer else {"loss": 1.5, "step": 2})


# --- parts


def test_signals_and_the_time_limit_are_notes(monkeypatch):
    stop = Stop(0.0)
    stop.listen()
    assert stop.asked() == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.asked() == signal.SIGUSR1
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked() == signal.SIGTERM
    limited = Stop(2.0)
    assert limited.asked() == 0
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 121)
    assert Stop.name(limited.asked()) == "time_limit"


def test_a_signal_that_comes_while_the_ranks_ask_each_other_is_not_lost(tmp_path, monkeypatch):
    """It may find every rank there: right after a checkpoint, for which the others have waited, it mostly does."""
    run, meet = make_run(tmp_path), runs.reduce

    def signalled(*args) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGUSR1)
        return meet(*args)

    run.stop.listen()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "reduce", signalled)
        assert not run.must_stop()
    assert run.must_stop()


@pytest.mark.parametrize("progress, marked", [(0, False), (1, True)])
def test_a_run_is_only_requeued_if_it_has_done_a_step(tmp_path, monkeypatch, capsys, progress, marked):
    saved_run(tmp_path, 3)
    monkeypatch.setenv("REQUEUE_MARKER", str(tmp_path / "marker"))
    run = make_run(tmp_path, resume_from="latest")
    model = tiny_model(0, ATTENTION)
    model, optimizer = prepare(run.accelerator, model, 1e-3, 0.0, 1.0)
    run.restore(model, optimizer, runs.Motion(model))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert run.must_stop()
    with pytest.raises(SystemExit) as left:
        run.leave(3 + progress)
    assert left.value.code == INTERRUPTED and (tmp_path / "marker").exists() == marked
    assert f"stopped by SIGUSR1 at step {3 + progress}" in capsys.readouterr().out


@pytest.mark.parametrize("taken", [[3], [3, 4], [7, 5, 4], [10, 10]])
def test_the_queue_of_prompts_goes_on_where_it_was(taken, tokenizer):
    texts = [str(k) for k in range(14)]
    rows = Dataset.from_dict({"prompt": texts, "response": texts, "premise_id": [str(k // 4) for k in range(14)]})

    def queue() -> PromptQueue:
        return PromptQueue(Accelerator(), tokenizer, rows, seed=0, claims_per_prefix=3, new_tokens=1)

    one, other, fresh = queue(), queue(), queue()
    for count in taken:
        one.take(count)
    other.restore(json.loads(json.dumps(one.state())))
    assert [one.take(count) for count in (2, 6, 9)] == [other.take(count) for count in (2, 6, 9)]
    fresh.restore({})
    assert fresh.take(3) == queue().take(3)


def test_the_monitor_remembers(capsys):
    values = {"train/grad_norm": 0.5, "health/weights_moved": 0.0, "health/step_skipped": 0.0, "health/signal": 1.0}
    values |= {"health/loss_finite": 1.0, "eval/loss": float("nan")}
    one, other = Monitor({}, 9), Monitor({}, 9)
    for step in range(1, 5):
        one.update(step, values)
    other.restore(json.loads(json.dumps(one.state())))
    assert [one.update(step, values) for step in (5, 6)] == [other.update(step, values) for step in (5, 6)]
    assert one.flags() == other.flags() and str(one.state()) == str(other.state())


def test_the_loss_scale_is_kept(monkeypatch):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    monkeypatch.setattr("deepspeed.runtime.fp16.loss_scaler.dist.get_rank", lambda: 1)

    class Optimizer:
        def __init__(self):
            self.loss_scaler = DynamicLossScaler(2.0**12, 2.0, 1000, 1.0, 2, False, dtype=torch.float16)

    one, other = Optimizer(), Optimizer()
    for overflow in (True, True, True, False):
        one.loss_scaler.update_scale(overflow)
    load_optimizer(other, None, json.loads(json.dumps(scaler_state(one))))
    assert vars(other.loss_scaler) == vars(one.loss_scaler) and one.loss_scaler.cur_scale < 2.0**12
    assert scaler_state(torch.optim.AdamW([torch.zeros(1)])) == {}


def test_a_resumed_curve_replaces_what_was_logged_after_the_checkpoint(tmp_path):
    def log(purge_step: int | None, steps: range, offset: float) -> None:
        with SummaryWriter(tmp_path, purge_step=purge_step) as writer:
            for step in steps:
                writer.add_scalar("loss", step + offset, step)

    log(None, range(1, 8), 0.0)
    time.sleep(1.1)  # TensorBoard orders its files by the second
    log(4, range(4, 10), 0.5)
    assert curves(tmp_path)["loss"] == [(step, step + 0.5 * (step > 3)) for step in range(1, 10)]


def test_what_is_saved_is_what_a_user_loads(tmp_path, tokenizer):
    """A checkpoint is a model's directory as well."""
    model, _ = saved_run(tmp_path, 2)
    save_model(model, tokenizer, tmp_path / "plain")
    saved = load_file(tmp_path / "model" / "checkpoint-2" / "model.safetensors")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    assert saved.keys() == plain.keys() and all(torch.equal(saved[name], plain[name]) for name in saved)
