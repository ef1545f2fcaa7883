"""Bytes of a rank's weights, gradients and optimizer state: by literal figures, and beside Megatron's own objects."""

import pytest

from hcmegatron.config import Config
from hcmegatron.planner.buffers import parameters, resident
from hcmegatron.planner.stages import stages
from tools import planned_memory

WHOLE = stages(2, 1)


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
    of_experts, rest = sorted(
        resident(network(expert, expert_tensor, tensor), 64, WHOLE, world, first=True).buffers,
        key=lambda buffer: not buffer.apart,
    )
    assert of_experts.numbers == experts
    assert (of_experts.shards, rest.shards) == (shards_of_experts, shards_of_the_rest)


def test_literal_bytes():
    """384 numbers of experts that no other rank has; 5,776 others that all 4 have, 5 norms of 16 among them, each of
    which takes the place of 64: 6,016 in all, 47 x 128."""
    config = network(expert=4)
    config.training.dtype = "bf16"
    others = 2 * (4 * 16 * 16 + 2 * 16) + 3 * 16 * 32 + 4 * 16 + 16 + 2 * 64 * 16
    assert others == 5776 == sum(p.numbers for p in parameters(config, 64, WHOLE[0]) if not p.apart)
    held = resident(config, 64, WHOLE, 4, first=True)
    assert (held.weights, held.gradients) == (2 * (6016 + 384), 4 * (6016 + 384))
    # 4 shards of 1,504: the head, which is last and so comes first, is without padding up to 1,024
    assert held.most_state == 12 * (384 + 1504 - 48)
    assert sum(held.state((rank, 0)) for rank in range(4)) == 12 * (4 * 384 + others)


def test_connections_are_fp32_and_their_own_master_weights():
    config = network(expert=1)
    config.training.dtype = "bf16"
    config.parallel.distributed_optimizer = False
    bare = resident(config, 64, WHOLE, 1, first=True).total
    config.connection.kind, config.connection.n = "mhc", 2
    # phi [2 x 16, 2 + 2 + 4], three gates, 8 biases: 4 connections of 267
    assert resident(config, 64, WHOLE, 1, first=True).total == bare + 16 * 4 * 267


def test_more_ranks_than_there_is_to_share_out():
    config = network(expert=1)
    held = resident(config, 64, WHOLE, 512, first=True)
    (buffer,) = held.buffers
    assert buffer.numbers % 512 == 0 and sum(buffer.state.values()) == 8 * 7312
    assert sum(held.state((rank, rank)) for rank in range(512)) == 8 * 7312


SMALL = [case for case in planned_memory.CASES if not case.large]


@pytest.mark.ranks
@pytest.mark.parametrize("case", SMALL[2:13:2] + SMALL[13:], ids=lambda case: case.name)
def test_every_rank_holds_what_is_planned_to_the_byte(case):
    found = planned_memory.compare(case)
    assert len(found.rows) == case.ranks
    for row in found.rows:
        assert row.planned == row.real
