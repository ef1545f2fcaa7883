"""Block sizes of the Triton kernels, per kernel and shape. No measuring here: a launch only looks up.

Choices are by rule, from what the kernels were compiled to (`python -m tools.compile_kernels`) and what a Hopper
multiprocessor holds: 64 Ki registers, 227 KiB of shared memory, 64 warps; and, for sm_90, from what an H100 took for
four bf16 streams of 2560 channels and 8192 tokens (docs/gpu-h100.md; the microseconds below). Those of other devices
were not measured; `tune` (hcmegatron.kernels.tuning) replaces them with measured ones, before training starts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def power_of_two(x: int) -> int:
    """The smallest power of two at or above x."""
    return 1 << max(x - 1, 0).bit_length()


@dataclass(frozen=True)
class Tile:
    """BT tokens by BC channels a program; V neighbours a thread adds at once; G streams a program; per_sm programs
    that a Hopper multiprocessor holds at a time (read_backward_streams: its tokens are split accordingly); at most
    `registers` a thread, the compiler's own choice where None."""

    BT: int
    BC: int
    warps: int = 4
    stages: int = 2
    V: int = 1
    G: int = 1
    per_sm: int = 1
    registers: int | None = None

    @property
    def launch(self) -> dict[str, int]:
        """The arguments that every kernel takes."""
        given = {"BT": self.BT, "BC": self.BC, "num_warps": self.warps, "num_stages": self.stages}
        return given if self.registers is None else {**given, "maxnreg": self.registers}


def columns(K: int) -> int:
    """KP: phi's K columns padded for tensor cores, which want powers of two from 16 on."""
    return max(16, power_of_two(K))


def precision(H: Tensor) -> str:
    """Of the products with phi: 16-bit streams are exact in TF32."""
    return "ieee" if H.dtype == torch.float32 else "tf32"


def products(H: Tensor) -> str:
    """The same for products that have bf16 streams as they are, and phi in three bf16 numbers (triton_projection.py):
    exact, and faster than TF32."""
    if H.dtype != torch.bfloat16:
        return precision(H)
    return "split, widened" if H.device.type == "cpu" else "split"


def check(H: Tensor) -> None:
    """ValueError for streams of a type that the kernels do not take."""
    if H.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"kernels=triton: streams of {H.dtype} are not supported; use kernels=torch")


def evenly(C: int, widest: int) -> int:
    """The widest power of two, up to `widest`, that wastes less than a tenth of its lanes at the end of C channels."""
    BC = min(power_of_two(C), widest)
    while BC > 128 and -C % BC > 0.1 * C:
        BC //= 2
    return BC


@dataclass(frozen=True)
class Hardware:
    """sm_`capability` with so many multiprocessors."""

    capability: int = 90
    processors: int = 132  # of an H100


SIZES = {80: Hardware(80, 108), 90: Hardware(), 100: Hardware(100, 148)}  # A100, H100, B200
_planned = ContextVar("planned", default=SIZES[90])


@contextmanager
def planned_for(capability: int) -> Iterator[None]:
    """Within it, launches on torch's meta device, where nothing runs, are those for sm_`capability`."""
    token = _planned.set(SIZES[capability])
    try:
        yield
    finally:
        _planned.reset(token)


def hardware(device: torch.device) -> Hardware:
    """The GPU; on meta what is planned for; for the interpreter one that holds little, so that tokens are split."""
    if device.type == "cuda":
        return _gpu(device)
    return _planned.get() if device.type == "meta" else Hardware(processors=1)


@functools.cache
def _gpu(device: torch.device) -> Hardware:
    major, minor = torch.cuda.get_device_capability(device)
    return Hardware(10 * major + minor, torch.cuda.get_device_properties(device).multi_processor_count)


