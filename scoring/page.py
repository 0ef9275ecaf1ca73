"""A page that asks a model: a graph is drawn or a question typed; the model's reasoning is coloured by the checker.

    python explain.py --serve        # needs requirements-page.txt

The functions make HTML of texts; `serve` alone knows Gradio. Nothing on the page is fetched from another machine.
"""

import base64
import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO

from matplotlib.figure import Figure

from causal.claims import Claim, claim_on, examine
from causal.classes import LETTERS, Premise
from causal.drawing import draw_graph, shown_members
from causal.graphs import DAG, Corr2CauseError, d_separations
from causal.reasoning import trace
from causal.trace_text import write_step
from causal.vocabulary import RELATION_OF, TEMPLATE_OF
from causal.wording import (
    class_edges,
    member_edges,
    parse_input,
    released_order,
    write_hypothesis,
    write_independence,
    write_input,
    write_premise,
)
from scoring.asking import Respondent, marked

START = (3, "A -> C, B -> C", "A", "directly causes", "C")  # the page as it is opened
SIZES = (2, 3, 4, 5, 6)  # variables of a graph that is drawn: what the reasoner that ships was trained on
RELATIONS = {  # as the page offers them: template
    "directly causes": "parent",
    "causes, through others,": "non-parent ancestor",
    "has a common effect with": "has_collider",
    "has a common cause with": "has_confounder",
}

ABOUT = (
    "<p>Draw a graph: the independences that follow from it are the premise. A claim follows if it holds in every "
    "graph that has the same ones. Every sentence of the model's answer is checked.</p>"
)

# ---------------------------------------------------------------- a graph that is drawn


def read_edges(text: str) -> list[tuple[str, str]]:
    """'A -> B, C -> B' as pairs (cause, effect). Raises Corr2CauseError for anything else."""
    edges = []
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        match = re.fullmatch(r"(\w+)\s*(?:->|→)\s*(\w+)", part)
        if match is None or match[1] == match[2]:
            raise Corr2CauseError(f"edges: {part[:40]!r} is not like 'A -> B'; separate edges by commas")
        edges.append((match[1].upper(), match[2].upper()))
    return edges


def write_edges(edges: list[tuple[str, str]]) -> str:
    """What `read_edges` reads."""
    return ", ".join(f"{cause} -> {effect}" for cause, effect in edges)


def graph_of(edges: list[tuple[str, str]], names: tuple[str, ...]) -> DAG:
    """The graph with these edges. Raises Corr2CauseError for an unknown variable, a pair twice, and a cycle."""
    for edge in edges:
        for name in edge:
            if name not in names:
                raise Corr2CauseError(f"edges: there is no variable {name}; use {', '.join(names)}, or more variables")
        if len([other for other in edges if {*other} == {*edge}]) > 1:
            raise Corr2CauseError(f"edges: {' and '.join(sorted(edge))} have two edges; leave one")
    dag = tuple(sum(1 << names.index(cause) for cause, effect in edges if effect == name) for name in names)
    try:
        d_separations(dag)
    except Corr2CauseError:
        raise Corr2CauseError("edges: the arrows run in a circle; turn or remove one") from None
    return dag


def tapped(edges: list[tuple[str, str]], chosen: str, name: str) -> tuple[list[tuple[str, str]], str]:
    """The edges, and the variable that stays chosen, once a variable is tapped: two in turn draw an arrow.

    The same two again remove it; in the other order they turn it. A variable twice is no longer chosen.
    """
    if not chosen or chosen == name:
        return edges, "" if chosen else name
    others = [edge for edge in edges if {*edge} != {chosen, name}]
    return (others if (chosen, name) in edges else [*others, (chosen, name)]), ""


def question(dag: DAG, relation: str, first: str, second: str) -> str:
    """The text that gives the graph's independences and claims one of RELATIONS of two variables.

    Raises Corr2CauseError for a claim on one variable alone.
    """
    names, template = LETTERS[: len(dag)], RELATIONS[relation]
    if first == second:
        raise Corr2CauseError(f"the claim is on {first} alone; choose two variables")
    claim = claim_on(RELATION_OF[template], names.index(first), names.index(second))
    premise = Premise(names, d_separations(dag))
    return write_input(write_premise(premise), write_hypothesis(claim, names, template))


