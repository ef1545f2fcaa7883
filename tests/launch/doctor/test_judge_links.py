"""What rates between ranks say: slow machines, and topologies that are uneven and healthy. Literal figures."""

import os
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from launch.doctor import messages
from launch.doctor.findings import Level
from launch.doctor.judge_links import between_machines, within_machines
from launch.doctor.links import Link

NODES = ["n1", "n2", "n3", "n4"]
NOISE = "4 ranks share 2 cores"


def levels(findings):
    return {one.level for one in findings}


def faults(findings):
    return [(one.value, one.nodes) for one in findings if one.level is Level.FAULT]


def links(slow, members=4, usual=10.0):
    """Every pair at the usual rate but for those in `slow`."""
    return {pair: Link(20.0, slow.get(pair, usual), 1 << 20) for pair in combinations(range(members), 2)}


def rank(node, index):
    return f"rank {index}"


def test_a_machine_that_is_slow_with_whomever_is_named():
    found = between_machines(NODES, links({(0, 2): 4, (1, 2): 5, (2, 3): 3}))
    assert [(one.value, one.nodes) for one in found] == [
        ("n3: 4 GB/s to whomever, 40% of what others have", ("n3",))
    ]
    three = links({(0, 2): 2, (1, 2): 2}, 3)
    assert [nodes for _, nodes in faults(between_machines(NODES[:3], three))] == [("n3",)]
    two = links(dict.fromkeys([pair for pair in combinations(range(8), 2) if {2, 5} & {*pair}], 3.0), 8)
    names = [f"n{number}" for number in range(8)]
    assert [nodes for _, nodes in faults(between_machines(names, two))] == [("n2",), ("n5",)]


def test_a_slow_pair_of_machines_that_others_reach_well_is_a_warning():
    (found,) = between_machines(NODES, links({(1, 3): 5.0}))
    assert found.level is Level.WARNING and found.nodes == tuple(NODES)
    assert found.value == "1 of 6 are slower than the others; n2 and n4: 5 GB/s, 50% of what others have"
    (found,) = between_machines(NODES, links({(1, 3): 7.1}))
    assert found.level is Level.OK and found.value == "6 of 1 MiB: 10 GB/s, the slowest 7.1; 20 us"


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_two_leaf_switches_with_an_oversubscribed_spine_are_healthy(first):
    """Of eight machines, so many on the first switch; one alone there is as slow to all as a broken one would be."""
    across = {(a, b): 3.0 for a in range(first) for b in range(first, 8)}
    names = [f"n{number}" for number in range(8)]
    found = between_machines(names, links(across, 8))
    if first == 1:
        assert [nodes for _, nodes in faults(found)] == [("n0",)]
    else:
        assert levels(found) == {Level.WARNING}


def test_the_neighbour_of_a_slow_machine_behind_a_switch_of_their_own_is_not_called_slow():
    """n3 and n4 share a leaf switch; n3's cable is bad."""
    rates = {(0, 2): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 3): 3.0, (1, 3): 3.0}
    assert [nodes for _, nodes in faults(between_machines(NODES, links(rates)))] == [("n3",)]


def test_pairs_of_a_machine_are_compared_with_the_same_pairs_elsewhere():
    """Two NVLink pairs a machine, PCIe between them: n3's second pair has lost its NVLink."""
    paired = links({(0, 1): 200.0, (2, 3): 200.0}, usual=20.0)
    healthy = {node: paired for node in NODES}
    assert levels(within_machines(healthy, rank)) == {Level.OK}
    broken = {**healthy, "n3": {**paired, (2, 3): Link(20.0, 20.0, 1 << 20)}}
    assert faults(within_machines(broken, rank)) == [
        ("1 of 6 below the same of other machines; rank 2 and rank 3: 20 GB/s, 10%", ("n3",))
    ]
    assert levels(within_machines({"n1": paired}, rank)) == {Level.OK}
    (alone,) = within_machines({"n1": links({(0, 3): 1, (1, 3): 1, (2, 3): 1})}, rank)
    assert alone.level is Level.WARNING and alone.value.startswith("3 of 6 are slower")


def test_rates_that_say_little_are_hardly_compared():
    """Ten times slower is slow in any noise."""
    (found,) = between_machines(NODES, links({(0, 2): 2, (1, 2): 2, (2, 3): 2}), NOISE)
    assert found.level is Level.NOTE and found.value.endswith(
        f"the slowest 2; 20 us; hardly compared: {NOISE}"
    )
    found = between_machines(NODES, links({(0, 2): 1, (1, 2): 1, (2, 3): 1}), NOISE)
    assert faults(found) == [("n3: 1 GB/s to whomever, 10% of what others have", ("n3",))]


@pytest.mark.parametrize("noise, level", [("", Level.FAULT), (NOISE, Level.NOTE)])
def test_noise_counts_within_machines_too(noise, level):
    """As rank 0 hears it from four ranks of two machines."""
    visit = SimpleNamespace(
        findings=[], figures={}, noise=noise, alive=[0, 1, 2, 3], nodes={"n1": [0, 1], "n2": [2, 3]}
    )
    visit.cards = {rank: {"node": node} for node, ranks in visit.nodes.items() for rank in ranks}
    visit.names, visit.describe = list(visit.nodes), lambda rank: f"rank {rank}"
    visit.miss = lambda gone, when: None
    rate = {0: 10.0, 2: 5.0}
    heard = {rank: {"within": {str(rank + 1): [20.0, rate[rank], 1 << 20]}} for rank in rate}
    messages._judge(visit, {**heard, 1: {}, 3: {}})
    (found,) = [one for one in visit.findings if one.name == "links within machines"]
    assert found.level is level


def test_nccls_watchdog_does_not_end_the_doctor(monkeypatch):
    """It is told so before the group is formed, for it is asked then."""
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")
    told = []

    def form(*_, **__):
        told.append(os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"])
        raise RuntimeError("enough")

    monkeypatch.setattr(dist, "init_process_group", form)
    visit = SimpleNamespace(
        nodes={"n1": [0, 1]},
        ranks=SimpleNamespace(rank=0, local_rank=0),
        request=SimpleNamespace(sizes=None, limit=1.0),
        subject=SimpleNamespace(gpu=True),
        board=SimpleNamespace(pin=lambda *_: None, store=dist.HashStore()),
        system=SimpleNamespace(clock=lambda: 0.0),
    )
    own = {}
    messages._measure(visit, [0, 1], own)
    assert told == ["0"] and own["error"] == "enough"
