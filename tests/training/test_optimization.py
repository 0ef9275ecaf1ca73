"""What a step does when gradients overflow, and the loss scaling that fp16 gets: what of fp16 a CPU can run."""

import json
import socket
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from conftest import ROOT
from deepspeed import comm
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

from runtime import processes
from training import optimization
from training.optimization import step_optimizer


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_step_whose_gradients_overflow_is_skipped(bad):
    """One process without DeepSpeed: neither weights nor AdamW's moments take it in, and the next step is a step."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    model(torch.tensor([1.0, bad, 2.0])).sum().backward()
    norm, stepped = step_optimizer(Accelerator(cpu=True), model, optimizer, 1.0)
    assert not stepped and not torch.tensor(norm).isfinite()
    assert torch.equal(model.weight, before) and model.weight.grad is None and not optimizer.state
    model(torch.ones(3)).sum().backward()
    norm, stepped = step_optimizer(Accelerator(cpu=True), model, optimizer, 1.0)
    assert stepped and norm > 0 and not torch.equal(model.weight, before)


def test_a_step_that_deepspeed_skips_is_reported():
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    engine = SimpleNamespace(get_global_grad_norm=lambda: float("inf"), was_step_applied=lambda: False)
    assert step_optimizer(accelerator, engine, None, 1.0) == (float("inf"), False)


def fp16_config() -> DeepSpeedConfig:
    return DeepSpeedConfig(json.loads((ROOT / "ds_configs/zero2_fp16.json").read_text()))


def test_deepspeed_reads_dynamic_scaling_from_the_fp16_config():
    config = fp16_config()
    assert config.float16_config.enabled and not config.bfloat16_config.enabled
    assert config.float16_config.loss_scale == 0, "0 is dynamic"
    assert config.float16_config.initial_scale_power == 12
    assert not config.torch_autocast_enabled, "with ZeRO-2 its scale would never move after an overflow"


def test_the_scale_falls_with_overflows_and_rises_again(monkeypatch):
    monkeypatch.setattr(comm, "get_rank", lambda group=None: 0)
    config = fp16_config().float16_config
    scaler = CreateLossScaler(torch.float16, config.loss_scale, True, config.dynamic_loss_scale_args())
    scales = []
    for overflow in (True, True, True, *[False] * (config.loss_scale_window + 1)):
        scaler.update_scale(overflow)
        scales.append(scaler.loss_scale)
    assert scales[:3] == [4096, 2048, 1024], "the first overflow is forgiven"
    assert scales[-1] == 2048


def test_an_overflow_that_stays_is_left_to_the_signs_of_trouble(monkeypatch):
    """DeepSpeed raises an error of its own where the scale is 1, at the fourteenth step, without a word of advice."""
    monkeypatch.setattr(comm, "get_rank", lambda group=None: 0)
    config = fp16_config().float16_config
    model = torch.nn.Linear(2, 2)
    wrapped = SimpleNamespace(loss_scaler=None, param_groups=[{"params": list(model.parameters())}])
    for mended in (False, True):
        scaler = CreateLossScaler(torch.float16, config.loss_scale, True, config.dynamic_loss_scale_args())
        wrapped.loss_scaler = scaler
        state = SimpleNamespace(deepspeed_plugin=None)
        accelerator = SimpleNamespace(state=state, num_processes=1, prepare=lambda model, _: (model, wrapped))
        if mended:
            optimization.prepare(accelerator, model, 1e-3, 0.0, 1.0)
        with nullcontext() if mended else pytest.raises(Exception, match="minimum"):
            for _ in range(30):
                scaler.update_scale(True)
        assert scaler.loss_scale == 1


def test_a_launcher_that_has_ended_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(processes.ctypes, "CDLL", lambda _: SimpleNamespace(prctl=lambda *_: 0))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        names = {"LOCAL_RANK": "0", "GROUP_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        for name, value in (names | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
            monkeypatch.setenv(name, value)
        processes._follow_launcher()
    with pytest.raises(ValueError, match="launcher of this process has ended"):
        processes._follow_launcher()
