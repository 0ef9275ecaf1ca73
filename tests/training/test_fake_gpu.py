"""What the recipes' models would meet on a GPU, without one: tensors that say they are there and hold no data.

The layers have their real shapes. A tensor of the CPU among those of the GPU raises, and so does whatever needs a
value on the host: in a step of decoding only the choice of tokens may. Kernels do not run, so what they compute is not
tested, and weights are not quantized.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LORA_TARGETS
from peft import LoraConfig, get_peft_model
from recipes import recipe_of
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from policy import branch_cache, sampling
from policy.adapters import add_reference, use_reference
from policy.loading import recompute_activations
from policy.prefix_sharing import TreeAttention, attention_shape, pack, sequence_logps
from policy.shapes import empty_model, model_shape, with_layers

GPU, META = 1, 14  # c10::DeviceType
RECIPES = [("phi3", torch.bfloat16), ("qwen", torch.float16)]


class FakeGpu(TorchDispatchMode):
    """Tensors of the GPU hold no data; those of the CPU are as ever."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type == "cuda"
        if there or any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            with self.fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


@pytest.fixture
def fake_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    # Without CUDA torch has nothing that switches to another GPU before a kernel; that of the meta device does nothing.
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[GPU]
    guards[GPU] = before or guards[META]
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") makes one of the CPU and moves it
    with FakeGpu():
        yield
    torch._C._set_only_lift_cpu_tensors(False)
    guards[GPU] = before


def policy(name: str, dtype: torch.dtype) -> torch.nn.Module:
    """One layer of the recipe's model with its adapter and the reference."""
    model = empty_model(with_layers(model_shape(recipe_of("sft", name)["model"]), 1), dtype)
    targets = LORA_TARGETS[model.config.model_type]
    model = get_peft_model(model, LoraConfig(r=16, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.device("meta"):
        add_reference(model)
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    trained = isinstance(tensor, torch.nn.Parameter)
                    held[key] = torch.nn.Parameter(there, requires_grad=tensor.requires_grad) if trained else there
    return model


def groups() -> tuple[list, list]:
    prompt = list(range(5, 355))
    return [[prompt, prompt, [*prompt[:300], 7]], [[9, 8, 7]]], [[[1] * 130, [1, 2, 3], [4] * 6], [[5, 6]]]


@pytest.mark.parametrize("name, dtype", RECIPES)
def test_scoring_and_the_update_stay_on_the_gpu(fake_gpu, name, dtype):
    model = policy(name, dtype).train()
    recompute_activations(model)
    for share in (True, False):
        logps, entropies, mask = sequence_logps(model, *groups(), temperature=0.9, share=share, entropy=True)
        assert {x.device.type for x in (logps, entropies, mask)} == {"cuda"}
        assert logps.dtype == torch.float32 and logps.requires_grad
        with torch.no_grad(), use_reference(model):
            assert sequence_logps(model, *groups(), share=share)[0].device.type == "cuda"


@pytest.mark.parametrize("name, dtype", RECIPES)
def test_the_backward_pass_of_attention_stays_on_the_gpu(fake_gpu, name, dtype):
    heads, key_heads, width = attention_shape(model_shape(recipe_of("sft", name)["model"]))
    tree = pack([[p + c for p, c in zip(*group, strict=True)] for group in zip(*groups(), strict=True)])
    query, key, value = (
        torch.randn(1, n, len(tree), width, device="cuda", dtype=dtype) for n in (heads, key_heads, key_heads)
    )

    class Context:
        def save_for_backward(self, *tensors):
            self.saved_tensors = tensors

    for window in (None, 64):
        context = Context()
        output = TreeAttention.forward(context, query, key, value, tree.pieces(query.device, window), 0.1)
        found = TreeAttention.backward(context, torch.randn_like(output))
        assert [x.shape for x in found[:3]] == [x.shape for x in (query, key, value)]
        assert {(x.device.type, x.dtype) for x in (output, *found[:3])} == {("cuda", dtype)}


@pytest.mark.parametrize("name, dtype", RECIPES)
def test_a_step_of_decoding_asks_the_gpu_once(fake_gpu, name, dtype, monkeypatch):
    model = policy(name, dtype).eval()
    asked = []

    def choose(logits, temperature, uniforms):
        assert logits.device.type == "cuda"
        asked.append(len(logits))
        different = np.arange(uniforms.shape[1]) if len(asked) == 3 else 0
        return np.full_like(uniforms, 11, dtype=int) + different, np.zeros_like(uniforms)

    monkeypatch.setattr(sampling, "_choose", choose)
    monkeypatch.setattr(branch_cache, "BLOCK", 4)
    prompts = groups()[0]
    seeds = [[(0, k) for k, _ in enumerate(group)] for group in prompts]
    drawn = sampling.generate(model, prompts, stop_ids={0}, max_new_tokens=6, temperature=1.0, seeds=seeds)
    assert all(len(completion.tokens) == 6 for group in drawn for completion in group)
    assert asked == [3, 3, 3, 4, 4, 4], "two samples of a prompt are one row until they differ"
    asked.clear()
    options = {"stop_ids": {0}, "max_new_tokens": 6, "temperature": 1.0, "seeds": seeds}
    again = sampling.generate(model, prompts, drafts=[[[11] * 6] * len(group) for group in prompts], **options)
    assert {tuple(completion.tokens) for group in again for completion in group} == {(11,) * 6}
    assert asked == [3, 3 * 5], "four tokens of the draft behind the newest of each row"


def test_a_mix_of_devices_and_a_copy_to_the_host_are_found(fake_gpu):
    there, here = torch.zeros(3, device="cuda"), torch.zeros(3)
    assert here.tolist() == [0.0] * 3, "the CPU is as ever"
    with pytest.raises(RuntimeError, match="at least two devices"):
        there + here
    for copy in (
        lambda: there.tolist(),
        lambda: float(there.sum()),
        lambda: there.cpu().numpy(),
        lambda: there[there > 0],
    ):
        with pytest.raises((RuntimeError, TypeError)):
            copy()
