"""A training run: its output directory, its checkpoints, how it continues (on CPUs bit for bit), when it stops.

`checkpoint-<step>/` is filled by all ranks together:

    adapter_model.safetensors, …   the policy, as a user loads it (policy.loading.save_model)
    rank-<r>.safetensors           what only rank r holds: its part of the optimizer, its random number generators
    run.json                       step, settings, loss scale, and what the script hands over: scores, history, position
    manifest.json                  SHA-256 of every other file

Three more files are in the output directory: `best.json`, of which step its model is; `finished.json` at the end; and
`branch.json`, where a run has been told to go back to a checkpoint or to begin with a new optimizer. That says by which
command and from which checkpoint, so that `latest` and a requeued job go on with that branch. SIGTERM, SIGUSR1 and
`time_limit` only make a note; the loop asks at each step's boundary, and all ranks save together.
"""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter

from dataset.reading import training_data
from policy.adapters import adapter_base
from policy.loading import load_trainable, save_model, training_dtype
from policy.shapes import weights_hash
from runtime.checkpoints import (
    CONFIGURATION,
    check_no_merged,
    damage,
    drop_run,
    hold_logging_dir,
    list_checkpoints,
    make_vacant_output_dir,
    prune,
    set_apart,
    sign_curves,
    write_manifest,
)
from runtime.ending import end_without_peers
from runtime.files import (
    aside_of,
    check_not_read,
    is_occupied,
    lock,
    make_empty,
    make_output_dir,
    put_in_place,
    sha256,
    write_into,
)
from runtime.processes import gather, on_main, reduce
from runtime.settings import AUTO, GONE, check, write_config
from training.health import Motion
from training.optimization import load_optimizer, optimizer_tensors, scaler_state
from training.settings import BUDGETS, TrainingSettings

INTERRUPTED = 75  # exit status: to be continued (EX_TEMPFAIL of sysexits.h)
# Settings of another value that leave the run the same one, as BUDGETS do.
OUTWARD = {"resume_from", "resume_weights_only", "overwrite", "output_dir", "logging_dir", "dataset", "time_limit"}
OUTWARD |= {"save_steps", "save_total_limit", "num_logged_completions"}
OUTWARD |= {"plan", "card_gb"}  # of earlier versions
NEW = "; or set resume_weights_only true, to go on from its weights with a new optimizer"


