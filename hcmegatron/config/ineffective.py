"""Settings that have no effect because of other settings. `checks.check_config` warns of them."""

from __future__ import annotations

from collections.abc import Callable

from hcmegatron.config.schedule_names import MEGATRONS, SCHEDULES
from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting

Unless = Callable[[bool, str, str], None]  # holds, otherwise the reason, for these keys


def ineffective(config: Config) -> dict[str, str]:
    """Settings that nothing reads, given the others: dotted key -> the setting that makes it so, in words."""
    reasons = accounting.ineffective_fields(config.connection)
    idle = {f"connection.{name}": reason for name, reason in reasons.items()}

    def unless(holds: bool, reason: str, keys: str) -> None:
        if not holds:
            idle.update(dict.fromkeys(keys.split(), reason))

    kind = accounting.kind_of(config.connection)
    unless(kind.kernels, f"connection.kind is {kind.name}", "kernels")
    _model(config, unless)
    _training(config, unless)
    _health(config, unless)
    return idle


def _model(config: Config, unless: Unless) -> None:
    m, moe = config.model, config.moe
    attention = f"model.attention is {m.attention}"
    unless(m.attention == "mla", attention, "mla.kv_rank mla.q_rank mla.rope_dim")
    unless(m.attention == "gqa", attention, "model.query_groups model.qk_norm model.qk_norm_across_heads")
    unless(moe.router == "sigmoid", "moe.router is softmax", "moe.expert_bias_rate")
    unless(
        moe.experts > 0, "moe.experts is 0", " ".join(f"moe.{key}" for key in vars(moe) if key != "experts")
    )
    no_dense = moe.experts > 0 and moe.first_dense == 0
    unless(not no_dense, "every layer has experts (moe.first_dense is 0)", "model.ffn_hidden_size")


def _training(config: Config, unless: Unless) -> None:
    schedule = f"optimizer.schedule is {config.optimizer.schedule}"
    unless(config.checkpoint.init_from is None, "checkpoint.init_from has the weights", "model.init_std")
    kind = accounting.kind_of(config.connection)
    if kind.as_residual and "pre_init" in kind.fields:
        as_residual = "with checkpoint.init_from it begins as the residual network"
        unless(config.checkpoint.init_from is None, as_residual, "connection.pre_init")
    step = config.optimizer.schedule == "step"
    unless(step, schedule, "optimizer.step_decay_at optimizer.step_decay_to")
    unless(config.optimizer.schedule in ("cosine", "wsd"), schedule, "optimizer.min_lr_ratio")
    unless(config.optimizer.schedule == "wsd", schedule, "optimizer.decay_steps")
    unless(config.muon.momentum > 0, "muon.momentum is 0", "muon.nesterov")
    unless(
        config.optimizer.name == "muon",
        f"optimizer.name is {config.optimizer.name}",
        " ".join(f"muon.{key}" for key in vars(config.muon)),
    )
    unless(
        bool(config.data.paths),
        "data.paths is empty, so the standard library's .py files are read",
        "data.suffixes",
    )
    own = bool(config.data.validation)
    unless(not own, "data.validation names data sets of their own", "data.holdout")
    unless(
        config.recompute.mode == "block",
        f"recompute.mode is {config.recompute.mode}",
        "recompute.block_length",
    )
    whole_layers = config.parallel.overlap and config.recompute.mode == "full"
    unless(
        not whole_layers, "recompute.mode is full, which leaves no nodes to interleave", "parallel.overlap"
    )
    p = config.parallel
    unless(p.pipeline > 1, "parallel.pipeline is 1", "parallel.transport")
    unless(p.schedule not in MEGATRONS, f"parallel.schedule is {p.schedule}", "parallel.transport")
    unless(p.pipeline > 1, "parallel.pipeline is 1", "parallel.split_backward")
    whole = p.schedule not in MEGATRONS and (SCHEDULES[p.schedule].pairs or not SCHEDULES[p.schedule].splits)
    unless(whole, f"parallel.schedule is {p.schedule}", "parallel.split_backward")
    judged = "training.eval_every training.eval_batches training.eval_prompt training.eval_tokens"
    unless(config.training.eval_prompt is not None, "training.eval_prompt is null", "training.eval_tokens")
    unless(own or config.data.holdout > 0, "data.holdout is 0", judged)


def _health(config: Config, unless: Unless) -> None:
    health = config.health
    spikes = health.loss_spike > 0 or health.grad_norm_spike > 0
    unless(spikes, "health.loss_spike and health.grad_norm_spike are 0", "health.spike_window")
    rewinds = health.on_bad_step == "rewind"
    unless(rewinds, f"health.on_bad_step is {health.on_bad_step}", "health.leave_out_batches")
    compares = health.compare_parameters_every > 0 or health.compare_gradients_every > 0
    unless(
        compares,
        "health.compare_parameters_every and health.compare_gradients_every are 0",
        "health.on_difference",
    )
    unless(health.slow_factor > 0, "health.slow_factor is 0", "health.slow_window")
    observed = "diagnostics.tokens diagnostics.ablation_every"
    unless(config.diagnostics.every > 0, "diagnostics.every is 0", observed)
    held_out = bool(config.data.validation) or config.data.holdout > 0
    unless(held_out, "data.holdout is 0", f"diagnostics.every {observed}")
