"""What the benchmarks of training and evaluation share: rows, a model, interleaved runs, token counts, the report.

Rows are released ones, generated, in the chat format of preprocess.py. The model is a Phi-3 with random weights, large
enough that a CPU is busy with matrices, and a word-level vocabulary like that of real tokenizers; or `--model DIR`.

Computed tokens are those that pass the embedding, padding included. Operations are those of the matrices, 2 a weight
and token, of the head where a completion token is predicted, and of attention, 4 d a layer for each pair of a token and
one it sees. A backward pass costs the forward pass again (attention twice: query, key and value), and the LoRA weights
twice, since the frozen ones have no gradient. A side's operations a second, as a share of what a large matrix product
reaches in the same run, is its fraction of the machine.
"""

import gc
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import disable_progress_bars  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from causal.rows import generate_rows  # noqa: E402
from causal.tiny import PHI3_CHAT_TEMPLATE, PHI3_SPECIAL  # noqa: E402
from dataset.batches import premise_groups  # noqa: E402
from dataset.chat import ANSWER_LINES, INSTRUCTIONS, add_chat, encode  # noqa: E402
from policy.loading import load_policy, load_tokenizer  # noqa: E402
from policy.prefix_sharing import Tokens, pack  # noqa: E402
from runtime.settings import check  # noqa: E402

PACKAGES = {"trl": "trl", "prefix-grouper": "prefix_grouper"}  # rivals that have to be installed
PHASES = ("step", "rollout", "scoring", "update")


def parser(description: str, rivals: list[str] | None = None) -> ArgumentParser:
    """The options that all benchmarks have, and those of a contest if there are rivals."""
    options = ArgumentParser(description=description)
    if rivals:
        options.add_argument("--rivals", nargs="+", default=rivals, choices=rivals, help="what to compare with")
        options.add_argument("--repeats", type=int, help="timed runs of each side, after a dropped one (3; quick: 2)")
        options.add_argument("--quick", action="store_true", help="one point, less than 5 minutes")
    options.add_argument("--threads", type=int, default=1, help="threads of the CPU; 1 is steady beside other load")
    options.add_argument("--model", help="a model's directory instead of random weights")
    shape = {"nargs": 4, "type": int, "default": [512, 8, 1536, 8], "metavar": ("D", "LAYERS", "INNER", "HEADS")}
    options.add_argument("--shape", **shape, help="of the model with random weights")
    options.add_argument("--json", help="file for the figures")
    return options


def check_rivals(rivals: list[str]) -> None:
    missing = [name for name in rivals if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None]
    remedy = "run pip install -r benchmarks/requirements.txt, or leave it out with --rivals"
    check(not missing, f"rival {', '.join(missing)} is not installed: {remedy}")


# --- the model and the rows


@dataclass
class Bench:
    """A model on disk that every side loads, and its tokenizer."""

    model: str
    tokenizer: PreTrainedTokenizerFast
    dtype: torch.dtype
    device: torch.device
    scratch: str  # a directory for what rivals write

    def policy(self) -> torch.nn.Module:
        """A trainable LoRA policy, r = 16 on every linear layer: the same weights at every call."""
        options = {"quantization": "none", "dtype": self.dtype, "device": self.device}
        return load_policy(self.model, adaptation="lora", **options).to(self.dtype)  # peft keeps LoRA in fp32


@contextmanager
def bench(options: Namespace) -> Iterator[Bench]:
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device("cpu"), torch.float32
    if torch.cuda.is_available():
        device = torch.device("cuda")
        dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    with tempfile.TemporaryDirectory() as scratch:
        if options.model is None:
            write_model(scratch, word_tokenizer(), options.shape)
        model = options.model or scratch
        yield Bench(model, load_tokenizer(model), dtype, device, scratch)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a word is a token, as in real vocabularies, with Phi-3's chat format."""
    corpus = [row["input"] for n in (2, 3, 4, 5) for row in list(generate_rows(n))[::7]]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters, special = pre_tokenizers.ByteLevel.alphabet(), list(PHI3_SPECIAL)
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=letters, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator([*corpus, INSTRUCTIONS["answer"], *ANSWER_LINES], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0], pad_token=special[0])
    tokenizer.chat_template = PHI3_CHAT_TEMPLATE
    return tokenizer


