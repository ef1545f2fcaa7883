"""Whether settings fit together. Pure functions over a Config; no torch, no files, no ranks.

`check` looks at all settings, `check_world` at the number of ranks, `check_batch` at the data-parallel size.
"""

from __future__ import annotations

import math

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.idle import ineffective
from hcmegatron.config.ranges import LARGEST, TRITON_STREAMS, check_value
from hcmegatron.config.schema import Config, Parallel, distributed_optimizer
from hcmegatron.config.types import defaults, flatten


class Shown:
    """A setting in words: key, value, and where it was given."""

    def __init__(self, config: Config, sources: dict[str, str]) -> None:
        self.values, self.sources = flatten(config), sources

    def __call__(self, key: str) -> str:
        source = self.sources.get(key, "--")
        value = self.values[key]
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        # An override repeats the key and value, so naming it says nothing new.
        return f"{key} = {text}" + ("" if source.startswith("--") else f" ({source})")


def check(config: Config, sources: dict[str, str] | None = None) -> list[str]:
    """Raises ConfigError where settings contradict each other; returns warnings, one line each.

    `sources` (from `load.read`) says where each setting was given: errors then name the place, and settings
    that were given but have no effect are warned of even at their default.
    """
    shown = Shown(config, sources or {})
    for key, value in shown.values.items():
        try:
            check_value(key, value)
        except ConfigError as error:
            raise ConfigError(f"{shown(key)} {error}") from None
    for concern in (_model, _moe, _connection, _parallel, _recompute, _training, _fp64):
        concern(config, shown)
    return _warnings(config, shown)


def smallest_world(config: Config) -> int:
    """Ranks that hold the model once; worlds are multiples of it."""
    p = config.parallel
    return math.lcm(p.pipeline * p.tensor, p.pipeline * p.expert * p.expert_tensor)


def check_world(config: Config, world_size: int) -> int:
    """The data-parallel size of `world_size` ranks; ConfigError where they do not fit layout and batch."""
    p = config.parallel
    split = smallest_world(config)
    layout = f"parallel.pipeline = {p.pipeline} x parallel.tensor = {p.tensor}"
    if p.expert * p.expert_tensor > 1:
        layout += f", parallel.expert = {p.expert} x parallel.expert_tensor = {p.expert_tensor}"
    _need(
        world_size % split == 0,
        f"world size {world_size} is not a multiple of {split}, as {layout} asks for",
        f"start {_multiple(world_size, split)} ranks, or change the layout",
    )
    data_parallel = world_size // (p.pipeline * p.tensor)
    check_batch(config, data_parallel)
    return data_parallel


def check_batch(config: Config, data_parallel: int) -> int:
    """Micro-batches of one rank in a step; ConfigError where the global batch does not divide."""
    p, t = config.parallel, config.training
    share = t.micro_batch * data_parallel
    count = t.global_batch // share
    _need(
        t.global_batch % share == 0,
        f"training.global_batch = {t.global_batch} is not a multiple of training.micro_batch = "
        f"{t.micro_batch} x data-parallel size {data_parallel} = {share}",
        f"use {_multiple(t.global_batch, share)}",
    )
    if p.schedule == "megatron_interleaved":
        _need(
            count % p.pipeline == 0,
            f"training.global_batch = {t.global_batch} makes {count} micro-batches a rank, and parallel.schedule = "
            f"megatron_interleaved needs a multiple of parallel.pipeline = {p.pipeline}",
            f"use a global batch in multiples of {share * p.pipeline}",
        )
    if p.schedule in ("dualpipe", "dualpipev"):
        _need(
            count >= 2 * p.pipeline,
            f"training.global_batch = {t.global_batch} makes {count} micro-batches a rank, and parallel.schedule = "
            f"{p.schedule} needs two for each of parallel.pipeline = {p.pipeline}",
            f"use a global batch of {share * 2 * p.pipeline} or more",
        )
    _need(
        p.schedule != "dualpipe" or count % 2 == 0,
        f"training.global_batch = {t.global_batch} makes {count} micro-batches a rank, and parallel.schedule = "
        f"dualpipe sends half of them in at each end",
        f"use {_multiple(t.global_batch, 2 * share)}; the smallest that works is {share * 2 * p.pipeline}",
    )
    return count


def _need(holds: bool, problem: str, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"{problem}; {remedy}")


def _multiple(value: int, of: int) -> str:
    """The multiples of `of` around `value`, in words."""
    below, above = value // of * of, -(-value // of) * of
    return f"{below} or {above}" if below else f"{above}"


