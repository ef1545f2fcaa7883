"""What the planner says the network is made of is what Megatron's modules have, name by name and shape by shape."""

import pytest

from hcmegatron.config import Config, check_config, read_config
from hcmegatron.planner import layers
from hcmegatron.planner.buffers import parameters
from hcmegatron.planner.stages import stages
from tests.planner import layer_workers
from tests.ranks import run_ranks

SMALL = """
model: {layers: 2, hidden_size: 16, heads: 4, ffn_hidden_size: 24, vocab_multiple: 1, vocab_size: 261}
mla: {kv_rank: 12, rope_dim: 6}
connection: {kind: mhc, n: 2, contract: head}
"""
MOE = ["--moe.experts=4", "--moe.ffn_hidden_size=20", "--moe.first_dense=1"]
MLA = ["--model.attention=mla", "--model.head_dim=10"]
ARCHITECTURES = {
    "gqa": [],
    "groups, own head size": ["--model.query_groups=2", "--model.head_dim=6", "--model.tie_embeddings=true"],
    "layernorm, gelu, behind": [
        "--model.norm=layernorm",
        "--model.activation=gelu",
        "--model.norm_position=post",
    ],
    "norms of queries and keys": ["--model.qk_norm=true", "--model.norm=layernorm"],
    "across heads": [
        "--model.qk_norm_across_heads=true",
        "--model.norm=rmsnorm_plain",
        "--model.query_groups=2",
    ],
    "mla": [*MLA, "--connection.kind=residual", "--connection.n=1", "--connection.contract=sum"],
    "mla, low-rank queries": [*MLA, "--mla.q_rank=7", "--model.norm=layernorm"],
    "moe": [*MOE, "--moe.shared_experts=2"],
    "hyper": ["--connection.kind=dhc", "--connection.contract=sum"],
    "fractions": ["--connection.kind=dfc", "--connection.contract=sum"],
    "moe, one after another": [*MOE, *MLA, "--moe.grouped=false"],
}


@pytest.fixture
def configs(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    found = [read_config(tmp_path / "small.yaml", overrides)[0] for overrides in ARCHITECTURES.values()]
    for config in found:
        check_config(config)
    return found


def listed(config: Config):
    """By checkpoint key: (numbers, shape without an axis of experts)."""
    vocab = config.model.vocab_size
    found = {
        key: (matrix.size * matrix.count, (matrix.out, matrix.into))
        for key, matrix in layers.matrices(config, vocab).items()
    }
    places = [f"decoder.layers.{layer}." for layer in range(config.model.layers)]
    norms = [(place, norm) for place in places for norm in layers.norms(config)]
    for place, norm in [*norms, ("", layers.final_norm(config))]:
        found |= {f"{place}{norm.key}.{name}": (size, (size,)) for name, size in norm.parameters.items()}
    return found


def by_key(shapes):
    """Parameters under the checkpoint's keys: an expert's is that of all together, whichever module has them."""
    found = {}
    for name, (numbers, shape) in shapes.items():
        head, experts, rest = name.partition("mlp.experts.")
        if experts:
            name = f"{head}mlp.experts.experts.{'.'.join(rest.split('.')[-2:])}"
        found[name] = (found.get(name, (0,))[0] + numbers, shape)
    return found


@pytest.mark.ranks
def test_lists_are_the_built_networks(configs):
    (found,) = run_ranks(1, layer_workers.built, configs, preload=("tests.model.workers",))
    for name, config, (shapes, connections, numbers) in zip(ARCHITECTURES, configs, found, strict=True):
        assert by_key(shapes) == listed(config), name
        (whole,) = stages(config.model.layers, 1)
        assert numbers == [p.numbers for p in parameters(config, config.model.vocab_size, whole)], name
        assert bool(connections) == (config.connection.kind != "residual"), name


def test_what_goes_back_into_the_stream(configs):
    ends = {
        key.split(".", 3)[-1]
        for config in configs
        for key, matrix in layers.matrices(config, 261).items()
        if matrix.into_stream
    }
    assert ends == {
        "self_attention.linear_proj.weight",
        "mlp.linear_fc2.weight",
        "mlp.experts.experts.linear_fc2.weight",
        "mlp.shared_experts.linear_fc2.weight",
    }
