"""report.html: it needs no other file, no text of a model is markup, and wrong rows have their class and the reason."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from causal.graphs import Corr2CauseError
from causal.reasoning import trace
from causal.rows import generate_rows
from causal.wording import class_edges, parse_input
from dataset.sources import parse_row
from scoring import metrics, report
from scoring.resampling import Bootstrap

ROWS = [row | {"split": "test"} for row in generate_rows(3)] + [row | {"split": "test"} for row in generate_rows(4)][
    :96
]
VOID = {"meta", "img"}


class Outline(HTMLParser):
    """Tags that open and close in order, and what they hold."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str, **wanted: str) -> list[dict]:
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


def model(name: str, wrong, text: str = "", rows: list[dict] = ROWS) -> dict:
    """A model that is wrong on the rows k for which `wrong(k)` holds."""
    said = [row["label"] ^ bool(wrong(k)) for k, row in enumerate(rows)]
    rows = [{**row, "prediction": p, "completion": text or f"Answer: {p}"} for row, p in zip(rows, said, strict=True)]
    return {"name": name, "rows": rows, "results": metrics.report(rows, Bootstrap(num_resamples=5))}


def page(*models: dict) -> str:
    return report.page(list(models), "a & b", {"seed": 0}, "F1 < 1", [("figure", Figure())])


def test_the_page_needs_nothing_else_and_is_well_formed():
    text = page(model("a", lambda k: k % 7 == 0), model("b", lambda k: k % 5 == 0))
    outline = Outline(text)
    assert all(found["src"].startswith("data:image/svg+xml;base64,") for found in outline.all("img"))
    assert not re.search(r"(href|src)=\"(?!data:)|url\(|@import|https?://", text)
    assert outline.all("meta", name="viewport") and "<title>a &amp; b</title>" in text and "F1 &lt; 1" in text


def test_what_a_model_says_is_never_markup():
    evil = '</pre></details><script>alert("x")</script><img src=x onerror=alert(1)>'
    text = page(model(f"a{evil}", lambda k: k == 1, evil), model("b", lambda k: False))
    outline = Outline(text)
    assert len(outline.all("script")) == 1 and not [t for t, found in outline.tags if "onerror" in found]
    assert text.count(evil) == 0 and unescape(text).count(evil) > 2


def test_every_wrong_row_is_there_with_its_class_and_its_reason():
    wrong = {3: "0", 10: "1", 20: "0 1", 40: "0"}
    first = model("a", lambda k: "0" in wrong.get(k, ""))
    text = page(first, model("b", lambda k: "1" in wrong.get(k, "")))
    outline = Outline(text)
    claims = outline.all("details", **{"class": "claim"})
    assert sorted(claim["data-wrong"] for claim in claims) == sorted(wrong.values())
    assert sorted(claim["data-label"] for claim in claims) == sorted(str(ROWS[k]["label"]) for k in wrong)
    shown = unescape(re.sub("<[^>]*>", "", text))
    for k in wrong:
        assert trace(*parse_input(ROWS[k]["input"]), "full") in shown and ROWS[k]["hypothesis"] in shown
    drawn = {found["alt"] for found in outline.all("img") if found["alt"].startswith("equivalence class")}
    classes = [", ".join(class_edges(parse_input(ROWS[k]["input"])[0])) for k in wrong]
    assert drawn == {f"equivalence class: {edges or 'no edge'}" for edges in classes}
    assert f"Of {len(ROWS)} rows, 4 are wrong for some model." in shown


def test_many_wrong_rows_are_shown_in_part(monkeypatch):
    monkeypatch.setattr(report, "WRONG_SHOWN", 30)
    text = page(model("a", lambda k: True))
    shown = len(Outline(text).all("details", **{"class": "claim"}))
    assert 30 <= shown < 60 and f"{shown} of them are here, of premises chosen at random" in text


def test_a_row_that_is_there_twice_is_counted_by_its_own_answer():
    twice = [row for row in ROWS[:6] for _ in range(2)]
    for right in (0, 1):
        text = page(model("a", lambda k, right=right: k % 2 == right, rows=twice))
        assert "Of 12 rows, 6 are wrong for some model" in re.sub("<[^>]*>", "", text)


def test_a_label_that_the_definition_contradicts_is_named():
    rows = [ROWS[0] | {"label": 1 - ROWS[0]["label"]}, *ROWS[1:]]
    text = page(model("a", lambda k: k == 0, rows=rows))
    right, given = ({0: "No", 1: "Yes"}[label] for label in (ROWS[0]["label"], rows[0]["label"]))
    assert f"The label is {given}; by the definition it is {right}." in text and f"Why {right} is right" in text


def test_rows_that_are_not_of_the_task_are_shown_as_they_are():
    rows = [{"input": f"what? {k}", "label": k % 2, "premise_id": "p", "num_variables": 3} for k in range(4)]
    text = page(model("a", lambda k: k < 2, rows=rows))
    assert len(Outline(text).all("details", **{"class": "claim"})) == 2
    with pytest.raises(Corr2CauseError):
        parse_row(rows[0])


def test_the_first_wrong_step_of_a_reasoning_is_named():
    traces = [(*parse_input(row["input"]), trace(*parse_input(row["input"]), "full")) for row in ROWS]
    premise, claim, right = next(each for each in traces if "undirected." in each[2])
    assert report.judged(right, premise, claim) == "<p>every step is right, none is missing</p>"
    lines = right.split("\n")
    broken = next(k for k, line in enumerate(lines) if line.endswith("undirected."))
    lines[broken] = lines[broken].replace("undirected", "no edge; independent given nothing")
    lines.insert(broken + 1, "And <b>so</b> on.")
    said = report.judged("\n".join(lines), premise, claim)
    assert f"<q>{lines[broken]}</q>; {len(lines) - 2} right, 1 wrong, 1 unreadable, 1 missing" in said
    assert report.judged("Answer: Yes", premise, claim) == ""
