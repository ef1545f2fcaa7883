"""Takes one synchronisation away from the program that is run. Import it in ranks only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch

from hcmegatron.model.nodes import Lane
from hcmegatron.pipeline import lanes, micro_batch_graph
from hcmegatron.recompute import block_checkpoint
from tests.emulated import streams
from tests.emulated.races import innermost
from tests.emulated.streams import DEVICE
from tests.races.collectives import Work
from tests.races.sites import Inside, Site


@contextmanager
def removed(site: Site | Inside) -> Iterator[None]:
    """Inside, the call does nothing; calls from elsewhere do what they always do."""
    with ExitStack() as patches:
        for owner, instead in _INSTEAD[site.call]:
            usual = getattr(owner, site.call)

            def called(
                *args: Any, usual: Callable = usual, instead: Callable = instead, **kwargs: Any
            ) -> Any:
                return (instead if site.holds(innermost()) else usual)(*args, **kwargs)

            patches.enter_context(mock.patch.object(owner, site.call, called))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _completed(work: Work) -> bool:
    work.arrive()
    return True


@contextmanager
def _unordered(own: lanes.Lanes, lane: Lane, order: lanes.StreamOrder, needs: object = ()) -> Iterator[None]:
    """On the lane, with nothing waited for and nothing recorded; where nothing would have been, not on the lane."""
    stream = own._streams.get(lane) or DEVICE.current[-1]
    with nullcontext() if order.lane is lane else streams.on(stream):
        yield
    order.lane, order.done = lane, stream.record_event()


# What has each call, and what is left of it: the data of a message are there, but no stream has waited for it.
_INSTEAD: dict[str, list[tuple[Any, Callable]]] = {
    "wait_event": [(streams.Stream, _nothing)],
    "wait_stream": [(streams.Stream, _nothing)],
    "record_stream": [(torch.Tensor, _nothing)],
    "is_completed": [(Work, _completed)],
    "wait": [(Work, Work.arrive)],
    "_used_here": [(block_checkpoint, _nothing)],
    "join": [(micro_batch_graph.MicroBatchGraph, _nothing)],
    "on": [(lanes.Lanes, _unordered)],
}
