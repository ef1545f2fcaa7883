"""Which rank is slow: beside its peers, or its own past; what is said, and when again."""

from types import SimpleNamespace

import pytest

from hcmegatron.config import ConfigError, check_config
from hcmegatron.pipeline.own_time import OwnTime, of_record
from hcmegatron.training.stragglers import Stragglers, times_as_long
from schedules.actions import Action, Kind
from schedules.runtime.record import RecordedAction
from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import health_workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
SIX = [(stage, data) for data in range(3) for stage in range(2)]  # two stages, three data-parallel ranks
SLEEPER = "tests.training.health_workers:Sleeper"


def test_peers_hold_the_same_stage_for_other_data():
    own = [1.0, 2.0, 1.1, 2.2, 3.0, 2.0]  # the second stage takes twice as long, which is nobody's fault
    assert times_as_long(own, SIX, [None] * 6) == pytest.approx(
        [1 / 2.05, 2 / 2.1, 1.1 / 2, 1.1, 3 / 1.05, 2 / 2.1]
    )


def test_tensor_parallel_ranks_are_no_peers_for_they_wait_for_each_other():
    places = [(0, 0), (0, 0), (0, 1), (0, 1)]
    assert times_as_long([2.0, 2.0, 1.0, 1.0], places, [None] * 4) == [2.0, 2.0, 0.5, 0.5]


def test_without_peers_the_past_is_what_counts_and_not_what_slows_all():
    places = [(0, 0), (1, 0), (2, 0)]
    assert times_as_long([1.0, 4.0, 1.0], places, [1.0, 2.0, 1.0]) == [1 / 1.5, 2.0, 1 / 1.5]
    assert times_as_long([2.0, 4.0, 2.0], places, [1.0, 2.0, 1.0]) == [1.0, 1.0, 1.0]
    assert times_as_long([2.0, 4.0, 2.0], places, [None] * 3) == [1.0, 1.0, 1.0]  # not known yet
    assert times_as_long([3.0], [(0, 0)], [1.0]) == [3.0]


def looking(places, factor=1.5):
    watch = object.__new__(Stragglers)
    watch.factor, watch.places, watch.where = factor, places, [f"host{n}, cpu" for n in range(len(places))]
    watch.past, watch.before, watch.named = [[] for _ in places], set(), set()
    unknown = [-1] * len(places), [0.0] * len(places)
    return lambda own, waits=unknown: watch.look(own, *waits)


def test_slow_twice_in_a_row_is_named_once_and_so_is_its_end():
    look = looking([(0, 0), (0, 1), (0, 2)])
    assert look([1.0, 1.0, 1.0]) == look([1.0, 9.0, 1.0]) == look([1.0, 1.0, 1.0]) == []  # one hiccup
    assert look([1.0, 1.8, 1.0]) == []
    waits = [1, -1, 1], [0.7, 0.0, 0.8]
    assert look([1.0, 1.8, 1.0], waits) == [
        "slow: rank 1 (host1, cpu) computed 1.8 s a step, 1.8 times as long as those with the same stage; rank 2 "
        "waited 0.8 s for it"
    ]
    assert look([1.0, 2.5, 1.0]) == []
    assert look([1.0, 1.1, 1.0]) == ["no longer slow: rank 1 (host1, cpu), 1.1 s a step"]
    assert look([1.0, 1.8, 1.0]) == []


def test_a_rank_without_peers_is_slow_beside_its_past():
    look = looking([(0, 0), (1, 0)])
    assert look([1.0, 2.0]) == look([1.0, 2.2]) == look([1.0, 4.0]) == []
    assert look([1.0, 4.0]) == ["slow: rank 1 (host1, cpu) computed 4 s a step, 1.9 times as long as before"]
    assert look([1.0, 4.0]) == []  # it does not get used to that


def test_own_time_and_waits_by_peer_of_a_record():
    f, b = Action(Kind.F, 0, 0), Action(Kind.B, 0, 0)
    events = [RecordedAction(0, f, 0.5, 1.0, 2.0), RecordedAction(1, b, 0.25, 2.5, 4.5)]
    record = SimpleNamespace(events=lambda: events, source=lambda event: None if event.action == f else 3)
    assert of_record(record) == OwnTime(3.0, {3: 0.25})
    overlapped = [RecordedAction(0, f, 0.0, 1.0, 2.0), RecordedAction(0, b, 0.0, 1.5, 3.0)]
    record = SimpleNamespace(events=lambda: overlapped, source=lambda event: None)
    assert of_record(record) == OwnTime(2.0, {})


@pytest.mark.ranks
@pytest.mark.alone
@pytest.mark.parametrize(
    "layout, words",
    [
        ({"pipeline": 1}, "times as long as those with the same stage"),
        ({"schedule": "1f1b"}, "times as long as before; rank 0 waited"),
    ],
    ids=["data", "pipeline"],
)
def test_a_rank_that_sleeps_is_named_within_a_few_steps_and_nobody_before(layout, words, text, tmp_path):
    health = {"slow_factor": 3.0, "slow_window": 2}
    steps = {"steps": 16, "threads": 1}
    config = tiny(text, tmp_path / "run", parallel=layout, training=steps, health=health)
    run_ranks(2, health_workers.watched, config, [SLEEPER], **RUN)
    lines = (tmp_path / "run/train.log").read_text().splitlines()
    named, *again = [line for line in lines if line.startswith("slow: ")]  # again: after a hiccup of its peer
    assert all(line.startswith("slow: rank 1 (") for line in (named, *again)) and words in named
    after = [line for line in lines[: lines.index(named)] if line.startswith("step ")][-1]
    assert after.startswith("step 14/16")


def test_pipelines_that_do_not_say_when_they_wait_are_refused(text, tmp_path):
    config = tiny(text, tmp_path / "run", health={"slow_factor": 2.0})
    line = r"^health\.slow_factor = 2\.0 with parallel\.schedule = megatron_1f1b and parallel\.pipeline = 2: Megatron"
    with pytest.raises(ConfigError, match=line):
        check_config(config)
