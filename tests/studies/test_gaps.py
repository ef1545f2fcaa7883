"""Gaps of the loss: paired by seed, at the best rate, with t-intervals, runs that diverged counted."""

import math
from statistics import mean, stdev

import pytest

from hcmegatron.studies.gaps import frontier, paired_gaps, t_interval
from hcmegatron.studies.power import power_law
from hcmegatron.studies.read_results import read_results
from hcmegatron.studies.table import Table
from tests.studies.tables import row, written

T_2 = 2.919986  # Student's t for two degrees of freedom, 90% two-sided


def results(tmp_path, rows, baseline="residual", **options):
    return read_results(Table(str(written(tmp_path / "t.csv", rows))), baseline, **options)


def test_a_t_interval_by_hand():
    found = t_interval([1.0, 2.0, 4.0], 0.9)
    half = T_2 * stdev([1, 2, 4]) / math.sqrt(3)
    assert found == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half, 3), rel=1e-5)
    assert t_interval([2.0], 0.9)[0] == 2 and math.isnan(t_interval([2.0], 0.9).low)
    assert t_interval([], 0.9).count == 0 and not t_interval([2.0], 0.9).decided


def test_runs_of_one_seed_are_paired(tmp_path):
    """Losses differ by 0.1 from seed to seed, the gaps by 0.002: a pair knows, two means do not."""
    base, own = [3.0, 3.1, 3.2], [2.98, 3.079, 3.181]
    rows = [row("residual", seed, loss) for seed, loss in enumerate(base)]
    rows += [row("mhc", seed, own[seed]) for seed in (2, 0, 1)]
    (gap,) = paired_gaps(results(tmp_path, rows), 0.9)
    gaps = [-0.020, -0.021, -0.019]
    half = T_2 * stdev(gaps) / math.sqrt(3)
    assert gap.gap == pytest.approx((mean(gaps), mean(gaps) - half, mean(gaps) + half, 3), rel=1e-4)
    assert gap.gap.decided and gap.compute == pytest.approx(6 * 1e8 * 2e9)
    logs = [math.log(o / b) for o, b in zip(own, base, strict=True)]
    assert gap.ratio.mean == pytest.approx(math.exp(mean(logs)))
    assert gap.ratio.high == pytest.approx(math.exp(mean(logs) + T_2 * stdev(logs) / math.sqrt(3)), rel=1e-5)


def test_what_diverged_or_has_no_partner_is_counted(tmp_path):
    rows = [row("residual", 0, 3.0), row("residual", 1, 3.1), row("residual", 2, None)]
    rows += [row("mhc", 0, 2.9), row("mhc", 1, None), row("mhc", 3, 2.8)]
    (gap,) = paired_gaps(results(tmp_path, rows), 0.9)
    assert gap.gap[0] == pytest.approx(-0.1) and gap.gap.count == 1
    assert (gap.diverged, gap.unpaired) == (1, 2)


def test_muons_rate_tells_runs_apart_and_is_not_the_rate(tmp_path):
    rows = [
        row(kind, 0, loss, **{"muon.lr": rate, "lr": lr})
        for kind, loss in (("residual", 3.0), ("mhc", 2.9))
        for rate in (0.01, 0.02)
        for lr in (1e-3, 2e-3)
    ]
    found = results(tmp_path, rows)
    assert {point.rate for point in found.points} == {1e-3, 2e-3}
    assert {point.place.others for point in found.points} == {(("muon.lr", "0.01"),), (("muon.lr", "0.02"),)}


def test_only_runs_of_one_place_are_compared(tmp_path):
    """Another size, another count of tokens, another batch are other places; a step more of tokens is the same."""
    rows = [row("residual", 0, 3.0, global_batch=8), row("residual", 0, 2.5, global_batch=16)]
    rows += [
        row("mhc", 0, 2.9, global_batch=8) | {"tokens": 2.002e9},
        row("mhc", 0, 2.6, "t", global_batch=8),
    ]
    rows += [row("mhc", 0, 2.7, global_batch=16) | {"tokens": 4e9}]
    found = paired_gaps(results(tmp_path, rows), 0.9)
    assert [(gap.place.size, gap.gap.mean) for gap in found] == [("s", pytest.approx(-0.1))]
    assert found[0].place.others == (("global_batch", "8"),) and found[0].place.tokens == pytest.approx(
        2.001e9
    )


