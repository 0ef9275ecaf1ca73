"""Ten minutes on a new machine: is all there that the recipes need, and does it compute what it should?

    make gpu-check                                                             # the GPUs, with a launch that fits them
    python benchmarks/gpu_check.py --launch accelerate_configs/zero2_2xcpu.yaml --only ranks resume evaluated killed

A line a check: pass, FAIL with what helps, or not run, where there is no GPU. The exit status is the number of
failures. How fast the recipes are on the machine, benchmarks/gpu.py measures. Nobody has run this on a GPU yet.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import common
import psutil
import torch
import yaml
from gpu import decoding, precision, write_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from policy.loading import load_policy
from policy.prefix_sharing import ATTENTION
from policy.self_check import check_gradients, check_model_numbers
from policy.shapes import model_shape, with_layers
from runtime.ending import run_script
from runtime.processes import gather, reduce, start
from runtime.settings import check
from scoring.results import read_results

GB = 2**30
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # of what is launched
MODELS = {"phi3": "microsoft/Phi-3.5-mini-instruct", "qwen": "Qwen/Qwen2.5-1.5B-Instruct"}
ROWS = (
    1,
    6,
    48,
    256,
)  # of a product with a quantized matrix: below some number of them bitsandbytes does not unpack it
DECODED = (6, 24, 48)  # sequences at once
PATIENCE = 120  # seconds until a run whose rank has died must be gone


class Fault(Exception):
    """Why a check has failed."""


class Place(NamedTuple):
    """What checks are done with: the launch, its processes, a folder of their own."""

    launch: str
    processes: int
    folder: Path

    def command(self, script: str, *options) -> list[str]:
        head = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", self.launch]
        return [*head, "--num_processes", str(self.processes), script, *map(str, options)]


def run(command: list[str], seconds: float = 300) -> str:
    return common.output_of(command, ENVIRONMENT, seconds)


def small(place: Place, name: str = "qwen") -> Path | str:
    """A recipe's model with two layers and random weights; on CPUs the tiny model."""
    if not torch.cuda.is_available():
        return "tiny"
    folder = place.folder / name
    return folder if folder.exists() else write_model(MODELS[name], folder, layers=2)


# --- the machine


def driver(place: Place) -> str:
    if not torch.cuda.is_available():
        raise Fault(f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU")
    memory = torch.cuda.get_device_properties(0).total_memory / GB
    return f"{torch.cuda.get_device_name(0)}, {memory:.1f} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}"


def kernels(place: Place) -> str:
    """Code for a capability runs on those of the same major number and a later minor one."""
    built = {tuple(divmod(int(name[3:].rstrip("af")), 10)) for name in torch.cuda.get_arch_list() if name[:3] == "sm_"}
    for k in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(k)
        if not any(a == major and b <= minor for a, b in built):
            raise Fault(f"GPU {k} has capability {major}.{minor}; torch has code for {sorted(built)}")
    return " ".join(torch.cuda.get_arch_list())


def enough(place: Place) -> str:
    count = torch.cuda.device_count()
    if count < place.processes:
        raise Fault(f"{count} GPUs for {place.processes} processes")
    return f"{count} GPUs for {place.processes} processes"


# --- what is computed


def attention(place: Place) -> str:
    for name in MODELS.values():
        shape = with_layers(model_shape(name), 1)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(shape, dtype=precision()[0], attn_implementation=ATTENTION)
        check_gradients(model)
    return f"packed rows and their gradients are SDPA's in {precision()[0]}, at head widths 96 and 128"


def quantized(place: Place) -> str:
    import bitsandbytes

    gaps = []
    for width in (1536, 3072):
        layer = bitsandbytes.nn.Linear4bit(width, width, bias=False, quant_type="nf4", compute_dtype=precision()[0])
        layer = layer.to("cuda")
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        for rows in ROWS:
            x = torch.randn(rows, width, device="cuda", dtype=precision()[0])
            expected = x.float() @ weight.T
            gaps.append(float((layer(x).float() - expected).norm() / expected.norm()))
    if not max(gaps) < 0.02:
        raise Fault(f"products with nf4 weights differ by {max(gaps):.2g} from those with the unpacked ones")
    return f"bitsandbytes {bitsandbytes.__version__}: {max(gaps):.1g} from the unpacked product, {ROWS} rows"


def numbers(place: Place) -> str:
    found = []
    for name in MODELS:
        options = {"adaptation": "lora", "quantization": "nf4", "dtype": precision()[0], "device": torch.device("cuda")}
        policy = load_policy(str(small(place, name)), **options)
        prompt = list(range(5, 355))
        gap = check_model_numbers(policy, [[prompt] * 4], [[[k] * 40 for k in range(4)]], [list(range(5, 1500))])
        found.append(f"{name} {gap:.2g}")
    return f"nats from the model's own, nf4 with LoRA: {', '.join(found)}"


def tests(place: Place) -> str:
    return run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], 1200).strip().splitlines()[-1]


