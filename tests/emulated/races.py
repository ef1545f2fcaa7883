"""Whether everything that is read was written before, on emulated streams, and whether memory outlives its use.

Order: every operation has a time on its stream. What it reads must have been written, and what it writes must have been
written and read, at times that its stream has waited for. Lifetime, by the caching allocator's rule: memory that the
host gives back goes to the stream that it was allocated on, which may use it again at once, however far other streams
are with it, unless they were recorded (record_stream). Import it in ranks only.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.emulated.streams import DEVICE, Clock, Stream

_NOT_ON_THE_DEVICE = (
    "prim.",
    "aten._local_scalar_dense",
    "aten.is_",
    "aten.detach",
    "aten.lift",
)
_OVERWRITES = ("copy_.default", "zero_.default", "fill_.Scalar")
_FRAMES = 4
_SWEEP = 8  # operations between two looks at what is still there, which are slow


class Use(NamedTuple):
    """An access by an operation, at a time of a stream, and from where in the program it came."""

    operation: str
    stream: str
    time: int
    place: str

    def before(self, clock: Clock) -> bool:
        return clock.get(self.stream, 0) >= self.time

    def __str__(self) -> str:
        return f"{self.operation} on {self.stream} at {self.place}"


Span = tuple[int, int]  # bytes of a storage, from and to


class _Block:
    """Memory of one storage, of which parts may be used independently, such as the gradients in a buffer."""

    def __init__(self, storage: torch.UntypedStorage, home: Stream) -> None:
        self.storage, self.home = StorageWeakRef(storage), home
        self.written: dict[Span, Use] = {}
        self.reads: dict[Span, dict[str, Use]] = {}  # since then, the last of each stream
        self.uses: dict[str, Use] = {}  # of any part, the last of each stream
        self.recorded: set[str] = set()


def _span(tensor: Tensor) -> Span:
    """From the first element to the last, whatever lies between."""
    start = tensor.storage_offset() * tensor.element_size()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _overlapping(spans: Iterable[Span], span: Span) -> list[Span]:
    return [other for other in spans if other[0] < span[1] and span[0] < other[1]]


class Checker(TorchDispatchMode):
    """Looks at every operation inside.

    Attributes:
        findings: what is wrong, in words that name both accesses, and how often.
        operations: by stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.findings: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self._blocks: dict[int, _Block] = {}
        self._freed: list[_Block] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func)
        if name.startswith(_NOT_ON_THE_DEVICE):
            return result
        reads, writes = _accesses(func, args, kwargs)
        if name.startswith("c10d."):
            # outputs come before inputs, however the schema calls them
            tensors = reads + writes
            outputs = len(tensors) // 2 if "alltoall" in name or "allgather" in name else len(tensors)
            if tensors:
                self.access(name, tensors[outputs:] or tensors, tensors[:outputs])
            return result
        known = {tensor.untyped_storage()._cdata for tensor in reads + writes}
        fresh = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in known]
        if name.startswith(("aten.empty", "aten.new_empty")):
            for tensor in fresh:
                self._block(tensor)
        elif writes or fresh:  # else a view
            kept = [] if name.endswith(_OVERWRITES) else writes
            self.access(name, reads + kept, writes + fresh)
        return result

    def message(self, kind: str, tensors: Sequence[Tensor], stream: Stream) -> None:
        """A send reads, a receive writes; NCCL keeps the memory until it is done."""
        both = list(tensors), []
        self.access(f"nccl {kind}", *(both if kind == "send" else reversed(both)), stream=stream)
        for tensor in tensors:
            self.record(tensor, stream)

    def record(self, tensor: Tensor, stream: Stream) -> None:
        """As Tensor.record_stream."""
        self._block(tensor).recorded.add(stream.name)

    def access(
        self, name: str, reads: Sequence[Tensor], writes: Sequence[Tensor], stream: Stream | None = None
    ) -> None:
        """An operation on a stream, the current one if none is given."""
        stream = stream or DEVICE.current[-1]
        if self.operations.total() % _SWEEP == 0:
            self._sweep()
        use = Use(name, stream.name, stream.tick(), _place())
        self.operations[stream.name] += 1
        for tensor in reads:
            block, span = self._block(tensor), _span(tensor)
            for written in _overlapping(block.written, span):
                if not block.written[written].before(stream.clock):
                    words = f"read before it is written: [{use}] reads what [{block.written[written]}] writes"
                    self.findings[words] += 1
            block.reads.setdefault(span, {})[stream.name] = block.uses[stream.name] = use
        for tensor in writes:
            block, span = self._block(tensor), _span(tensor)
            written, read = _overlapping(block.written, span), _overlapping(block.reads, span)
            earlier = [block.written[other] for other in written]
            for other in read:
                earlier += block.reads[other].values()
            for other in earlier:
                if not other.before(stream.clock):
                    self.findings[f"written before it is free: [{use}] over [{other}]"] += 1
            for spans, over in ((block.written, written), (block.reads, read)):
                for other in over:
                    if span[0] <= other[0] and other[1] <= span[1]:
                        del spans[other]
            block.written[span] = block.uses[stream.name] = use

    def _block(self, tensor: Tensor) -> _Block:
        storage = tensor.untyped_storage()
        block = self._blocks.get(storage._cdata)
        if block is None or block.storage.expired():
            if block is not None:
                self._freed.append(block)
            block = self._blocks[storage._cdata] = _Block(storage, DEVICE.current[-1])
            self._allocate(block.home)
        return block

    def _sweep(self) -> None:
        """Notice what the host has given back."""
        for key in [key for key, block in self._blocks.items() if block.storage.expired()]:
            self._freed.append(self._blocks.pop(key))

    def _allocate(self, home: Stream) -> None:
        """A new block on a stream: any that the host has given back to it may be it."""
        others = []
        for block in self._freed:
            if block.home is not home:
                others.append(block)
                continue
            for use in block.uses.values():
                if use.stream not in (home.name, *block.recorded) and not use.before(home.clock):
                    last = next(reversed(block.written.values()), None)
                    words = f"given away while in use by [{use}]: memory of {home.name}, written by [{last}]"
                    self.findings[words] += 1
        self._freed = others


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _accesses(func: Any, args: tuple, kwargs: dict) -> tuple[list[Tensor], list[Tensor]]:
    reads: list[Tensor] = []
    writes: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        (writes if written else reads).extend(_tensors(value))
    return reads, writes


def _place() -> str:
    """The innermost lines of the program, without torch's and this package's."""
    found: list[str] = []
    frame = sys._getframe(2)
    while frame is not None and len(found) < _FRAMES:
        name = frame.f_code.co_filename
        if "/torch/" not in name and "/emulated/" not in name and "/contextlib" not in name:
            found.append(f"{name.split('site-packages/')[-1]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)


@contextmanager
def checking() -> Iterator[Checker]:
    """Inside, every operation is looked at; streams.install() comes first."""
    from hcmegatron.recompute import tape

    checker = Checker()

    def used_here(tensor: Tensor | None) -> None:  # what tape does with a tensor of CUDA's
        if tensor is not None:
            tensor.record_stream(DEVICE.current[-1])

    DEVICE.watchers.append(checker)
    with (
        mock.patch.object(
            torch.Tensor, "record_stream", lambda tensor, stream: checker.record(tensor, stream)
        ),
        mock.patch.object(tape, "_used_here", used_here),
        checker,
    ):
        yield checker
    DEVICE.watchers.remove(checker)
