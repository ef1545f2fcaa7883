"""What the ranks of the test of Megatron's own fused weight gradients do. Imported there only: it installs a stub."""

from __future__ import annotations

import sys
from types import ModuleType

import torch

calls: list[str] = []


def wgrad_gemm_accum_fp32(input, d_output, d_weight):
    """As apex's (csrc/megatron/fused_weight_gradient_dense.cpp): d_weight += d_output^T input."""
    calls.append("fp32")
    d_weight.addmm_(d_output.reshape(-1, d_output.shape[-1]).t(), input.reshape(-1, input.shape[-1]))


_extension = ModuleType("fused_weight_gradient_mlp_cuda")
_extension.wgrad_gemm_accum_fp32 = wgrad_gemm_accum_fp32
sys.modules["fused_weight_gradient_mlp_cuda"] = _extension  # before Megatron-Core, which looks for it once

from hcmegatron.config.schema import Config, micro_batch_tokens  # noqa: E402
from hcmegatron.model import transformer_config  # noqa: E402
from hcmegatron.recompute.attach import Recomputation  # noqa: E402
from tests.layouts.network import Outcome, one_step  # noqa: E402
from tests.model.workers import groups_of  # noqa: E402


def both(config: Config) -> list[tuple[Outcome, int]]:
    """A step without and with the fusion, and how often the kernel ran."""
    torch.set_num_threads(1)
    found = []
    for fused in (False, True):
        transformer_config.megatron_fuses = lambda *_, fused=fused: fused
        calls.clear()
        with groups_of(config) as groups:
            outcome = one_step(
                config,
                groups,
                recomputed=lambda chunks: (
                    Recomputation(
                        config.recompute, chunks, micro_batch_tokens(config), live=1, deferred=0
                    ).execution
                ),
            )
            found.append((outcome, len(calls)))
    return found
