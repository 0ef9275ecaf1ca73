"""A GRPO step with shared prefixes against TRL's GRPOTrainer, prefix-grouper and a plain padded loop.

    pip install -r benchmarks/requirements.txt
    python benchmarks/grpo_step.py --json step.json --figure step.png          # T = 4 to 1,024, G = 8 and 16: hours
    python benchmarks/grpo_step.py --G 8 --T 256 --lengths varied --json v.json
    python benchmarks/grpo_step.py --quick --json step.json                    # less than 5 minutes
    python benchmarks/grpo_step.py --rivals trl --model demo/seed-0/sft_model --dataset demo/seed-0/data_words \
        --prompts 16 --T 400 --G 8 --claims_per_prefix 1                       # of a trained model
    python benchmarks/grpo_step.py --from_json step.json --figure step.png

A step is the rollout (G samples of T tokens for each of `--prompts` prompts), scoring (log-probabilities under a frozen
copy of the adapter) and the update (loss, backward, clipping, AdamW). All sides have the same weights, LoRA on every
linear layer, prompts and lengths: a sample is ended after its number of tokens, not before. Lengths are T, or
(`varied`) evenly spread from T/3 to T, as those of traces are. A trained `--model` with the prompts of its `--dataset`
ends its samples by itself, after T tokens at most; each side draws its own, and a turn has slightly other lengths than
the next. Rewards are random numbers, since the model may answer nothing. Ours are the functions of train_grpo.py. The
rivals, each with its settings:

    trl             trl.GRPOTrainer, its methods timed: rollout by `generate` or by continuous batching (on a CPU with
                    --threads 1 only), rows a device
    prefix-grouper  its attention and its row in our scoring and update, of given completions; it has no rollout
    padded          a `generate` loop with every prompt repeated, then train_grpo.py with prefix_sharing off

A setting is a way to sample and a micro-batch: all of the step at once or a group at a time (trl: rows). Each side
first does a step at each, and the best of each phase is kept. Then the sides take turns; the first turn is dropped;
figures are medians in seconds, and beside them the least and the largest ratio of a turn. `by tokens` is the ratio of
the tokens that the sides compute; in a step those of the update count twice, since a backward pass costs about a
forward one. What counts as operations stands in common.py.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, chain, cycle, islice, product
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import common
import torch
from common import PHASES, Bench, Clock, Measure, Run, Side
from datasets import Dataset, load_from_disk
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, ContinuousBatchingManager, LogitsProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import train_grpo
from dataset.batches import premise_groups
from policy import sampling as our_sampling
from policy.adapters import add_reference, use_reference
from policy.loading import stop_token_ids
from policy.prefix_sharing import Tokens, joined, sequence_logps
from policy.sampling import Completion, Decoding, Sampler
from policy.self_check import TOLERANCE
from runtime.ending import run_script
from runtime.settings import check
from training.grpo_metrics import LossCounts
from training.rollouts import MicroBatch, make_prompts, micro_batches

RIVALS = ["trl", "prefix-grouper", "padded"]
PARTS = [("rollout",), ("scoring", "update")]  # the phases that the elements of a setting decide
BETA = 0.03
# One process, as an Accelerator says it:
ALONE = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"))
WHOLE = 10**9  # a token budget that holds a whole step; with 1, each group stands alone


class Point:
    """What a line of the table is measured on: `prompts` real prompts, in groups of `claims` that share a premise."""

    def __init__(self, where: Bench, n: int, g: int, t: int, claims: int, lengths: str, options):
        self.bench, self.g, self.t, self.own = where, g, t, lengths == "own"
        if self.own:
            rows = load_from_disk(options.dataset)["train"]
            self.rows = rows.select(range(0, len(rows), len(rows) // options.prompts)[: options.prompts])
        else:
            count = max(1, options.prompts // claims)
            chats = common.nearest_premises(n, where.tokenizer, options.prompt_tokens, count)
            self.rows = Dataset.from_list([row for premise in chats for row in premise[:claims]])
        prompts = make_prompts(where.tokenizer, self.rows)
        self.groups = [[prompts[row] for row in group] for group in premise_groups(self.rows["premise_id"], claims)]
        self.prompts = [prompt.tokens for prompt in prompts]
        self.size = g * len(self.rows)  # sequences of a step
        least = t if lengths == "equal" else -(-t // 3)
        self.lengths = [round(least + (t - least) * k / max(1, self.size - 1)) for k in range(self.size)]
        random.Random(0).shuffle(self.lengths)
        p = round(sum(map(len, self.prompts)) / len(self.rows))
        self.at = {"N": "" if self.own else n, "G": g, "T": t, "P": p, "claims": claims, "lengths": lengths}

    def config(self, budget: int, share: bool = True) -> train_grpo.Config:
        lengths = {"num_generations": self.g, "max_new_tokens": self.t}
        return train_grpo.Config(
            beta=BETA, prefix_sharing=share, micro_batch_tokens=budget, cache_tokens=budget, **lengths
        )

    def completions(self, tokens: list[Tokens] | None = None) -> list[list[Completion]]:
        """(N, G) of these tokens, or of random ones for what starts after the sampling; or a trained model's own."""
        if tokens is None and self.own:
            tokens = self.drawn
        elif tokens is None:
            draw = random.Random(0)
            tokens = [[draw.randrange(10, len(self.bench.tokenizer)) for _ in range(n)] for n in self.lengths]
        done = [Completion(of_one, [0.0] * len(of_one)) for of_one in tokens]
        return [done[n : n + self.g] for n in range(0, self.size, self.g)]

    def check_lengths(self, completions: list[Tokens]) -> None:
        lengths = list(map(len, completions))
        assert self.own or lengths == self.lengths, f"completions of {lengths} tokens, not {self.lengths}"

    def batches(self, completions: list[list[Completion]], budget: int, share: bool) -> list[MicroBatch]:
        every = torch.ones(len(completions), self.g, dtype=torch.bool)
        return micro_batches(ALONE, self.groups, completions, every, budget, share)


