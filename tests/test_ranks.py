"""The harness itself: results, exceptions, hangs and deaths of ranks."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RanksFailed, observe_ranks, run_ranks

pytestmark = pytest.mark.ranks


def total(value):
    tensor = torch.full((2,), float(value + dist.get_rank()))
    dist.all_reduce(tensor)
    return os.getpid(), tensor


def fail_on(rank):
    if dist.get_rank() == rank:
        raise ValueError(f"rank {rank} cannot go on")
    dist.barrier()


def wait_on(rank):
    if dist.get_rank() == rank:
        time.sleep(100)
    return rank


def die_on(rank):
    child = os.fork()
    if child == 0:
        time.sleep(100)
    print("started", child, flush=True)
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)


def _running(pid):
    """Whether the process still runs: a zombie that its new parent has not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_returns_what_every_rank_returned():
    answers = run_ranks(3, total, 10)
    assert len({pid for pid, _ in answers} | {os.getpid()}) == 4
    for _, tensor in answers:
        assert torch.equal(tensor, torch.full((2,), 33.0))


def test_an_exception_carries_its_traceback_and_does_not_wait_for_the_others():
    start = time.monotonic()
    with pytest.raises(RanksFailed, match="ValueError: rank 1 cannot go on"):
        run_ranks(2, fail_on, 1, grace=0.5)
    assert time.monotonic() - start < 20


def test_a_hang_ends_with_the_stacks():
    outcomes = observe_ranks(2, wait_on, 1, timeout=2.0)
    assert [outcome.overtime for outcome in outcomes] == [False, True]
    assert outcomes[0].result == 1
    assert "in wait_on" in outcomes[1].stacks


def test_a_killed_rank_is_seen_and_what_ranks_started_is_ended():
    outcomes = observe_ranks(2, die_on, 0)
    assert outcomes[0].exit_code == -signal.SIGKILL
    started = [int(outcome.output.split()[-1]) for outcome in outcomes]
    deadline = time.monotonic() + 10  # they are sent SIGKILL; a busy machine takes its time to end them
    while any(map(_running, started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_running, started))


def test_a_fork_server_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match="No module named 'no_such_module'"):
        run_ranks(1, total, 1, preload=("no_such_module",))


def test_ranks_see_no_gpu(monkeypatch):
    """Whatever the machine has: they are forks, and CUDA does not survive one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    preload = ("torch.distributed", "tests.fork_server")  # a fork server of this test's own
    answers = run_ranks(2, "os:getenv", "CUDA_VISIBLE_DEVICES", process_group=False, preload=preload)
    assert answers == ["", ""]
