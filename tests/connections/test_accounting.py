"""Counts, widths and rules against the papers' printed integers and against the built modules. No torch in
facts."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from hcmegatron.connections import accounting
from hcmegatron.connections.build import build_connection, build_contract, parameter_of
from hcmegatron.connections.kinds.descriptor import AT_LEAST_1, setting, together
from hcmegatron.connections.kinds.heads import HEADS
from tests.connections.small_network import KINDS, config, some

PLAIN = {"norm": "rmsnorm_plain"}


@pytest.mark.parametrize(
    ("conn", "printed"),
    [
        (config("shc", n=2), 256),
        (config("shc", n=4), 768),
        (config("dhc", n=2, **PLAIN), 262_464),
        (config("dhc", n=4, **PLAIN), 394_048),
        (config("dhc", n=4), 459_584),
        (config("sfc", n=4), 1_152),
        (config("dfc", n=4), 165_056),
        (config("dfc", n=4, **PLAIN), 148_672),
    ],
)
def test_added_parameters_of_32_connections_as_printed(conn, printed):
    assert 32 * accounting.parameters(conn, 2048) == printed


def test_olmo_7b_dhc4_as_printed():
    assert 64 * accounting.parameters(config("dhc", n=4, **PLAIN), 4096) == 1_574_528


def test_static_flops_as_printed_for_olmo_1b():
    conn = config("shc", n=4)
    assert accounting.flops(conn, 2048) == accounting.paper_flops(conn, 2048) == 2 * 4 * 6 * 2048
    assert accounting.flops(config("dhc", n=4), 2048) == 96 * 2048
    assert accounting.paper_flops(config("dhc", n=4), 2048) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm_plain"])
def test_counts_equal_the_built_module(kind, n, norm):
    conn = some(kind, n, norm=norm)
    module = build_connection(conn, 12, 5, norm_eps=1e-6)
    assert sum(p.numel() for p in module.parameters()) == accounting.parameters(conn, 12)
    assert all(p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("off", ["use_pre", "use_post", "use_res"])
def test_disabled_parts_of_mhc_own_no_parameters(off):
    conn = config("mhc", **{off: False})
    module = build_connection(conn, 8, 0, norm_eps=1e-6)
    assert sum(p.numel() for p in module.parameters()) == accounting.parameters(conn, 8)
    none = config("mhc", use_pre=False, use_post=False, use_res=False)
    assert (
        accounting.parameters(none, 8)
        == 0
        == len(list(build_connection(none, 8, 0, norm_eps=1e-6).parameters()))
    )


def test_mhc_without_its_matrix_costs_what_an_identity_carry_does():
    without, ihc = config("mhc", n=4, use_res=False), config("ihc", n=4)
    assert (
        accounting.flops(without, 96) == accounting.flops(ihc, 96) < accounting.flops(config("mhc", n=4), 96)
    )
    assert accounting.saved_bytes(without, 96, 2) == accounting.saved_bytes(ihc, 96, 2)


def test_contract_head_counts():
    conn = config("mhc", contract="head")
    head = build_contract(conn, 8, norm_eps=1e-6)
    assert sum(p.numel() for p in head.parameters()) == accounting.contract_parameters(conn, 8) == 8 * 16 + 5
    assert accounting.contract_parameters(config("mhc"), 8) == 0
    for kind in ("residual", "sfc", "dfc"):  # no streams, so no head, whatever is asked for
        conn = config(kind, n=2, contract="head")
        assert accounting.contract_parameters(conn, 8) == len(
            list(build_contract(conn, 8, norm_eps=0.0).parameters())
        )
        assert accounting.contract_parameters(conn, 8) == 0 and accounting.contract_flops(conn, 8) == 0


def test_widths():
    kinds = ("residual", "shc", "dhc", "sfc", "dfc", "mhc", "mhc_lite", "krom", "ihc", "gr")
    assert [accounting.streams(config(kind, n=4)) for kind in kinds] == [1, 4, 4, 1, 1, 4, 4, 4, 4, 4]


def test_every_parameter_has_a_weight_decay_rule():
    """HC's and FC's dynamic parts and mHC's projections decay: the papers' rule, parameter by parameter."""
    decayed, spared = set(), set()
    for kind in ("residual", "shc", "dhc", "sfc", "dfc", "mhc", "mhc_lite", "krom", "ihc", "gr"):
        conn = config(kind, n=2, contract="head")
        for module in (build_connection(conn, 8, 0, norm_eps=0.0), build_contract(conn, 8, norm_eps=0.0)):
            for name, parameter in module.named_parameters():
                (decayed if parameter_of(parameter).decays else spared).add(name)
    assert decayed == {"W_m", "W_r", "W_b", "W_alpha", "W_beta", "s_a", "s_b", "phi", "phi_head"} | {
        *("W_d", "W_u", "W_w"),
    }
    assert spared == {
        *("A_m", "A_r", "Y", "A", "B", "norm_weight", "gamma", "alpha_head", "b_head"),
        *("alpha_pre", "alpha_post", "alpha_res", "b_pre", "b_post", "b_res"),
    }
    assert parameter_of(torch.nn.Linear(2, 2).weight) is None


def test_muon_takes_projections_that_are_matrices():
    """The rest is AdamW's: static parts, gates, norms, and projections to one number a token, which are vectors."""
    found = {"matrix": set(), "adamw": set()}
    for kind in ("residual", "shc", "dhc", "sfc", "dfc", "mhc", "mhc_lite", "krom", "ihc", "gr"):
        conn = config(kind, n=2, contract="head")
        for table in (accounting.table(conn, 8), accounting.head_table(conn, 8)):
            for name, parameter in table.items():
                found[parameter.optimizer_role].add(name)
    assert found["matrix"] == {"W_r", "W_alpha", "phi", "phi_head"}
    assert {"A_m", "A_r", "W_m", "W_b", "W_beta", "s_a", "norm_weight", "alpha_pre", "b_res"} <= found[
        "adamw"
    ]


