"""What the host launches on the device and where it waits for it, with all memory on the CPU; import it in ranks only.

A tensor is in the device's memory unless it comes from the host: made without a device, copied there, or computed from
such tensors alone. Waiting is what CUDA waits for: the value of a tensor (item, tolist, a comparison, a size that
depends on data), copies that are not asked to be asynchronous or whose host memory is not pinned, events, streams and
communicators. torch's set_sync_debug_mode says the same of a real device, by fewer names.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hcmegatron.platform.cpu import FACTORIES
from tests.emulated.streams import DEVICE, Event

# Of the device's tensors: the host has to know a value, or how large the result is.
WAIT = {
    "aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.masked_select", "aten.unique_consecutive",
    "aten._unique2", "aten.unique_dim", "aten.is_nonzero", "aten.bincount", "aten.repeat_interleave",
}  # fmt: skip
# Ways that are taken where `device.type` is "cpu", as it is here, and not on a GPU.
CPU_ONLY = ("torch_sinkhorn.py:linear_suffices", "torch_rms.py:_all_ordinary")
NOT_LAUNCHED = ("prim.", "aten.detach", "aten.alias", "aten.lift", "aten.empty", "aten.new_empty", "aten.is_")


class Place(NamedTuple):
    """Where the host waits: of a step's phase, for what, and the program's innermost function."""

    phase: str
    what: str
    where: str


class HostMemory:
    """Which tensors are the host's, and which of those are pinned."""

    def __init__(self) -> None:
        self._own: dict[int, tuple[StorageWeakRef, bool]] = {}

    def add(self, tensor: Tensor, pinned: bool = False) -> Tensor:
        storage = tensor.untyped_storage()
        self._own[storage._cdata] = StorageWeakRef(storage), pinned
        return tensor

    def has(self, tensor: Tensor) -> bool:
        found = self._own.get(tensor.untyped_storage()._cdata)
        return found is not None and not found[0].expired()

    def pinned(self, tensor: Tensor) -> bool:
        return self.has(tensor) and self._own[tensor.untyped_storage()._cdata][1]


HOST = HostMemory()


class PinnedMemory:
    """torch's allocator of pinned memory, which keeps what it has once allocated: blocks of powers of two, each free
    again when nobody holds it and the copy out of it is over. A new one may wait for the device."""

    def __init__(self) -> None:
        self._free: Counter[int] = Counter()
        self._taken: list[tuple[int, StorageWeakRef, Event | None]] = []

    def take(self, tensor: Tensor) -> Tensor:
        size = 1 << max(tensor.nbytes - 1, 0).bit_length()
        for block in [block for block in self._taken if block[1].expired()]:
            if block[2] is None or block[2].over():
                self._taken.remove(block)
                self._free[block[0]] += 1
        if self._free[size]:
            self._free[size] -= 1
        else:
            DEVICE.waits("a pinned allocation")
        self._taken.append((size, StorageWeakRef(tensor.untyped_storage()), None))
        return tensor

    def copied(self, tensor: Tensor) -> None:
        """Out of it, by the current stream."""
        own = tensor.untyped_storage()._cdata
        event = DEVICE.current[-1].record_event()
        self._taken = [
            (size, kept, event if kept.cdata == own else earlier) for size, kept, earlier in self._taken
        ]


