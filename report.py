"""What evaluate.py shows a person: its figures, and report.html, one page that needs no network and no other file.

Colours are those of Okabe and Ito, which the colour-blind tell apart; lines and markers differ too, for greyscale.
"""

import base64
import io
import random
from collections import Counter
from html import escape

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import metrics
from corr2cause import RELATION_OF, class_edges
from drawing import draw_graph
from graphs import Claim, Corr2CauseError, Premise, markov_equivalence_class
from reasoning import check_trace, trace
from sources import claim_of, parse_row

SCORE_NAMES = {"f1": "F1", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "mcc": "MCC"}
BASELINE_NAMES = {"majority": "majority answer", "always_yes": "always Yes"}
BASELINE_STYLES = {"always_yes": ("#D55E00", "--", 3), "majority": ("black", ":", 1.5)}  # colour, line, width (points)
PUBLISHED = {"GPT-4": 0.291, "RoBERTa-Large MNLI, fine-tuned": 0.947}  # F1
PUBLISHED_NOTE = "published: arXiv 2306.05836, on its first test set of 2,246 rows with the released labels"
CURVES = {
    "eval/f1": "F1",
    "eval/balanced_accuracy": "balanced accuracy",
    "train/loss": "loss (nats per token)",
    "reward/mean": "reward",
    "policy/kl": "KL (nats per token)",
}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
LEGEND = {"loc": "outside lower center", "ncols": 3, "frameon": False}  # below the panels, where it hides nothing
MARKERS = ("o", "s", "^", "D", "v")  # 6, 4 and 5 of a kind: no two of 60 runs look alike
WRONG_SHOWN = 200  # rows; more make a page that no browser likes
ANSWERS = {0: "No", 1: "Yes", None: "no answer"}


# ---------------------------------------------------------------- figures


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
    ax.set(yticks=range(2), yticklabels=("No", "Yes"), ylabel="label", ylim=(1.5, -0.5), title=title)
    return figure


def grouped_summaries(results: dict) -> dict[str, dict]:
    """metrics.report's summaries by label: of all rows, every number of variables N, every relation, every split."""
    sizes = {f"N = {size}": summary for size, summary in results["by_num_variables"].items()}
    splits = dict(list(results.get("by_split", {}).items())[1:])  # the first is what all the others are about
    groups = {"all": results["overall"], **sizes, **results["by_relation"], **splits}
    return {f"{label} ({summary['n']:,} rows)": summary for label, summary in groups.items()}


def score_figure(models: dict[str, dict[str, dict]], confidence: float, title: str) -> Figure:
    """F1 and balanced accuracy with intervals, by group of rows and model, beside what constant answers score there.

    `models` maps a model's name to its `grouped_summaries`, of which those are drawn that all of them have.
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
            ax.vlines(values, ys - 0.5, ys + 0.5, colour, line, label=BASELINE_NAMES[key], linewidth=width)
        for k, (name, summaries) in enumerate(models.items()):
            colour, shift = COLOURS[k % 6], 0.7 * ((k + 0.5) / len(models) - 0.5)
            for y, label in zip(ys + shift, groups, strict=True):
                ax.plot(summaries[label]["intervals"][score], [y, y], "-|", color=colour, markersize=7)
            values = [summaries[label][score] for label in groups]
            ax.plot(values, ys + shift, MARKERS[k % 5], color=colour, label=f"{name}, {confidence:.0%} interval")
        ax.set(xlim=(-0.03, 1.03), xlabel=f"{SCORE_NAMES[score]} (0 to 1)")
        ax.hlines(ys[:-1] + 0.5, -0.03, 1.03, "0.85", linewidth=0.8)
        ax.grid(axis="x", color="0.9")
    for k, (name, value) in enumerate(PUBLISHED.items()):
        panels[0].vlines(value, -0.5, 0.5, "0.45", LINES[2 + k], label=f"{name} (published)", linewidth=1.5)
    panels[0].set(yticks=ys, yticklabels=groups, ylim=(len(ys) - 0.5, -0.5))
    figure.suptitle(title)
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
    top.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="frequency of Yes", title=title)
    top.grid(color="0.9")
    for part in bins:
        middle = (part["low"] + part["high"]) / 2
        bottom.bar(middle, part["n"], width=0.09, color="0.7", edgecolor="black")
        bottom.annotate(f"{part['n']:,}", (middle, part["n"]), (0, 2), textcoords="offset points", ha="center", size=8)
    bottom.set(xlabel="probability of Yes", ylabel="rows", ylim=(0, 1.25 * max(part["n"] for part in bins)))
    figure.legend(*top.get_legend_handles_labels(), **LEGEND)
    return figure


def curves_figure(runs: dict[str, dict[str, dict[int, float]]]) -> Figure:
    """A panel for each tag that some run has, a line for each run."""
    tags = [tag for tag in CURVES if any(tag in run for run in runs.values())]
    columns = min(3, len(tags))
    rows = -(-len(tags) // columns)
    figure = Figure(figsize=(1.2 + 4.2 * columns, 0.9 + 3.0 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
    handles = {}
    for position, tag in enumerate(tags, 1):
        ax = figure.add_subplot(rows, columns, position)
        for k, (name, run) in enumerate(runs.items()):
            if tag in run:
                steps, values = list(run[tag]), list(run[tag].values())
                style = {"color": COLOURS[k % 6], "linestyle": LINES[k % 4], "marker": MARKERS[k % 5]}
                (handles[name],) = ax.plot(steps, values, markevery=-(-len(steps) // 10), markersize=4, **style)
        limits = (-0.02, 1.02) if tag.startswith("eval/") else None
        ax.set(xlabel="optimizer step", ylabel=CURVES[tag], ylim=limits, title=tag)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(color="0.9")
    figure.legend(handles.values(), handles.keys(), **LEGEND)
    return figure


# ---------------------------------------------------------------- the page

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
.wide { overflow-x: auto; } .wide pre { white-space: pre; width: max-content; font-size: .8rem; }
.wide img { min-width: 40rem; width: 100%; max-width: 56rem; }
.side { display: flex; flex-wrap: wrap; gap: 1rem; } .side img { width: 26rem; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .6rem; margin: .3rem 0; }
.premise { border: 1px solid #bbb; border-radius: 6px; padding: .6rem 1rem; margin: 1rem 0; }
.premise > img { float: right; width: 11rem; max-width: 40%; }
.premise p { margin: .3rem 0; } .premise::after { content: ""; display: block; clear: both; }
.wrong { font-weight: 600; text-decoration: underline wavy #b00; text-underline-offset: .2em; }
summary { cursor: pointer; } select { font: inherit; } .note { color: #555; font-size: .9rem; }
[hidden] { display: none; }
"""
FILTER = """
const choices = [...document.querySelectorAll("#filters select")];
function choose() {
  let shown = 0;
  for (const claim of document.querySelectorAll(".claim")) {
    claim.hidden = !choices.every(c => !c.value || claim.dataset[c.name].split(" ").includes(c.value));
    shown += !claim.hidden;
  }
  for (const card of document.querySelectorAll(".premise"))
    card.hidden = !card.querySelector(".claim:not([hidden])");
  document.getElementById("shown").textContent = shown;
}
choices.forEach(c => c.addEventListener("change", choose));
"""