def speed(place: Place) -> str:
    found = [f"{1000 / decoding(small(place), count):.1f} ms at {count}" for count in DECODED]
    return f"a decoding step of two layers of Qwen2.5-1.5B: {', '.join(found)} sequences"


# --- processes


def ranks(place: Place) -> str:
    return run(place.command("benchmarks/gpu_check.py", "--rank")).strip().splitlines()[-1]


def in_a_rank() -> None:
    """A sum in fp64, which half precision or fp32 would round, and objects of different sizes."""
    accelerator = start(0)
    size, rank = accelerator.num_processes, accelerator.process_index
    check(reduce(accelerator, {"n": float(2**40 + rank)})["n"] == size * 2**40 + sum(range(size)), "the sum is rounded")
    found = gather(accelerator, [{"of": rank, "text": "a" * (rank + 1)} for _ in range(rank + 1)])
    check(
        [len(x["text"]) for x in found] == [r + 1 for r in range(size) for _ in range(r + 1)], "objects are not whole"
    )
    if accelerator.is_main_process:
        print(f"{size} x {accelerator.device.type}: sums in fp64 are exact, objects arrive whole")
    accelerator.end_training()


def recipe(place: Place, stage: str, model: Path | str, *more) -> list[str]:
    """Two steps of a recipe, a checkpoint after each; on a CPU of the tiny model's."""
    name = "qwen" if torch.cuda.is_available() else "tiny"
    options = ["--config", f"configs/{stage}_{name}.yaml", "--model", model, "--dataset", data_of(place)]
    options += ["--max_steps", 2, "--save_steps", 1, "--eval_steps", 0, "--eval_rows", 4, "--max_new_tokens", 16]
    return place.command(f"train_{stage}.py", *options, *more)


def data_of(place: Place) -> Path:
    folder = place.folder / "data"
    if not folder.exists():
        options = ["--num_variables", 4, "--relabelings", 4, "--max_train_samples", 400, "--max_grpo_samples", 200]
        options += ["--tokenizer", small(place), "--output_dir", folder]
        run([sys.executable, "preprocess.py", *map(str, options)])
    return folder


def trained(place: Place, stage: str, model: Path | str) -> Path:
    """The two steps of a recipe, undisturbed."""
    folder = place.folder / f"{stage}-whole"
    if not folder.exists():
        run(recipe(place, stage, model, "--output_dir", folder, "--logging_dir", place.folder / f"{stage}-logs"))
    return folder


def resume(place: Place) -> str:
    found, model = [], small(place)
    for stage in ("sft", "grpo"):
        whole, again = trained(place, stage, model), place.folder / f"{stage}-again"
        shutil.copytree(whole, again)
        shutil.rmtree(again / "checkpoint-2")
        (again / "finished.json").unlink()
        options = ["--output_dir", again, "--logging_dir", place.folder / f"{stage}-logs-again"]
        run(recipe(place, stage, model, *options, "--resume_from", "latest"))
        one, other = (weights(folder / "checkpoint-2") for folder in (whole, again))
        # Of norms: Adam moves a weight whose gradient is next to nothing by a step, whichever way rounding goes.
        gap = max(float((one[name] - other[name]).norm() / one[name].norm().clamp(1e-9)) for name in one)
        if not gap < 0.01:
            raise Fault(f"{stage}: a resumed run's weights differ by {gap:.2g} from an undisturbed one's")
        found.append(f"{stage} {'bit for bit' if gap == 0 else f'to {gap:.1g}'}")
        model = whole
    return f"two steps, resumed after the first: {', '.join(found)}"


