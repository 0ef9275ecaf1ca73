"""The recipes on a GPU: speed and memory of their models' real shapes, with and without shared prefixes.

    python benchmarks/gpu.py --json gpu.json --rates card.yaml                 # both models on cards of 11 and 23 GB
    python plan.py --config configs/grpo_phi3_traces.yaml --hours --rates card.yaml
    python benchmarks/gpu.py --models qwen --cards 11 --layers 2 --steps 2     # a shrunken copy; a CPU will do

Every run is the recipe's own script on one process, from random weights quantized to nf4, on generated rows of N = 5
with a word-level tokenizer: SFT steps, GRPO steps from the adapter that those leave, and decoding with the one that
these leave. On a GPU a run may take no more memory than the card that it stands for has. Rows and prompts of a step are
so many that micro-batches are as large as the recipe lets them be. Reported are medians over steps after the first two,
tokens a second as if each row were computed alone, the operations of the computed tokens as a share of a large matrix
product's rate (2 a weight and token; forward, forward again, and backward to the inputs), and the peak against the
memory plan's. What plan.py --hours asks of the card goes into the file of --rates. Nobody has run this on a GPU yet.
"""

import gc
import json
import os
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, replace
from pathlib import Path

import common
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

import train_grpo
import train_sft
from dataset.batches import premise_groups
from dataset.chat import encode_rows
from dataset.reading import load_split
from policy.loading import load_for_inference, load_tokenizer
from policy.prefix_sharing import pack
from policy.sampling import generate
from policy.shapes import empty_model, model_shape, with_layers
from runtime.ending import run_script
from runtime.settings import parse_config
from training.demand import Demand, demand_of
from training.hours import Rates, launches
from training.memory import GB, OUTSIDE, Phase, Plan
from training.settings import BUDGETS

SCRIPTS = {"sft": train_sft, "grpo": train_grpo}
DECODED = (8, 64)  # tokens of a completion: the difference of their times is that of decoding steps alone
SEQUENCES = 32  # that are decoded at once


def precision() -> tuple[torch.dtype, str]:
    """Of this machine: what it computes in, and the launch for one process of it."""
    if not torch.cuda.is_available():
        return torch.float32, "zero2_2xcpu.yaml"
    if torch.cuda.get_device_capability() >= (8, 0):
        return torch.bfloat16, "single_gpu.yaml"
    return torch.float16, "zero2_2x2080ti.yaml"


def write_model(name: str, folder: Path, layers: int) -> Path:
    """The recipe's model with random weights, all layers or so many, and a tokenizer that knows the rows' words."""
    shape = model_shape(name)
    if layers:
        shape = with_layers(shape, layers)
    tokenizer = common.word_tokenizer()
    shape.eos_token_id = shape.pad_token_id = tokenizer.eos_token_id
    shape.bos_token_id = None
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(shape, dtype=precision()[0])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    give_back()
    return folder


def give_back() -> None:
    """What this process holds of the GPU, to those that it starts."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def call(command: list, card_gb: float) -> None:
    """Run a script; on a GPU with no more memory than a card of `card_gb` GB."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if torch.cuda.is_available() and card_gb:
        share = (card_gb * GB - OUTSIDE) / torch.cuda.get_device_properties(0).total_memory
        bound = f"per_process_memory_fraction:{min(1.0, share):.4f}"
        environment["PYTORCH_ALLOC_CONF"] = f"{bound},expandable_segments:True"
    common.output_of(command, environment)


def run_recipe(stage: str, config, options: list, folder: Path, card_gb: float) -> dict[str, list[float]]:
    """Steps of a stage's script with `config`'s recipe; the values of its TensorBoard scalars, by name."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1]
    launch += ["--config_file", f"accelerate_configs/{precision()[1]}", f"train_{stage}.py", "--config", config]
    call([*launch, *options, "--output_dir", folder / "model", "--logging_dir", folder / "logs"], card_gb)
    events = EventAccumulator(str(folder / "logs")).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def packed_share(config) -> float:
    """Computed tokens of a training row, with shared prefixes, over those of the row alone."""
    rows = load_split(config.dataset, "train")
    prompts, responses = encode_rows(load_tokenizer(config.model), rows)[:2]
    groups = premise_groups(rows["premise_id"], config.claims_per_prefix)
    alone = sum(len(prompts[i]) + len(responses[i]) for group in groups for i in group)
    return sum(len(pack([[prompts[i] + responses[i] for i in group]])) for group in groups) / alone


def matrix_weights(model: str) -> int:
    """Weights of the layers' matrices, which every token passes; the head is for predicted tokens alone."""
    named = empty_model(model_shape(model)).named_parameters()
    return sum(p.numel() for name, p in named if p.dim() == 2 and "embed" not in name and "lm_head" not in name)


