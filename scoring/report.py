"""report.html: what evaluate.py shows a person, on one page that needs no network and no other file.

Colours are those of Okabe and Ito, which the colour-blind tell apart; lines and markers differ too, for greyscale.
"""

import base64
import io
import random
from collections import Counter
from html import escape

from matplotlib.figure import Figure

from causal.claims import Claim
from causal.classes import Premise, class_size
from causal.drawing import draw_graph
from causal.graphs import Corr2CauseError
from causal.reasoning import check_trace, trace
from causal.vocabulary import RELATION_OF
from causal.wording import class_edges, parse_input
from dataset.sources import parse_row
from scoring.figures import PUBLISHED_NOTE, calibration_figure, confusion_figure
from scoring.metrics import main_rows

WRONG_SHOWN = 200  # rows; more make a page that no browser likes
ANSWERS = {0: "No", 1: "Yes", None: "no answer"}


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
    rows = main_rows(models[0]["rows"])
    answers = [dict(zip(_keys(found), found, strict=True)) for found in (main_rows(m["rows"]) for m in models)]
    of_premise: dict[str, list[list[dict]]] = {}  # the row of each model, where one of them is wrong
    for key, row in zip(_keys(rows), rows, strict=True):
        given = [found[key] for found in answers]
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


def _keys(rows: list[dict]) -> list[tuple[str, int]]:
    """The input of each row, and how many rows before it have the same."""
    before: Counter = Counter()
    keys = []
    for row in rows:
        keys.append((row["input"], before[row["input"]]))
        before[row["input"]] += 1
    return keys


def _select(name: str, what: str, options: dict[str, str]) -> str:
    choices = "".join(f'<option value="{escape(key)}">{escape(text)}</option>' for key, text in options.items())
    return f'<label>{what} <select name="{name}"><option value="">any</option>{choices}</select></label> '


def premise_card(claims: list[list[dict]], names: list[str]) -> str:
    """One premise with its class drawn, and its claims: each a row of every model."""
    row = claims[0][0]
    try:
        premise, _ = parse_input(row["input"])
        figure = Figure(figsize=(2.2, 2.2), layout="constrained")
        draw_graph(figure.subplots(), premise.variables, class_edges(premise))
        members = class_size(premise)
        drawn = image(figure, f"equivalence class: {', '.join(class_edges(premise)) or 'no edge'}")
        note = f"{members:,} graph{'s' * (members > 1)} in the class drawn"
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
        premise, claim = parse_input(row["input"])
        exact = parse_row(row)["exact"]
        if exact not in (None, row["label"]):
            parts.append(f"<p>The label is {ANSWERS[row['label']]}; by the definition it is {ANSWERS[exact]}.</p>")
        reason = trace(premise, claim, "full")
        for name, answer in zip(names, given, strict=True):
            parts += [f"<p>{escape(name)}</p>", f"<pre>{escape(model_text(answer))}</pre>"]
            parts.append(judged(answer.get("completion", ""), premise, claim))
        parts.append(f"<p>Why {ANSWERS[exact]} is right</p><pre>{escape(reason)}</pre>")
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
    return f"<p>{first}{check.counts}</p>"
