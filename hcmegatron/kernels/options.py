"""What distinguishes one mHC read from another besides its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

SinkhornEps = Literal["none", "additive", "clamp"]
RmsEps = Literal["none", "inside", "added", "off"]
Orientation = Literal["paper", "deepseek_v4", "column_last"]
SinkhornBackward = Literal["iterations", "implicit"]
ResMap = Literal["sinkhorn", "permutations", "kronecker"]

# Of the sums over all n! permutations, which are unrolled.
MAX_PERMUTED = 4


@dataclass(frozen=True)
class ReadOptions:
    """Named variants of mHC's read (2512.24880, Eq. 14-19), as in config.schema.Connection. Hashable.

    An epsilon of 0 is the same as none, whatever its kind: 1 / r of a token of zeros is then 0.

    res_map says how res is made of its logits: by Sinkhorn's iterations (mHC), as a convex combination of all n!
    permutations (mHC-lite, 2601.05732) or as a Kronecker product of those of pairs (KromHC, 2601.21579).

    Raises:
        ValueError: a field out of its range, with its name and value.
    """

    n: int
    use_pre: bool = True
    use_post: bool = True
    use_res: bool = True
    res_map: ResMap = "sinkhorn"
    iterations: int = 20  # of Sinkhorn: at least 1, columns and then rows
    sinkhorn_eps: SinkhornEps = "none"
    sinkhorn_backward: SinkhornBackward = (
        "iterations"  # implicit: through the limit, where there is no epsilon
    )
    rms_eps: RmsEps = "none"  # off: t = Hv phi, not divided by a root mean square
    eps: float = 0.0  # of the root mean square; not read where rms_eps is none or off
    pre_eps: float = 0.0  # not read without use_pre
    post_eps: float = 0.0  # not read without use_post
    orientation: Orientation = "paper"

    def __post_init__(self) -> None:
        for name in ("n", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("eps", "pre_eps", "post_eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be a finite number, 0 or more")
        for name, choices in (
            ("sinkhorn_eps", SinkhornEps),
            ("rms_eps", RmsEps),
            ("orientation", Orientation),
            ("res_map", ResMap),
            ("sinkhorn_backward", SinkhornBackward),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}"
                )

        if self.implicit and self.sinkhorn_eps != "none":
            raise ValueError(
                f"sinkhorn_eps={self.sinkhorn_eps}: sinkhorn_backward=implicit is of the map without epsilon; use none"
            )
        if self.res_map == "permutations" and self.n > MAX_PERMUTED:
            raise ValueError(f"n={self.n}: res_map=permutations takes up to {MAX_PERMUTED} streams")
        if self.res_map == "kronecker" and (self.n < 2 or self.n & (self.n - 1)):
            raise ValueError(f"n={self.n}: res_map=kronecker takes a power of two from 2 on")

    @property
    def implicit(self) -> bool:
        """Whether backward takes the matrix for what the iterations converge to."""
        return self.res_map == "sinkhorn" and self.sinkhorn_backward == "implicit"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Columns of phi that predict pre, post and res."""
        return self.n * self.use_pre, self.n * self.use_post, self.res_columns * self.use_res

    @property
    def res_columns(self) -> int:
        """Logits of which res is made: n n of Sinkhorn, a permutation's each, or two a Kronecker factor."""
        match self.res_map:
            case "permutations":
                return math.factorial(self.n)
            case "kronecker":
                return 2 * (self.n.bit_length() - 1)
        return self.n * self.n

    @property
    def columns(self) -> int:
        """K, the columns of phi."""
        return sum(self.sizes)

    @property
    def floor(self) -> float:
        """The root mean square at which the epsilon is as large as the token."""
        return {"inside": self.eps**0.5, "added": self.eps}.get(self.rms_eps, 0.0)
