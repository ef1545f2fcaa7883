"""A dozen random configurations, run, saved, resumed, and resumed under another layout. `make soak` runs hundreds."""

import copy

import numpy as np
import pytest

from tests.fuzz import judge as judging
from tests.fuzz import space
from tests.fuzz.cases import of_seed
from tests.fuzz.dozen import dozen, traits
from tests.fuzz.judge import Finding, judge
from tests.fuzz.report import Report


@pytest.mark.ranks
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(12))
def test_a_random_configuration_runs_resumes_and_means_the_same_elsewhere(number, tmp_path):
    case = of_seed(dozen()[number])
    verdict = judge(case, tmp_path)
    assert verdict.result != "failed", f"{verdict.text}\npython -m tests.fuzz --case {case}"


def test_the_dozen_has_every_kind_schedule_and_way_to_split():
    seen = set().union(*(traits(of_seed(seed)) for seed in dozen()))
    for key in space.STRUCTURE:
        missing = {value for value in space.values(key) if (key, str(value)) not in seen}
        assert not missing, f"{key}: take more seeds in tests/fuzz/dozen.py"
    assert {("data parallel", True), ("parallel.sequence", "True"), ("parallel.overlap", "True")} <= seen


def report(place, masks, state=None):
    return Report(steps=2, place=place, masks=masks, state={2: state or {"weight": "a", "exp_avg": "b"}})


def finding(call, *arguments):
    with pytest.raises(Finding) as found:
        call(*arguments)
    return found.value.kind


def test_masks_are_replicated_over_tensor_parallel_ranks_alone():
    same, other = {1: ["m", "n"], 2: ["o"]}, {1: ["p"]}
    judging._masks([report((0, 0, 0), same), report((0, 0, 1), same), report((1, 0, 0), other)])
    assert "ranks" in finding(judging._masks, [report((0, 0, 0), same), report((1, 0, 0), same)])
    assert "ranks" in finding(judging._masks, [report((0, 0, 0), same), report((0, 1, 0), {2: ["n"]})])
    assert "on a rank" in finding(judging._masks, [report((0, 0, 0), {1: ["m"], 2: ["m"]})])
    assert "earlier" in finding(judging._masks, [report((0, 0, 0), {2: ["m"]})], ["m"])


@pytest.fixture
def runs(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        lines = [f'{{"step": {n}, "kind": "train", "loss": {5.0 + n}, "grad_norm": 1.0}}\n' for n in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines))
    return tmp_path / "first", tmp_path / "second"


def test_one_bit_is_seen_and_named(runs):
    whole = [report((0, 0, 0), {2: ["m"]})]
    judging._same_bits(whole, copy.deepcopy(whole), *runs)
    moved = [report((0, 0, 0), {2: ["m"]}, {"weight": "a", "exp_avg": "c"})]
    assert finding(judging._same_bits, whole, moved, *runs) == "bits differ after resuming"
    assert "dropout" in finding(judging._same_bits, whole, [report((0, 0, 0), {2: ["n"]})], *runs)
    (runs[1] / "metrics.jsonl").write_text(
        (runs[1] / "metrics.jsonl").read_text().replace("7.0", "7.0000001")
    )
    assert "metrics" in finding(judging._same_bits, whole, whole, *runs)
    (runs[1] / "metrics.jsonl").write_text((runs[1] / "metrics.jsonl").read_text().replace("1.0}", "NaN}"))
    assert finding(judging._finite, runs[1], [1, 2]) == "not finite"
    assert "steps" in finding(judging._finite, runs[0], [2])


def test_another_layout_is_held_to_the_bounds(runs):
    case = of_seed(0)
    case.config.optimizer.eps = 1.0

    def rank(values, moved, columns=slice(None)):
        parts = {
            step: [("w", (), (0, columns.start or 0), np.float32(tensor)[:, columns])]
            for step, tensor in ((1, values), (2, moved))
        }
        return Report(weights=parts, gradients={2: parts[2]})

    start = np.arange(8.0).reshape(2, 4)
    whole = [rank(start, start + 0.1)]
    halves = [rank(start, start + 0.1, slice(0, 2)), rank(start, start + 0.1, slice(2, 4))]
    assert judging._within_bounds(case, whole, halves, *runs) < 1e-6
    wrong = [halves[0], rank(start, start + 0.101, slice(2, 4))]
    assert "gradient, weights" in finding(judging._within_bounds, case, whole, wrong, *runs)
