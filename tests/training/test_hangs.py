"""A rank that is stopped where no schedule runs: the others notice in time, leave their stacks, and say where."""

import time

import pytest

from tests.ranks import observe_ranks
from tests.small_configs import tiny
from tests.training import hang_workers

RUN = {"preload": ("tests.training.hang_workers",), "process_group": False, "timeout": 60}
LIMIT = 3


@pytest.mark.ranks
@pytest.mark.alone
def test_a_collective_that_times_out_leaves_positions_and_stacks(text, tmp_path):
    config = tiny(text, tmp_path / "run", parallel={"timeout_s": LIMIT})
    began = time.monotonic()
    (outcome,) = observe_ranks(1, hang_workers.stopped, config, **RUN)
    assert not outcome.overtime and outcome.result in (1, 124), str(outcome)
    assert time.monotonic() - began < LIMIT + 15  # a start and an end on a busy machine
    assert outcome.output.rstrip().splitlines()[-1] in (
        f"positions and stacks of all ranks: {tmp_path}/run/hang",
        "hcmegatron: rank 0 hung, or waited for one that did: see hang/ in the run directory",
    )
    report = (tmp_path / "run/hang/rank-0.txt").read_text()
    assert report.startswith("rank 0: RuntimeError: ") and "imed out" in report.splitlines()[0]
    assert report.splitlines()[1] == "rank 0: in no step of this runtime"  # the schedule is Megatron's
    assert "in _write" in report and "in _watch\n" in report


@pytest.mark.ranks
@pytest.mark.alone
def test_a_rank_of_the_commands_own_that_does_not_come_is_no_mistake_of_the_users(text, tmp_path):
    """Whose status would keep it from being started again."""
    config = tiny(text, tmp_path / "run", parallel={"timeout_s": 2})
    (outcome,) = observe_ranks(1, hang_workers.absent, config, **RUN)
    assert (outcome.overtime, outcome.result) == (False, 1), str(outcome)
    assert "RuntimeError: rank 1 of 2 did not come to 127.0.0.1:" in outcome.output
