"""The write whose carry is the identity, on both paths, against the one with a matrix that is the identity."""

import pytest
import torch

from hcmegatron.kernels import torch_path, triton_path
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.reference import compare, inputs, leaf, weights_like, write_inputs

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
)
PATHS = {"torch": torch_path, "triton": triton_path}


def results(operation, leaves, res):
    """H', and the gradients of H, y, post and bias."""
    H, y, post, _, bias = (leaf(t) for t in leaves)
    out = operation(H, y, post, res, bias)
    return [out, *torch.autograd.grad(out, [H, y, post, bias], weights_like([out])[0].to(out.dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("n", "T", "C", "shared"), [(1, 3, 12, True), (4, 9, 20, True), (3, 5, 7, False)])
def test_is_the_write_with_an_identity_matrix(path, dtype, n, T, C, shared):
    """Bit for bit where the sums have the same order: products with 1 and 0 round nothing."""
    leaves = write_inputs(n, T, C, dtype, shared)
    plain = results(PATHS[path].write, leaves, None)
    matrix = results(PATHS[path].write, leaves, torch.eye(n).expand(T, n, n))
    for got, want in zip(plain, matrix, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [2, 4])
def test_is_folded_with_the_next_projection(n):
    leaves = write_inputs(n, 9, 20, torch.float32)
    phi = inputs(ReadOptions(n, use_res=False), 9, 20, torch.float32)[1].detach()
    assert phi.shape == (n * 20, 2 * n)
    folded = {}

    def fold(H, y, post, res, bias):
        out, folded["projection"] = triton_path.write_and_project(H, y, post, res, phi, bias)
        return out

    for got, want in zip(results(fold, leaves, None), results(triton_path.write, leaves, None), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    projection, square = folded["projection"]
    out = results(triton_path.write, leaves, None)[0].detach().flatten(1)
    torch.testing.assert_close(projection, out @ phi, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(square, out.square().sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_no_streams_are_kept_or_read(path, dropout):
    """The streams' gradient is that of H', and what backward needs is y and post."""
    H, y, post, _, bias = write_inputs(3, 8, 6, torch.float32)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.data_ptr()) or t, lambda t: t):
        out = PATHS[path].write(H, y, post, None, bias, dropout)
    assert H.data_ptr() not in held
    d = torch.randn_like(out)
    dH, dpost = torch.autograd.grad(out, [H, post], d)
    assert torch.equal(dH, d) and dpost.abs().min() > 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e15])
def test_a_projection_that_nothing_divides(path, size):
    """Of streams of any size: where squares would leave fp32's range too."""
    options = ReadOptions(2, use_res=False, rms_eps="off", post_eps=1e-3)
    H, phi, s, b = inputs(options, T=5, C=12, dtype=torch.float32)
    leaves = [leaf(H * size), leaf(phi / size), s, b]
    read = PATHS[path].read
    x, pre, post, *_ = read(*leaves, options)
    for got, want in zip((x / size, pre, post), read(H, phi, s, b, options), strict=False):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    compare(read, PATHS[path].write, options, dtype=torch.float32, tolerance=1e-5)
