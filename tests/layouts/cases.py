"""The networks that layouts are tested with. No torch."""

from __future__ import annotations

from hcmegatron.config.checks import check
from hcmegatron.config.schema import Config

VOCAB = 261


def small(architecture: str, connection: str, **parallel: object) -> Config:
    """A network of 4 layers for fp32 equality. architecture: dense (GQA) or moe (MLA)."""
    config = Config()
    config.model.layers, config.model.hidden_size, config.model.heads = 4, 32, 4
    config.model.ffn_hidden_size, config.model.qk_norm = 48, True
    config.model.vocab_size, config.model.vocab_multiple, config.model.init_std = VOCAB, 8, 0.1
    config.model.norm_eps = 1e-5
    if architecture == "dense":
        config.model.query_groups = 2
    else:
        config.model.attention, config.model.head_dim = "mla", 8
        config.mla.kv_rank, config.mla.q_rank, config.mla.rope_dim = 12, 20, 4
        config.moe.experts, config.moe.top_k, config.moe.ffn_hidden_size = 4, 2, 24
        config.moe.shared_experts, config.moe.first_dense = 1, 1
        config.moe.z_loss, config.moe.sequence_aux_loss = 1e-3, 1e-3
    config.connection.kind, config.connection.n = connection, 4
    if connection == "mhc":
        config.connection.sinkhorn_iterations = 3  # of 20, which would be most of a step's operations
    config.data.sequence_length = 16
    config.training.global_batch, config.training.micro_batch = 4, 1
    config.training.steps = 100
    config.optimizer.eps = 1.0  # see one_step
    config.optimizer.clip, config.optimizer.weight_decay = 0.1, 0.01
    for key, value in parallel.items():
        setattr(config.parallel, key, value)
    check(config)
    return config
