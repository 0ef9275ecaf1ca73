"""The figures of an evaluation."""

from collections import Counter

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scoring import metrics

BASELINE_STYLES = {"always_yes": ("#D55E00", "--", 3), "majority": ("black", ":", 1.5)}  # colour, line, width (points)
PUBLISHED = {"GPT-4": 0.291, "RoBERTa-Large MNLI, fine-tuned": 0.947}  # F1
PUBLISHED_NOTE = (
    "published: arXiv 2306.05836, on its first test set of 2,246 rows with the released labels (on those of the 1,162 "
    "rows of the present one, 18 of which are wrong, a perfect reasoner has F1 0.952)"
)
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
LEGEND = {"loc": "outside lower center", "ncols": 3, "frameon": False}  # below the panels, where it hides nothing
MARKERS = ("o", "s", "^", "D", "v")


def plain(name: str) -> str:
    """The name as it is, where matplotlib would read mathematics between dollar signs."""
    return name.replace("$", r"\$")


def confusion_figure(rows: list[dict], title: str) -> Figure:
    """Rows by label (down) and answer (across): counts, and shares of each label's rows."""
    count = Counter((row["label"], row["prediction"]) for row in rows)
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    ax = figure.subplots()
    for label in (0, 1):
        total = max(1, sum(count[label, answer] for answer in (0, 1, None)))
        for x, answer in enumerate((0, 1, None)):
            share = count[label, answer] / total
            ax.add_patch(Rectangle((x - 0.5, label - 0.5), 1, 1, facecolor=str(1 - 0.6 * share), edgecolor="white"))
            ax.text(x, label, f"{count[label, answer]:,}\n{share:.1%} of label", ha="center", va="center")
    ax.set(xticks=range(3), xticklabels=("No", "Yes", "no answer"), xlabel="prediction", xlim=(-0.5, 2.5))
    ax.set(yticks=range(2), yticklabels=("No", "Yes"), ylabel="label", ylim=(1.5, -0.5), title=plain(title))
    return figure


def score_figure(models: dict[str, dict[str, dict]], confidence: float, title: str) -> Figure:
    """F1 and balanced accuracy with intervals, by group of rows and model, beside what constant answers score there.

    `models` maps a model's name to its `metrics.grouped_summaries`, of which those are drawn that all of them have.
    """
    first = next(iter(models.values()))
    groups = [label for label in first if all(label in summaries for summaries in models.values())]
    ys = np.arange(len(groups))
    matrices = [first[label]["confusion_matrix"] for label in groups]
    constants = [metrics.baselines([0] * sum(negative) + [1] * sum(positive)) for negative, positive in matrices]
    figure = Figure(figsize=(9, 2.2 + (0.22 + 0.16 * len(models)) * len(groups)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, score in zip(panels, ("f1", "balanced_accuracy"), strict=True):
        for key, (colour, line, width) in BASELINE_STYLES.items():
            values = [scores[key][score] for scores in constants]
            ax.vlines(values, ys - 0.5, ys + 0.5, colour, line, label=metrics.BASELINE_NAMES[key], linewidth=width)
        for k, (name, summaries) in enumerate(models.items()):
            colour, shift = COLOURS[k % 6], 0.7 * ((k + 0.5) / len(models) - 0.5)
            for y, label in zip(ys + shift, groups, strict=True):
                ax.plot(summaries[label]["intervals"][score], [y, y], "-|", color=colour, markersize=7)
            values = [summaries[label][score] for label in groups]
            ax.plot(values, ys + shift, MARKERS[k % 5], color=colour, label=f"{confidence:.0%} interval, {plain(name)}")
        ax.set(xlim=(-0.03, 1.03), xlabel=f"{metrics.COMPARED_SCORES[score]} (0 to 1)")
        ax.hlines(ys[:-1] + 0.5, -0.03, 1.03, "0.85", linewidth=0.8)
        ax.grid(axis="x", color="0.9")
    for k, (name, value) in enumerate(PUBLISHED.items()):
        panels[0].vlines(value, -0.5, 0.5, "0.45", LINES[2 + k], label=f"{name} (published)", linewidth=1.5)
    panels[0].set(yticks=ys, yticklabels=groups, ylim=(len(ys) - 0.5, -0.5))
    figure.suptitle(plain(title))
    figure.legend(*panels[0].get_legend_handles_labels(), **LEGEND)
    return figure


def calibration_figure(results: dict, title: str) -> Figure:
    """The reliability diagram: frequency of Yes against its mean probability in each bin, above the bins' rows."""
    bins, confidence = results["calibration"], results["confidence"]
    figure = Figure(figsize=(5, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], "--", color="0.4", label="calibrated")
    xs, ys = ([part[key] for part in bins] for key in ("mean_probability", "frequency"))
    for x, part in zip(xs, bins, strict=True):
        top.plot([x, x], part["interval"], "-_", color=COLOURS[0], markersize=7)
    top.plot(xs, ys, "o-", color=COLOURS[0], label=f"model, {confidence:.0%} intervals")
    top.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="frequency of Yes", title=plain(title))
    top.grid(color="0.9")
    for part in bins:
        middle = (part["low"] + part["high"]) / 2
        bottom.bar(middle, part["n"], width=0.09, color="0.7", edgecolor="black")
        bottom.annotate(f"{part['n']:,}", (middle, part["n"]), (0, 2), textcoords="offset points", ha="center", size=8)
    bottom.set(xlabel="probability of Yes", ylabel="rows", ylim=(0, 1.25 * max(part["n"] for part in bins)))
    figure.legend(*top.get_legend_handles_labels(), **LEGEND)
    return figure
