"""The memory plan: what it counts without data is what the same code allocates with data."""

import json
import os
import random
import re
import subprocess
import sys

import pytest
import torch
from conftest import LORA_TARGETS, ROOT, build_model
from peft import LoraConfig, get_peft_model
from recipes import training_recipes
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Phi3Config
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

import train_grpo
import train_sft
from policy import sampling
from policy.loading import recompute_activations
from policy.prefix_sharing import ATTENTION
from policy.sampling import Decoding, generate
from policy.shapes import SHAPES, TINY, model_shape, with_layers
from runtime.settings import AUTO, parse_config
from training import demand as demands
from training import memory
from training.budgets import SHARE, with_budgets
from training.demand import Demand, demand_of
from training.memory import Allocations, Counted, Phase, Plan, counted, free_gradients, held, lines, policy_without_data

LAYERS = 5


def small_demand(family: str, **changes) -> Demand:
    shape = build_model(family).config
    shape.num_hidden_layers, shape.max_position_embeddings = LAYERS, 4096
    given = {"shape": shape, "dtype": torch.float32, "quantization": "none", "reference": False}
    given |= {"lora_r": 4, "lora_dropout": 0.1, "lora_targets": tuple(LORA_TARGETS[family])}
    sizes = {
        "gradient_checkpointing": False,
        "update_tokens": 500,
        "cache_tokens": 500,
        "sequences": 6,
        "prefill_tokens": 450,
    }
    return Demand(**(given | sizes | changes))


def real_policy(demand: Demand) -> torch.nn.Module:
    """As memory.policy_without_data, of all layers and with data."""
    shape = with_layers(demand.shape, demand.shape.num_hidden_layers)
    model = AutoModelForCausalLM.from_config(shape, dtype=demand.dtype, attn_implementation=ATTENTION)
    if demand.lora_r:
        lora = {"r": demand.lora_r, "lora_dropout": demand.lora_dropout, "target_modules": list(demand.lora_targets)}
        model = get_peft_model(model.requires_grad_(False), LoraConfig(**lora, task_type="CAUSAL_LM"))
    if demand.gradient_checkpointing:
        recompute_activations(model)
    free_gradients(model)
    return model


def of(counting, demand: Demand, *work: str):
    """What `counting` finds on the model with one layer and with two."""
    return counting(demand, policy_without_data(demand, 1), policy_without_data(demand, 2), *work)


def peak(found: Counted) -> float:
    return max(total for total, _ in found.peaks.values())


def planned_peak(demand: Demand, work: str, tokens: int) -> float:
    """`tokens` as in perform: what is cached in the end, of which prefill sees the prompt."""
    prompt = tokens - 2 * demand.sequences
    found = of(lines, demand, work).peaks.items()
    return max(line.at(prompt if part == "prefill" else tokens) for (part, _), (line, _) in found)


def real_peak(demand: Demand, work: str, tokens: int) -> float:
    return peak(counted(real_policy(demand), work, tokens, demand.sequences))


@pytest.mark.parametrize(
    "work, checkpointing", [("update", True), ("update", False), ("score", True), ("sample", True)]
)
def test_lines_reach_what_the_whole_model_allocates(family, work, checkpointing, monkeypatch):
    demand = small_demand(family, gradient_checkpointing=checkpointing)
    monkeypatch.setattr(memory, "LENGTHS", (256, 512))
    for tokens in (384, 1024):  # the masks, a byte for each token and one before it, show in a model of width 32
        assert planned_peak(demand, work, tokens) == pytest.approx(real_peak(demand, work, tokens), rel=0.1)


def test_a_model_without_data_allocates_what_one_with_data_does(family):
    demand = small_demand(family)
    found = counted(policy_without_data(demand, LAYERS), "update", 300, demand.sequences)
    assert peak(found) == pytest.approx(real_peak(demand, "update", 300), rel=0.01)
    assert 0 < found.kept < peak(found) and all(0 <= logits < total for total, logits in found.peaks.values())


@pytest.mark.parametrize("lora", [True, False])
def test_held_counts_every_weight(family, lora):
    demand = small_demand(family, **({} if lora else {"lora_r": 0, "lora_targets": ()}))
    model = real_policy(demand)
    trained = [p for p in model.parameters() if p.requires_grad]
    every = {id(x): x for x in (*model.parameters(), *model.buffers())}.values()
    assert of(held, demand) == {
        "frozen": sum(x.nbytes for x in every) - sum(p.nbytes for p in trained),
        "trained": sum(p.nbytes for p in trained),
        "count": sum(p.numel() for p in trained),
    }


def test_a_reference_is_a_second_adapter(family):
    without, with_reference = (of(held, small_demand(family, reference=reference)) for reference in (False, True))
    assert with_reference["count"] == without["count"]
    assert with_reference["frozen"] - without["frozen"] == without["trained"]


