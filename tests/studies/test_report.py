"""hcmegatron study report: every figure's numbers by hand, what is not drawn and why, and one line for a mistake."""

import csv
import json
import re

import pytest

from hcmegatron.cli import main
from hcmegatron.config.errors import ConfigError
from hcmegatron.report.charts import Table as Shown
from hcmegatron.report.charts import Words
from hcmegatron.studies.figures.plot import NotDrawn, Plot
from hcmegatron.studies.figures.styles import kind_styles, styles
from hcmegatron.studies.read_results import read_results
from hcmegatron.studies.record import Record, write_record
from hcmegatron.studies.report import study_sections
from hcmegatron.studies.table import Table
from tests.studies.tables import grid, row, written


class Report:
    """The sections of a table's report, undrawn."""

    def __init__(self, path, baseline="residual", directory=None):
        self.results = read_results(Table(str(path)), baseline)
        self.sections = {s.name: s.parts for s in study_sections(self.results, directory, 0.9, 20)}
        self.parts = [part for parts in self.sections.values() for part in parts]

    def plot(self, name):
        return next(part for part in self.parts if isinstance(part, Plot) and part.name == name)

    def series(self, plot, name, panel=0):
        return next(series for series in self.plot(plot).panels[panel].series if series.name == name)

    def table(self, section):
        return next(part for part in self.sections[section] if isinstance(part, Shown))

    def why(self, title):
        return next(
            part.why for part in self.parts if isinstance(part, NotDrawn) and part.title.startswith(title)
        )

    def words(self, section):
        return " ".join(
            line for part in self.sections[section] if isinstance(part, Words) for line in part.lines
        )


@pytest.fixture
def report(tmp_path):
    return lambda rows, **options: Report(written(tmp_path / "table.csv", rows), **options)


def test_the_ablation(report):
    """Table 1: none first, all last; a gap of two seeds, and t for one degree of freedom is 6.314."""
    rows = [row("residual", seed, 3.0 + seed) for seed in (0, 1)]
    for (res, pre, post), gap in {
        (1, 1, 1): -0.027,
        (0, 0, 0): 0.0,
        (1, 0, 0): -0.022,
        (1, 1, 0): -0.025,
    }.items():
        switches = {"use_res": bool(res), "use_pre": bool(pre), "use_post": bool(post)}
        rows += [row("mhc", seed, 3.0 + seed + gap + 0.001 * (2 * seed - 1), **switches) for seed in (0, 1)]
    found = report(rows)
    table = found.table("ablation")
    assert table.head == ("kind", "res", "pre", "post", "gap, size s")
    assert [line[1:4] for line in table.rows] == [
        ("off", "off", "off"),
        ("on", "off", "off"),
        ("on", "on", "off"),
        ("on", "on", "on"),
    ]
    assert table.rows[1][4] == "-0.0220 (-0.0283 to -0.0157), 2 seeds"
    panel = found.plot("ablation").panels[0]
    assert panel.rows == ("mhc: none", "mhc: res", "mhc: res + pre", "mhc: res + pre + post")
    assert [series.x[0] for series in panel.series] == pytest.approx([0, -0.022, -0.025, -0.027])
    assert (
        found.words("limits").count(
            "mhc use_pre=false use_post=false use_res=false and residual are not told apart"
        )
        == 1
    )


def test_the_expansion(report):
    rows = [row("residual", 0, 3.0)]
    rows += [row("dhc", 0, 3.0 - 0.01 * n, n=n, tanh=tanh) for n in (1, 2, 4) for tanh in (True,)]
    rows += [
        row("dhc", 0, 2.9, n=4, tanh=False),
        row("dhc", 0, None, n=8, tanh=False),
        row("sfc", 0, 2.99, n=4),
    ]
    found = report(rows)
    assert found.table("expansion").rows == (
        ("dhc tanh=true", "s", "-0.0100, 1 seed", "-0.0200, 1 seed", "-0.0400, 1 seed", "–"),
        ("dhc tanh=false", "s", "–", "–", "-0.1000, 1 seed", "–, 0 seeds, 1 diverged"),
    )
    series = found.series("expansion", "dhc tanh=true")
    assert series.x.tolist() == [1, 2, 4] and series.y == pytest.approx([-0.01, -0.02, -0.04])
    lost = found.series("expansion", "dhc tanh=false: diverged")
    assert (lost.x.tolist(), lost.y.tolist()) == ([8], [1])