# --- samples of given lengths


class Ends(LogitsProcessor):
    """Lets every row of a batch end with the token `end` after its number of tokens, and not before."""

    def __init__(self, lengths: list[int], vocabulary: int, end: int, device: torch.device):
        self.left = torch.tensor(lengths, device=device)[:, None]  # (B, 1)
        self.is_end = torch.arange(vocabulary, device=device) == end  # (V,)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        return scores.masked_fill((self.left == 0) ^ self.is_end, -torch.inf)


@contextmanager
def ended(model: torch.nn.Module, point: Point) -> Iterator[None]:
    """In the block samples drawn from `model` have the lengths of `point`, by whichever sampler in its order."""
    if point.own:
        yield
        return
    draw, generate, add_request = Decoding._draw, model.generate, ContinuousBatchingManager.add_request
    starts = list(accumulate((len(group) * point.g for group in point.groups), initial=0))
    ahead, tokenizer = cycle(point.lengths), point.bench.tokenizer

    def our_draw(decoding, branches, drafts, logits):
        drawn = draw(decoding, branches, drafts, logits)
        for one in chain.from_iterable(drawn):
            one.stopped |= len(one.tokens) == point.lengths[starts[one.group] + one.members[0]]
        return drawn

    def padded(input_ids, generation_config, **options):
        generation_config.eos_token_id = end = tokenizer.eos_token_id
        ends = Ends(list(islice(ahead, len(input_ids))), len(tokenizer), end, input_ids.device)
        return generate(input_ids=input_ids, generation_config=generation_config, logits_processor=[ends], **options)

    def continuous(manager, input_ids, request_id, max_new_tokens, **options):
        length = point.lengths[int(request_id.removeprefix("req_")) % point.size]
        return add_request(manager, input_ids, request_id=request_id, max_new_tokens=length, **options)

    with (
        patch.object(our_sampling, "generate", partial(our_sampling.generate, fork=False)),
        patch.object(Decoding, "_draw", our_draw),
        patch.object(model, "generate", padded),
        patch.object(ContinuousBatchingManager, "add_request", continuous),
    ):
        yield


# --- the sides


