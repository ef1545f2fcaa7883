"""The search finds what trying everything finds, and writes what `train` takes."""

import time
from dataclasses import replace

import pytest

from hcmegatron.config import check_config, check_world, load_config
from hcmegatron.config.types import flatten
from hcmegatron.planner.plan import make_plan
from hcmegatron.planner.rates import Assumptions
from hcmegatron.planner.search import CHOSEN, DIMENSIONS, losers, search_layouts
from hcmegatron.planner.search_report import as_config, as_json
from hcmegatron.planner.tables import describe_config
from tests.pace import pace
from tests.planner.cases import config, find_machine

# name, changes, GPUs, machine: small enough to try everything, and with memory that decides something
FEW = {"model__layers": 4, "moe__experts": 2, "moe__top_k": 2, "training__global_batch": 8}
CASES = {
    "experts": ("mhc-3b", {**FEW, "connection__kind": "dhc"}, 4, "h100"),
    "tight": ("mhc-9b", FEW, 4, "small"),
    "dense": ("olmo-1b", {"model__layers": 4, "training__global_batch": 16}, 8, "a100"),
    "residual": ("olmoe-1b-7b", {**FEW, "model__layers": 6, "connection__kind": "residual"}, 2, "h200"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bounds_leave_out_nothing_that_is_among_the_best(case):
    name, changes, gpus, gpu = CASES[case]
    loaded, assumed = config(name, **changes), Assumptions()
    where = replace(find_machine("a100"), memory_gib=12) if gpu == "small" else find_machine(gpu)
    found = search_layouts(loaded, where, gpus, assumed, most=5)
    every = search_layouts(loaded, where, gpus, assumed, most=5, exhaustive=True)
    assert case != "tight" or any(c.outcome == "memory" for c in found.looked_at if c.plan is None)
    assert every.simulated == len(every.looked_at) == len(found.looked_at)
    assert [c.seconds for c in found.best] == [c.seconds for c in every.best]
    assert found.simulated < every.simulated
    exact = {id_of(c): c for c in every.looked_at}
    for candidate in found.looked_at:
        truth = exact[id_of(candidate)]
        assert candidate.seconds <= truth.seconds * (1 + 1e-12)
        assert candidate.peak <= truth.peak * (1 + 1e-12)
        assert (candidate.outcome == "memory") <= (truth.outcome == "memory")


def id_of(candidate):
    return tuple(candidate.value(dimension) for dimension in DIMENSIONS)


@pytest.fixture(scope="module")
def large():
    began = time.process_time()
    found = search_layouts(config(), find_machine("h100"), 512, Assumptions(), most=10)
    assert time.process_time() - began < 10 * pace()
    return found


def test_27b_on_512_gpus(large):
    """Every choice has its reason; the best fits."""
    assert all(candidate.outcome == "fits" for candidate in large.best)
    assert large.simulated < 0.1 * len(large.looked_at)
    lines = losers(large)
    for dimension in DIMENSIONS:
        assert any(line.startswith(f"{dimension} ") for line in lines)
    assert all(" s" in line or "does not fit" in line for line in lines)
    assert as_json(large)["looked_at"] == len(large.looked_at)


def test_experts_are_whole_or_split_as_attention_is(large):
    """And where they are split, attention is too."""
    split = [c for c in large.looked_at if c.layout.config.parallel.expert_tensor > 1]
    assert split and all(
        c.layout.config.parallel.expert_tensor == c.layout.config.parallel.tensor for c in split
    )
    assert any("expert tensor 2" in describe_config(c.layout) for c in split)


def test_whoever_watches_sees_every_layout():
    seen = []

    def watch(items, what):
        for item in items:
            seen.append(what)
            yield item

    changes = {**FEW, "connection__kind": "residual"}
    found = search_layouts(
        config("olmoe-1b-7b", **changes), find_machine("h200"), 2, Assumptions(), watch=watch
    )
    assert seen == ["layouts"] * len(found.looked_at) + ["the quickest"] * len(found.looked_at)


def test_the_chosen_configuration_is_what_train_takes_and_plans_the_same(large, tmp_path):
    path = tmp_path / "best.yaml"
    path.write_text(as_config(large, tmp_path / "mhc-27b.yaml"))
    chosen = load_config(path)
    assert check_config(chosen) == []
    check_world(chosen, 512)
    plan = make_plan(chosen, find_machine("h100"), 512)
    assert (plan.seconds, plan.peak) == (large.best[0].seconds, large.best[0].peak)
    assert chosen.parallel == large.best[0].layout.config.parallel


def test_what_a_search_changes_is_known_as_chosen(large):
    before = flatten(config())
    for candidate in large.looked_at:
        found = flatten(candidate.layout.config)
        assert {key for key in found if found[key] != before[key]} <= CHOSEN


def test_why_others_lose_names_what_grows(large):
    (line,) = [line for line in losers(large) if line.startswith("recomputation block:")]
    assert "recomputation +" in line or line.split(": ")[1].startswith("at least")
