"""The Triton kernels (in the interpreter where there is no GPU) against the mathematics and the torch
path."""

import pytest
import torch
from reference import (
    LARGE_LOGITS,
    VARIANTS,
    compare,
    compare_extreme_logits,
    compare_large_logits,
    inputs,
    name_of,
)

from hcmegatron.config.schema import Connection
from hcmegatron.connections.build import build_connection, expand
from hcmegatron.kernels import torch_path, triton_path
from hcmegatron.kernels.options import ReadOptions

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
)
OPTIONS = ReadOptions(4, iterations=4)


def leaf(t):
    return t.detach().requires_grad_()


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


# A sigmoid of minus a hundred is 1 / (1 + infinity) = 0.
sigmoids_overflow = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


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


def rounded_once(low, exact, unit):
    """Every entry within half a unit in the last place of the exact one, and fp32's own error."""
    bound = 0.5 * unit * exact.abs() * (1 + 1e-3) + 2e-6 * exact.abs().max().clamp(min=1)
    assert ((low.float() - exact).abs() <= bound).all(), ((low.float() - exact).abs() / bound).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_streams_are_rounded_once(dtype):
    """Each operation, forward and backward, on 16-bit streams is the fp32 computation on the same numbers,
    rounded at the end: half a unit in the last place. Coefficients and parameters' gradients stay fp32, not
    rounded at all."""
    # Triton's interpreter cuts fp32 off to bf16 where a GPU rounds to nearest: a whole unit there.
    unit = torch.finfo(dtype).eps * (2 if dtype == torch.bfloat16 else 1)
    H, phi, s, b = inputs(OPTIONS, T=5, dtype=dtype)
    g = torch.Generator().manual_seed(3)
    y, dx = (torch.randn(5, 12, generator=g).to(dtype) for _ in range(2))
    dH = torch.randn(5, 4, 12, generator=g).to(dtype)

    def run(cast):
        leaves = [leaf(cast(H)), leaf(phi), leaf(s), leaf(b)]
        x, pre, post, res, streams = triton_path.read(*leaves, OPTIONS)
        torch.autograd.backward((x, streams), (cast(dx), cast(dH)))
        held = [leaf(t) for t in (cast(H), cast(y).unsqueeze(1), post, res)]
        out = triton_path.write(*held)
        out.backward(cast(dH))
        streamy = [x, out, leaves[0].grad, held[0].grad, held[1].grad]
        return streamy, [pre, post, res, *(t.grad for t in leaves[1:]), held[2].grad, held[3].grad]

    low, low_wide = run(lambda t: t)
    exact, exact_wide = run(lambda t: t.detach().float())
    for a, e in zip(low, exact, strict=True):
        assert a.dtype == dtype
        rounded_once(a, e, unit)
    for a, e in zip(low_wide, exact_wide, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_row_sums_on_the_bf16_path(scale):
    _, _, _, res, _ = triton_path.read(
        *inputs(ReadOptions(4), T=64, dtype=torch.bfloat16, scale=scale), ReadOptions(4)
    )
    assert (res.sum(-1) - 1).abs().max() <= 1e-6


def test_non_contiguous_streams():
    H, phi, s, b = inputs(OPTIONS, dtype=torch.float32)
    strided = H.detach().mT.contiguous().mT.requires_grad_()
    for a, c in zip(*(triton_path.read(h, phi, s, b, OPTIONS) for h in (H, strided)), strict=True):
        assert torch.equal(a, c)
    y = torch.randn(12, 7, dtype=torch.float32).T.unsqueeze(1)
    post, res = torch.rand(4, 7).T, torch.rand(4, 4, 7).permute(2, 0, 1)
    plain = triton_path.write(H, y.contiguous(), post.contiguous(), res.contiguous())
    assert torch.equal(triton_path.write(strided, y, post, res), plain)
    (grad,) = torch.autograd.grad(plain.sum(), H)  # an expanded gradient, strides 0
    torch.testing.assert_close(grad, (res.sum(1).unsqueeze(-1)).expand_as(grad))


@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_write_of_hc_and_fc(shared, with_bias):
    g = torch.Generator().manual_seed(0)
    n, C, T = 3, 20, 6
    rows = 1 if shared else n
    shapes = [(T, n, C), (T, rows, C), (T, n), (T, n, n), (rows, C)][: 5 if with_bias else 4]
    leaves = [torch.randn(s, generator=g).requires_grad_() for s in shapes]
    weight = torch.randn(T, n, C, generator=g)
    ours = triton_path.write(*leaves)
    theirs = torch_path.write(*leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad((o * weight).sum(), leaves) for o in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fold_is_the_unfolded_pair(dtype):
    """write_and_project then read, against write then read: the same H', and the same x and gradients to
    rounding."""
    H, phi, s, b = inputs(OPTIONS, T=5, dtype=dtype)
    y, post, res = torch.randn(5, 1, 12).to(dtype), torch.rand(5, 4), torch.rand(5, 4, 4)
    weight = torch.randn(5, 4, 12)
    results = []
    for fold in (False, True):
        leaves = [t.detach().requires_grad_() for t in (H, y, post, res, phi, s, b)]
        h, y_, post_, res_, phi_, s_, b_ = leaves
        if fold:
            out, projection = triton_path.write_and_project(h, y_, post_, res_, phi_)
            assert not any(t.requires_grad for t in projection)
            x, _, post2, res2, streams = triton_path.read(out, phi_, s_, b_, OPTIONS, projection)
        else:
            out = triton_path.write(h, y_, post_, res_)
            x, _, post2, res2, streams = triton_path.read(out, phi_, s_, b_, OPTIONS)
        final = triton_path.write(streams, x.unsqueeze(1).tanh(), post2, res2)
        results.append([out, x, final, *torch.autograd.grad((final * weight).sum(), leaves)])
    tolerance = 2e-5 if dtype == torch.float32 else 0.02
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


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
    """No history of the Sinkhorn iterates: K + 1 + n numbers a token beside the streams."""
    H, phi, s, b = inputs(OPTIONS, T=16, C=32, dtype=torch.float32)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t.numel()) and t, lambda t: t
    ):
        triton_path.read(H, phi, s, b, OPTIONS)
    assert sum(kept.values()) == H.numel() + phi.numel() + s.numel() + b.numel() + 16 * (24 + 1 + 4)


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
            H = expand(conn, h)
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
