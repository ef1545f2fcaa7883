"""The page and its files: what stands in them, without a browser."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from hcmegatron.profiling import files as files_of_profile
from hcmegatron.report import files
from hcmegatron.report.assemble import sections, title
from hcmegatron.report.charts import Bars, Line, Lines, Picture, Section, Slides, Tiles
from hcmegatron.report.inputs.executed import executed, timeline
from hcmegatron.report.inputs.run import directories
from hcmegatron.report.page.html import content, in_script, page
from hcmegatron.report.sections import schedule
from hcmegatron.report.sections.observed import observed_charts
from schedules.generators import generate
from tests.report.run_directories import (
    add_observations,
    arrays,
    lines,
    make_run,
    make_whole_run,
    train_line,
)

VOID = {"meta", "img", "input", "link", "br"}


class Page(HTMLParser):
    """Tags, which have to be closed in turn; the words outside of scripts; what is loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.loaded, self.rows = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.loaded += [v for n, v in attributes if n in ("src", "href") and not v.startswith(("#", "data:"))]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        if data.strip():
            self.words.append(" ".join(data.split()))
            if "tr" in self.open:
                self.rows[-1].append(self.words[-1])


def of(*paths, compare=False):
    runs = [directory.read() for directory in directories(list(paths))]
    return sections(runs, compare), runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two runs, everything in the second, compared."""
    folder = tmp_path_factory.mktemp("runs")
    paths = make_run(folder / "first", start=5.4), make_whole_run(folder / "second", connection={"n": 2})
    parts, runs = of(*paths, compare=True)
    return parts, runs


def test_every_number_is_there_without_scripts(whole):
    parts, runs = whole
    found = Page(page(title(runs), content(parts), "/* plotly */"))
    assert found.loaded == []
    assert ["connection.n", "4", "2"] in found.rows  # the difference
    assert ["1", "6.5546", "6.174"] in found.rows  # training loss, smoothed
    assert ["60", "4.0313", "3.9026"] in found.rows  # bits a byte
    held = [
        row for row in found.rows if row[:4] == ["rank 0", "0.25", "0.125", "0.375"]
    ]  # weights, activations, both
    assert [row[4] for row in held] == ["0.75", "0.8125"]  # measured
    assert ["rank 1", "0.25", "0.125", "0.375", "–"] in found.rows
    assert ["rank 1", "0.25", "0.125", "0.375", "0.625"] in found.rows
    assert ["hop", "15.0", "25.0", "62%", "0.00"] in found.rows  # communication
    assert ["messages between stages take no time", "540.0", "1.8%"] in found.rows
    assert ["parallel.schedule=gpipe", "460.0", "16.4%"] in found.rows
    assert ["0", "1SEND_B0", "5.0"] in found.rows  # waited for
    assert (
        "Profile of step 11: 550.0 ms (simulated with its own costs: 550.0 ms), 1f1b, 4 micro-batches; clocks agree "
        "to within 0.010 ms: second." in found.words
    )
    assert ["second", "30", "death", "rank 1 ended with SIGKILL"] in found.rows
    assert {row[0] for row in found.rows if re.fullmatch(r"layer \d", row[0])} == {
        "layer 2",
        "layer 3",
        "layer 4",
    }
    assert ["torch", "2.13.0", "2.13.0"] in found.rows
    assert any(row[0] == "layer 2 mlp, stream 3" and len(row) == 5 for row in found.rows)  # residual maps
    assert "second ends 0.0915 below first." in found.words
    assert any(words.startswith("B: second: mhc with n = 2") for words in found.words)
    headings = {section.title for section in parts}
    assert {"Summary", "Gap to the first run", "Schedule", "Connections", "Overlap", "Events"} < headings


def test_every_figure_is_one_that_plotly_takes(whole):
    """plotly's Python classes know every property of every trace, and refuse others."""
    figures = content(whole[0]).figures
    assert len(figures) > 20
    for name, figure in figures.items():
        for drawing in figure.get("slides", [figure]):
            text = re.sub(r'"@(rising|diverging)"', '"Viridis"', json.dumps(drawing))
            drawing = json.loads(re.sub(r'"@\w+"', '"#123456"', text))
            for trace in drawing["traces"]:
                trace.pop("over", None)
            go.Figure(data=drawing["traces"], layout=drawing["layout"])
            assert drawing["traces"], name


