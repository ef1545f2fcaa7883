"""How large a run's network is and what its training takes, by the conventions that papers use. Pure."""

from __future__ import annotations

from hcmegatron.config.schema import Config
from hcmegatron.planner import counts
from hcmegatron.planner.flops import active_matmul_parameters, training_flops_per_token
from hcmegatron.planner.parameters import active_parameters


def parameters(config: Config) -> dict[str, int]:
    """Parameters by class, in all, and active: those that one token passes, without the input embedding.

    `parameters` is N of laws: the active ones, as the mHC paper counts. Body: attention, MLPs, all experts, norms.
    """
    of = counts.parameters(config, counts.whole_model(config))
    rest = of.total() - of["embedding"] - of["head"] - of["connections"]
    active = active_parameters(config, counts.padded_vocabulary(config))
    return {
        "parameters": active,
        "parameters_total": of.total(),
        "parameters_active": active,
        "parameters_embedding": of["embedding"],
        "parameters_body": rest,
        "parameters_connections": of["connections"],
        "parameters_head": of["head"],
    }


def flops(config: Config, tokens: int) -> dict[str, float]:
    """FLOPs of training on so many tokens.

    flops_planner: forward and backward with attention and connections, head included (planner/flops.py); flops_6nd:
    6 N D; flops_forward: forward matrix products alone, head included, as the papers' tables give FLOPs.
    """
    vocab = counts.padded_vocabulary(config)
    return {
        "flops_planner": training_flops_per_token(config, vocab) * tokens,
        "flops_6nd": 6.0 * active_parameters(config, vocab) * tokens,
        "flops_forward": 2.0 * active_matmul_parameters(config, vocab) * tokens,
    }
