"""The experiment of docs/results.md: does GRPO improve the supervised model on graphs that neither has seen?

    make results                                                      # seeds 0, 1 and 2, on two CPU processes
    python experiments/results.py --seeds 0 --arms answers --processes 1
    python experiments/results.py --report                             # the tables of what is there

The split is by structure: no graph of the test set is seen in training, under any letters. Every seed has order and
sampling of its own, and where the model begins with random weights these and data too. The arms, from
configs/*_results.yaml, configs/*_demo.yaml and configs/*_traces.yaml:

    answers    SFT (10,000 rows, 3 epochs, best by validation loss), and from it, on 5,000 other prompts:
               SFT+       supervised on, for the passes over tokens that GRPO makes
               GRPO       sampled, 8 completions a prompt
    weighted   SFT with balanced classes in its loss, and GRPO from it
    words      the demo's SFT of reasoner/ in words that it knows, and from it, in words that it has never seen, GRPO
               from labels alone, beside the controls: the majority of 8 samples, more SFT in the words that it knows,
               and SFT on GRPO's labels as bare answers
    credit     the same SFT, and from it GRPO from labels alone, and from labels and checked steps, whose rewards count
               for the whole completion, or each from its step on, summed with the label's before they are scaled, or
               after
    edge       the same SFT, and from it GRPO from labels alone: on all prompts, and on those that it solves sometimes,
               at as many samples, with those that tell which these are
    sizes      SFT on N = 3 to 5, some of it with gaps between positions, and from that GRPO from labels alone on N = 6
    traces     SFT on reasoning traces, and from it, on other graphs of N = 6, GRPO with outcome and process rewards

Answers are scored on the test set, its paraphrase and its relabelling; words, credit and edge on the test set in the
new words, in others that nothing was trained in, and in those that it knows; sizes on N = 6 and 7; traces on the test
sets of N = 4 and N = 5. Intervals resample structures. What is done is not done again: an interrupted run goes on with
the stage that it was in.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from sklearn.metrics import f1_score, precision_recall_curve

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.settings import read_yaml  # noqa: E402

# By number of processes, which changes no result:
LAUNCH = {
    1: [sys.executable],
    2: [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/zero2_2xcpu.yaml"],
}
RESUME = ["--resume_from", "latest"]  # of a training
SPLITS = ("test", "test_paraphrase", "test_relabeling")
BALANCED = ("--class_weights", "0.6", "3.05")  # inverse to the shares of No and Yes
# Passes over a prompt's tokens: GRPO samples, scores the reference and updates (a forward and a backward pass, which
# counts as two), SFT only updates. 150 steps of 128 prompts × 5 / 3 = 32,000 rows: 667 steps of 48.
MORE = ("--max_steps", "667", "--train_split", "grpo", "--learning_rate", "5e-4")

# Graphs that SFT has mostly not seen: on those that it has, six groups in ten agree and teach nothing.
OTHER_GRAPHS = ["--num_variables", "6", "--structures", "1200", "--relabelings", "1", "--train_mix", "1"]
OTHER_GRAPHS += ["--max_train_samples", "3000", "--max_validation_samples", "400"]
TESTED = ["--train_mix", "1", "--max_train_samples", "1000"]  # of which only the test is used

SAME = ["--seed", "0"]  # with which reasoner/ has not seen the structures of the test

# A model that has seen no larger system than N = 5, and the larger ones.
UP_TO_5 = ["--num_variables", "3", "4", "5", "--relabelings", "6", "24", "8", "--train_mix", "0.03", "0.27", "0.7"]
BALANCED_ROWS = ["--relabelings", "1", "--balance", "label", "relation", "--train_mix", "1", "--test_fraction", "0.3"]
BALANCED_ROWS += ["--max_train_samples", "2000", "--max_validation_samples", "200", "--max_test_samples", "600"]
SIX = ["--num_variables", "6", "--structures", "400", *BALANCED_ROWS]
SEVEN = ["--num_variables", "7", "--structures", "60", *BALANCED_ROWS, "--max_length", "2000"]
FROM_RELEASED = ("--wordings", "released", "--letterings", "released-spread")
GAPS = ("--position_stretch", "2.2", "--max_steps", "2000", "--learning_rate", "1e-3", "--small_first", "false")
ON_SIX = ("--wordings", "released", "--prompts_per_step", "32", "--max_steps", "60")
ON_SIX += ("--learning_rate", "1e-3", "--max_new_tokens", "720", "--eval_steps", "15", "--eval_rows", "200")

# dataset: (recipe, options). A structure of N = 3 to 5 is in the same split of every dataset of a seed; N = 6, of which
# those of traces have others at random, is not tested there.
DATASETS = {
    "answers": ("data_results", []),
    "old words": ("data_demo", SAME),
    "new words": ("data_demo_words", SAME),
    "new words, answers": ("data_demo_words", [*SAME, "--target", "answer"]),
    "traces": ("data_traces", []),
    "traces of N = 6": ("data_traces", OTHER_GRAPHS),
    "traces of N = 4": ("data_traces", ["--num_variables", "4", "--relabelings", "24", *TESTED]),
    "traces of N = 5": ("data_traces", ["--num_variables", "5", "--relabelings", "8", *TESTED]),
    "up to N = 5": ("data_traces", [*SAME, *UP_TO_5]),
    "N = 6": ("data_traces", [*SAME, *SIX]),
    "N = 7": ("data_traces", [*SAME, *SEVEN]),
}
ANSWER_TESTS = [("answers", split) for split in ("validation", *SPLITS)]
WORD_TESTS = [("new words", "test"), ("new words", "test_recast"), ("old words", "test")]
# 60 steps of GRPO sample 23,040 traces of 180 tokens and update on a fifth or quarter: as SFT on 690 x 16 rows of 240.
AS_MANY_TOKENS = ("--max_steps", "690")
GRPO_WORDS = read_yaml(str(ROOT / "configs" / "grpo_demo_words.yaml"))["wordings"]
BARE = (*AS_MANY_TOKENS, "--wordings", *GRPO_WORDS, "--unknown_words", "0")
TRACE_TESTS = [*(("traces of N = 4", split) for split in SPLITS), ("traces of N = 5", "test")]
SCORE = ["--mode", "score"]  # the answer is the more probable one, as in greedy decoding, and its probability is kept
REASON = ["--max_new_tokens", "400", "--cache_tokens", "32768"]


class Model(NamedTuple):
    """How a model is trained: on which dataset, from which other model (None: as the recipe says); how it is asked.

    Without a script it is the model that it starts from, asked in another way. With `passes`, options of evaluate.py,
    the model that it starts from first answers rows of train, for the pass rates of its prompts.
    """

    script: str | None
    recipe: str | None = None
    dataset: str | None = None
    start: str | None = None
    options: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()


class Arm(NamedTuple):
    """Models by name, in order, and the (dataset, split) that each answers, with what options."""

    tests: list[tuple[str, str]]
    evaluation: list[str]
    models: dict[str, Model]

    @property
    def compared(self) -> list[tuple[str, str]]:
        """The tests that models are compared on: validation only serves to choose a threshold."""
        return [(dataset, split) for dataset, split in self.tests if split != "validation"]


SFT, GRPO = "train_sft.py", "train_grpo.py"
KNOWN = Model(SFT, "sft_demo", "old words")  # of reasoner/
FROM_LABELS = Model(GRPO, "grpo_demo_words", "new words", "known words")
CHECKED = ("--process_weight", "1")
BY_STEP = (*CHECKED, "--advantages", "step")
# 576 x 8 samples for the pass rates are 12 steps of 384, which its GRPO does without.
PASSES = ("--max_rows", "576", "--num_samples", "8")
EDGE = FROM_LABELS._replace(options=("--max_steps", "48"), passes=PASSES)
ARMS = {
    "answers": Arm(
        ANSWER_TESTS,
        SCORE,
        {
            "SFT": Model(SFT, "sft_results", "answers"),
            "SFT+": Model(SFT, "sft_results", "answers", "SFT", MORE),
            "GRPO": Model(GRPO, "grpo_results", "answers", "SFT"),
        },
    ),
    "weighted": Arm(
        ANSWER_TESTS,
        SCORE,
        {
            "SFT weighted": Model(SFT, "sft_results", "answers", None, BALANCED),
            "GRPO from weighted": Model(GRPO, "grpo_results", "answers", "SFT weighted"),
        },
    ),
    "words": Arm(
        WORD_TESTS,
        [],
        {
            "known words": KNOWN,
            "majority of 8": Model(None, start="known words", evaluation=("--num_samples", "8")),
            "known words, longer": KNOWN._replace(start="known words", options=AS_MANY_TOKENS),
            "bare answers": Model(SFT, "sft_demo", "new words, answers", "known words", BARE),
            "GRPO, labels": FROM_LABELS,
        },
    ),
    "credit": Arm(
        WORD_TESTS,
        [],
        {
            "known words": KNOWN,
            "GRPO, labels": FROM_LABELS,
            "GRPO, steps, by sequence": FROM_LABELS._replace(options=CHECKED),
            "GRPO, steps, by step": FROM_LABELS._replace(options=BY_STEP),
            "GRPO, steps, scaled apart": FROM_LABELS._replace(options=(*BY_STEP, "--scale_components", "true")),
        },
    ),
    "edge": Arm(WORD_TESTS, [], {"known words": KNOWN, "GRPO, labels": FROM_LABELS, "GRPO, edge prompts": EDGE}),
    "sizes": Arm(
        [("N = 6", "test"), ("N = 7", "test")],
        ["--max_new_tokens", "1000"],
        {
            "SFT to N = 5": Model(SFT, "sft_traces", "up to N = 5", options=FROM_RELEASED),
            "SFT, no gaps": Model(SFT, "sft_traces", "up to N = 5", "SFT to N = 5", (*FROM_RELEASED, *GAPS[2:])),
            "SFT, gaps": Model(SFT, "sft_traces", "up to N = 5", "SFT to N = 5", (*FROM_RELEASED, *GAPS)),
            "GRPO on N = 6": Model(GRPO, "grpo_demo_words", "N = 6", "SFT, gaps", ON_SIX),
        },
    ),
    "traces": Arm(
        TRACE_TESTS,
        REASON,
        {
            "trace SFT": Model(SFT, "sft_traces", "traces"),
            "trace GRPO": Model(GRPO, "grpo_traces", "traces of N = 6", "trace SFT"),
        },
    ),
}


def run(command: list, log: Path) -> None:
    """Run a stage in the project's root, its output at the end of `log`; its last lines are shown where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = (
        {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    with log.open("a") as file:
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"error: {' '.join(map(str, command))} failed; the end of {log}:\n{tail}")


