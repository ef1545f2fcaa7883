"""What distinguishes one mHC read from another besides its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ReadOptions:
    """Named variants of mHC's read (2512.24880, Eq. 14-19), as in config.schema.Connection. Hashable."""

    n: int
    use_pre: bool = True
    use_post: bool = True
    use_res: bool = True
    iterations: int = 20
    sinkhorn_eps: Literal["none", "additive", "clamp"] = "none"
    rms_eps: Literal["none", "inside", "added"] = "none"
    eps: float = 0.0  # of the root mean square
    pre_eps: float = 0.0
    orientation: Literal["paper", "deepseek_v4", "column_last"] = "paper"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Columns of phi that predict pre, post and res."""
        return self.n * self.use_pre, self.n * self.use_post, self.n * self.n * self.use_res

    @property
    def columns(self) -> int:
        """K, the columns of phi."""
        return sum(self.sizes)
