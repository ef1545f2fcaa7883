"""Block sizes of the Triton kernels, per kernel and shape. No measuring here: a launch only looks up.

Choices are by rule, from registers per thread and 16-byte loads; `tune` (hcmegatron.kernels.tuning) may
replace them with measured ones, before training starts.
"""

from __future__ import annotations

from dataclasses import dataclass


def power_of_two(x: int) -> int:
    """The smallest power of two at or above x."""
    return 1 << max(x - 1, 0).bit_length()


@dataclass(frozen=True)
class Tile:
    """BT tokens by BC channels a program; V neighbours a thread adds (write_backward); G streams a
    program."""

    BT: int
    BC: int
    warps: int = 4
    stages: int = 2
    V: int = 1
    G: int = 1


def columns(n: int) -> int:
    """KP: phi's columns padded for tensor cores, which want powers of two from 16 on."""
    return max(16, power_of_two(n * n + 2 * n))


def rule(kernel: str, n: int, C: int, element_size: int) -> Tile:
    """The tile of `kernel` for n streams of C channels of element_size bytes."""
    wide = power_of_two(C)
    vector = 16 // element_size  # channels of a 16-byte load
    match kernel:
        case "write_forward":  # n + 1 vectors a thread
            BC = min(wide, 128 * vector)
            return Tile(max(1, 128 * vector // BC), BC)
        case "write_backward":  # 2 n vectors and n^2 + n sums a thread
            V = vector if n <= 4 else min(vector, 4)
            BC = max(min(wide, 128 * V), V)
            return Tile(max(1, 128 * V // BC), BC, V=V)
        case "write_fold":
            return Tile(16, min(max(wide, 16), 64 if n <= 4 else 32), stages=2 if n <= 4 else 1)
        case "read_forward":
            return Tile(16, min(max(wide, 16), 128 if n <= 4 else 64), stages=3)
        case "read_backward_coefficients":
            return Tile(16, min(max(wide, 16), 128 if n <= 4 else 64), stages=2)
        case "read_backward_streams":
            G = n if n <= 4 else 1
            return Tile(16, min(max(wide, 16), 64 if n <= 4 else 32), G=G)
    raise AssertionError(f"no kernel {kernel}")


Key = tuple[str, int, int, int]  # kernel, n, C, element size
_measured: dict[
    Key, Tile
] = {}  # found by tuning on this device; a cache of facts, the same for every user of it


def keep(key: Key, tile: Tile) -> None:
    """From now on use `tile` for this kernel and shape."""
    _measured[key] = tile


def tile(kernel: str, n: int, C: int, element_size: int) -> Tile:
    """The measured tile where there is one, the rule's otherwise."""
    return _measured.get((kernel, n, C, element_size)) or rule(kernel, n, C, element_size)
