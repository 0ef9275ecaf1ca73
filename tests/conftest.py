"""Small models, token sequences and folders that the tests share, and the order in which they run."""

import fcntl
import importlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Before transformers is imported: a test must not wait for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import load_from_disk  # noqa: E402
from hypothesis import settings  # noqa: E402
from made_up import write_csv  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from causal.rows import generate_rows  # noqa: E402
from causal.tiny import tiny_model, tiny_tokenizer  # noqa: E402
from dataset.chat import encode  # noqa: E402
from policy import loading  # noqa: E402
from policy.loading import save_model  # noqa: E402
from policy.prefix_sharing import ATTENTION, sequence_logps  # noqa: E402

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
VOCABULARY = 61
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.25,  # far from uniform predictions
    "attn_implementation": ATTENTION,
}
CPU = {"dtype": torch.float32, "device": torch.device("cpu")}  # what models are loaded with
PLAIN = {"adaptation": "lora", "quantization": "none", **CPU}
LORA_TARGETS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def build_model(family: str, lora: bool = False, seed: int = 0, vocab_size: int = VOCABULARY) -> torch.nn.Module:
    """A Phi-3 (tied embeddings) or a Qwen2 (grouped attention) in eval mode; its LoRA has a B that is not zero."""
    torch.manual_seed(seed)
    if family == "phi3":
        config = Phi3Config(**SMALL, vocab_size=vocab_size, num_key_value_heads=4, tie_word_embeddings=True)
        model = Phi3ForCausalLM(config)
    else:
        config = Qwen2Config(**SMALL, vocab_size=vocab_size, num_key_value_heads=2, tie_word_embeddings=False)
        model = Qwen2ForCausalLM(config)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=LORA_TARGETS[family], task_type="CAUSAL_LM"))
        randomize_lora_b(model)
    return model.eval()


def randomize_lora_b(model: torch.nn.Module, std: float = 0.1) -> None:
    """Make an adapter that does something, as after training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, std)


def random_groups(seed: int, num_groups: int = 4) -> tuple[list, list]:
    """Prompts and completions of groups, of few distinct tokens so that sequences collide.

    Each group has a duplicate sequence, and a sequence that is a prefix of another.
    """
    rng = random.Random(seed)
    prompts, completions = [], []
    for _ in range(num_groups):
        premise = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 6))]
        group_prompts, group_completions = [], []
        for _ in range(rng.randint(1, 4)):
            group_prompts.append(premise + [rng.randrange(1, 4) for _ in range(rng.randint(0, 3))])
            group_completions.append([rng.randrange(1, 4) for _ in range(rng.randint(1, 5))])
        k = rng.randrange(len(group_prompts))
        group_prompts += [group_prompts[k], group_prompts[k]]
        group_completions += [group_completions[k], group_completions[k] + [rng.randrange(VOCABULARY)]]
        prompts.append(group_prompts)
        completions.append(group_completions)
    return prompts, completions


def padded_logps(model, prompts: list, completions: list, temperature: float = 1.0, positions=None) -> tuple:
    """Log-probabilities and mask (B, T) in the most ordinary way: a right-padded row a sequence and all of its logits.

    What prefix_sharing.py must equal, with none of its code.
    """
    rows = [torch.tensor(p + c) for p, c in zip(prompts, completions, strict=True)]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    attention_mask = (torch.arange(input_ids.shape[1]) < torch.tensor([[len(row)] for row in rows])).long()
    position_ids = None if positions is None else positions[: input_ids.shape[1]].expand(input_ids.shape)
    logits = model(input_ids, attention_mask=attention_mask, position_ids=position_ids).logits.float() / temperature
    logps = torch.zeros(len(rows), max(map(len, completions)))
    mask = torch.zeros(logps.shape, dtype=torch.bool)
    for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        predicting = logits[b, len(prompt) - 1 : len(prompt) + len(completion) - 1].log_softmax(-1)
        logps[b, : len(completion)] = predicting.gather(-1, torch.tensor(completion)[:, None])[:, 0]
        mask[b, : len(completion)] = True
    return logps, mask


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every trainable tensor's gradient; the model's are cleared."""
    copies = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return copies


def assert_same_gradients(got: dict, expected: dict, relative: float = 1e-4) -> None:
    """Every tensor's gradient within `relative` of the expected one's norm."""
    assert got.keys() == expected.keys()
    scale = max(g.norm() for g in expected.values())
    assert scale > 0
    for name, gradient in expected.items():
        error = (got[name] - gradient).norm()
        assert error <= relative * gradient.norm() + 1e-7 * scale, f"{name}: off by {error} of {gradient.norm()}"


