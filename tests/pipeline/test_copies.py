"""A step's copies to the device find pinned memory that was allocated before a receive was posted."""

import weakref

import torch

from hcmegatron.model.experts import GroupedExperts
from hcmegatron.pipeline.warm_start import copies_to_device
from hcmegatron.platform import transfer


def test_pinned_memory_is_reserved_for_a_whole_step_at_once(monkeypatch):
    """Each block is there beside all others, so that torch has as many afterwards."""
    alive, most = weakref.WeakSet(), []

    class Block:
        def __init__(self, size, dtype, pin_memory):
            assert pin_memory and dtype is torch.uint8
            alive.add(self)
            most.append((size, len(alive)))

    chunk = torch.nn.ModuleList([experts(5), torch.nn.Linear(2, 2), experts(3)])
    batch = {"labels": torch.zeros(2, 3), "attention_mask": torch.zeros(9), "first_sample": 7}
    monkeypatch.setattr(torch, "empty", Block)
    transfer.reserve([8, 8])
    assert most == [], "only where there is a GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    transfer.reserve(copies_to_device([chunk], [batch], 2))
    assert most == [(size, number + 1) for number, size in enumerate([24, 20, 12] * 2)]
    assert len(alive) == 0


def experts(count):
    module = GroupedExperts.__new__(GroupedExperts)
    torch.nn.Module.__init__(module)
    module.linear_fc1 = torch.nn.Module()
    module.linear_fc1.weight = torch.nn.Parameter(torch.zeros(count, 2, 2))
    return module