def write_model(directory: str, tokenizer: PreTrainedTokenizerFast, shape: list[int]) -> None:
    hidden, layers, inner, heads = shape
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096,
        original_max_position_embeddings=4096, bos_token_id=None, eos_token_id=end, pad_token_id=end,
        tie_word_embeddings=False,  # tied, random weights would repeat the last token for ever
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def premises(n: int) -> list[list[dict]]:
    """The released rows of N = n, premise by premise."""
    rows = list(generate_rows(n, "released"))
    return [[rows[i] for i in group] for group in premise_groups([row["premise_id"] for row in rows], len(rows))]


def chat(rows: list[dict], tokenizer, target: str = "answer") -> list[dict]:
    """Rows with `prompt` and `response`, as preprocess.py writes them."""
    return add_chat(rows, tokenizer, target)


def nearest_premises(n: int, tokenizer, prompt_tokens: int, count: int) -> list[list[dict]]:
    """The chats of the `count` premises of N = n whose prompts come nearest to so many tokens."""

    def distance(rows: list[dict]) -> int:
        return abs(len(encode(tokenizer, chat(rows[:1], tokenizer)[0]["prompt"])) - prompt_tokens)

    return [chat(rows, tokenizer) for rows in sorted(premises(n), key=distance)[:count]]


