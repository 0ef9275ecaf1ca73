"""What only a GPU can show: `python -m pytest -m gpu`. The default tests leave these out."""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, VOCABULARY, assert_same_gradients, build_model, gradients, launch, random_groups
from recipes import SHORT, shrunken, small_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_memory import WORKS, cpu_sized, planned_peak, real_policy

from policy.loading import BF16_CAPABILITY, load_policy, save_model
from policy.prefix_sharing import sequence_logps
from policy.self_check import check_model_numbers
from training.memory import perform

sys.path.insert(0, str(ROOT / "benchmarks"))
from update_memory import peak_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
HAS_BF16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= BF16_CAPABILITY
HALF = [
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not HAS_BF16, reason="this GPU only emulates bf16")),
]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_packed_is_plain(family, dtype):
    model = build_model(family, lora=True).to("cuda", dtype)
    prompts, completions = random_groups(0)
    check_model_numbers(
        model, prompts, completions, longest=[prompts[0][0] + completions[0][0]]
    )  # raises beyond the dtype's tolerance


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_packed_gradients_are_plain(family, dtype):
    """The GPU's kernels have a backward pass of their own, which the check at the start of a run does not see."""
    model = build_model(family, lora=True).to("cuda", dtype)
    rng = torch.Generator().manual_seed(0)

    def draw(*lengths: int) -> list[list[int]]:
        return [torch.randint(VOCABULARY, (length,), generator=rng).tolist() for length in lengths]

    prompts, completions = [draw(203) * 4, draw(50) * 2], [draw(150, 170, 33, 31), draw(3, 7)]
    found = []
    for share in (True, False):
        sequence_logps(model, prompts, completions, share=share)[0].sum().backward()
        found.append(gradients(model))
    assert_same_gradients(*found, relative=1e-3 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("dtype", HALF)
def test_the_plan_is_what_the_gpu_allocates(work, dtype):
    """The target is 15 % of what torch's allocator hands out beyond the weights."""
    demand = replace(cpu_sized(), dtype=dtype)
    model = real_policy(demand).to("cuda", dtype)  # its adapter too, as DeepSpeed has it

    def act() -> None:
        perform(model, work, WORKS[work], demand.sequences)

    act()
    assert planned_peak(demand, work, WORKS[work]) == pytest.approx(peak_memory(act), rel=0.15)


@pytest.mark.parametrize("dtype", HALF)
def test_nf4_on_the_gpu_trains(family, dtype, tokenizer, tmp_path):
    save_model(build_model(family), tokenizer, tmp_path / "full")
    options = {"adaptation": "lora", "quantization": "nf4", "dtype": dtype, "device": torch.device("cuda")}
    model = load_policy(str(tmp_path / "full"), **options)
    perform(model, "update", 64, 1)
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert gradients and all(g.isfinite().all() and g.any() for g in gradients)


@pytest.mark.parametrize("model, setup", [("phi3", "single_gpu"), ("qwen", "zero2_2x2080ti")])
def test_a_recipe_takes_two_steps_on_one_gpu(model, setup, tmp_path):
    """bf16 as on an L4 and fp16 as on a 2080 Ti, SFT and then GRPO; a step of fp16 may be skipped, not all of them."""
    if setup == "single_gpu" and not HAS_BF16:
        pytest.skip("this GPU only emulates bf16")
    base = shrunken(model, tmp_path / "base")
    dataset, start = small_dataset(base, tmp_path / "data"), base
    for stage in ("sft", "grpo"):
        folder, config = tmp_path / stage, f"configs/{stage}_{model}.yaml"
        options = SHORT | {"model": start, "dataset": dataset, "output_dir": folder, "logging_steps": 1}
        options["logging_dir"] = folder / "logs"
        launch(1, f"train_{stage}.py", setup, config=config, **options)
        events = EventAccumulator(str(folder / "logs")).Reload()
        skipped = [event.value for event in events.Scalars("health/step_skipped")]
        assert min(skipped) == 0 and events.Scalars("perf/peak_gb")[-1].value > 0
        start = folder
