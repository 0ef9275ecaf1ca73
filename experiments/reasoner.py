"""The reasoner that ships, from random weights: taught on exact traces, then on its own mistakes, corrected; tested.

    python experiments/reasoner.py --seed 0                             # reasoners/seed-0, on two CPU processes
    python experiments/reasoner.py --output_dir reasoners/try --rounds 1 --steps 2 --max_steps 4 --eval_rows 4

The split has a seed of its own, 0, so that no reasoner has seen the graphs that the demo tests. OUTPUT_DIR/reasoner is
what ships: the weights in bf16, and what they were taught. What is done is not done again. Ends with a table of F1 and
exact traces, for the card. Further options are those of train_sft.py, for the plain traces.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments.results import LAUNCH, RESUME, row, run, stage, with_interval  # noqa: E402
from runtime.files import replacing  # noqa: E402

ALL_ROWS = ["--relabelings", "0", "--validation_fraction", "0", "--test_fraction", "1", "--train_mix", "1", "1", "1"]
LARGER = ["--num_variables", "7", "--structures", "60", "--relabelings", "1", "--max_length", "2000"]
LARGER += ["--test_fraction", "0.5", "--train_mix", "1", "--max_train_samples", "9"]
SHARE = 0.1  # of corrections: of so few mistakes more would be learned by heart
# Of N = 2 and 3 there are so few rows that the rounds have copies of them, and more of N = 6.
ROUNDS = ["--max_train_samples", "8000", "--train_mix", "0.03", "0.07", "0.15", "0.35", "0.4", "--repeat_rows", "true"]
# dataset: (recipe, options). Small systems, seen ones too, in the released letters; larger ones than any taught.
DATASETS = {
    "taught": ("data_reasoner", []),
    "rounds": ("data_reasoner", ROUNDS),
    "small": ("data_record", ["--num_variables", "2", "3", "4", *ALL_ROWS]),
    "large": ("data_record", LARGER),
}
TESTS = [("taught", split) for split in ("test", "test_refactorization", "test_recombined", "test_paraphrase")]
TESTS += [("small", "test"), ("large", "test")]
OF_ITS_TRAINING = shutil.ignore_patterns("checkpoint-*", ".*", "best.json", "finished.json", "README.md")


def ship(model: Path, target: Path) -> None:
    """The model's files, its weights in bf16; what was beside `target` is named from there on."""
    with replacing(target) as aside:
        shutil.copytree(model, aside, ignore=OF_ITS_TRAINING, dirs_exist_ok=True)
        settings = aside / "training_config.json"
        settings.write_text(settings.read_text().replace(f"{target.parent}/", ""))
        weights = {name: tensor.bfloat16() for name, tensor in load_file(model / "model.safetensors").items()}
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((model / "config.json").read_text()) | {"dtype": "bfloat16"}
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def table(answers: Path) -> str:
    """Markdown: F1 and exact traces of every test, as a whole, for each number of variables, and on unseen graphs."""
    lines = [row("test", "N", "rows", "F1", "exact traces"), row(*["---"] * 5)]
    for dataset, split in TESTS:
        metrics = json.loads((answers / dataset / split / "metrics.json").read_text())
        sizes, seen = metrics["by_num_variables"], metrics["by_seen"]
        parts = sizes if len(sizes) == 1 else {"all": metrics["overall"]} | sizes
        parts |= {"all, unseen graphs": seen["unseen"]} if len(seen) == 2 else {}
        for n, part in parts.items():
            exact = part["means"]["exact_trace"]
            cells = f"{part['n']:,}", with_interval(part["f1"], part["intervals"]["f1"])
            lines.append(row(f"{dataset}, {split}", n, *cells, with_interval(exact["mean"], exact["interval"])))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the trainings; the split has its own")
    parser.add_argument("--rounds", type=int, default=2, help="of corrections")
    parser.add_argument("--steps", type=int, default=1000, help="of SFT in each round")
    parser.add_argument("--rows", type=int, default=3000, help="of train, that the model answers in each round")
    parser.add_argument("--test_rows", type=int, help="of each test; else all")
    parser.add_argument("--processes", type=int, choices=LAUNCH, default=2)
    parser.add_argument("--output_dir", type=Path)
    options, more_options = parser.parse_known_args()
    folder = (options.output_dir or ROOT / "reasoners" / f"seed-{options.seed}").resolve()
    launch, logs, data = LAUNCH[options.processes], folder / "console", folder / "data"
    seconds = time.monotonic()

    for name, (recipe, more) in DATASETS.items():
        command = [sys.executable, "preprocess.py", "--config", f"configs/{recipe}.yaml", *more]
        stage(f"data, {name}", data / name, [*command, "--output_dir", data / name], logs)
    model = folder / "traces"
    command = [*launch, "train_sft.py", "--config", "configs/sft_reasoner.yaml", "--seed", options.seed]
    command += ["--dataset", data / "taught", "--output_dir", model, "--logging_dir", folder / "curves" / "traces"]
    stage("traces", model, [*command, *more_options], logs, RESUME)
    if options.rounds:
        rounds = folder / "rounds"
        command = [sys.executable, "experiments/corrections.py", "--alone", "--model", model]
        command += ["--dataset", data / "rounds", "--rounds", options.rounds, "--steps", options.steps]
        command += ["--share", SHARE, "--rows", options.rows, "--processes", options.processes, "--seed", options.seed]
        run([*command, "--output_dir", rounds], logs / "rounds.log")  # whose stages know what is done
        model = rounds / f"corrected_{options.rounds}"
    print(f"{(time.monotonic() - seconds) / 60:.0f} minutes for what of data and trainings was left to do", flush=True)

    shipped, answers = folder / "reasoner", folder / "answers" / model.name
    ship(model, shipped)
    for dataset, split in TESTS:
        output = answers / dataset / split
        command = [*launch, "evaluate.py", "--name", "reasoner", "--model", shipped, "--dataset", data / dataset]
        command += ["--split", split, "--cluster", "structure_id", "--output_dir", output, "--max_new_tokens", 1000]
        command += ["--max_rows", options.test_rows] if options.test_rows else []
        stage(f"answers, {dataset}, {split}", output, command, logs)
    print(table(answers))


if __name__ == "__main__":
    main()
