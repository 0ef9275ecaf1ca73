"""A supervised step with shared premises against TRL's SFTTrainer and the plain padded path.

    pip install -r benchmarks/requirements.txt
    python benchmarks/sft_step.py --json sft.json             # 1, 4 and 16 claims of a premise
    python benchmarks/sft_step.py --quick --json sft.json
    python benchmarks/sft_step.py --target trace --claims_per_prefix 1    # reasoning: long responses, nothing shared
    python benchmarks/sft_step.py --rivals padded             # needs no TRL

An optimizer step on `--rows` real rows of `--num_variables`, of random premises with so many claims each; loss on the
response alone, LoRA on every linear layer, AdamW. The same weights and rows on all sides. Ours are the functions of
train_sft.py. The rivals, each with its settings:

    trl       trl.SFTTrainer: padded rows, grouped by length, with so many rows a micro-batch; or `packed`, its best-fit
              packing, in rows of so many tokens. Its `wrapped` packing cuts rows apart and would train on other ones
    padded    train_sft.py with prefix_sharing off: padded rows, so many tokens a micro-batch

Each side first does a step at each of its settings, and the best is kept; then they take turns, and the first turn
is dropped. Medians in seconds. In the figures T is the longest response, P the mean prompt, G the claims of a premise;
`by tokens` is the ratio of the tokens that the sides compute.
"""

import random
from collections.abc import Callable

import common
import torch
from common import Bench, Clock, Run, Side
from datasets import Dataset

import train_sft
from dataset.chat import encode
from runtime.ending import run_script
from runtime.settings import check

RIVALS = ["trl", "padded"]
WHOLE = 10**9


class Batch:
    """The rows of a step: groups of indices, one for each premise."""

    def __init__(self, where: Bench, n: int, claims: int, rows: int, target: str = "answer"):
        check(rows % claims == 0, f"rows: {rows} rows are not a number of premises with {claims} claims each")
        self.bench, self.claims = where, claims
        drawn = random.Random(claims)
        premises = drawn.sample(common.premises(n), rows // claims)
        chosen = [row for premise in premises for row in drawn.sample(premise, claims)]
        chats = common.chat(chosen, where.tokenizer, target)
        self.prompts = [encode(where.tokenizer, row["prompt"]) for row in chats]
        self.answers = [encode(where.tokenizer, row["response"]) for row in chats]
        self.labels = [row["label"] for row in chats]
        self.groups = [list(range(k, k + claims)) for k in range(0, rows, claims)]

    def tokens(self, share: bool) -> list[list[list[int]]]:
        groups = self.groups if share else [[i] for group in self.groups for i in group]
        return [[self.prompts[i] + self.answers[i] for i in group] for group in groups]


class Product(Side):
    """The functions of train_sft.py. A setting is its micro_batch_tokens."""

    def __init__(self, batch: Batch, model: torch.nn.Module, share: bool = True):
        self.batch, self.model, self.share = batch, model.train(), share
        self.clock = Clock(model)
        self.rows = train_sft.make_rows(batch.prompts, batch.answers, batch.labels, [1.0, 1.0])
        # Without sharing a row is a group of its own, so that rows of like length meet.
        self.groups = batch.groups if share else [[i] for group in batch.groups for i in group]
        self.settings = [(tokens,) for tokens in ((1, 2048, WHOLE) if share else (1024, 2048, 4096))]
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)

    def step(self, tokens: int) -> Run:
        config = train_sft.Config(micro_batch_tokens=tokens, prefix_sharing=self.share)
        with self.clock.phase("step"):
            total = self.rows.total_weight(self.groups)
            for groups in train_sft.micro_batches(self.groups, self.rows, config):
                (train_sft.loss_sum(self.model, self.rows, groups, self.share) / total).backward()
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return self.clock.take()