def test_nf4_takes_what_bitsandbytes_does():
    demand = small_demand("qwen2", quantization="nf4")
    demand.shape.hidden_size, demand.shape.intermediate_size = 256, 1024  # scales of small layers do not fill a block
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    shape = with_layers(demand.shape, demand.shape.num_hidden_layers)
    source = AutoModelForCausalLM.from_config(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    model = replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=config)
    size = 0
    for name, module in source.named_modules():
        if type(model.get_submodule(name)).__name__ == "Linear4bit":
            kind = type(model.get_submodule(name).weight)
            weight = kind(module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
            state = weight.quant_state
            size += weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
            size += 0 if module.bias is None else module.bias.nbytes
        else:
            size += sum(x.nbytes for x in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    assert of(held, demand)["frozen"] == pytest.approx(size, rel=0.02)


def test_forks_that_wait_take_no_more_than_planned(family, monkeypatch):
    """They come into a cache that is nearly full, with all that they have drawn."""
    cache, of_pass, prompt, new_tokens, begun = 700, 60, 60, 25, []
    monkeypatch.setattr(sampling, "PREFILL", of_pass)
    prefill = Decoding._prefill

    def watched(decoding, joining):
        begun.extend(branch for part in joining for branch in part.branches if branch.tokens)
        return prefill(decoding, joining)

    monkeypatch.setattr(Decoding, "_prefill", watched)
    rows = cache // (prompt // 8 + new_tokens)
    demand = small_demand(family, cache_tokens=cache, sequences=rows, prefill_tokens=of_pass, lora_dropout=0.0)
    model, draw = real_policy(demand).eval(), random.Random(0)
    groups = [[[draw.randrange(model.config.vocab_size) for _ in range(prompt)]] * 8 for _ in range(6)]
    options = {"stop_ids": set(), "max_new_tokens": new_tokens, "temperature": 0.5, "cache_tokens": cache}
    with Allocations(model) as taken:
        generate(model, groups, seeds=[[(g, k) for k in range(8)] for g in range(6)], **options)
    assert begun, "no fork has waited"
    parts = ("key-value cache", "logits", "activations")
    planned = max(sum(phase.parts[part] for part in parts) for phase in Plan(demand, ["sample"]).phases(1))
    assert 0.6 * planned < max(total for total, _ in taken.peaks.values()) <= planned


# ---------------------------------------------------------------- against the resident set of a process

WORKS = {"update": 2048, "score": 3072, "sample": 8192}  # tokens
MEASURE = f"""
import sys
sys.path[:0] = [{str(ROOT)!r} + folder for folder in ("", "/tests", "/tests/training", "/benchmarks")]
import torch
from test_memory import cpu_sized, real_policy
from training.memory import perform
from update_memory import peak_memory
torch.set_num_threads(1)
demand = cpu_sized()
model = real_policy(demand)
for work, tokens in {WORKS}.items():
    perform(model, work, tokens // 4, demand.sequences)  # what a process makes once, and keeps
    print(work, peak_memory(lambda: perform(model, work, tokens, demand.sequences)))
"""


def cpu_sized() -> Demand:
    """A model whose activations are some hundred MB, which shows in a process's resident set."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    shape = Phi3Config(**sizes, vocab_size=32064, num_hidden_layers=4)
    return small_demand("phi3", shape=shape, gradient_checkpointing=True, sequences=32)


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """Bytes that each work takes of a process beyond the weights."""
    # With this glibc gives back what is freed at once, from 64 KiB on, and the resident set is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: int(line[1]) for line in lines if line and line[0] in WORKS}


@pytest.mark.parametrize("work", WORKS)
def test_peaks_are_those_of_a_process(work, measured):
    """The target is 15 %."""
    assert measured[work] > 50e6
    assert planned_peak(cpu_sized(), work, WORKS[work]) == pytest.approx(measured[work], rel=0.15)


# ---------------------------------------------------------------- the plan


def documents() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))


@pytest.mark.parametrize("path", training_recipes())
def test_every_recipe_plans(path):
    script = train_sft if path.name.startswith("sft") else train_grpo
    config = parse_config(script.Config, ["--config", str(path)])
    base, demand = demand_of(config)
    shape = (ROOT / base / "config.json", SHAPES / f"{base}.json")
    assert base == TINY or any(file.is_file() for file in shape), "an adapter's base is a full model"
    stage, name = path.stem.split("_", 1)
    plan = Plan(demand)
    line = re.search(rf"^\| .*`{name}`.* GB \|$", documents(), re.M)
    assert line or not name.startswith(("phi3", "qwen")), "no row in the documents' table of cards"
    if line:
        *told, smallest = re.findall(r"[\d.]+(?=,| GB)", line[0])
        peaks = [plan.peak(cards).total for cards in (2, 1)]
        assert told[stage == "grpo" :: 2] == [f"{peak / 1e9:.1f}" for peak in peaks]
        assert peaks[1] < float(smallest) * 1e9
    sizes = {"micro_batch_tokens": demand.update_tokens, "cache_tokens": demand.cache_tokens}
    for setting, tokens in sizes.items():
        assert getattr(config, setting) == AUTO or tokens >= getattr(config, setting)
    assert (demand.lora_r > 0) == (getattr(config, "adaptation", "lora") == "lora")


@pytest.mark.parametrize("name, least", [("qwen_traces", (32, 32)), ("phi3_traces", (1, 24))])
def test_the_caches_that_the_page_promises(name, least):
    """`least` sequences at once, on cards of 11 and of 23 GB."""
    told = re.search(rf"^\| `{name}` \|(.* \([0-9]+\)) \|$", documents(), re.M)[1]
    of_cards = []
    for card, at_least in zip((11e9, 23e9), least, strict=True):
        of_stages = []
        for stage, script in (("sft", train_sft), ("grpo", train_grpo)):
            config = parse_config(script.Config, ["--config", str(ROOT / f"configs/{stage}_{name}.yaml")])
            found = with_budgets(config, 2, card)
            demand = demand_of(found)[1]
            assert demand.sequences >= at_least
            assert Plan(demand).peak(2).total <= SHARE * card
            of_stages.append(f"{found.cache_tokens:,} ({demand.sequences})")
        of_cards.append(" " + ", ".join(of_stages))
    assert told.split(" |") == of_cards


def test_what_is_given_is_kept_and_what_does_not_fit_is_one_at_a_time():
    config = train_sft.Config(model="Qwen/Qwen2.5-1.5B-Instruct", adaptation="lora", cache_tokens=777)
    assert with_budgets(config, 1, 1e9).cache_tokens == 777
    assert with_budgets(config, 1, 1e9).micro_batch_tokens == 1
    config = train_sft.Config(model="Qwen/Qwen2.5-1.5B-Instruct", adaptation="lora", micro_batch_tokens=55)
    assert with_budgets(config, 1, 1e9).cache_tokens == 1
    assert with_budgets(config, 1, 1e9).micro_batch_tokens == 55


def test_the_shapes_in_the_project_are_their_models():
    """Parameters as the models' makers count them (Qwen's 1.54 B), and as they were counted on the weights."""
    counts = {"microsoft/Phi-3.5-mini-instruct": 3_821_079_552, "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304}
    counts |= {"models/SmolLM2-135M-Instruct": 134_515_008, "HuggingFaceTB/SmolLM3-3B": 3_075_098_624}
    counts |= {"Qwen/Qwen3-1.7B": 1_720_574_976, "Qwen/Qwen3-4B": 4_022_468_096, "google/gemma-3-1b-it": 999_885_952}
    counts |= {"meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400, "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824}
    counts["microsoft/Phi-4-mini-instruct"] = 3_836_021_760
    for name, count in counts.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_shape(name))
        assert sum(p.numel() for p in model.parameters()) == count
    with pytest.raises(ValueError, match="model someone/Phi-3.5-mini-instruct: cannot be loaded"):
        model_shape("someone/Phi-3.5-mini-instruct")  # who may have converted it


def test_the_largest_that_fits_fits_exactly():
    phase = Phase("update", "micro_batch_tokens", 100, {"a": 1000.0, "b": 500.0}, slope=10.0)
    assert phase.largest(2000.0) == 150
    assert phase.largest(0.0) == 0


def test_an_adapter_that_is_not_trained_yet_is_known_by_its_recipe(tmp_path):
    config = parse_config(train_grpo.Config, ["--config", str(ROOT / "configs/grpo_qwen.yaml")])
    base, demand = demand_of(config)
    assert base == "Qwen/Qwen2.5-1.5B-Instruct" and demand.lora_r == 32
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": base, "r": 8, "target_modules": ["q_proj"], "peft_type": "LORA"})
    )
    config.model = str(tmp_path)
    assert demand_of(config)[1].lora_r == 8
    written = {"base_model_name_or_path": base, "r": 8, "target_modules": r"model\.layers.*(q|gate)_proj"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | {"peft_type": "LORA"}))
    assert demand_of(config)[1].lora_targets == ("gate_proj", "q_proj")
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | {"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="its adapter is IA3, not LoRA"):
        demand_of(config)


def test_the_revision_whose_shape_is_planned(monkeypatch, tmp_path):
    """That of the settings, of the adapter that is there, or of the recipe that will write it."""
    asked = []
    shape = model_shape("tiny")
    monkeypatch.setattr(demands, "model_shape", lambda name, revision=None: asked.append((name, revision)) or shape)
    demand_of(train_sft.Config(model="tiny", revision="one", adaptation="lora"))
    written = {"base_model_name_or_path": "tiny", "r": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | {"revision": "two"}))
    demand_of(train_grpo.Config(model=str(tmp_path)))
    recipe = {"model": "tiny", "revision": "three", "output_dir": "to_come", "adaptation": "lora"}
    monkeypatch.setattr(demands, "recipe_that_writes", lambda directory: recipe if directory == "to_come" else {})
    demand_of(train_grpo.Config(model="to_come"))
    assert asked == [("tiny", "one"), ("tiny", "two"), ("tiny", "three")]


def test_an_adapter_without_a_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match="adapter_config.json names no base_model_name_or_path"):
        demand_of(train_grpo.Config(model=str(tmp_path)))
