"""Sampling against a loop that runs the full model on one sequence at a time, and against the softmax itself."""

import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import VOCABULARY, build_model, padded_logps
from datasets import Dataset
from scipy.stats import chisquare

from causal.rows import generate_rows
from dataset.batches import share_of_rank
from dataset.chat import encode
from policy import branch_cache, sampling
from policy.branch_cache import BranchCache
from policy.prefix_sharing import as_bias, attend, sequence_logps
from policy.sampling import Completion, Decoding, Sampler, generate
from scoring import predictions
from scoring.predictions import Sample, majority, predict

STOPS = set(range(0, VOCABULARY, 9))


def random_prompts(seed: int = 0, count: int = 7) -> list[list[int]]:
    """Prompts of different lengths, two of them equal and one the beginning of another."""
    rng = random.Random(seed)
    shared = [rng.randrange(VOCABULARY) for _ in range(4)]
    prompts = [shared + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 6))] for _ in range(count)]
    return [*prompts, prompts[0], shared, [3]]


def windowed(window: int | None) -> torch.nn.Module:
    """A model whose layers see so many tokens back, or all."""
    model = build_model("phi3")
    for config in (model.config, *(layer.self_attn.config for layer in model.model.layers)):
        config.sliding_window = window
    return model


def generate_all(model, prompts: list, seeds: list | None = None, groups: int = 2, **options) -> list[Completion]:
    """`generate` on prompts cut into groups, its completions in the order of the prompts."""
    cut = lambda items: [items[g * len(items) // groups : (g + 1) * len(items) // groups] for g in range(groups)]  # noqa: E731
    return sum(generate(model, cut(prompts), seeds=None if seeds is None else cut(seeds), **options), [])


def naive_greedy(model, prompt: list[int], stop_ids: set[int], max_new_tokens: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_new_tokens:
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


def seeds_of(prompts: list) -> list[tuple[int, ...]]:
    return [(11, b) for b in range(len(prompts))]


def assert_drawn_from(observed: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square test of counts, tokens that are expected fewer than 5 times pooled into one."""
    frequent = expected >= 5
    assert frequent.sum() >= 4, "the distribution is too peaked to test"
    if expected[~frequent].sum() >= 1:
        observed, expected = (np.append(c[frequent], c[~frequent].sum()) for c in (observed, expected))
    else:
        observed, expected = observed[frequent], expected[frequent]
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@torch.no_grad()
def test_greedy_equals_a_naive_loop(family):
    lengths = []
    for seed in range(3):
        model, prompts = build_model(family, lora=seed == 2, seed=seed), random_prompts(seed)
        got = generate_all(model, prompts, stop_ids=STOPS, max_new_tokens=12)
        expected = [naive_greedy(model, prompt, STOPS, 12) for prompt in prompts]
        assert [completion.tokens for completion in got] == expected
        lengths += map(len, expected)
    assert min(lengths) < 12 and len(set(lengths)) > 2, "no test of sequences that stop at different times"


@torch.no_grad()
def test_a_completion_ends_at_its_first_stop_token_or_at_the_limit(family):
    model, prompts = build_model(family), random_prompts()
    completions = generate_all(
        model, prompts, stop_ids=STOPS, max_new_tokens=9, temperature=1.5, seeds=seeds_of(prompts)
    )
    assert {c.stopped for c in completions} == {True, False}
    for completion in completions:
        assert not STOPS.intersection(completion.tokens[:-1])
        assert completion.stopped == (completion.tokens[-1] in STOPS)
        assert completion.stopped or len(completion.tokens) == 9
        assert len(completion.logps) == len(completion.tokens)


@torch.no_grad()
def test_a_completion_ends_where_its_log_probabilities_are_not_finite(family):
    """As an overflow in half precision makes them: what follows would be nobody's choice. The others go on."""
    model, prompts, calls = build_model(family), random_prompts(), count(1)
    options = {"stop_ids": set(), "max_new_tokens": 6}
    whole = generate_all(model, prompts, groups=1, **options)

    def overflow(module, inputs, output):
        if next(calls) == 3:  # the first is of the prompts
            output[0, 1] = math.nan

    with model.lm_head.register_forward_hook(overflow):
        completions = generate_all(model, prompts, groups=1, **options)
    (broken,) = [completion for completion in completions if not completion.finite]
    assert len(broken.tokens) == 3 and not broken.stopped and math.isnan(broken.logps[-1])
    for one, undisturbed in zip(completions, whole, strict=True):
        assert undisturbed.finite and one.tokens[:2] == undisturbed.tokens[:2]
        assert one is broken or one.tokens == undisturbed.tokens


@torch.no_grad()
def test_samples_do_not_depend_on_the_batch_or_its_order(family):
    model, prompts = build_model(family), random_prompts()
    options = {"stop_ids": STOPS, "max_new_tokens": 10, "temperature": 1.2}
    seeds = seeds_of(prompts)
    together = [c.tokens for c in generate_all(model, prompts, seeds=seeds, **options)]
    alone = [
        generate_all(model, [p], seeds=[s], groups=1, **options)[0].tokens for p, s in zip(prompts, seeds, strict=True)
    ]
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    shuffled = generate_all(model, [prompts[b] for b in order], seeds=[seeds[b] for b in order], **options)
    assert together == alone
    assert [completion.tokens for completion in shuffled] == [together[b] for b in order]
    other = [c.tokens for c in generate_all(model, prompts, seeds=[(12, b) for b in range(len(prompts))], **options)]
    assert other != together


@torch.no_grad()
def test_a_longer_limit_continues_the_same_samples():
    model, prompts = build_model("phi3"), random_prompts()
    options = {"stop_ids": STOPS, "temperature": 1.0, "seeds": seeds_of(prompts)}
    short = generate_all(model, prompts, max_new_tokens=4, **options)
    long = generate_all(model, prompts, max_new_tokens=12, **options)
    assert [c.tokens for c in short] == [c.tokens[:4] for c in long]


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.4])
def test_logps_are_those_of_scoring(family, temperature):
    model, prompts = build_model(family, lora=True), random_prompts()
    completions = generate_all(
        model, prompts, stop_ids=STOPS, max_new_tokens=8, temperature=temperature, seeds=seeds_of(prompts)
    )
    tokens = [completion.tokens for completion in completions]
    packed, _, _ = sequence_logps(model, [prompts], [tokens], temperature or 1.0)
    padded, _ = padded_logps(model, prompts, tokens, temperature or 1.0)
    for b, completion in enumerate(completions):
        sampled = torch.tensor(completion.logps)
        for scored in (packed, padded):
            torch.testing.assert_close(sampled, scored[b, : len(sampled)], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.8, 2.0])
def test_frequencies_are_the_softmax(family, temperature):
    model, prompt, count = build_model(family), [5, 9, 2], 3000
    completions = generate_all(
        model, [prompt] * count, stop_ids=set(), max_new_tokens=1, temperature=temperature,
        seeds=[(0, b) for b in range(count)],
    )  # fmt: skip
    observed = np.bincount([c.tokens[0] for c in completions], minlength=VOCABULARY)
    expected = count * (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1).numpy()
    assert_drawn_from(observed, expected)


@torch.no_grad()
def test_later_tokens_are_drawn_from_their_own_context():
    """P(second token) summed over first tokens, which a reused random number would bend."""
    model, prompt, count = build_model("qwen2"), [5, 9, 2], 1500
    completions = generate_all(
        model, [prompt] * count, stop_ids=set(), max_new_tokens=2, temperature=2.0, seeds=[(1, b) for b in range(count)]
    )
    observed = np.bincount([c.tokens[1] for c in completions], minlength=VOCABULARY)
    first = (model(torch.tensor([prompt])).logits[0, -1].double() / 2.0).softmax(-1)
    contexts = torch.tensor([[*prompt, v] for v in range(VOCABULARY)])
    second = (model(contexts).logits[:, -1].double() / 2.0).softmax(-1)
    expected = count * (first @ second).numpy()
    assert_drawn_from(observed, expected)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_attention_and_its_sum_of_exponentials_are_those_written_out(dtype, tolerance, masked):
    torch.manual_seed(0)
    for x, h, y, z, d in ((3, 2, 5, 70, 8), (2, 4, 4, 4, 16), (5, 1, 1, 130, 32), (1, 3, 1, 1, 8)):
        tensors = [torch.randn(shape).to(dtype) for shape in ((x, h, y, d), (x, h, z, d), (x, h, z, d))]
        query, keys, values = (tensor.double() for tensor in tensors)
        scores, bias = query @ keys.transpose(2, 3) / d**0.5, None
        if masked:
            seen = torch.rand(x, 1, 1 if y == 5 else y, z) < 0.5
            seen[..., 0] = True
            bias = as_bias(seen, torch.device("cpu"))
            scores = scores.masked_fill(~seen, -torch.inf)
        expected = scores.softmax(-1) @ values, scores.logsumexp(-1)
        found = attend(*tensors, bias, d**-0.5)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_scores_are_not_rounded(dtype):
    """As those of a model whose queries and keys have large biases: a common part of -128, which changes nothing."""
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, 2, n, 16) for n in (3, 40, 40))
    query[..., 0], keys[..., 0] = 32.0, -16.0  # of 16 dimensions, so -128 by the scale of a quarter
    tensors = [tensor.to(dtype) for tensor in (query, keys, values)]
    found, total = attend(*tensors, None, 0.25)
    scores = tensors[0].double() @ tensors[1].double().transpose(2, 3) / 4
    rounded = scores.to(dtype).double().softmax(-1) @ tensors[2].double()
    exact = scores.softmax(-1) @ tensors[2].double()
    assert (found - exact).norm() < 0.2 * (rounded - exact).norm()
    torch.testing.assert_close(total.double(), scores.logsumexp(-1), rtol=1e-4, atol=0)