class TRL(Side):
    """trl.SFTTrainer; its data set is the rows of the step, so that an epoch is a step whatever the micro-batches."""

    def __init__(self, batch: Batch):
        self.batch = batch
        rows, longest = len(batch.prompts), max(len(s) for group in batch.tokens(False) for s in group)
        padded = sorted({rows, max(1, rows // 2), max(1, rows // 4)}, reverse=True)
        packed = sorted({max(longest, size) for size in (512, 1024, 2048)})
        self.settings = [(kind,) for kind in [*(("padded", size) for size in padded), *(("packed", n) for n in packed)]]

    def steps(self, setting: tuple, count: int, after: Callable[[], None] = lambda: None) -> list[Run]:
        from trl import SFTConfig, SFTTrainer

        batch, ((kind, size),) = self.batch, setting
        options = {"per_device_train_batch_size": size, "train_sampling_strategy": "group_by_length"}
        if kind == "packed":
            options = {"per_device_train_batch_size": 1, "packing": True, "packing_strategy": "bfd", "max_length": size}
        config = SFTConfig(
            **{"max_length": None} | common.trainer_options(batch.bench, count) | options,
            gradient_accumulation_steps=len(batch.prompts),
        )
        policy = batch.bench.policy()
        policy.get_base_model().set_attn_implementation("sdpa")
        pairs = zip(batch.prompts, batch.answers, strict=True)
        rows = [{"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in pairs]
        trainer = SFTTrainer(
            model=policy, args=config, processing_class=batch.bench.tokenizer, train_dataset=Dataset.from_list(rows)
        )
        return common.train_beside(trainer, Clock(policy), after)


def measure(batch: Batch, n: int, options, rate: float) -> list[dict]:
    model = batch.bench.policy()
    sides = {"ours": Product(batch, model)}
    if "padded" in options.rivals:
        sides["padded"] = Product(batch, model, share=False)
    if "trl" in options.rivals:
        sides["trl"] = TRL(batch)
    settings, found = common.contest(sides, [("step",)], options)
    rows, heads = [], sum(map(len, batch.answers))
    work = {
        name: common.operations(model, batch.tokens(name == "ours"), name == "ours", run["step"].tokens, heads, True)
        for name, run in found.items()
    }
    total = sum(map(len, batch.prompts)) + heads
    for name in [name for name in RIVALS if name in sides]:
        at = {"rival": name, "phase": "step", "N": n, "G": batch.claims, "T": max(map(len, batch.answers))}
        at |= {"P": round((total - heads) / len(batch.prompts)), "claims": batch.claims, "sequence_tokens": total}
        at |= {"ours_setting": settings["ours"], "theirs_setting": settings[name]}
        rows.append(common.compare(at, *((found[side]["step"], work[side]) for side in ("ours", name)), rate))
        for side in ("ours", "theirs"):
            rows[-1][f"{side}_rows_per_second"] = len(batch.prompts) / rows[-1][side]
    return rows


def main() -> None:
    options = common.parser(__doc__.splitlines()[0], RIVALS)
    options.add_argument("--rows", type=int, help="rows of an optimizer step (32; quick: 16)")
    options.add_argument("--num_variables", type=int, default=5, choices=[2, 3, 4, 5], help="variables of the rows")
    options.add_argument("--claims_per_prefix", type=int, nargs="+", help="rows of a premise (1 4 16; quick: 16)")
    options.add_argument("--target", default="answer", choices=["answer", "trace"], help="what the rows' responses are")
    options = options.parse_args()
    options.claims_per_prefix = options.claims_per_prefix or ([16] if options.quick else [1, 4, 16])
    common.check_rivals(options.rivals)
    with common.bench(options) as where:
        figures = {"machine": common.machine(where, options.threads), "rows": []}
        for claims in options.claims_per_prefix:
            count = options.rows or (16 if options.quick else 32)
            batch = Batch(where, options.num_variables, claims, count, options.target)
            rows = measure(batch, options.num_variables, options, figures["machine"]["matrix_rate"])
            figures["rows"] += rows
            print(common.table(rows))
            first = rows[0]
            print(f"rows/s: ours {first['ours_rows_per_second']:.2f}", end="")
            print("".join(f", {row['rival']} {row['theirs_rows_per_second']:.2f}" for row in rows), flush=True)
            common.write(figures, options.json)


if __name__ == "__main__":
    run_script(main)
