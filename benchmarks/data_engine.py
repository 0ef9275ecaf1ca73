"""Time of the data engine by stage and by number of variables, and how both grow.

    python benchmarks/data_engine.py                        # N = 2 to 6, exact and released labels, 3 repeats
    python benchmarks/data_engine.py --num_variables 4 5 --repeats 1 --json times.json

One process. A repeat starts with empty caches, and every stage keeps what the stages before it left, as in a real run;
the figures are medians over the repeats, in seconds. `rows` is everything that makes rows of premises: claims, labels,
hypotheses and inputs. Peak memory is that of the process, with the rows of all sizes held, as preprocess.py does.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from causal import claims, classes, enumeration, graphs, released, wording  # noqa: E402
from causal import rows as task_rows  # noqa: E402

STAGES = ("graphs", "classes", "separations", "pdags", "text", "columns", "rows")


def clear_caches() -> None:
    """Empties the caches of the oracle, so that a repeat repeats the work."""
    for module in (graphs, classes, claims, enumeration, wording, task_rows):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


def timed(times: dict[str, float], stage: str, work: Callable):
    start = time.perf_counter()
    result = work()
    times[stage] = times.get(stage, 0.0) + time.perf_counter() - start
    return result


def exact_stages(n: int) -> tuple[dict[str, float], list[dict]]:
    """Seconds by stage, and the rows, with exact labels."""
    times: dict[str, float] = {}
    timed(times, "graphs", lambda: list(enumeration.unlabelled_dags(n)))
    dags = timed(times, "classes", lambda: list(enumeration.representatives(n)))
    times["classes"] -= times["graphs"]  # the classes are found while the graphs are listed
    premises = timed(times, "separations", lambda: [classes.premise_of(dag) for dag in dags])
    timed(times, "pdags", lambda: [classes.pdag(premise) for premise in premises])
    texts = timed(times, "text", lambda: [wording.write_premise(premise) for premise in premises])
    timed(times, "columns", lambda: list(map(task_rows.premise_columns, premises, texts)))
    rows = timed(times, "rows", lambda: [row for p in premises for row in task_rows.rows_of_premise(p)])
    times["rows"] -= times["text"]  # which it writes again
    return times, rows


def released_stages(n: int) -> tuple[dict[str, float], list[dict]]:
    """Seconds for the classes as the public generator has them, and for their rows with both labels."""
    times: dict[str, float] = {}
    found = timed(times, "classes", lambda: list(released.released_classes(n)))
    rows = timed(times, "rows", lambda: [row for c in found for row in task_rows.rows_of_premise(c.premise, c.label)])
    return times, rows


def measure(sizes: list[int], repeats: int, stages: Callable) -> list[dict]:
    """One entry a size: rows, characters of input text, median seconds by stage and in all."""
    runs: dict[int, list[dict[str, float]]] = {n: [] for n in sizes}
    counts = {}
    for _ in range(repeats):
        held = []  # as preprocess.py holds them
        for n in sizes:
            clear_caches()
            times, rows = stages(n)
            runs[n].append(times | {"total": sum(times.values())})
            counts[n] = {"row_count": len(rows), "characters": sum(len(row["input"]) for row in rows)}
            held += rows
    return [
        {"num_variables": n, **counts[n]}
        | {stage: statistics.median(run[stage] for run in runs[n]) for stage in runs[n][0]}
        for n in sizes
    ]


def table(entries: list[dict]) -> str:
    stages = [stage for stage in (*STAGES, "total") if stage in entries[0]]
    lines = [f"{'N':>2}{'rows':>9}" + "".join(f"{stage:>13}" for stage in stages) + f"{'us a row':>10}{'growth':>8}"]
    for k, entry in enumerate(entries):
        growth = f"{entry['total'] / entries[k - 1]['total']:.1f}x" if k else ""
        seconds = "".join(f"{entry[stage]:>13.4f}" for stage in stages)
        each = 1e6 * entry["total"] / entry["row_count"]
        lines.append(f"{entry['num_variables']:>2}{entry['row_count']:>9,}{seconds}{each:>10.0f}{growth:>8}")
    rows, total = (sum(entry[key] for entry in entries) for key in ("row_count", "total"))
    return "\n".join([*lines, f"all: {rows:,} rows in {total:.1f} s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_variables", type=int, nargs="+", default=[2, 3, 4, 5, 6], help="sizes, 2 to 6")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the medians are printed")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    figures = {"machine": f"{platform.machine()}, Python {platform.python_version()}", "repeats": options.repeats}
    for name, stages in (("exact", exact_stages), ("released", released_stages)):
        figures[name] = measure(options.num_variables, options.repeats, stages)
        print(f"labels {name}\n{table(figures[name])}\n", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    figures["peak_gib"] = peak
    print(f"peak memory {peak:.2f} GiB")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
