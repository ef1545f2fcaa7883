"""Block-wise recomputation (mHC, 2512.24880, section 4.3.2): what surrounds the sub-layers is rebuilt in backward.

A `BlockCheckpoint` is one micro-batch's pass through a chunk. Of every block of sub-layers it keeps the first streams
[s, b, n, C] and the sub-layers' outputs y [s, b, C]. Whatever autograd would save of the connections and norms -
streams, coefficients, reads, norm outputs, these also where attention, MLP or router save them as their input - is
replaced in the graph by a handle. The first handle of a block that backward asks for rebuilds the block: `read` and
`write` of its sub-layers run again from what is kept, and what autograd saves this time, in the same order, is what the
handles give out. T itself does not run again, and the graph and the order of its gradients stay what they were, so
results are equal bit for bit.

Nothing here lives longer than the graph: handles belong to it, a block belongs to its handles. So a rebuilt tensor is
freed as soon as the node that saved it has run (or, for what a deferred weight gradient holds, after that), and a
micro-batch that is given up leaves nothing behind.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hcmegatron.model.nodes import ActivationPolicy, State, SubLayer
from hcmegatron.recompute.meter import Meter, SavedTensor
from schedules.runtime.gpu import GPU


class Handle:
    """Stands in the autograd graph for a tensor that its block can rebuild."""

    __slots__ = ("__weakref__", "block", "value")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.value: Tensor | None = None

    def tensor(self) -> Tensor:
        """The tensor, rebuilt with its whole block at the first call for any of the block's."""
        if self.value is None:
            self.block.rebuild()
        assert self.value is not None, "a rebuilt block did not fill this handle"
        _used_here(self.value)  # rebuilt on the stream of whichever node came first
        return self.value


def _used_here(tensor: Tensor | None) -> None:
    """On CUDA nodes run on several streams: memory must not be given away before this one is done with the tensor."""
    if tensor is not None and GPU.holds(tensor):
        tensor.record_stream(GPU.current_stream())


def unpack(packed: Handle | SavedTensor | Tensor) -> Tensor:
    """What autograd gets back for what a block checkpoint packed."""
    return packed if isinstance(packed, Tensor) else packed.tensor()


@dataclass
class SubLayerRecord:
    """One sub-layer's part of a block: what is kept of it, and its handles in the order in which autograd saved.

    Attributes:
        input: storage of T's input during forward.
        saved: handles of `read`, then of `write`.
        views: handles of T's input, saved inside T, with shape, strides and offset of the view.
    """

    sublayer: SubLayer
    input: int
    saved: list[weakref.ref[Handle]]
    views: list[tuple[weakref.ref[Handle], torch.Size, tuple[int, ...], int]] = field(default_factory=list)
    output: Tensor | None = None
    bias: Tensor | None = None
    first_sample: int | None = None


class Block:
    """Consecutive sub-layers that are rebuilt together from `entry`: the streams that enter the first of them, and what
    the sub-layer before has left for its read (some numbers a token): a pre, a projection that it folded into its
    write."""

    scope = "around"

    def __init__(self, entry: State, meter: Meter | None = None) -> None:
        streams, *projection = entry
        self.entry: State = (
            streams.detach().requires_grad_(streams.requires_grad),
            *(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in projection),
        )
        self.records: list[SubLayerRecord] = []
        self.meter = meter
        if meter:
            meter.add(self)

    def handle(self, handles: list[weakref.ref[Handle]]) -> Handle:
        """A new handle of this block, noted in `handles`, which do not keep it alive."""
        handle = Handle(self)
        handles.append(weakref.ref(handle))
        return handle

    def rebuild(self) -> None:
        """Give every handle that backward may still ask for its tensor, and let go of what was kept."""
        assert self.entry, "a block is rebuilt once"
        if self.meter:
            self.meter.rebuilding()
        state = self.entry
        for tensor in state:
            _used_here(tensor)
        with torch.enable_grad():
            for done in self.records:
                _used_here(done.output)  # and not the bias, which is a parameter
                streams, *projection = state
                with _collecting(done):
                    x, coefficients = done.sublayer.read(streams, *projection)
                    for reference, *view in done.views:
                        if handle := reference():
                            handle.value = x.detach().as_strided(*view)
                    if self.meter:
                        self.meter.follow(x)
                    state = done.sublayer.write(
                        streams, done.output, coefficients, done.bias, done.first_sample
                    )
                done.output = done.bias = None
        self.entry = ()
        if self.meter:
            self.meter.rebuilt()

    def tensors(self) -> Iterator[Tensor]:
        """What this block keeps alive now: before it is rebuilt the kept, afterwards the rebuilt tensors."""
        yield from self.entry
        for done in self.records:
            if done.output is not None:
                yield done.output
            for reference in (*done.saved, *(reference for reference, *_ in done.views)):
                if (handle := reference()) and handle.value is not None:
                    yield handle.value


