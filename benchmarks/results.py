"""The experiment of RESULTS.md: does GRPO improve the supervised model on graphs that neither has seen?

    make results                                      # seeds 0, 1 and 2, on two CPU processes
    python benchmarks/results.py --seeds 0 --arms answers
    python benchmarks/results.py --report             # the tables of what is there

Every seed has data, initial weights, order and sampling of its own; the split is by structure: no graph of the test set
is seen in training, under any letters. The arms, from configs/*_results.yaml and configs/*_traces.yaml:

    answers    SFT (10,000 rows, 3 epochs, best by validation loss), and from it, on 5,000 other prompts:
               SFT+       supervised on, for the passes over tokens that GRPO makes
               GRPO       sampled, 8 completions a prompt
               GRPO exact both answers of a prompt by their probabilities, as many steps
    weighted   SFT with balanced classes in its loss, and exact GRPO from it
    traces     SFT on reasoning traces, and from it GRPO with outcome and process rewards

Each model answers the test set, its paraphrase and its relabelling; intervals resample structures. What is done is not
done again: an interrupted run continues with the stage that it was in.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/zero2_2xcpu.yaml"]
SPLITS = ("test", "test_paraphrase", "test_relabeling")
BALANCED = ["--class_weights", "0.6", "3.05"]  # inverse to the shares of No and Yes
# Passes over a prompt's tokens: GRPO samples, scores the reference and updates (a forward and a backward pass, which
# counts as two), SFT only updates. 150 steps of 128 prompts × 5 / 3 = 32,000 rows: 667 steps of 48.
MORE = ["--max_steps", "667", "--train_split", "grpo", "--learning_rate", "5e-4"]

# arm: (data recipe, {model: (script, recipe, starts from, options)})
ARMS = {
    "answers": (
        "data_results",
        {
            "SFT": ("train_sft.py", "sft_results", None, []),
            "SFT+": ("train_sft.py", "sft_results", "SFT", MORE),
            "GRPO": ("train_grpo.py", "grpo_results", "SFT", []),
            "GRPO exact": ("train_grpo.py", "grpo_results", "SFT", ["--estimator", "exact"]),
        },
    ),
    "weighted": (
        "data_results",
        {
            "SFT weighted": ("train_sft.py", "sft_results", None, BALANCED),
            "GRPO from weighted": ("train_grpo.py", "grpo_results", "SFT weighted", ["--estimator", "exact"]),
        },
    ),
    "traces": (
        "data_traces",
        {
            "trace SFT": ("train_sft.py", "sft_traces", None, []),
            "trace GRPO": ("train_grpo.py", "grpo_traces", "trace SFT", []),
        },
    ),
}


def run(command: list, log: Path) -> None:
    """Run a stage in the project's root, its output in `log`; its last lines are shown where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | os.environ
    with log.open("w") as file:
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"error: {' '.join(map(str, command))} failed; the end of {log}:\n{tail}")


def stage(name: str, target: Path, command: list, log: Path) -> None:
    """Run `command`, which fills `target`, unless it has been done; a half-done one is started anew."""
    if (target / ".done").exists():
        return
    shutil.rmtree(target, ignore_errors=True)
    print(f"{log.parent.parent.name}: {name}", flush=True)
    run(command, log)
    (target / ".done").touch()


def slug(name: str) -> str:
    return name.lower().replace("+", "_more").replace(" ", "_")


