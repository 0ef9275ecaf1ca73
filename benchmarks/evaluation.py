"""Greedy answers to a test set of the released shape against the best plain loop.

    python benchmarks/evaluation.py --json evaluation.json      # 1,162 rows on 21 premises of N = 2 to 6
    python benchmarks/evaluation.py --quick                     # 120 rows on 4 premises

Ours is `predict` of scoring/predictions.py, which evaluate.py calls: the claims of a premise share its tokens. The
rival `padded` is transformers' `generate` on prompts sorted by length, padded to the left, at the batch size that is
fastest on a part of the rows. Every answer has `--tokens` tokens: none stops early. The sides take turns, the first
turn is dropped, medians in seconds. Predictions must be equal, and texts are compared row by row: with random weights
they may differ where two tokens are equally probable but for rounding, and such rows are counted.
"""

import random

import common
import torch
from accelerate import Accelerator
from common import Bench, Clock, Run, Side
from datasets import Dataset

from causal.answers import extract_answer
from dataset.chat import encode
from policy.sampling import Sampler
from runtime.ending import run_script
from scoring.predictions import predict

RIVALS = ["padded"]
PREMISES = {2: 1, 3: 3, 4: 4, 5: 7, 6: 6}  # by N: 21 premises of 1,164 rows, of which the test set has 1,162
QUICK = {2: 1, 3: 1, 4: 1, 5: 1}
ROWS = 1162
BATCHES = (8, 16, 32, 64)


def test_rows(counts: dict[int, int], tokenizer) -> Dataset:
    """Random premises of each N with all their claims, as the released recipe cuts a test set."""
    chosen = [p for n, count in counts.items() for p in random.Random(n).sample(common.premises(n), count)]
    return Dataset.from_list(common.chat([row for premise in chosen for row in premise][:ROWS], tokenizer))


class Ours(Side):
    settings = [(8192,), (32768,)]  # cache_tokens

    def __init__(self, where: Bench, rows: Dataset, model: torch.nn.Module, tokens: int):
        self.bench, self.rows, self.model, self.tokens = where, rows, model, tokens
        self.clock, self.accelerator = Clock(model), Accelerator(cpu=where.device.type == "cpu")
        self.texts: list[str] = []

    def step(self, cache_tokens: int) -> Run:
        sampler = Sampler(self.model, self.bench.tokenizer, set(), self.tokens, cache_tokens)
        with self.clock.phase("step"):
            prompts = [encode(self.bench.tokenizer, text) for text in self.rows["prompt"]]
            results = predict(self.accelerator, sampler, self.rows, prompts)
        self.texts = [result["completion"] for result in results]
        assert not any(result["stopped"] for result in results), "an answer has stopped early"
        return self.clock.take()


class Padded(Side):
    """The plain loop: the longest prompts first, so that like lengths meet in a batch."""

    def __init__(self, where: Bench, rows: Dataset, model: torch.nn.Module, tokens: int):
        self.bench, self.model, self.tokens, self.clock = where, model, tokens, Clock(model)
        self.prompts, self.texts = list(rows["prompt"]), []
        # Every eighth stretch of as many rows as the largest batch has, so that its lengths are as alike as in all.
        order, stretch = sorted(self.prompts, key=len, reverse=True), max(BATCHES)
        part = [text for start in range(0, len(order), 8 * stretch) for text in order[start : start + stretch]]
        times = {batch: self.answer(part, batch)["step"].seconds for batch in (BATCHES[0], *BATCHES)}  # the first twice
        self.settings = [(min(times, key=times.get),)]

    def answer(self, texts: list[str], batch: int) -> Run:
        tokenizer = self.bench.tokenizer
        with self.clock.phase("step"):
            prompts = [encode(tokenizer, text) for text in texts]
            order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
            inputs = (self.model, [prompts[i] for i in order], batch, self.tokens, tokenizer.pad_token_id)
            done = common.padded_generate(*inputs, do_sample=False)
            answers = dict(zip(order, tokenizer.batch_decode(done, skip_special_tokens=True), strict=True))
        assert {len(tokens) for tokens in done} == {self.tokens}, "an answer has stopped early"
        self.texts = [answers[i] for i in range(len(answers))]
        return self.clock.take()

    def step(self, batch: int) -> Run:
        return self.answer(self.prompts, batch)


def main() -> None:
    options = common.parser(__doc__.splitlines()[0], RIVALS)
    options.add_argument("--tokens", type=int, default=8, help="tokens of an answer")
    options = options.parse_args()
    with common.bench(options) as where:
        figures = {"machine": common.machine(where, options.threads), "rows": []}
        rows = test_rows(QUICK if options.quick else PREMISES, where.tokenizer)
        model = where.policy().eval()
        sides = {name: kind(where, rows, model, options.tokens) for name, kind in (("ours", Ours), ("padded", Padded))}
        settings, found = common.contest(sides, [("step",)], options)

        groups: dict[str, list[list[int]]] = {}
        for premise, text in zip(rows["premise_id"], rows["prompt"], strict=True):
            new = [-len(groups) - 1] * (options.tokens - 1)  # stand for the answer; its last token is not computed
            groups.setdefault(premise, []).append(encode(where.tokenizer, text) + new)
        heads, total = len(rows) * options.tokens, sum(len(x) + 1 for group in groups.values() for x in group)
        at = {"rival": "padded", "phase": "step", "N": 0, "G": round(len(rows) / len(groups)), "T": options.tokens}
        at |= {"P": round(total / len(rows)) - options.tokens, "claims": 0, "sequence_tokens": total}
        at |= {f"{name}_setting": settings[side] for name, side in (("ours", "ours"), ("theirs", "padded"))}
        work = [
            common.operations(model, list(groups.values()), name == "ours", found[name]["step"].tokens, heads, False)
            for name in ("ours", "padded")
        ]
        pairs = ((found[name]["step"], w) for name, w in zip(("ours", "padded"), work, strict=True))
        row = common.compare(at, *pairs, figures["machine"]["matrix_rate"])
        texts = list(zip(sides["ours"].texts, sides["padded"].texts, strict=True))
        other = [(a, b) for a, b in texts if extract_answer(a) is not extract_answer(b)]
        row |= {"row_count": len(rows), "premises": len(groups), "different_predictions": len(other)}
        row["different_texts"] = sum(a != b for a, b in texts)
        for side in ("ours", "theirs"):
            row[f"{side}_rows_per_second"] = len(rows) / row[side]
        figures["rows"].append(row)
        common.write(figures, options.json)
    print(common.table([row]))
    print(f"{len(rows):,} rows on {len(groups)} premises; {row['ours_rows_per_second']:.1f} rows/s against", end=" ")
    print(f"{row['theirs_rows_per_second']:.1f}; texts that differ {row['different_texts']}, predictions {len(other)}")
    assert not other, f"predictions differ, first {other[0]}"


if __name__ == "__main__":
    run_script(main)
