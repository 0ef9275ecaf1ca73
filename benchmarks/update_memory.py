"""Peak memory of GRPO's scoring and update, with shared prefixes and on the plain path, at equal rows.

    python benchmarks/update_memory.py --json memory.json               # G = 8 and 16, T = 4, 16, 64, 256
    python benchmarks/update_memory.py --G 4 --T 16 --prompt_tokens 200

Each size and path runs in a process of its own: a scoring and an update of all rows in one micro-batch to warm up, and
another that is measured, in bytes beyond what is held before it (on a CPU the resident set, on a GPU the allocator's
peak). A straight line through the sizes tells what a computed token costs, and how far memory is from linear in them.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import common
import numpy as np
import torch
from grpo_step import Point, Product

from policy.adapters import add_reference
from runtime.ending import run_script
from runtime.settings import check

SIDES = ("ours", "plain")


def peak_memory(work: Callable[[], None]) -> int:
    """Bytes that `work` needs at its peak beyond what is held before it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before

    def status(name: str) -> int:
        return next(1024 * int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if name in x)

    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # what glibc has kept of freed memory would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far, that of loading
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def probe(options) -> None:
    """In a process of its own: the peak of one scoring and update, after one that warms up."""
    with common.bench(options) as where:
        point = Point(where, options.num_variables, options.G[0], options.T[0], 1, "equal", options)
        model = where.policy()
        add_reference(model)
        side, completions = Product(point, model, options.probe == "ours"), point.completions()
        side.learn(completions, "step")
        tokens = side.clock.take()["update"].tokens
        size = peak_memory(lambda: side.learn(completions, "step"))
    print(json.dumps({"side": options.probe} | point.at | {"rows": point.size, "tokens": tokens, "bytes": size}))


def memory(options) -> dict:
    """Peaks of both paths at every G and T, and a straight line through each path's."""
    # glibc would keep what is freed; with this, tensors from 64 KiB on are given back at once.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    points, lines = [], {}
    for g, t, side in product(options.G, options.T, SIDES):
        # The same options again; of an option given twice the last one holds.
        command = [sys.executable, __file__, *sys.argv[1:], "--probe", side, "--G", str(g), "--T", str(t)]
        done = subprocess.run(command, cwd=common.ROOT, env=environment, text=True, capture_output=True)
        check(done.returncode == 0, f"memory of {side} at G {g}, T {t}: {done.stderr[-2000:]}")
        points.append(json.loads(done.stdout.splitlines()[-1]))
        print("{side:<6} G {G:<3} T {T:<4} rows {rows:<4} tokens {tokens:>7,}".format(**points[-1]), end="")
        print(f" {points[-1]['bytes'] / 2**20:>8,.0f} MiB", flush=True)
    for side in SIDES:
        tokens, sizes = np.array([(x["tokens"], x["bytes"]) for x in points if x["side"] == side], dtype=float).T
        if len(tokens) > 2:
            slope, start = np.polyfit(tokens, sizes, 1)
            off = float(np.abs(slope * tokens + start - sizes).max() / sizes.max())
            lines[side] = {"bytes_per_token": slope, "bytes": start, "largest_deviation": off}
            print(f"{side:<6} {start / 2**20:,.0f} MiB + {slope / 2**10:,.1f} KiB a token, to {off:.1%} of the largest")
    return {"points": points, **lines}


def main() -> None:
    options = common.parser(__doc__.splitlines()[0])
    options.add_argument("--G", type=int, nargs="+", default=[8, 16], help="samples of a prompt")
    options.add_argument("--T", type=int, nargs="+", default=[4, 16, 64, 256], help="tokens of a completion")
    options.add_argument("--prompts", type=int, default=1, help="prompts of a step")
    options.add_argument("--num_variables", type=int, default=5, choices=[2, 3, 4, 5], help="rows of N")
    options.add_argument("--prompt_tokens", type=int, default=350, help="take the premises nearest to this length")
    options.add_argument("--probe", choices=SIDES, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.probe:
        probe(options)
    else:
        common.write(memory(options), options.json)


if __name__ == "__main__":
    run_script(main)