def _divisible(shown: Shown, key: str, by: str, why: str = "") -> None:
    value, divisor = shown.values[key], shown.values[by]
    _need(
        value % divisor == 0,
        f"{shown(key)} is not divisible by {shown(by)}{why}",
        f"use {_multiple(value, divisor)} for {key}, or a divisor of {value} for {by}",
    )


def _model(config: Config, shown: Shown) -> None:
    m = config.model
    if m.head_dim is None:
        _divisible(shown, "model.hidden_size", "model.heads")
    remedy = "use an even size, since rotary embeddings turn pairs"
    if m.attention == "mla":
        _need(config.mla.rope_dim % 2 == 0, f"{shown('mla.rope_dim')} is odd", remedy)
        _latents(config, shown)
        return
    head_dim = m.head_dim or m.hidden_size // m.heads
    key = "model.head_dim" if m.head_dim else "model.hidden_size"
    _need(head_dim % 2 == 0, f"{shown(key)} makes heads of odd size {head_dim}", remedy)
    if m.query_groups:
        _divisible(shown, "model.heads", "model.query_groups")
    _need(
        not (m.qk_norm and m.qk_norm_across_heads),
        f"{shown('model.qk_norm')} and {shown('model.qk_norm_across_heads')} are two norms of the same",
        "set one of them to false",
    )
    _need(
        not m.qk_norm_across_heads or (m.query_groups or m.heads) % config.parallel.tensor == 0,
        f"{shown('model.qk_norm_across_heads')} with {shown('parallel.tensor')} needs a whole number of key "
        f"groups on every tensor rank, but {shown('model.query_groups')}",
        "use fewer tensor ranks",
    )


def _latents(config: Config, shown: Shown) -> None:
    """Megatron-Core's local layers split the columns of MLA's down-projections over tensor ranks."""
    if config.implementation == "te":
        return
    mla, tensor = config.mla, config.parallel.tensor
    width = mla.kv_rank + mla.rope_dim
    _need(
        width % tensor == 0,
        f"{shown('mla.kv_rank')} + {shown('mla.rope_dim')} = {width} is not divisible by {shown('parallel.tensor')}",
        f"use an mla.kv_rank that makes the sum {_multiple(width, tensor)}",
    )
    if mla.q_rank is not None:
        _divisible(shown, "mla.q_rank", "parallel.tensor")


def _moe(config: Config, shown: Shown) -> None:
    moe, p = config.moe, config.parallel
    if not moe.experts:
        for key in ("parallel.expert", "parallel.expert_tensor"):
            _need(
                shown.values[key] == 1,
                f"{shown(key)}, but {shown('moe.experts')}",
                f"set moe.experts, or {key}=1",
            )
        return
    _need(
        moe.top_k <= moe.experts,
        f"{shown('moe.top_k')} is more than {shown('moe.experts')}",
        "a token chooses among the experts, so lower top_k",
    )
    _need(
        moe.top_k > 1 or moe.router == "sigmoid",
        f"{shown('moe.top_k')} with {shown('moe.router')} weighs its one expert with 1: nothing to learn",
        "use moe.router=sigmoid",
    )
    _need(
        moe.first_dense < config.model.layers,
        f"{shown('moe.first_dense')} of {shown('model.layers')} leaves no layer for experts",
        "lower it, or set moe.experts=0",
    )
    _divisible(shown, "moe.experts", "parallel.expert")
    _divisible(shown, "moe.ffn_hidden_size", "parallel.expert_tensor")
    if moe.shared_experts:
        wide = moe.shared_experts * moe.ffn_hidden_size
        _need(
            wide % p.tensor == 0,
            f"{shown('moe.shared_experts')} x {shown('moe.ffn_hidden_size')} = {wide} is not divisible by "
            f"{shown('parallel.tensor')}, over which shared experts are split",
            f"use a multiple of {p.tensor} for one of them",
        )
    row = (
        8 if config.training.dtype == "bf16" else 4
    )  # numbers in the 16 bytes that a grouped matmul's rows align to
    width = moe.ffn_hidden_size // p.expert_tensor
    for key, size in (("moe.ffn_hidden_size", width), ("model.hidden_size", config.model.hidden_size)):
        _need(
            not moe.grouped or config.training.dtype == "fp64" or size % row == 0,
            f"{shown(key)} with {shown('moe.grouped')} and {shown('training.dtype')}: on each rank it has to be a "
            f"multiple of {row}, not {size}",
            "change it, or set moe.grouped=false",
        )
    _need(
        p.tensor == 1 or p.sequence,
        f"{shown('parallel.tensor')} with {shown('moe.experts')} needs sequence parallel in Megatron-Core",
        "set parallel.sequence=true",
    )