def test_the_stress(report):
    """The best rate of each kind is its own; spikes are of all runs, losses of those that finished."""
    rows = []
    for kind, best in (("residual", 1e-3), ("dhc", 2e-3)):
        for times, loss, spikes in ((0.5, 3.1, 0), (1, 3.0, 1), (2, 3.2, 4)):
            for seed in (0, 1):
                lost = kind == "dhc" and times == 2 and seed == 1
                rows.append(
                    row(
                        kind,
                        seed,
                        None if lost else loss + 0.01 * seed,
                        lr=best * times,
                        spikes=spikes + seed,
                    )
                )
    found = report(rows)
    table = found.table("stress")
    assert [line[2:6] for line in table.rows if line[0] == "dhc"] == [
        ("0.001", "0.5", "2", "0"),
        ("0.002", "1", "2", "0"),
        ("0.004", "2", "2", "1"),
    ]
    assert table.rows[5][6:] == ("3.2000", "4.50 (1.34 to 7.66)")
    assert found.series("stress", "dhc", 2).y.tolist() == [0, 0, 0.5]
    assert found.series("stress", "dhc: diverged").y.tolist() == [1]
    assert found.series("stress", "residual", 1).y.tolist() == [0.5, 1.5, 4.5]
    assert "Best learning rates were chosen by the losses that are compared" in found.words("limits")


def test_the_laws(report):
    """A kind that is as the baseline at 1.2 N and 1.2 D saves a factor of 1.44, whatever the seeds' errors are."""
    found = report([*grid(), row("sfc", 0, 3.0), row("sfc", 1, None)])
    multiplier = found.series("multipliers", "mhc")
    assert (
        multiplier.x[0] == pytest.approx(1.44, rel=0.01)
        and multiplier.low[0] <= multiplier.x[0] <= multiplier.high[0]
    )
    assert re.search(r"mhc: the baseline needs 1\.4[34]\d \(.* times its compute", found.words("summary"))
    assert (
        found.table("laws").rows[0][:2] == ("mhc", "24")
        and "m_N[mhc] = 1.2" in found.table("laws").rows[0][3]
    )
    assert (
        found.why("L = E + A/N^alpha + B/D^beta of sfc") == "1 size and 1 count of tokens; it takes 3 of each"
    )
    laws = found.plot("laws")
    assert [panel.title for panel in laws.panels] == ["residual", "mhc"]
    curve = found.series("laws", "size d0: law")
    assert (curve.x.min(), curve.x.max()) == pytest.approx((1e9, 9e9))  # no further than it was run
    residuals = found.plot("residuals").panels
    assert [panel.x for panel in residuals] == ["parameters", "tokens", "predicted loss, nats"]
    assert all(len(series.x) == 24 and abs(series.y).max() < 0.003 for series in residuals[2].series)


def test_a_multiplier_from_compute_where_sizes_and_tokens_rise_together(report):
    rows = [
        row(kind, seed, 1.7 + 70 / (m * 6 * n * 20 * n) ** 0.11 * (1 + 1e-4 * seed), f"d{i}")
        | {"parameters": n, "tokens": 20 * n}
        for i, n in enumerate((1e7, 1e8, 1e9, 1e10, 1e11))
        for seed in range(2)
        for kind, m in (("residual", 1.0), ("mhc", 1.3))
    ]
    found = report(rows)
    assert found.series("multipliers", "mhc").x[0] == pytest.approx(1.3, rel=0.01)
    assert "where the baseline did best for its compute" in found.plot("multipliers").note
    gaps = found.series("gap-compute", "mhc")
    assert (
        gaps.x == pytest.approx([120 * n**2 for n in (1e7, 1e8, 1e9, 1e10, 1e11)]) and gaps.counts == (2,) * 5
    )
    exact = [70 / (120 * n**2) ** 0.11 * (1.3**-0.11 - 1) for n in (1e7, 1e8, 1e9, 1e10, 1e11)]
    assert gaps.y == pytest.approx(exact, rel=1e-3)
    assert "mhc: the gap goes as C^-0.110 (-0.110 to -0.110), through 5 budgets" in found.words("gap")