class Run:
    """A run's output directory, held for it alone; the checkpoint it continues from; and whether it has to stop.

    Raises ValueError on every rank, before anything slow starts, if the directory is in use or holds other files, and
    if `resume_from` names no whole checkpoint of this very run.
    """

    def __init__(self, accelerator: Accelerator, config: TrainingSettings, dataset_hash: str):
        self.accelerator, self.config, self.dataset_hash = accelerator, config, dataset_hash
        self.output_dir = Path(config.output_dir)
        self.stop = Stop(config.time_limit)
        self.stopped_by = 0  # once the ranks have agreed to stop, why
        self.launch = {
            "num_processes": accelerator.num_processes,
            "dtype": str(training_dtype(accelerator)),
            "deepspeed": accelerator.state.deepspeed_plugin is not None,
        } | {f"what is in {path}": sha256(path)[:12] for path in files_of(config)}
        self.locks: list[Any] = []
        self.weights: str | None = None  # hash of the model that the run began with
        requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        if requeued and config.overwrite and config.resume_from is None:
            # Else what is there is of the run before; an earlier version did not note the job.
            requeued = self._job() in (None, os.environ.get("SLURM_JOB_ID", ""))
        self.again = config.resume_from is not None or requeued  # this run may have logged before
        # The command that begins a branch; a job that Slurm requeues gives the same one again.
        self.asked = {"resume_from": config.resume_from, "resume_weights_only": config.resume_weights_only}
        self.asked["job"] = os.environ.get("SLURM_JOB_ID")
        self.requeued = requeued
        # Where these are `auto`, the numbers that the interrupted run has found: others would round sums differently.
        self.found: dict[str, int] = {}
        self.checkpoint, self.finished, self.weights_only, self.found, self.logged = on_main(accelerator, self._open)
        self.saved = -1  # step of the newest checkpoint
        self.began = 0  # step at which this process took over

    # --- before training

    def _open(self) -> tuple[Path | None, bool, bool, dict[str, int], bool]:
        """On rank 0: the checkpoint to continue from, if there is one; whether the run has finished; whether to take
        its weights alone; `found`; whether there are curves of this run."""
        config = self.config
        check(
            self.again or not config.resume_weights_only,
            "resume_weights_only: needs resume_from, latest or a checkpoint",
        )
        make_output_dir(config.output_dir)
        self.locks.append(lock(self.output_dir))
        try:
            check_no_merged(self.output_dir)
            if not self.again:  # asked before logging_dir is made, which may be in it
                check_not_read(self.output_dir, config.model, adapter_base(config.model) or "")
                make_vacant_output_dir(config.output_dir, config.overwrite)
            held, logged = hold_logging_dir(config.logging_dir, self.output_dir, self.again or config.overwrite)
            self.locks += [held] if held else []
            return *self._choose(), self.found, logged
        except ValueError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the directories."""
        for held in self.locks:
            held.close()

    def _choose(self) -> tuple[Path | None, bool, bool]:
        config, where = self.config, f"output_dir {self.output_dir}"
        for left in (*self.output_dir.glob(".checkpoint-*"), self.output_dir / ".saving"):
            shutil.rmtree(left, ignore_errors=True)
        if not self.again:
            return None, False, False
        branch = self._branch()
        if self.requeued and branch.get("asked") == self.asked:  # it goes on where it was
            given, weights_only = "latest", False
        else:
            given, weights_only = config.resume_from or "latest", config.resume_weights_only
        finished = (self.output_dir / "finished.json").is_file() and not weights_only
        if finished:
            self._check_dataset(where, training_data(config.output_dir).get("dataset_hash", "unknown"))
        found = None if finished else self._find(given)
        written = self.output_dir / CONFIGURATION
        if found is not None:
            saved = json.loads((found / "run.json").read_text())
            begun = given == "latest" and not weights_only and branch.get("from") == found.name
            if begun and branch["asked"]["resume_weights_only"]:  # interrupted before a checkpoint of its own
                weights_only = True
                self._check_settings(where, json.loads(written.read_text()))
            self._check_checkpoint(f"resume_from {found}", saved, weights_only)
        elif is_occupied(self.output_dir):  # by a run that has finished, or was killed before its first checkpoint?
            check(written.is_file(), f"{where}: holds other files and no checkpoint; name another")
            self._check_settings(where, json.loads(written.read_text()))
        return found, finished, weights_only

    def _branch(self) -> dict[str, Any]:
        file = self.output_dir / "branch.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def _begin(self, saved: dict[str, Any]) -> None:
        """On rank 0, as the run goes on from `saved`: note its configuration, and its branch if it begins one."""
        begins = self.config.resume_weights_only or self.config.resume_from not in (None, "latest")
        if begins and not (self.requeued and self._branch().get("asked") == self.asked):
            set_apart(self.output_dir, saved["step"])
            branch = {"asked": self.asked, "from": self.checkpoint.name}
            write_into(self.output_dir, lambda aside: (aside / "branch.json").write_text(json.dumps(branch) + "\n"))
        if self.weights_only:
            (self.output_dir / "finished.json").unlink(missing_ok=True)
        self._note()

    def _job(self) -> str | None:
        """The Slurm job that has begun the run that is there."""
        file = self.output_dir / ".job"
        return file.read_text() if file.is_file() else None

    def _start(self) -> None:
        """On rank 0, once nothing stands in the way of a new run: it takes the place of what is there."""
        if not self.again:
            drop_run(self.output_dir)
        (self.output_dir / ".job").write_text(os.environ.get("SLURM_JOB_ID", ""))
        self._note()

    def _note(self) -> None:
        sign_curves(self.config.logging_dir, self.output_dir)
        write_into(self.output_dir, lambda aside: write_config(self.config, aside / CONFIGURATION))

    def _check_settings(self, where: str, theirs: dict) -> None:
        ours = asdict(self.config)
        for name, value in theirs.items():
            harmless = name in ours or name in OUTWARD or name not in GONE or value == GONE[name][0]
            check(harmless, f"{where}: {name} was {value!r}, and that setting has gone{NEW}")
        theirs = asdict(type(self.config)()) | theirs  # what came later was as its default is
        self.found = {name: theirs[name] for name in BUDGETS if ours[name] == AUTO != theirs[name]}
        ours |= self.found
        changed = [name for name in ours if theirs.get(name) != ours[name] and name not in OUTWARD]
        remedy = "" if set(changed) & self._shape() else NEW
        different = self._different(changed, theirs)
        check(not set(changed) - set(BUDGETS), f"{where}: another configuration, {different}: set it back{remedy}")
        if changed:
            print(f"{where}: {different}: sums are rounded differently from here on", flush=True)

    def _shape(self) -> set[str]:
        """The settings that decide the shape and scale of what is trained, into which a checkpoint is copied."""
        new_adapter = adapter_base(self.config.model) is None and getattr(self.config, "adaptation", "lora") == "lora"
        names = {"adaptation", *(("lora_r", "lora_alpha", "lora_target_modules") if new_adapter else ())}
        return names & vars(self.config).keys()

    def _different(self, names: Iterable[str], theirs: dict) -> str:
        return "; ".join(f"{name} {theirs.get(name)!r} there, {getattr(self.config, name)!r} here" for name in names)

    def _check_checkpoint(self, where: str, saved: dict, weights_only: bool) -> None:
        """ValueError, naming the setting, unless a checkpoint is of the run that is about to continue."""
        if not weights_only:
            self._check_settings(where, saved["settings"])
            for name, there in saved["launch"].items():
                here = self.launch.get(name, "gone")
                check(there == here, f"{where}: {name} was {there} and is {here}: launch it as before{NEW}")
        else:
            theirs = saved["settings"]
            changed = [n for n in sorted(self._shape() & theirs.keys()) if theirs[n] != getattr(self.config, n)]
            check(not changed, f"{where}: weights of another shape, {self._different(changed, theirs)}: set it back")
        self._check_dataset(where, saved["dataset_hash"])
        self._check_weights(where, saved)

    def _check_dataset(self, where: str, theirs: str) -> None:
        same = theirs in (self.dataset_hash, "unknown")  # as earlier versions wrote of some
        remedy = "set dataset to that, or train anew by overwrite true, without resume_from"
        check(same, f"{where}: dataset {self.config.dataset} is not what it was trained on; {remedy}")

    def _check_weights(self, where: str, saved: dict) -> str | None:
        """The hash of the model's weights on disk; ValueError unless it is that of the run's beginning."""
        there, here = saved.get("weights"), weights_hash(self.config.model, self.config.revision)
        check(
            here is None or there in (None, here),  # checkpoints of earlier versions do not say
            f"{where}: model {self.config.model} (or its base) has other weights than the run began with; put those "
            "back, or start a run of its own in another output_dir",
        )
        return here

    def _find(self, given: str) -> Path | None:
        if given != "latest":
            path = Path(given)
            check(path.is_dir() and (path / "run.json").is_file(), f"resume_from {given}: no checkpoint of a run")
            inside = path.resolve().parent == self.output_dir.resolve()
            check(inside, f"resume_from {given}: is not in output_dir {self.output_dir}; set output_dir {path.parent}")
            fault = damage(path)
            check(fault is None, f"resume_from {given}: {fault}; set resume_from latest to use the last whole one")
            return path
        candidates = list_checkpoints(self.output_dir)[::-1]
        for path in candidates:
            fault = damage(path)
            if fault is None:
                return path
            print(f"warning: {path} is damaged, {fault}: the one before it is used", flush=True)
        remedy = "set overwrite true, without resume_from, to start again"
        check(not candidates, f"output_dir {self.output_dir}: no checkpoint is whole; {remedy}")
        return None

    def end_at_once(self) -> None:
        """End a run that is resumed after its end."""
        if self.accelerator.is_main_process:
            again = "to train it again set overwrite true, without resume_from"
            print(f"already finished: {self.output_dir}; {again}")
            start = Path(self.config.model) / "finished.json"
            if start.is_file() and start.stat().st_mtime > (self.output_dir / "finished.json").stat().st_mtime:
                print(f"warning: model {self.config.model} has been trained since, and this one began before: {again}")
        self.accelerator.end_training()

    def restore(self, policy: torch.nn.Module, optimizer: Any, motion: Motion) -> dict[str, Any]:
        """Put the checkpoint's weights and optimizer state in place; returns what `save` was given, with the step.

        `motion` knows the weights that the run has begun with. Returns an empty dict at the start of a run. Random
        number generators are restored too, but for those of a kind of device that is not the checkpoint's: nothing may
        draw from them between here and the first step. From here on signals are only noted.
        """
        accelerator = self.accelerator
        peers = gather(accelerator, [(socket.gethostname(), os.getpid())])
        here = peers.pop(accelerator.process_index)[0]
        self.stop.listen([pid for host, pid in peers if host == here])
        saved = json.loads((self.checkpoint / "run.json").read_text()) if self.checkpoint else {}
        # Weights of the hub may have come only now.
        self.weights = on_main(accelerator, lambda: self._check_weights(f"resume_from {self.checkpoint}", saved))
        if self.checkpoint is None:
            on_main(accelerator, self._start)
            return {}
        load_trainable(policy, self.checkpoint)
        best = self.output_dir / "best.json"
        kept = json.loads(best.read_text()) if best.is_file() else {"step": 0}
        if kept["step"] > saved["step"]:  # of a step that is now taken again
            if self.weights_only:
                saved["state"].pop("best", None)  # and will be another one
            else:
                saved["state"]["best"] = kept  # as it was, but for rounding on GPUs
        if self.weights_only:
            load_optimizer(optimizer, None, {})
        else:
            tensors = load_file(self.checkpoint / f"rank-{accelerator.process_index}.safetensors")
            torch.set_rng_state(tensors.pop("rng.cpu"))
            on_gpu = tensors.pop("rng.cuda", None)
            if torch.cuda.is_available() and on_gpu is not None:
                torch.cuda.set_rng_state(on_gpu)
            if torch.cuda.is_available() != (on_gpu is not None):
                there, now = ("a GPU", "a CPU") if on_gpu is not None else ("a CPU", "a GPU")
                accelerator.print(
                    f"{self.checkpoint} is of {there}, this is {now}: sums are rounded differently from here on"
                )
            load_optimizer(optimizer, tensors, saved["scaler"])
        on_main(accelerator, lambda: self._begin(saved))
        motion.moved(policy)  # from here on it compares with these weights
        self.saved = self.began = saved["step"]
        if accelerator.is_main_process:
            print(f"continues from {self.checkpoint}", flush=True)
        return saved["state"] | {"step": saved["step"]}

    def check_length(self, num_steps: int) -> None:
        """ValueError if the checkpoint is of a step at which this run, with other settings, would have ended."""
        if self.checkpoint is not None and self.weights_only:
            step = json.loads((self.checkpoint / "run.json").read_text())["step"]
            check(
                step < num_steps,
                f"resume_from {self.checkpoint}: is of step {step}, and this run ends at step {num_steps}: raise "
                "max_steps, or resume from an earlier checkpoint",
            )

    def purge_step(self, first_step: int) -> int | None:
        """The step from which on TensorBoard forgets what this run has logged before; None: nothing."""
        if self.checkpoint is None:
            return 0 if self.again or self.logged else None
        return first_step + 1

    # --- in the loop

    def save(
        self, step: int, policy: torch.nn.Module, tokenizer, optimizer: Any, writer: SummaryWriter | None, state: dict
    ) -> None:
        """Write `checkpoint-<step>`, all ranks together; `state` is JSON. Raises ValueError if it cannot be written."""
        if step == self.saved:
            return
        if writer is not None:
            writer.flush()  # or the curve would have a gap after a resume
        target = self.output_dir / f"checkpoint-{step}"
        aside = aside_of(target)
        rank, accelerator = self.accelerator.process_index, self.accelerator
        try:
            on_main(accelerator, lambda: make_empty(aside))
            fault = self._write_rank(aside / f"rank-{rank}.safetensors", policy, optimizer)
            faults = [fault for fault in gather(accelerator, [fault]) if fault]
            if faults:
                raise OSError(0, faults[0])
            on_main(accelerator, lambda: self._write_shared(aside, target, step, policy, tokenizer, optimizer, state))
        except OSError as error:
            if accelerator.is_main_process:
                shutil.rmtree(aside, ignore_errors=True)
            good = [path for path in list_checkpoints(self.output_dir) if path != target]
            last = f"the last whole one is {good[-1].name}" if good else "there is none before it"
            raise ValueError(
                f"{target}: cannot be written ({error.strerror or error}); {last}: make room, then continue with "
                "resume_from latest"
            ) from None
        self.saved = step

    def _write_rank(self, path: Path, policy: torch.nn.Module, optimizer: Any) -> str | None:
        tensors = optimizer_tensors(policy, optimizer) | {"rng.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        except (OSError, SafetensorError) as error:
            return str(error)
        return None

    def _write_shared(self, aside: Path, target: Path, step, policy, tokenizer, optimizer, state) -> None:
        try:
            save_model(policy, tokenizer, aside)
            record = {
                "step": step,
                "launch": self.launch,
                "dataset_hash": self.dataset_hash,
                "weights": self.weights,
                "scaler": scaler_state(optimizer),
                "settings": asdict(self.config),
                "state": state,
            }
            (aside / "run.json").write_text(json.dumps(record) + "\n")
            write_manifest(aside)
            put_in_place(aside, target)
        except SafetensorError as error:
            raise OSError(0, str(error)) from None
        prune(self.output_dir, step, self.config.save_total_limit)

    def keep_model(self, policy: torch.nn.Module, tokenizer, card: str, best: dict[str, float]) -> None:
        """Make this the model of the output directory; `best` says of which step and with which score."""

        def write() -> None:
            def files(path: Path) -> None:
                save_model(policy, tokenizer, path, card)
                (path / "best.json").write_text(json.dumps(best) + "\n")

            try:
                write_into(self.output_dir, files)
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"output_dir {self.output_dir}: the model cannot be written ({error}); make room, then continue "
                    "with resume_from latest"
                ) from None

        on_main(self.accelerator, write)

    def must_stop(self) -> bool:
        """Whether any rank has been asked to stop: the same answer on every rank."""
        self.stopped_by = int(reduce(self.accelerator, {"reason": self.stop.asked()}, "max")["reason"])
        return self.stopped_by > 0

    def leave(self, step: int) -> None:
        """End this process, to be continued; leaves the marker that a job script requeues for (REQUEUE_MARKER)."""
        if self.accelerator.is_main_process:
            marker = os.environ.get("REQUEUE_MARKER")
            if marker and step > self.began:  # without a step done, it would be requeued for ever
                Path(marker).write_text(f"{self.output_dir} step {step}\n")
            reason = Stop.name(self.stopped_by)
            print(f"stopped by {reason} at step {step}: continue with --resume_from latest", flush=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        raise SystemExit(INTERRUPTED)

    def finish(self, scores: dict[str, float]) -> None:
        """Note that the run is complete: to resume it is then to do nothing."""
        if self.accelerator.is_main_process:
            (self.output_dir / "finished.json").write_text(json.dumps(scores) + "\n")


def files_of(config: TrainingSettings) -> list[Path]:
    """The files besides weights and dataset that a run's numbers depend on, as far as they are on this machine."""
    folders = {config.model, adapter_base(config.model) or config.model}
    files = [Path(folder, name) for folder in sorted(folders) for name in ("config.json", "tokenizer.json")]
    if reward := getattr(config, "reward_function", None):  # FILE.py:NAME
        files.append(Path(reward.rpartition(":")[0]))
    if rates := getattr(config, "pass_rates", None):
        files.append(Path(rates, "predictions.jsonl"))
    return [path for path in files if path.is_file()]


class Stop:
    """Notes of SIGTERM, SIGUSR1 and of the time limit (minutes from now, 0: none): they are acted on between steps.

    Until `listen` is called, while there is nothing to save, the signals end the process; afterwards they end one whose
    `peers`, the other ranks of this machine, are not all there any more.
    """

    TIME_LIMIT = 1  # SIGHUP's number, which is not handled

    def __init__(self, time_limit: float):
        self.deadline = time.monotonic() + 60 * time_limit if time_limit > 0 else float("inf")
        self.signal = 0  # set by the handler alone: a signal may come at any moment, as while the ranks ask each other

    def listen(self, peers: Sequence[int] = ()) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)
        if peers:
            end_without_peers(peers)

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number

    def asked(self) -> int:
        """The number of the signal that has come, TIME_LIMIT, or 0: nobody has asked."""
        return self.signal or (self.TIME_LIMIT if time.monotonic() > self.deadline else 0)

    @classmethod
    def name(cls, reason: int) -> str:
        return "time_limit" if reason == cls.TIME_LIMIT else signal.Signals(reason).name