def drawn(
    size: int, edges: str, chosen: str, first: str, relation: str, second: str
) -> tuple[str | None, str, str | None]:
    """The picture of the graph, what is wrong, and the question; None where it cannot be made.

    Of the variables the one that is `chosen` is grey.
    """
    names, picture = LETTERS[:size], None
    try:
        pairs = read_edges(edges)
        inside = [f"{cause} -> {effect}" for cause, effect in pairs if {cause, effect} <= {*names}]
        label = escape(", ".join(inside) or "no edges")
        drawing = svg(names, inside, (chosen,) if chosen else (), 2.2)
        picture = f'<div class="canvas" role="img" aria-label="{label}">{drawing}</div>'
        return picture, "", question(graph_of(pairs, names), relation, first, second)
    except Corr2CauseError as error:
        return picture, error_note(error), None


# ---------------------------------------------------------------- HTML


def error_note(message: object) -> str:
    """An error as one line."""
    return f'<p class="note error" role="alert">error: {escape(str(message))}</p>'


def svg(names: Sequence[str], edges: Sequence[str], highlight: Sequence[str], inches: float) -> str:
    """The graph as an <svg> element; variables and edges have their names as ids. Small ones have large letters."""
    figure, buffer = Figure(figsize=(inches, inches)), BytesIO()
    draw_graph(figure.add_axes((0, 0, 1, 1)), names, edges, highlight)
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


def exact_part(premise: Premise, claim: Claim) -> str:
    """The claim, the true answer and why, the independences, and the class with its members."""
    names, found = premise.variables, examine(premise, claim)
    template, size, fails = TEMPLATE_OF[claim.relation], found.size, any(found.failing)
    alone = size == 1
    graphs = f"{found.extent} graphs" if fails and sum(found.failing) < size else f"all {size:,} graphs"
    graphs = "the only graph" if alone else graphs
    why = f"it {'fails' if fails else 'holds'} in {graphs} with these independences"
    stated = [write_independence(one, names) for one in sorted(premise.independences, key=released_order)]
    highlight, shown = (names[claim.i], names[claim.j]), shown_members(found.failing)
    panels = [] if alone else [_panel("the class", names, class_edges(premise), highlight)]
    for k in shown:
        edges = member_edges(found.members[k], names)
        panels.append(_panel(f"graph {k + 1}", names, edges, highlight, fails=found.failing[k]))
    more = f"<p>{size - len(shown):,} more are not drawn.</p>" * (len(shown) < size)
    return (
        f"<h3>Claim</h3><p>{escape(write_hypothesis(claim, names, template))}</p>"
        f"<p>True answer: <b>{'No' if fails else 'Yes'}</b>; {why}.</p>"
        + _folded(f"Independences: {len(stated)}", "ul", stated, is_open=len(stated) <= 6)
        + f"<h3>Class: {size:,} graph{'s' * (not alone)}</h3>"
        + "<p>Arrows are the same in all of them, plain lines are not.</p>" * (not alone)
        + f'<div class="graphs">{"".join(panels)}</div>{more}'
    )


def _panel(title: str, names: Sequence[str], edges: list[str], highlight: Sequence[str], fails: bool = False) -> str:
    """A graph with its title, as an image by itself: the ids of several drawings would clash in one page."""
    source = base64.b64encode(svg(names, edges, highlight, 1.7).encode()).decode()
    title += ": the claim fails" * fails
    alt = escape(f"{title}; {', '.join(edges) or 'no edges'}")
    image = f'<img src="data:image/svg+xml;base64,{source}" alt="{alt}">'
    return f'<figure class="{"fails" if fails else "holds"}">{image}<figcaption>{title}</figcaption></figure>'


def _folded(title: str, kind: str, lines: list[str], is_open: bool = False) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines) or "<li>none</li>"
    return f"<details{' open' * is_open}><summary>{title}</summary><{kind}>{items}</{kind}></details>"