def _connection(config: Config, shown: Shown) -> None:
    if config.connection.kind in ("sfc", "dfc"):
        _divisible(shown, "model.hidden_size", "connection.n", f" fractions ({shown('connection.kind')})")
    idle = ineffective(config)
    _need(
        config.kernels != "triton" or "kernels" in idle or config.connection.n <= TRITON_STREAMS,
        f"{shown('kernels')} with {shown('connection.n')}: the Triton kernels hold up to {TRITON_STREAMS}",
        "use kernels=auto or torch, or fewer",
    )
    _need(
        config.connection.rms_eps != "added" or "connection.rms_eps" in idle or config.model.norm_eps > 0,
        f"{shown('connection.rms_eps')} with {shown('model.norm_eps')} divides by 0 where a token is 0",
        "use connection.rms_eps=none, whose token of zeros is projected to 0, or raise model.norm_eps",
    )


def _chunks(parallel: Parallel) -> int:
    """Pipeline stages on every rank, second copies (dualpipe) left out."""
    return 2 if parallel.schedule in ("zb_v", "dualpipev") else parallel.virtual or 1  # V: down and up again


def _parallel(config: Config, shown: Shown) -> None:
    m, p = config.model, config.parallel
    interleaved = p.schedule in ("interleaved", "megatron_interleaved")
    _need(
        not interleaved or p.virtual is not None,
        f"{shown('parallel.schedule')} needs chunks to interleave",
        "set parallel.virtual to their number on a rank, 2 or more",
    )
    _need(
        interleaved or p.virtual is None,
        f"{shown('parallel.virtual')}, but {shown('parallel.schedule')} has no chunks to choose",
        "use an interleaved schedule, or set parallel.virtual=null",
    )
    _need(
        not interleaved or p.pipeline > 1,
        f"{shown('parallel.schedule')} interleaves pipeline ranks, but {shown('parallel.pipeline')}",
        f"raise parallel.pipeline, or use parallel.schedule={p.schedule.replace('interleaved', '1f1b')}",
    )
    _need(
        p.schedule != "dualpipe" or p.pipeline % 2 == 0,
        f"{shown('parallel.schedule')} pairs every rank with its mirror, but {shown('parallel.pipeline')} is odd",
        f"the smallest above it that works is {p.pipeline + 1}; dualpipev takes any number",
    )
    _need(
        not p.overlap or p.schedule in ("dualpipe", "dualpipev"),
        f"{shown('parallel.overlap')} pairs forwards with backwards, and {shown('parallel.schedule')} has no pairs",
        "use parallel.schedule=dualpipev or dualpipe",
    )
    _need(
        not (p.overlap and config.moe.experts) or config.moe.dispatcher == "alltoall",
        f"{shown('parallel.overlap')} with {shown('moe.dispatcher')}, which gathers all micro-batches' tokens into "
        "the same buffer of Megatron's: those of the forward and the backward would mix",
        "use moe.dispatcher=alltoall",
    )
    chunks = _chunks(p)
    stages = p.pipeline * chunks
    over = f"{shown('parallel.pipeline')} x {chunks} of {shown('parallel.schedule')}"
    _need(
        m.layers >= stages,
        f"{shown('model.layers')} leaves some of {stages} pipeline stages without a layer ({over})",
        f"use {stages} layers or more, or fewer stages",
    )
    _need(
        m.layers % stages == 0 or not p.schedule.startswith("megatron_"),
        f"{shown('model.layers')} is not divisible over {stages} pipeline stages ({over}), as Megatron's own "
        "schedules need",
        f"use {_multiple(m.layers, stages)} layers, stages that divide {m.layers}, or another schedule",
    )
    _need(
        not p.sequence or p.tensor > 1,
        f"{shown('parallel.sequence')} splits over tensor ranks, but {shown('parallel.tensor')}",
        "raise parallel.tensor, or set parallel.sequence=false",
    )
    if p.sequence:
        _divisible(shown, "data.sequence_length", "parallel.tensor", ", over which the sequence is split")
    _divisible(shown, "model.heads", "parallel.tensor")
    _divisible(shown, "model.ffn_hidden_size", "parallel.tensor")
    groups = m.query_groups or m.heads
    _need(
        m.attention == "mla" or groups % p.tensor == 0 or p.tensor % groups == 0,
        f"{shown('model.query_groups')} is neither a multiple nor a divisor of {shown('parallel.tensor')}",
        f"use a multiple of {p.tensor}",
    )
    _need(
        not p.overlap_param_gather or (distributed_optimizer(config) and p.overlap_grad_reduce),
        f"{shown('parallel.overlap_param_gather')} gathers the distributed optimizer's shards",
        "set parallel.distributed_optimizer=true and parallel.overlap_grad_reduce=true",
    )