def test_names_and_settings_are_text_and_never_markup(tmp_path):
    evil = "</script><script>alert(1)</script><b>&amp;"
    run = make_run(tmp_path / "x<b>&'y", steps=3)
    (run / "environment.json").write_text(json.dumps({"command": evil}))
    (run / "config.yaml").write_text(json.dumps({"connection": {"kind": evil}, evil: evil}))
    parts, runs = of(run)
    found = content(parts)
    text = page(title(runs), found, "/* plotly */")
    assert evil not in text and "<b>" not in text
    assert found.figures["loss"]["traces"][0]["name"] == "x&lt;b>&amp;'y"  # plotly.js takes < for markup
    assert any(evil in words for words in Page(text).words)
    assert in_script({"a": evil}).count("<") == 0 and json.loads(in_script({"a": evil})) == {"a": evil}


@pytest.mark.parametrize(
    "entries", [[], [{"step": 1, "kind": "train", "loss": None, "nonfinite": {"loss": "nan"}}]]
)
def test_a_run_without_a_step_or_without_a_finite_loss_has_a_page(tmp_path, entries):
    run = make_run(tmp_path / "run", steps=3)
    lines(run / "metrics.jsonl", entries)
    parts, runs = of(run, make_run(tmp_path / "other", steps=2), compare=True)
    found = Page(page(title(runs), content(parts), ""))
    assert any("has no step on record" in words or "diverged" in words for words in found.words)
    assert any("have no tokens in common" in words for words in found.words)


def test_a_hundred_thousand_steps_and_eighty_sub_layers_stay_below_ten_megabytes(tmp_path):
    run = make_run(tmp_path / "0", steps=1)
    entries = [train_line(step, 3.0 + (step * 7919 % 1000) / 1000) for step in range(1, 100_001)]
    lines(run / "metrics.jsonl", entries)
    for name in ("1", "2"):
        make_run(tmp_path / name, steps=1)
        lines(tmp_path / name / "metrics.jsonl", entries[:5000])
    add_observations(run, steps=tuple(range(100, 3100, 100)), layers=40)
    parts, runs = of(*(tmp_path / name for name in "012"), compare=True)
    text = page(title(runs), content(parts), get_plotlyjs())
    assert len(text.encode()) < 10e6
    assert "least and the greatest value of each of 500 spans are drawn" in text
    assert "of 30 observations are shown" in text


DRAWN = ("loss", "memory-2", "gains-2", "residual-maps-2", "router-bias-2", "connection-matrix-2")


def test_files_for_papers(whole, tmp_path):
    """Of one figure of every sort; each costs matplotlib a third of a second."""
    parts = [part for section in whole[0] for part in section.parts]
    names = [part.name for part in parts if isinstance(part, Lines | Tiles | Bars | Slides | Picture)]
    assert len(set(names)) == len(names) > 20
    few = [part for part in parts if isinstance(part, Picture) or getattr(part, "name", "") in DRAWN]
    written = files.write([Section("few", "Few", tuple(few))], tmp_path / "report")
    for name in DRAWN:
        found = {path.suffix for path in written if path.stem == name}
        assert found == {".svg", ".png", ".csv"}, name
        assert ET.parse(tmp_path / "report" / f"{name}.svg").getroot().tag.endswith("svg")
        assert (tmp_path / "report" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.stem for path in written} - set(DRAWN) == {
        "schedule-1",
        "schedule-2",
        "schedule-executed-2",
        "schedule-measured-2",
    }
    rows = list(csv.reader((tmp_path / "report" / "loss.csv").open()))
    assert rows[0] == ["curve", "step", "tokens", "hours", "loss, nats a token"]
    raw = [row for row in rows if row[0] == "second, each step"]
    assert (
        len(raw) == 60
        and raw[0][1:3] == ["1", "64"]
        and float(raw[0][4]) == pytest.approx(6.312196, abs=1e-6)
    )
    assert raw[44][4] == ""  # not finite
    slides = list(csv.reader((tmp_path / "report" / "gains-2.csv").open()))
    assert slides[0] == ["step", "curve", "depth", "gain"] and {row[0] for row in slides[1:]} == {
        "20",
        "40",
        "60",
    }


