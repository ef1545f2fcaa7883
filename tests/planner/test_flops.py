"""FLOPs of a token: published rows of public models, and small networks counted by hand."""

import pytest

from hcmegatron.config import Config
from hcmegatron.connections import accounting
from hcmegatron.planner.flops import training_flops_per_token
from tests.small_configs import put


def flops(vocab_size, sequence_length, **sections):
    config = Config()
    config.connection.kind = "residual"
    config.data.sequence_length = sequence_length
    return training_flops_per_token(put(config, **sections), vocab_size)


def grouped(layers, hidden_size, heads, groups, ffn_hidden_size=1, head_dim=None):
    names = ("layers", "hidden_size", "heads", "query_groups", "ffn_hidden_size", "head_dim")
    return dict(zip(names, (layers, hidden_size, heads, groups, ffn_hidden_size, head_dim), strict=True))


def experts(experts, top_k, ffn_hidden_size, shared_experts=0, first_dense=0):
    names = ("experts", "top_k", "ffn_hidden_size", "shared_experts", "first_dense")
    return dict(zip(names, (experts, top_k, ffn_hidden_size, shared_experts, first_dense), strict=True))


LATENT = {"layers": 61, "hidden_size": 7168, "heads": 128, "head_dim": 128, "ffn_hidden_size": 18432}
# TFLOP/s and tokens/s of one GPU as printed, whose ratio is the FLOPs of a token: NVIDIA's Megatron Bridge, performance
# summary of 25.11 (DGX-GB300), and for DeepSeek-V3 NeMo AutoModel's of April 2026 (256 H100, without the layers of
# multi-token prediction that Megatron Bridge counts).
PUBLISHED = {
    "Llama 3 8B": (1933, 37556, 128256, 8192, {"model": grouped(32, 4096, 32, 8, 14336)}),
    "Llama 3 70B": (1995, 4440, 128256, 8192, {"model": grouped(80, 8192, 64, 8, 28672)}),
    "Qwen3 30B-A3B": (
        *(666, 28934, 151936, 4096),
        {"model": grouped(48, 2048, 32, 4, head_dim=128), "moe": experts(128, 8, 768)},
    ),
    "Qwen3 235B-A22B": (
        *(792, 5350, 151936, 4096),
        {"model": grouped(94, 4096, 64, 4, head_dim=128), "moe": experts(128, 8, 1536)},
    ),
    "DeepSeek-V3": (
        *(250, 1002, 129280, 4096),
        {
            "model": {**LATENT, "attention": "mla"},
            "mla": {"kv_rank": 512, "q_rank": 1536, "rope_dim": 64},
            "moe": experts(256, 8, 2048, 1, 3),
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows(name):
    """Within what the printed figures are rounded to, and the norms that some count: half a percent."""
    tflops, tokens, vocab_size, length, sections = PUBLISHED[name]
    assert flops(vocab_size, length, **sections) == pytest.approx(tflops * 1e12 / tokens, rel=0.005)


def test_a_dense_network_by_hand():
    """C = 8, two heads of 4 and one group, s = 6, swiglu 10, two layers, 16 tokens.

    Attention 8 x (8 + 8) + 8 x 8 = 192 and MLP 3 x 8 x 10 = 240 a layer, head 8 x 16 = 128: 992 matmul parameters.
    Scores and values, causal: 3 x 2 x 6 x 2 x (4 + 4) = 576. Four residual additions: 3 x 4 x 8 = 96.
    """
    sections = {"model": grouped(2, 8, 2, 1, 10)}
    assert flops(16, 6, **sections) == 6 * 992 + 576 + 96
    # two matmuls of 8 x 10 instead of three; each query head its own keys and values
    assert flops(16, 6, model={**sections["model"], "activation": "gelu"}) == 6 * (992 - 160) + 576 + 96
    assert flops(16, 6, model={**sections["model"], "query_groups": None}) == 6 * (992 + 128) + 576 + 96


def test_latent_attention_with_experts_and_mhc_by_hand():
    """C = 8, two heads with d_qk = 4 + 2 and d_v = 4, s = 6, three layers of which one is dense, gelu, n = 2.

    Attention: queries 8 x 12 = 96, latents 8 x (5 + 2) + 5 x 2 x (4 + 4) = 136, output 8 x 8 = 64. An expert has
    2 x 8 x 6 = 96; two and one shared with the router's 8 x 4 make 320. Dense MLP 2 x 8 x 10 = 160, head 128.
    Together 3 x 296 + 160 + 2 x 320 + 128 = 1816. Scores and values: 3 x 3 x 6 x 2 x (6 + 4) = 1080. A connection
    moves 2 n (n + 2) C = 128 and predicts n + n + n^2 = 8 columns in 2 n C 8 = 256: 384, six times.
    """
    sections = {
        "model": {**grouped(3, 8, 2, None, 10, 4), "activation": "gelu", "attention": "mla"},
        "mla": {"kv_rank": 5, "rope_dim": 2},
        "moe": experts(4, 2, 6, 1, 1),
        "connection": {"kind": "mhc", "n": 2},
    }
    assert flops(16, 6, **sections) == 6 * 1816 + 1080 + 3 * 6 * 384
    # queries through a latent of 3: 3 x (8 + 12) = 60 in place of 96, in three layers
    sections["mla"]["q_rank"] = 3
    assert flops(16, 6, **sections) == 6 * (1816 - 3 * 36) + 1080 + 3 * 6 * 384


def test_a_contraction_by_hand():
    """Four streams of 8: three additions of 8; a head predicts four weights from 32 numbers, then weighs and adds."""
    connection = Config().connection
    for kind, contract, expected in (
        ("mhc", "sum", 3 * 8),
        ("dhc", "mean", 3 * 8),
        ("mhc", "head", 2 * 32 * 4 + 2 * 4 * 8),
        ("residual", "head", 0),
        ("dfc", "sum", 0),
    ):
        connection.kind, connection.contract = kind, contract
        assert accounting.contract_flops(connection, 8) == expected
