"""The rows of an epoch with the letters of every premise exchanged: the same questions, asked in other letters."""

from typing import TYPE_CHECKING

from causal.reasoning import trace
from causal.rows import perturb
from causal.wording import parse_claim, write_input
from dataset.reading import data_config
from runtime.settings import check

if TYPE_CHECKING:
    from datasets import Dataset


def trace_style(directory: str) -> str | None:
    """The style of the dataset's traces; None if its responses are answers alone.

    Raises ValueError if they are neither: letters in a teacher's free text cannot be told from words.
    """
    config = data_config(directory, "relabel_each_epoch", "use relabel_each_epoch false")
    check(config["target"] != "teacher", "relabel_each_epoch: not for target teacher; use target answer or trace")
    return config["trace_style"] if config["target"] == "trace" else None


def relabel_rows(rows: "Dataset", style: str | None, seed: int, epoch: int) -> dict[str, list[str]]:
    """Columns prompt, response, premise, hypothesis and input with the letters of every premise exchanged at random.

    A function of (seed, epoch, premise): rows of one premise stay together, and an epoch repeats itself. Labels stay;
    a trace of `style` is written anew. Raises ValueError for a row whose prompt or response has other text in it.
    """
    columns: dict[str, list[str]] = {name: [] for name in ("prompt", "response", "premise", "hypothesis", "input")}
    for row in rows:
        check(row["input"] in row["prompt"], f"relabel_each_epoch: the prompt does not hold its input {row['input']!r}")
        premise, claim = parse_claim(row["premise"], row["hypothesis"])
        key = f"{seed}-{epoch}-{row['premise_id']}"
        text, hypothesis = perturb(premise, claim, row["template"], "relabeling", key)
        response = row["response"]
        if style is not None:
            old = trace(premise, claim, style)
            check(old in response, f"relabel_each_epoch: the response to {row['input']!r} is not its trace")
            response = response.replace(old, trace(*parse_claim(text, hypothesis), style))
        columns["input"].append(write_input(text, hypothesis))
        columns["prompt"].append(row["prompt"].replace(row["input"], columns["input"][-1]))
        columns["response"].append(response)
        columns["premise"].append(text)
        columns["hypothesis"].append(hypothesis)
    return columns
