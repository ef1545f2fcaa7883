"""What Muon adds to a plan, and what it saves."""

from hcmegatron.planner.after_pipeline import after_the_pipeline
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


def test_more_iterations_and_fewer_ranks_take_longer():
    def seconds(gpus=64, **changes):
        layout, found = planned(gpus, **MUON, **changes)
        return orthogonalising(layout, found.rates, 0)

    assert seconds(muon__newton_schulz="8+2") > seconds() > seconds(gpus=128)