def page(models: list[dict], title: str, settings: dict, lead: str, figures: list[tuple[str, Figure]]) -> str:
    """report.html: `models` have `name`, `rows` (the predictions, the same inputs in each) and `results` (metrics.py).

    `lead` is the scores as text; `figures` are (title, figure). Texts of models and data are escaped.
    """
    body = [f"<h1>{escape(title)}</h1>", "<h2>Scores</h2>", f'<div class="wide"><pre>{escape(lead)}</pre></div>']
    body += [f"<h2>{escape(name)}</h2><div class='wide'>{image(figure, name)}</div>" for name, figure in figures]
    body.append(f'<p class="note">{escape(PUBLISHED_NOTE)}: another set of rows unless this is that split.</p>')
    confusion = [image(confusion_figure(m["rows"], m["name"]), f"confusion matrix of {m['name']}") for m in models]
    body += ["<h2>Labels and answers</h2>", f'<div class="side">{"".join(confusion)}</div>']
    probable = [m for m in models if "calibration" in m["results"]]
    if probable:
        drawn = [calibration_figure(m["results"], m["name"]) for m in probable]
        body.append("<h2>Calibration</h2>")
        body.append(f'<div class="side">{"".join(image(figure, "calibration") for figure in drawn)}</div>')
    body += wrong_answers(models)
    lines = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in settings.items())
    body += ["<h2>Settings</h2>", f'<div class="wide"><table>{lines}</table></div>']
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + f"<script>{FILTER}</script></body></html>\n"
    )


