"""A failure on one rank is every rank's: nobody waits for one that has given up, and who failed says why."""

import pytest

from tests.platform import collective_failure_workers
from tests.ranks import observe_ranks, run_ranks


@pytest.mark.ranks
def test_what_rank_0_finds_everybody_has():
    assert run_ranks(3, collective_failure_workers.found) == [
        ("found by 0", 0),
        ("found by 0", None),
        ("found by 0", None),
    ]


@pytest.mark.ranks
def test_a_users_mistake_on_rank_0_is_everybodys():
    for outcome in observe_ranks(2, collective_failure_workers.mistaken, timeout=30):
        assert outcome.exit_code == 1 and not outcome.overtime
        assert outcome.error.endswith("ConfigError: run.dir = x cannot be used\n")


@pytest.mark.ranks
def test_another_failure_on_rank_0_keeps_its_traceback_and_ends_the_others():
    first, second = observe_ranks(2, collective_failure_workers.broken, timeout=30)
    assert not first.overtime and not second.overtime
    assert (
        first.error.endswith("ZeroDivisionError: integer division or modulo by zero\n")
        and "return 1 // 0" in first.error
    )
    assert second.error.endswith(
        "PeerFailed: rank 0 failed: ZeroDivisionError: integer division or modulo by zero\n"
    )
