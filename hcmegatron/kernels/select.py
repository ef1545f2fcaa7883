"""Which kernels run, and why: the one place that decides."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hcmegatron.kernels import torch_gated, torch_hyper, torch_path
from hcmegatron.kernels.native import gated as native_gated
from hcmegatron.kernels.native import hyper as native_hyper
from hcmegatron.kernels.native import hyper_write as native_write
from hcmegatron.kernels.native import library
from hcmegatron.kernels.native import sinkhorn as native_sinkhorn
from hcmegatron.kernels.native import static as native_static
from hcmegatron.kernels.native.primitives import FILES, NativePrimitives, SinkhornCompiled
from hcmegatron.kernels.torch_primitives import Primitives

NAMES = ("auto", "torch", "triton", "native")
MAX_STREAMS = 8  # of the Triton kernels, which hold all streams of a token in registers
NATIVE_FILES = (*FILES, "gated", "hyper", "static")  # all C that `native` runs
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Kernels:
    """The chosen operations, with the signatures of torch_path, torch_gated and, of HC and FC, torch_hyper; `reason`
    says in words why these.

    write_and_project, where there is one, also computes the next read's projection (triton_path).
    """

    name: str
    reason: str
    read: Callable[..., Any]
    write: Callable[..., Any]
    gated_read: Callable[..., Any]
    hyper_read: Callable[..., Any] = torch_hyper.read
    static_read: Callable[..., Any] = torch_hyper.static_read
    hyper_write: Callable[..., Any] = torch_hyper.write
    write_and_project: Callable[..., Any] | None = None


def select_kernels(
    name: str,
    *,
    n: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    sinkhorn: bool = False,
) -> Kernels:
    """Kernels for connections of n streams or fractions.

    name: `torch`, `triton`, `native` (a CPU's, in C), or `auto`: Triton wherever it can run on a GPU, or else torch.
    device: where the model lives, None for the GPU if there is one. dtype: of the streams; fp64 needs torch.
    sinkhorn: whether they are for a kind that normalises by Sinkhorn, whose iterations `auto` runs compiled on a CPU
    where they have torch's bits. Triton's interpreter (TRITON_INTERPRET=1) counts as able to run, for tests, but is
    never chosen by `auto`. Raises ValueError where an explicit `triton` or `native` cannot run, with the reason.
    """
    if name not in NAMES:
        raise ValueError(f"kernels={name!r}: choose one of {', '.join(NAMES)}")
    if name == "torch":
        return _torch("asked for")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name == "native":
        return _native(n, device, dtype)
    obstacle = _obstacle(n, device, dtype)
    if obstacle is None and name == "auto" and device.type != "cuda":
        obstacle = "the interpreter is for tests"
    if obstacle is None:
        return _triton(n, device, dtype)
    if name == "triton":
        raise ValueError(f"kernels=triton cannot run: {obstacle}; use kernels=auto or torch")
    return _with_sinkhorn(obstacle, n, dtype) if sinkhorn and device.type == "cpu" else _torch(obstacle)


def torch_kernels(reason: str) -> Kernels:
    """Those of torch."""
    return Kernels("torch", reason, torch_path.read, torch_path.write, torch_gated.read)


def triton_kernels(reason: str) -> Kernels:
    """Those of Triton."""
    from hcmegatron.kernels import gated_function, triton_path  # they import it, which a CPU machine may lack

    return Kernels(
        "triton",
        reason,
        triton_path.read,
        triton_path.write,
        gated_function.read,
        hyper_write=functools.partial(torch_hyper.write, by=triton_path.write),
        write_and_project=triton_path.write_and_project,
    )


def _torch(why: str) -> Kernels:
    return torch_kernels(f"torch: {why}")


def _with_sinkhorn(why: str, n: int, dtype: torch.dtype) -> Kernels:
    """torch's, with Sinkhorn compiled where that can be and changes no bit."""
    obstacle = "fp64" if dtype == torch.float64 else native_sinkhorn.differs(n)
    if obstacle is not None:
        return _torch(why if obstacle == why else f"{why}; Sinkhorn by torch: {obstacle}")
    words = f"torch: {why}; Sinkhorn compiled by {library.compiled_by(n, 'sinkhorn')}"
    read, write = _by(SinkhornCompiled())
    return Kernels("torch", words, read, write, torch_gated.read)


def _native(n: int, device: torch.device, dtype: torch.dtype) -> Kernels:
    if device.type != "cpu":
        obstacle: str | None = f"streams on {device}, and it is for CPUs"
    elif dtype not in (torch.float32, torch.bfloat16):
        obstacle = _NAMES.get(dtype, "fp64")
    elif n > library.MAX_STREAMS:
        obstacle = f"n={n}, its kernels hold up to {library.MAX_STREAMS}"
    else:
        obstacle = library.obstacle(n, *NATIVE_FILES)
        if obstacle and "compiler" in obstacle:
            obstacle += "; install gcc or clang, or pip install 'hcmegatron[native]'"
    if obstacle:
        raise ValueError(f"kernels=native cannot run: {obstacle}; use kernels=auto or torch")
    words = f"native: n={n}, {_NAMES[dtype]}, compiled by {library.compiled_by(n, 'write')}"
    read, write = _by(NativePrimitives())
    return Kernels(
        "native",
        words,
        read,
        write,
        native_gated.read,
        native_hyper.read,
        native_static.read,
        native_write.write,
    )


def _by(primitives: Primitives) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """torch_path's read and write, by these."""
    return functools.partial(torch_path.read, primitives=primitives), functools.partial(
        torch_path.write, primitives=primitives
    )


def _triton(n: int, device: torch.device, dtype: torch.dtype) -> Kernels:
    where = "interpreter"
    if device.type == "cuda":
        from hcmegatron.kernels import tuning

        tuning.restore(str(device))
        where = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return triton_kernels(f"triton: n={n}, {_NAMES[dtype]}, {where}")


def _obstacle(n: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run, in words; None where they can."""
    if n > MAX_STREAMS:
        return f"n={n}, the Triton kernels hold up to {MAX_STREAMS}"
    if dtype == torch.float64:
        return "fp64"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"sm_{major}{minor}, the Triton kernels need sm_80 or later"
    import triton

    if triton.knobs.runtime.interpret:
        return None
    return "no CUDA device" if not torch.cuda.is_available() else f"streams on {device}"
