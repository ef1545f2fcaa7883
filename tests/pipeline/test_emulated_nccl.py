"""The emulated GPU and NCCL keep the rules that make programs hang or wait on real ones."""

import re

import pytest

from schedules.runtime.watchdog import EXIT_CODE
from tests.emulated.queues import disagreements, left_over
from tests.emulated.streams import Item
from tests.ranks import observe_ranks, run_ranks

pytestmark = pytest.mark.ranks
RUN = {
    "preload": ("tests.pipeline.emulated_workers", "tests.pipeline.emulated_rules"),
    "timeout": 60,
    "process_group": False,
}
RULES = "tests.pipeline.emulated_rules:"


def test_what_is_waited_for_runs_on_the_current_stream_and_the_rest_on_the_communicators():
    for rank, found in enumerate(run_ranks(2, RULES + "streams_of_collectives", **RUN)):
        (connect, _), *operations, (again, _), (message, pair) = found
        assert connect == again == "connect"  # the group's, at its first collective, and the two ranks'
        kinds, streams = zip(*operations, strict=True)
        assert kinds == ("collective",) * 3
        side, own, current = streams
        assert current == "compute" and side.startswith("side") and own.startswith("nccl ") and own != pair
        assert message == ("receive" if rank else "send")


def test_communicators_that_are_made_in_another_order_hold_up_their_hosts():
    outcomes = observe_ranks(2, RULES + "first_in_another_order", **RUN)
    for outcome in outcomes:
        assert "made at its first operation, and not all of them have come to it in 2 s" in outcome.error


def test_another_order_of_operations_is_found():
    logs = run_ranks(2, RULES + "disordered", True, **RUN)
    assert len(disagreements(logs)) == 2
    assert disagreements([logs[0], logs[0]]) == []
    (alone,) = disagreements([logs[0][:-2], logs[0]])
    assert alone.endswith("on ranks [1] alone")


def test_what_the_host_waits_for():
    (found,) = run_ranks(1, RULES + "waits", **RUN)
    assert found == {
        "computing": 0,
        "an item": 1,
        "the host's item": 0,
        "a branch": 1,
        "a list": 1,
        "a pageable copy": 1,
        "a pinned copy": 0,
        "a pinned copy that is waited for": 1,
        "a tensor of numbers": 1,
        "a copy back": 1,
        "a copy back beside computation": 0,
        "a selection": 1,
        "a masked fill": 0,
        "an index": 0,
        "an event": 1,
        "another stream's event": 0,
        "new pinned memory": 1,
        "pinned memory again": 0,
    }


def test_events_have_times_once_the_host_has_waited():
    ((said, time),) = run_ranks(1, RULES + "times", **RUN)
    assert [words.partition(" must be ")[2].split()[0] for words in said] == [
        "created",
        "recorded",
        "completed",
    ]
    assert time >= 0


def test_torch_has_thirty_two_streams_of_a_priority():
    assert run_ranks(1, RULES + "streams_handed_out", **RUN) == [[32, 64]]


def test_a_stalled_rank_ends_the_job_with_everybodys_position(tmp_path):
    """The watchdog over streams: the other's host waits for its message to be taken."""
    outcomes = observe_ranks(2, RULES + "stalls", 2.0, tmp_path, **RUN)
    for outcome in outcomes:
        assert outcome.exit_code != 0 and not outcome.overtime, str(outcome)
        assert re.search(rf"^  rank {outcome.rank}, dualpipev, step 2: action \d+ of", outcome.output, re.M)
        assert (tmp_path / f"hang/rank-{outcome.rank}.txt").exists()
    assert EXIT_CODE in [outcome.exit_code for outcome in outcomes]
    assert "waiting for" in outcomes[0].output and "computing for" in outcomes[1].output


def collective(number, stream="compute", members=2, channel="group"):
    return Item("collective", stream, number, channel, members)


def test_a_collective_keeps_its_stream_until_all_members_are_there():
    alone = [collective(1), Item("kernel", "compute")]
    assert left_over([alone, alone], 1) == 0
    # The other has not enqueued it: its kernel waits for ever. The third rank is no member.
    assert left_over([alone, [], []], 8) == 1
    three = [[collective(1, members=3)]] * 3
    assert left_over(three, 1) == 0 and left_over([*three[:2], []], 1) == 0


def test_collectives_in_another_order_on_streams_of_one_queue_hang():
    first, second = collective(1, "a", channel="A"), collective(1, "b", channel="B")
    after = [Item("kernel", "a"), Item("kernel", "b")]
    logs = [[first, second, *after], [second, first, *after]]
    assert left_over(logs, 8) == 0
    # One stream for both, which runs them in turn.
    one = [[item._replace(stream="a") for item in log] for log in logs]
    assert left_over(one, 8) > 0


def test_hosts_that_make_communicators_in_another_order_never_enqueue_what_follows():
    a, b = (Item("connect", number=0, channel=name, members=2) for name in "AB")
    assert left_over([[a, b], [a, b]], 8) == 0
    assert left_over([[a, b], [b, a]], 8) == 4
