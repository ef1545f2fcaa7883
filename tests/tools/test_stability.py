"""The rule of the stability figure, on losses that are written down, and its runs, tables and figure in miniature."""

import json
import math

import pytest

from hcmegatron.platform.exit_status import DIVERGED
from tests.ranks import run_ranks
from tests.tools import stability_workers
from tools.stability import records
from tools.stability.results import tables
from tools.stability.rule import QUICK, Plan, Record, Run, best_rate, diverged, excesses, spikes, wanted

PLAN = Plan(kinds=("a", "b"), rates=(1.0, 2.0), multiples=(1, 2), seeds=(1, 2))


def record(kind, rate, seed, loss=2.0, bad=False):
    run = Run(kind, rate, seed)
    return {run: Record(run, 0, bad, loss, 3 * seed, 0.5, (7.0, 9.0), (1.0, 1.25), 10.0)}


def test_a_spike_is_a_step_above_the_median_of_those_before_it():
    losses = [9.0, 9.0, 3.0, 2.0, 2.5, 3.0, 3.31, 3.29, math.inf, 2.0]
    found = excesses(losses, warmup=2, window=3)  # from the sixth step on
    assert found == pytest.approx([0.5, 0.81, 0.29, math.inf, -1.31])
    assert spikes(found) == 2
    assert excesses(losses[:5], warmup=2, window=3) == []


def test_a_run_has_diverged_whose_median_stays_up():
    assert not diverged([5.0, 2.0, 2.0, 2.0, 9.0, 2.5, 2.5], ended=False, window=3)  # 0.5 above
    assert diverged([5.0, 2.0, 2.0, 2.0, 9.0, 2.51, 2.51], ended=False, window=3)
    assert diverged([5.0, 2.0, 2.0, 2.0, *3 * [math.inf]], ended=False, window=3)
    assert not diverged([1.0, 9.0], ended=False, window=3) and diverged([1.0, 9.0], ended=True, window=3)


def test_the_best_rate_is_of_a_run_that_did_not_diverge():
    assert best_rate(PLAN, "a", record("a", 1.0, 1)) is None
    assert best_rate(PLAN, "a", record("a", 1.0, 1) | record("a", 2.0, 1, 1.9)) == 2.0
    assert best_rate(PLAN, "a", record("a", 1.0, 1) | record("a", 2.0, 1)) == 1.0
    assert best_rate(PLAN, "a", record("a", 1.0, 1) | record("a", 2.0, 1, 1.9, bad=True)) == 1.0
    assert best_rate(PLAN, "a", record("a", 1.0, 1, bad=True) | record("a", 2.0, 1, bad=True)) == 1.0


def test_grids_come_first_and_no_run_twice():
    found = record("a", 1.0, 1) | record("a", 2.0, 1, 1.9)
    assert wanted(PLAN, found) == [*_runs("b", (1.0, 1), (2.0, 1)), *_runs("a", (2.0, 2), (4.0, 1), (4.0, 2))]
    found |= record("b", 1.0, 1) | record("b", 2.0, 1)
    after = [
        *_runs("a", (2.0, 2)),
        *_runs("b", (1.0, 2)),
        *_runs("a", (4.0, 1), (4.0, 2)),
        *_runs("b", (2.0, 2)),
    ]
    assert wanted(PLAN, found) == after


def _runs(kind, *places):
    return [Run(kind, *place) for place in places]


def test_what_a_run_shows_that_the_trainer_has_ended(tmp_path):
    entries = [
        {"kind": "train", "step": n, "loss": loss} for n, loss in enumerate([3.0, 2.0, 2.5, None, None], 1)
    ]
    entries.append({"kind": "diagnostics", "step": 2, "loss": 2.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in entries))
    line = {"tokens": 4, "seconds": 0.1, "warnings": []}
    gains = [(2.0, 8.0), (1.5, None), (1.25, 3.0)]
    names = "composite_gain_forward_max", "composite_gain_backward_max"
    seen = [
        {"step": n, **line, "scalars": dict(zip(names, each, strict=True))} for n, each in enumerate(gains, 1)
    ]
    seen.append(
        {"step": 4, **line, "tokens": 0, "scalars": {"loss": 50.0}}
    )  # a spike's, without an observation
    (tmp_path / "diagnostics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in seen))
    found = records.measure(Run("a", 1.0, 1), tmp_path, DIVERGED, warmup=1, window=1, seconds=1.23)
    gains = (1.25, 2.0), (3.0, math.inf)
    assert found == Record(Run("a", 1.0, 1), DIVERGED, True, math.inf, 2, math.inf, *gains, 1.2)
    records.write(tmp_path, {found.run: found})
    assert records.read(tmp_path) == {found.run: found}


def test_tables_have_medians_and_ranges_of_what_is_there(tmp_path):
    found = record("a", 1.0, 1) | record("a", 2.0, 1, 1.9) | record("a", 2.0, 2, math.inf, bad=True)
    records.write(tmp_path, found)
    assert records.read(tmp_path) == found
    said = tables(PLAN, found)
    assert "| a | 2.000 | 1.900 | 2, the end of the grid |" in said
    assert "| a | 1 | 2 | 2 | 1 | inf (1.900 to inf) | 4.5 (3 to 6) | 0.50 (0.50 to 0.50) |" in said
    assert "| a | 2 | 4 | 0 | 0 |  |  |  |" in said and "| b |  |  |  |" in said
    assert "| a | 1 | 2 | 2 | 1 | 9 (9 to 9) | 7 (7 to 7) | 1.25 (1.25 to 1.25) | 1 (1 to 1) |" in said


@pytest.mark.ranks
def test_the_figure_in_miniature_and_what_is_done_stays(tmp_path):
    run = {"preload": ("tests.tools.stability_workers",), "process_group": False, "timeout": 120}
    ((*statuses,),) = run_ranks(1, stability_workers.quick, tmp_path, **run)
    assert statuses == [1, 0, 0, 2]
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    before = (tmp_path / "before.jsonl").read_text().splitlines()
    found = records.read(tmp_path)
    assert wanted(QUICK, found) == [] and lines[:-2] == before[:-2] and len(found) == len(lines)
    again = {tmp_path / each.name for each in list(found)[-2:]}
    assert {path.parent for path in tmp_path.glob("*/seen")} == {
        tmp_path / each.name for each in found
    } - again
    untimed = [{**json.loads(line), "seconds": 0} for line in before[-2:]]
    redone = [{**json.loads(line), "seconds": 0} for line in lines[-2:]]
    assert sorted(map(str, redone)) == sorted(map(str, untimed))  # to the last bit
    for each in found.values():
        assert each.status == 0 and 2.5 < each.loss < 5.0 and each.forward[1] == pytest.approx(1.0, abs=1e-6)
        assert 1.0 <= each.backward[0] <= each.backward[1] < 1.1
        assert (each.backward[1] > 1.0) == (each.run.kind == "mhc")
    assert (tmp_path / "stability.md").read_text().splitlines() == tables(QUICK, found)
    assert "held-out loss" in (tmp_path / "stability.svg").read_text()
    assert (tmp_path / "stability.png").read_bytes()[:4] == b"\x89PNG"
