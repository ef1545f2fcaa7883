"""The figures and tables of a study's report: every number by hand."""

import re

import pytest

from hcmegatron.config.errors import ConfigError
from hcmegatron.studies.figures.styles import kind_styles, styles
from tests.studies.tables import grid, row


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


def test_a_kind_has_its_colour_in_every_study(report):
    found = report([row("mhc", 0, 3.0), row("residual", 0, 3.0), row("zz", 0, 3.0), row("mhc", 1, 3.0, n=2)])
    looks = styles(found.results)
    own = kind_styles(["mhc"])
    assert {looks[arm].colour for arm in looks if arm.kind == "mhc"} == {own["mhc"].colour}
    assert len({*looks.values()}) == 4 and looks[found.results.baseline].colour == "#666666"
