"""Pictures: well-formed, complete, and true to the simulation."""

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from schedules.actions import Kind
from schedules.costs import Costs, Link, StageCosts, stage_costs
from schedules.draw import to_svg, to_text, to_trace
from schedules.draw.svg import DARK, LEFT, LIGHT, RIGHT, WIDTH
from schedules.generators import GENERATORS, generate
from schedules.node_costs import NodeCost
from schedules.simulate import simulate

KINDS = {"F", "B", "I", "W", "FB"}
SVG = "{http://www.w3.org/2000/svg}"


def simulation(name, ranks=4, microbatches=8, **how):
    return simulate(generate(name, ranks, microbatches), Costs((StageCosts(),), Link(0.25), **how))


def parts(sim):
    return [part for timeline in sim.timeline for timed in timeline for part in timed.action.parts]


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_svg_has_a_box_and_a_number_for_every_action(name):
    sim = simulation(name)
    root = ElementTree.fromstring(to_svg(sim))
    boxes = Counter()
    for path in root.iter(f"{SVG}path"):
        style = path.get("class") or ""
        if re.fullmatch(r"[FBIW]\d", style):
            boxes[style[0]] += path.get("d").count("M")
    legend = {
        kind: sum(1 for p in root if (p.get("class") or "").startswith(kind) and "29h14" in p.get("d"))
        for kind in "FBIW"
    }
    drawn = Counter(part.kind.value for part in parts(sim))
    assert {k: boxes[k] - legend[k] for k in "FBIW"} == {k: drawn[k] for k in "FBIW"}
    numbers = Counter(t.text for g in root.iter(f"{SVG}g") for t in g.iter(f"{SVG}text"))
    assert numbers == Counter(str(part.microbatch) for part in parts(sim))
    pairs = sum(timed.action.kind is Kind.FB for timeline in sim.timeline for timed in timeline)
    frames = sum(p.get("d").count("M") for p in root.iter(f"{SVG}path") if p.get("class") == "pair")
    assert frames == pairs + (pairs > 0)  # and one in the legend


def test_svg_boxes_lie_where_the_simulation_says():
    sim = simulation("gpipe", 1, 2)  # F0 F1 B0 B1 from 0 to 6
    root = ElementTree.fromstring(to_svg(sim))
    (path,) = [p for p in root if p.get("class") == "B0" and "29h14" not in p.get("d")]
    starts = [float(x) for x in re.findall(r"M([\d.]+) ", path.get("d"))]
    scale = (WIDTH - LEFT - RIGHT) / 6
    assert starts == pytest.approx([LEFT + 2 * scale, LEFT + 4 * scale], abs=0.01)


def luminance(colour):
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_colours_are_told_apart_in_grey():
    """Eight shades, from F to W, at least 6% of full lightness apart."""
    shades = [luminance(shade[kind]) for kind in (Kind.F, Kind.I, Kind.B, Kind.W) for shade in (LIGHT, DARK)]
    assert all(a - b >= 0.06 for a, b in pairwise(shades)), shades


def test_svg_of_overlapping_halves_splits_the_row():
    sim = simulate(generate("dualpipe", 2, 8), Costs((StageCosts(FB=2.4),), lead=0))
    tall = set(re.findall(r"v([\d.]+)h-", to_svg(sim)))
    assert tall == {"24", "12", "13"}  # whole rows, halves, and the legend


def test_text_has_a_line_per_rank_and_fits():
    for name in GENERATORS:
        for columns in (40, 100, 300):
            lines = to_text(simulation(name), columns).splitlines()
            assert len(lines) == 4
            assert max(map(len, lines)) <= columns
    assert to_text(simulation("1f1b", 1, 2), 14) == "0 F0B0--F1B1--\n"


def test_text_never_cuts_a_number():
    """Where B13 does not fit there is no B1, which would be another micro-batch."""
    sim = simulation("1f1b", 2, 14)
    shown = re.findall(r"([FB])(\d*)", to_text(sim, 60).splitlines()[0])
    assert [k for k, _ in shown] == [part.kind.value for part in parts(sim)[:28]]
    for (_, number), part in zip(shown, parts(sim)[:28], strict=True):
        assert number in ("", str(part.microbatch))


def test_text_in_colour_says_the_same():
    sim = simulation("dualpipe")
    assert re.sub(r"\x1b\[[\d;]*m", "", to_text(sim, 120, colour=True)) == to_text(sim, 120)


MOE = [
    NodeCost("attention", "compute", 3, 4, 2),
    NodeCost("dispatch", "communication", 2, 2),
    NodeCost("experts", "high", 3, 3, 3),
    NodeCost("combine", "communication", 2, 2),
]


@pytest.mark.parametrize("name", sorted(GENERATORS))
@pytest.mark.parametrize("stage", [StageCosts(), stage_costs([MOE, MOE])], ids=["plain", "nodes"])
@pytest.mark.parametrize("lead", [0, 0.5, 1])
def test_trace_slices_nest_and_arrows_meet_their_actions(name, stage, lead):
    sim = simulate(generate(name, 2, 6), Costs((stage,), Link(0.7), lead=lead))
    events = json.loads(to_trace(sim))["traceEvents"]
    lanes = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            lanes[e["pid"], e["tid"]].append((e["ts"], -e["dur"], e["name"]))
    for slices in lanes.values():
        open_until = []
        for start, minus, text in sorted(slices):
            while open_until and open_until[-1] <= start + 1e-6:
                open_until.pop()
            assert not open_until or start - minus <= open_until[-1] + 1e-6, text
            open_until.append(start - minus)
    names = Counter(e["name"] for e in events if e["ph"] == "X" and e["tid"] == 0 and e["cat"] in KINDS)
    for timeline in sim.timeline:
        for timed in timeline:
            assert names[str(timed.action)] == 1
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys() and len(starts) == len(sim.transfers)
    for number, transfer in enumerate(sim.transfers):
        assert starts[number]["pid"] == transfer.message.source_rank
        assert ends[number]["pid"] == transfer.message.target_rank
        for e in (starts[number], ends[number]):
            inside = [s for s, minus, _ in lanes[e["pid"], 0] if s <= e["ts"] <= s - minus]
            assert inside
    assert ("nodes" in {e.get("cat", "") + "s" for e in events}) == bool(stage.layers)
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} >= {"compute", "high priority"}
