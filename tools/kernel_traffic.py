"""Bytes that a launch of a Triton kernel moves, and the fewest that its operation could.

Dimensions: T tokens, N streams of C channels, K columns of phi, R rows of y, e bytes an element of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hcmegatron.kernels.compile_offline import Launch


@dataclass(frozen=True)
class Traffic:
    """Bytes of a launch.

    moved: of device memory, if what is read twice by one program is read from there twice. ideal: the elements of
    the streams, x and y alone, each as often as the algorithm has to touch it (read 2N+1, N+1 after a fold; write
    2N+1; backward 3N+2 and 4N+2 in two passes). l2: phi and the gradient of the projection, which every program reads
    again, and which are small enough to come from L2.
    """

    moved: int
    ideal: int
    l2: int = 0


# The gated residual's kernels: how often they move R or its gradient, N C fp32 numbers (Rh, logits and their
# gradients), and x or its gradient. Of two passes over a token both are counted.
GATED = {
    "gated_norm": (2, 1, 0),
    "gated_mix": (1, 1, 1),
    "gated_backward_gates": (1, 2, 1),
    "gated_backward_streams": (4, 4, 2),
}


def _gated(a: dict[str, Any], moves: tuple[int, int, int]) -> Traffic:
    e, token = a["R"].element_size(), a["N"] * a["C"]
    streams, wide, x = moves
    moved = a["T"] * ((streams * e + 4 * wide) * token + x * e * a["C"])
    return Traffic(moved, moved)


def traffic(launch: Launch) -> Traffic:
    """Of a launch as it was recorded."""
    a, name = launch.arguments, launch.name
    if name == "read_backward_sums":
        parts = 0 if launch.programs == 1 else a["splits"] + 1
        return Traffic(4 * (parts * a["W"] + 2 * a["K"] * a["programs"]), 0)
    if name in GATED:
        return _gated(a, GATED[name])
    e = a["H"].element_size()
    if name == "project":
        ideal = a["T"] * a["W"] * e
        parts = launch.grid[1]
        phi = launch.grid[0] * 4 * a["W"] * a["K"]  # read whole for every block of tokens
        return Traffic(ideal + 4 * a["T"] * parts * (a["K"] + 1), ideal, phi)
    T, N, C = a["T"], a["N"], a["C"]
    streams = T * C * e
    # post and res of a token, of which an identity carry reads no res
    small = N if a.get("IDENTITY") else N * N + N
    match name:
        case "write_forward":
            ideal = (2 * N + a["R"]) * streams
            return Traffic(ideal + 4 * T * small, ideal)
        case "write_fold":
            ideal = (2 * N + a["R"]) * streams
            return Traffic(ideal + 4 * T * (small + a["K"] + 1), ideal, _phi(launch))
        case "write_backward":
            ideal = ((1 if a["IDENTITY"] else 3) * N + 2 * a["R"]) * streams
            wide = a["R"] * T * C * (a["DY"].element_size() - e)
            return Traffic(ideal + wide + 8 * T * small, ideal)
        case "read_forward":
            ideal = (N + 1) * streams
            given = a["PARTS"] * (a["K"] + 1)
            again = -(-C // a["BC"]) * 4 * T * given  # every program of a block of tokens reads what is given
            return Traffic(ideal + 4 * T * (given + a["K"] + 2 + N + small), ideal, again)
        case "read_backward_coefficients":
            ideal = (N + 1) * streams
            return Traffic(ideal + 4 * T * (2 * a["K"] + 3 + N + small), ideal)
        case "read_backward_streams":
            owners, groups, splits = launch.grid
            given = 3 if a["HAS_DH"] else 2
            part = 4 * N * C * a["K"]
            read_again = 4 * T * (a["K"] + 2 + a["G"]) * owners * groups
            return Traffic(
                (given * N + groups) * streams + splits * part,
                (given * N + 1) * streams,
                read_again + splits * part,
            )
    raise AssertionError(f"no kernel {name}")


def _phi(launch: Launch) -> int:
    """Read whole by every program."""
    return launch.programs * 4 * launch.arguments["N"] * launch.arguments["C"] * launch.arguments["K"]