class Product(Side):
    """The functions of train_grpo.py; with `share` false the plain path, after a rollout by `generate`."""

    settings = [("step", "step"), ("group", "group")]

    def __init__(self, point: Point, model: torch.nn.Module, share: bool = True):
        self.point, self.model, self.share = point, model, share
        self.clock = Clock(model)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)
        self.steps_done = 0

    def sample(self, setting: str) -> list[list[Completion]]:
        point, whole = self.point, setting == "step"
        self.steps_done += 1
        self.model.eval()
        if self.share:
            stops = stop_token_ids(point.bench.tokenizer, self.model) if point.own else set()
            sampler = Sampler(self.model, point.bench.tokenizer, stops, point.t, WHOLE if whole else 1)
            config = point.config(sampler.cache_tokens)
            with ended(self.model, point):
                return train_grpo.sample(SimpleNamespace(sampler=sampler), point.groups, self.steps_done, config)
        prompts = [prompt for prompt in point.prompts for _ in range(point.g)]
        options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        pad, batch = point.bench.tokenizer.pad_token_id, len(prompts) if whole else point.g
        with ended(self.model, point):
            rows = common.padded_generate(self.model, prompts, batch, point.t, pad, **options)
        return point.completions([row[:n] for row, n in zip(rows, point.lengths, strict=True)])

    def learn(self, completions: list[list[Completion]], setting: str) -> None:
        """Scoring and update of a rollout."""
        config = self.point.config(WHOLE if setting == "step" else 1, self.share)
        rewards = torch.randn(len(completions), self.point.g)
        advantages = train_grpo.group_advantages(rewards, "group", 1.0)[..., None]
        counts = LossCounts.over_ranks(ALONE, completions)
        with self.clock.phase("scoring"):
            batches = self.point.batches(completions, config.micro_batch_tokens, self.share)
            references = [train_grpo.score_reference(self.model, batch, config) for batch in batches]
        with self.clock.phase("update"):
            self.model.train()
            for batch, reference in zip(batches, references, strict=True):
                inputs = (self.model, batch, None, reference, advantages, counts, config)
                train_grpo.micro_batch_loss(*inputs)[0].backward()
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def step(self, sampling: str, batching: str) -> Run:
        with self.clock.phase("step"):
            with self.clock.phase("rollout"):
                completions = self.sample(sampling)
            self.point.check_lengths([completion.tokens for row in completions for completion in row])
            self.learn(completions, batching)
        return self.clock.take()