# Where the minutes go, longest first. Workers take a file at a time: one that comes last should be short.
LONG = (
    "test_resume", "test_launch", "test_recipes", "test_runs", "test_docs", "test_memory", "test_bad_input",
    "test_benchmarks", "test_faults",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """All tests but those of a GPU are of CPUs, their launches of two processes too, on whatever machine."""
    chosen = config.getoption("markexpr")
    if "gpu" not in chosen.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(trylast=True)  # after pytest has brought the tests of a parametrized fixture together
def pytest_collection_modifyitems(items: list) -> None:
    """On several workers the long files come first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(autouse=True)
def signals():
    """A training script that runs in this process handles signals: leave the handlers as they were."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(params=["phi3", "qwen2"], scope="session")
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def one_tokenizer(monkeypatch, tokenizer):
    """`load_tokenizer` returns the tests' shared tiny tokenizer, which takes a second to make."""
    monkeypatch.setattr(loading, "load_tokenizer", lambda name, revision: tokenizer)


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    """The 198 rows of all 11 premises over A, B and C, labels exact."""
    return list(generate_rows(3, relabel_seed=5, relabelings=6))


@pytest.fixture
def source(tmp_path, rows) -> str:
    """A file of them."""
    return write_csv(tmp_path / "rows.csv", rows)


COMMAND = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(*command) -> str:
    """Run a command in the project's root; its output, which is shown where it fails."""
    environment = os.environ | COMMAND
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, text=True, **streams)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def run_here(script: str, **options) -> str:
    """Run a script's main in this process, which has torch already, without the launcher; what it prints."""
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as printed:
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        patch.setattr(sys, "stdout", printed)
        try:
            importlib.import_module(script).main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return printed.getvalue()


def launch(processes: int, script: str, setup: str = "zero2_2xcpu", **options) -> str:
    """Run a script as `accelerate launch` with a configuration of accelerate_configs/ does; its output.

    On CPUs its ranks are forked, see ranks.py.
    """
    configured = ["--config_file", f"accelerate_configs/{setup}.yaml", "--num_processes", processes]
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    words = [*configured, script, *arguments]
    if os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        return run(sys.executable, "-m", "accelerate.commands.launch", *words)
    from ranks import launch_forked

    with pytest.MonkeyPatch.context() as patch:
        for name, value in COMMAND.items():
            patch.setenv(name, value)
        patch.chdir(ROOT)
        return launch_forked(list(map(str, words)))


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """once(name, make): a folder that `make` fills, made by the first of pytest-xdist's workers that asks for it."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.getbasetemp()

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / f"once-{name}", shared / f"once-{name}.made"
        with (shared / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed, and by the death of the worker
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def dataset(once) -> Path:
    """A dataset of answers for the tiny model."""
    options = {"num_variables": 3, "relabelings": 3, "instruction": "", "max_train_samples": 40}
    return once("dataset", lambda folder: run_here("preprocess", **options, output_dir=folder / "data")) / "data"


@pytest.fixture(scope="session")
def traces(tmp_path_factory) -> str:
    """A dataset whose responses are traces."""
    from preprocess import DataConfig, build, write_dataset

    folder = tmp_path_factory.mktemp("traces") / "data"
    config = DataConfig(num_variables=[4], target="trace", trace_style="full", max_length=4000)
    write_dataset(*build(config), folder)
    return str(folder)


@pytest.fixture(scope="session")
def start_adapter(once, dataset, tokenizer) -> Path:
    """An adapter that answers Yes or No about equally often, so that groups have different rewards; its base beside."""
    return once("start", lambda folder: train_start_adapter(folder, dataset, tokenizer)) / "adapter"


def train_start_adapter(folder: Path, dataset: Path, tokenizer) -> None:
    rows = load_from_disk(dataset)["train"]
    prompts = [encode(tokenizer, text) for text in rows["prompt"][:24]]
    answers = [encode(tokenizer, f"Answer: {answer}<|end|>") for answer in ("Yes", "No")]
    model = tiny_model(0, ATTENTION)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(30):
        batch = prompts[step % 4 :: 4]
        logps, _, _ = sequence_logps(model, [[p, p] for p in batch], [answers for _ in batch])
        (-logps.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, tokenizer, folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation=ATTENTION)
    policy = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.2))
    randomize_lora_b(policy, std=0.15)
    save_model(policy, tokenizer, folder / "adapter")
