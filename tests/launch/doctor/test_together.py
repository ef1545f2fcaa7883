"""Ranks that pass for machines, with planted faults: each is named, and none hangs."""

import time

import pytest

from tests.launch.doctor import workers
from tests.ranks import observe_ranks, run_ranks

LIMIT_S = (
    6.0  # for ranks that do not come; those that do form a process group within it, on a busy machine too
)
PRELOAD = ("torch.distributed", "launch.doctor.examination", "hcmegatron.platform.rendezvous")


def visit(world, *arguments, **options):
    """What rank 0 reports."""
    found, *others = run_ranks(
        world, workers.visit, *arguments, preload=PRELOAD, process_group=False, timeout=60, kwargs=options
    )
    assert others == [None] * (world - 1)
    return found


def without_speeds(said):
    return [one for one in said if not one[1].startswith(("matmul", "links", "write speed"))]


@pytest.mark.ranks
def test_two_machines_of_two_ranks_that_are_well(tmp_path):
    found = visit(4, tmp_path, machines={0: "n1", 1: "n1", 2: "n2", 3: "n2"})
    assert {(level, name) for level, name, *_ in without_speeds(found["said"])} == {
        ("ok", "connections"),
        ("ok", "the same everywhere"),
        ("ok", "run directory, shared"),
    }
    figures = found["figures"]
    assert [pair[:2] for pair in figures["within"]] == [(0, 1), (2, 3)]
    assert [pair[:2] for pair in figures["between"]] == [("n1", "n2")]
    assert all(
        link.gbs > 0 and link.bytes == 1 << 16 for _, _, link in figures["within"] + figures["between"]
    )
    assert figures["all-reduce"]["ranks"] == 4 and figures["all-to-all"]["bytes"] == 1 << 15
    assert abs(figures["clocks_s"]["n2"]["seconds"]) < 0.1


@pytest.mark.ranks
def test_a_wrong_clock_and_a_blocked_port_are_named_and_the_others_measured(tmp_path):
    found = visit(4, tmp_path, {2: ("clock_ahead", 90.0), 1: ("refused", 3)})
    clock, pair = [one for one in found["said"] if one[0] == "fault" and one[1] in ("clocks", "connections")]
    if clock[1] == "connections":
        clock, pair = pair, clock
    assert clock[2].startswith("n3's is 90.0") and "ahead of the others" in clock[2] and clock[3] == ["n3"]
    assert pair[2] == "n2 and n4: unreachable: Connection refused" and pair[3] == ["n4"]
    assert {"n3", "n4"} <= set(found["bad"]) and found["status"] == 6
    assert {pair[:2] for pair in found["figures"]["between"]} == {("n1", "n2"), ("n1", "n3"), ("n2", "n3")}


@pytest.mark.ranks
def test_a_run_directory_that_cannot_be_written_is_no_machines_fault(tmp_path):
    found = visit(2, "/proc/sys/here")
    assert [one[3] for one in found["said"] if one[1] == "run directory"] == [["n1", "n2"]]
    assert "n1" not in found["bad"] and found["status"] == 5


def observe(world, function, *arguments):
    """As `visit`, where ranks die: what rank 0 returned, and how long it took."""
    begin = time.monotonic()
    options = {"preload": PRELOAD, "process_group": False, "timeout": 40, "grace": 30}
    first, *_ = observe_ranks(world, function, *arguments, **options)
    assert first.exit_code == 0, first
    return first.result, time.monotonic() - begin


@pytest.mark.ranks
def test_a_rank_that_dies_while_messages_are_measured_is_named_with_what_it_did(tmp_path):
    found, seconds = observe(3, workers.visit, tmp_path, {2: ("killed_in_messages",)}, 20.0)
    (fault,) = [one for one in found["said"] if one[1] == "ranks"]
    assert fault[2].startswith(
        "rank 2 of 3 did not answer any more (round 1 of 3, with rank 1 (CPU 0 of n2))"
    )
    assert fault[3] == ["n3"] == found["bad"] and seconds < 30