def evaluated(place: Place) -> str:
    """Of a trained model without a launcher, as every finished run says, and with one."""
    model, texts = trained(place, "sft", small(place)), []
    for kind, command in {"plain": [sys.executable, "evaluate.py"], "launched": place.command("evaluate.py")}.items():
        folder = place.folder / f"evaluated-{kind}"
        options = ["--model", model, "--dataset", data_of(place), "--max_rows", 16, "--max_new_tokens", 8]
        run([*command, *map(str, [*options, "--output_dir", folder])])
        texts.append([row["completion"] for row in read_results(str(folder), "output_dir")[1]])
    same = sum(one == other for one, other in zip(*texts, strict=True))
    return f"{same} of {len(texts[0])} answers are alike without a launcher and on {place.processes} processes"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (path for path in folder.glob("*.safetensors") if not path.name.startswith("rank-"))
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def killed(place: Place) -> str:
    output = place.folder / "killed"
    options = ["--output_dir", output, "--logging_dir", place.folder / "killed-logs", "--max_steps", 500]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    launcher = subprocess.Popen(recipe(place, "sft", small(place), *options), cwd=common.ROOT, env=ENVIRONMENT, **quiet)
    try:
        until(lambda: (output / "checkpoint-1").is_dir() or launcher.poll() is not None, 300, "no step was taken")
        started = psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else []
        of_ranks = [process for process in started if "train_sft.py" in " ".join(process.cmdline())]
        if not of_ranks:
            raise Fault(f"the run ended by itself, with exit status {launcher.poll()}")
        of_ranks[-1].kill()
        since = time.monotonic()
        until(
            lambda: not any(map(common.is_there, started)),
            PATIENCE,
            f"processes are left {PATIENCE} s after a rank has died",
        )
        return f"all gone {time.monotonic() - since:.0f} s after a rank has died"
    finally:
        common.end_with_children(launcher)


def until(condition: Callable[[], bool], seconds: float, fault: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Fault(fault)
        time.sleep(0.2)


# --- the table

OTHER_BUILD = (
    "install the build of torch for your driver (README, Two GPUs); PyTorch's CUDA 13 needs driver 580 or later"
)
CHECKS: dict[str, tuple[Callable[[Place], str], bool, str]] = {  # what, whether of GPUs alone, what helps
    "driver": (driver, True, OTHER_BUILD),
    "kernels": (kernels, True, OTHER_BUILD),
    "enough": (enough, True, "give --processes of that many, or show more GPUs (CUDA_VISIBLE_DEVICES)"),
    "attention": (attention, True, "train with prefix_sharing false, and report it"),
    "quantized": (quantized, True, "install bitsandbytes for your CUDA (python -m bitsandbytes says more)"),
    "numbers": (numbers, True, "train with prefix_sharing false, and report it"),
    "speed": (speed, True, ""),
    "ranks": (ranks, False, "NCCL_P2P_DISABLE=1 where two GPUs hang or have no peer access (docs/troubleshooting.md)"),
    "resume": (resume, False, "report it, with the last lines of the run"),
    "evaluated": (evaluated, False, "report it, with the last lines of evaluate.py"),
    "killed": (killed, False, "end the processes by hand, and report it"),
    "tests": (tests, True, "python -m pytest -m gpu shows which"),
}


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launch", help="a file of accelerate_configs/; by default one for this machine's GPUs")
    parser.add_argument("--processes", type=int, help="by default those of the launch, or one for each GPU if fewer")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--json", help="file for the outcome")
    parser.add_argument("--rank", action="store_true", help="for its own use: what each process of `ranks` does")
    options: Namespace = parser.parse_args()
    if options.rank:
        in_a_rank()
        return
    suited = "zero2_2xl4.yaml" if precision()[0] == torch.bfloat16 else "zero2_2x2080ti.yaml"
    launch = options.launch or f"accelerate_configs/{suited}"
    check((common.ROOT / launch).is_file(), f"launch: {launch}: no such file; name one of accelerate_configs/")
    on_gpus = torch.cuda.is_available()
    processes = options.processes or yaml.safe_load((common.ROOT / launch).read_text())["num_processes"]
    if on_gpus and not options.processes:
        processes = min(processes, torch.cuda.device_count())
    outcome: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(launch, processes, Path(folder))
        for name in options.only:
            act, of_gpus, remedy = CHECKS[name]
            judge = partial(act, place)
            asked = on_gpus or act is driver or (options.launch and not of_gpus)
            outcome[name] = outcome_of(judge, remedy) if asked else {"result": "not run", "what": "no usable GPU"}
            print("{:10} {result:8} {what}".format(name, **outcome[name]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(outcome, indent=1) + "\n")
    failed = [name for name, found in outcome.items() if found["result"] == "FAIL"]
    left = [name for name, found in outcome.items() if found["result"] == "not run"]
    print(f"{len(outcome) - len(failed) - len(left)} passed, {len(failed)} failed, {len(left)} not run")
    sys.exit(len(failed))


def outcome_of(judge: Callable[[], str], remedy: str) -> dict[str, str]:
    try:
        return {"result": "pass", "what": judge()}
    except Exception as error:  # a check that falls over has not passed
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return {"result": "FAIL", "what": f"{reason}; {remedy}" if remedy else reason}


if __name__ == "__main__":
    run_script(main)