def test_places_of_runs_with_a_budget_of_their_own(tmp_path):
    """With as many tokens a parameter, kinds train on different counts, and compare at the same point of the run."""
    rows = []
    for kind, tokens in (("residual", 1e9), ("mhc", 1.2e9)):
        for share in (0.5, 1):
            rows.append(
                row(kind, 0, 3.0 - share, tokens_per_parameter=10) | {"tokens": share * tokens, "group": kind}
            )
    found = paired_gaps(results(tmp_path, rows), 0.9)
    assert [gap.place.tokens for gap in found] == pytest.approx([0.55e9, 1.1e9])
    assert [gap.gap.count for gap in found] == [1, 1]


def test_a_branch_that_is_missing_moves_no_other_point_of_its_run(tmp_path):
    rows = [
        row(kind, 0, 3.0 - share, tokens_per_parameter=10, point=point)
        | {"tokens": share * tokens, "group": kind, "run": f"{kind}-{point}"}
        for kind, tokens in (("residual", 1e9), ("mhc", 1.2e9))
        for share, point in ((0.25, "at0.25"), (0.5, "at0.5"), (1, "final"))
        if (kind, point) != ("mhc", "at0.25")
    ]
    found = paired_gaps(results(tmp_path, rows), 0.9)
    assert [gap.place.tokens for gap in found] == pytest.approx([0.55e9, 1.1e9])
    assert [gap.gap.mean for gap in found] == pytest.approx([0, 0])


def test_each_arm_is_at_its_best_rate(tmp_path):
    """Of the rates with the fewest runs that did not finish, the one of the least mean loss."""
    rows = [row("residual", seed, 3.0 + 0.01 * lr, lr=lr) for seed in (0, 1) for lr in (1, 2)]
    rows += [row("mhc", 0, 2.0, lr=4), row("mhc", 1, None, lr=4)]
    rows += [row("mhc", seed, 2.95, lr=2) for seed in (0, 1)]
    (gap,) = paired_gaps(results(tmp_path, rows), 0.9)
    assert gap.gap[0] == pytest.approx(2.95 - 3.01) and gap.gap.count == 2 and gap.diverged == 0


def test_settings_of_connections_are_arms(tmp_path):
    """What is empty is the default, of a kind without the field nothing; names say where arms of a kind differ."""
    rows = [row("residual", 0, 3.0, n=4, tanh="")]
    rows += [
        row("dhc", 0, 2.9, n="4.0", tanh=""),
        row("dhc", 0, 2.8, n=2, tanh="False"),
        row("mhc", 0, 2.7, n=4, tanh=""),
    ]
    found = results(tmp_path, rows)
    assert list(found.names.values()) == ["residual", "dhc n=2 tanh=false", "dhc n=4 tanh=true", "mhc"]
    assert found.arms[0].settings == () and found.arms[2].get("tanh") == "true"


def test_the_frontier_has_no_place_that_less_compute_beats(tmp_path):
    places = {"a": (1e8, 1e9, 3.0), "b": (1e8, 4e9, 2.8), "c": (4e8, 2e9, 2.9), "d": (4e8, 8e9, 2.6)}
    rows = [
        row(kind, 0, loss, size) | {"parameters": n, "tokens": d}
        for size, (n, d, loss) in places.items()
        for kind in ("residual", "mhc")
    ]
    found = results(tmp_path, rows)
    assert [place.size for place in frontier(paired_gaps(found, 0.9), found)] == ["a", "b", "d"]


def test_a_power_law_of_the_gap():
    exact = power_law([1e16, 1e17, 1e19], [-0.1 * c**-0.2 for c in (1e16, 1e17, 1e19)], 0.9)
    assert (exact.sign, exact.exponent) == (-1, pytest.approx(-0.2))
    assert exact.low == pytest.approx(-0.2) and exact([1e18]) == pytest.approx(-0.1 * 1e18**-0.2)
    noisy = power_law([1e16, 1e17, 1e18], [0.1, 0.09, 0.05], 0.9)
    assert noisy.low < noisy.exponent < noisy.high
    assert power_law([1e16, 1e17], [0.1, 0.2], 0.9) == "it takes 3 budgets of compute; there are 2"
    assert "both signs" in power_law([1e16, 1e17, 1e18], [0.1, -0.2, 0.1], 0.9)
