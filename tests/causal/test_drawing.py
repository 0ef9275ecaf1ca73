"""Drawings, read back from the artists: what is drawn where, how many panels, and which members are marked."""

import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from brute_force import all_claims
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from causal import drawing
from causal.claims import Claim, examine, holds
from causal.classes import LETTERS, markov_equivalence_class, premise_of
from causal.graphs import dag_edges
from causal.wording import class_edges, member_edges

CHAIN, COMPLETE = (0, 1, 2), (0, 1, 3, 7, 15)  # 3 and 120 members
DAGS = [CHAIN, COMPLETE, (0, 0), (0, 1), (0, 0, 3), (0, 1, 2, 4), (0, 1, 3, 5, 8), (0, 1, 2, 4, 8, 16, 32, 64)]


def circles(ax) -> dict[str, tuple[float, float]]:
    return {patch.get_gid(): patch.center for patch in ax.patches if isinstance(patch, Circle)}


def lines(ax) -> dict[str, tuple]:
    """{edge: (start, end, is it an arrow?)} by gid."""
    arrows = {text.get_gid(): (text.xyann, text.xy, True) for text in ax.texts if text.get_gid()}
    assert all(text.arrow_patch.get_arrowstyle().arrow == "-|>" for text in ax.texts if text.get_gid())
    return arrows | {line.get_gid(): (*map(tuple, line.get_xydata()), False) for line in ax.lines}


def drawn_edges(ax) -> set[str]:
    """The edges as their ends say: the circles on whose rims they start and end; gids only in so far as they agree."""
    found = set()
    for edge, (start, end, arrow) in lines(ax).items():
        tail, head = (
            next(name for name, place in circles(ax).items() if math.dist(place, point) < drawing.RADIUS + 1e-6)
            for point in (start, end)
        )
        assert math.dist(start, circles(ax)[tail]) == pytest.approx(drawing.RADIUS)
        assert math.dist(end, circles(ax)[head]) == pytest.approx(drawing.RADIUS)
        found.add(f"{tail} {'->' if arrow else '-'} {head}")
        assert edge in found
    return found


def titles(figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes]


def test_variables_stand_clockwise_on_a_circle_from_the_top():
    ax = Figure().subplots()
    drawing.draw_graph(ax, "ABCD", [])
    assert list(circles(ax)) == list("ABCD") and drawn_edges(ax) == set()
    for name, place in zip("ABCD", [(0, 1), (1, 0), (0, -1), (-1, 0)], strict=True):
        assert circles(ax)[name] == pytest.approx(place)
    assert [text.get_text() for text in ax.texts] == list("ABCD")
    assert ax.get_aspect() == 1 and not [*ax.get_xticks(), *ax.get_yticks()]
    assert not any(spine.get_visible() for spine in ax.spines.values())


def test_arrows_and_lines_run_from_rim_to_rim():
    edges = ["A -> B", "C -> A", "B - C", "Rain -> C", "body weight - A", "Rain -> body weight"]
    ax = Figure().subplots()
    drawing.draw_graph(ax, ["A", "B", "C", "Rain", "body weight"], edges, highlight=["Rain", "C -> A"])
    assert drawn_edges(ax) == set(edges) and "body\nweight" in [text.get_text() for text in ax.texts]
    filled = {patch.get_gid() for patch in ax.patches if patch.get_facecolor()[:3] != (1, 1, 1)}
    widths = {text.get_gid(): text.arrow_patch.get_linewidth() for text in ax.texts if text.get_gid()}
    assert filled == {"Rain"} and widths["C -> A"] > widths["A -> B"] == widths["Rain -> C"]


@pytest.mark.parametrize("n", range(2, 9))
def test_no_line_crosses_a_circle_that_it_does_not_end_at(n):
    names = LETTERS[:n]
    ax = Figure().subplots()
    drawing.draw_graph(ax, names, [f"{a} -> {b}" for k, a in enumerate(names) for b in names[k + 1 :]])
    for edge, ((x, y), (u, v), _) in lines(ax).items():
        for name in set(names) - set(edge):
            p, q = circles(ax)[name]
            along = max(0, min(1, ((p - x) * (u - x) + (q - y) * (v - y)) / ((u - x) ** 2 + (v - y) ** 2)))
            assert math.dist((p, q), (x + along * (u - x), y + along * (v - y))) > drawing.RADIUS
    assert min(math.dist(circles(ax)[a], circles(ax)[b]) for a in names for b in names if a != b) > 3 * drawing.RADIUS