def decoding(model: Path, sequences: int = SEQUENCES) -> float:
    """Steps a second of so many samples of one prompt of 350 tokens."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_for_inference(str(model), "nf4", precision()[0], device)
    seconds = []
    for length in DECODED:
        seeds = [[(0, k) for k in range(sequences)]]
        inputs = {"stop_ids": set(), "max_new_tokens": length, "temperature": 1.0, "seeds": seeds, "fork": False}
        tries = []
        for _ in range(3):
            start = time.perf_counter()
            generate(loaded, [[list(range(350))] * sequences], **inputs)  # its tokens are read, which waits for the GPU
            tries.append(time.perf_counter() - start)
        seconds.append(min(tries))
    del loaded
    give_back()
    return (DECODED[1] - DECODED[0]) / (seconds[1] - seconds[0])


def planned(config) -> Phase:
    """The phase of the plan with the largest peak, on one card and with micro-batches as large as the setting says."""
    demand = demand_of(config)[1]
    demand = replace(demand, update_tokens=config.micro_batch_tokens, cache_tokens=config.cache_tokens)
    return Plan(demand).peak(cards=1)


def measure(name: str, card_gb: float, sharing: bool, options: Namespace, where: Path, rate: float) -> list[dict]:
    """The rows of a model on a card."""
    rows, model = [], str(where / "model")
    for stage in ("sft", "grpo"):
        recipe = f"configs/{stage}_{name}.yaml"
        folder = where / f"{stage}-{card_gb}-{sharing}"
        given = ["--dataset", where / "data", "--model", model, "--max_steps", options.steps, "--logging_steps", 1]
        given += ["--eval_steps", 0, "--eval_rows", 16, "--save_steps", 0, "--prefix_sharing", sharing]
        given += ["--batch_size", 128] if stage == "sft" else ["--prompts_per_step", 32, "--train_split", "train"]
        values = run_recipe(stage, recipe, given, folder, card_gb)
        config = parse_config(SCRIPTS[stage].Config, ["--config", recipe, *map(str, given)])
        used = json.loads((folder / "model" / "training_config.json").read_text())
        config = replace(config, **{name: used[name] for name in BUDGETS})  # that were `auto`
        found = {"model": name, "card_gb": card_gb, "stage": stage, "prefix_sharing": sharing}
        middle = {tag: statistics.median(v[2:] or v) for tag, v in values.items() if tag.startswith("perf/")}
        if stage == "sft":
            share = packed_share(config) if sharing else 1.0
            found["tokens_per_second"] = middle["perf/tokens_per_second"]
            found["of_matrix_rate"] = middle["perf/tokens_per_second"] * share * 6 * matrix_weights(config.model) / rate
        else:
            found |= {phase: middle[f"perf/{phase}_seconds"] for phase in ("rollout", "score", "update")}
        if "perf/peak_gb" in values:
            phase = planned(config)
            found |= {"peak_gb": max(values["perf/peak_gb"]), "planned_gb": (phase.total - OUTSIDE) / GB}
        rows.append(found)
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()), flush=True)
        model = str(folder / "model")
    return rows


def bandwidth() -> float:
    """Bytes a second of a large copy in memory, read and written."""
    cuda = torch.cuda.is_available()
    source = torch.ones(2**30 if cuda else 2**26, dtype=torch.uint8, device="cuda" if cuda else "cpu")
    target, seconds = torch.empty_like(source), []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)[0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * len(source) / min(seconds)


def measured_rates(figures: dict, demands: dict[str, Demand], memory: float, bandwidth: float) -> Rates:
    """The card of these figures, for plan.py --hours; `demands` by model, as it was decoded.

    A launch is taken to be all that a step of decoding waits for: too long on a card that is slow for its host.
    """
    steps = figures["decode_steps_per_second"]
    shares = [row["of_matrix_rate"] for row in figures["rows"] if row["stage"] == "sft" and row["prefix_sharing"]]
    return Rates(
        name=figures["machine"]["name"],
        source="measured by benchmarks/gpu.py",
        memory_gb=memory / GB,
        bandwidth=bandwidth,
        operations=figures["machine"]["matrix_rate"],
        bandwidth_share=1.0,
        operations_share=min(1.0, statistics.median(shares)),
        launch_us=min(1e6 / (steps[name] * launches(demand)) for name, demand in demands.items()),
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["phi3", "qwen"], choices=["phi3", "qwen", "phi3_medium"])
    parser.add_argument("--cards", nargs="+", type=float, default=[11.0, 23.0], help="memory in GB that a run may take")
    parser.add_argument("--layers", type=int, default=0, help="layers of a shrunken copy; 0: all")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a run")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--rates", metavar="FILE.yaml", help="file for the card's rates, for plan.py --hours")
    options = parser.parse_args()
    demands: dict[str, Demand] = {}
    figures: dict = {"rows": [], "decode_steps_per_second": {}}
    with tempfile.TemporaryDirectory() as scratch:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        where = common.Bench("", None, precision()[0], device, scratch)
        figures["machine"] = common.machine(where, torch.get_num_threads())
        for name in options.models:
            folder = Path(scratch) / name
            recipe = parse_config(train_sft.Config, ["--config", f"configs/sft_{name}.yaml"])
            write_model(recipe.model, folder / "model", options.layers)
            data = ["--tokenizer", folder / "model", "--output_dir", folder / "data", "--max_train_samples", 1024]
            data += ["--num_variables", 5, "--relabelings", 1, "--max_validation_samples", 64, "--max_test_samples", 1]
            call([sys.executable, "preprocess.py", *data], 0)
            for card in options.cards:
                for sharing in (True, False):
                    figures["rows"] += measure(name, card, sharing, options, folder, figures["machine"]["matrix_rate"])
            adapter = folder / f"grpo-{options.cards[-1]}-True" / "model"
            steps = decoding(adapter)
            figures["decode_steps_per_second"][name] = steps
            print(f"{name}: {steps:.1f} decoding steps a second, {SEQUENCES} sequences", flush=True)
            common.write(figures, options.json)
            recipe = ["--config", f"configs/grpo_{name}.yaml", "--model", str(adapter)]
            _, demand = demand_of(parse_config(train_grpo.Config, recipe))
            demands[name] = replace(demand, sequences=SEQUENCES)
    if options.rates:
        cuda = torch.cuda.is_available()
        memory = torch.cuda.get_device_properties(0).total_memory if cuda else max(options.cards) * GB
        rates = measured_rates(figures, demands, memory, bandwidth())
        Path(options.rates).write_text(yaml.safe_dump(asdict(rates), sort_keys=False))


if __name__ == "__main__":
    run_script(main)
