"""Compile the Triton kernels without a GPU and look at what came out: registers, stack, loads, tensor cores.

`record` catches the launches of a piece of code instead of running them, so that what is compiled is what is
launched. Not available where TRITON_INTERPRET is set, because the kernels are then no compilable functions.
"""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64"}
_LAUNCH_OPTIONS = ("num_warps", "num_stages", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """One kernel as it would have been launched."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self.kernel.fn.__name__

    @property
    def programs(self) -> int:
        """In the grid."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class KernelReport:
    """What a compiled kernel needs and does, from its cubin."""

    name: str
    registers: int  # a thread
    stack: int  # bytes a thread in local memory: spills and arrays
    shared: int  # bytes a program
    wide_loads: int  # 16-byte loads from device memory in the machine code
    loads: int  # all loads from device memory
    tensor_core: int  # matrix instructions in the machine code


REGISTERS, WARPS, PROGRAMS = 65536, 64, 32  # of a multiprocessor, the same for sm_80, sm_90 and sm_100
SHARED = {
    80: 164 * 1024,
    90: 228 * 1024,
    100: 228 * 1024,
}  # bytes of a multiprocessor, 1024 a program not its own


def programs_per_sm(report: KernelReport, warps: int, capability: int) -> int:
    """How many programs a multiprocessor holds at a time: CUDA's occupancy, from what one needs.

    Registers are given out to warps, from a quarter of the file each, in units of 8 a thread.
    """
    by_registers = REGISTERS // 4 // (-(-report.registers // 8) * 8 * 32) * 4 // warps
    by_shared = SHARED[capability] // (report.shared + 1024)
    return min(by_registers, by_shared, WARPS // warps, PROGRAMS)


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Within it, launches are appended to the list and nothing runs."""
    launches: list[Launch] = []

    def catch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in _LAUNCH_OPTIONS if k in kwargs}
        bound = inspect.signature(self.fn).bind(*args, **kwargs)
        launches.append(Launch(self, dict(bound.arguments), options, tuple(grid)))

    run, JITFunction.run = JITFunction.run, catch
    try:
        yield launches
    finally:
        JITFunction.run = run


def compile_for(launch: Launch, capability: int, coefficients_aligned: bool = True) -> CompiledKernel:
    """Compile for sm_`capability` (80, 90, 100), with pointers aligned to 16 bytes as torch's are.

    coefficients_aligned: whether pointers to fp32 are too; without, only 16-bit streams can be read 16 bytes at
    a time.
    """
    signature, constants, attributes = {}, {}, {}
    for at, (p, value) in enumerate(
        (p, launch.arguments[p.name]) for p in launch.kernel.params if p.name in launch.arguments
    ):
        if p.is_constexpr:
            signature[p.name], constants[p.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[p.name] = _TYPES[value.dtype]
            if coefficients_aligned or value.dtype != torch.float32:
                attributes[(at,)] = [["tt.divisibility", 16]]
        else:
            signature[p.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)


def inspect_kernel(launch: Launch, capability: int) -> KernelReport:
    """Compile and read the cubin with the cuobjdump that Triton carries."""
    compiled = compile_for(launch, capability)
    usage, loads, machine_code = _read(compiled)
    number = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    return KernelReport(
        name=launch.name,
        registers=number["REG"],
        stack=number["STACK"] + number.get("LOCAL", 0),
        shared=compiled.metadata.shared,
        wide_loads=_wide(loads),
        loads=len(loads),
        tensor_core=len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|UTC\w*MMA)\b", machine_code)),
    )


def stream_loads(launch: Launch, capability: int) -> int:
    """How many of the 16-byte loads are of 16-bit streams: those left where nothing else is aligned."""
    return _wide(_read(compile_for(launch, capability, coefficients_aligned=False))[1])


def _read(compiled: CompiledKernel) -> tuple[str, list[str], str]:
    """What a cubin uses, its loads from device memory, and its machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        machine_code = _cuobjdump("-sass", file.name)
    return usage, re.findall(r"\b(?:LDG|LDGSTS|UBLKCP|LD)\.[\w.]*", machine_code), machine_code


def _wide(loads: list[str]) -> int:
    return sum(".128" in load for load in loads)


def _cuobjdump(flag: str, path: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, flag, path], check=True, capture_output=True, text=True).stdout


def launches_of(run: Callable[[], Any]) -> list[Launch]:
    """The launches that `run` would make."""
    with record() as launches:
        run()
    return launches