def stage(name: str, target: Path, command: list, logs: Path, resume: list | None = None) -> None:
    """Run `command`, which fills `target`, unless it has been done.

    A half-done one is started anew, or with the options `resume` goes on with what there is. What was done with other
    options, the launcher's apart, ends the experiment: it would be reported as what these give.
    """
    words = list(map(str, command))
    script = next((k for k, word in enumerate(words) if word.endswith(".py")), 0)
    done, options = target / ".done", " ".join(words[script:])
    if done.exists():
        remedy = "remove it, and what was made from it, or name another --output_dir"
        if done.read_text() != options:
            sys.exit(f"error: {name}: {target} was made by other options, {done.read_text()}; {remedy}")
        return
    log = logs / f"{slug(name)}.log"
    if resume is None:
        shutil.rmtree(target, ignore_errors=True)
        log.unlink(missing_ok=True)
    print(f"{logs.parent.name}: {name}", flush=True)
    run([*command, *(resume or [])], log)
    done.write_text(options)


def slug(name: str) -> str:
    return "_".join(re.findall(r"\w+", name.lower().replace("+", " more")))


def test_folder(folder: Path, dataset: str, split: str) -> Path:
    return folder / "tests" / slug(dataset) / split


def run_arm(arm: str, seed: int, folder: Path, launch: list) -> None:
    """Data, models and evaluations of an arm of one seed."""
    tests, evaluation, models = ARMS[arm]
    data, logs = folder / "data", folder / "console"
    taught = (model.dataset for model in models.values() if model.dataset)
    for dataset in dict.fromkeys([*taught, *(dataset for dataset, _ in tests)]):
        recipe, more = DATASETS[dataset]
        output = data / slug(dataset)
        options = ["--config", f"configs/{recipe}.yaml", "--output_dir", output, "--seed", seed, *more]
        stage(f"data, {dataset}", output, [sys.executable, "preprocess.py", *options], logs)
    places = {name: folder / "models" / slug(name if m.script else m.start) for name, m in models.items()}
    for name, model in models.items():
        output = places[name]
        if model.script:
            start = ["--model", places[model.start]] if model.start else []
            options = ["--config", f"configs/{model.recipe}.yaml", "--seed", seed, "--output_dir", output, *start]
            options += ["--dataset", data / slug(model.dataset), "--logging_dir", folder / "curves" / name]
            options += model.options
            if model.passes:
                passed = folder / "passes" / slug(name)
                command = [*launch, "evaluate.py", *start, "--dataset", data / slug(model.dataset), "--split", "train"]
                command += [*model.passes, "--seed", seed, "--output_dir", passed]
                stage(f"{name}: pass rates", passed, command, logs)
                options += ["--pass_rates", passed]
            stage(name, output, [*launch, model.script, *options], logs, RESUME)
        for dataset, split in tests:
            results = test_folder(folder, dataset, split) / slug(name)
            options = ["--name", name, "--model", output, "--dataset", data / slug(dataset), "--split", split]
            options += ["--output_dir", results, "--cluster", "structure_id", "--seed", seed]
            options += [*evaluation, *model.evaluation]
            stage(f"{name}, {dataset}, {split}", results, [*launch, "evaluate.py", *options], logs)
    for dataset, split in ARMS[arm].compared:
        tested = test_folder(folder, dataset, split)
        command = [sys.executable, "evaluate.py", "--cluster", "structure_id", "--compare"]
        command += [*(tested / slug(name) for name in models), "--output_dir", tested / f"comparison_{arm}"]
        stage(f"{arm}: comparison, {dataset}, {split}", tested / f"comparison_{arm}", command, logs)


