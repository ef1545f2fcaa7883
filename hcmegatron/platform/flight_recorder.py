"""NCCL's flight recorder: the last collectives of every group and how far each has come, for when a run hangs.

platform/cuda_environment.py has it switched on. `torchfrtrace DIRECTORY -p nccl-rank-` reads what is written.
"""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from torch._C import _distributed_c10d


def dump(directory: Path, rank: int) -> None:
    """Write what this process has recorded, where it uses NCCL. OSError where that cannot be written."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        trace = _distributed_c10d._dump_nccl_trace()  # as pickled by torch, for its own analysis
        (directory / f"nccl-rank-{rank}").write_bytes(trace)