def test_sampling_in_train_mode_is_refused():
    model = build_model("phi3").train()
    with pytest.raises(AssertionError, match="eval mode"):
        generate_all(model, [[1, 2]], stop_ids=set(), max_new_tokens=1)


@torch.no_grad()
@pytest.mark.parametrize("cache_tokens", [1, 60, 10_000])
def test_groups_keep_their_order_at_any_budget(cache_tokens, tokenizer):
    model, prompts = build_model("phi3"), random_prompts()
    groups = [prompts[:1] * 3, prompts[1:5], prompts[5:]]
    seeds = [[(g, k) for k in range(len(group))] for g, group in enumerate(groups)]
    options = {"stop_ids": STOPS, "max_new_tokens": 6, "temperature": 1.0}
    got = Sampler(model, tokenizer, STOPS, 6, cache_tokens).sample(groups, 1.0, seeds)
    for group, group_seeds, completions in zip(groups, seeds, got, strict=True):
        alone = [
            generate_all(model, [p], seeds=[s], groups=1, **options)[0] for p, s in zip(group, group_seeds, strict=True)
        ]
        assert [c.tokens for c in completions] == [c.tokens for c in alone]
        assert [c.text for c in completions] == [tokenizer.decode(c.tokens, skip_special_tokens=True) for c in alone]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