class BlockCheckpoint(ActivationPolicy):
    """Keeps of one micro-batch's pass through a chunk what its blocks need.

    Args:
        lengths: sub-layers of the chunk's blocks, in order.
        meter: told of every block.
    """

    def __init__(self, lengths: Iterable[int], meter: Meter | None = None) -> None:
        self.lengths = iter(lengths)
        self.left = 0  # sub-layers that still belong to the current block
        self.block: Block | None = None
        self.meter = meter
        self.input: Tensor | None = None

    def node(self) -> AbstractContextManager:
        """T's own tensors are kept as they are, except its input."""
        return saved_tensors_hooks(self._inside, unpack)

    def read(
        self, sublayer: SubLayer, streams: Tensor, *projection: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self.left:
            self.left = next(self.lengths)
            self.block = Block((streams, *projection), self.meter)
        self.left -= 1
        block, saved = self.block, []
        with saved_tensors_hooks(lambda _: block.handle(saved), unpack):
            x, coefficients = sublayer.read(streams, *projection)
        # Alive until `write`, so that no other tensor can take its storage. Detached: the graph knows this object.
        self.input = x.detach()
        block.records.append(SubLayerRecord(sublayer, x.untyped_storage().data_ptr(), saved))
        return x, coefficients

    def write(
        self,
        sublayer: SubLayer,
        streams: Tensor,
        y: Tensor,
        coefficients: tuple[Tensor, ...],
        bias: Tensor | None = None,
        first_sample: int | None = None,
    ) -> State:
        block, current = self.block, self.block.records[-1]
        assert current.sublayer is sublayer, "sub-layers are left in the order in which they are entered"
        current.output, current.bias = y.detach().requires_grad_(y.requires_grad), bias
        current.first_sample = first_sample
        with saved_tensors_hooks(lambda _: block.handle(current.saved), unpack):
            state = sublayer.write(streams, y, coefficients, bias, first_sample)
        self.input = None
        return state

    def _inside(self, tensor: Tensor) -> Handle | SavedTensor | Tensor:
        if self.input is None or tensor.untyped_storage().data_ptr() != self.block.records[-1].input:
            return self.meter.hold(tensor, "inside") if self.meter else tensor
        handles: list[weakref.ref[Handle]] = []
        handle = self.block.handle(handles)
        view = (*handles, tensor.size(), tensor.stride(), tensor.storage_offset())
        self.block.records[-1].views.append(view)
        return handle


@contextmanager
def _collecting(done: SubLayerRecord) -> Iterator[None]:
    """What autograd saves inside goes to the record's handles, in order."""
    handles = iter(done.saved)

    def fill(tensor: Tensor) -> None:
        try:
            handle = next(handles)()
        except StopIteration:
            raise RuntimeError(
                f"{done.sublayer} saved more tensors when rebuilt than in its forward"
            ) from None
        if handle is not None:
            handle.value = tensor.detach()

    with saved_tensors_hooks(fill, _never):
        yield
    if next(handles, None) is not None:
        raise RuntimeError(f"{done.sublayer} saved fewer tensors when rebuilt than in its forward")


def _never(_: object) -> Tensor:
    raise AssertionError("the rebuilding graph is never differentiated")
