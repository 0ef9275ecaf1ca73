"""Settings of short launched runs, and what they have logged."""

import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SFT = {
    "max_steps": 4,  # of 15 rows: the fourth is of the second epoch
    "batch_size": 15,
    "claims_per_prefix": 4,
    "relabel_each_epoch": True,
    "micro_batch_tokens": 260,
    "learning_rate": 1e-3,
}
GRPO = {
    "max_steps": 2,
    "prompts_per_step": 5,
    "num_generations": 6,
    "num_iterations": 2,
    "claims_per_prefix": 2,
    "relabel_each_epoch": True,
    "micro_batch_tokens": 260,
    "max_new_tokens": 6,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "loss_type": "dapo",
    "beta": 0.1,
}
OFTEN = {"logging_steps": 1, "eval_rows": 10, "save_steps": 1, "eval_steps": 1}


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard scalars: per name, (step, value)."""
    events = EventAccumulator(str(directory)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_all_finite(curves: dict) -> None:
    for name, points in curves.items():
        assert all(math.isfinite(value) for _, value in points), name