def starve(model, most: int, error: BaseException) -> list[int]:
    """Let the model fail with more than `most` sequences in its cache; the sizes that it was asked for."""
    asked = []

    def refuse(module, args, options):
        if "branches" in options:
            asked.append(options["input_ids"].shape[1])
            if asked[-1] > most:
                raise error

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    return asked


@torch.no_grad()
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("most, share", [(3, True), (1, True), (3, False)])
def test_memory_that_runs_out_halves_the_cache_and_changes_no_sample(most, share, error, tokenizer, capsys):
    model, prompts = build_model("phi3"), random_prompts()
    groups = [prompts[:1] * 3, prompts[1:5], prompts[5:]]
    seeds = [[(g, k) for k in range(len(group))] for g, group in enumerate(groups)]
    expected = Sampler(model, tokenizer, set(), 6, 10_000, share).sample(groups, 1.0, seeds)
    sampler = Sampler(model.train(), tokenizer, set(), 6, 10_000, share)
    asked = starve(model, most, error)
    got = sampler.sample(groups, 1.0, seeds)
    assert [[c.tokens for c in group] for group in got] == [[c.tokens for c in group] for group in expected]
    assert model.training and max(asked) > most
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"out of memory in sampling: goes on with cache_tokens {sampler.cache_tokens}"
    failures = sum(size > most for size in asked)
    assert failures == len(lines)
    sampler.sample(groups, 1.0, seeds)
    assert sum(size > most for size in asked) == failures, "what was learned of the memory is kept"


