"""Recomputing changes no bit of the loss, the gradients, the updated parameters and the routers' counts."""

import copy
from collections import Counter

import pytest

from hcmegatron.connections.kinds import KINDS as kinds
from tests.ranks import run_ranks
from tests.recompute import workers
from tests.small_configs import small_config

pytestmark = pytest.mark.ranks
KINDS = [kind for kind in kinds if kind != "residual"]  # with something to rebuild
DENSE = ("mhc_lite", "krom")  # alone: mHC's module, with another residual matrix
MICRO_BATCHES = 4


def variants(kind, moe, settings, **sections):
    """The model without recomputation, then with each of the settings."""
    config = small_config(kind, moe, **sections)
    config.model.hidden_dropout = config.model.attention_dropout = 0.1
    made = []
    for values in ({}, *settings):
        made.append(copy.deepcopy(config))
        for key, value in values.items():
            setattr(made[-1].recompute, key, value)
    return made


def run(ranks, configs):
    """Steps of every rank, per config."""
    options = {"preload": ("tests.model.workers",), "timeout": 150}
    return list(zip(*run_ranks(ranks, workers.steps, configs, MICRO_BATCHES, **options), strict=True))


def assert_same_bits(plain, other, case):
    for rank, (a, b) in enumerate(zip(plain, other, strict=True)):
        assert a.loss == b.loss, (case, rank)
        assert a.bits.keys() == b.bits.keys()
        assert b.leaked == 0, (case, rank)
        assert not [name for name, bits in a.bits.items() if bits != b.bits[name]], (case, rank)


BLOCKS = [{"mode": "block"}, {"mode": "block", "block_length": "3"}]
FULL = [{"mode": "full"}]


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_one_rank(moe):
    settings = [*BLOCKS, *FULL]
    cases = {kind: variants(kind, moe, settings) for kind in KINDS if not moe or kind not in DENSE}
    cases["residual"] = variants("residual", moe, FULL)
    cases["norms behind"] = variants("mhc", moe, settings, model={"norm_position": "post"})
    cases["single pass"] = variants("mhc", moe, settings, connection={"single_pass": True})
    cases["bf16"] = variants("mhc", moe, settings, training={"dtype": "bf16"})
    results = iter(run(1, [config for configs in cases.values() for config in configs]))
    for kind, configs in cases.items():
        plain, *others = [next(results) for _ in configs]
        for config, other in zip(configs[1:], others, strict=True):
            assert_same_bits(plain, other, (kind, config.recompute))
            (a,), (b,) = plain, other
            again = 2 if config.recompute.mode == "full" else 1
            assert b.calls == Counter({name: again * count for name, count in a.calls.items()})
            assert min(a.calls.values()) >= MICRO_BATCHES


SCHEDULES = [
    "megatron_1f1b",
    "megatron_interleaved",
    "gpipe",
    "1f1b",
    "interleaved",
    "zb_h1",
    "zb_v",
    "dualpipev",
]


# Two ranks each: every schedule, then the other ways of splitting a model.
LAYOUTS = {
    name: {"pipeline": 2, "schedule": name, "virtual": 2 if "interleaved" in name else None}
    for name in SCHEDULES
}
LAYOUTS["sequence parallel"] = {"tensor": 2, "sequence": True}
LAYOUTS["sequence parallel, selective"] = {"tensor": 2, "sequence": True}
LAYOUTS["expert parallel"] = {"expert": 2}
LAYOUTS["single pass"] = LAYOUTS["dualpipev"]


def test_two_ranks():
    cases = {}
    for name, layout in LAYOUTS.items():
        kind, moe = ("dhc", False) if name == "megatron_1f1b" else ("mhc", True)
        modules = ["core_attn", "mla_up_proj"] if "selective" in name else []
        settings = [{"mode": "block", "block_length": "live", "modules": modules}]
        settings += [{"mode": "selective", "modules": modules}] if modules else FULL
        own = {"connection": {"single_pass": True}} if name == "single pass" else {}
        cases[name] = variants(kind, moe, settings, parallel=layout, **own)
    results = iter(run(2, [config for configs in cases.values() for config in configs]))
    for name, configs in cases.items():
        plain, *others = [next(results) for _ in configs]
        for config, other in zip(configs[1:], others, strict=True):
            assert_same_bits(plain, other, (name, config.recompute))
        for rank in others[0]:
            if (
                name == "single pass"
            ):  # packed messages on their way are held beside it, as many as timing has it
                assert all(m > 0.95 * p for m, p in zip(rank.measured, rank.planned, strict=True)), rank
                continue
            assert rank.measured == pytest.approx(rank.planned, rel=0.05), name


def test_selective_alone_and_with_block():
    modules = {"modules": ["core_attn", "mla_up_proj", "mlp", "shared_experts"]}
    settings = [{"mode": "selective", **modules}, {"mode": "block", **modules}]
    configs = variants("mhc", True, settings)
    plain, *others = run(1, configs)
    for config, other in zip(configs[1:], others, strict=True):
        assert_same_bits(plain, other, config.recompute)
        assert other[0].calls["mlp"] == 2 * plain[0].calls["mlp"]
        assert other[0].calls["experts"] == plain[0].calls["experts"]
