"""Experts as one grouped matmul per projection (torch.nn.functional.grouped_mm), on CPU and CUDA.

On CUDA it is one kernel in bf16 on sm_90 and sm_100; elsewhere torch falls back to one matmul for each expert, for
which the host waits for the counts.

E local experts, T tokens of all of them together (sorted by expert), C hidden size. Checkpoint keys, shapes and
values are those of Megatron's SequentialMLP, which is the reference, so checkpoints of the two are
interchangeable.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcmegatron.model import expert_padding
from hcmegatron.model.wgrad_store import (
    Separable,
    WeightGradStore,
    gradient_for_autograd,
    mark_separable,
)
from hcmegatron.platform import transfer
from megatron.core.dist_checkpointing.mapping import (
    ReplicaId,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class GroupedExperts(MegatronModule):
    """fc2_e(activation(fc1_e(x)) * probability) for the tokens of every local expert e."""

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        submodules: None = None,
        pg_collection: ProcessGroupCollection | None = None,
        name: str | None = None,  # 0.19.2 tells every module its own; nothing here needs it
    ) -> None:
        super().__init__(config=config)
        width = config.moe_ffn_hidden_size // pg_collection.expt_tp.size()
        gates = 2 if config.gated_linear_unit else 1
        build = partial(GroupedLinear, num_local_experts, config=config, groups=pg_collection)
        self.linear_fc1 = build(config.hidden_size, gates * width, split=0, halves=gates)
        self.linear_fc2 = build(width, config.hidden_size, split=1, halves=1)

    def forward(self, tokens: Tensor, tokens_per_expert: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """Megatron's contract: tokens [T, C], tokens_per_expert [E], probs [T] -> ([T, C], no bias)."""
        if not expert_padding.wanted(tokens):
            return self._mlps(tokens, tokens_per_expert, probs), None
        wide = expert_padding.padded(tokens, probs, tokens_per_expert)
        return self._mlps(wide.tokens, wide.counts, wide.probs).index_select(0, wide.places), None

    def _mlps(self, tokens: Tensor, tokens_per_expert: Tensor, probs: Tensor) -> Tensor:
        ends = transfer.beside(tokens_per_expert.to(torch.int32), tokens).cumsum(0, dtype=torch.int32)
        hidden = self.linear_fc1(tokens, ends)
        if self.config.gated_linear_unit:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = self.config.activation_func(gate) * value
        else:
            hidden = self.config.activation_func(hidden)
        hidden = (hidden * probs.unsqueeze(-1)).to(hidden.dtype)
        return self.linear_fc2(hidden, ends)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """The weights under SequentialMLP's keys."""
        assert not sharded_offsets
        return {
            f"{prefix}{name}.weight": linear.sharded(f"{prefix}experts.{name}")
            for name, linear in self.named_children()
        }


class GroupedLinear(nn.Module, Separable):
    """One projection of all local experts: weight [E, out, in].

    Args:
        split: axis of an expert's [out, in] over which expert tensor parallelism splits it.
        halves: 2 where `out` holds gate and value, each of which is split by itself.
    """

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        *,
        config: TransformerConfig,
        groups: ProcessGroupCollection,
        split: int,
        halves: int,
    ) -> None:
        super().__init__()
        self.split, self.halves = split, halves
        self.ep, self.tp, self.dp = groups.ep, groups.expt_tp, groups.expt_dp
        weight = torch.empty(experts, out_features, in_features, dtype=config.params_dtype)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [T, in], ends [E] int32: where each expert's tokens end -> [T, out]."""
        return _GroupedLinear.apply(x, mark_separable(self.weight), ends, self.store)

    def sharded(self, key: str) -> ShardedTensorFactory:
        """How the checkpoint holds the weight: [all experts, out, in], with the expert as a leading index."""
        replica = (0, 0, self.dp.rank())
        return ShardedTensorFactory(f"{key}.weight", self.weight, self._build, self._merge, replica)

    def _build(
        self, key: str, weight: Tensor, replica: ReplicaId, flattened_range: slice | None
    ) -> list[ShardedTensor | ShardedObject]:
        assert flattened_range is None
        count, first = len(weight), self.ep.rank() * len(weight)
        everywhere = count * self.ep.size()
        parts: list[ShardedTensor | ShardedObject] = []
        for e in range(count):
            for half, piece in enumerate(weight[e].chunk(self.halves)):
                place = half * self.tp.size() + self.tp.rank()
                parts.append(
                    ShardedTensor.from_rank_offsets(
                        key,
                        piece,
                        (0, first + e, everywhere),
                        (1 + self.split, place, self.halves * self.tp.size()),
                        replica_id=replica,
                        prepend_axis_num=1,
                    )
                )
            if weight is self.weight:  # and not its optimizer state
                # Megatron's linears keep an empty extra state, which sequential experts look for in loading.
                extra = key.removesuffix("weight") + "_extra_state"
                of_experts = (replica[0], self.tp.rank(), self.dp.rank())
                parts.append(ShardedObject(extra, None, (everywhere,), (first + e,), of_experts))
        return parts

    def _merge(self, parts: list[Tensor | None]) -> Tensor:
        pieces = [part for part in parts if isinstance(part, Tensor)]
        experts = [
            torch.cat(pieces[start : start + self.halves]) for start in range(0, len(pieces), self.halves)
        ]
        return torch.stack(experts)


class _GroupedLinear(torch.autograd.Function):
    """grouped_mm whose weight gradient can be left for later."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor, store: WeightGradStore | None) -> Tensor:
        ctx.save_for_backward(x, ends)
        ctx.weight, ctx.store = weight, store  # the leaf itself, as in separate_wgrad._Linear
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (x, ends), weight = ctx.saved_tensors, ctx.weight
        grad_output = grad_output.contiguous()
        grad_x = F.grouped_mm(grad_output, weight, offs=ends) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            source = x.detach()
            work = partial(_weight_gradient, source, grad_output, ends)
            if ctx.store is None or ctx.store.open is None:
                grad_weight = gradient_for_autograd(weight, work)
            else:
                ctx.store.open.add(weight, work, source, grad_output)
        return grad_x, grad_weight, None, None


def _weight_gradient(x: Tensor, grad_output: Tensor, ends: Tensor, into: Tensor | None) -> Tensor | None:
    """[E, out, in]; zero for an expert without tokens.

    In 16 bits it is rounded to 16 bits before it is added: torch's grouped_mm puts out what it takes in, and one matmul
    for each expert would need the counts on the host.
    """
    gradient = F.grouped_mm(grad_output.t(), x, offs=ends)
    if into is None:
        return gradient
    into += gradient
    return None