# --- report

SCORES = ("balanced_accuracy", "accuracy", "mcc")


def with_interval(value: float, low_high: list[float] | None, sign: str = "") -> str:
    bounds = "" if low_high is None else " [{:{s}.3f}, {:{s}.3f}]".format(*low_high, s=sign)
    return f"{value:{sign}.3f}{bounds}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def report(folders: list[Path]) -> str:
    """Markdown: for every arm and test set the scores of its models, and their paired differences."""
    lines = []
    for name, arm in ARMS.items():
        for dataset, split in arm.compared:
            tested = [(folder.name, test_folder(folder, dataset, split)) for folder in folders]
            tested = [(seed, place) for seed, place in tested if (place / f"comparison_{name}" / ".done").exists()]
            if tested:
                lines += [f"\n**{name}: {dataset}, {split}**\n", *scores_table(arm.models, tested)]
                lines += ["", *differences_table(name, tested)]
    return "\n".join(lines)


def scores_table(models: dict, tested: list[tuple[str, Path]]) -> list[str]:
    """A row for every model and constant answer of every (seed, its folder of results)."""
    header = ("model", "seed", "F1", "balanced accuracy", "accuracy", "MCC", "exact traces")
    header += ("AUROC", "F1, threshold of validation")
    lines = [row(*header), row(*["---"] * len(header))]
    for seed, place in tested:
        results = {name: json.loads((place / slug(name) / "metrics.json").read_text()) for name in models}
        constant = next(iter(results.values()))["baselines"]
        for name in ("majority", "always_yes"):
            scores = (f"{constant[name][score]:.3f}" for score in ("f1", *SCORES))
            lines.append(row(name.replace("_", " "), seed, *scores, "", "", ""))
        for name, found in results.items():
            whole = found["overall"]
            cells = [with_interval(whole["f1"], whole["intervals"]["f1"]), *(f"{whole[score]:.3f}" for score in SCORES)]
            exact = whole.get("means", {}).get("exact_trace")
            cells += [with_interval(exact["mean"], exact["interval"]) if exact else ""]
            cells += [f"{whole['auroc']:.3f}", f"{tuned_f1(place, slug(name)):.3f}"] if "auroc" in whole else ["", ""]
            lines.append(row(name, seed, *cells))
    return lines