def image(figure: Figure, description: str) -> str:
    """The figure as an <img> that holds it, in vectors."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{data}">'


def wrong_answers(models: list[dict]) -> list[str]:
    """The rows that some model has wrong, by premise: premises at random until WRONG_SHOWN rows are reached."""
    rows = [row for row in models[0]["rows"] if row.get("split") == models[0]["rows"][0].get("split")]
    answers = [{(row.get("split"), row["input"]): row for row in model["rows"]} for model in models]
    of_premise: dict[str, list[list[dict]]] = {}  # the row of each model, where one of them is wrong
    for row in rows:
        given = [found[row.get("split"), row["input"]] for found in answers]
        if any(answer["prediction"] != row["label"] for answer in given):
            of_premise.setdefault(row["premise_id"], []).append(given)
    total, cards, shown = sum(map(len, of_premise.values())), [], 0
    premises = list(of_premise.values())
    random.Random(0).shuffle(premises)
    for claims in premises:
        if shown >= WRONG_SHOWN:
            break
        cards.append(premise_card(claims, [model["name"] for model in models]))
        shown += len(claims)
    relations = sorted({RELATION_OF[row["template"]] for row in rows if row.get("template") in RELATION_OF})
    options = {
        "wrong": ("wrong answers of", {str(k): model["name"] for k, model in enumerate(models)}),
        "label": ("right answer", {"1": "Yes", "0": "No"}),
        "relation": ("relation", dict(zip(relations, relations, strict=True))),
    }
    return [
        "<h2>Wrong answers</h2>",
        f"<p>Of {len(rows):,} rows, {total:,} are wrong for some model"
        + (f"; {shown} of them are here, of premises chosen at random" if shown < total else "")
        + ". Open one to read what was said, and why the right answer is right.</p>",
        f'<p id="filters"><span id="shown">{shown}</span> shown: ',
        *(_select(name, *option) for name, option in options.items()),
        "</p>",
        *cards,
    ]


def _select(name: str, what: str, options: dict[str, str]) -> str:
    choices = "".join(f'<option value="{escape(key)}">{escape(text)}</option>' for key, text in options.items())
    return f'<label>{what} <select name="{name}"><option value="">any</option>{choices}</select></label> '


def premise_card(claims: list[list[dict]], names: list[str]) -> str:
    """One premise with its class drawn, and its claims: each a row of every model."""
    row = claims[0][0]
    try:
        premise, _ = claim_of(parse_row(row))
        figure = Figure(figsize=(2.2, 2.2), layout="constrained")
        draw_graph(figure.subplots(), premise.variables, class_edges(premise))
        members = len(markov_equivalence_class(premise))
        drawn = image(figure, f"equivalence class: {', '.join(class_edges(premise)) or 'no edge'}")
        note = f"{members} graph{'s' * (members > 1)} in the class drawn"
    except Corr2CauseError as error:
        drawn, note = "", str(error)
    text = escape(row["input"].partition("\nHypothesis:")[0])
    opened = f"<details><summary>the premise; {escape(note)}</summary><pre>{text}</pre></details>"
    heading = f"<p>{len(claims)} wrong, {row['num_variables']} variables</p>"
    return f'<div class="premise">{drawn}{heading}{opened}{"".join(_claim(given, names) for given in claims)}</div>'


def _claim(given: list[dict], names: list[str]) -> str:
    """What each model answered to one row, in its own words, and why the right answer is right."""
    row = given[0]
    said = []
    for name, answer in zip(names, given, strict=True):
        wrong = ' class="wrong"' * (answer["prediction"] != row["label"])
        said.append(f"{escape(name)}: <span{wrong}>{ANSWERS[answer['prediction']]}</span>")
    parts = []
    try:
        parsed = parse_row(row)
        premise, claim = claim_of(parsed)
        if parsed["exact"] != row["label"]:
            parts.append(
                f"<p>The label is {ANSWERS[row['label']]}; by the definition it is {ANSWERS[parsed['exact']]}.</p>"
            )
        reason = trace(premise, claim, "full")
        for name, answer in zip(names, given, strict=True):
            parts += [f"<p>{escape(name)}</p>", f"<pre>{escape(model_text(answer))}</pre>"]
            parts.append(judged(answer.get("completion", ""), premise, claim))
        parts.append(f"<p>Why {ANSWERS[parsed['exact']]} is right</p><pre>{escape(reason)}</pre>")
    except Corr2CauseError as error:
        parts.append(f"<p>{escape(str(error))}</p>")
    hypothesis = row["input"].partition("Hypothesis:")[2].strip()
    wrong = " ".join(str(k) for k, answer in enumerate(given) if answer["prediction"] != row["label"])
    relation = RELATION_OF.get(row.get("template"), "")
    return (
        f'<details class="claim" data-wrong="{wrong}" data-label="{row["label"]}" data-relation="{relation}">'
        f"<summary>{escape(hypothesis)} <b>{ANSWERS[row['label']]}</b> ({'; '.join(said)})</summary>"
        f"{''.join(parts)}</details>"
    )


def model_text(answer: dict) -> str:
    if "probability" in answer:
        return f"probability of Yes: {answer['probability']:.3f}"
    votes = "votes: {} No, {} Yes, {} without an answer\n".format(*answer["votes"]) if "votes" in answer else ""
    return votes + answer["completion"]


def judged(text: str, premise: Premise, claim: Claim) -> str:
    """What the checker says of a text that reasons: its first wrong sentence, and what is unreadable or missing."""
    check = check_trace(text, premise, claim)
    if sum(sentence.step is not None for sentence in check.sentences) < 2:
        return ""  # an answer alone
    if check.complete:
        return "<p>every step is right, none is missing</p>"
    first = f"first step that is wrong: <q>{escape(check.wrong[0].text)}</q>; " if check.wrong else ""
    right = sum(sentence.right for sentence in check.sentences)
    counts = (
        f"{right} right, {len(check.wrong)} wrong, {len(check.unreadable)} unreadable, {len(check.missing)} missing"
    )
    return f"<p>{first}{counts}</p>"
