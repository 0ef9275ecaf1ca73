"""A training run: its output directory, its checkpoints, how it continues bit for bit, and when it has to stop.

`checkpoint-<step>/` is filled by all ranks together:

    adapter_model.safetensors, …   the policy, as a user loads it (policy.loading.save_model)
    rank-<r>.safetensors           what only rank r holds: its part of the optimizer, its random number generators
    run.json                       step, settings, loss scale, and what the script hands over: scores, history, position
    manifest.json                  SHA-256 of every other file

Two more files are in the output directory: `best.json`, of which step its model is, and `finished.json` at the end.
SIGTERM, SIGUSR1 and `time_limit` only make a note; the loop asks at each step's boundary, and all ranks save together.
"""

import json
import os
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter

from policy.loading import load_trainable, save_model, training_dtype
from runtime.checkpoints import claim_output_dir, damage, list_checkpoints, prune, write_manifest
from runtime.files import (
    aside_of,
    is_occupied,
    lock,
    make_empty,
    make_output_dir,
    put_in_place,
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
        self.launch = {"num_processes": accelerator.num_processes, "dtype": str(training_dtype(accelerator))}
        self.lock: Any = None
        self.start: str | None = None
        self.again = config.resume_from is not None  # this run may have logged before
        if config.resume_from is None and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0:
            self.again = True
        # Where these are `auto`, the numbers that the interrupted run has found: others would round sums differently.
        self.found: dict[str, int] = {}
        self.checkpoint, self.finished, self.found = on_main(accelerator, self._open)
        self.saved = -1  # step of the newest checkpoint
        self.began = 0  # step at which this process took over

    # --- before training

    def _open(self) -> tuple[Path | None, bool, dict[str, int]]:
        """On rank 0: the checkpoint to continue from, if there is one; whether the run has finished; `found`."""
        make_output_dir(self.config.output_dir)
        make_output_dir(self.config.logging_dir, "logging_dir")
        self.lock = lock(self.output_dir)
        try:
            return *self._choose(), self.found
        except ValueError:
            self.lock.close()
            raise

    def _choose(self) -> tuple[Path | None, bool]:
        config, where = self.config, f"output_dir {self.output_dir}"
        for left in (*self.output_dir.glob(".checkpoint-*"), self.output_dir / ".saving"):
            shutil.rmtree(left, ignore_errors=True)
        if not self.again:
            check(not config.resume_weights_only, "resume_weights_only: needs resume_from, latest or a checkpoint")
            claim_output_dir(config.output_dir, config.overwrite)
            return None, False
        finished = (self.output_dir / "finished.json").is_file() and not config.resume_weights_only
        found = None if finished else self._find()
        if found is not None:
            self._check_checkpoint(f"resume_from {found}", json.loads((found / "run.json").read_text()))
        elif is_occupied(self.output_dir):  # by a run that has finished, or was killed before its first checkpoint?
            written = self.output_dir / "training_config.json"
            check(written.is_file(), f"{where}: holds other files and no checkpoint; name another")
            self._check_settings(where, json.loads(written.read_text()))
        return found, finished

    def _check_settings(self, where: str, theirs: dict) -> None:
        ours = asdict(self.config)
        for name, value in theirs.items():
            harmless = name in ours or name in OUTWARD or name not in GONE or value == GONE[name][0]
            check(harmless, f"{where}: {name} was {value!r}, and that setting has gone{NEW}")
        theirs = asdict(type(self.config)()) | theirs  # what came later was as its default is
        self.found = {name: theirs[name] for name in BUDGETS if ours[name] == AUTO != theirs[name]}
        ours |= self.found
        changed = [name for name in ours if theirs.get(name) != ours[name] and name not in OUTWARD]
        different = [f"{name} {theirs.get(name)!r} there, {ours[name]!r} here" for name in changed]
        check(
            not set(changed) - set(BUDGETS), f"{where}: another configuration, {'; '.join(different)}: set it back{NEW}"
        )
        if different:
            print(f"{where}: {'; '.join(different)}: sums are rounded differently from here on", flush=True)

    def _check_checkpoint(self, where: str, saved: dict) -> None:
        """ValueError, naming the setting, unless a checkpoint is of the run that is about to continue."""
        if not self.config.resume_weights_only:
            self._check_settings(where, saved["settings"])
            for name, there in saved["launch"].items():
                here = self.launch[name]
                check(there == here, f"{where}: {name} was {there} and is {here}: launch it as before{NEW}")
        same = saved["dataset_hash"] == self.dataset_hash
        check(same, f"{where}: dataset {self.config.dataset} is not what it was trained on; set dataset to that")

    def _find(self) -> Path | None:
        given = self.config.resume_from or "latest"
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
        number generators are restored too: nothing may draw from them between here and the first step. From here on
        signals are only noted.
        """
        self.stop.listen()
        self.start = motion.digest()
        if self.accelerator.is_main_process:
            write_config(self.config, self.output_dir / "training_config.json")
        if self.checkpoint is None:
            return {}
        saved = json.loads((self.checkpoint / "run.json").read_text())
        began = f"model {self.config.model}: is not what the run of {self.checkpoint} began with"
        check(saved["start"] == self.start, f"{began}; put that back, or start a run of its own in another output_dir")
        load_trainable(policy, self.checkpoint)
        if self.config.resume_weights_only:
            load_optimizer(optimizer, None, {})
            (self.output_dir / "finished.json").unlink(missing_ok=True)
            best = self.output_dir / "best.json"
            if best.is_file() and json.loads(best.read_text())["step"] > saved["step"]:
                del saved["state"]["best"]  # of steps that are now taken anew, and differently
        else:
            tensors = load_file(self.checkpoint / f"rank-{self.accelerator.process_index}.safetensors")
            torch.set_rng_state(tensors.pop("rng.cpu"))
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors.pop("rng.cuda"))
            load_optimizer(optimizer, tensors, saved["scaler"])
        motion.moved(policy)  # from here on it compares with these weights
        self.saved = self.began = saved["step"]
        if self.accelerator.is_main_process:
            print(f"continues from {self.checkpoint}", flush=True)
        return saved["state"] | {"step": saved["step"]}

    def purge_step(self, first_step: int) -> int | None:
        """The step from which on TensorBoard forgets what this run has logged before; None: nothing."""
        if self.checkpoint is None:
            return 0 if self.again else None
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
                "start": self.start,
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
        self.stop.reason = int(reduce(self.accelerator, {"reason": self.stop.asked()}, "max")["reason"])
        return self.stop.reason > 0

    def leave(self, step: int) -> None:
        """End this process, to be continued; leaves the marker that a job script requeues for (REQUEUE_MARKER)."""
        if self.accelerator.is_main_process:
            marker = os.environ.get("REQUEUE_MARKER")
            if marker and step > self.began:  # without a step done, it would be requeued for ever
                Path(marker).write_text(f"{self.output_dir} step {step}\n")
            print(f"stopped by {self.stop.name()} at step {step}: continue with --resume_from latest", flush=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        raise SystemExit(INTERRUPTED)

    def finish(self, scores: dict[str, float]) -> None:
        """Note that the run is complete: to resume it is then to do nothing."""
        if self.accelerator.is_main_process:
            (self.output_dir / "finished.json").write_text(json.dumps(scores) + "\n")


class Stop:
    """Notes of SIGTERM, SIGUSR1 and of the time limit (minutes from now, 0: none): they are acted on between steps.

    Until `listen` is called, while there is nothing to save, the signals end the process.
    """

    TIME_LIMIT = 1  # SIGHUP's number, which is not handled

    def __init__(self, time_limit: float):
        self.deadline = time.monotonic() + 60 * time_limit if time_limit > 0 else float("inf")
        self.reason = 0

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.reason = number

    def asked(self) -> int:
        return self.reason or (self.TIME_LIMIT if time.monotonic() > self.deadline else 0)

    def name(self) -> str:
        return "time_limit" if self.reason == self.TIME_LIMIT else signal.Signals(self.reason).name