@torch.no_grad()
def test_one_sequence_that_does_not_fit_is_an_error_with_its_remedy(tokenizer):
    model = build_model("phi3")
    asked = starve(model, 0, OUT_OF_MEMORY[0])
    with pytest.raises(ValueError, match="a single sequence of 9 tokens does not fit; lower max_new_tokens"):
        Sampler(model, tokenizer, set(), 6, 10_000).sample([[[1, 2], [1, 2, 3]], [[4]]], 1.0, [[(0,), (1,)], [(2,)]])
    assert asked[-1] == 1, "in the end one at a time was tried"


@torch.no_grad()
def test_other_errors_in_sampling_end_it(tokenizer):
    model = build_model("phi3")
    starve(model, 0, RuntimeError("expected all tensors on the same device"))
    with pytest.raises(RuntimeError, match="same device"):
        Sampler(model, tokenizer, set(), 6, 10_000).sample([[[1, 2]]])


@torch.no_grad()
@pytest.mark.parametrize("spare", [1, 4])  # with 1, what has stopped is held until others join
@pytest.mark.parametrize("every", [4, 20])  # tokens, of which one stops: hardly any completion, or nearly all, get long
@pytest.mark.parametrize("budget", [90, 140, 10_000])
def test_the_room_of_what_has_stopped_goes_to_what_waits(family, budget, every, spare, monkeypatch):
    """New sequences join those that are under way, within the budget, and change nothing of what those get."""
    model, prompts = build_model(family), random_prompts(count=9)
    groups = [prompts[:1] * 3 + prompts[1:6], prompts[6:8], prompts[8:10], prompts[10:]]
    monkeypatch.setattr(sampling, "JOIN", 2)
    monkeypatch.setattr(sampling, "SPARE", spare)
    seeds = [[(g, k) for k in range(len(group))] for g, group in enumerate(groups)]
    seen = []  # sequences under way when groups join
    add, grow = BranchCache.add, BranchCache.grow

    def watched_add(cache, *joining):
        seen.append(len(cache.rows))
        add(cache, *joining)

    def watched_grow(cache, lengths, counts, most):
        ((prefixes, width),) = {x.shape[:3:2] for pair in cache.prefixes.values() for x in pair}
        assert prefixes * width + len(cache.rows) * most <= budget
        grow(cache, lengths, counts, most)

    monkeypatch.setattr(BranchCache, "add", watched_add)
    monkeypatch.setattr(BranchCache, "grow", watched_grow)
    options = {"stop_ids": set(range(0, VOCABULARY, every)), "max_new_tokens": 20, "temperature": 1.0}
    got = generate(model, groups, seeds=seeds, cache_tokens=budget, **options)
    joined = sum(under_way > 0 for under_way in seen)
    assert (joined > 0 or every == 20) and (len(seen) > 1) if budget < 10_000 else len(seen) == 1
    monkeypatch.undo()
    for group, group_seeds, completions in zip(groups, seeds, got, strict=True):
        for prompt, seed, completion in zip(group, group_seeds, completions, strict=True):
            (alone,) = generate_all(model, [prompt], seeds=[seed], groups=1, **options)
            assert completion.tokens == alone.tokens and completion.logps == pytest.approx(alone.logps, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize(
    "budget, of_pass", [(math.inf, 4096), (math.inf, 20), (110, 4096), (110, 20), (70, 4096), (30, 9)]
)
def test_what_samples_draw_alike_is_computed_once_and_changes_nothing(budget, of_pass, window, monkeypatch):
    """Until they draw different tokens they are one row. A fork for which there is no room is prefilled later."""
    monkeypatch.setattr(sampling, "PREFILL", of_pass)
    model, (a, b, c) = windowed(window), random_prompts(count=9)[:3]
    groups = [[a] * 6, [b, c, b, *[c] * 5], [c[:3]] * 2 + [a[:2]]]
    seeds = [[(g, k) for k in range(len(group))] for g, group in enumerate(groups)]
    options = {"stop_ids": set(range(0, VOCABULARY, 20)), "max_new_tokens": 20, "temperature": 0.2, "seeds": seeds}
    rows, begun, room = [], [], []
    step, prefill, fork = Decoding._step, Decoding._prefill, BranchCache.fork

    def watched_step(decoding, drafts):
        rows.append(len(decoding.live))
        prefixes = next(iter(decoding.cache.prefixes.values()))[0]
        room.append(budget - len(decoding.live) * 20 - prefixes.shape[0] * prefixes.shape[2])
        return step(decoding, drafts)

    def watched_prefill(decoding, joining):
        begun.extend(len(branch.tokens) for part in joining for branch in part.branches if branch.tokens)
        trees = [sampling.pack([[branch.text for branch in part.branches]]) for part in joining]
        assert [len(tree) for tree in trees] == [part.texts[-1] for part in joining]
        assert sum(map(len, trees)) <= max(of_pass, len(joining[0].branches[0].text))
        return prefill(decoding, joining)

    def watched_fork(cache, sources, places, most):
        fork(cache, sources, places, most)
        held = {len(x) for pair in cache.own.values() for x in pair}
        assert len(held) == 1 and len(cache.rows) <= held.pop() <= most, "no more rows than there is room for"

    monkeypatch.setattr(Decoding, "_step", watched_step)
    monkeypatch.setattr(Decoding, "_prefill", watched_prefill)
    monkeypatch.setattr(BranchCache, "fork", watched_fork)
    got = generate(model, groups, cache_tokens=budget, **options)
    monkeypatch.undo()
    assert min(room) >= 0 or (budget == 30 and max(rows) == 1)
    if budget == math.inf:
        assert rows[0] < max(rows) - 3 and not begun
    else:
        assert begun, "no fork has waited for room"
    alone = generate(model, groups, fork=False, **options)
    for one, other in zip(sum(got, []), sum(alone, []), strict=True):
        assert (one.tokens, one.stopped) == (other.tokens, other.stopped)
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
    assert len({id(c.tokens) for group in got for c in group}) == sum(map(len, groups)), "each has a list of its own"


@torch.no_grad()
def test_greedy_samples_of_a_prompt_are_one_row(family, monkeypatch):
    model, prompts = build_model(family), random_prompts()
    expected = naive_greedy(model, prompts[0], STOPS, 12)
    rows, grow = [], BranchCache.grow
    monkeypatch.setattr(BranchCache, "grow", lambda cache, *rest: (rows.append(len(cache.rows)), grow(cache, *rest)))
    (got,) = generate(model, [prompts[:1] * 5], stop_ids=STOPS, max_new_tokens=12)
    assert [c.tokens for c in got] == [expected] * 5 and rows == [1] * (len(expected) - 1)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("budget", [math.inf, 110])
def test_a_draft_saves_steps_and_changes_nothing(budget, temperature, window, monkeypatch):
    """Whether it is what is sampled, begins or goes on like it, is another sample's, or nobody's text."""
    model, (a, b, c) = windowed(window), random_prompts(count=9)[:3]
    groups = [[a] * 4, [b, c, b, *[c] * 3], [c[:3]] * 2]
    seeds = [[(g, k) for k in range(len(group))] for g, group in enumerate(groups)]
    options = {"stop_ids": set(range(0, VOCABULARY, 20)), "max_new_tokens": 20, "temperature": temperature}
    options |= {"seeds": seeds, "cache_tokens": budget}
    steps, step = [], Decoding._step
    monkeypatch.setattr(Decoding, "_step", lambda decoding, drafts: (steps.append(drafts), step(decoding, drafts))[1])

    def generated(**more) -> tuple[list[list[Completion]], int]:
        steps.clear()
        return generate(model, groups, **options, **more), len(steps)

    plain, plain_steps = generated()
    rng = random.Random(1)
    its_own = [[list(one.tokens) for one in group] for group in plain]
    first_of_prompt = [[its_own[g][group.index(prompt)] for prompt in group] for g, group in enumerate(groups)]
    drafts = {
        "its own": its_own,
        "of another sample": first_of_prompt,
        "with another token in the midst": [[t[:9] + [rng.randrange(VOCABULARY)] + t[10:] for t in g] for g in its_own],
        "with a token less": [[t[:5] + t[6:] for t in group] for group in its_own],
        "beginning later": [[t[4:] for t in group] for group in its_own],
        "none": [[[] for _ in group] for group in its_own],
        "nobody's": [[[rng.randrange(VOCABULARY) for _ in range(30)] for _ in group] for group in its_own],
    }
    for drafted in (3, 128):
        monkeypatch.setattr(sampling, "DRAFTED", drafted)
        for name, texts in drafts.items():
            # With a row of its own each sequence has a draft of its own.
            got, taken = generated(drafts=texts, fork=name == "of another sample")
            for one, other in zip(sum(got, []), sum(plain, []), strict=True):
                assert (one.tokens, one.stopped) == (other.tokens, other.stopped), name
                assert one.logps == pytest.approx(other.logps, abs=1e-4)
            assert max(sum(1 + len(draft) for draft in of_step) for of_step in steps) <= max(drafted, 12)
            if drafted == 128 and budget == math.inf and name == "its own":
                assert taken < 0.3 * plain_steps


# --- predictions


@pytest.fixture(scope="module")
def rows(tokenizer):
    """A few rows of several premises, mixed so that grouping by premise reorders them."""
    rows = random.Random(0).sample(list(generate_rows(3)), 10)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["input"]}], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    columns = ("input", "label", "premise_id", "structure_id", "num_variables", "template")
    return Dataset.from_list([{k: r[k] for k in columns} | {"prompt": p} for r, p in zip(rows, prompts, strict=True)])


