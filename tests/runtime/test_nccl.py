"""What is ours around NCCL, with stand-ins for its groups and work: no GPU is needed."""

from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from schedules.placement import v_shape
from schedules.runtime import DistributedTransport, torch_distributed
from schedules.runtime.torch_distributed import _NcclSend
from tests.emulated import nccl


class Work:
    """As WorkNCCL: completed when it is done or has failed, and ``wait`` raises what made it fail."""

    def __init__(self, polls, error=None):
        self.polls, self.error, self.waited_at = polls, error, None

    def is_completed(self):
        self.polls -= 1
        return self.polls < 0

    def wait(self):
        assert self.polls < 0, "waiting for work that is not completed would hold up the compute stream"
        self.waited_at = self.polls
        if self.error:
            raise self.error
        return True


def test_a_send_is_over_when_it_is_completed():
    work = Work(polls=3)
    _NcclSend(work, torch.zeros(1)).wait()
    assert work.waited_at == -1


def test_a_lost_send_is_not_taken_for_sent():
    with pytest.raises(RuntimeError, match="remote process exited"):
        _NcclSend(Work(2, dist.DistBackendError("NCCL: remote process exited")), torch.zeros(1)).wait()


class Group:
    """Of rank 1 of 2."""

    def rank(self):
        return 1

    def size(self):
        return 2

    def send(self, tensors, peer, tag):
        return Work(-1)

    recv = send


def test_every_channel_has_options_of_its_own_with_the_timeout(monkeypatch):
    """Whether their ends meet: tests/pipeline/test_channels.py."""
    zeros = torch.zeros
    made, ended = [], []

    def new_group(ranks, **options):
        made.append((ranks, options))
        return Group()

    monkeypatch.setattr(torch_distributed, "groups_of_all", lambda own, device: [(0, 1), own])
    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(dist, "destroy_process_group", ended.append)
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [4, 5])
    monkeypatch.setattr(dist, "ProcessGroupNCCL", mock.Mock(Options=nccl.Options), raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None: zeros(*size))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    limit = timedelta(seconds=7)
    transport = DistributedTransport(Group(), v_shape(2), torch.device("cuda"), timeout=limit)
    own = dict(transport._channels)
    assert set(own) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert [ranks for ranks, _ in made] == [[0, 1]] * 4 + [[4, 5]] * 4
    options = [options["pg_options"] for _, options in made]
    assert len({id(one) for one in options}) == 8
    assert [one._timeout for one in options] == [options["timeout"] for _, options in made] == [limit] * 8
    assert all(one.is_high_priority_stream and one.config.max_ctas == 4 for one in options)
    assert [options["group_desc"] for _, options in made[4:]] == [
        "channel 0>1",
        "channel 1>0",
        "channel 2>3",
        "channel 3>2",
    ]
    assert transport.receives_occupy_device
    transport.close()
    assert set(map(id, ended)) == set(map(id, own.values()))