class Grouped(Product):
    """train_grpo.py with the log-probabilities of prefix-grouper in place of ours, on the same model."""

    def step(self, sampling: str, batching: str) -> Run:
        with self.in_place():
            self.learn(self.point.completions(), batching)
        return self.clock.take()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        def attend(query, key, value, mask, module, **options):
            return sdpa_attention_forward(module, query, key, value, mask if mask.numel() else None, **options)[0]

        def attention(module, query, key, value, attention_mask, prefix_grouper, **options):
            return prefix_grouper.forward(attend, query, key, value, module, **options), None

        AttentionInterface.register("prefix_grouper", attention)
        decoder = self.model.get_base_model()
        own = decoder.config._attn_implementation
        decoder.set_attn_implementation("prefix_grouper")
        with patch.object(train_grpo, "sequence_logps", self.logps):
            yield
        decoder.set_attn_implementation(own)

    def logps(self, model, prompts, completions, temperature=1.0, share=True, **_) -> tuple[torch.Tensor, ...]:
        """As `sequence_logps`, for G completions a prompt. A row is a prompt and its completions."""
        from prefix_grouper import PrefixGrouper

        g, device = self.point.g, self.point.bench.device
        prompts = [prompt for group in prompts for prompt in group][::g]
        flat = [tokens for group in completions for tokens in group]
        samples = [flat[k : k + g] for k in range(0, len(flat), g)]
        targets = pad_sequence([torch.tensor(tokens) for tokens in flat], batch_first=True).to(device)  # (B, T)
        t = targets.shape[1]
        mask = torch.arange(t, device=device) < torch.tensor(list(map(len, flat)), device=device)[:, None]
        grouper = PrefixGrouper([[len(p), *map(len, of_p)] for p, of_p in zip(prompts, samples, strict=True)], device)
        # It hands on masks of padding. The causal ones that SDPA needs are made here, once for all layers.
        info, width = grouper.group_info, max(map(len, prompts))
        seen = torch.ones(width + t, width + t, dtype=torch.bool, device=device).tril()
        info.suffix_attn_mask = info.suffix_attn_mask[:, None, None, :] & seen[width:]
        own = torch.eye(width, dtype=torch.bool, device=device)  # padding that saw nothing would be NaN
        prefix_mask = info.prefix_attn_mask[:, None, None, :] & seen[:width, :width] | own
        padded = min(map(len, prompts)) < width
        info.prefix_attn_mask = prefix_mask if padded else seen[:0]  # without one, SDPA's causal path, which is faster
        rows = [sum(of_p, p) for p, of_p in zip(prompts, samples, strict=True)]
        depths = [
            [*range(len(p)), *(len(p) + k for tokens in of_p for k in range(len(tokens)))]
            for p, of_p in zip(prompts, samples, strict=True)
        ]
        ids, depths = (pad_sequence([torch.tensor(x) for x in y], batch_first=True).to(device) for y in (rows, depths))
        decoder = model.get_base_model()
        hidden = decoder.model(input_ids=ids, position_ids=depths, use_cache=False, prefix_grouper=grouper)[0]
        states = grouper.split_output(hidden, include_prefix_last=1)[2][:, :-1]  # (B, T, d): each predicts a target
        logps = decoder.lm_head(states).float().div(temperature).log_softmax(-1)
        logps = logps.gather(-1, targets[..., None])[..., 0] * mask
        return logps, torch.zeros_like(logps), mask

    def check_equal(self) -> None:
        """Its log-probabilities are ours, with one group and with all groups in a batch."""
        for budget in (1, WHOLE):
            batch = self.point.batches(self.point.completions(), budget, share=True)[0]
            inputs = (batch.prompts, batch.completions)
            with torch.no_grad(), use_reference(self.model):
                expected = sequence_logps(self.model, *inputs)[0]
                with self.in_place():
                    off = float((self.logps(self.model, *inputs)[0] - expected).abs().max())
            assert off <= TOLERANCE[self.point.bench.dtype], f"prefix-grouper is off by {off:.1e} nats"