def test_an_arm_with_two_points_has_no_multiplier(report):
    """The law of compute has two numbers for it, one of them its own."""
    sizes = (1e7, 1e8, 1e9, 1e10, 1e11)
    rows = [
        row(kind, 0, 1.7 + 70 / (m * 120 * n * n) ** 0.11, f"d{i}") | {"parameters": n, "tokens": 20 * n}
        for kind, m, some in (("residual", 1.0, sizes), ("mhc", 1.3, sizes), ("dhc", 1.2, sizes[:2]))
        for i, n in enumerate(some)
    ]
    found = report(rows)
    assert [line[0] for line in found.table("laws").rows if "none: it takes" in line[2]] == ["dhc"]
    assert [series.name for series in found.plot("multipliers").panels[0].series] == ["mhc"]


def test_places_do_not_name_what_all_runs_have_in_common(report):
    rows = [
        row(kind, 0, 3.0, tokens_per_parameter=20, weight_decay=decay)
        for kind in ("residual", "mhc")
        for decay in (0.0, 0.1)
    ]
    assert [line[1] for line in report(rows).table("losses").rows[:2]] == [
        "size s, 2B tokens, weight_decay 0",
        "size s, 2B tokens, weight_decay 0.1",
    ]


def test_ratios_over_tokens_are_of_the_largest_size_with_several(report):
    rows = [
        row(kind, 0, loss, size)
        | {"tokens": d, "parameters": n, "group": f"{kind}{size}", "run": f"{kind}{size}{d}"}
        for size, n in (("a", 1e8), ("b", 4e8))
        for d, base in ((1e9, 3.0), (2e9, 2.5))
        for kind, loss in (("residual", base), ("mhc", base * 0.99))
    ]
    found = report([*rows, *(row(kind, 0, 2.0, "c") | {"parameters": 1e9} for kind in ("residual", "mhc"))])
    assert found.plot("ratio-tokens").panels[0].title == "size b"
    series = found.series("ratio-tokens", "mhc")
    assert series.x == pytest.approx([1e9, 2e9]) and series.y == pytest.approx([0.99, 0.99])


def test_iso_flop_profiles_have_their_parabola_and_their_least(report):
    rows = [
        row("residual", seed, 3 + 0.1 * x**2, f"x{x}") | {"parameters": 1e8 * 2**x, "tokens": 1e9 / 2**x}
        for x in (-2, -1, 0, 1, 2)
        for seed in (0, 1)
    ]
    found = report(rows)
    least = found.series("isoflop", "6e+17 FLOPs: least")
    assert (least.x[0], least.y[0]) == pytest.approx((1e8, 3.0))
    assert len(found.series("isoflop", "6e+17 FLOPs").x) == 10


def test_losses_have_the_unit_that_their_table_says(report):
    def labels(unit):
        found = report([row(kind, 0, 3.0, loss_unit=unit) for kind in ("residual", "mhc")])
        return found.table("losses").title

    assert [labels(unit) for unit in ("nats a token", "", None)] == [
        "Held-out losses, nats a token",
        *["Held-out losses, nats"] * 2,
    ]
    with pytest.raises(ConfigError, match="loss_unit = nats a byte and nats a token, which do not compare"):
        report(
            [row("mhc", seed, 3.0, loss_unit=f"nats a {what}") for seed, what in enumerate(("byte", "token"))]
        )


