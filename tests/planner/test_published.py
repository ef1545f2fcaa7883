"""What docs/planner.md prints is what the planner says."""

import re

import pytest

from hcmegatron.planner import published
from hcmegatron.planner.machines import GIB
from hcmegatron.planner.plan import make_plan, overheads
from tests.planner.cases import find_machine, pipelined
from tests.ranks import ROOT

DOCS = (ROOT / "docs/planner.md").read_text()


@pytest.mark.parametrize("row", published.ROWS, ids=lambda row: f"{row.model} {row.gpus} {row.gpu}")
def test_errors_are_printed_one_by_one(row):
    words = f"| {row.gpus} {row.gpu.upper()} | {row.tokens:,.0f} | {row.own:,.0f} | {row.own / row.tokens - 1:+.1%} |"
    fitted = f"{published.factor() * row.own / row.tokens - 1:+.1%}" + " *" * row.fitted
    words += f" {row.not_modelled or fitted} |"
    (line,) = [line for line in DOCS.splitlines() if words in line]
    assert row.model in line
    if row.memory_gib:
        assert f"{row.memory_gib:g} GiB, planned {row.peak / GIB:.0f}" in line


def test_tuned_runs_are_predicted_within_15_percent_by_a_factor_from_two_of_them():
    rows = [row for row in published.ROWS if not row.not_modelled]
    assert len(rows) == 5 and sum(row.fitted for row in rows) == 2
    for row in rows:
        assert abs(published.factor() * row.own / row.tokens - 1) < 0.15, row
    assert f"number, {published.factor():.3f}, that" in DOCS


@pytest.mark.parametrize("name", published.FLOPS)
def test_flops_are_printed_one_by_one(name):
    tflops, tokens, _ = published.FLOPS[name]
    theirs, own = tflops / tokens * 1e3, published.flops_per_token(published.model(name)) / 1e9
    assert f"| {theirs:.2f} | {own:.2f} | {own / theirs - 1:+.2%} |" in DOCS


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_the_overhead_of_mhc_is_what_the_planner_says(recompute):
    plan = make_plan(pipelined("dualpipev", recompute__mode=recompute), find_machine("h100"), 256)
    shares = [f"{row.share:.1%}" for row in overheads(plan)]
    row = "| added to the residual's step | " + " | ".join(shares) + " |"
    text = "the same plan says " + ", ".join(shares[:3]) + " and " + shares[3]
    assert (row if recompute == "none" else text) in re.sub(r"\s+", " ", DOCS)


def test_a_plan_s_range_holds_what_is_modelled_and_most_of_the_rest():
    low, high = (getattr(published.Assumptions(), name) for name in ("shortest", "longest"))
    outside = [row for row in published.ROWS if not low <= row.own / row.tokens <= high]
    assert all(row.not_modelled for row in outside)
    assert {row.model for row in outside} == {"GPT-OSS-120B", "DeepSeek-V3"}