def prompts_of(tokenizer, rows) -> list[list[int]]:
    return [encode(tokenizer, text) for text in rows["prompt"]]


@torch.no_grad()
def test_predictions_are_in_the_order_of_the_rows(tokenizer, rows):
    model = build_model("phi3", vocab_size=len(tokenizer))
    model.config.max_position_embeddings = 512
    stop_ids = set(range(0, len(tokenizer), 13))
    sampler = Sampler(model.train(), tokenizer, stop_ids, max_new_tokens=6, cache_tokens=150)
    got = predict(Accelerator(cpu=True), sampler, rows, prompts_of(tokenizer, rows))
    assert model.training, "training goes on in the mode it was in"
    model.eval()
    for row, result in zip(rows, got, strict=True):
        tokens = naive_greedy(model, encode(tokenizer, row["prompt"]), stop_ids, 6)
        assert result["completion"] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert result["stopped"] == (tokens[-1] in stop_ids)
        assert {k: result[k] for k in ("input", "label", "premise_id")} == {
            k: row[k] for k in ("input", "label", "premise_id")
        }


@torch.no_grad()
def test_predictions_read_the_answer(tokenizer, rows):
    model = build_model("phi3", vocab_size=len(tokenizer))

    class Decoder:
        """The tokenizer, except that whatever the model writes reads as `text`."""

        def __init__(self, text):
            self.text = text

        def decode(self, tokens, **options):
            return self.text

    for text, prediction in (("Answer: Yes", 1), ("Answer: No", 0), ("Perhaps.", None)):
        sampler = Sampler(model, Decoder(text), {0}, max_new_tokens=1, cache_tokens=10_000)
        got = predict(Accelerator(cpu=True), sampler, rows, prompts_of(tokenizer, rows))
        assert [result["prediction"] for result in got] == [prediction] * len(rows)