def test_the_same_numbers_are_the_same_svg(tmp_path):
    line = Line("a", "A", {"step": np.arange(3.0)}, np.array([1.0, np.nan, 2.0]))
    chart = Lines("x", "t", "v", {"step": "step"}, (line,), log=True)
    for name in ("1", "2"):
        files.draw(chart).savefig(tmp_path / f"{name}.svg", metadata={"Date": None})
    assert list(chart.records()) == [("curve", "step", "v"), ("a", "0", "1"), ("a", "1", ""), ("a", "2", "2")]
    assert chart.table().rows == (("0", "1"), ("1", "–"), ("2", "2"))


def test_a_schedule_as_a_profiled_step_ran_it(tmp_path):
    """Every action with its own times on the shared clock; of a pair both halves. The simulation beside it is the one
    that the profile's own figures are of."""
    run = make_whole_run(tmp_path / "run", parallel={"schedule": "dualpipev"})
    (run / "profile" / "schedule-mine.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    pictures = schedule_parts(run)
    assert [part.title for part in pictures] == [
        "Simulated with planned times",
        "As it ran",
        "Simulated with measured times",
    ]
    assert "in the median of step 11, in milliseconds; a message takes 5, the host" in pictures[2].note
    ordered, records = generate("dualpipev", 2, 4), files_of_profile.read_records(run)
    found = executed(timeline(records, 11), ordered)
    pairs = [timed for timed in found.timeline[0] if timed.action.overlapped]
    assert any(t.backward_start < t.forward_end < t.end for t in pairs)
    first, second = (own[0] for own in found.timeline)
    assert (first.start, first.end) == pytest.approx((0.0, 0.02))
    assert second.start == pytest.approx(0.025)  # after the message, though its clock is 5 s behind
    assert found.makespan == pytest.approx(0.505)
    assert timeline(records, 12) is None and timeline(records[1:], 11) is None
    assert executed(timeline(records, 11), generate("1f1b", 2, 4)) is None
    (run / "profile" / "rank-001.json").write_text("{")
    words, planned = schedule_parts(run)
    assert planned.title == "Simulated with planned times"
    assert words.lines == ("run: profile/ does not have the records of all ranks of a step.",)
    assert of(run)[1][0].remarks == (
        "profile/rank-001.json is no record of a rank: "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    )


def test_a_profile_of_a_version_without_split_backward_is_drawn(tmp_path):
    """Its configuration does not have the key, and its backwards are whole."""
    run = make_whole_run(tmp_path / "run", parallel={"split_backward": None})
    assert [part.title for part in schedule_parts(run)][1:] == ["As it ran", "Simulated with measured times"]


def test_the_simulation_with_measured_times_takes_as_long_as_the_profile_says(tmp_path, monkeypatch):
    """One page, one simulation: host, lead and tail are in both."""
    drawn = []
    monkeypatch.setattr(schedule, "to_svg", lambda simulation: drawn.append(simulation) or "<svg/>")
    for name in ("1f1b", "dualpipev", "zb_h1"):
        run = make_whole_run(tmp_path / name, parallel={"schedule": name})
        schedule_parts(run)
        profile = files_of_profile.read_summary(run)
        measured = drawn[-1].makespan + profile["outside_pipeline_ms"]
        assert measured == pytest.approx(profile["simulated_step_ms"], abs=1e-3), name


def test_planned_times_are_those_that_were_measured_where_the_plan_has_them(tmp_path, monkeypatch):
    """parallel.costs: the run's plan.json is of them, and so is the picture."""
    run, asked = make_run(tmp_path / "run", steps=2), []
    plan = json.loads((run / "plan.json").read_text())
    plan["measured"] = {"ranks": 2, "date": "2026-11-26"}
    (run / "plan.json").write_text(json.dumps(plan))
    monkeypatch.setattr(schedule, "fitting", lambda config, ranks: asked.append(ranks) or MEASURED)
    plain = schedule.make_plan

    def made(config, machine, ranks, measured=None):
        asked.append(measured)
        return plain(config, machine, ranks)

    monkeypatch.setattr(schedule, "make_plan", made)
    schedule_parts(run)
    assert asked == [2, MEASURED]


MEASURED = object()


def test_costs_that_are_gone_leave_the_profiles_schedules(tmp_path):
    run = make_whole_run(tmp_path / "run", parallel={"costs": str(tmp_path / "gone.yaml")})
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "measured": {"ranks": 2, "date": "2026-11-26"}}))
    words, *found = schedule_parts(run)
    assert "run: no schedule is simulated: " in words.lines[0] and "gone.yaml" in words.lines[0]
    assert [part.title for part in found] == ["As it ran", "Simulated with measured times"]