PINNED = PinnedMemory()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Of an operation's arguments or results, which nest in lists only: tree_leaves takes as long as the operation."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class Watching(TorchDispatchMode):
    """Follows every operation inside.

    Attributes:
        waits: how often the host waits, by place.
        mixed: operations on tensors of both memories, which CUDA refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[Place] = Counter()
        self.mixed: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        read = list(_tensors((*args, *kwargs.values())))
        ours = [HOST.has(tensor) for tensor in read]  # before: what it overwrites may be what it makes
        result = func(*args, **kwargs)
        overload = name.rpartition(".")[0] if name.count(".") > 1 else name
        if overload == "aten.copy_":
            self._copied(
                *args[:2], non_blocking=bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            )
        elif read and not all(ours):
            sized = overload == "aten.index" or (overload == "aten.index_put_" and read[-1].numel() > 1)
            if overload in WAIT or (sized and any(index.dtype is torch.bool for index in read[1:])):
                self.wait(overload)
            if any(own and tensor.dim() for own, tensor in zip(ours, read, strict=True)):
                self.mixed[f"{name} at {_where()}"] += 1
        elif overload not in WAIT and (read or (_FACTORIES and _FACTORIES[-1])):
            for made in _tensors((result,)):
                HOST.add(made)
        if not (func.is_view or name.startswith(NOT_LAUNCHED) or (all(ours) and read)):
            launched()
        return result

    def wait(self, what: str) -> None:
        place = Place(phase(), what, _where())
        if place.where in CPU_ONLY:
            return
        self.waits[place] += 1
        if not what.startswith(("a ", "an ", "the ")):  # else the emulated device has written it down
            DEVICE.current[-1].record_event().host_waits()

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool) -> None:
        if HOST.has(target) != HOST.has(source):
            own = target if HOST.has(target) else source
            if not (non_blocking and HOST.pinned(own)):
                self.wait("a copy" if HOST.has(target) else "a copy to the device")
                DEVICE.current[-1].record_event().host_waits()


_FACTORIES: list[bool] = []  # that are being called by name: whether what they make is the host's


def launched() -> None:
    """A kernel on the current stream; those that follow each other there are one item."""
    stream, log = DEVICE.current[-1], DEVICE.log
    if not (log and log[-1].kind == "kernel" and log[-1].stream == stream.name):
        stream.tick()


@contextmanager
def watching() -> Iterator[Watching]:
    """Inside, the host is watched; `install` comes first."""
    mode = Watching()
    DEVICE.on_wait.append(mode.wait)
    _WATCHING.append(mode)
    with mode:
        yield mode
    _WATCHING.pop()
    DEVICE.on_wait.remove(mode.wait)


_WATCHING: list[Watching] = []


def _told(what: str) -> None:
    DEVICE.waits(what)
    DEVICE.current[-1].record_event().host_waits()


def install() -> None:
    """After the CPU adapter's: copies between the memories are copies, and factories are told apart by their device."""
    to = Tensor.to

    def cuda(device: Any) -> bool:
        return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"

    def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = kwargs.get("device", args[0] if args else None)
        result = to(tensor, *args, **kwargs)
        if not _WATCHING or not isinstance(target, str | torch.device):
            return result
        waits = not kwargs.get("non_blocking", False)
        if cuda(target) and HOST.has(tensor):
            if waits or not HOST.pinned(tensor):
                _told("a copy to the device")
            elif HOST.pinned(tensor):
                PINNED.copied(tensor)
            return _fresh(result)
        if not cuda(target) and not HOST.has(tensor):
            if waits:
                _told("a copy from the device")
            return HOST.add(_fresh(result), pinned=True)
        return result

    def listed(usual: Callable) -> Callable:
        def asked(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if _WATCHING and not HOST.has(tensor):
                _told(f"a tensor's {usual.__name__}")
            return usual(tensor, *args, **kwargs)

        return asked

    Tensor.to = moved
    Tensor.cuda = lambda tensor, *_, **kwargs: moved(tensor, torch.device("cuda"), **kwargs)
    Tensor.cpu = lambda tensor, *_: moved(tensor, torch.device("cpu"))
    Tensor.pin_memory = lambda tensor, *_: (
        PINNED.take(HOST.add(_fresh(tensor), pinned=True)) if _WATCHING else tensor
    )
    Tensor.tolist, Tensor.numpy = listed(Tensor.tolist), listed(Tensor.numpy)
    state = torch.get_rng_state
    torch.get_rng_state = lambda: HOST.add(state()) if _WATCHING else state()
    for name in FACTORIES:
        setattr(torch, name, _telling(getattr(torch, name)))


def _fresh(tensor: Tensor) -> Tensor:
    """A copy that no mode sees."""
    with torch.utils._python_dispatch._disable_current_modes():
        return tensor.detach().clone()


def _telling(factory: Callable) -> Callable:
    """A factory that was given a device makes a tensor there: CUDA's, or that of another tensor, whose memory is told
    apart here only."""
    copies = factory.__name__ in ("tensor", "as_tensor")

    @wraps(factory)
    def made(*args: Any, **kwargs: Any) -> Tensor:
        if kwargs.pop("pin_memory", False):
            return PINNED.take(HOST.add(factory(*args, **kwargs), pinned=True))
        if not _WATCHING:
            return factory(*args, **kwargs)
        _FACTORIES.append(kwargs.get("device") in (None, "cpu"))
        try:
            result = factory(*args, **kwargs)
        finally:
            own = _FACTORIES.pop()
        if copies and not isinstance(args[0], Tensor):
            if own:
                HOST.add(result)
            else:
                _told("a copy to the device")
        return result

    return made


PHASES = {
    ("schedules/runtime/p2p.py", ""): "messages",
    ("pipeline/warm_start.py", ""): "warm start",
    ("pipeline/chunk_stage.py", "forward"): "F",
    ("pipeline/overlap.py", "forward"): "F",
    ("pipeline/chunk_stage.py", "backward"): "B",
    ("pipeline/overlap.py", "backward"): "B",
    ("pipeline/chunk_stage.py", "backward_input"): "I",
    ("pipeline/overlap.py", "backward_input"): "I",
    ("pipeline/chunk_stage.py", "backward_weight"): "W",
    ("pipeline/overlap.py", "forward_backward"): "FB",
    ("pipeline/runner.py", "_finalise"): "finalising",
    ("training/step.py", "_router_biases"): "biases",
    ("training/step.py", "step"): "update",
}


def phase() -> str:
    """Of a step, by the innermost function that says it."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        for (file, function), name in PHASES.items():
            if code.co_filename.endswith(file) and function in ("", code.co_name):
                return name
        frame = frame.f_back
    return "elsewhere"


def _where() -> str:
    """The innermost function of the program that is neither torch's nor an emulation's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not any(
            part in name for part in ("/torch/", "/emulated/", "/contextlib", "schedules/runtime/gpu.py")
        ):
            return f"{name.split('site-packages/')[-1].split('/')[-1]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
