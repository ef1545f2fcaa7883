"""The networks that tests are made with: one for equality of layouts, one for hundreds of steps, one for whole runs.

No torch. Another one begins with one of these and `put`.
"""

from __future__ import annotations

from pathlib import Path

from hcmegatron.config.checks import check_config
from hcmegatron.config.schema import Config

VOCAB = 261  # of small
SEQUENCE_LENGTH = 16  # of small_config
ITERATIONS = 3  # of Sinkhorn's 20, which would be most of a step's operations


def put(config: Config, **sections: dict) -> Config:
    """`config` with settings of its sections changed: put(config, model={"layers": 2})."""
    for section, values in sections.items():
        for key, value in values.items():
            setattr(getattr(config, section), key, value)
    return config


def small(architecture: str, connection: str, **parallel: object) -> Config:
    """4 layers for fp32 equality with another layout. architecture: dense (GQA) or moe (MLA)."""
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
        config.connection.sinkhorn_iterations = ITERATIONS
    config.data.sequence_length = 16
    config.training.global_batch, config.training.micro_batch = 4, 1
    config.training.steps = 100
    config.optimizer.eps = 1.0  # see one_step
    config.optimizer.clip, config.optimizer.weight_decay = 0.1, 0.01
    put(config, parallel=parallel)
    check_config(config)
    return config


def small_config(kind: str, moe: bool, **sections: dict) -> Config:
    """A network small enough for hundreds of steps: dense GQA, or MLA with MoE after one dense layer."""
    config = Config()
    m = config.model
    m.layers, m.hidden_size, m.heads, m.query_groups, m.ffn_hidden_size = 4, 32, 4, 2, 48
    m.vocab_multiple = 1
    config.connection.kind, config.connection.n = kind, 1 if kind == "residual" else 4
    if kind == "mhc":
        config.connection.sinkhorn_iterations = ITERATIONS
    config.data.sequence_length, config.training.micro_batch = SEQUENCE_LENGTH, 2
    if moe:
        m.attention, m.query_groups, m.head_dim = "mla", None, 8
        config.mla.kv_rank, config.mla.rope_dim = 12, 4
        e = config.moe
        e.experts, e.top_k, e.ffn_hidden_size, e.shared_experts, e.first_dense = 4, 2, 24, 1, 1
    config.optimizer.clip = 0.0
    return put(config, **sections)


def tiny(text: Path, directory: Path, **sections: dict) -> Config:
    """mHC with MLA and MoE, dropout and a MoE router with biases: everything that a checkpoint has to hold."""
    config = Config()
    m = config.model
    m.layers, m.hidden_size, m.heads, m.head_dim, m.ffn_hidden_size = 2, 16, 2, 8, 24
    m.attention, m.hidden_dropout, m.vocab_multiple = "mla", 0.1, 1
    config.mla.kv_rank, config.mla.rope_dim = 8, 4
    e = config.moe
    e.experts, e.top_k, e.ffn_hidden_size, e.shared_experts, e.first_dense = 4, 2, 12, 1, 1
    config.connection.n, config.connection.sinkhorn_iterations = 2, ITERATIONS
    config.parallel.pipeline = 2
    config.data.paths, config.data.sequence_length, config.data.holdout = [str(text)], 32, 0.1
    t = config.training
    t.steps, t.global_batch, t.micro_batch, t.eval_every, t.eval_batches = 4, 2, 1, 0, 1
    config.optimizer.warmup_steps = 2
    config.checkpoint.save_every = 2
    config.run.dir, config.run.tensorboard, config.run.peak_tflops = str(directory), False, 0.01
    return put(config, **sections)
