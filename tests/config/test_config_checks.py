"""Settings that do not fit together: refused with both keys named, or warned of where one has no effect."""

import pytest

from hcmegatron.config import (
    Config,
    ConfigError,
    check_batch,
    check_config,
    check_world,
    load_config,
    read_config,
)
from hcmegatron.config.ranges import RANGE_OF
from hcmegatron.config.schema import distributed_optimizer
from hcmegatron.config.types import leaves


def make(*settings):
    """A Config with `section.key=value` settings, through the same door as a user's."""
    return load_config(make.file, [f"--{text}" for text in settings])


@pytest.fixture(autouse=True)
def _file(tmp_path):
    make.file = tmp_path / "c.yaml"
    make.file.write_text("{}")


def test_the_defaults_are_fine_and_silent():
    assert check_config(Config()) == []


def test_every_number_has_a_range():
    numbers = {key for key, hint in leaves().items() if hint in (int, float, int | None, float | None)}
    lists = {"optimizer.step_decay_at", "optimizer.step_decay_to", "data.suffixes", "recompute.modules"}
    lists |= {"run.observers"}
    assert set(RANGE_OF) == numbers | lists | {"recompute.block_length"}


def test_ranges_hold_for_configs_built_in_code_too():
    config = Config()
    config.model.layers = 0
    with pytest.raises(ConfigError, match=r"model\.layers = 0 is out of range; it must be from 1"):
        check_config(config)


def test_optimizer_state_is_sharded_with_bf16_or_where_it_is_said():
    assert [distributed_optimizer(make(f"training.dtype={name}")) for name in ("fp32", "bf16")] == [
        False,
        True,
    ]
    said = ["training.dtype=bf16", "parallel.distributed_optimizer=false"]
    assert distributed_optimizer(make(*said)) is False
    assert distributed_optimizer(make("parallel.distributed_optimizer=true")) is True


