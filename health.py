"""Is it learning? Checks that every trainable tensor gets a gradient, and that the weights move."""

import torch
from peft.tuners.lora import LoraLayer
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from metrics import baselines

EVAL_SCORES = ("f1", "accuracy", "balanced_accuracy", "mcc", "unanswered_rate", "predicted_yes_rate")


def _zero_by_construction(model: torch.nn.Module) -> set[str]:
    """Names of the lora_A weights whose lora_B is still zero: their first gradient is exactly zero, and no fault."""
    names = set()
    for prefix, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter, b in module.lora_B.items():
                if not b.weight.any():
                    names.add(f"{prefix}.lora_A.{adapter}.weight")
    return names


def check_gradient_flow(model: torch.nn.Module, loss: torch.Tensor) -> None:
    """A probe backward before training: proves that the loss reaches every trainable tensor, and clears the gradients.

    Raises RuntimeError naming the tensors with no gradient, or a zero or non-finite one. A zero gradient of lora_A is
    expected while lora_B is zero.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not loss.requires_grad:
        raise RuntimeError("broken graph: the loss does not depend on any trainable tensor")
    loss.backward()
    expected_zero = _zero_by_construction(model)
    missing = [name for name, p in trainable.items() if p.grad is None]
    zero = [n for n, p in trainable.items() if p.grad is not None and not p.grad.any() and n not in expected_zero]
    not_finite = [name for name, p in trainable.items() if p.grad is not None and not p.grad.isfinite().all()]
    model.zero_grad(set_to_none=True)
    for what, names in (
        ("no gradient", missing),
        ("a zero gradient", zero),
        ("a NaN or infinite gradient", not_finite),
    ):
        if names:
            raise RuntimeError(
                f"broken graph: {what} in {len(names)} of {len(trainable)} trainable tensors: {names[:4]}"
            )


class AdapterMotion:
    """How far the trainable weights are from where they started: 0 after a step that had a signal is a broken run."""

    def __init__(self, model: torch.nn.Module):
        self.start = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.signal_seen = False

    def change(self, model: torch.nn.Module) -> float:
        """L2 norm of (current − initial) over all trainable tensors."""
        squares = (
            (p.detach().cpu().float() - self.start[name].float()).square().sum().item()
            for name, p in model.named_parameters()
            if name in self.start
        )
        return sum(squares) ** 0.5

    def assert_moved(self, model: torch.nn.Module, step: int, signal: bool) -> None:
        """RuntimeError if there has been a signal by `step` (an advantage that is not zero) and nothing has moved."""
        self.signal_seen |= signal
        if self.signal_seen and self.change(model) == 0.0:
            raise RuntimeError(
                f"not training: after {step} steps with a training signal no trainable weight has changed; "
                "the optimizer does not hold the live parameters, or every step was skipped"
            )


def report_scores(writer: SummaryWriter, scores: dict, labels: list[int], step: int, prefix: str = "") -> None:
    """Write an evaluation's scores to TensorBoard and, in one line, to the console."""
    for name in EVAL_SCORES:
        writer.add_scalar(f"eval/{name}", scores[name], step)
    always_yes = baselines(labels)["always_yes"]["f1"]
    tqdm.write(
        f"step {step}: {prefix}F1 {scores['f1']:.3f} (always Yes {always_yes:.3f}), "
        f"balanced accuracy {scores['balanced_accuracy']:.3f}, {scores['n']} rows"
    )
