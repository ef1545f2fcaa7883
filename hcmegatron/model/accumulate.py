"""Products added to gradient buffers, in the precision of the sum.

On CUDA the sum of a 16-bit product in 32 bits is one kernel where NVIDIA apex has it (what Megatron-Core calls
gradient_accumulation_fusion), and elsewhere a product in 32 bits that is then added: the same operations, with the
buffer's size in memory and two more passes over it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hcmegatron.config.schedule_names import MEGATRONS
from hcmegatron.model.te_wgrad import of_engine
from hcmegatron.platform.optional import fused_weight_gradients

HALF = (torch.bfloat16, torch.float16)


def add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into [m, n] += left [m, k] @ right [k, n], in the precision of `into`, which may be higher than theirs."""
    if right.dtype == into.dtype:
        into.addmm_(left, right)
    elif on_cuda(into) and into.dtype is torch.float32:
        fused = fused_weight_gradients()
        if fused is not None and left.dtype == right.dtype and right.dtype in HALF and into.is_contiguous():
            # It reads pointers alone: rows have to follow each other in memory.
            fused.wgrad_gemm_accum_fp32(right.contiguous(), left.t().contiguous(), into)
        else:
            into += torch.mm(left, right, out_dtype=torch.float32)  # sums as the matrix units have them
    else:
        into.addmm_(left.to(into.dtype), right.to(into.dtype))


def on_cuda(tensor: Tensor) -> bool:
    """Whether kernels for CUDA can run on it."""
    return tensor.is_cuda


def megatron_fuses(schedule: str, dtype: str) -> bool:
    """Whether Megatron's own linears add their weight gradients with apex's kernel: under its own schedules, for ours
    give every linear a backward of its own, which uses it too.

    Args:
        schedule, dtype: parallel.schedule, training.dtype.
    """
    return (
        schedule in MEGATRONS
        and dtype == "bf16"
        and torch.cuda.is_available()
        and fused_weight_gradients() is not None
    )


def described(schedule: str, dtype: str, chunks: list[nn.Module]) -> list[str]:
    """How weight gradients are added over micro-batches, in words: one line for Transformer Engine's layers, if there
    are any, and one for other linears."""
    half, own = dtype == "bf16", schedule not in MEGATRONS
    rounded = ", rounded to bf16 before" if half and not own and not megatron_fuses(schedule, dtype) else ""
    lines = []
    if any(of_engine(module) for chunk in chunks for module in chunk.modules()):
        lines.append(
            f"weight gradients of Transformer Engine's layers: added in fp32 by its matmuls{rounded}"
        )
    if not half:
        how = f"torch, in {dtype}"
    elif not own:
        how = (
            "NVIDIA apex, in fp32" if megatron_fuses(schedule, dtype) else f"Megatron-Core, in fp32{rounded}"
        )
    elif torch.cuda.is_available():
        how = "NVIDIA apex, in fp32" if fused_weight_gradients() else "torch, in fp32, after the matmul"
    else:
        how = "torch, in fp32"
    lines.append(f"weight gradients of {'other' if lines else 'all'} linears: added by {how}")
    return lines