# --- several samples of a row


@pytest.fixture(scope="module")
def model(tokenizer) -> torch.nn.Module:
    model = build_model("phi3", vocab_size=len(tokenizer))
    model.config.max_position_embeddings = 512
    return model


SAMPLES = 3


@pytest.fixture
def sampled(model, tokenizer, rows):
    """`predict` with SAMPLES completions of 4 tokens; their texts row by row. Any option can be another."""

    def sampled(accelerator=None, rows=rows, **options) -> list[list[str]]:
        options = {"num_samples": SAMPLES, "temperature": 1.2, "seed": 7} | options
        budgets = {"max_new_tokens": 4, "cache_tokens": options.pop("cache_tokens", 10_000)}
        stop_ids = set(range(0, len(tokenizer), 13))
        sampler = Sampler(model, tokenizer, stop_ids, share=options.pop("share", True), **budgets)
        got = predict(accelerator or Accelerator(cpu=True), sampler, rows, prompts_of(tokenizer, rows), **options)
        assert [result["input"] for result in got] == rows["input"][:]
        return [result["completions"] for result in got]

    return sampled


@pytest.fixture(scope="module")
def alone(model, tokenizer, rows) -> list[list[str]]:
    """What `sampled` must give: every sample from a batch of its own, with the random stream (seed, row, sample)."""
    texts = []
    for index, prompt in enumerate(rows["prompt"]):
        options = {"stop_ids": set(range(0, len(tokenizer), 13)), "max_new_tokens": 4, "temperature": 1.2}
        alone = [
            generate(model, [[encode(tokenizer, prompt)]], seeds=[[(7, index, k)]], **options)[0][0]
            for k in range(SAMPLES)
        ]
        texts.append([tokenizer.decode(completion.tokens, skip_special_tokens=True) for completion in alone])
    return texts


