"""The gloo groups of a process share an event loop, and are groups like any other."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hcmegatron.platform import gloo
from hcmegatron.platform.gloo import share_event_loop
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks
ALONE = {"process_group": False, "timeout": 60}


def loops():
    """Threads that serve gloo's sockets, which name themselves when they have begun."""
    time.sleep(0.3)
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("gloo_tcp_loop") for name in names)


def start(directory):
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world)


def several(directory, shared):
    """Loops with the default group, and with six more of which this rank is in five."""
    if shared:
        share_event_loop()
        share_event_loop()
    start(directory)
    first = loops()
    groups = [dist.new_group([0, 1]) for _ in range(4)] + [dist.new_group([rank]) for rank in (0, 1)]
    found = first, loops()
    for _ in range(20):  # megabytes through every group at once
        tensors = [torch.full((1 << 18,), float(dist.get_rank() + index)) for index in range(4)]
        works = [
            dist.all_reduce(tensor, group=group, async_op=True)
            for tensor, group in zip(tensors, groups, strict=False)
        ]
        for work in works:
            work.wait()
    summed = [(index, float(tensor.min()), float(tensor.max())) for index, tensor in enumerate(tensors)]
    dist.destroy_process_group()
    return found, summed


def test_torch_has_a_loop_for_every_group_and_we_have_one(tmp_path):
    for shared, counted in ((False, (1, 6)), (True, (1, 1))):
        (directory := tmp_path / str(shared)).mkdir()
        for found, summed in run_ranks(2, several, directory, shared, **ALONE):
            assert found == counted
            assert summed == [(index, 2.0 * index + 1, 2.0 * index + 1) for index in range(4)]


def twice(directory):
    share_event_loop()
    found = []
    for number in range(2):
        (run := Path(directory) / str(number)).mkdir(exist_ok=True)
        start(run)
        found.append(dist.get_backend())
        dist.barrier()
        dist.destroy_process_group()
    return found, loops()


def limited(directory):
    """A group's time limit changed as Megatron does."""
    share_event_loop()
    start(directory)
    group = dist.new_group([0, 1])
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=7), group)
    backend = group._get_backend(torch.device("cpu"))
    return isinstance(backend, dist.ProcessGroupGloo), backend.options._timeout.total_seconds()


def test_groups_are_torchs_whose_time_limit_can_be_changed(tmp_path):
    assert run_ranks(2, limited, tmp_path, **ALONE) == [(True, 7.0)] * 2


def test_a_torch_that_makes_groups_otherwise_keeps_its_own(monkeypatch):
    monkeypatch.setattr(gloo, "NEEDED", ("_Options", "nothing_that_is_there"))
    before = dist.ProcessGroupGloo.__init__
    with pytest.warns(UserWarning, match="nothing_that_is_there: every gloo group has a thread of its own"):
        share_event_loop.__wrapped__()
    assert dist.ProcessGroupGloo.__init__ is before


def test_groups_end_and_begin_again_in_a_process(tmp_path):
    assert run_ranks(2, twice, tmp_path, **ALONE) == [(["gloo", "gloo"], 1)] * 2


def named(directory, interfaces):
    os.environ["GLOO_SOCKET_IFNAME"] = interfaces
    share_event_loop()
    start(directory)
    dist.barrier()
    return loops()


@pytest.mark.parametrize(("interfaces", "devices"), [("lo", 1), ("lo,lo", 2)])
def test_the_interfaces_that_are_named_are_taken(interfaces, devices, tmp_path):
    assert run_ranks(2, named, tmp_path, interfaces, **ALONE) == [devices] * 2


def absent(directory):
    """An interface that is not there, as torch says it."""
    try:
        named(directory, "ib7")
    except RuntimeError as error:
        return str(error)


def test_an_interface_that_is_not_there_is_named(tmp_path):
    assert all("ib7" in said for said in run_ranks(2, absent, tmp_path, **ALONE))


def from_a_child(directory):
    """The loop is used, then a process forked from this one makes a group of its own."""
    share_event_loop()
    start(directory)
    dist.barrier()
    if (child := os.fork()) == 0:
        dist.distributed_c10d._update_default_pg(None)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        os._exit(7 if loops() == 1 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_has_a_loop_of_its_own(tmp_path):
    assert run_ranks(2, from_a_child, tmp_path, **ALONE) == [7, 7]
