"""The torch path against the mathematics in fp64: every variant, every gradient, and what it keeps."""

import pytest
import torch

from hcmegatron.kernels import torch_path
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.reference import (
    LARGE_LOGITS,
    VARIANTS,
    compare,
    compare_extreme_logits,
    compare_large_logits,
    exact_copies,
    in_both_layouts,
    inputs,
    name_of,
    rounded_once,
    weights_like,
    write_inputs,
)
from tests.kernels.reference import read as exact_read
from tests.kernels.reference import write as exact_write


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options", [ReadOptions(3), ReadOptions(4, orientation="column_last", rms_eps="inside", eps=1e-2)]
)
def test_16_bit_reads_are_rounded_once(options, dtype):
    leaves = inputs(options, T=33, C=24, dtype=dtype)
    g = torch.Generator().manual_seed(3)
    given = [torch.randn(shape, generator=g).to(dtype) for shape in ((33, 24), (33, options.n, 24))]

    def run(read, leaves):
        x, *coefficients, streams = read(*leaves, options)
        weights = [w.to(c.dtype) for w, c in zip(weights_like(coefficients), coefficients, strict=True)]
        gradients = [w.to(x.dtype) for w in given]
        outputs = (x, *coefficients, streams)
        return x, torch.autograd.grad(outputs, leaves[0], [gradients[0], *weights, gradients[1]])[0]

    exact = run(exact_read, exact_copies(leaves))
    for got, want in zip(run(torch_path.read, leaves), exact, strict=True):
        assert got.dtype == dtype
        rounded_once(got, want)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_16_bit_writes_are_rounded_once(shared, with_bias, dtype, dropout):
    """H' and the gradients of H, y and bias, also where a bias is added and dropout scales."""
    leaves = write_inputs(4, 33, 24, dtype, shared, with_bias)
    H, y, post, res, _ = leaves
    torch.manual_seed(1)
    shown = torch_path.write(
        torch.zeros_like(H), torch.ones_like(y), torch.ones_like(post), torch.zeros_like(res), None, dropout
    )
    mask = (shown[:, : y.shape[1]] != 0).double() / (1 - dropout)
    exact = exact_copies(leaves)
    whole = exact[1] + exact[4] if with_bias else exact[1]
    truth = exact_write(exact[0], whole * mask, *exact[2:4])
    torch.manual_seed(1)
    out = torch_path.write(*leaves, dropout)
    weight = weights_like([truth])[0].to(dtype)
    which = [0, 1, 4] if with_bias else [0, 1]
    grads = torch.autograd.grad(out, [leaves[i] for i in which], weight)
    true_grads = torch.autograd.grad(truth, [exact[i] for i in which], weight.double())
    for got, want in zip((out, *grads), (truth, *true_grads), strict=True):
        assert got.dtype == dtype
        rounded_once(got, want)
