"""Copies to a device never hold up the host, and only what a stage uses is copied. A meta device stands for it."""

from types import SimpleNamespace

import pytest
import torch

from hcmegatron.data import feed
from hcmegatron.data.feed import Feed, unused_tensors
from hcmegatron.platform.transfer import to_device

META = torch.device("meta")


@pytest.fixture
def copies(monkeypatch):
    """(pinned, non_blocking) of every copy to another device."""
    found = []
    usual_to, pinned = torch.Tensor.to, set()

    def pin_memory(tensor, *_):
        copy = tensor.clone()
        pinned.add(copy.data_ptr())
        return copy

    def to(tensor, *args, **kwargs):
        if META in args and tensor.device != META:
            found.append((tensor.data_ptr() in pinned, kwargs.get("non_blocking", False)))
        return usual_to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    return found


def test_a_copy_is_from_pinned_memory(copies):
    assert to_device(torch.arange(3), META).device == META
    assert copies == [(True, True)]


def test_what_is_there_stays(copies):
    there, here = torch.empty(3, device=META), torch.arange(3)
    assert to_device(there, META) is there and to_device(here, torch.device("cpu")) is here
    assert copies == []


BATCH = ("tokens", "labels", "loss_mask", "position_ids", "document_ids")


@pytest.mark.parametrize(
    ("first", "last", "masked", "expected"),
    [
        (True, False, False, ["tokens", "position_ids"]),
        (False, False, False, []),
        (False, False, True, ["document_ids", "attention_mask"]),
        (False, True, False, ["labels", "loss_mask"]),
        (True, True, True, [*BATCH, "attention_mask"]),
    ],
)
def test_a_feed_copies_what_its_stage_uses(copies, monkeypatch, first, last, masked, expected):
    monkeypatch.setattr(feed, "device", lambda: META)
    chunk = SimpleNamespace(pre_process=first, post_process=last)
    batches = Feed(
        lambda index: {name: torch.arange(6).view(2, 3) for name in BATCH},
        masked,
        unused=unused_tensors(chunk, masked),
    )
    assert list(next(batches)) == expected
    assert copies == [(True, True)] * len([name for name in expected if name in BATCH])