def _rows(C: int, V: int) -> Tile:
    """Whole rows of channels, V neighbours a thread: up to four warps side by side, as many as C fills."""
    BC = max(evenly(C, 128 * V), V)
    return Tile(1, BC, BC // (32 * V)) if BC >= 32 * V else Tile(128 * V // BC, BC)


def rule(key: Key) -> Tile:
    """The tile for a kernel and shape."""
    n, C = key.n, key.C
    wide = power_of_two(C)
    vector = 16 // key.element_size  # channels of a 16-byte load
    match key.kernel:
        # One token a program: its coefficients are the same for all threads (two tokens: 121 registers in the
        # backward, four programs of four warps, instead of 72 and seven).
        case "write_forward":  # n + 1 vectors a thread
            return _rows(C, vector)
        case "write_backward":  # 2 n vectors and n^2 + n sums a thread
            V = vector if n <= 4 else min(vector, 4)
            return replace(_rows(C, V), V=V)
        # Every program reads the whole of phi, out of L2. On an H100, where two warps with 16 tokens took 221 us, 32
        # tokens took 256 with four warps and 367 with eight.
        case "write_fold" if n <= 4 and key.capability == 90:
            return Tile(16, min(max(wide, 16), 64), warps=2, V=vector)
        case "write_fold" if n <= 4:
            if (
                key.capability >= 100
            ):  # where the wider tile spills, as dropout's random numbers make it elsewhere
                return Tile(32, min(max(wide, 16), 32), V=vector)
            return Tile(32, min(max(wide, 16), 64), warps=8, V=vector)
        case "write_fold_dropout" if n <= 4:
            return Tile(32, min(max(wide, 16), 32), V=vector)
        case "write_fold" | "write_fold_dropout":
            return Tile(16, min(max(wide, 16), 32), stages=1, V=vector)
        # 64 tokens fill Hopper's matrix instructions, and phi, out of L2, is no more than the streams (of 32 tokens the
        # same loop took three times as long on an H100). fp32 has no matrix instructions, and more registers.
        case "project" if key.element_size == 4:
            return Tile(32, min(max(power_of_two(n * C), 16), 64), warps=8, V=vector)
        case "project":
            widest = 128 if n <= 4 and key.capability >= 90 else 64  # wider spills
            return Tile(64, min(max(power_of_two(n * C), 16), widest), stages=3, V=vector)
        # No loop: small programs, many on a multiprocessor, hide what a load takes. On an H100 92 us; eight warps, or
        # 128 channels, took 98 to 118.
        case "read_forward":
            return Tile(16, min(max(wide, 16), 256 if n <= 4 else 128), stages=1)
        # On an H100 a read's backward took 12 us less with 128 channels, though 512 programs are then more than a wave.
        case "read_backward_coefficients":
            return Tile(16, min(max(wide, 16), 128 if n <= 4 else 64), stages=1)
        # phi and its gradient stay in registers, 64 each for four streams of 64 channels. On an H100 a read's backward
        # took 336 us with three stages and two programs, 369 with two stages and three.
        case "read_backward_streams" if n <= 4:
            stages = 3 if key.capability == 90 else 2
            return Tile(16, min(max(wide, 16), 64), stages=stages, G=n, per_sm=2)
        case "read_backward_streams":
            return Tile(16, min(max(wide, 16), 32), per_sm=2)
        case "read_backward_sums":
            return Tile(64, 1024)
        # The gated residual's: tiles as wide as a read's, not measured. Of the last, every program leaves a row of
        # gamma's gradient, which 32 tokens make small beside the streams.
        case "gated_norm" | "gated_backward_gates":
            return Tile(8, min(max(wide, 16), 256))
        case "gated_mix":
            return Tile(8, min(max(wide, 16), 128))
        case "gated_backward_streams":
            return Tile(32, min(max(wide, 16), 64))
    raise AssertionError(f"no kernel {key.kernel}")


MOST_PARTS = 8


def split_channels(T: int, W: int, tile: Tile, processors: int) -> int:
    """Elements of a token's W that a program of `project` walks, a multiple of its BC.

    For few tokens a token is split, as long as there are no more than two programs for each multiprocessor: what each
    leaves is small beside the streams. Results repeat as those of `split_tokens` do.
    """
    blocks, parts = -(-T // tile.BT), 1
    while parts < MOST_PARTS and 2 * parts * blocks <= 2 * processors:
        parts *= 2
    return -(-W // (parts * tile.BC)) * tile.BC


MOST_SPLITS = 64
SATURATED = 0.8  # of the programs that a device holds keep its memory busy: an assumption, not measured
PROLOGUE = 2  # blocks of tokens in whose time a program has loaded phi and filled its pipeline: likewise


@functools.cache
def split_tokens(T: int, n: int, C: int, element_size: int, tile: Tile, processors: int) -> int:
    """Tokens that a program of read_backward_streams walks, a multiple of its BT.

    Programs own channels, so T has to be split for there to be enough of them, and every split leaves a part of phi's
    gradient that is written and read once more. Chosen is the least of: waves of programs, the last one as full as it
    is, by the blocks of tokens of one program, and the parts on top. A function of its arguments alone, so that
    results repeat bit for bit on the same kind of device; with other multiprocessors the parts are others, and their
    sum is rounded differently.
    """
    blocks = -(-T // tile.BT)
    owners = -(-C // tile.BC) * (n // tile.G)
    places = processors * tile.per_sm
    moved = (
        3 * n + n // tile.G
    )  # elements of a token and channel: H, its gradients in and out, dx for each group
    part = (
        2 * n * (n * n + 2 * n) * 4 / (moved * element_size * T)
    )  # of a split, in units of the streams' own bytes

    def cost(per: int) -> float:
        splits = -(-blocks // per)
        whole, rest = divmod(owners * splits, places)
        waves = whole + (max(rest / places, SATURATED) if rest else 0)
        return waves * (per + PROLOGUE) * places / (blocks * owners) + splits * part

    sizes = {-(-blocks // splits) for splits in range(1, min(blocks, MOST_SPLITS) + 1)}
    return min(sorted(sizes, reverse=True), key=cost) * tile.BT


@dataclass(frozen=True)
class Key:
    """What a tile is chosen for: a kernel, n streams of C channels of element_size bytes, and sm_`capability`."""

    kernel: str
    n: int
    C: int
    element_size: int
    capability: int = 90


_measured: dict[
    Key, Tile
] = {}  # found by tuning on this device; a cache of facts, the same for every user of it


_chosen: dict[
    tuple[str, int, int, torch.dtype, torch.device], Tile
] = {}  # of launches: 5 us of the host each


def keep(key: Key, tile: Tile) -> None:
    """From now on use `tile` for this kernel and shape."""
    _measured[key] = tile
    _chosen.clear()


def tile(kernel: str, H: Tensor) -> Tile:
    """For streams H [T,n,C]: the measured tile where there is one, the rule's otherwise."""
    _, n, C = H.shape
    launch = kernel, n, C, H.dtype, H.device
    found = _chosen.get(launch)
    if found is None:
        key = Key(kernel, n, C, H.element_size(), hardware(H.device).capability)
        found = _measured.get(key) or rule(key)
        if H.device.type != "meta":  # where what is planned for may change
            _chosen[launch] = found
    return found