def tuned_f1(place: Path, model: str) -> float:
    """F1 with the threshold on the probability of Yes that is best on validation: what no training is needed for."""

    def answers(split: str) -> tuple[list[int], list[float]]:
        lines = (place.with_name(split) / model / "predictions.jsonl").read_text().splitlines()
        rows = list(map(json.loads, lines))
        return [r["label"] for r in rows], [r["probability"] for r in rows]

    precision, recall, thresholds = precision_recall_curve(*answers("validation"))
    f1 = 2 * precision * recall / (precision + recall).clip(1e-9)
    threshold = thresholds[f1[:-1].argmax()]  # the last point has none
    labels, probabilities = answers(place.name)
    return f1_score(labels, [p >= threshold for p in probabilities])


def differences_table(arm: str, tested: list[tuple[str, Path]]) -> list[str]:
    """Paired differences of F1, a column a seed, with the mean and the standard deviation over seeds."""
    lines = [row("difference of F1", *(seed for seed, _ in tested), "mean ± std"), row(*["---"] * (len(tested) + 2))]
    files = [place / f"comparison_{arm}" / "comparison.json" for _, place in tested]
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
    parser.add_argument("--processes", type=int, choices=LAUNCH, default=2, help="1: for seeds side by side")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "results")
    parser.add_argument("--report", action="store_true", help="print the tables of what has been done, and run nothing")
    options = parser.parse_args()
    folders = [options.output_dir.resolve() / f"seed-{seed}" for seed in options.seeds]
    if not options.report:
        for arm in options.arms:
            for seed, folder in zip(options.seeds, folders, strict=True):
                run_arm(arm, seed, folder, LAUNCH[options.processes])
    print(report(folders))


if __name__ == "__main__":
    main()
