"""The page that asks a model: what it shows is the oracle's and the checker's; and in a browser, at two widths."""

import re
import shutil
import socket
import subprocess
import sys
from html import unescape
from itertools import pairwise

import pytest
from brute_force import rows
from conftest import ROOT

from causal.classes import LETTERS, markov_equivalence_class
from causal.graphs import Corr2CauseError, d_separations
from causal.wording import parse_input
from scoring import page
from scoring.asking import load

WIDTHS = (1280, 390)


def shown(html: str) -> str:
    """The text of some HTML."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


@pytest.fixture(scope="module")
def reasoner():
    return load(str(ROOT / "reasoner"))


# ---------------------------------------------------------------- a graph that is drawn


def test_two_taps_draw_an_arrow_turn_it_and_remove_it():
    edges, chosen, after = [], "", []
    for name in "ABABBAAA":
        edges, chosen = page.tapped(edges, chosen, name)
        after.append((page.write_edges(edges), chosen))
    assert after == [
        ("", "A"), ("A -> B", ""), ("A -> B", "A"), ("", ""), ("", "B"), ("B -> A", ""), ("B -> A", "A"), ("B -> A", "")
    ]  # fmt: skip


def test_a_drawn_graph_gives_its_own_independences_and_any_claim():
    edges = "A -> B, c→B; B -> D\n"
    for relation in page.RELATIONS:
        picture, error, text = page.drawn(4, edges, "C", "D", relation, "A")
        premise, claim = parse_input(text)
        dag = page.graph_of(page.read_edges(edges), LETTERS[:4])
        assert error == "" and 'aria-label="A -&gt; B, C -&gt; B, B -&gt; D"' in picture
        assert premise.independences == d_separations(dag) and dag in markov_equivalence_class(premise)
        directed = claim.relation in ("direct", "indirect")
        assert claim.relation == page.RELATION_OF[page.RELATIONS[relation]] and claim.i == (3 if directed else 0)


@pytest.mark.parametrize(
    "edges, first, said",
    [
        ("A to B", "A", "'A to B' is not like 'A -> B'"),
        ("A -> A", "A", "'A -> A' is not like"),
        ("A -> <b>", "A", "'A -> <b>' is not like"),
        ("A -> Q", "A", "no variable Q; use A, B, C"),
        ("A -> B, B -> A", "A", "A and B have two edges"),
        ("A -> B, A -> B", "A", "A and B have two edges"),
        ("A -> B, B -> C, C -> A", "A", "run in a circle"),
        ("A -> B", "C", "the claim is on C alone"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line_and_leaves_the_question(edges, first, said):
    _, error, text = page.drawn(3, edges, "", first, "directly causes", "C")
    assert text is None and re.fullmatch(r'<p class="note error" role="alert">error: [^<>\n]*</p>', error)
    assert said in unescape(error)


# ---------------------------------------------------------------- an answer


def test_the_page_shows_what_is_exact_then_the_model_s_sentences_with_their_marks(reasoner):
    verdicts = set()
    for row in rows(3)[::9]:
        first, last = page.answers(row["input"].replace("\n", "\\n"), "compact", reasoner)
        found = page.marked(reasoner.ask(row["input"]), row["input"])
        exact = ("No", "Yes")[row["exact"]]
        for html in (first, last):
            assert f"True answer: <b>{exact}</b>" in html
            assert html.count("the claim fails") == 2 * html.count('class="fails"')  # in the title and in the alt text
        assert "is reasoning" in shown(first) and "is reasoning" not in shown(last)
        assert f"answers <b>{found.answer}</b>; the true answer is <b>{found.true}</b>" in last and found.true == exact
        marks = re.findall(r'<b class="mark (\w+)">(\w+)</b><span>(.*?)(?:<small>|</span>)', last)
        assert [(colour, word) for colour, word, _ in marks] == [(mark, mark) for mark, _ in found.sentences]
        said = [sentence.text.replace(">", "&gt;") for _, sentence in found.sentences]
        assert [text for _, _, text in marks] == said
        faults = [k for k, (mark, _) in enumerate(found.sentences, 1) if mark != "right"]
        assert ('id="fault"' in last) == (faults != []) and (not faults or f"is in line {faults[0]}." in last)
        verdicts.add(found.verdict)
    assert "right" in verdicts


def test_without_a_model_the_page_shows_what_is_exact(reasoner):
    (html,) = page.answers(rows(3)[0]["input"], "full", None)
    assert "The exact reasoning" in html and "Pair A and B: " in html and "mark" not in html


@pytest.mark.parametrize("text", ["", "<script>alert(1)</script>", "Premise: x\nHypothesis: A directly causes B."])
def test_a_question_that_cannot_be_read_is_one_line(text, reasoner):
    (html,) = page.answers(text, "compact", reasoner)
    assert re.fullmatch(r'<p class="note error" role="alert">error: [^<>]*</p>', html)


def test_a_model_s_words_are_text_not_html(reasoner, monkeypatch):
    monkeypatch.setattr(type(reasoner), "ask", lambda self, text: "<img src=x onerror=alert(1)>\nAnswer: No")
    *_, html = page.answers(rows(3)[0]["input"], "compact", reasoner)
    assert "<img src=x" not in html and "&lt;img src=x" in html and 'class="mark unreadable"' in html

    def refuse(self, text):
        raise ValueError("sequences of up to <9> tokens")

    monkeypatch.setattr(type(reasoner), "ask", refuse)
    *_, html = page.answers(rows(3)[0]["input"], "compact", reasoner)
    assert "cannot be asked this: sequences of up to &lt;9&gt; tokens" in html and "True answer" in html


def test_edges_that_are_written_are_read():
    edges = [*pairwise("ABCD")]
    assert page.read_edges(page.write_edges(edges)) == edges
    with pytest.raises(Corr2CauseError):
        page.read_edges("A -> B C -> D")


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address():
    """Where the page is served, by the command that a user types."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "explain.py", "--serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        assert line == f"http://127.0.0.1:{port}; Ctrl-C ends it\n"
        yield line.split(";")[0]
        server.terminate()


