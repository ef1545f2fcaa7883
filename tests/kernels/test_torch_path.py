"""The torch path against the mathematics in fp64: every variant, every gradient, and what it keeps."""

import pytest
import torch
from reference import (
    LARGE_LOGITS,
    VARIANTS,
    compare,
    compare_extreme_logits,
    compare_large_logits,
    in_both_layouts,
    inputs,
    name_of,
    write_inputs,
)
from reference import write as exact_write

from hcmegatron.kernels import torch_path
from hcmegatron.kernels.options import ReadOptions


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_equals_the_mathematics(options):
    compare(torch_path.read, torch_path.write, options)


@pytest.mark.parametrize("n", range(1, 9))
def test_fp32(n):
    compare(torch_path.read, torch_path.write, ReadOptions(n), dtype=torch.float32, tolerance=1e-5)


@pytest.mark.parametrize(("n", "scale", "seed"), LARGE_LOGITS)
def test_large_logits(n, scale, seed):
    compare_large_logits(torch_path.read, torch_path.write, n, scale, seed)


@pytest.mark.parametrize("size", [100.0, 300.0, 1000.0])
@pytest.mark.parametrize("n", [2, 4, 5, 6, 7, 8])
def test_extreme_logits(n, size):
    compare_extreme_logits(torch_path.read, torch_path.write, n, size)


@pytest.mark.parametrize("T", [0, 1])
def test_few_tokens(T):
    compare(torch_path.read, torch_path.write, ReadOptions(4), T=T)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("n", range(2, 9))
def test_row_sums_on_the_bf16_path(n, scale):
    leaves = inputs(ReadOptions(n), T=64, dtype=torch.bfloat16, scale=scale)
    res = torch_path.read(*leaves, ReadOptions(n))[3]
    assert (res.double().sum(-1) - 1).abs().max() <= 1e-6


def test_non_contiguous_streams_and_gradients():
    results = in_both_layouts(lambda *own: torch_path.read(*own, ReadOptions(3)), inputs(ReadOptions(3)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_write_of_non_contiguous_tensors_and_gradients(shared):
    results = in_both_layouts(torch_path.write, write_inputs(4, 7, 12, shared=shared))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("use", ["x only", "coefficients only", "write only"])
def test_outputs_that_reach_no_loss(use):
    options = ReadOptions(3)
    H, phi, scale, bias = inputs(options)
    x, pre, post, res, H2 = torch_path.read(H, phi, scale, bias, options)
    out = {
        "x only": x,
        "coefficients only": pre.square().sum() + post.sum() + res.square().sum(),
        "write only": H2,
    }[use]
    grads = torch.autograd.grad(out.sum(), (H, phi, scale, bias))
    assert all(g.isfinite().all() for g in grads) and grads[0].abs().max() > 0


def test_keeps_the_streams_once_and_little_else():
    """Per token: K + 1 + n numbers beside H for the read, y and n + n^2 for the write."""
    options = ReadOptions(4)
    H, phi, scale, bias = inputs(options, T=64, C=32)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t.numel()) and t, lambda t: t
    ):
        x, _, post, res, streams = torch_path.read(H, phi, scale, bias, options)
        torch_path.write(streams, x.unsqueeze(1), post, res)
    parameters = phi.numel() + scale.numel() + bias.numel()
    assert sum(kept.values()) == H.numel() + parameters + 64 * (24 + 1 + 4 + 32 + 4 + 16)


@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_write_of_hc_and_fc(shared):
    leaves = write_inputs(3, 5, 6, shared=shared)
    torch.testing.assert_close(torch_path.write(*leaves), exact_write(*leaves))
    assert torch.autograd.gradcheck(torch_path.write, leaves)