def model_part(respondent: Respondent, text: str) -> tuple[str, str]:
    """The model's answer beside the true one, and its sentences, each with its mark, as a word and as a colour.

    What the model says in the compact style stands in plain words below it.
    """
    name, names = escape(respondent.name), parse_input(text)[0].variables
    try:
        found = marked(respondent.ask(text), text)
    except ValueError as error:
        return error_note(f"{respondent.name} cannot be asked this: {error}"), ""
    lines, marks = [], [mark for mark, _ in found.sentences]
    fault = next((k for k, mark in enumerate(marks) if mark != "right"), None)
    for k, (mark, sentence) in enumerate(found.sentences):
        plain = "" if sentence.step is None else write_step(sentence.step, names, "full")
        below = f"<small>{escape(plain)}</small>" * (plain not in ("", sentence.text))
        anchor = ' id="fault"' * (k == fault)
        lines.append(f'<li{anchor}><b class="mark {mark}">{mark}</b><span>{escape(sentence.text)}{below}</span></li>')
    answer = (
        f'<p class="note {found.verdict}" role="status"><b>{found.verdict.capitalize()}.</b> The model {name} answers '
        f"<b>{found.answer}</b>; the true answer is <b>{found.true}</b>.</p>"
    )
    about = f"<p>On {respondent.familiarity(text)}. Sentences: {found.counts}."
    about += "</p>" if fault is None else f' <a href="#fault">The first fault</a> is in line {fault + 1}.</p>'
    return answer, f'<h3>Reasoning of {name}</h3>{about}<ol class="said">{"".join(lines)}</ol>'


def answers(text: str, style: str, respondent: Respondent | None) -> Iterator[str]:
    """What the page shows of a question: at once what is exact, then with the model's part; or one error."""
    text = text.replace("\\n", "\n")
    try:
        premise, claim = parse_input(text)
        exact, steps = exact_part(premise, claim), trace(premise, claim, style).splitlines()
    except Corr2CauseError as error:
        yield error_note(error)
        return
    steps = _folded("The exact reasoning", "ol", steps)
    if respondent is None:
        yield exact + steps
        return
    yield f'<p class="note" role="status">The model {escape(respondent.name)} is reasoning…</p>{exact}{steps}'
    answer, said = model_part(respondent, text)
    yield answer + exact + said + steps


# ---------------------------------------------------------------- the page


TAP = """
element.addEventListener("click", event => {
  const variable = event.target.closest("g[id]");
  if (variable && /^[A-Z]$/.test(variable.id)) trigger("click", {name: variable.id});
});
"""
SCROLL = """() => document.querySelector(".answer").scrollIntoView({behavior: "smooth"})"""
CSS = """
.gradio-container {max-width: 1240px !important}
.canvas {background: white; border: 1px solid #999; border-radius: 8px; max-width: 340px; margin: 0 auto}
.canvas svg {display: block; width: 100%; height: auto; touch-action: manipulation}
.canvas g[id^=text] {pointer-events: none}
.canvas g[id]:has(> path) {cursor: pointer}
.note {padding: 10px 14px; border-radius: 8px; border-left: 6px solid #666; background: #eee; color: #111}
.note b {color: inherit}
.note.right {border-color: #17692f; background: #dff3e4}
.note.wrong, .note.error, .note.no {border-color: #a3171f; background: #fbe3e4}
.graphs {display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 8px}
.graphs figure {margin: 0; padding: 4px; border: 1px solid #bbb; border-radius: 8px; background: white; color: #111}
.graphs figure.fails {background: #e6e6e6; border: 2px dashed #555}
.graphs figure {max-width: 200px}
.graphs img {width: 100%}
.graphs figcaption {text-align: center; font-size: 13px; color: #111}
.answer a {text-decoration: underline}
.answer details {margin: 12px 0}
.answer summary {cursor: pointer; font-weight: 600}
.answer details ul, .answer details ol {max-height: 16em; overflow-y: auto; padding-left: 2.4em}
.answer ol.said {padding: 0; list-style: none}
.said li {display: flex; gap: 10px; align-items: flex-start; padding: 5px 0; border-bottom: 1px solid #8884}
.said li > span {overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: 13px}
.said small {display: block; font-family: system-ui, sans-serif; opacity: 0.75; font-size: 12px}
.mark {flex: 0 0 94px; text-align: center; border-radius: 5px; padding: 1px 0; font-size: 13px; color: white}
.mark.right {background: #17692f; color: white}
.mark.wrong {background: #a3171f; color: white}
.mark.unreadable {background: #555; color: white}
.mark.missing {background: white; color: #a3171f; outline: 2px dashed #a3171f; outline-offset: -2px}
"""