INTERLEAVED = "parallel.schedule=megatron_interleaved"
MOE = ["moe.experts=8", "moe.first_dense=1"]
SEQUENCE = ["parallel.tensor=2", "parallel.sequence=true"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.hidden_size=130"], ["model.hidden_size = 130", "model.heads = 4", "128 or 132"]),
        (["model.hidden_size=12"], ["odd size 3"]),
        (["model.head_dim=33"], ["model.head_dim = 33", "odd"]),
        (["model.query_groups=3"], ["model.heads = 4", "model.query_groups = 3"]),
        (["model.attention=mla", "mla.rope_dim=15"], ["mla.rope_dim = 15", "odd"]),
        (
            ["model.attention=mla", "mla.kv_rank=63", "parallel.tensor=2"],
            ["mla.kv_rank = 63", "mla.rope_dim = 16", "parallel.tensor = 2", "sum 78 or 80"],
        ),
        (["model.attention=mla", "mla.q_rank=13", "parallel.tensor=2"], ["mla.q_rank = 13", "12 or 14"]),
        (
            ["connection.kind=dfc", "connection.n=3"],
            ["model.hidden_size = 128", "connection.n = 3", "fractions"],
        ),
        (["connection.kind=sfc", "connection.n=5"], ["connection.n = 5", "sfc"]),
        (["kernels=triton", "connection.n=9"], ["kernels = triton", "connection.n = 9", "hold up to 8"]),
        (
            ["connection.rms_eps=added", "model.norm_eps=0"],
            ["connection.rms_eps = added", "model.norm_eps = 0", "divides by 0"],
        ),
        (["model.layers=5", "parallel.pipeline=2"], ["model.layers = 5", "parallel.pipeline = 2", "4 or 6"]),
        (["parallel.pipeline=2", "parallel.virtual=4", INTERLEAVED], ["8 pipeline stages", "x 4 of"]),
        (["parallel.pipeline=2147483647"], ["parallel.pipeline = 2147483647 is out of range", "to 10000"]),
        (["parallel.virtual=20000000", "parallel.pipeline=2", INTERLEAVED], ["parallel.virtual", "to 10000"]),
        (
            ["parallel.virtual=10000", "parallel.pipeline=10000", "model.layers=10000", INTERLEAVED],
            ["100000000 pipeline stages"],
        ),
        (
            ["model.layers=3", "parallel.pipeline=2", "parallel.schedule=dualpipev"],
            ["model.layers = 3", "4 pipeline stages", "use 4 layers or more"],
        ),
        (
            ["parallel.pipeline=4", "parallel.schedule=zb_v"],
            ["8 pipeline stages", "x 2 of parallel.schedule = zb_v"],
        ),
        (["parallel.virtual=2", INTERLEAVED], ["pipeline = 1", "parallel.schedule=megatron_1f1b"]),
        (["parallel.virtual=2", "parallel.schedule=interleaved"], ["pipeline = 1", "parallel.schedule=1f1b"]),
        (["parallel.pipeline=2", INTERLEAVED], ["megatron_interleaved", "set parallel.virtual"]),
        (
            ["parallel.pipeline=2", "parallel.virtual=2"],
            ["parallel.virtual = 2", "megatron_1f1b", "virtual=null"],
        ),
        (["parallel.pipeline=2", "parallel.virtual=2", "parallel.schedule=zb_v"], ["parallel.virtual = 2"]),
        (["recompute.block_length=0"], ["recompute.block_length = 0", "at least 1"]),
        (["recompute.block_length=2.5"], ["recompute.block_length = 2.5", "whole number"]),
        (["recompute.block_length=-3"], ["recompute.block_length = -3", "at least 1"]),
        (
            ["recompute.mode=block", "recompute.block_length=9"],
            ["block_length = 9", "8 sub-layers", "use 1 to 8"],
        ),
        (
            ["recompute.mode=block", "recompute.block_length=5", "parallel.pipeline=2"],
            ["block_length = 5", "4 sub-layers", "2 stages"],
        ),
        (
            ["recompute.mode=block", "connection.kind=residual", "connection.n=1"],
            ["recompute.mode = block", "connection.kind = residual", "nothing to rebuild"],
        ),
        (["recompute.mode=selective"], ["recompute.mode = selective", "recompute.modules = []"]),
        (["recompute.mode=full", "recompute.modules=[mlp]"], ["recompute.mode = full", "['mlp']"]),
        (["recompute.modules=[mlp]"], ["recompute.mode = none", "recompute.modules"]),
        (
            ["recompute.mode=selective", "recompute.modules=[mla_up_proj]"],
            ["mla_up_proj", "model.attention = gqa"],
        ),
        (["recompute.mode=selective", "recompute.modules=[moe_act]"], ["moe_act", "core_attn, mla_up_proj"]),
        (["recompute.mode=block", "recompute.modules=[mlp, mlp]"], ["each once"]),
        (
            ["recompute.mode=block", "recompute.modules=[shared_experts]"],
            ["shared_experts", "moe.experts = 0"],
        ),
        (["training.global_batch=10"], ["training.global_batch = 10", "training.micro_batch = 4", "8 or 12"]),
        (["training.micro_batch=32"], ["training.global_batch = 16", "use 32"]),
        (
            [*MOE, "parallel.expert=4", "training.global_batch=8"],
            ["training.global_batch = 8", "data-parallel size 4 = 16", "use 16"],
        ),
        (["parallel.sequence=true"], ["parallel.sequence = true", "parallel.tensor = 1"]),
        (
            ["parallel.sequence=true", "parallel.tensor=2", "data.sequence_length=255"],
            ["data.sequence_length = 255", "parallel.tensor = 2"],
        ),
        (["parallel.tensor=3"], ["model.heads = 4", "parallel.tensor = 3"]),
        (["parallel.tensor=4", "model.ffn_hidden_size=510"], ["model.ffn_hidden_size = 510"]),
        (
            ["parallel.tensor=4", "model.heads=12", "model.query_groups=6", "model.hidden_size=144"],
            ["model.query_groups = 6", "parallel.tensor = 4"],
        ),
        (["parallel.expert=2"], ["parallel.expert = 2", "moe.experts = 0"]),
        (["parallel.expert_tensor=2"], ["parallel.expert_tensor = 2", "moe.experts = 0"]),
        ([*MOE, "parallel.expert=3"], ["moe.experts = 8", "parallel.expert = 3"]),
        (
            [*MOE, "moe.shared_experts=1", "moe.ffn_hidden_size=9", "moe.grouped=false", *SEQUENCE],
            ["moe.shared_experts = 1 x moe.ffn_hidden_size = 9", "parallel.tensor = 2"],
        ),
        ([*MOE, "moe.top_k=9"], ["moe.top_k = 9", "moe.experts = 8"]),
        ([*MOE, "moe.top_k=1", "moe.router=softmax"], ["moe.top_k = 1", "moe.router=sigmoid"]),
        (["moe.experts=8", "moe.first_dense=4"], ["moe.first_dense = 4", "model.layers = 4"]),
        ([*MOE, "parallel.expert_tensor=3"], ["moe.ffn_hidden_size = 128", "parallel.expert_tensor = 3"]),
        ([*MOE, "parallel.tensor=2"], ["parallel.tensor = 2", "parallel.sequence=true"]),
        (
            ["optimizer.lr=1e20", "connection.lr_multiplier=1e20"],
            ["optimizer.lr = 1e+20", "lr_multiplier = 1e+20"],
        ),
        (["training.threads=2000"], ["training.threads = 2000", "from 1 to 1024"]),
        (["optimizer.step_decay_at=[0.8]"], ["optimizer.step_decay_at = [0.8]", "differ in length"]),
        (
            ["optimizer.schedule=step", "optimizer.step_decay_at=[]", "optimizer.step_decay_to=[]"],
            ["never decays"],
        ),
        (["checkpoint.resume=true"], ["checkpoint.resume = auto", "run.dir"]),
        (["checkpoint.resume=true", "run.dir=x", "checkpoint.load=y"], ["checkpoint.load = y"]),
        (
            ["training.dtype=bf16", "moe.experts=4", "moe.ffn_hidden_size=12"],
            ["moe.ffn_hidden_size = 12", "multiple of 8", "moe.grouped=false"],
        ),
        (["parallel.overlap_param_gather=true"], ["parallel.distributed_optimizer=true"]),
        (
            ["parallel.pipeline=2", "parallel.schedule=1f1b", "parallel.overlap=true"],
            ["parallel.overlap = true", "parallel.schedule = 1f1b", "dualpipev"],
        ),
        (
            [
                *MOE,
                "parallel.pipeline=2",
                "parallel.schedule=dualpipev",
                "parallel.overlap=true",
                "moe.dispatcher=allgather",
            ],
            ["moe.dispatcher = allgather", "moe.dispatcher=alltoall"],
        ),
        (
            ["parallel.pipeline=3", "parallel.schedule=dualpipe", "model.layers=6"],
            [
                "parallel.schedule = dualpipe",
                "parallel.pipeline = 3",
                "the smallest above it that works is 4",
            ],
        ),
        (
            ["training.dtype=fp64"],
            ["training.dtype = fp64", "optimizer.clip = 1.0", "tests", "optimizer.clip=0"],
        ),
        (
            ["training.dtype=fp64", "optimizer.clip=0", "kernels=triton"],
            ["kernels = triton", "kernels=torch"],
        ),
        (["training.dtype=fp64", "optimizer.clip=0", *MOE], ["moe.grouped = true", "moe.grouped=false"]),
        (["training.dtype=fp64", "optimizer.clip=0", "implementation=te"], ["implementation=local"]),
        (
            ["training.dtype=fp64", "optimizer.clip=0", "parallel.distributed_optimizer=true"],
            ["parallel.distributed_optimizer=false"],
        ),
    ],
)
def test_contradictions(settings, words):
    with pytest.raises(ConfigError) as caught:
        check_config(make(*settings))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        ["model.hidden_size=130", "model.head_dim=32"],
        ["connection.kind=dfc", "connection.n=8"],
        ["connection.kind=mhc", "connection.n=3"],
        ["connection.n=9"],
        ["kernels=triton", "connection.n=8"],
        [
            "connection.kind=shc",
            "connection.contract=head",
            "connection.rms_eps=inside",
            "connection.pre_eps=1e-6",
        ],
        ["connection.use_pre=false", "connection.contract=head", "connection.pre_eps=1e-6"],
        ["parallel.pipeline=2", "parallel.virtual=2", INTERLEAVED],
        ["parallel.pipeline=2", "parallel.virtual=2", "parallel.schedule=interleaved"],
        ["parallel.pipeline=2", "parallel.schedule=dualpipev"],
        ["parallel.pipeline=2", "parallel.schedule=dualpipe", "model.layers=2"],
        [
            "parallel.tensor=2",
            "parallel.sequence=true",
            *MOE,
            "parallel.expert=4",
            "parallel.expert_tensor=2",
        ],
        ["model.query_groups=2", "parallel.tensor=4"],
        ["training.dtype=fp64", "optimizer.clip=0", *MOE, "moe.grouped=false"],
        [*MOE, "model.attention=mla", "parallel.pipeline=2"],
    ],
)
def test_fitting_settings_pass(settings):
    assert check_config(make(*settings)) == []