def run_arm(arm: str, seed: int, folder: Path) -> None:
    """Data, models and evaluations of an arm of one seed."""
    recipe, models = ARMS[arm]
    data, logs = folder / recipe, folder / "console"
    options = ["--config", f"configs/{recipe}.yaml", "--seed", seed, "--output_dir", data, "--overwrite", "true"]
    stage(recipe, data, [sys.executable, "preprocess.py", *options], logs / f"{recipe}.log")
    for name, (script, config, start, more) in models.items():
        output = folder / "models" / slug(name)
        options = ["--config", f"configs/{config}.yaml", "--seed", seed, "--dataset", data, "--output_dir", output]
        options += ["--logging_dir", folder / "curves" / name, *more]
        options += ["--model", folder / "models" / slug(start)] if start else []
        stage(name, output, [*LAUNCH, script, *options], logs / f"{slug(name)}.log")
        for split in SPLITS:
            results = folder / split / slug(name)
            options = ["--name", name, "--model", output, "--dataset", data, "--split", split, "--output_dir", results]
            options += ["--cluster", "structure_id", "--seed", seed]
            options += ["--max_new_tokens", 400, "--cache_tokens", 32768] if arm == "traces" else []
            stage(f"{name}, {split}", results, [*LAUNCH, "evaluate.py", *options], logs / f"{slug(name)}_{split}.log")
    for split in SPLITS:
        results = folder / split / f"comparison_{arm}"
        command = [sys.executable, "evaluate.py", "--cluster", "structure_id", "--output_dir", results, "--compare"]
        command += [folder / split / slug(name) for name in models]
        stage(f"{arm}, {split}: comparison", results, command, logs / f"{arm}_{split}.log")
    curves = folder / f"curves_{arm}"
    command = [sys.executable, "evaluate.py", "--output_dir", curves, "--curves"]
    stage(
        f"{arm}: curves", curves, [*command, *(folder / "curves" / name for name in models)], logs / f"{arm}_curves.log"
    )


# --- report

SCORES = ("f1", "balanced_accuracy", "accuracy", "mcc")


def with_interval(value: float, low_high: list[float] | None, sign: str = "") -> str:
    bounds = "" if low_high is None else " [{:{s}.3f}, {:{s}.3f}]".format(*low_high, s=sign)
    return f"{value:{sign}.3f}{bounds}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def report(folders: list[Path]) -> str:
    """Markdown: for every arm and test set the scores of its models, and their paired differences."""
    lines = []
    for arm, (_, models) in ARMS.items():
        for split in SPLITS:
            found = [folder for folder in folders if (folder / split / f"comparison_{arm}" / ".done").exists()]
            if found:
                lines += [f"\n**{arm}, {split}**\n", *scores_table(split, models, found)]
                lines += ["", *differences_table(split, arm, found)]
    return "\n".join(lines)


def scores_table(split: str, models: dict, folders: list[Path]) -> list[str]:
    lines = [row("model", "seed", "F1", "F1, N = 4", "balanced accuracy", "accuracy", "MCC"), row(*["---"] * 7)]
    for folder in folders:
        results = {name: json.loads((folder / split / slug(name) / "metrics.json").read_text()) for name in models}
        constant = next(iter(results.values()))["baselines"]
        for name in ("majority", "always_yes"):
            f1, *others = (f"{constant[name][score]:.3f}" for score in SCORES)
            lines.append(row(name.replace("_", " "), folder.name, f1, "", *others))
        for name, found in results.items():
            whole, four = found["overall"], found["by_num_variables"].get("4")
            f1 = with_interval(whole["f1"], whole["intervals"]["f1"])
            of_four = with_interval(four["f1"], four["intervals"]["f1"]) if four else ""
            lines.append(row(name, folder.name, f1, of_four, *(f"{whole[score]:.3f}" for score in SCORES[1:])))
    return lines


def differences_table(split: str, arm: str, folders: list[Path]) -> list[str]:
    """Paired differences of F1, a column a seed, with the mean and the standard deviation over seeds."""
    names = [folder.name for folder in folders]
    lines = [row("difference of F1", *names, "mean ± std"), row(*["---"] * (len(names) + 2))]
    files = [folder / split / f"comparison_{arm}" / "comparison.json" for folder in folders]
    for pairs in zip(*(json.loads(file.read_text())["pairs"] for file in files), strict=True):
        values = [pair["difference"]["f1"] for pair in pairs]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells = [with_interval(pair["difference"]["f1"], pair["intervals"]["f1"], "+") for pair in pairs]
        first, second = pairs[0]["names"]
        lines.append(row(f"{second} − {first}", *cells, f"{statistics.mean(values):+.3f}{spread}"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--output_dir", type=Path, default=ROOT / "results")
    parser.add_argument("--report", action="store_true", help="print the tables of what has been done, and run nothing")
    options = parser.parse_args()
    folders = [options.output_dir.resolve() / f"seed-{seed}" for seed in options.seeds]
    if not options.report:
        for arm in options.arms:
            for seed, folder in zip(options.seeds, folders, strict=True):
                run_arm(arm, seed, folder)
    print(report(folders))


if __name__ == "__main__":
    main()