@torch.no_grad()
def padded_generate(model, prompts: list[Tokens], batch: int, length: int, pad: int, **options) -> list[Tokens]:
    """The plain loop: left-padded batches through `generate`, `length` new tokens for every prompt."""
    # No token ends a row; None would be filled in from the model's own generation_config.
    config = GenerationConfig(max_new_tokens=length, eos_token_id=-1, pad_token_id=pad, disable_compile=True, **options)
    device = next(model.parameters()).device
    done: list[Tokens] = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        done += model.generate(ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    return done


# --- time, tokens, operations


@dataclass
class Measure:
    seconds: float = 0.0
    tokens: int = 0
    peak: int = 0  # bytes on a GPU
    turns: list[float] = field(
        default_factory=list, compare=False
    )  # seconds of each turn, of which those are the median


Run = dict[str, Measure]  # by phase


class Clock:
    """Seconds, computed tokens and peak memory of the phases of a model's steps. Phases may nest."""

    def __init__(self, model: torch.nn.Module):
        self.cuda = next(model.parameters()).is_cuda
        self.count, self.run = 0, {}
        model.get_input_embeddings().register_forward_hook(self.embedded)

    def embedded(self, module, args, output: torch.Tensor) -> None:
        self.count += output.shape[:-1].numel()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start, count = time.perf_counter(), self.count
        yield
        if self.cuda:
            torch.cuda.synchronize()
        measure = self.run.setdefault(name, Measure())
        measure.seconds += time.perf_counter() - start
        measure.tokens += self.count - count
        measure.peak = max(measure.peak, torch.cuda.max_memory_allocated() if self.cuda else 0)

    def take(self) -> Run:
        """The phases so far, which are forgotten. A step's peak is the largest of its phases'."""
        run, self.run = self.run, {}
        for measure in run.values() if "step" in run else ():
            run["step"].peak = max(run["step"].peak, measure.peak)
        return run


def medians(runs: list[Run]) -> Run:
    """By phase, without the first run, which warms up."""
    found = {}
    for phase in runs[0]:
        kept = [run[phase] for run in runs[1:]]
        turns, peak = [m.seconds for m in kept], max(m.peak for m in kept)
        found[phase] = Measure(statistics.median(turns), kept[-1].tokens, peak, turns)
    return found


def operations(model, sequences: list[list[Tokens]], share: bool, tokens: int, heads: int, backward: bool) -> float:
    """Of `tokens` computed tokens that make these groups of sequences, with the head at `heads` of them."""
    weights = {"lora": 0, "base": 0}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and not any(part in name for part in ("embed_tokens", "lm_head")):
            weights["lora" if "lora_" in name else "base"] += parameter.numel()
    config, head = model.config, model.get_output_embeddings().weight.numel()
    groups = sequences if share else [[sequence] for group in sequences for sequence in group]
    pairs = sum(depth + 1 for depth in pack(groups).depths)
    attention = 4 * config.hidden_size * config.num_hidden_layers * pairs
    forward = 2 * tokens * (weights["base"] + weights["lora"]) + 2 * heads * head + attention
    return forward + (forward + attention + 2 * tokens * weights["lora"] if backward else 0)


class Side:
    """One of those compared: `settings` to choose from, and a step, which returns its phases."""

    settings: list[tuple]

    def step(self, *setting) -> Run:
        raise NotImplementedError

    def steps(self, setting: tuple, count: int, after: Callable[[], None] = lambda: None) -> list[Run]:
        """So many steps, with `after` called after each."""
        runs = []
        for _ in range(count):
            runs.append(self.step(*setting))
            after()
        return runs


def tuned(side: Side, parts: list[tuple[str, ...]]) -> tuple:
    """The best value of each element of the setting, from a step of each; `parts` are the phases that it decides."""
    if len(side.settings) == 1:
        return side.settings[0]
    tried = [side.steps(setting, 1)[0] for setting in side.settings]
    gc.collect()

    def fastest(part: tuple[str, ...]) -> int:
        return min(range(len(tried)), key=lambda i: sum(tried[i][phase].seconds for phase in part if phase in tried[i]))

    return tuple(side.settings[fastest(part)][k] for k, part in enumerate(parts))


def contest(sides: dict[str, Side], parts: list[tuple[str, ...]], options: Namespace) -> tuple[dict, dict[str, Run]]:
    """Settings and median phases of each side, which take turns. The last one leads: a trainer cannot be halted."""
    settings = {name: tuned(side, parts) for name, side in sides.items()}
    print("settings: " + "; ".join(f"{name} {' '.join(map(str, s))}" for name, s in settings.items()), flush=True)
    *others, lead = sides
    runs: dict[str, list[Run]] = {name: [] for name in sides}

    def turn() -> None:
        for name in others:
            runs[name].append(sides[name].step(*settings[name]))

    repeats = options.repeats or (2 if options.quick else 3)
    runs[lead] = sides[lead].steps(settings[lead], repeats + 1, turn)
    return settings, {name: medians(side_runs) for name, side_runs in runs.items()}


# --- TRL's trainers


def trainer_options(where: Bench, steps: int) -> dict:
    """What its trainers have in common: no logs, no checkpoints, no recomputation, our precision and optimizer."""
    cuda = where.device.type == "cuda"
    return {
        "output_dir": f"{where.scratch}/trl", "max_steps": steps, "learning_rate": 1e-5, "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant", "logging_strategy": "no", "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "gradient_checkpointing": False, "use_cpu": not cuda,
        "bf16": where.dtype == torch.bfloat16, "dataloader_pin_memory": cuda,
    }  # fmt: skip


def train_beside(trainer, clock: Clock, after: Callable[[], None]) -> list[Run]:
    """Let a trainer run; time each of its steps, and call `after` between them."""
    runs: list[Run] = []
    stack = ExitStack()

    class Beside(transformers.TrainerCallback):
        def on_step_begin(self, *args, **options):
            stack.enter_context(clock.phase("step"))

        def on_step_end(self, *args, **options):
            stack.close()
            runs.append(clock.take())
            after()

    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(Beside())
    trainer.train()
    return runs


# --- the report


def machine(where: Bench, threads: int) -> dict:
    """Its name and `matrix_rate`, the operations a second of a large matrix product at its best."""
    cuda = where.device.type == "cuda"
    size = 8192 if cuda else 2048
    a, b = (torch.randn(size, size, dtype=where.dtype, device=where.device) for _ in range(2))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    rate = 2 * size**3 / min(seconds)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if platform.system() == "Linux" else None
    name = torch.cuda.get_device_name() if cuda else cpu[1] if cpu else platform.machine()
    print(f"{name}, {threads} threads, {where.dtype}: {rate / 1e9:,.0f} Gop/s in a matrix product", flush=True)
    versions = {package.__name__: package.__version__ for package in (torch, transformers)}
    return {"name": name, "threads": threads, "dtype": str(where.dtype), "matrix_rate": rate, **versions}


def compare(at: dict, ours: tuple[Measure, float], theirs: tuple[Measure, float], rate: float) -> dict:
    """A row of the figures, from the measures and the operations of both sides; the spread is of the turns' ratios."""
    turns = [their / our for our, their in zip(ours[0].turns, theirs[0].turns, strict=True)]
    row = at | {
        "ours": ours[0].seconds,
        "theirs": theirs[0].seconds,
        "ratio": theirs[0].seconds / ours[0].seconds,
        "ratio_spread": [min(turns), max(turns)],
        "token_ratio": theirs[0].tokens / ours[0].tokens,
    }
    for side, (measure, work) in (("ours", ours), ("theirs", theirs)):
        row[f"{side}_of_machine"] = work / measure.seconds / rate
        row[f"{side}_tokens"] = measure.tokens
        row[f"{side}_tokens_per_second"] = at["sequence_tokens"] / measure.seconds
        if "sampled_tokens" in at:
            row[f"{side}_sampled_per_second"] = at["sampled_tokens"] / measure.seconds
        row[f"{side}_peak_bytes"] = measure.peak
    return row


def table(rows: list[dict]) -> str:
    """Times in seconds; tokens a second are those of the sequences, however many of them a side computes."""
    labels = {"rival": 15, "phase": 8, "N": 3, "G": 4, "T": 4, "P": 5, "claims": 7}
    lines = ["".join(f"{name:<{width}}" for name, width in labels.items())]
    lines[0] += "   ours s  theirs s   ratio  by tokens  of machine   tokens/s: ours   theirs"
    for row in rows:
        text = "".join(f"{row.get(name, ''):<{width}}" for name, width in labels.items())
        text += f"{row['ours']:>9.3f}{row['theirs']:>10.3f}{row['ratio']:>7.2f}x{row['token_ratio']:>10.2f}x"
        text += f"{row['ours_of_machine']:>7.0%}{row['theirs_of_machine']:>5.0%}"
        text += f"{row['ours_tokens_per_second']:>17,.0f}{row['theirs_tokens_per_second']:>9,.0f}"
        text += "" if row.get("lengths", "equal") == "equal" else f"   {row['lengths']}"
        text += "   turns {:.2f} to {:.2f}".format(*row["ratio_spread"])
        if "sampled_tokens" in row:
            text += f"   sampled/s {row['ours_sampled_per_second']:,.0f} {row['theirs_sampled_per_second']:,.0f}"
        if row["ours_peak_bytes"]:
            text += f"   peak GiB {row['ours_peak_bytes'] / 2**30:.2f} {row['theirs_peak_bytes'] / 2**30:.2f}"
        lines.append(text)
    return "\n".join(lines)


def output_of(command: list, environment: dict[str, str], seconds: float = 3600) -> str:
    """What a command of the project prints. One that fails, or takes more than `seconds`, raises ValueError with its
    reason, and the end of all that it has said goes to stderr."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, text=True, **pipes)
    try:
        printed, errors = process.communicate(timeout=seconds)
        reason = f"exit status {process.returncode}: {reason_of(printed + errors)}"
    except subprocess.TimeoutExpired:
        end_with_children(process)
        printed, errors = process.communicate()
        reason = f"no end after {seconds:.0f} s"
    if process.returncode == 0:
        return printed
    print(*(printed + errors).splitlines()[-80:], sep="\n", file=sys.stderr, flush=True)
    raise ValueError(reason)


def reason_of(printed: str) -> str:
    """The line that says why a run has failed: its own, or the last error of a traceback but the launcher's."""
    lines = [line for line in printed.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error:")]
    raised = [line for line in lines if re.match(r"(\[rank\d+\]: ?)?[\w.]*(Error|Exception)\b", line)]
    own = [line for line in raised if "ChildFailedError" not in line and "CalledProcessError" not in line]
    return (said[:1] or own[-1:] or lines[-1:] or ["no word"])[0][:300]


def end_with_children(process: subprocess.Popen) -> None:
    """End a launcher and its ranks, which are in sessions of their own, and wait until they have gone."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.wait()
    while any(map(is_there, children)):
        time.sleep(0.05)


def is_there(process: psutil.Process) -> bool:
    """Nor is a zombie, which stays for as long as nobody asks for its exit status."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write(figures: dict, path: str | None) -> None:
    if path:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n")
