"""The Triton write (in the interpreter where there is no GPU) against the mathematics: of HC and FC, with dropout, and
folded with the projection of the next read."""

import pytest
import torch

from hcmegatron.kernels import torch_path, triton_path
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.reference import close, exact_copies, in_both_layouts, inputs, weights_like, write_inputs
from tests.kernels.reference import write as exact_write

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
)
OPTIONS = ReadOptions(4, iterations=4)


@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("n", "T", "C"), [(3, 6, 20), (8, 5, 36)])
def test_write_of_hc_and_fc(n, T, C, with_bias, shared):
    leaves = write_inputs(n, T, C, torch.float32, shared, with_bias)
    exact = exact_copies(leaves)
    ours, truth = triton_path.write(*leaves), exact_write(*exact)
    close(ours, truth, 1e-5)
    (weight,) = weights_like([truth])
    followed = slice(None, None if with_bias else 4)
    grads = torch.autograd.grad((ours * weight).sum(), leaves[followed])
    for got, want in zip(grads, torch.autograd.grad((truth * weight).sum(), exact[followed]), strict=True):
        close(got, want, 1e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_write_of_non_contiguous_tensors_and_gradients(shared):
    leaves = write_inputs(4, 7, 12, torch.float32, shared)
    assert all(torch.equal(a, b) for a, b in zip(*in_both_layouts(triton_path.write, leaves), strict=True))
    H, _, _, res, _ = leaves
    (grad,) = torch.autograd.grad(triton_path.write(*leaves).sum(), H)  # an expanded gradient, strides 0
    torch.testing.assert_close(grad, res.sum(1).unsqueeze(-1).expand_as(grad))


def test_static_coefficients_sum_their_gradient_over_tokens():
    H, y = torch.randn(5, 2, 8), torch.randn(5, 1, 8)
    post, res = torch.rand(2).requires_grad_(), torch.rand(2, 2).requires_grad_()
    grads = [
        torch.autograd.grad(write(H, y, post.expand(5, 2), res.expand(5, 2, 2)).square().sum(), (post, res))
        for write in (triton_path.write, torch_path.write)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_dropout():
    """Kept elements are scaled, the share is right, backward uses the same elements, and the seed decides."""
    T, C, p = 64, 64, 0.25
    H, post, res = torch.zeros(T, 1, C), torch.ones(T, 1), torch.ones(T, 1, 1)
    y, bias = torch.ones(T, 1, C, requires_grad=True), torch.ones(1, C, requires_grad=True)
    torch.manual_seed(1)
    out = triton_path.write(H, y, post, res, bias, p)
    kept = out != 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 2 / (1 - p)))
    assert abs(kept.float().mean() - (1 - p)) < 4 * (p * (1 - p) / (T * C)) ** 0.5
    dy, dbias = torch.autograd.grad(out.sum(), (y, bias))
    torch.testing.assert_close(dy, kept / (1 - p))
    torch.testing.assert_close(dbias, dy.sum(0))
    torch.manual_seed(1)
    assert torch.equal(triton_path.write(H, y, post, res, bias, p), out)
    assert not torch.equal(triton_path.write(H, y, post, res, bias, p), out)


@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
@pytest.mark.parametrize("fold", [False, True])
def test_dropout_in_every_gradient(fold, shared):
    """Against the mathematics with the mask that the same seed gives, read off from streams of zeros."""
    n, T, C, p = 3, 9, 20, 0.25
    leaves = write_inputs(n, T, C, torch.float32, shared)
    H, y, post, res, bias = leaves
    torch.manual_seed(1)
    shown = triton_path.write(
        torch.zeros_like(H), torch.ones_like(y), torch.ones_like(post), torch.zeros_like(res), None, p
    )
    mask = (shown[:, : y.shape[1]] != 0).double() / (1 - p)
    assert 0 < (mask == 0).sum() < mask.numel() / 2
    exact = exact_copies(leaves)
    truth = exact_write(exact[0], (exact[1] + exact[4]) * mask, *exact[2:4])
    torch.manual_seed(1)
    if fold:
        phi = inputs(ReadOptions(n), T, C, torch.float32)[1]
        out, (projection, _) = triton_path.write_and_project(*leaves[:4], phi, bias, p)
        close(projection, truth.flatten(1) @ phi.double(), 1e-5)
    else:
        out = triton_path.write(*leaves, p)
    close(out, truth, 1e-5)
    (weight,) = weights_like([truth])
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    for got, want in zip(grads, torch.autograd.grad((truth * weight).sum(), exact), strict=True):
        close(got, want, 1e-5)


@pytest.mark.parametrize(("shared", "with_bias"), [(True, False), (True, True), (False, True)], ids=str)
@pytest.mark.parametrize(
    ("n", "T", "C"),
    [
        (1, 3, 12),
        (2, 17, 100),
        (3, 1, 7),
        (4, 0, 8),
        (4, 33, 20),
        (5, 2, 36),
        (6, 2, 1),
        (7, 2, 130),
        (8, 3, 24),
    ],
)
def test_fold_equals_the_mathematics(n, T, C, shared, with_bias):
    """H' and what the next read starts with: its projection and its sum of squares."""
    leaves = write_inputs(n, T, C, torch.float32, shared, with_bias)
    phi = inputs(ReadOptions(n), T, C, torch.float32)[1]
    out, (projection, square) = triton_path.write_and_project(*leaves[:4], phi, leaves[4])
    truth = exact_write(*exact_copies(leaves))
    close(out, truth, 1e-5)
    close(projection, truth.flatten(1) @ phi.double(), 1e-5)
    close(square, truth.flatten(1).square().sum(1), 1e-5)
    assert not projection.requires_grad and not square.requires_grad


def test_fold_is_the_unfolded_pair():
    """write_and_project then read, against write then read: the same H', and the same x and gradients to
    rounding."""
    H, phi, s, b = inputs(OPTIONS, T=5, dtype=torch.float32)
    y, post, res = torch.randn(5, 1, 12), torch.rand(5, 4), torch.rand(5, 4, 4)
    weight = torch.randn(5, 4, 12)
    results = []
    for fold in (False, True):
        leaves = [t.detach().requires_grad_() for t in (H, y, post, res, phi, s, b)]
        h, y_, post_, res_, phi_, s_, b_ = leaves
        if fold:
            out, projection = triton_path.write_and_project(h, y_, post_, res_, phi_)
            x, _, post2, res2, streams = triton_path.read(out, phi_, s_, b_, OPTIONS, projection)
        else:
            out = triton_path.write(h, y_, post_, res_)
            x, _, post2, res2, streams = triton_path.read(out, phi_, s_, b_, OPTIONS)
        final = triton_path.write(streams, x.unsqueeze(1).tanh(), post2, res2)
        results.append([out, x, final, *torch.autograd.grad((final * weight).sum(), leaves)])
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
