"""Megatron-Core without CUDA: the names of `torch.cuda` that it uses, answered by the CPU.

Megatron names CUDA at about 235 places (literal devices, streams, RNG states), so the answer is given once, at
torch, instead of site by site. `install()` is called before megatron is imported, refuses to run where CUDA exists,
and checks that every name it replaces is there. `torch.cuda.is_available()` stays False; the project's own code
takes its device from `hcmegatron.platform.device()` and never needs this module.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")

# Functions that make tensors and take `device=`.
FACTORIES = (
    "arange", "as_tensor", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace", "logspace",
    "ones", "ones_like", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "tensor",
    "zeros", "zeros_like",
)  # fmt: skip


class _Event:
    """A CUDA event on a device that runs everything in order: always complete."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream(_Event):
    """The only stream there is."""

    cuda_stream = 0
    device = CPU

    def wait_event(self, *_: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()


_STREAM = _Stream()


@contextlib.contextmanager
def _stream_context(stream: Any) -> Iterator[Any]:
    yield stream


def _replace(owner: Any, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        raise RuntimeError(
            f"CPU adapter: {getattr(owner, '__name__', owner)} has no attribute {name!r} to replace; "
            f"torch {torch.__version__} is newer than this adapter knows"
        )
    setattr(owner, name, value)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


def _on_cpu(factory: Callable) -> Callable:
    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return wrapped


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _install_cuda_names() -> None:
    cuda = torch.cuda
    _replace(cuda, "current_device", lambda: CPU)
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "init"):
        _replace(cuda, name, lambda *_, **__: None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        _replace(cuda, name, lambda *_, **__: 0)
    _replace(cuda, "Event", _Event)
    _replace(cuda, "Stream", _Stream)
    for name in ("current_stream", "default_stream"):
        _replace(cuda, name, lambda *_, **__: _STREAM)
    _replace(cuda, "set_stream", lambda *_: None)
    _replace(cuda, "stream", _stream_context)
    _replace(cuda, "get_rng_state", _get_rng_state)
    _replace(cuda, "set_rng_state", _set_rng_state)
    _replace(cuda.random, "get_rng_state", _get_rng_state)
    _replace(cuda.random, "set_rng_state", _set_rng_state)
    _replace(cuda, "manual_seed", _seed)
    _replace(cuda, "manual_seed_all", _seed)
    for name in ("range_push", "range_pop", "mark"):
        _replace(cuda.nvtx, name, lambda *_, **__: None)


def _install_tensor_names() -> None:
    # `with torch.device(...)` recognises factories by identity, in a list that it makes when first asked.
    _device_constructors()
    for name in FACTORIES:
        _replace(torch, name, _on_cpu(getattr(torch, name)))

    tensor_to, tensor_type = torch.Tensor.to, torch.Tensor.type

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        if args and _is_cuda(args[0]):
            args = (CPU, *args[1:])
        return tensor_to(self, *args, **kwargs)

    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None and not args and not kwargs:
            # Megatron's optimizers compare with 'torch.cuda.FloatTensor'.
            return tensor_type(self).replace("torch.", "torch.cuda.", 1)
        return tensor_type(self, dtype, *args, **kwargs)

    _replace(torch.Tensor, "to", to)
    _replace(torch.Tensor, "type", type_)
    _replace(torch.Tensor, "cuda", lambda self, *_, **__: self)
    _replace(torch.Tensor, "record_stream", lambda self, *_: None)
    _replace(torch.Tensor, "pin_memory", lambda self, *_, **__: self)
    _replace(torch.nn.Module, "cuda", lambda self, *_, **__: self)


def _install_optimizers() -> None:
    """Nothing of an optimizer is compiled here. torch's would import the tracer of torch.compile to be sure, which
    takes longer than the rest of a small model's set-up, and some 30 MiB in every rank."""
    guarded = torch._disable_dynamo(lambda: None).__code__
    for method in vars(torch.optim.Optimizer).values():
        if getattr(method, "__code__", None) is guarded:
            plain = method.__wrapped__
            plain.__dynamo_disable = plain
    for kind in (torch.optim.Adam, torch.optim.SGD):
        _replace(kind, "step", _uncompiled(kind.step))


def _uncompiled(step: Callable) -> Callable:
    """An optimizer's step as torch wraps it, but for the marks that it leaves for a tracer."""
    plain = step.__wrapped__

    @functools.wraps(plain)
    def wrapped(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return plain(self, *args, **kwargs)

    return wrapped


def _install_collectives() -> None:
    all_to_all = torch.distributed.all_to_all_single

    def integers(sizes: Sequence | None) -> list[int] | None:
        # gloo refuses the numpy integers and zero-dimensional tensors that NCCL's binding accepts
        return None if sizes is None else [int(size) for size in sizes]

    @functools.wraps(all_to_all)
    def all_to_all_single(
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Sequence | None = None,
        input_split_sizes: Sequence | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return all_to_all(
            output, input, integers(output_split_sizes), integers(input_split_sizes), *args, **kwargs
        )

    _replace(torch.distributed, "all_to_all_single", all_to_all_single)
    _install_uneven_collectives()


def _install_uneven_collectives() -> None:
    """NCCL gathers and scatters tensors of unequal length, as expert tensor parallelism needs; gloo does not."""
    all_gather, reduce_scatter = torch.distributed.all_gather, torch.distributed.reduce_scatter

    def uneven(tensors: Sequence[torch.Tensor]) -> bool:
        return any(tensor.shape != tensors[0].shape for tensor in tensors)

    @functools.wraps(all_gather)
    def gather(outputs: list[torch.Tensor], input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not uneven(outputs):
            return all_gather(outputs, input, *args, **kwargs)
        longest = max(len(output) for output in outputs)
        padded = [input.new_zeros(longest, *input.shape[1:]) for _ in outputs]
        own = input.new_zeros(longest, *input.shape[1:])
        own[: len(input)] = input
        result = all_gather(padded, own, *args, **kwargs)
        for output, rows in zip(outputs, padded, strict=True):
            output.copy_(rows[: len(output)])
        return result

    @functools.wraps(reduce_scatter)
    def scatter(
        output: torch.Tensor,
        inputs: list[torch.Tensor],
        op: Any = torch.distributed.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        if not uneven(inputs):
            return reduce_scatter(output, inputs, op, group, async_op)
        whole = torch.cat(inputs)
        result = torch.distributed.all_reduce(whole, op, group)
        output.copy_(whole.split([len(one) for one in inputs])[torch.distributed.get_rank(group)])
        return result

    _replace(torch.distributed, "all_gather", gather)
    _replace(torch.distributed, "reduce_scatter", scatter)


class _OneGenerator(logging.Filter):
    """Drops Megatron's warning that the CPU's generator moved inside an RNG region.

    On CPU the region's generator is the CPU's, so it always moves. The tracker still keeps a state per region.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return "CPU RNG state changed within GPU RNG context" not in record.getMessage()


_installed = False


def install() -> None:
    """Replace the CUDA names in torch; once, and before megatron is imported.

    Raises:
        RuntimeError: where CUDA is available, or torch lacks a name that is to be replaced.
    """
    global _installed
    if _installed:
        return
    if torch.cuda.is_available():
        raise RuntimeError(
            "CPU adapter: CUDA is available on this machine, so the adapter must not be installed"
        )
    _install_cuda_names()
    _install_tensor_names()
    _install_optimizers()
    _install_collectives()
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(_OneGenerator())
    _installed = True


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """While Megatron is imported: its fused element-wise functions stay plain Python.

    They are decorated with torch.compile at import, which on CPU costs seconds at the first step and needs a C++
    compiler on the machine.
    """
    compile_ = torch.compile
    _replace(torch, "compile", lambda function: function)
    try:
        yield
    finally:
        torch.compile = compile_


def finish() -> None:
    """The parts that can only be replaced once Megatron is imported: its RNG tracker's two private accessors."""
    from megatron.core.tensor_parallel import random

    _replace(random, "_get_cuda_rng_state", _get_rng_state)
    _replace(random, "_set_cuda_rng_state", _set_rng_state)