def _recompute(config: Config, shown: Shown) -> None:
    r, p, moe = config.recompute, config.parallel, config.moe
    mode, modules = shown("recompute.mode"), shown("recompute.modules")
    _need(
        r.mode != "block" or config.connection.kind != "residual",
        f"{mode} with {shown('connection.kind')}: there is nothing to rebuild, a residual keeps no streams",
        "use recompute.mode=full or selective, or another connection",
    )
    if r.mode == "block" and r.block_length.isdigit():
        stages = p.pipeline * _chunks(p)
        sublayers = 2 * -(-config.model.layers // stages)  # of the longest
        _need(
            int(r.block_length) <= sublayers,
            f"{shown('recompute.block_length')} is longer than a pipeline stage, which has {sublayers} sub-layers "
            f"({shown('model.layers')}, {stages} stages, two sub-layers a layer)",
            f"use 1 to {sublayers}, paper or live",
        )
    _need(
        r.mode != "selective" or bool(r.modules),
        f"{mode} with {modules} recomputes nothing",
        "name modules, for example recompute.modules=[core_attn]",
    )
    _need(
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
    for module in r.modules:
        there, key = has.get(module, (True, ""))
        _need(
            there,
            f"{modules}, but {shown(key)} leaves the model without {module}" if key else "",
            f"leave {module} out",
        )


def _training(config: Config, shown: Shown) -> None:
    o, c = config.optimizer, config.checkpoint
    check_world(config, smallest_world(config))  # a batch that does not fit it fits no larger one
    _need(
        o.lr * max(1.0, config.connection.lr_multiplier, o.weight_decay) <= LARGEST,
        f"{shown('optimizer.lr')} with {shown('connection.lr_multiplier')} and {shown('optimizer.weight_decay')} makes "
        f"products beyond {LARGEST:g}, which 32-bit numbers do not hold",
        "lower them",
    )
    _need(
        len(o.step_decay_at) == len(o.step_decay_to),
        f"{shown('optimizer.step_decay_at')} and {shown('optimizer.step_decay_to')} differ in length",
        "give every share of training its share of the learning rate",
    )
    _need(
        o.schedule != "step" or bool(o.step_decay_at),
        f"{shown('optimizer.schedule')} with {shown('optimizer.step_decay_at')} never decays",
        "give the shares, or use optimizer.schedule=constant",
    )
    _need(
        not (c.resume and c.load),
        f"{shown('checkpoint.resume')} and {shown('checkpoint.load')} both say where to start",
        "give one of them",
    )
    _need(
        not c.resume or config.run.dir is not None,
        f"{shown('checkpoint.resume')} without run.dir",
        "set run.dir to the run directory to continue",
    )


def _fp64(config: Config, shown: Shown) -> None:
    """fp64 exists for tests of equality: Megatron's own pieces stop at fp32, so those are refused."""
    if config.training.dtype != "fp64":
        return
    moe = config.moe
    allowed = {
        "optimizer.clip": (config.optimizer.clip == 0, "0"),  # Megatron asserts 32-bit gradients
        "parallel.distributed_optimizer": (not config.parallel.distributed_optimizer, "false"),
        "moe.grouped": (not (moe.experts and moe.grouped), "false"),  # torch has no 64-bit grouped matmul
        "kernels": (config.kernels != "triton", "torch"),
        "implementation": (config.implementation != "te", "local"),
    }
    unmet = {key: value for key, (holds, value) in allowed.items() if not holds}
    _need(
        not unmet,
        f"{shown('training.dtype')} does not exist for {' and '.join(map(shown, unmet))}",
        "fp64 is for tests; set " + ", ".join(f"{key}={value}" for key, value in unmet.items()),
    )


def _warnings(config: Config, shown: Shown) -> list[str]:
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
    return warnings
