"""Scores as text, in plain ASCII: what evaluate.py prints, and what report.html begins with."""

from collections.abc import Iterable, Mapping, Sequence

from scoring.metrics import BASELINE_NAMES, COMPARED_SCORES, grouped_summaries
from scoring.probabilities import PROBABILITY_SCORES

LOW_MASS = 0.5  # below it, the two answers are not what the model would say


def result_lines(results: dict) -> list[str]:
    """The scores of one model as text."""
    groups = [(f"  {label}", summary) for label, summary in grouped_summaries(results).items()]
    lines = [score_table(results["baselines"], [(results["name"], results["overall"]), *groups[1:]])]
    changes = {split: part for split, part in results.get("by_split", {}).items() if "difference" in part}
    if changes:
        first = next(iter(results["by_split"]))
        cells = [["difference", *COMPARED_SCORES.values()]]
        for split, part in changes.items():
            pair = {"difference": part["difference"], "intervals": part["difference_intervals"]}
            cells.append([f"{split} - {first}", *(_difference(pair, score) for score in COMPARED_SCORES)])
        lines.append("\n" + align(cells))
    if results["overall"]["means"]:
        lines.append("\n" + means_table([(results["name"], results["overall"]), *groups[1:]]))
    lines.append(
        f"intervals: {results['confidence']:.0%}, from {results['num_clusters']} clusters ({results['cluster']})"
    )
    if "given_labels" in results:
        lines.append(ceiling_line(results["given_labels"]))
    if "calibration" in results:
        lines += probability_lines(results)
    if "agreement" in results:
        samples = f"{results['num_samples']} samples a row at temperature {results['temperature']:g}"
        lines.append(f"{samples}: {results['agreement']:.1%} of them give their row's more frequent answer")
    if results.get("truncated_rate", 0) > 0:
        lines.append(
            f"{results['truncated_rate']:.1%} of rows have a completion cut at max_new_tokens; raise it if many do"
        )
    if "not_finite_rate" in results:
        lines.append(
            f"{results['not_finite_rate']:.1%} of rows have no answer by the model: log-probabilities are not finite "
            f"in {results['dtype']}; set dtype float32"
        )
    return lines


def ceiling_line(labels: dict) -> str:
    which = "these labels" if labels["scored"] else "the labels as given (the scores are on exact ones)"
    scores = f"F1 {labels['f1']:.3f} and accuracy {labels['accuracy']:.3f}"
    return f"a perfect reasoner has {scores} on {which}: {labels['wrong']:,} of {labels['rows']:,} are wrong"


def probability_lines(results: dict) -> list[str]:
    overall, bins = results["overall"], results["calibration"]
    entries = [("share of Yes, for every row", results["constant_probability"]), (results["name"], overall)]
    lines = ["\n" + format_probability_table(entries)]
    if "note" in overall:
        lines.append(overall["note"])
    means = [sum(part["n"] * part[key] for part in bins) / overall["n"] for key in ("mean_probability", "frequency")]
    lines.append(
        "calibration: mean probability of Yes {:.1%}, share of Yes {:.1%}; calibration.png by bins".format(*means)
    )
    mass = results["answer_mass"]
    if mass < LOW_MASS:
        lines.append(f"the model says one of the two answers with probability {mass:.1%}: the rest is not scored")
    return lines


