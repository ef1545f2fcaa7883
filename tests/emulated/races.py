"""Whether everything that is read was written before, on emulated streams, and whether memory outlives its use.

Order: every operation has a time on its stream. What it reads must have been written, and what it writes must have been
written and read, at times that its stream has waited for. Lifetime, by the caching allocator's rule: memory that the
host gives back goes to the stream that it was allocated on, which may use it again at once, however far other streams
are with it, unless they were recorded (record_stream). Import it in ranks only.

Autograd's rule for a GPU, that a node's backward runs on the stream of its forward, is not acted out: a backward runs
on the current stream, which the lanes make the same.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.emulated.streams import DEVICE, Clock, Item, Stream

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ("hcmegatron", "schedules")  # whose lines a finding names
_ALLOCATE = ("aten.empty", "aten.new_empty")
_NOT_ON_THE_DEVICE = ("prim.", "aten.is_", "aten.detach", "aten.lift")
_DRIVER = Path("tests/races/worker.py")  # the outermost line, where it uses a tensor itself
_ADAPTER = Path("hcmegatron/platform/cpu.py")  # comes between a call and torch
_TO_THE_HOST = "aten._local_scalar_dense"  # item() and tolist()
_OVERWRITES = ("copy_.default", "zero_.default", "fill_.Scalar")
_PLACES = 3  # of an access, from the innermost outwards

Line = tuple[CodeType, int]


class Use(NamedTuple):
    """An access by an operation, at a time of a stream, and from where in the program it came.

    place: lines of the project, innermost first, each with the innermost line of another's code that it called.
    """

    operation: str
    stream: str
    time: int
    place: tuple[tuple[Line, Line | None], ...]

    def before(self, clock: Clock) -> bool:
        return clock.get(self.stream, 0) >= self.time

    def __str__(self) -> str:
        lines = [
            _words(own) + (f" (in {_words(others)})" if others else "") for own, others in self.place
        ] or ["no line of the project"]
        return f"{self.operation} on {self.stream} at {' < '.join(lines)}"


Span = tuple[int, int]  # bytes of a storage, from and to


class _Block:
    """Memory of one storage, of which parts may be used independently, such as the gradients in a buffer."""

    def __init__(self, home: Stream) -> None:
        self.home = home
        self.death: weakref.ref | None = None
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
        self._blocks: dict[int, _Block] = {}  # by storage
        self._on_host: dict[int, weakref.ref] = {}
        self._freed: dict[str, list[_Block]] = {}  # by home, and not handed out again yet

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        about = _about(func)
        if not about.on_device:
            return result
        reads, writes = about.accesses(args, kwargs)
        if about.to_host:
            if all(tensor.untyped_storage()._cdata in self._on_host for tensor in reads):
                return result
            self.access(about.name, reads, [])
            # The host waits, which may hang; streams get no order from it, for on a GPU some of these are on the host.
            DEVICE.log.append(Item("host", number=DEVICE.current[-1].record_event().number))
            return result
        known = {tensor.untyped_storage()._cdata for tensor in reads + writes}
        fresh = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in known]
        for tensor in fresh:
            self._allocated(tensor)
        if (writes or fresh) and not about.allocates:  # else a view
            self.access(about.name, reads if about.overwrites else reads + writes, writes + fresh)
        return result

    def message(self, kind: str, tensors: Sequence[Tensor], stream: Stream) -> None:
        """A send reads, a receive writes. The memory is not recorded: recent torch holds the tensors until the
        message is waited for instead, which is for the groups to act out."""
        both = list(tensors), []
        self.access(f"nccl {kind}", *(both if kind == "send" else reversed(both)), stream=stream)

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy that is the host's, by the current stream, and is nobody's here from then on."""
        self.access("copy to the host", [tensor], [])
        with _disable_current_modes():
            copy = tensor.detach().clone()
        storage = copy.untyped_storage()
        key = storage._cdata
        self._on_host[key] = weakref.ref(storage, lambda _: self._on_host.pop(key, None))
        return copy

    def record(self, tensor: Tensor, stream: Stream) -> None:
        """As Tensor.record_stream."""
        self._block(tensor).recorded.add(stream.name)

    def access(
        self, name: str, reads: Sequence[Tensor], writes: Sequence[Tensor], stream: Stream | None = None
    ) -> None:
        """An operation on a stream, the current one if none is given."""
        stream = stream or DEVICE.current[-1]
        if node := torch._C._current_autograd_node():
            name = f"{name} of {node.name()}"
        use = Use(name, stream.name, stream.tick(), _place())
        self.operations[stream.name] += 1
        clock = stream.clock
        for tensor in reads:
            if not tensor.numel() or tensor.untyped_storage()._cdata in self._on_host:
                continue
            block, span = self._block(tensor), _span(tensor)
            for written in _overlapping(block.written, span):
                if not block.written[written].before(clock):
                    words = f"read before it is written: [{use}] reads what [{block.written[written]}] writes"
                    self.findings[words] += 1
            block.reads.setdefault(span, {})[stream.name] = block.uses[stream.name] = use
        for tensor in writes:
            if not tensor.numel():
                continue
            block, span = self._block(tensor), _span(tensor)
            written, read = _overlapping(block.written, span), _overlapping(block.reads, span)
            earlier = [block.written[other] for other in written]
            for other in read:
                earlier += block.reads[other].values()
            for other in earlier:
                if not other.before(clock):
                    self.findings[f"written before it is free: [{use}] over [{other}]"] += 1
            for spans, over in ((block.written, written), (block.reads, read)):
                for other in over:
                    if span[0] <= other[0] and other[1] <= span[1]:
                        del spans[other]
            block.written[span] = block.uses[stream.name] = use

    def _block(self, tensor: Tensor) -> _Block:
        storage = tensor.untyped_storage()
        block = self._blocks.get(storage._cdata)
        if block is None:  # from before, when nobody looked: what lasts was made by computation
            block = self._follow(storage, DEVICE.compute)
        return block

    def _allocated(self, tensor: Tensor) -> None:
        """On the current stream, to which any memory that the host has given back to it may go."""
        home = DEVICE.current[-1]
        for block in self._freed.pop(home.name, ()):
            for use in block.uses.values():
                if use.stream not in (home.name, *block.recorded) and not use.before(home.clock):
                    last = next(reversed(block.written.values()), None)
                    by = f"[{Use('the next allocation', home.name, 0, _place())}]"
                    self.findings[
                        f"given away while in use by [{use}]: memory of {home.name}, written by [{last}], to {by}"
                    ] += 1
        self._follow(tensor.untyped_storage(), home)

    def _follow(self, storage: torch.UntypedStorage, home: Stream) -> _Block:
        """Until the host lets go of it. A storage's Python object lives as long as the storage."""
        key, block = storage._cdata, _Block(home)
        self._blocks[key] = block

        def died(_: Any) -> None:
            if self._blocks.get(key) is block:
                del self._blocks[key]
            self._freed.setdefault(home.name, []).append(block)

        block.death = weakref.ref(storage, died)
        return block