class TRL(Side):
    """trl.GRPOTrainer on the same prompts, policy and frozen copy of the adapter."""

    def __init__(self, point: Point):
        self.point = point
        rows = sorted({point.size, point.g, max(1, point.g // 2)}, reverse=True)
        # Its loop runs in a thread of its own. With several of torch's threads on a CPU, one rollout takes minutes.
        able = (point.bench.device.type == "cuda" or torch.get_num_threads() == 1) and not point.own
        self.settings = [("continuous" if able and k == 1 else "generate", size) for k, size in enumerate(rows)]

    def trainer(self, sampling: str, rows: int, count: int):
        from trl import GRPOConfig, GRPOTrainer

        point, longest, page = self.point, max(map(len, self.point.prompts)), 32
        options = {}
        if sampling == "continuous":
            # Samples share the pages of their prompt that are full. No token is the end, a length is.
            blocks = point.size * (-(-(longest + point.t) // page) + 1)
            pages = {"page_size": page, "num_blocks": blocks, "max_batch_tokens": max(point.size, longest) + page}
            options = {"generation_kwargs": {"eos_token_id": -1}, "use_transformers_continuous_batching": True}
            options["transformers_continuous_batching_config"] = pages
        config = GRPOConfig(
            **common.trainer_options(point.bench, count),
            **options,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=point.size // rows,
            num_generations=point.g,
            max_completion_length=point.t,
            beta=BETA,
            loss_type="grpo",
            shuffle_dataset=False,
        )
        policy = point.bench.policy()
        policy.get_base_model().set_attn_implementation("sdpa")
        return GRPOTrainer(
            model=policy,
            args=config,
            processing_class=point.bench.tokenizer,
            reward_funcs=lambda completions, **_: torch.randn(len(completions)).tolist(),
            train_dataset=point.rows.select_columns(["prompt"]),
        )

    def steps(self, setting: tuple, count: int, after: Callable[[], None] = lambda: None) -> list[Run]:
        point, trainer = self.point, self.trainer(*setting, count)
        clock = Clock(trainer.model)
        generate, score = trainer._generate, trainer._get_per_token_logps_and_entropies

        def timed_generate(prompts):
            with ended(trainer.model, point), clock.phase("rollout"):
                out = generate(prompts)
            assert out[0] == [p for p in point.prompts for _ in range(point.g)], "TRL has other prompts than we"
            point.check_lengths(out[1])
            return out

        def timed_score(*args, **options):
            if torch.is_grad_enabled():  # the update's own
                return score(*args, **options)
            with clock.phase("scoring"):
                return score(*args, **options)

        trainer._generate, trainer._get_per_token_logps_and_entropies = timed_generate, timed_score
        runs = common.train_beside(trainer, clock, after)
        for run in runs:  # the rest of the step is its update
            step, rollout, scoring = (run[phase] for phase in PHASES[:3])
            seconds = step.seconds - rollout.seconds - scoring.seconds
            run["update"] = Measure(seconds, step.tokens - rollout.tokens - scoring.tokens, step.peak)
        return runs


# --- the comparison


def measure(point: Point, options, rate: float) -> list[dict]:
    """The rows of one point: every rival's phases against ours."""
    model = point.bench.policy()
    add_reference(model)
    makers = {
        "padded": lambda: Product(point, model, share=False),
        "prefix-grouper": lambda: Grouped(point, model),
        "trl": lambda: TRL(point),  # the last one leads
    }
    ours = Product(point, model)
    if point.own:
        point.drawn = [completion.tokens for row in ours.sample("step") for completion in row]
        point.lengths = list(map(len, point.drawn))
    sides = {"ours": ours} | {name: make() for name, make in makers.items() if name in options.rivals}
    if "prefix-grouper" in sides:
        sides["prefix-grouper"].check_equal()
    settings, found = common.contest(sides, PARTS, options)
    (whole,) = point.batches(point.completions(), WHOLE, share=True)
    groups = dict.fromkeys(PHASES, joined(whole.prompts, whole.completions))
    heads, work = sum(point.lengths), {}
    # The last token of a completion is sampled and not computed in the rollout.
    groups["rollout"] = [[sequence[:-1] for sequence in group] for group in groups["rollout"]]
    for name, run in found.items():
        share = name in ("ours", "prefix-grouper")
        work[name] = {
            phase: common.operations(model, groups[phase], share, run[phase].tokens, heads, phase == "update")
            for phase in run
            if phase != "step"
        }
        if "step" in run:
            work[name]["step"] = sum(work[name].values())
            run["step"].tokens = run["rollout"].tokens + run["scoring"].tokens + 2 * run["update"].tokens
    rows = []
    for name, phase in product([name for name in RIVALS if name in sides], PHASES):
        if phase in found[name]:
            at = {"rival": name, "phase": phase} | point.at
            at |= {"sequence_tokens": point.size * point.at["P"] + heads}
            at |= {"sampled_tokens": heads} if phase == "rollout" else {}
            at |= {"ours_setting": settings["ours"], "theirs_setting": settings[name]}
            pair = [(found[side][phase], work[side][phase]) for side in ("ours", name)]
            rows.append(common.compare(at, *pair, rate))
    return rows


# --- figure


def draw(figures: dict, path: str) -> None:
    """The ratio against T, a line for each G, and dashed the ratio of the computed tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rival = next(name for name in RIVALS if any(row["rival"] == name for row in figures["rows"]))
    first = next(row for row in figures["rows"] if row["rival"] == rival)
    rows = [
        row for row in figures["rows"] if all(row[key] == first[key] for key in ("rival", "N", "claims", "lengths"))
    ]
    phases = [phase for phase in PHASES if any(row["phase"] == phase for row in rows)]
    every_g, every_t = (sorted({row[key] for row in rows}) for key in ("G", "T"))
    options = {"figsize": (3 * len(phases), 3.8), "layout": "constrained", "squeeze": False, "sharey": True}
    figure, axes = pyplot.subplots(1, len(phases), **options)
    for axis, phase in zip(axes[0], phases, strict=True):
        for g, marker, shade in zip(every_g, "os^Dv", ("0.7", "0.4", "0.0", "0.2", "0.55"), strict=False):
            points = sorted((r for r in rows if r["phase"] == phase and r["G"] == g), key=lambda r: r["T"])
            t = [r["T"] for r in points]
            axis.plot(t, [r["ratio"] for r in points], color=shade, marker=marker, label=f"G = {g}")
            axis.plot(t, [r["token_ratio"] for r in points], color=shade, linestyle="--", linewidth=1)
        axis.axhline(1, color="0.8", linewidth=0.8, zorder=0)
        axis.set(title=phase, xlabel="T, tokens of a completion", xscale="log")
        axis.set_xticks(every_t, map(str, every_t))
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylim(bottom=0)  # of all panels, once everything is drawn
    name = {"trl": "TRL", "padded": "padded rows"}.get(rival, rival)
    axes[0, 0].set_ylabel(f"time of {name} / ours")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(pyplot.Line2D([], [], color="0.4", linestyle="--", linewidth=1))
    figure.legend(handles, [*labels, "ratio of computed tokens"], loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(f"A GRPO step against {name}: prompts of {first['P']} tokens, rows of N = {first['N']}")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    options = common.parser(__doc__.splitlines()[0], RIVALS)
    options.add_argument("--G", type=int, nargs="+", help="samples of a prompt (8 16; quick: 8)")
    options.add_argument("--T", type=int, nargs="+", help="tokens of a completion (4 to 1,024; quick: 16)")
    options.add_argument("--prompts", type=int, help="prompts of a step (2; quick: 1)")
    options.add_argument("--num_variables", type=int, nargs="+", default=[5], choices=[2, 3, 4, 5], help="rows of N")
    options.add_argument("--prompt_tokens", type=int, default=350, help="take the premises nearest to this length")
    options.add_argument(
        "--claims_per_prefix", type=int, nargs="+", help="prompts that share a premise (1 4; quick: 1)"
    )
    lengths = "of completions: equal to T, varied between T/3 and T"
    options.add_argument("--lengths", nargs="+", default=["equal"], choices=["equal", "varied"], help=lengths)
    options.add_argument("--dataset", help="what a trained --model is to be sampled on, which ends its samples itself")
    options.add_argument("--figure", help="file to draw the ratios in")
    options.add_argument("--from_json", nargs="+", help="draw the figures of these files, measure nothing")
    options = options.parse_args()
    options.G = options.G or ([8] if options.quick else [8, 16])
    options.T = options.T or ([16] if options.quick else [4, 16, 64, 256, 512, 1024])
    options.claims_per_prefix = options.claims_per_prefix or ([1] if options.quick else [1, 4])
    options.prompts = options.prompts or (1 if options.quick else 2)
    if options.dataset:
        alone = options.rivals == ["trl"] and options.claims_per_prefix == [1]
        check(alone and options.model, "--dataset: of a trained --model, with --rivals trl --claims_per_prefix 1")
        options.lengths = ["own"]
    check(options.from_json is None or options.figure is not None, "--from_json only draws: name a file with --figure")
    if options.from_json:
        figures = {"rows": [row for path in options.from_json for row in json.loads(Path(path).read_text())["rows"]]}
    else:
        common.check_rivals(options.rivals)
        with common.bench(options) as where:
            figures = {"machine": common.machine(where, options.threads), "rows": []}
            grid = (options.num_variables, options.claims_per_prefix, options.lengths, options.G, options.T)
            for n, claims, lengths, g, t in product(*grid):
                point = Point(where, n, g, t, claims, lengths, options)
                rows = measure(point, options, figures["machine"]["matrix_rate"])
                figures["rows"] += rows
                print(common.table(rows), flush=True)
                common.write(figures, options.json)  # what a long run has so far
    if options.figure:
        draw(figures, options.figure)


if __name__ == "__main__":
    run_script(main)
