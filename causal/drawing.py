"""Causal graphs as figures: one graph on given axes, or a premise's equivalence class beside its members.

    figure = class_figure(parse_premise(text), claim)
    figure.savefig("class.svg")

Edges are strings as `wording.class_edges` writes them: 'A -> B' is an arrow, 'A - B' a plain line. The artist of an
edge or of a variable has its string as gid. Everything is black, white or grey, so that a print shows all there is.
"""

import re
import textwrap
from collections.abc import Collection, Sequence
from math import ceil, cos, pi, sin

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from causal.claims import Claim, Examined, examine
from causal.classes import Premise
from causal.vocabulary import TEMPLATE_OF
from causal.wording import class_edges, member_edges, write_hypothesis

RADIUS = 0.18  # of a variable's circle; the circle on which they stand has radius 1
MAX_MEMBERS = 11  # drawn of a class, which makes twelve panels with the class itself
COLUMNS = 4


def draw_graph(ax: Axes, variables: Sequence[str], edges: Sequence[str], highlight: Collection[str] = ()) -> None:
    """Draws the graph: variables on a circle, the first at the top, clockwise; arrows that end at a circle's rim.

    `highlight` names variables and edges: these circles are grey, all of these lines thick. Raises ValueError for an
    edge that is not 'A -> B' or 'A - B' of two of the variables, and for a highlight that is not drawn.
    """
    unknown = set(highlight) - {*variables, *edges}
    if unknown:
        raise ValueError(f"highlight: {', '.join(sorted(unknown))} is no variable and no edge of the graph")
    angles = [2 * pi * k / len(variables) for k in range(len(variables))]
    places = {name: (sin(angle), cos(angle)) for name, angle in zip(variables, angles, strict=True)}
    for edge in edges:
        tail, sign, head = re.fullmatch(r"(.*) (->|-) (.*)|.*", edge).groups(default="")
        if not sign or tail == head or not {tail, head} <= places.keys():
            raise ValueError(f"edge {edge!r}: expected 'A -> B' or 'A - B', of two among {', '.join(variables)}")
        _draw_edge(ax, edge, places[tail], places[head], sign == "->", 2.6 if edge in highlight else 1.2)
    for name, place in places.items():
        fill, width = ("0.8", 2.6) if name in highlight else ("white", 1.2)
        ax.add_patch(Circle(place, RADIUS, facecolor=fill, edgecolor="black", linewidth=width, zorder=3, gid=name))
        # Points: a name of some letters must not leave its circle. A longer one does, and stays readable.
        size = max(6, min(11, 33 / max(map(len, name.split()))))
        ground = {"facecolor": fill, "edgecolor": "none", "pad": 0.6} if size * len(name) > 33 else None
        label = name.replace(" ", "\n")
        ax.text(*place, label, ha="center", va="center", fontsize=size, linespacing=1.0, zorder=4, bbox=ground)
    ax.set(aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _draw_edge(
    ax: Axes, edge: str, tail: tuple[float, float], head: tuple[float, float], arrow: bool, width: float
) -> None:
    """A line from the rim of the circle at `tail` to that of the one at `head`, as an arrow or not."""
    (x, y), (u, v) = tail, head
    share = RADIUS / ((u - x) ** 2 + (v - y) ** 2) ** 0.5  # of the line, inside a circle
    start, end = (x + share * (u - x), y + share * (v - y)), (u - share * (u - x), v - share * (v - y))
    if arrow:
        style = {
            "arrowstyle": "-|>",
            "mutation_scale": 13,
            "shrinkA": 0,
            "shrinkB": 0,
            "linewidth": width,
            "fc": "black",
        }
        ax.annotate("", xy=end, xytext=start, arrowprops=style).set_gid(edge)
    else:
        ax.plot(*zip(start, end, strict=True), color="black", linewidth=width, solid_capstyle="butt", gid=edge)


def shown_members(failing: Sequence[bool]) -> list[int]:
    """The members to draw: the first MAX_MEMBERS; if the claim fails only beyond them, its first failure in the end."""
    shown = list(range(min(len(failing), MAX_MEMBERS)))
    if any(failing) and not any(failing[k] for k in shown):
        shown[-1] = failing.index(True)
    return shown


def class_figure(premise: Premise, claim: Claim) -> Figure:
    """The equivalence class of the premise, then its members (some, if there are many), and where `claim` fails.

    The claim's two variables are grey in every panel. A member in which the claim fails has 'claim fails' in its title,
    a grey ground and a dashed frame. Raises Corr2CauseError if no graph satisfies the premise.
    """
    names, found = premise.variables, examine(premise, claim)
    shown, highlight = shown_members(found.failing), (names[claim.i], names[claim.j])
    columns = min(COLUMNS, 1 + len(shown))
    rows = ceil((1 + len(shown)) / columns)
    size = (2.4 * columns, 2.55 * rows + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    title = _title(premise, claim, found, len(shown))
    lines = [textwrap.fill(line, int(size[0] * 11)) for line in title.split("\n")]
    figure.suptitle("\n".join(lines), fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    draw_graph(axes[0], names, class_edges(premise), highlight)
    axes[0].set_title("the class", fontsize=10, fontweight="bold")
    for ax, k in zip(axes[1:], shown, strict=False):
        draw_graph(ax, names, member_edges(found.members[k], names), highlight)
        ax.set_title(f"member {k + 1}" + ": claim fails" * found.failing[k], fontsize=10)
        if found.failing[k]:
            ax.set_facecolor("0.93")
            ax.spines[:].set(visible=True, linestyle=(0, (5, 4)), linewidth=1.2)
    for ax in axes[1 + len(shown) :]:
        ax.remove()
    return figure


def _title(premise: Premise, claim: Claim, found: Examined, drawn: int) -> str:
    """The claim, whether it follows, how many members there are, and how many more than are drawn."""
    size, rest = found.size, found.size - drawn
    more = f" {rest:,} more {'is' if rest == 1 else 'are'} not drawn." * (rest > 0)
    answer = f"No: it fails in {found.extent}" if any(found.failing) else f"Yes: it holds in {size:,} of {size:,}"
    hypothesis = write_hypothesis(claim, premise.variables, TEMPLATE_OF[claim.relation])
    return f"{hypothesis}\n{answer} member{'s' * (size > 1)}.{more}"
