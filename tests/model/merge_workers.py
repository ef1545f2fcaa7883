"""What the ranks of test_merge.py do: the nodes of two micro-batches through one layer of experts."""

from __future__ import annotations

import torch

from hcmegatron.model.nodes import MicroBatch, State
from hcmegatron.platform.distributed import megatron_groups
from tests.layouts.network import chunks_of
from tests.small_configs import small_config


def merges(dispatcher: str) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The streams after the layer: in order; and with the next micro-batch routed before the merge. And whether the
    state that enters the merge holds what the dispatcher made in routing."""
    config = small_config("mhc", True)
    config.moe.dispatcher = dispatcher
    with megatron_groups(config) as groups:
        (chunk,) = chunks_of(config, groups)
        layer = chunk.decoder.layers[1]
        size = (16, 2, config.connection.n, config.model.hidden_size)
        one, other = (torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
        plain = MicroBatch()

        def until(node: str, state: State) -> State:
            for each in layer.nodes:
                if each.name == node:
                    return state
                state = each.forward(state, plain)
            return state

        merge = layer.nodes[-1]
        assert merge.name == "merge"
        with torch.no_grad():
            expected, *_ = until("", (one,))
            state = until("merge", (one,))
            made = [
                value.data_ptr()
                for value in vars(layer.mlp.token_dispatcher).values()
                if isinstance(value, torch.Tensor) and value.dtype is torch.int64 and value.numel() >= 32
            ]
            until("dispatch", (other,))
            late, *_ = merge.forward(state, plain)
        return expected, late, any(tensor.data_ptr() in made for tensor in state)
