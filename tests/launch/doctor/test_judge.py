"""What the figures of many machines say: literal figures, literal findings."""

from launch.doctor import judge
from launch.doctor.findings import BAD_NODES, FAULTS, FINE, Finding, Report, fault, merged, note, ok, warning
from launch.doctor.peers import Offset
from launch.doctor.speed import Speed

NODES = ["n1", "n2", "n3", "n4"]


def faults(findings):
    return [(one.value, one.nodes) for one in findings if one.level.name == "FAULT"]


def devices(*rates, waited=0.0):
    """Of ranks with one rate in the first pass and another in the second."""
    speeds = {rank: [Speed(102, rate, 0.01, waited) for rate in own] for rank, own in enumerate(rates)}
    return judge.slow_devices(speeds, lambda rank: NODES[rank], lambda rank: f"rank {rank}")


def test_a_device_is_slow_that_is_below_nine_tenths_of_the_median_in_both_passes():
    assert faults(devices((100, 100), (100, 100), (80, 85), (101, 99))) == [
        ("rank 2: 85% of the median of 4, 85 TFLOP/s", ("n3",))
    ]
    assert faults(devices((100, 100), (100, 100), (80, 91), (101, 99))) == []  # disturbed once
    (alone,) = devices((100, 102))
    assert alone == ok("matmul of devices", "1 of 102 TFLOP/s, the slowest 102, spread 1%").on("n1")


def test_machines_that_are_all_busy_are_hardly_compared():
    """Ten times slower, without the time of waiting, is slow in any noise."""
    (found,) = devices((100, 100), (50, 50), waited=0.4)
    assert found.level.name == "WARNING"
    assert found.value.endswith("hardly compared: other programs had the cores 40% of the time")
    found = faults(devices((60, 60), (60, 60), (6, 6), waited=0.4))
    assert found == [
        ("rank 2: 10% of the median of 3, 10 TFLOP/s; others had its core 40% of the time", ("n3",))
    ]


def test_what_differs_is_laid_to_the_few():
    facts = {node: {"torch": "2.11", "code": "a"} for node in NODES}
    found = list(judge.differences({**facts, "n2": {"torch": "2.9", "code": "a"}}))
    assert faults(found) == [("2.9, where most machines have 2.11", ("n2",))]
    assert found[1].value == "code"
    halves = {"n1": {"torch": "2.11"}, "n2": {"torch": "2.9"}}
    assert faults(judge.differences(halves)) == [("2.9, where as many machines have 2.11", ("n1", "n2"))]


def test_clocks_are_apart_by_more_than_the_way_there_may_explain():
    offsets = {
        "n2": Offset(-0.1, 0.01),
        "n3": Offset(2.0, 0.1),
        "n4": Offset(-90.0, 0.1),
        "n5": Offset(0.3, 0.1),
    }
    assert [(f.level.name, f.value, f.nodes) for f in judge.clocks("n1", offsets)] == [
        ("WARNING", "n3's is 2.000 s ahead of the others (+- 0.100)", ("n3",)),
        ("FAULT", "n4's is 90.000 s behind the others (+- 0.100)", ("n4",)),
    ]
    (found,) = judge.clocks("n1", {"n2": Offset(0.7, 0.3)})
    assert found == ok("clocks", "at most 700.0 ms from their median, to 300.0 ms").on("n1", "n2")


def test_the_first_machine_may_be_the_one_whose_clock_is_wrong():
    late = {"n2": Offset(80.0, 0.1), "n3": Offset(80.1, 0.1)}
    assert faults(judge.clocks("n1", late)) == [("n1's is 80.000 s behind the others (+- 0.100)", ("n1",))]
    two = faults(judge.clocks("n1", {"n2": Offset(80.0, 0.1)}))
    assert two == [("n2's is 80.000 s ahead of the other (+- 0.100)", ("n1", "n2"))]


def test_who_cannot_be_reached():
    cut = {(0, 2): "timed out", (1, 2): "timed out", (2, 3): "refused"}
    assert faults(judge.unreachable(NODES, cut)) == [
        ("n3 is cut off from 3 of 3 machines (timed out)", ("n3",))
    ]
    assert faults(judge.unreachable(NODES, {(0, 1): "refused"})) == [
        ("n1 and n2: unreachable: refused", ("n2",))
    ]
    everything = {(a, b): "refused" for a in range(4) for b in range(a + 1, 4)}
    report = Report(judge.unreachable(NODES, everything), NODES)
    assert faults(report.findings) == [("no two machines reach each other (refused)", tuple(NODES))]
    assert report.bad == [] and report.status == FAULTS


def test_a_directory_that_others_do_not_see():
    found = judge.shared_directory("n1", {"n2": "seen", "n3": "not seen", "n4": "not locked"})
    assert [(one.level.name, one.nodes) for one in found] == [("FAULT", ("n3",)), ("WARNING", ("n4",))]
    assert judge.shared_directory("n1", {}) == []


def test_a_directory_that_nobody_else_sees_is_no_machines_fault():
    report = Report(judge.shared_directory("n1", {"n2": "not seen"}), ["n1", "n2"])
    assert report.bad == [] and report.status == FAULTS


def test_machines_to_be_left_out():
    """Those with broken hardware, and those with what at most half of the machines have."""
    common = fault("torch", "not installed", "").on("n1", "n2", "n3")
    rare = fault("shared memory", "small", "").on("n2")
    assert Report([common], NODES).bad == [] and Report([common], NODES).status == FAULTS
    assert Report([common, rare], NODES).bad == ["n2"] and Report([rare], NODES).status == BAD_NODES
    assert Report([fault("GPU 0", "broken", "", machine=True).on("n1")], ["n1"]).bad == ["n1"]
    assert Report([rare], ["n2"]).bad == []  # alone: who says that another machine is better?
    assert Report([warning("a", "b", "c").on("n1"), note("a", "b")], NODES).status == FINE


def test_machines_to_leave_out_do_not_hide_faults_that_would_stay():
    common, rare = (fault(name, "", "").on(*nodes) for name, nodes in (("a", NODES), ("b", ["n2"])))
    of_nobody = fault("ranks", "rank 3 did not answer", "", machine=True)
    for stays in (common, of_nobody):
        report = Report([rare, stays], NODES)
        assert report.bad == ["n2"] and report.status == FAULTS
    covered = fault("c", "", "", machine=True).on("n1", "n2", "n3")
    assert Report([rare, covered], NODES).status == BAD_NODES


def test_the_same_on_several_machines_is_said_once_and_the_worst_first():
    one, two = fault("shm", "1 MiB", "more").on("n1"), fault("shm", "1 MiB", "more").on("n2")
    found = merged([ok("files", "1024").on("n1"), one, ok("files", "2048").on("n2"), two])
    assert found == [
        fault("shm", "1 MiB", "more").on("n1", "n2"),
        ok("files", "1024 (others differ)").on("n1", "n2"),
    ]
    assert Finding.from_json(one.as_json()) == one