@pytest.mark.parametrize(
    ("settings", "key", "reason"),
    [
        (["connection.kind=residual", "connection.n=4"], "connection.n = 4", "connection.kind is residual"),
        (["connection.kind=residual", "kernels=triton"], "kernels = triton", "connection.kind is residual"),
        (["connection.tanh=false"], "connection.tanh = false", "connection.kind is mhc"),
        (["connection.kind=shc", "connection.alpha_init=1"], "connection.alpha_init = 1.0", "shc"),
        (["connection.kind=sfc", "connection.contract=mean"], "connection.contract = mean", "sfc"),
        (
            ["connection.kind=dhc", "connection.sinkhorn_iterations=3"],
            "connection.sinkhorn_iterations = 3",
            "dhc",
        ),
        (
            ["connection.use_res=false", "connection.sinkhorn_eps=clamp"],
            "sinkhorn_eps = clamp",
            "use_res is false",
        ),
        (["connection.kind=shc", "connection.rms_eps=added", "model.norm_eps=0"], "rms_eps = added", "shc"),
        (["connection.kind=sfc", "connection.contract=head"], "connection.contract = head", "sfc"),
        (
            [
                "connection.use_pre=false",
                "connection.use_post=false",
                "connection.use_res=false",
                "connection.alpha_init=1",
            ],
            "connection.alpha_init = 1.0",
            "use_pre, use_post and use_res are false",
        ),
        (["mla.kv_rank=32"], "mla.kv_rank = 32", "model.attention is gqa"),
        (["model.attention=mla", "model.query_groups=2"], "model.query_groups = 2", "attention is mla"),
        (["moe.top_k=4"], "moe.top_k = 4", "moe.experts is 0"),
        (
            ["moe.experts=8", "model.ffn_hidden_size=64"],
            "model.ffn_hidden_size = 64",
            "every layer has experts",
        ),
        (
            [*MOE, "moe.router=softmax", "moe.expert_bias_rate=0.1"],
            "moe.expert_bias_rate",
            "router is softmax",
        ),
        (["optimizer.step_decay_at=[0.5, 0.6]"], "optimizer.step_decay_at", "schedule is cosine"),
        (["optimizer.schedule=constant", "optimizer.min_lr_ratio=0"], "min_lr_ratio", "schedule is constant"),
        (["data.suffixes=[.c]"], "data.suffixes", "data.paths is empty"),
        (["data.holdout=0", "training.eval_batches=2"], "training.eval_batches = 2", "data.holdout is 0"),
        (["training.steps=10"], "optimizer.warmup_steps = 20", "never reaches optimizer.lr = 0.003"),
    ],
)
def test_what_has_no_effect_is_said(settings, key, reason):
    config, sources = read_config(make.file, [f"--{text}" for text in settings])
    (warning,) = check_config(config, sources)
    assert key in warning and reason in warning


