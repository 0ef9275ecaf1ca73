"""Does a model learn more from its own mistakes, corrected, than from as many plain traces?

    python experiments/corrections.py --rounds 3                        # from reasoner/, on two CPU processes
    python experiments/corrections.py --model models/mine --dataset data/traces --steps 500 --output_dir corrections

A round: the model answers `--rows` other rows of train, its traces are kept up to their first fault and continued
exactly (preprocess.py --source corrections; those of the earlier rounds stay), and train_sft.py trains it on the
mixture for `--steps`. Beside it the control, which sees plain rows alone: as many steps of as many rows, at the same
rates. Both are tested on the rows of each of `--splits`, and compared. What is done is not done again.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments.results import LAUNCH, RESUME, stage  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reasoner")
    parser.add_argument("--dataset", default="data/reasoner", help="of traces; of structures that the model is taught")
    parser.add_argument("--recipe", default="configs/sft_corrections.yaml", help="of train_sft.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000, help="of train, that the model answers in each round")
    parser.add_argument("--share", type=float, default=0.5, help="of corrections in the mixture")
    parser.add_argument("--steps", type=int, default=400, help="of SFT in each round")
    parser.add_argument("--splits", nargs="+", default=["test"])
    parser.add_argument("--test_rows", type=int, default=600)
    parser.add_argument("--alone", action="store_true", help="without the control: for a model to keep")
    parser.add_argument("--processes", type=int, choices=LAUNCH, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "corrections")
    options = parser.parse_args()
    folder, launch, logs = options.output_dir.resolve(), LAUNCH[options.processes], options.output_dir / "console"

    def train(name: str, model: str, dataset: str, seed: int) -> str:
        output = folder / name
        settings = ["--config", options.recipe, "--model", model, "--dataset", dataset, "--max_steps", options.steps]
        settings += ["--seed", seed, "--output_dir", output, "--logging_dir", folder / "curves" / name]
        stage(name, output, [*launch, "train_sft.py", *settings], logs, RESUME)
        return str(output)

    def answer(name: str, model: str, split: list[str], rows: int, seed: int) -> str:
        output = folder / "answers" / name
        settings = ["--name", name, "--model", model, "--dataset", options.dataset, "--split", *split, "--seed", seed]
        settings += ["--max_rows", rows, "--cluster", "structure_id", "--output_dir", output]
        stage(f"answers of {name}", output, [*launch, "evaluate.py", *settings], logs)
        return str(output)

    corrected = plain = options.model
    tested = [answer("start", options.model, options.splits, options.test_rows, options.seed)]
    answers: list[str] = []
    for k in range(1, options.rounds + 1):
        seed = options.seed + k  # other rows, in another order
        answers.append(answer(f"train {k}", corrected, ["train"], options.rows, seed))
        data = folder / f"data_{k}"
        settings = ["--source", "corrections", "--predictions", *answers, "--correction_share", options.share]
        settings += ["--seed", seed, "--output_dir", data]
        stage(f"data {k}", data, [sys.executable, "preprocess.py", *settings], logs)
        corrected = train(f"corrected_{k}", corrected, str(data), seed)
        if not options.alone:
            plain = train(f"plain_{k}", plain, options.dataset, seed)
            tested.append(answer(f"plain_{k}", plain, options.splits, options.test_rows, options.seed))
        tested.append(answer(f"corrected_{k}", corrected, options.splits, options.test_rows, options.seed))
    name = f"comparison_{options.rounds}"
    command = [sys.executable, "evaluate.py", "--compare", *tested, "--cluster", "structure_id"]
    stage(name, folder / name, [*command, "--output_dir", folder / name], logs)
    print((logs / f"{name}.log").read_text())


if __name__ == "__main__":
    main()
