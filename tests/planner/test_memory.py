"""Bytes of a rank's state, by literal figures."""

import pytest

from hcmegatron.config import Config
from hcmegatron.planner.memory import expert_parameters, rank_parameters, state_bytes
from hcmegatron.planner.stages import stages


def network(expert, expert_tensor=1, tensor=1):
    """Two layers, the second of 4 experts: 4 x 3 x 16 x 8 = 1,536 numbers of experts in all."""
    config = Config()
    m, p = config.model, config.parallel
    m.layers, m.hidden_size, m.heads, m.ffn_hidden_size = 2, 16, 2, 32
    config.moe.experts, config.moe.ffn_hidden_size, config.moe.first_dense = 4, 8, 1
    config.connection.kind, config.connection.n = "residual", 1
    p.tensor, p.sequence, p.expert, p.expert_tensor = tensor, tensor > 1, expert, expert_tensor
    p.distributed_optimizer = True
    return config


@pytest.mark.parametrize(
    ("expert", "expert_tensor", "tensor", "world", "experts", "shards_of_experts", "shards_of_the_rest"),
    [
        (1, 1, 1, 4, 1536, 4, 4),
        (4, 1, 1, 4, 384, 1, 4),  # every rank has experts of its own: nothing to share out
        (2, 1, 1, 8, 768, 4, 8),
        (2, 1, 2, 8, 768, 4, 4),
        (2, 2, 2, 8, 384, 2, 4),
        (1, 1, 2, 4, 1536, 4, 2),  # experts whole on both tensor-parallel ranks: more copies than of the rest
    ],
)
def test_experts_state_is_shared_out_over_their_own_data_parallel_ranks(
    expert, expert_tensor, tensor, world, experts, shards_of_experts, shards_of_the_rest
):
    config = network(expert, expert_tensor, tensor)
    whole = stages(2, 1)
    rest = rank_parameters(config, 64, whole) - experts
    assert expert_parameters(config, whole) == experts
    # fp32: 4 bytes of weight, 4 of gradient, 8 of moments shared out
    expected = experts * (8 + 8 / shards_of_experts) + rest * (8 + 8 / shards_of_the_rest)
    assert state_bytes(config, 64, whole, world) == expected


def test_literal_bytes():
    """384 numbers of experts that no other rank has, 5,776 others that all 4 have; in bf16 6 bytes, 12 to share."""
    config = network(expert=4)
    config.training.dtype = "bf16"
    others = 2 * (4 * 16 * 16 + 2 * 16) + 3 * 16 * 32 + 4 * 16 + 16 + 2 * 64 * 16
    assert others == 5776 and rank_parameters(config, 64, stages(2, 1)) == others + 384
    assert state_bytes(config, 64, stages(2, 1), 4) == 384 * 18 + 5776 * 9