def comparison_lines(comparison: dict) -> list[str]:
    """A comparison as text."""
    lines = [score_table(comparison["baselines"], [(model["name"], model) for model in comparison["models"]])]
    pairs = [(" - ".join(pair["names"][::-1]), pair) for pair in comparison["pairs"]]
    cells = [["difference", *COMPARED_SCORES.values(), "McNemar p"]]
    for label, pair in pairs:
        differences = [_difference(pair, score) for score in COMPARED_SCORES]
        cells.append([label, *differences, f"{pair['mcnemar']['p_value']:.2g}"])
    lines.append("\n" + align(cells))
    relations = list(pairs[0][1]["by_relation"])
    if len(relations) > 1:
        cells = [["difference of F1", *relations]]
        for label, pair in pairs:
            cells.append([label, *(_difference(pair["by_relation"][name], "f1") for name in relations)])
        lines.append("\n" + align(cells))
    alike: dict[tuple, list] = {}  # pairs that have the same means
    for label, pair in pairs:
        alike.setdefault(tuple(pair["means"]), []).append((label, pair))
    lines += ["\n" + means_table(of_these, "+.3f") for names, of_these in alike.items() if names]
    scored = [(label, pair) for label, pair in pairs if "brier" in pair["difference"]]
    if scored:
        cells = [["difference", *PROBABILITY_SCORES.values()]]
        cells += [[label, *(_difference(pair, score) for score in PROBABILITY_SCORES)] for label, pair in scored]
        lines.append("\n" + align(cells))
    if "given_labels" in comparison:
        lines.append(ceiling_line(comparison["given_labels"]))
    lines.append(
        f"intervals: {comparison['confidence']:.0%}, paired, from {comparison['num_clusters']} clusters "
        f"({comparison['cluster']}); McNemar's exact test takes rows as independent: trust the intervals"
    )
    return lines


def _difference(pair: dict, score: str) -> str:
    if pair["intervals"].get(score) is None:
        return "none"
    low, high = pair["intervals"][score]
    return f"{pair['difference'][score]:+.3f} [{low:+.3f}, {high:+.3f}]"


# --- tables


def score_table(constants: dict[str, dict], entries: list[tuple[str, dict]]) -> str:
    """The constant answers, then the entries, each (name, scores)."""
    return format_table([*((BASELINE_NAMES[key], scores) for key, scores in constants.items()), *entries])


def format_table(entries: Iterable[tuple[str, Mapping]]) -> str:
    """A plain text table, a line for each (name, metrics of `classification_metrics`); `intervals` are optional."""
    header = ("", "F1", "balanced acc.", "accuracy", "MCC", "unanswered")
    return align([header, *(_table_line(name, scores) for name, scores in entries)])


def format_probability_table(entries: Iterable[tuple[str, Mapping]]) -> str:
    """A plain text table, a line for each (name, metrics of `probability_metrics`); `intervals` are optional."""
    header = ("", *PROBABILITY_SCORES.values())
    lines = [(name, *(_with_interval(scores, s) for s in PROBABILITY_SCORES)) for name, scores in entries]
    return align([header, *lines])


def means_table(entries: Sequence[tuple[str, Mapping]], number: str = ".3f") -> str:
    """A plain text table of the `means` of the entries, each (name, summary), with their intervals."""
    names = list(entries[0][1]["means"])
    lines = [["", *(name.replace("_", " ") for name in names)]]
    for label, summary in entries:
        lines.append([label, *(_mean(summary["means"].get(name), number) for name in names)])
    return align(lines)


def _mean(score: Mapping | None, number: str) -> str:
    """A mean in its interval; of rows that have none, a word."""
    if score is None:
        return "none"
    spread = score["interval"]  # none where no resample had a row
    return f"{score['mean']:{number}}" + (f" [{spread[0]:{number}}, {spread[1]:{number}}]" if spread else "")


def align(lines: Sequence[Sequence[str]]) -> str:
    """The lines' cells as text, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _with_interval(scores: Mapping, score: str) -> str:
    if scores[score] is None:
        return "none"
    interval = scores.get("intervals", {}).get(score)
    return f"{scores[score]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _table_line(name: str, scores: Mapping) -> tuple[str, ...]:
    return (
        name,
        _with_interval(scores, "f1"),
        _with_interval(scores, "balanced_accuracy"),
        f"{scores['accuracy']:.3f}",
        f"{scores['mcc']:.3f}",
        f"{scores['unanswered_rate']:.1%}",
    )
