"""How long an operation takes on a machine: matmuls, fused attention, memory traffic, collectives and messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hcmegatron.planner.layout import Group
from hcmegatron.planner.machines import Machine, matmul_share

# Matmuls in fp32 and fp64 leave the 16-bit tensor cores: H100 67 of 989 TFLOP/s, A100 19.5 of 312 (data sheets).
NARROW = {"bf16": 1.0, "fp32": 1 / 15, "fp64": 1 / 15}
BACKWARD_OF_ATTENTION = 2.5  # five matmuls after two: FlashAttention computes the scores again


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted and nobody has measured; every one is printed with the plan.

    Attributes:
        kernels: part of copy speed that the connections' kernels reach.
        elementwise: the same of norms, activations, permutations and the optimizer.
        imbalance: the fullest rank's share of routed tokens over the mean.
        fused: activations and permutations as single kernels, and a token sent to a node once however many of its
            experts are there (DeepEP, HybridEP), as other frameworks have them; this trainer has neither.
        fused_loss: cross entropy as one kernel, which keeps 16-bit logits and writes their gradient over them; this
            trainer has none.
        hide: whether hops and all-to-alls hide behind computation where the schedule can.
        shortest, longest: what a step may take, over the plan. Published runs took 1.1 to 1.4 times the plan, and
            GPT-OSS 1.7 and 2 times (planner.published): nothing here knows of a host that cannot keep up, of clocks
            that fall under load, or of kernels worse than assumed.
    """

    kernels: float = 0.8
    elementwise: float = 0.8
    imbalance: float = 1.1
    fused: bool = False
    fused_loss: bool = False
    hide: bool = True
    shortest: float = 0.9
    longest: float = 1.45


@dataclass(frozen=True)
class Rates:
    """A machine's operations in seconds."""

    machine: Machine
    assumptions: Assumptions
    dtype: str

    def matmul(self, m: float, n: float, k: float, itemsize: int, groups: int = 1) -> float:
        """[m, k] x [k, n], or `groups` of them with m rows in all."""
        if not m * n * k:
            return 0.0
        of_group = min(n, k, m / groups)
        rate = self.machine.matmul_tflops * 1e12 * NARROW[self.dtype] * matmul_share(of_group)
        size = itemsize * (m * k + groups * k * n + m * n)
        return self._kernel(max(2 * m * n * k / rate, size / (self.machine.copy_tbs * 1e12)))

    def weight_gradient(self, m: float, n: float, k: float, itemsize: int, groups: int = 1) -> float:
        """[k, m] x [m, n], a gradient for every group, added to one in fp32.

        Grouped ones are rounded first and added by another kernel, unless fused.
        """
        if not m * n * k:
            return 0.0
        rounded = groups > 1 and not self.assumptions.fused
        rate = self.machine.matmul_tflops * 1e12 * NARROW[self.dtype] * matmul_share(min(n, k, m / groups))
        size = itemsize * m * (n + k) + groups * k * n * (12 if rounded else 8)
        return self._kernel(max(2 * m * n * k / rate, size / (self.machine.copy_tbs * 1e12)))

    def attention(self, flops: float) -> float:
        """The core's forward."""
        rate = self.machine.matmul_tflops * 1e12 * NARROW[self.dtype] * self.machine.attention_share
        return self._kernel(flops / rate)

    def memory(self, size: float, share: float | None = None) -> float:
        """So many bytes read and written, by default at the elementwise share of copy speed."""
        share = self.assumptions.elementwise if share is None else share
        return self._kernel(size / (self.machine.copy_tbs * 1e12 * share)) if size else 0.0

    def ring(self, size: float, group: Group) -> float:
        """All-gather or reduce-scatter of `size` bytes in all."""
        if group.size == 1 or not size:
            return 0.0
        machine = self.machine
        within = group.on_node == group.size
        rate = machine.nvlink_gbs if within else min(machine.nvlink_gbs, group.on_node * machine.network_gbs)
        latency = (machine.nvlink_us if within else machine.network_us) * math.log2(group.size)
        part = (group.size - 1) / group.size
        return size * part / (rate * 1e9 * machine.link_share) + latency * 1e-6

    def all_to_all(self, size: float, group: Group, copies: int) -> float:
        """Every rank sends `size` bytes, shared out evenly over the group, itself included.

        Args:
            copies: how many of them carry the same token.
        """
        if group.size == 1 or not size:
            return 0.0
        machine, share = self.machine, self.machine.link_share * 1e9
        far = size * (group.size - group.on_node) / group.size
        near = size * (group.on_node - 1) / group.size
        if self.assumptions.fused and far:
            nodes = group.size / group.on_node
            far = size / copies * (nodes - 1) * (1 - (1 - 1 / nodes) ** copies)
            near = size * (group.on_node - 1) / group.on_node  # what arrives for a node is shared out there
        near, far = near / (machine.nvlink_gbs * share), far / (machine.network_gbs * share)
        return max(near, far) + (machine.network_us if far else machine.nvlink_us) * 1e-6

    def link(self, same_node: bool) -> tuple[float, float]:
        """(latency in seconds, bytes per second) of a pipeline hop."""
        machine = self.machine
        rate = machine.nvlink_gbs if same_node else machine.network_gbs
        return (
            machine.nvlink_us if same_node else machine.network_us
        ) * 1e-6, rate * 1e9 * machine.link_share

    def _kernel(self, seconds: float) -> float:
        return max(seconds, self.machine.kernel_us * 1e-6)