def test_errors_and_warnings_name_the_place():
    make.file.write_text("model:\n  hidden_size: 130\n")
    with pytest.raises(ConfigError, match=r"model\.hidden_size = 130 \(.*c\.yaml:2\) is not divisible"):
        check_config(*read_config(make.file))
    make.file.write_text("connection:\n  kind: residual\n  n: 4\n")
    (warning,) = check_config(*read_config(make.file))
    assert "c.yaml:3" in warning


def test_world_sizes():
    config = make("parallel.pipeline=2", "parallel.tensor=2")
    assert [check_world(config, size) for size in (4, 8, 16)] == [1, 2, 4]
    with pytest.raises(ConfigError, match=r"world size 6 is not a multiple of 4.*start 4 or 8 ranks"):
        check_world(config, 6)
    with pytest.raises(ConfigError, match=r"world size 2 .*start 4 ranks"):
        check_world(config, 2)
    with pytest.raises(ConfigError, match="data-parallel size 3 = 12; use 12 or 24"):
        check_world(config, 12)


def test_world_sizes_with_experts():
    config = make(*MOE, "parallel.pipeline=2", "parallel.expert=4")
    assert check_world(config, 8) == 4
    with pytest.raises(ConfigError, match=r"world size 4 is not a multiple of 8.*parallel\.expert = 4"):
        check_world(config, 4)


def test_microbatches():
    assert check_batch(make("training.global_batch=24"), 2) == 3
    config = make("parallel.pipeline=2", "parallel.virtual=2", INTERLEAVED)
    with pytest.raises(ConfigError, match=r"makes 1 micro-batches a rank.*takes multiples of 2.*use 32; "):
        check_batch(config, 4)
    config = make("parallel.pipeline=2", "parallel.schedule=dualpipe")
    assert check_batch(config, 1) == 4
    with pytest.raises(ConfigError, match=r"makes 2 micro-batches a rank.*of 32 or more"):
        check_batch(config, 2)
    config.training.global_batch = 20
    with pytest.raises(
        ConfigError, match=r"makes 5 micro-batches.*use 16 or 24; the smallest that works is 16"
    ):
        check_batch(config, 1)
    config = make("parallel.pipeline=2", "parallel.schedule=dualpipev")
    assert check_batch(config, 1) == 4
    with pytest.raises(ConfigError, match=r"makes 2 micro-batches a rank.*of 32 or more"):
        check_batch(config, 2)
