"""Every kernel compiled without a GPU for three generations, and what the machine code holds."""

import ast
import json
import os
import subprocess
import sys
from itertools import product

import pytest

from hcmegatron.kernels import tiles
from hcmegatron.kernels.tiles import Key
from tests.ranks import ROOT

LIMIT = {80: 163, 90: 227, 100: 227}  # KiB of shared memory a program may have


def compile_all(*arguments):
    """tools.compile_kernels in a process of its own: in this one the kernels may be interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.compile_kernels", "--json", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


KERNELS = {
    "project",
    "read_forward",
    "write_forward",
    "write_backward",
    "write_fold",
    "read_backward_coefficients",
    "read_backward_streams",
    "read_backward_sums",
}

GATED = {"gated_norm", "gated_mix", "gated_backward_gates", "gated_backward_streams"}


def test_every_kernel_is_launched_or_called_and_those_launched_are_compiled_here():
    """A kernel that is written and not selected, or one whose compiling is forgotten."""
    files = [ast.parse(path.read_text()) for path in (ROOT / "hcmegatron/kernels").glob("*.py")]
    nodes = [node for file in files for node in ast.walk(file)]
    kernels = {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
    }
    launched = {
        ast.unparse(node.func.value).rpartition(".")[2]
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    }
    called = {ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call)}
    assert launched & kernels == KERNELS | GATED
    assert kernels - launched - called == set()


MATRIX = {"project", "read_forward", "write_fold", "read_backward_streams"}  # they multiply by phi
# Bytes a thread that rare tokens take (see read_forward): no tile without them was as fast on an H100.
SPILLED = {"read_forward": 8}


def fits(r):
    """Within the device's limits, nothing spilled, and as many programs on a multiprocessor as splits count on."""
    assert r["shared"] <= LIMIT[r["sm"]] * 1024 and r["registers"] <= 255, r
    assert r["stack"] <= SPILLED.get(r["name"], 0), r
    assert r["per_sm"] >= tiles.rule(Key(r["name"], r["n"], r["C"], 2, r["sm"])).per_sm, r


def one_wave(r):
    """8192 tokens on an H100: where a program takes its time, all are there at once and four fifths of the places are
    taken."""
    if r["name"] in ("project", "write_fold", "read_backward_streams"):
        assert r["waves"] <= 1 and r["programs"] >= 132, r
    if r["name"] in ("write_fold", "read_backward_streams"):
        assert r["waves"] >= 0.8, r


def stream_tiles(r):
    """Tiles of streams, of y and of x that a program loads at a time, each element once a pass, with n streams."""
    n, parts = r["n"], r["n"] if "fc" in r["variant"] else 1
    return {
        "project": 1,  # one stream after the other, in one piece of code
        "read_forward": n,
        "write_forward": n + parts,
        "write_fold": n + parts,
        "write_backward": 2 * n + parts,
        "read_backward_coefficients": n + 1,
        "read_backward_streams": 3 * n + 1,  # the streams once for each of two products
    }[r["name"]]


def whole_sub_layer(reports):
    """Every kernel of mHC is there and as it should be."""
    assert {r["name"] for r in reports} == KERNELS
    assert [r["name"] for r in reports].count("read_forward") == 2  # the second after a fold
    for r in reports:
        fits(r)
        if r["sm"] == 90:
            one_wave(r)
        if r["name"] == "read_backward_sums":
            continue
        assert r["wide_loads"] >= stream_tiles(r) * r["vectors"] > 0, r
        assert (r["tensor_core"] > 0) == (r["name"] in MATRIX), r
        assert r["moved"] <= 1.1 * r["ideal"], r
        if r["name"] in ("write_forward", "write_backward"):
            assert r["wide_loads"] == stream_tiles(r), r  # the rest are coefficients


@pytest.mark.slow
@pytest.mark.parametrize("sm", [80, 100])
def test_the_27b_shape(sm):
    whole_sub_layer(compile_all("--sm", str(sm), "--hidden", "2560", "--variant", "mhc"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "sms", "kernels"),
    [("ihc", ["90"], KERNELS), ("gr", ["80", "90", "100"], GATED | {"write_forward", "write_backward"})],
)
def test_ihc_and_gr_of_the_27b_shape(variant, sms, kernels):
    """ihc runs mHC's kernels; gr's are as they should be: nothing spilled, and no matrix of their own."""
    reports = compile_all("--sm", *sms, "--hidden", "2560", "--variant", variant)
    assert {(str(r["sm"]), r["name"]) for r in reports} == set(product(sms, kernels))
    for r in reports:
        fits(r)
        if r["name"] != "read_backward_sums":
            assert r["wide_loads"] > 0, r
        assert (r["tensor_core"] > 0) == (r["name"] in MATRIX), r


@pytest.mark.slow
def test_every_width_on_hopper_and_the_streams_own_loads():
    """phi is read 16 bytes at a time too, so the streams' loads are counted where nothing else is aligned."""
    narrow = compile_all("--sm", "90", "--hidden", "2560", "--variant", "mhc", "--streams")
    whole_sub_layer(narrow)
    for r in narrow:
        if r["name"] == "read_backward_sums":  # of parts of gradients, no streams
            continue
        assert r["wide_loads"] >= r["stream_loads"] >= stream_tiles(r) * r["vectors"], r
    wide = compile_all("--sm", "90", "--hidden", "4096", "7168", "--variant", "mhc")
    assert [r["C"] for r in wide] == [4096] * len(narrow) + [7168] * len(narrow)
    for r, known in zip(wide, 2 * narrow, strict=True):
        fits(r)
        assert all(r[key] == known[key] for key in ("name", "variant", "wide_loads", "tensor_core")), r


@pytest.mark.slow
def test_fc_bias_and_dropout_on_hopper():
    reports = compile_all("--sm", "90", "--hidden", "2560", "--variant", "fc", "dropout")
    assert {(r["name"], r["variant"]) for r in reports} == {
        *(("write_" + way, v) for way in ("forward", "backward") for v in ("fc bias", "bias dropout")),
        ("write_fold", "bias dropout"),
    }
    for r in reports:
        fits(r)
        assert r["wide_loads"] >= stream_tiles(r) * r["vectors"] > 0, r


@pytest.mark.slow
def test_other_residual_maps_fit_hopper():
    """What makes res of its logits is in two kernels, and in no others; after a fold one of them is another."""
    variants = ["mhc_lite", "krom", "implicit"]
    reports = compile_all("--sm", "90", "--hidden", "2560", "--variant", *variants)
    found = [r["name"] for r in reports]
    assert sorted(found) == sorted(3 * ["read_backward_coefficients", "read_forward", "read_forward"])
    for r in reports:
        fits(r)


@pytest.mark.slow
def test_other_stream_counts_fit_hopper():
    for r in compile_all("--sm", "90", "--hidden", "1280", "--n", "8", "--variant", "mhc", "krom"):
        fits(r)
