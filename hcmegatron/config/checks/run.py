"""The run: recomputation, optimizer and checkpoints, precision; and what has no effect."""

from __future__ import annotations

from hcmegatron.config.checks.layout import check_world, smallest_world, stages_a_rank
from hcmegatron.config.checks.refusals import Shown, need, refuse
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.ranges import LARGEST
from hcmegatron.config.schema import Config, resumes
from hcmegatron.config.types import defaults
from hcmegatron.connections import accounting
from hcmegatron.connections.kinds import KINDS


def check_recompute(config: Config, shown: Shown) -> None:
    """ConfigError where there is nothing to compute again, or a block does not fit a stage."""
    r, p, moe = config.recompute, config.parallel, config.moe
    mode, modules = shown("recompute.mode"), shown("recompute.modules")
    need(
        r.mode != "block" or accounting.saved_bytes(config.connection, config.model.hidden_size, 4) > 0,
        f"{mode} with {shown('connection.kind')}: there is nothing to rebuild, it keeps no streams",
        "use recompute.mode=full or selective, or another connection",
    )
    if r.mode == "block" and r.block_length.isdigit():
        stages = p.pipeline * stages_a_rank(config)
        sublayers = 2 * -(-config.model.layers // stages)  # of the longest
        need(
            int(r.block_length) <= sublayers,
            f"{shown('recompute.block_length')} is longer than a pipeline stage, which has {sublayers} sub-layers "
            f"({shown('model.layers')}, {stages} stages, two sub-layers a layer)",
            f"use 1 to {sublayers}, paper or live",
        )
    need(
        r.mode != "selective" or bool(r.modules),
        f"{mode} with {modules} recomputes nothing",
        "name modules, for example recompute.modules=[core_attn]",
    )
    need(
        r.mode in ("selective", "block") or not r.modules,
        f"{mode} does not go with {modules}",
        "use recompute.mode=selective or block, or leave recompute.modules out",
    )
    has = {
        "mla_up_proj": (config.model.attention == "mla", "model.attention"),
        "mlp": (moe.experts == 0 or moe.first_dense > 0, "moe.first_dense"),
        "shared_experts": (
            moe.experts > 0 and moe.shared_experts > 0,
            "moe.shared_experts" if moe.experts else "moe.experts",
        ),
    }
    for module, (there, key) in has.items():
        need(
            there or module not in r.modules,
            f"{modules}, but {shown(key)} leaves the model without {module}",
            f"leave {module} out",
        )


def check_training(config: Config, shown: Shown) -> None:
    """ConfigError where batch, learning rate or the beginning of the run do not fit."""
    o, c = config.optimizer, config.checkpoint
    check_world(config, smallest_world(config))  # a batch that does not fit it fits no larger one
    need(
        o.lr * max(config.connection.lr_multiplier, o.weight_decay) <= LARGEST,
        f"{shown('optimizer.lr')} with {shown('connection.lr_multiplier')} and {shown('optimizer.weight_decay')} makes "
        f"products beyond {LARGEST:g}, which 32-bit numbers do not hold",
        "lower them",
    )
    need(
        len(o.step_decay_at) == len(o.step_decay_to),
        f"{shown('optimizer.step_decay_at')} and {shown('optimizer.step_decay_to')} differ in length",
        "give every share of training its share of the learning rate",
    )
    need(
        o.schedule != "step" or bool(o.step_decay_at),
        f"{shown('optimizer.schedule')} with {shown('optimizer.step_decay_at')} never decays",
        "give the shares, or use optimizer.schedule=constant",
    )
    need(
        not c.keep_at or c.keep_at[-1] <= config.training.steps,
        f"{shown('checkpoint.keep_at')} with {shown('training.steps')} names a step that does not come",
        "name earlier ones",
    )
    need(
        not (c.init_from and c.load),
        f"{shown('checkpoint.init_from')} and {shown('checkpoint.load')} both say where to start",
        "give one of them",
    )
    need(
        not c.init_from or accounting.kind_of(config.connection).continues_residual,
        f"{shown('checkpoint.init_from')} with {shown('connection.kind')}, which cannot begin as the residual network",
        "use one of " + ", ".join(name for name, kind in KINDS.items() if kind.continues_residual),
    )
    if c.init_from:
        _check_values_as_residual(config, shown)
    need(
        not resumes(config) or config.run.dir is not None,
        f"{shown('checkpoint.resume')} without run.dir",
        "set run.dir to the run directory to continue",
    )


def _check_values_as_residual(config: Config, shown: Shown) -> None:
    """ConfigError where the connection has no values with which it is the residual network."""
    kind, start = accounting.kind_of(config.connection), shown("checkpoint.init_from")
    try:
        values = kind.as_residual(config.connection, 0) if kind.as_residual else {}
    except ValueError as error:
        refuse(f"{start} cannot begin as the residual network: {error}", "lower it")
    alone = config.connection.n == 1 and "b_pre" in values
    need(
        not alone or config.model.norm_position == "pre",
        f"{start} with {shown('connection.n')} and {shown('model.norm_position')} cannot begin as the residual "
        "network: the gate of one stream is below 1, and no norm takes that out",
        "set connection.use_pre=false" if "use_pre" in kind.fields else "use connection.n of 2 or more",
    )


def check_muon(config: Config, shown: Shown) -> None:
    """ConfigError where rates are beyond 32-bit numbers."""
    o, m = config.optimizer, config.muon
    rate = (m.lr or o.lr) * max(1.0, config.connection.lr_multiplier)
    largest = rate * max(m.rms, m.weight_decay or o.weight_decay)
    need(
        o.name != "muon" or largest <= LARGEST,
        f"{shown('muon.lr')} with {shown('optimizer.lr')}, {shown('muon.rms')} and {shown('muon.weight_decay')} makes "
        f"products beyond {LARGEST:g}, which 32-bit numbers do not hold",
        "lower them",
    )


def check_health(config: Config, shown: Shown) -> None:
    """ConfigError where what is asked of bad steps cannot be done."""
    need(
        config.health.on_bad_step != "rewind" or config.checkpoint.save_every > 0,
        f"{shown('health.on_bad_step')} with {shown('checkpoint.save_every')} has no checkpoint to go back to",
        "set checkpoint.save_every, or use health.on_bad_step=skip",
    )
    every, saves = config.health.compare_parameters_every, config.checkpoint
    stops = config.health.on_difference == "stop" and saves.save_every > 0
    need(
        not stops or every <= saves.save_every * (saves.keep_last - 1),
        f"{shown('health.compare_parameters_every')} with {shown('checkpoint.save_every')} and "
        f"{shown('checkpoint.keep_last')} may find a difference when no checkpoint from before it is left",
        "compare more often, or keep more checkpoints",
    )
    spread = config.parallel.expert > 1 or config.parallel.expert_tensor > config.parallel.tensor
    need(
        config.health.compare_gradients_every == 0 or not (config.moe.experts and spread),
        f"{shown('health.compare_gradients_every')} with {shown('parallel.expert')} and "
        f"{shown('parallel.expert_tensor')}: data-parallel ranks compute different experts, and exchange their tokens",
        "use health.compare_parameters_every alone",
    )
    theirs = config.parallel.schedule.startswith("megatron") and config.parallel.pipeline > 1
    need(
        config.health.slow_factor == 0 or not theirs,
        f"{shown('health.slow_factor')} with {shown('parallel.schedule')} and {shown('parallel.pipeline')}: Megatron's "
        "own pipelines do not say what a rank computes and when it waits",
        "use parallel.schedule=1f1b, interleaved or another of this project's, or health.slow_factor=0",
    )


def check_diagnostics(config: Config, shown: Shown) -> None:
    """ConfigError where an ablation would never be due."""
    every, ablation = config.diagnostics.every, config.diagnostics.ablation_every
    need(
        every == 0 or ablation % every == 0,
        f"{shown('diagnostics.ablation_every')} is no multiple of {shown('diagnostics.every')}, of whose observations "
        "an ablation is part",
        f"use {max(1, round(ablation / max(every, 1))) * every}",
    )


def check_profile(config: Config, shown: Shown) -> None:
    """ConfigError where a step is to be profiled that does not come, or of which nothing is known."""
    at = config.run.profile_at
    need(
        not at or at[-1] <= config.training.steps,
        f"{shown('run.profile_at')} with {shown('training.steps')} names a step that does not come",
        "name earlier ones",
    )
    need(
        not at or not config.parallel.schedule.startswith("megatron"),
        f"{shown('run.profile_at')} with {shown('parallel.schedule')}: Megatron's own schedules do not say what a rank "
        "computes and when it waits",
        "use parallel.schedule=1f1b, interleaved or another of this project's",
    )


def check_fp64(config: Config, shown: Shown) -> None:
    """fp64 exists for tests of equality: Megatron's own pieces stop at fp32, so those are refused."""
    if config.training.dtype != "fp64":
        return
    moe = config.moe
    allowed = {
        "optimizer.clip": (config.optimizer.clip == 0, "0"),  # Megatron asserts 32-bit gradients
        "parallel.distributed_optimizer": (not config.parallel.distributed_optimizer, "false"),
        "moe.grouped": (not (moe.experts and moe.grouped), "false"),  # torch has no 64-bit grouped matmul
        "kernels": (config.kernels not in ("triton", "native"), "torch"),
        "implementation": (config.implementation != "te", "local"),
    }
    unmet = {key: value for key, (holds, value) in allowed.items() if not holds}
    need(
        not unmet,
        f"{shown('training.dtype')} does not exist for {' and '.join(map(shown, unmet))}",
        "fp64 is for tests; set " + ", ".join(f"{key}={value}" for key, value in unmet.items()),
    )


def warnings(config: Config, shown: Shown) -> list[str]:
    """What was given and has no effect, one line each."""
    initial = defaults()
    warnings = [
        f"{shown(key)} has no effect: {reason}"
        for key, reason in ineffective(config).items()
        if shown.values[key] != initial[key] or key in shown.sources
    ]
    if config.optimizer.warmup_steps >= config.training.steps:
        warnings.append(
            f"{shown('optimizer.warmup_steps')} is not below {shown('training.steps')}: "
            f"the learning rate never reaches {shown('optimizer.lr')}"
        )
    stable = config.training.steps - config.optimizer.decay_steps
    if config.optimizer.schedule == "wsd" and config.optimizer.warmup_steps > stable:
        warnings.append(
            f"{shown('optimizer.warmup_steps')} and {shown('optimizer.decay_steps')} are more than "
            f"{shown('training.steps')}: the decay begins before warm-up has ended"
        )
    return warnings