@pytest.mark.parametrize(
    "rows, title, why",
    [
        (
            [row("mhc", 0, 3.0)],
            "Gaps to the baseline",
            "the table has no run of the baseline; name another kind",
        ),
        (
            [row("residual", 0, 3.0)],
            "Loss gap to the baseline over compute",
            "it takes two budgets of compute",
        ),
        (
            [row("residual", 0, 3.0)],
            "Compute multipliers",
            "there is the baseline alone",
        ),
        (
            [row("residual", 0, None), row("mhc", 0, None)],
            "Loss as a ratio",
            "it takes a size with pairs of runs at two",
        ),
        ([row("residual", 0, 3.0)], "Loss gap to the baseline over training", "a table has no curves"),
        (
            [row("residual", 0, 3.0)],
            "Ablation",
            "no kind was trained with different use_res, use_pre, use_post",
        ),
        ([row("residual", 0, 3.0)], "Expansion", "no kind was trained with different n"),
        ([row("residual", 0, 3.0)], "Stress", "no arm was trained at two learning rates"),
        ([row("residual", 0, 3.0)], "Iso-FLOP", "no compute was trained with in three sizes"),
    ],
)
def test_what_is_not_drawn_says_why(rows, title, why, report):
    assert report(rows).why(title).startswith(why)


def test_what_the_study_does_not_show(report):
    """All diverged, a column that is not there, one seed: nothing is claimed."""
    lost = report([row(kind, 0, None) for kind in ("residual", "mhc")])
    assert lost.table("losses").rows[1][4:] == ("0 of 1", "1", "–", "–", "–", "no pair")
    assert "2 of 2 points are of runs that diverged" in lost.words("limits")
    assert "the study tells no two arms apart" in lost.words("limits")
    bare = [
        {key: row(kind, 0, 3.0)[key] for key in ("kind", "parameters", "tokens", "loss")}
        for kind in ("residual", "mhc")
    ]
    told = report(bare).words("limits")
    assert "no column seed" in told and "no column diverged" in told
    two = report(
        [row(kind, seed, 3.0 + seed * (kind == "mhc")) for kind in ("residual", "mhc") for seed in (0, 1)]
    )
    assert "mhc and residual are not told apart at 1 of 1 places" in two.words("limits")
    assert two.table("losses").rows[1][9] == "not told apart"


def test_a_kind_has_its_colour_in_every_study(report):
    found = report([row("mhc", 0, 3.0), row("residual", 0, 3.0), row("zz", 0, 3.0), row("mhc", 1, 3.0, n=2)])
    looks = styles(found.results)
    own = kind_styles(["mhc"])
    assert {looks[arm].colour for arm in looks if arm.kind == "mhc"} == {own["mhc"].colour}
    assert len({*looks.values()}) == 4 and looks[found.results.baseline].colour == "#666666"


def study(folder, losses):
    """A study's directory with runs of a smooth loss, and a table of their ends."""
    rows = []
    for (kind, seed), offset in losses.items():
        name = f"{kind}-{seed}"
        (folder / "runs" / name).mkdir(parents=True)
        entries = [{"step": step, "kind": "train", "loss": 5 - 0.01 * step + offset} for step in range(1, 41)]
        (folder / "runs" / name / "metrics.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in entries)
        )
        rows.append(row(kind, seed, 4.6 + offset) | {"run": name, "group": name})
    return written(folder / "table.csv", rows)