@pytest.mark.ranks
def test_a_machine_with_a_fault_of_its_own_does_not_spoil_the_others_measurement(tmp_path):
    found = visit(3, tmp_path, {0: ("without_interface",)})
    assert {one[1] for one in found["said"] if one[0] == "fault"} <= {
        "GLOO_SOCKET_IFNAME",
        "matmul of a device",
    }
    assert "n1" in found["bad"] and [pair[:2] for pair in found["figures"]["between"]] == [("n2", "n3")]


@pytest.mark.ranks
def test_an_error_that_all_ranks_share_is_said_once_and_laid_to_none(tmp_path):
    found = visit(2, tmp_path, {0: ("breaks_in_messages",)}, limit=LIMIT_S)
    (fault,) = [one for one in found["said"] if one[1] == "messages"]
    assert (
        fault[2]
        == "rank 0 (CPU 0 of n1), round 1 of 1, with rank 1 (CPU 0 of n2): no memory; so did 1 more, after it"
    )
    assert fault[3] == ["n1", "n2"] and found["status"] == 5 and found["bad"] == []


@pytest.mark.ranks
def test_a_rank_that_does_not_come_is_named_with_its_machine(tmp_path):
    found, seconds = observe(3, workers.meet, tmp_path, [0, 1], LIMIT_S)
    (fault,) = [one for one in found["said"] if one[1] == "ranks"]
    assert fault[2] == "rank 2 of 3 did not answer when it was called" and fault[3] == ["n3"] == found["bad"]
    assert seconds < LIMIT_S + 13  # it is waited for once
    assert [pair[:2] for pair in found["figures"]["between"]] == [("n1", "n2")]


@pytest.mark.ranks
def test_a_rank_that_multiplies_slowly_is_named(tmp_path):
    found = visit(3, tmp_path, {1: ("multiplies_slowly",)}, machines=dict.fromkeys(range(3), "n1"))
    (slow,) = [one for one in found["said"] if one[1] == "matmul of a device"]
    assert slow[2].startswith("rank 1 (CPU 1 of n1): ") and slow[3] == ["n1"] == found["bad"]


@pytest.mark.ranks
def test_devices_that_fail_are_named_and_the_others_measured(tmp_path):
    planted = {0: ("fails_to_copy",), 1: ("fails_to_multiply",), 3: ("unknown_to_the_driver",)}
    found = visit(4, tmp_path, planted)
    assert [one[2:] for one in found["said"] if one[1] == "device"] == [
        ("rank 3: CUDA error: system not yet initialized", ["n4"]),
        ("rank 1 (CPU 0 of n2): CUDA error: unspecified launch failure", ["n2"]),
        ("rank 0 (CPU 0 of n1): CUDA error: an illegal memory access was encountered", ["n1"]),
    ]
    assert {"n1", "n2", "n4"} <= set(found["bad"]) and found["status"] == 6
    assert set(found["figures"]["matmul_tflops"]) == {0, 2, 3} and "copy_tbs" not in found["figures"]
    assert [pair[:2] for pair in found["figures"]["between"]] == [("n1", "n3")]


@pytest.mark.ranks
@pytest.mark.alone
def test_a_machine_whose_core_is_taken_is_named(tmp_path):
    """The others keep to another core, else theirs are taken as well."""
    planted = dict.fromkeys((0, 1, 3), ("keeps_to_the_first_core",)) | {2: ("shares_its_core",)}
    for attempt in range(
        3
    ):  # where programs of others take the cores of all, the doctor says so, and names nobody
        (folder := tmp_path / str(attempt)).mkdir()
        found = visit(4, folder, planted, seconds=0.3)
        if found["bad"] == ["n3"]:
            break
    assert found["bad"] == ["n3"], found["said"]