class OnDevice(Tensor):
    """Which says that it is a GPU's."""

    is_cuda = property(lambda _: True)


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


class _Operation(NamedTuple):
    """What is known of one of torch's operations. arguments: position, name and whether it is written, of those that
    are tensors."""

    name: str
    on_device: bool
    to_host: bool
    allocates: bool
    overwrites: bool
    arguments: tuple[tuple[int, str, bool], ...]

    def accesses(self, args: tuple, kwargs: dict) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors that are read, and those that are written."""
        found: tuple[list[Tensor], list[Tensor]] = [], []
        for index, name, written in self.arguments:
            value = args[index] if index < len(args) else kwargs.get(name)
            if value is not None:
                found[written].extend(_tensors(value))
        return found


@cache
def _about(func: Any) -> _Operation:
    name = str(func)
    assert not name.startswith("c10d.") or "barrier" in name, f"{name} is on no stream"
    return _Operation(
        name,
        on_device=not name.startswith(_NOT_ON_THE_DEVICE),
        to_host=name.startswith(_TO_THE_HOST),
        allocates=name.startswith(_ALLOCATE),
        overwrites=name.endswith(_OVERWRITES),
        arguments=tuple(
            (index, argument.name, argument.alias_info is not None and argument.alias_info.is_write)
            for index, argument in enumerate(func._schema.arguments)
            if "Tensor" in str(argument.type)
        ),
    )


_OWN, _OTHERS, _PASSED_OVER = "own", "others", "passed over"
_whose: dict[CodeType, str] = {}


def _place() -> tuple[tuple[Line, Line | None], ...]:
    """The innermost lines of the project; torch's and the emulation's own are passed over."""
    found: list[tuple[Line, Line | None]] = []
    frame, called = sys._getframe(2), None
    while frame is not None and len(found) < _PLACES:
        code = frame.f_code
        whose = _whose.get(code) or _whose.setdefault(code, _owner(code.co_filename))
        if whose is _OWN:
            found.append(((code, frame.f_lineno), called))
            called = None
        elif whose is _OTHERS and called is None:
            called = code, frame.f_lineno
        frame = frame.f_back
    return tuple(found)


def innermost() -> FrameType | None:
    """The innermost frame of the project."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if (_whose.get(code) or _whose.setdefault(code, _owner(code.co_filename))) is _OWN:
            return frame
        frame = frame.f_back
    return None


def _owner(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(ROOT):
        own = path.relative_to(ROOT)
        if own != _ADAPTER and (own.parts[0] in PROJECT or own == _DRIVER):
            return _OWN
    return _OTHERS if "/megatron/" in file else _PASSED_OVER


def _words(line: Line) -> str:
    code, number = line
    file = code.co_filename.split("site-packages/")[-1].removeprefix(f"{ROOT}/")
    return f"{file}:{number}"


@contextmanager
def checking() -> Iterator[Checker]:
    """Inside, every operation is looked at; streams.install() comes first."""
    from hcmegatron.recompute import block_checkpoint

    checker = Checker()

    usual = block_checkpoint._used_here

    def used_here(tensor: Tensor | None) -> None:
        usual(None if tensor is None else tensor.detach().as_subclass(OnDevice))

    DEVICE.watchers.append(checker)
    with (
        mock.patch.object(
            torch.Tensor, "record_stream", lambda tensor, stream: checker.record(tensor, stream)
        ),
        mock.patch.object(block_checkpoint, "_used_here", used_here),
        checker,
    ):
        yield checker
    DEVICE.watchers.remove(checker)