def test_the_gap_over_training_and_a_study_on_one_page(tmp_path, capsys):
    """Gaps of -0.1 and -0.3 at every step; the page needs nothing from elsewhere."""
    losses = {("residual", 0): 0.0, ("residual", 1): 0.5, ("mhc", 0): -0.1, ("mhc", 1): 0.2}
    table = study(tmp_path, losses)
    found = Report(table, directory=tmp_path)
    series = found.series("gap-training", "mhc")
    assert (series.x[0], series.x[-1]) == (1, 40) and series.y == pytest.approx([-0.2] * 40)
    assert series.low == pytest.approx([-0.2 - 6.313752 * 0.1] * 40, rel=1e-5) and set(series.counts) == {2}
    assert main(["study", "report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/report/report.html\n" in said and "1 figures as SVG, PNG and CSV" in said
    page = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/svg+xml;base64," in page and not re.search(r"(src|href)=\"(?!data:|#)", page)
    with open(tmp_path / "report" / "figures" / "gap-training.csv") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 40 and float(lines[7]["y"]) == pytest.approx(-0.2) and lines[7]["runs"] == "2"
    files = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    assert files == {f"gap-training.{ending}" for ending in ("svg", "png", "csv")}
    assert gaps_of(tmp_path) == ["–", "-0.2000"]
    write_record(Record(tmp_path, "s", (), "mhc"))
    assert main(["study", "report", str(tmp_path)]) == 0 and gaps_of(tmp_path) == ["–", "+0.2000"]
    assert main(["study", "report", str(tmp_path), "--baseline", "residual"]) == 0
    assert gaps_of(tmp_path) == ["–", "-0.2000"]


def test_a_decay_has_not_its_runs_curve(tmp_path):
    """Of kinds that share a decay's tokens alone, nothing is drawn; of a run's end, its curves are."""
    study(tmp_path, {("residual", 0): 0.0, ("mhc", 0): -0.1})

    def rows(**mhc_ends_with):
        ends = [
            row(kind, 0, loss) | {"run": f"{kind}-0", "group": f"{kind}-0", "tokens": tokens}
            for kind, loss, tokens in (("residual", 4.6, 4e9), ("mhc", 4.5, mhc_ends_with["tokens"]))
        ]
        decays = [{**end, "run": f"{end['run']}--at0.5", "tokens": 1e9} for end in ends]
        return written(tmp_path / "table.csv", [*ends, *decays])

    title = "Loss gap to the baseline over training"
    assert Report(rows(tokens=8e9), directory=tmp_path).why(title).startswith("no pair of runs")
    assert len(Report(rows(tokens=4e9), directory=tmp_path).plot("gap-training").panels) == 1


def gaps_of(folder):
    with open(folder / "report" / "tables" / "losses.csv") as stream:
        return [line["gap"][:7] for line in csv.DictReader(stream)]


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "takes a study's directory or --table FILE: neither is given; name one"),
        (
            ["{}", "--table", "{}/good.csv"],
            "takes a study's directory or --table FILE: both are given; name one",
        ),
        (["{}/none"], "{}/none: there is no such directory; name a study's, such as runs/studies/NAME"),
        (["{}"], "{}: has neither table.parquet nor table.csv; collect the study: hcmegatron study collect"),
        (["--table", "{}/none.csv"], "--table {}/none.csv: No such file or directory"),
        (["--table", "{}/good.csv", "--level", "2"], "--level = 2.0; it has to be between 0 and 1"),
        (["--table", "{}/good.csv", "--bootstraps", "5"], "--bootstraps = 5; it has to be at least 20"),
        (["--table", "{}/good.csv", "--flops", "C"], "{}/good.csv has no column C; it has run, group, kind"),
        (["--table", "{}/good.csv", "--axis", "C"], "{}/good.csv has no column C; it has run, group, kind"),
        (["--table", "{}/bare.csv"], "{}/bare.csv has no column kind; it has parameters, tokens, loss"),
        (
            ["--table", "{}/twice.csv"],
            "mhc-s-0 and mhc-s-0 have the same kind, settings, size, tokens, seed and learning",
        ),
        (["--table", "{}/unsure.csv"], "{}/unsure.csv, row 2: diverged = maybe is neither true nor false"),
        (
            ["--table", "{}/empty.csv"],
            "{}/empty.csv: no row has parameters and tokens; collect the study once runs",
        ),
        (
            ["--table", "{}/good.csv", "--out", "{}/good.csv"],
            "{}/good.csv/figures: cannot be written: Not a directory",
        ),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, capsys):
    good = row("mhc", 0, 3.0)
    tables = {
        "good": [good],
        "bare": [{"parameters": 1e8, "tokens": 1e9, "loss": 3}],
        "twice": [good, good],
        "unsure": [good | {"diverged": "maybe"}],
        "empty": [good | {"tokens": ""}],
    }
    for name, rows in tables.items():
        written(tmp_path / f"{name}.csv", rows)
    status = main(["study", "report", *(word.format(tmp_path) for word in words)])
    error = capsys.readouterr().err
    assert status == 2 and said.format(tmp_path) in error and error.count("\n") == 1
