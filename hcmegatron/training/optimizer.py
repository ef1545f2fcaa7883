"""AdamW, and Muon beside it, through Megatron's optimizer, with an explicit weight-decay rule for every parameter."""

from __future__ import annotations

import math

from torch import nn

from hcmegatron.config import schema
from hcmegatron.config.schema import Config, distributed_optimizer
from hcmegatron.connections.build import parameter_of
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.training.optimizer_roles import matrices_to_muon
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.process_groups_config import ProcessGroupCollection


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter of the model.

    Connections' have their own answer (Parameter.decays); of the rest, matrices decay and vectors (norms, biases) do
    not. Megatron's default decays by dimension alone: it would decay A_r and b_res, and spare W_m.
    """
    of_connection = parameter_of(parameter)
    return parameter.dim() > 1 if of_connection is None else of_connection.decays


def build_optimizer(
    config: Config, chunks: list[nn.Module], groups: ProcessGroupCollection, kind: str = "adam"
) -> MegatronOptimizer:
    """The optimizer of this rank's chunks. Collective. kind: adam, or sgd without momentum (for tests)."""
    optimizer = get_megatron_optimizer(
        optimizer_config(config, kind), chunks, config_overrides=multipliers(config.connection.lr_multiplier)
    )
    if config.optimizer.name == "muon" and kind == "adam":
        matrices_to_muon(optimizer, chunks, config, groups.tp_dp_cp)
    return optimizer


def optimizer_config(config: Config, kind: str) -> OptimizerConfig:
    """A run's settings as Megatron's optimizer takes them."""
    settings = config.optimizer
    return OptimizerConfig(
        optimizer=kind,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        sgd_momentum=0.0,
        clip_grad=settings.clip,
        bf16=config.training.dtype == "bf16",
        params_dtype=DTYPES[config.training.dtype],
        use_distributed_optimizer=distributed_optimizer(config),
        overlap_param_gather=config.parallel.overlap_param_gather,
    )


def multipliers(connections_lr: float) -> dict[ParamKey, dict[str, float]]:
    """What a parameter's weight decay and learning rate are multiplied with, where it is not 1."""
    undecayed = ParamWithNamePredicate("undecayed", lambda p, _: not decays(p))
    theirs = ParamWithNamePredicate("connection", lambda p, _: parameter_of(p) is not None)
    return {
        ParamKey(with_name_predicate=undecayed): {"wd_mult": 0.0},
        ParamKey(with_name_predicate=theirs): {"lr_mult": connections_lr},
    }


def learning_rate(step: int, settings: schema.Optimizer, steps: int) -> float:
    """The rate of step `step` (1-based) of `steps`: linear warmup, then cosine, step decay (mHC paper),
    constant, or constant with a straight line down at the end (warm-up, stable, decay: 2404.06395, 2405.18392)."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.schedule == "cosine":
        progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
        low = settings.lr * settings.min_lr_ratio
        return low + 0.5 * (settings.lr - low) * (1 + math.cos(math.pi * min(1.0, progress)))
    if settings.schedule == "wsd" and steps - step < settings.decay_steps:
        left = max(0, steps - step) / settings.decay_steps  # of the decay, 0 at the last step
        return settings.lr * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left)
    if settings.schedule == "step":
        passed = sum(step > share * steps for share in settings.step_decay_at)
        return settings.lr * ([1.0, *settings.step_decay_to][passed])
    return settings.lr


def set_learning_rate(optimizer: MegatronOptimizer, rate: float, weight_decay: float) -> None:
    """Write the step's rate and decay into every parameter group, times the group's multipliers."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]
        group["weight_decay"] = weight_decay * group["wd_mult"]