@pytest.mark.parametrize(
    "options", [{}, {"cache_tokens": 150}, {"cache_tokens": 1}, {"share": False}, {"cache_tokens": 40, "share": False}]
)
def test_samples_do_not_depend_on_the_cache_nor_on_grouping(sampled, alone, options):
    assert sampled(**options) == alone
    assert all(len(set(texts)) > 1 for texts in alone), "the samples of a row must differ"


def test_samples_do_not_depend_on_the_number_of_ranks(sampled, alone, monkeypatch):
    """Two threads stand for the processes, and hand over their samples where `gather` would."""
    parts, meet = {}, Barrier(2, timeout=60)

    def gather(accelerator, items: list) -> list:
        parts[accelerator.process_index] = items
        meet.wait()
        return parts[0] + parts[1]

    monkeypatch.setattr(predictions, "gather", gather)
    ranks = [SimpleNamespace(process_index=rank, num_processes=2) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(sampled, ranks)) == [alone, alone]
    assert sum(map(len, parts.values())) == SAMPLES * len(alone) and all(parts.values())


def test_samples_are_named_by_seed_row_and_sample(sampled, rows):
    three = sampled()
    assert [texts[:SAMPLES] for texts in sampled(num_samples=5)] == three, "more samples begin with the same ones"
    assert sampled(rows=rows.select(range(4))) == three[:4]
    assert sampled(seed=8) != three != sampled(temperature=0.8)


@pytest.fixture
def groups_of(sampled, monkeypatch):
    """Sizes, in sequences, and costs of the groups that `predict` divides among ranks."""
    seen = []

    def share(groups, rank, world_size, cost) -> list[list[int]]:
        seen[:] = [list(map(len, groups)), list(map(cost, groups))]
        return share_of_rank(groups, rank, world_size, cost)

    monkeypatch.setattr(predictions, "share_of_rank", share)
    return lambda **options: sampled(**options) and seen


def test_groups_are_limited_in_sequences(groups_of, rows):
    most = max(Counter(rows["premise_id"]).values())
    assert max(groups_of(num_samples=2)[0]) == 2 * most > 3, "the samples of a premise stand together where they fit"
    assert groups_of(num_samples=2, cache_tokens=24)[0] == groups_of(num_samples=2)[0], (
        "ranks may differ in their cache"
    )
    assert max(groups_of(num_samples=70)[0]) == predictions.ROWS_PER_GROUP


def test_a_sample_costs_its_own_tokens_and_no_prompt(groups_of, rows):
    assert sum(groups_of(num_samples=5)[1]) - sum(groups_of(num_samples=2)[1]) == len(rows) * 3 * 4


def test_a_sharp_distribution_gives_the_greedy_answer(model, tokenizer, rows):
    asked = (Accelerator(cpu=True), Sampler(model, tokenizer, {0}, 4, 200), rows, prompts_of(tokenizer, rows))
    greedy = predict(*asked)
    sharp = predict(*asked, num_samples=3, temperature=1e-5)
    assert [result["completions"] for result in sharp] == [[result["completion"]] * 3 for result in greedy]
    assert [{key: result[key] for key in greedy[0]} for result in sharp] == greedy