def schedule_parts(run):
    (found,) = [section for section in of(run)[0] if section.name == "schedule"]
    return found.parts


@pytest.mark.parametrize("odd", [None, "x", 0, -1, [], 1e300])
def test_a_plan_whose_machine_is_damaged_is_said_and_drawn_nowhere(tmp_path, odd):
    run = make_run(tmp_path / "run", steps=2)
    plan = json.loads((run / "plan.json").read_text())
    for figure in ("copy_tbs", "context_gib"):
        (run / "plan.json").write_text(json.dumps({**plan, "machine": {**plan["machine"], figure: odd}}))
        (found,) = schedule_parts(run)
        if (figure, odd) != ("context_gib", 0):  # there may be none
            assert found.lines[0].startswith("run: no schedule is "), found


def test_a_reading_matrix_of_fractions_is_a_tile_for_each_sub_layer():
    """FC's pre is [S, n, n]: rows are the fractions of x, columns the streams that they are of."""
    found = arrays(1, layers=1, n=2)
    found["pre"] = np.arange(8.0).reshape(2, 2, 2)
    (chart,) = [chart for chart in observed_charts(found) if chart.name == "pre"]
    assert chart.rows == ("fraction 1", "fraction 2") and chart.columns == ("stream 1", "stream 2")
    assert {name: tile.tolist() for name, tile in chart.tiles.items()} == {
        "layer 1 attention": [[0.0, 1.0], [2.0, 3.0]],
        "layer 1 mlp": [[4.0, 5.0], [6.0, 7.0]],
    }


def test_many_warnings_push_nothing_else_out(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    warned = {"code": "composite_gain", "value": 1.0, "bound": 0.5, "message": "grew"}
    entry = {"tokens": 32, "seconds": 0.1, "scalars": {}}
    lines(
        run / "diagnostics.jsonl",
        [{"step": s, **entry, "warnings": [{**warned, "layer": f"layer {s}"}]} for s in range(2, 302)],
    )
    (found,) = [section for section in of(run)[0] if section.name == "events"]
    words, table = found.parts
    assert ("run", "1", "checkpoint", "checkpoints/step-00000001") in table.rows
    assert len(table.rows) == 201 and "run: 100 earlier warnings are not shown." in words.lines


def test_what_warnings_are_of_is_drawn_by_depth():
    found = arrays(1, layers=2)
    charts = {chart.name: chart for chart in observed_charts(found)}
    for name, keys in (
        ("gate-saturation", ["gate_saturation"]),
        ("doubly-stochastic-error", ["doubly_stochastic_error"]),
        ("gradients", ["sublayer_gradient_norm", "gradient_norm"]),
    ):
        assert [line.values.tolist() for line in charts[name].lines] == [found[key].tolist() for key in keys]
