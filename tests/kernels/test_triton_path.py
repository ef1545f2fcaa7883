"""The Triton kernels (in the interpreter where there is no GPU) in fp32: a read with its write against the mathematics,
at odd sizes and extreme logits, and in place of the torch path."""

import pytest
import torch

from hcmegatron.config.schema import Connection
from hcmegatron.connections.build import build_connection
from hcmegatron.connections.expand_contract import expand
from hcmegatron.kernels import torch_hyper, triton_path
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.numpy_warnings import padding_overflows, sigmoids_overflow
from tests.kernels.reference import (
    LARGE_LOGITS,
    VARIANTS,
    compare,
    compare_extreme_logits,
    compare_large_logits,
    in_both_layouts,
    inputs,
    leaf,
    name_of,
    strided,
)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
)
OPTIONS = ReadOptions(4, iterations=4)


@padding_overflows
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_fp32_equals_the_mathematics(options):
    compare(triton_path.read, triton_path.write, options, T=3, C=12, dtype=torch.float32, tolerance=1e-5)


@pytest.mark.parametrize(
    ("T", "C", "n"),
    [
        (0, 8, 4),
        (1, 8, 4),
        (17, 8, 2),
        (33, 8, 3),
        (2, 100, 4),
        (2, 1, 2),
        (2, 130, 5),
        (2, 36, 6),
        (2, 24, 7),
    ],
)
def test_odd_sizes(T, C, n):
    compare(
        triton_path.read, triton_path.write, ReadOptions(n, iterations=3), T, C, torch.float32, tolerance=1e-5
    )


@sigmoids_overflow
@pytest.mark.parametrize(("n", "scale", "seed"), LARGE_LOGITS)
def test_large_logits(n, scale, seed):
    compare_large_logits(triton_path.read, triton_path.write, n, scale, seed)


@sigmoids_overflow
@pytest.mark.parametrize("size", [100.0, 300.0, 1000.0])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_extreme_logits(n, size):
    compare_extreme_logits(triton_path.read, triton_path.write, n, size)


def test_a_token_of_zeros():
    H, phi, s, b = inputs(OPTIONS, T=2, dtype=torch.float32)
    H = torch.zeros_like(H).requires_grad_()
    x, pre, post, res, _ = triton_path.read(H, phi, s, b, OPTIONS)
    grads = torch.autograd.grad(x.sum() + pre.sum() + post.sum() + res.square().sum(), (H, phi, s, b))
    assert all(t.isfinite().all() for t in (x, pre, post, res, *grads))


def test_fp64_is_refused():
    with pytest.raises(ValueError, match="kernels=triton: streams of torch"):
        triton_path.read(*inputs(OPTIONS), OPTIONS)


def test_non_contiguous_streams_and_gradients():
    leaves = inputs(OPTIONS, dtype=torch.float32)
    assert all(leaf(t).is_contiguous() and not strided(t).is_contiguous() for t in leaves)
    results = in_both_layouts(lambda *own: triton_path.read(*own, OPTIONS), leaves)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_results_repeat_bit_for_bit():
    options = ReadOptions(3, iterations=3)
    runs = []
    for _ in range(2):
        leaves = inputs(options, T=40, dtype=torch.float32)
        x, _, post, res, streams = triton_path.read(*leaves, options)
        out = triton_path.write(streams, x.unsqueeze(1), post, res)
        runs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_keeps_what_the_torch_path_keeps():
    """No history of the Sinkhorn iterates: K + 2 + n numbers a token beside the streams."""
    H, phi, s, b = inputs(OPTIONS, T=16, C=32, dtype=torch.float32)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes() // 4) and t,
        lambda t: t,
    ):
        triton_path.read(H, phi, s, b, OPTIONS)
    assert sum(kept.values()) == H.numel() + phi.numel() + s.numel() + b.numel() + 16 * (24 + 2 + 4)


def test_training_with_triton_gives_the_losses_of_torch():
    """A small network in fp32, a few steps: what the choice of kernels must not change."""
    losses = {}
    for kernels in ("torch", "triton"):
        torch.manual_seed(0)
        C, L, conn = 16, 4, Connection(n=3, sinkhorn_iterations=5)
        linears = torch.nn.ModuleList(torch.nn.Linear(C, C) for _ in range(L))
        connections = torch.nn.ModuleList(
            build_connection(conn, C, k, norm_eps=0.0, kernels=kernels) for k in range(L)
        )
        assert connections[0].kernels.name == kernels
        optimizer = torch.optim.SGD([*linears.parameters(), *connections.parameters()], lr=0.3)
        h, target = torch.randn(2, 4, 2, C, generator=torch.Generator().manual_seed(1))
        losses[kernels] = []
        for _ in range(4):
            H = expand(h, conn.n)
            projection = None
            for k, (linear, c) in enumerate(zip(linears, connections, strict=True)):
                x, coefficients = c.read(H, projection)
                following = connections[(k + 1) % L]
                y = torch.tanh(x) @ linear.weight
                H, projection = c.write_and_project(following, H, y, coefficients, linear.bias)
                assert (projection is None) == (kernels == "torch")
            loss = (H.sum(-2) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[kernels].append(loss.item())
    assert losses["torch"][-1] < losses["torch"][0]
    assert losses["triton"] == pytest.approx(losses["torch"], rel=1e-5)


def test_a_single_pass_read_keeps_no_copy_of_the_streams():
    H = torch.randn(5, 4, 8).bfloat16().requires_grad_()
    mix = torch.rand(5, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        x = torch_hyper.mix(H, mix.unsqueeze(1))[0].squeeze(1)  # as triton_path.read has it
    assert kept == [torch.bfloat16, torch.float32]
    plain = torch.bmm(mix.unsqueeze(1), H.float()).squeeze(1).bfloat16()
    dx = torch.randn(5, 8).bfloat16()
    for ours, autograds in zip(
        (x, *torch.autograd.grad(x, (mix, H), dx)),
        (plain, *torch.autograd.grad(plain, (mix, H), dx)),
        strict=True,
    ):
        assert torch.equal(ours, autograds)