YES, NO, MAYBE = "Answer: Yes", "Answer: No", "Perhaps."


@pytest.mark.parametrize(
    ("texts", "prediction", "completion", "votes"),
    [
        ([YES, NO, "Yes."], 1, 0, [1, 2, 0]),
        ([YES, NO, "No."], 0, 1, [2, 1, 0]),
        ([MAYBE, MAYBE, MAYBE, NO], 0, 3, [1, 0, 3]),  # who does not answer does not vote
        ([MAYBE, YES, NO], None, 0, [1, 1, 1]),
        ([YES, NO, NO, YES], None, 0, [2, 2, 0]),
        ([YES, MAYBE, NO], None, 1, [1, 1, 1]),
        ([MAYBE, ""], None, 0, [0, 0, 2]),
        (["Answer: Yes or No", YES], 1, 1, [0, 1, 1]),
    ],
)
def test_the_majority_by_hand(texts, prediction, completion, votes):
    expected = {"prediction": prediction, "completion": texts[completion], "votes": votes, "completions": texts}
    assert majority([Sample(text) for text in texts]) == expected | {"stopped": True}
    for cut in range(len(texts)):
        assert majority([Sample(text, k != cut) for k, text in enumerate(texts)]) == expected | {"stopped": False}
        broken = [Sample(text, finite=k != cut) for k, text in enumerate(texts)]
        assert majority(broken) == expected | {"stopped": True, "finite": False}
    for text, answer in ((YES, 1), (NO, 0), (MAYBE, None)):
        assert majority([Sample(text)]) == {"prediction": answer, "completion": text, "stopped": True}


@torch.no_grad()
@pytest.mark.parametrize("seed", range(40))
def test_neither_cache_nor_passes_nor_drafts_change_a_sample(seed, monkeypatch):
    """Random groups of prompts that share beginnings, in any room, with any drafts, against a row for each sequence."""
    draw = random.Random(seed)
    for name, sizes in {
        "PREFILL": [5, 20, 4096],
        "JOIN": [1, 2, 8],
        "SPARE": [1, 4],
        "ALIKE": [1, 4],
        "DRAFT": [1, 16],
    }.items():
        monkeypatch.setattr(sampling, name, draw.choice(sizes))
    monkeypatch.setattr(sampling, "DRAFTED", draw.choice([4, 32, 128]))
    monkeypatch.setattr(branch_cache, "BLOCK", draw.choice([1, 4, 64]))
    model = draw.choice([windowed(draw.choice([None, 4, 8])), build_model("phi3").eval(), build_model("qwen2").eval()])
    groups = []
    for _ in range(draw.randint(1, 6)):
        start, behind = ([draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 12))] for _ in range(2))
        alike = [start, start[: max(1, len(start) // 2)], start + behind, start + behind[:1]][: draw.randint(1, 4)]
        groups.append([draw.choice(alike) for _ in range(draw.randint(1, 8))])
    seeds = [[(g, k) for k in range(len(group))] for g, group in enumerate(groups)]
    options = {"stop_ids": set(range(0, VOCABULARY, draw.choice([5, 20, 1000]))), "max_new_tokens": draw.randint(1, 24)}
    options |= {"temperature": draw.choice([0.0, 0.1, 0.3, 1.0]), "seeds": seeds}
    expected = generate(model, groups, fork=False, **options)
    drafts = []
    for group, completions in zip(groups, expected, strict=True):
        text = draw.choice(completions).tokens
        drafts.append([draw.choice([[], text, text[len(text) // 2 :], text[::-1], text * 3])] * len(group))
    got = generate(model, groups, cache_tokens=draw.choice([math.inf, 1, 30, 60, 120, 250]), drafts=drafts, **options)
    for one, other in zip(sum(got, []), sum(expected, []), strict=True):
        assert (one.tokens, one.stopped) == (other.tokens, other.stopped)
        assert one.logps == pytest.approx(other.logps, abs=2e-4)
