"""What Muon adds to a plan, and what it saves."""

import pytest

from hcmegatron.planner.after_pipeline import after_the_pipeline
from hcmegatron.planner.counts import held_matrices, held_parameters
from hcmegatron.planner.measured import shape
from hcmegatron.planner.orthogonalising import orthogonalising
from hcmegatron.planner.step_memory import communicators, least_static, static_memory
from tests.planner.cases import operations, pipelined

MUON = {"optimizer__name": "muon"}


def planned(gpus=64, **changes):
    found = operations(pipelined("1f1b", **changes), gpus)
    return found.layout, found


def test_nothing_without_muon():
    layout, found = planned()
    assert orthogonalising(layout, found.rates, 0) == 0.0
    assert "muon.newton_schulz" not in shape(layout.config)


def test_a_moment_less_and_time_for_matrices():
    (adamw, of_adamw), (muon, of_muon) = planned(), planned(**MUON)
    assert shape(muon.config)["muon.newton_schulz"] == "5"
    assert communicators(muon) == communicators(adamw) + 1
    for rank in muon.distinct_ranks:
        whole, less = static_memory(adamw, rank), static_memory(muon, rank)
        assert least_static(muon, rank) <= sum(less.values()) < sum(whole.values())
        # nearly all parameters are matrices: 8 bytes of state instead of 12
        assert 0.66 < less["optimizer state"] / whole["optimizer state"] < 0.75
    seconds = orthogonalising(muon, of_muon.rates, 0)
    assert seconds > 0
    without, with_it = (
        after_the_pipeline(*each)["optimizer"] for each in ((adamw, of_adamw), (muon, of_muon))
    )
    assert without < with_it


def test_muons_numbers_of_a_connection_are_its_matrices():
    """gr's are AdamW's, nearly all of mHC's are Muon's."""
    for kind, share in (("gr", 0.0), ("mhc", 0.999)):
        layout, _ = planned(connection__kind=kind, **MUON)
        for rank in layout.distinct_ranks:
            of_muon, held = (
                held_matrices(layout, rank)["connections"],
                held_parameters(layout, rank)["connections"],
            )
            assert share <= of_muon / held <= min(1, 2 * share)
            assert least_static(layout, rank) <= sum(static_memory(layout, rank).values())
    gr, without = planned(connection__kind="gr", **MUON)[0], planned(connection__kind="gr")[0]
    shards = {"experts": gr.expert_data}
    less = sum(4 * count / shards.get(name, gr.data) for name, count in held_matrices(gr, 0).items())
    assert held_matrices(gr, 0)["experts"] == held_parameters(gr, 0)["experts"] > 0
    assert least_static(without, 0) - least_static(gr, 0) == pytest.approx(less)  # and nothing of connections


def test_more_iterations_and_fewer_ranks_take_longer():
    def seconds(gpus=64, **changes):
        layout, found = planned(gpus, **MUON, **changes)
        return orthogonalising(layout, found.rates, 0)

    assert seconds(muon__newton_schulz="8+2") > seconds() > seconds(gpus=128)
