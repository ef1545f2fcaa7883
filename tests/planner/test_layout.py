"""Who holds what, and who shares a node."""

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.planner.layout import Group, make_layout
from tests.planner.cases import SCHEDULES, config, find_machine, pipelined


def test_distinct_ranks_hold_all_that_any_rank_holds():
    for schedule in SCHEDULES:
        where = make_layout(pipelined(schedule, 4), find_machine("h100"), 64)
        shapes = [tuple((len(s.layers), s.first, s.last) for s in where.held(rank)) for rank in range(4)]
        assert {shapes[rank] for rank in where.distinct_ranks} == set(shapes)


def test_groups_and_nodes():
    """64 GPUs in nodes of 8: two pipeline stages of 32, tensor 2, expert 8, data 16."""
    loaded = config(parallel__pipeline=2, parallel__tensor=2, parallel__sequence=True, parallel__expert=8)
    where = make_layout(loaded, find_machine("h100"), 64)
    assert (where.data, where.expert_data, where.microbatches) == (16, 4, 80)
    assert where.tensor_group == Group(2, 2) and where.expert_group == Group(8, 8)
    assert where.data_group == Group(16, 4) and where.expert_data_group == Group(4, 1)
    assert not where.same_node(0, 1)
    assert "every pipeline hop leaves the node" in where.nodes()
    small = make_layout(pipelined("1f1b", 4, parallel__expert=2), find_machine("h100"), 8)
    assert small.same_node(0, 3) and small.nodes() == "all ranks share one node"
    wide = make_layout(pipelined("1f1b", 4, parallel__expert=2), find_machine("gb200"), 8)
    assert wide.same_node(0, 3)


@pytest.mark.parametrize("gpus, words", [(255, "use 1275 or 1530"), (0, "at least 1"), (2560, "use 2560")])
def test_gpus_that_do_not_fit(gpus, words):
    with pytest.raises(ConfigError, match=words):
        make_layout(config(), find_machine("h100"), gpus)