@pytest.mark.parametrize(
    "edges, highlight, message",
    [
        (["A -> D"], (), "edge 'A -> D': expected"),
        (["A <- B"], (), "edge 'A <- B': expected"),
        (["A->B"], (), "edge 'A->B': expected"),
        (["A - A"], (), "edge 'A - A': expected"),
        (["A - B"], ["A -> B"], "highlight: A -> B is no"),
    ],
)
def test_what_cannot_be_drawn_is_named(edges, highlight, message):
    with pytest.raises(ValueError, match=message):
        drawing.draw_graph(Figure().subplots(), "ABC", edges, highlight)


@pytest.mark.parametrize("dag", DAGS, ids=str)
def test_the_class_is_drawn_and_then_its_members(dag):
    premise = premise_of(dag)
    members, claim = markov_equivalence_class(premise), Claim("direct", 0, 1)
    figure, numbers = drawing.class_figure(premise, claim), drawing.shown_members(examine(premise, claim).failing)
    plain, shown = [title.partition(":")[0] for title in titles(figure)], min(len(members), 11)
    assert plain == ["the class", *(f"member {k + 1}" for k in numbers)] and len(numbers) == shown
    assert drawn_edges(figure.axes[0]) == set(class_edges(premise))
    for ax, member in zip(figure.axes[1:], (members[k] for k in numbers), strict=True):
        drawn = {tuple(premise.variables.index(name) for name in edge.split(" -> ")) for edge in drawn_edges(ax)}
        assert drawn == set(dag_edges(member))
        assert drawn_edges(ax) == set(member_edges(member, premise.variables))
    more = re.findall(r"([\d,]+) more", figure.get_suptitle())
    assert more == ([f"{len(members) - shown:,}"] if len(members) > shown else [])
    assert f" of {len(members):,} member" in figure.get_suptitle()


@pytest.mark.parametrize("dag", DAGS[:-1], ids=str)
def test_exactly_the_members_in_which_the_claim_fails_are_marked(dag):
    premise = premise_of(dag)
    members = markov_equivalence_class(premise)
    claims = all_claims(len(dag))
    for claim in random.Random(0).sample(claims, min(6, len(claims))):
        figure = drawing.class_figure(premise, claim)
        assert not figure.axes[0].spines["left"].get_visible()
        for ax in figure.axes[1:]:
            number, fails = re.fullmatch(r"member (\d+)(: claim fails)?", ax.get_title()).groups()
            expected = not holds(members[int(number) - 1], claim)
            assert bool(fails) == expected == all(spine.get_visible() for spine in ax.spines.values())
            assert (ax.get_facecolor()[:3] != (1, 1, 1)) == expected
            assert drawn_edges(ax) == set(member_edges(members[int(number) - 1], premise.variables))
        failing = sum(not holds(member, claim) for member in members)
        assert (f"No: it fails in {failing} of" if failing else "Yes: it holds in") in figure.get_suptitle()
        filled = {p.get_gid() for p in figure.axes[1].patches if p.get_facecolor()[:3] != (1, 1, 1)}
        assert filled == {premise.variables[claim.i], premise.variables[claim.j]}


def test_a_failure_beyond_the_first_members_is_drawn():
    assert drawing.shown_members([False] * 3) == [0, 1, 2]
    assert drawing.shown_members([False] * 40) == list(range(11))
    assert drawing.shown_members([False] * 20 + [True] * 9) == [*range(10), 20]
    assert drawing.shown_members([False] * 10 + [True] * 9) == list(range(11))


@pytest.mark.parametrize("dag", [(0, 1), CHAIN, COMPLETE], ids=str)
def test_nothing_overlaps(dag):
    """Panels, their titles and the figure's title: their rectangles are apart and inside the figure."""
    figure = drawing.class_figure(premise_of(dag), Claim("confounder", 0, 1))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [ax.get_window_extent(renderer) for ax in figure.axes] + [figure._suptitle.get_window_extent(renderer)]
    boxes += [ax.title.get_window_extent(renderer) for ax in figure.axes]
    for k, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:k])


def test_neither_torch_nor_pyplot_is_needed():
    code = "import sys, causal.drawing; print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, text=True, capture_output=True).stdout == "[]\n"