@pytest.fixture(params=WIDTHS)
def opened(request, address):
    """The page in Chromium at a width, and the addresses that it has asked for."""
    from playwright.sync_api import sync_playwright

    phone = {"has_touch": True, "is_mobile": True} if request.param < 500 else {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": request.param, "height": 844}, **phone)
        context.set_default_timeout(60_000)
        view, asked = context.new_page(), []
        view.on("request", lambda request: asked.append(request.url))
        view.goto(address)
        view.wait_for_selector(".canvas svg")
        yield view, asked, request.param
        browser.close()


@pytest.mark.browser
def test_a_graph_is_drawn_and_asked_about_in_a_browser(opened, address):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    view, asked, width = opened
    edges, question = (view.get_by_role("textbox", name=name) for name in ("Edges", "Question"))
    view.get_by_label("4", exact=True).click()
    expect(question).to_have_value(re.compile("4 variables"))
    for name in "CD":
        view.locator(f'.canvas g[id="{name}"]').click()
    expect(edges).to_have_value("A -> C, B -> C, C -> D")
    view.get_by_label("has a common effect with").click()
    expect(question).to_have_value(re.compile("collider .* of A and C"))
    view.get_by_role("button", name="Ask").click()
    view.wait_for_selector(".said li")
    verdict = view.locator(".answer .note").inner_text()
    assert re.fullmatch(r"(Right|Wrong|No answer)\. The model reasoner answers \w+; the true answer is No\.", verdict)
    words = view.locator(".said .mark").all_inner_texts()
    assert words and {*words} <= {"right", "wrong", "unreadable", "missing"}
    assert view.locator(".graphs img").count() == 1
    assert view.evaluate("document.documentElement.scrollWidth") == width
    edges.fill("A -> B, B -> A")
    expect(view.locator(".note.error")).to_have_text("error: edges: A and B have two edges; leave one")
    question.fill("Premise: <b>\nHypothesis: {{value}}")
    expect(view.locator(".answer .said")).to_have_count(0)
    view.get_by_role("button", name="Ask").click()
    expect(view.locator(".answer .note.error")).to_contain_text("error: the premise '<b>' does not read")
    assert view.evaluate("document.documentElement.scrollWidth") == width
    assert {re.match(r"data:|blob:|https?://[^/]+", url)[0] for url in asked} <= {address, "data:", "blob:"}