def serve(respondent: Respondent | None, style: str, host: str, port: int) -> None:
    """Serves the page until it is interrupted."""
    import gradio as gr
    import uvicorn  # a requirement of Gradio's, as FastAPI is
    from fastapi import FastAPI

    def show(*fields):
        picture, error, text = (gr.skip() if part is None else part for part in drawn(*fields))
        return picture, gr.update(value=error, visible=error != ""), text

    def tap(edges: str, chosen: str, event: gr.EventData):
        try:
            pairs, chosen = tapped(read_edges(edges), chosen, event.name)
        except Corr2CauseError:  # `show` says so
            return gr.skip(), ""
        return write_edges(pairs), chosen

    def resize(size: int, edges: str, first: str, second: str):
        names = LETTERS[:size]
        with contextlib.suppress(Corr2CauseError):
            edges = write_edges([edge for edge in read_edges(edges) if {*edge} <= {*names}])
        first, second = (name if name in names else other for name, other in ((first, names[0]), (second, names[-1])))
        return edges, "", gr.update(choices=names, value=first), gr.update(choices=names, value=second)

    def ask(text: str):
        yield from answers(text, style, respondent)

    picture, _, text = drawn(START[0], START[1], "", *START[2:])
    names = LETTERS[: START[0]]
    with gr.Blocks(title="Does the claim follow?", analytics_enabled=False) as page:
        gr.HTML("<h1>Does the claim follow?</h1>" + ABOUT)
        with gr.Row():
            with gr.Column(min_width=300, scale=2):
                size = gr.Radio(SIZES, value=START[0], label="Variables")
                drawing = gr.HTML(picture, js_on_load=TAP)
                edges = gr.Textbox(START[1], label="Edges", info="Tap a variable, then another: an arrow. Or type.")
                with gr.Row():
                    first = gr.Dropdown(names, value=START[2], label="Claim: the first", min_width=100)
                    second = gr.Dropdown(names, value=START[4], label="the second", min_width=100)
                relation = gr.Radio([*RELATIONS], value=START[3], label="The first … the second")
                trouble = gr.HTML(visible=False)
                text = gr.Textbox(text, label="Question", info="As drawn; or type one.", lines=5, max_lines=12)
                button = gr.Button("Ask", variant="primary")
            with gr.Column(min_width=300, scale=3):
                answer = gr.HTML(elem_classes="answer")
        chosen = gr.State("")
        quietly = {"show_progress": "hidden", "api_visibility": "private"}
        drawing.click(tap, [edges, chosen], [edges, chosen], trigger_mode="multiple", **quietly)
        size.input(resize, [size, edges, first, second], [edges, chosen, first, second], **quietly)
        fields = [size, edges, chosen, first, relation, second]
        outputs = [drawing, trouble, text]
        gr.on([field.change for field in fields], show, fields, outputs, trigger_mode="always_last", **quietly)
        text.change(None, None, answer, js="() => ''")  # in the browser: it cannot come after an answer
        button.click(ask, text, answer, **quietly).then(None, js=SCROLL)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="blue", **fonts)
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    # `page.launch` would ask itself for the page first, through a proxy if there is one, and give up where it is slow.
    app = gr.mount_gradio_app(FastAPI(openapi_url=None), page, path="/", footer_links=[], theme=theme, css=CSS)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    with socket.create_server((host, port)) as listening, contextlib.suppress(KeyboardInterrupt):
        print(f"http://{host}:{port}; Ctrl-C ends it", flush=True)
        server.run(sockets=[listening])
