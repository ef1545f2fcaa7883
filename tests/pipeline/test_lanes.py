"""Both lanes beside computation have priority themselves, whatever the groups have that communicate on them."""

import torch

from hcmegatron.model.nodes import Lane
from hcmegatron.pipeline.lanes import Lanes, StreamOrder


class Stream:
    def __init__(self, priority=0):
        self.priority = priority


def test_communication_and_merges_come_before_computation(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    streams = Lanes(torch.device("cuda", 3))._streams
    assert {lane: stream.priority for lane, stream in streams.items()} == {
        Lane.COMMUNICATION: -1,
        Lane.HIGH_PRIORITY: -1,
    }


def test_on_cpu_there_are_none():
    lanes, order = Lanes(torch.device("cpu")), StreamOrder()
    with lanes.on(Lane.COMMUNICATION, order):
        pass
    assert order.done is None