def test_a_setting_means_one_thing():
    @dataclasses.dataclass
    class Another:
        n: int = setting(7, AT_LEAST_1)

    with pytest.raises(ValueError, match="n is defined twice, the second time in Another"):
        together([*accounting.all_settings(), Another])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"kind": "sfc", "n": 5},
            "model.hidden_size = 12 is not divisible by connection.n = 5 fractions (connection.kind = sfc); "
            "use 10 or 15 for model.hidden_size, or a divisor of 12 for connection.n",
        ),
        ({"kind": "mhc", "n": 0}, "connection.n = 0 is out of range; it must be at least 1"),
        (
            {"kind": "mhc_lite", "n": 5},
            "connection.n = 5 streams have 120 permutations, each a column of phi (connection.kind = mhc_lite); "
            "use up to 4 streams, or krom or mhc for connection.kind",
        ),
        (
            {"kind": "krom", "n": 6},
            "connection.n = 6 is no power of two from 2 on (connection.kind = krom); use 4 or 8 for connection.n, "
            "or mhc for connection.kind",
        ),
        (
            {"kind": "krom", "n": 1},
            "connection.n = 1 is no power of two from 2 on (connection.kind = krom); use 2 for connection.n, or mhc "
            "for connection.kind",
        ),
        (
            {"kind": "hc"},
            "connection.kind='hc': choose one of residual, shc, dhc, sfc, dfc, mhc, mhc_lite, krom, ihc, gr",
        ),
        (
            {"kind": "mhc", "contract": "max"},
            "connection.contract='max': choose one of sum, mean, head",
        ),
        (
            {"kind": "mhc", "sinkhorn_iterations": 0},
            "connection.sinkhorn_iterations = 0 is out of range; it must be at least 1",
        ),
        (
            {"kind": "mhc", "pre_eps": -1.0},
            "connection.pre_eps = -1.0 is out of range; it must be 0 or more",
        ),
    ],
)
def test_mistakes_are_named(fields, words):
    with pytest.raises(ValueError) as mistake:
        build_connection(config(**fields), 12, 0, norm_eps=0.0)
    assert str(mistake.value) == words


def test_the_settings_are_those_of_every_kind_and_of_every_head_that_has_some():
    assert accounting.all_settings()[-1] is HEADS["head"].settings
    assert len(accounting.all_settings()) == len(KINDS) + 1


def test_facts_import_no_torch():
    program = "import sys, hcmegatron.connections.accounting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
