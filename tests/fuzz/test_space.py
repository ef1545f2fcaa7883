"""What is drawn: every setting of the schema, values that are in range, cases that fit and can be repeated."""

import shlex

import pytest

from hcmegatron.config.ranges import check_value
from hcmegatron.config.types import leaves
from tests.fuzz import space
from tests.fuzz.cases import Case, fits, of_seed
from tests.fuzz.shrink import shrunk

SEEDS = range(120)


@pytest.fixture(scope="module")
def drawn():
    return [of_seed(seed) for seed in SEEDS]


def test_every_setting_is_drawn_or_fixed_with_a_reason():
    for key in space.drawn():
        for value in space.values(key):
            check_value(key, value)
    assert all(reason for _, reason in space.FIXED.values())
    assert set(space.VALUES) | set(space.FIXED) <= set(leaves()) and not set(space.VALUES) & set(space.FIXED)


def test_a_new_setting_is_drawn_by_its_type_or_named(monkeypatch):
    new = {"model.gate": bool, "model.bias": bool | None, "moe.capacity": float}
    monkeypatch.setattr(space, "leaves", lambda: new)
    monkeypatch.setattr(space, "defaults", lambda: {"model.gate": True})
    assert space.values("model.gate") == [True, False]
    assert space.values("model.bias") == [None, False, True]
    with pytest.raises(KeyError, match=r"moe\.capacity is new.*VALUES"):
        space.values("moe.capacity")


def test_cases_fit_and_are_written_as_they_are(drawn):
    for case in drawn:
        fits(case.config, case.ranks)
        fits(case.other, case.other_ranks)
        assert Case.parse(shlex.split(str(case))) == case
    assert [str(of_seed(seed)) for seed in SEEDS[:5]] == [str(case) for case in drawn[:5]]


def test_cases_differ_in_what_matters(drawn):
    assert {case.ranks for case in drawn} == {1, 2, 4}
    configs = [config for case in drawn for config in (case.config, case.other)]
    for key in (*space.STRUCTURE, "moe.experts", "parallel.sequence", "parallel.overlap"):
        section, leaf = key.split(".")
        seen = {getattr(getattr(config, section), leaf) for config in configs}
        assert seen == set(space.values(key)), f"{key}: only {seen}"
    assert sum(case.config != case.other for case in drawn) > 0.9 * len(drawn)


def test_a_case_is_shrunk_to_what_it_fails_by(drawn):
    case = next(case for case in drawn if case.config.model.tie_embeddings and case.ranks == 4)
    smallest = shrunk(case, lambda smaller: smaller.config.model.tie_embeddings)
    assert smallest.ranks == smallest.other_ranks == 1 and smallest.config == smallest.other
    simple = {key: space.simplest(key) for key in space.drawn()}
    kept = {
        key
        for key, value in simple.items()
        if value != getattr(getattr(smallest.config, key.partition(".")[0]), key.partition(".")[2], value)
    }
    assert "model.tie_embeddings" in kept and len(kept) <= 3
