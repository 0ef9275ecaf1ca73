"""A model's answers to the rows of a dataset, on all processes: sampled ones, or how probable each is."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate import Accelerator

from causal.answers import extract_answer
from causal.graphs import Corr2CauseError
from causal.reasoning import check_trace
from causal.wording import parse_input
from dataset.batches import premise_groups, share_of_rank
from policy.prefix_sharing import Tokens, alone, pack, plan_micro_batches, sequence_logps
from policy.sampling import Sampler
from runtime.processes import gather
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset

ROWS_PER_GROUP = 64  # claims of a premise, or their samples, that share its tokens: few enough to divide among ranks
RESULT_COLUMNS = ("input", "label", "premise_id", "structure_id", "num_variables", "template")


class Sample(NamedTuple):
    """A completion as it is judged: its text, whether it stopped, whether its log-probabilities are finite."""

    text: str
    stopped: bool = True
    finite: bool = True


def complete(
    accelerator: Accelerator,
    sampler: Sampler,
    prompts: list[Tokens],
    premise_ids: Sequence[str],
    num_samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[Sample]]:
    """`num_samples` completions of every prompt: each rank writes its share, every rank gets all.

    Prompts of one premise share its tokens. The random stream of a sample is named by (seed, row, sample), so neither
    grouping nor the number of ranks changes what is sampled.
    """
    # Sequence s is sample s % num_samples of row s // num_samples: neighbours in a group, which share a prefill.
    premises = [premise for premise in premise_ids for _ in range(num_samples)]
    # The same on every rank, whatever its cache: the sampler cuts what does not fit.
    groups = premise_groups(premises, ROWS_PER_GROUP)

    def cost(group: list[int]) -> int:
        held = {s // num_samples for s in group}
        return len(pack([[prompts[index] for index in held]])) + len(group) * sampler.max_new_tokens

    mine = share_of_rank(groups, accelerator.process_index, accelerator.num_processes, cost)
    completions = sampler.sample(
        [[prompts[s // num_samples] for s in group] for group in mine],
        temperature,
        [[(seed, *divmod(s, num_samples)) for s in group] for group in mine],
    )
    found = [
        (s, (completion.text, completion.stopped, completion.finite))
        for group, group_completions in zip(mine, completions, strict=True)
        for s, completion in zip(group, group_completions, strict=True)
    ]
    samples = [Sample(*values) for _, values in sorted(gather(accelerator, found))]
    return [samples[s : s + num_samples] for s in range(0, len(samples), num_samples)]


def predict(
    accelerator: Accelerator,
    sampler: Sampler,
    rows: "Dataset",
    prompts: list[Tokens],
    check_traces: bool = False,
    **sampling,
) -> list[dict]:
    """Answers to every row, whose prompts are `prompts`; the options of `sampling` are those of `complete`.

    The prediction is the `majority` of the row's completions. Each result has what metrics.py reads (`input`, `label`,
    `prediction` 0|1|None, `premise_id`, `structure_id`, `num_variables`, `template`), what `majority` tells, and
    `means` where there are any: `sample_means`, and with `check_traces` exact_trace, the share of the row's completions
    in which every step is right and none is missing (None where there is no trace).
    """
    samples = complete(accelerator, sampler, prompts, rows["premise_id"], **sampling)
    results = []
    for row, of_row in zip(rows.select_columns(list(RESULT_COLUMNS)), samples, strict=True):
        means = sample_means(row["label"], of_row)
        if check_traces:
            exact = [is_exact(sample.text, row["input"]) for sample in of_row]
            means["exact_trace"] = None if None in exact else sum(exact) / len(exact)
        results.append(row | majority(of_row) | ({"means": means} if means else {}))
    return results


def is_exact(completion: str, question: str) -> bool | None:
    """Whether every sentence of the completion is a right step of the exact trace, and no step is missing; None where
    there is no trace, since no graph satisfies the premise or it leaves open which."""
    try:
        return check_trace(completion, *parse_input(question)).complete
    except Corr2CauseError:
        return None


def sample_means(label: int, samples: list[Sample]) -> dict[str, float]:
    """pass@k of a row's n samples, for k = 1, 2, 4, ... up to n; nothing of a single one.

    The chance that of k samples drawn without replacement from the n some are right: 1 - C(n - c, k) / C(n, k) where c
    are right (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    n, right = len(samples), sum(extract_answer(sample.text) is bool(label) for sample in samples)
    ks = [2**power for power in range(n.bit_length()) if n > 1]
    return {f"pass@{k}": 1 - math.comb(n - right, k) / math.comb(n, k) for k in ks}


def majority(samples: list[Sample]) -> dict:
    """What the samples of a row answer together: self-consistency (arXiv 2203.11171).

    `prediction` is the answer that more of them give than the other; None after a tie, or where none of them answers.
    `completion` is the first text with that answer, the first of all if there is none; `stopped` says that no sample
    was cut; `finite` is there, and false, where the log-probabilities of one were not. Of several samples also `votes`,
    how many say No, say Yes and give no answer, and `completions`, the texts.
    """
    texts, stopped, finite = zip(*samples, strict=True)
    answers = [extract_answer(text) for text in texts]
    no, yes, unanswered = (answers.count(answer) for answer in (False, True, None))
    prediction = None if no == yes else int(yes > no)
    completion = texts[answers.index(prediction)] if prediction in answers else texts[0]
    result = {"prediction": prediction, "completion": completion, "stopped": all(stopped)}
    result |= {} if all(finite) else {"finite": False}
    return result | ({"votes": [no, yes, unanswered], "completions": list(texts)} if len(samples) > 1 else {})


def not_finite(results: Sequence[dict]) -> dict[str, float]:
    """`not_finite_rate`, the share of results of `predict` that are marked so; nothing if none is."""
    count = sum(not row.get("finite", True) for row in results)
    return {"not_finite_rate": count / len(results)} if count else {}


@torch.no_grad()
def score_answers(
    accelerator: Accelerator,
    model: torch.nn.Module,
    rows: "Dataset",
    prompts: list[Tokens],
    answers: list[tuple[Tokens, Tokens]],
    *,
    micro_batch_tokens: int,
    threshold: float = 0.5,
    share: bool = True,
) -> list[dict]:
    """How probable the model finds No and Yes as answers to the rows, whose prompts are `prompts`; nothing is sampled.

    `answers[i]` is (No, Yes) as row i's response would write it, the end of the turn included. Ranks share the rows as
    in `predict`. Each result has the columns that metrics.py reads, `logp_no` and `logp_yes`, in nats, the sums over an
    answer's tokens given the prompt, `probability` of Yes if it is one of the two, sigmoid(logp_yes - logp_no), and
    `prediction`, 1 where that is more than `threshold`. Raises ValueError, naming the row, for log-probabilities that
    are not finite.
    """

    def sequences(group: list[int]) -> list[Tokens]:
        return [prompts[index] + answer for index in group for answer in answers[index]]

    def cost(group: list[int]) -> int:
        return len(pack([sequences(group)]))

    groups = premise_groups(rows["premise_id"], ROWS_PER_GROUP)
    mine = share_of_rank(groups, accelerator.process_index, accelerator.num_processes, cost)
    mine = [part for group in mine for part in _halved(group, cost, micro_batch_tokens)] if share else alone(mine)
    was_training = model.training
    model.eval()
    found: list[tuple[int, float, float]] = []  # row, logp_no, logp_yes
    for batch in plan_micro_batches([sequences(group) for group in mine], micro_batch_tokens, share):
        logps, _, _ = sequence_logps(
            model,
            [[prompts[index] for index in mine[g] for _ in answers[index]] for g in batch],
            [[answer for index in mine[g] for answer in answers[index]] for g in batch],
            share=share,
        )  # (B, T), No and Yes of a row side by side
        pairs = logps.double().sum(-1).view(-1, 2).tolist()
        found += [(index, *pair) for index, pair in zip((i for g in batch for i in mine[g]), pairs, strict=True)]
    model.train(was_training)
    results = []
    for index, logp_no, logp_yes in sorted(gather(accelerator, found)):
        check(
            math.isfinite(logp_no) and math.isfinite(logp_yes),
            f"row {index}: the log-probabilities of its answers are not finite in {model.dtype}; set dtype float32",
        )
        probability = torch.tensor(logp_yes - logp_no, dtype=torch.float64).sigmoid().item()
        row = {name: rows[index][name] for name in RESULT_COLUMNS}
        scores = {"probability": probability, "logp_yes": logp_yes, "logp_no": logp_no}
        results.append({**row, "prediction": int(probability > threshold), **scores})
    return results


def _halved(group: list[int], size: Callable[[list[int]], int], limit: int) -> list[list[int]]:
    """The group in halves, quarters and so on until each part's `size` is at most `limit`, or the part is one row."""
    if len(group) == 1 or size(group) <= limit:
        return [group]
    half = len(group) // 2
    return _halved(group[:half], size, limit) + _halved(group[half:], size, limit)
