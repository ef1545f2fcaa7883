"""Whatever stops a rank of a training run, the job ends in time, says where every rank was, and leaves nothing."""

import os
import re
import time

import pytest

from tests.ranks import observe_ranks
from tests.small_configs import tiny

pytestmark = [pytest.mark.ranks, pytest.mark.alone]

LIMIT = 8


@pytest.mark.parametrize(("how", "culprit"), [("kill", 1), ("kill", 0), ("stall", 1), ("cut", 0)])
def test_ends_in_time_with_positions_and_stacks(how, culprit, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n * 7919 % 1000} {'ab' * (n % 9)}\n" for n in range(400)))
    config = tiny(text, tmp_path / "run", model={"layers": 4}, training={"global_batch": 5, "micro_batch": 1})
    config.parallel.schedule, config.parallel.timeout_s = "dualpipev", LIMIT
    (outcome,) = observe_ranks(
        1,
        "tests.pipeline.disturbed:start",
        *(config, how, culprit, 2),
        preload=("tests.training.workers", "tests.pipeline.disturbed"),
        process_group=False,
        timeout=90,
    )
    ended = time.monotonic()
    said = outcome.output
    assert not outcome.overtime and outcome.result not in (0, None), str(outcome)
    began = max(float(found) for found in re.findall(r"begins (\S+)", said))
    assert ended - began < LIMIT + 3, said  # 3: collecting processes on a busy machine

    processes = dict(re.findall(r"rank (\d) is process (\d+)", said))
    assert sorted(processes) == ["0", "1"]
    for process in processes.values():
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)

    other = 1 - culprit
    assert re.search(rf"^ *rank {other}, dualpipev, step 3: action \d+ of \d+", said, re.M), said
    stacks = (tmp_path / f"run/hang/rank-{other}.txt").read_text()
    assert "_watch" in stacks or "in _wait" in stacks
    if (how, culprit) != ("kill", 0):  # whose store is gone before the other comes to wait
        # A rank meets a connection that is gone while it waits, or as it begins the next message.
        assert re.search(rf"(waiting for|lost the) .*rank {culprit}\b", said), said
    if how == "stall":
        where = rf"rank {culprit}, dualpipev, step 3: action \d+ of \d+, \S*F3\S*, computing for"
        assert re.search(where, said), said
        assert "in _stall" in (tmp_path / f"run/hang/rank-{culprit}.txt").read_text()
    elif how == "cut":
        assert re.search(rf"rank {culprit}, dualpipev, step 3: ", said), said
    else:
        assert f"rank {culprit} was killed by SIGKILL" in said
