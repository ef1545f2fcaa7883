"""The papers' models: parameter counts to the printed digit, built and counted; each trains, made small."""

import subprocess
import sys

import pytest

from hcmegatron.config.checks import check_config
from hcmegatron.config.load import load_config
from hcmegatron.planner.counts import padded_vocabulary
from hcmegatron.planner.parameters import active_parameters, connection_parameters, total_parameters
from tests.model import counts_workers
from tests.ranks import ROOT, run_ranks

MEGATRON = ("tests.model.workers",)
RESIDUAL = ["--connection.kind=residual"]
# file, overrides -> parameters without connections, to the integer
BASELINES = {
    ("olmo-1b", ()): 1_176_764_416,
    ("olmo-7b", ()): 6_888_095_744,
    ("olmo2-1b", ()): 1_484_916_736,
    ("olmoe-1b-7b", ()): 6_919_161_856,
    ("olmoe-1b-7b", ("--model.norm=rmsnorm_plain",)): 6_919_094_272,
}
# file, kind, n, norm of the predictor -> parameters that the connections add
ADDED = {
    ("olmo-1b", "shc", 2, "layernorm_plain"): 256,
    ("olmo-1b", "shc", 4, "layernorm_plain"): 768,
    ("olmo-1b", "dhc", 2, "layernorm_plain"): 262_464,
    ("olmo-1b", "dhc", 4, "layernorm_plain"): 394_048,
    ("olmoe-1b-7b", "dhc", 4, "rmsnorm"): 459_584,
    ("olmo-1b", "sfc", 4, "layernorm_plain"): 1_152,
    ("olmo2-1b", "dfc", 4, "rmsnorm"): 165_056,
    ("olmo2-1b", "dfc", 4, "rmsnorm_plain"): 148_672,
    ("olmo-7b", "dhc", 4, "layernorm_plain"): 1_574_528,
}
# file -> (total, active) as mHC's Table 5 prints them, in billions
PRINTED = {"mhc-3b": ("2.97", "0.612"), "mhc-9b": ("9.18", "1.66"), "mhc-27b": ("27.0", "4.14")}
NAMES = ("olmo-1b", "olmo-7b", "olmo2-1b", "olmoe-1b-7b", "mhc-3b", "mhc-9b", "mhc-27b")


def config(name, *overrides):
    loaded = load_config(ROOT / f"configs/{name}.yaml", list(overrides))
    assert check_config(loaded) == []
    return loaded


def counted(loaded):
    return total_parameters(loaded, padded_vocabulary(loaded))


@pytest.mark.parametrize("name, overrides", BASELINES)
def test_baselines_to_the_integer(name, overrides):
    loaded = load_config(ROOT / f"configs/{name}.yaml", [*RESIDUAL, *overrides])
    assert counted(loaded) == BASELINES[name, overrides]


@pytest.mark.parametrize("name, kind, n, norm", ADDED)
def test_connections_to_the_integer(name, kind, n, norm):
    settings = {"kind": kind, "n": n, "norm": norm}
    loaded = load_config(
        ROOT / f"configs/{name}.yaml", [f"--connection.{key}={value}" for key, value in settings.items()]
    )
    assert connection_parameters(loaded) == ADDED[name, kind, n, norm]


@pytest.mark.parametrize("name", PRINTED)
def test_mhc_to_the_printed_digits(name):
    loaded = config(name)
    counts = counted(loaded), active_parameters(loaded, loaded.model.vocab_size)
    for count, printed in zip(counts, PRINTED[name], strict=True):
        digits = len(printed.split(".")[1])
        # 27.05 B rounds to 27.0 only towards zero: the paper cuts
        assert f"{count / 1e9:.{digits}f}" == printed or f"{int(count / 1e8) / 10:.1f}" == printed


def test_counting_needs_no_torch():
    code = "import sys, hcmegatron.planner.parameters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.ranks
def test_built_models_have_the_counted_parameters():
    configs = [config(path.stem) for path in sorted((ROOT / "configs").glob("*.yaml"))] + [
        load_config(ROOT / f"configs/{name}.yaml", [*RESIDUAL, *overrides]) for name, overrides in BASELINES
    ]
    configs.append(
        config("mhc-3b", "--connection.contract=head", "--mla.q_rank=700", "--model.norm=layernorm")
    )
    (built,) = run_ranks(1, counts_workers.built, configs, preload=MEGATRON)
    assert built == [counted(loaded) for loaded in configs]


def shrunk(name):
    """The same architecture, small: every kind of layer that the model has is there."""
    settings = {
        "model.layers": 2,
        "model.hidden_size": 64,
        "model.heads": 4,
        "model.ffn_hidden_size": 96,
        "model.vocab_size": 384,
        "data.sequence_length": 16,
        "training.global_batch": 4,
        "training.micro_batch": 2,
        "optimizer.warmup_steps": 0,
    }
    if name.startswith("mhc"):
        settings |= {"model.head_dim": 16, "mla.kv_rank": 24, "mla.rope_dim": 8, "moe.experts": 8}
        settings |= {"moe.top_k": 3, "moe.ffn_hidden_size": 32}
    if name.startswith("olmoe"):
        del settings["model.ffn_hidden_size"]
        settings |= {"moe.experts": 8, "moe.top_k": 3, "moe.ffn_hidden_size": 32}
    return config(name, *(f"--{key}={value}" for key, value in settings.items()))


@pytest.mark.ranks
def test_shrunk_models_train():
    (found,) = run_ranks(
        1,
        counts_workers.two_steps,
        [shrunk(name) for name in NAMES],
        preload=MEGATRON,
        timeout=120,
    )
    for name, (losses, moved, parameters) in zip(NAMES, found, strict=True):
        assert losses[2] < losses[0], name
        assert moved == parameters, name
