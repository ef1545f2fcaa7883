"""The Triton kernels (in the interpreter where there is no GPU) against the mathematics and the torch
path."""

import pytest
import torch

from hcmegatron.config.schema import Connection
from hcmegatron.connections.build import build_connection
from hcmegatron.connections.expand_contract import expand
from hcmegatron.kernels import torch_hyper, torch_path, triton_path
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.reference import (
    LARGE_LOGITS,
    VARIANTS,
    close,
    compare,
    compare_extreme_logits,
    compare_large_logits,
    exact_copies,
    in_both_layouts,
    inputs,
    leaf,
    name_of,
    strided,
    weights_like,
    write_inputs,
)
from tests.kernels.reference import write as exact_write

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
)
OPTIONS = ReadOptions(4, iterations=4)

# A sigmoid of minus a hundred is 1 / (1 + infinity) = 0.
sigmoids_overflow = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def padding_overflows(test):
    """Where an epsilon is added, entries beyond n become infinity times zero and are masked."""
    for what in ("overflow encountered in exp", "invalid value encountered in multiply"):
        test = pytest.mark.filterwarnings(f"ignore:{what}")(test)
    return test


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


def half_unit(dtype):
    """Of the last place, relative. Triton's interpreter cuts fp32 off to bf16 where a GPU rounds to nearest: a
    whole unit there."""
    return torch.finfo(dtype).eps * (1.0 if dtype == torch.bfloat16 else 0.5)


def rounded_once(low, exact, dtype):
    """Every entry of dtype and within its half a unit in the last place of the exact one, and fp32's own error."""
    assert low.dtype == dtype
    bound = half_unit(dtype) * exact.abs() * (1 + 1e-3) + 2e-6 * exact.abs().max().clamp(min=1)
    assert ((low.float() - exact).abs() <= bound).all(), ((low.float() - exact).abs() / bound).max()


def not_rounded(low, exact):
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=1e-5, atol=1e-5)


def in_fp32(t):
    return leaf(t.detach().float())


READS_16_BIT = [
    OPTIONS,
    ReadOptions(3, iterations=4, orientation="deepseek_v4", rms_eps="added", eps=1e-2),
    ReadOptions(4, iterations=4, orientation="column_last", rms_eps="inside", eps=1e-2, pre_eps=1e-2),
    ReadOptions(3, iterations=4, sinkhorn_eps="additive", use_pre=False),
    ReadOptions(5, iterations=4, sinkhorn_eps="clamp", use_post=False),
    ReadOptions(4, use_res=False),
]


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", READS_16_BIT, ids=name_of)
@padding_overflows
def test_16_bit_reads_are_rounded_once(options, dtype, folded):
    """The read on 16-bit streams, forward and backward, is the fp32 computation on the same numbers, rounded at
    the end: half a unit in the last place. Coefficients and parameters' gradients stay fp32, not rounded at all.
    Folded: with the projection that the write of the same streams made, a write that changes nothing."""
    T, C, n = 5, 12, options.n
    H, *parameters = inputs(options, T, C, dtype)
    g = torch.Generator().manual_seed(3)
    dx, dH = (torch.randn(shape, generator=g).to(dtype) for shape in ((T, C), (T, n, C)))

    def run(cast, *projection):
        leaves = [cast(H), *map(leaf, parameters)]
        x, *coefficients, streams = triton_path.read(*leaves, options, *projection)
        given = [cast(dx).detach(), *(w.float() for w in weights_like(coefficients)), cast(dH).detach()]
        torch.autograd.backward((x, *coefficients, streams), given)
        return [x, leaves[0].grad], [*coefficients, *(t.grad for t in leaves[1:])]

    still = torch.zeros(T, 1, C, dtype=dtype), torch.zeros(T, n), torch.eye(n).expand(T, n, n)
    out, projection = triton_path.write_and_project(H, *still, parameters[0])
    assert torch.equal(out, H)
    low, low_wide = run(leaf, *[projection] * folded)
    exact, exact_wide = run(in_fp32)
    for a, e in zip(low, exact, strict=True):
        rounded_once(a, e, dtype)
    for a, e in zip(low_wide, exact_wide, strict=True):
        not_rounded(a, e)


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_16_bit_writes_are_rounded_once(shared, with_bias, dtype, folded):
    """As the reads. A fold's projection is the fp32 one of the streams as they were rounded."""
    T, n, C = 5, 4, 12
    leaves = write_inputs(n, T, C, dtype, shared, with_bias)
    phi = inputs(OPTIONS, T, C, dtype)[1]
    dH = weights_like([leaves[0]])[0].to(dtype)

    def run(cast):
        own = [None if t is None else cast(t) for t in leaves]
        if folded:
            out, (projection, square) = triton_path.write_and_project(*own[:4], phi, own[4])
            not_rounded(projection, out.float().flatten(1) @ phi)
            not_rounded(square, out.float().flatten(1).square().sum(1))
        else:
            out = triton_path.write(*own)
        out.backward(cast(dH).detach())
        return [out, *(t.grad for t in own if t is not None)]

    low, exact = run(leaf), run(in_fp32)
    for a, e in zip(low[:3], exact[:3], strict=True):  # H', dH, dy
        rounded_once(a, e, dtype)
    for a, e in zip(low[3:5], exact[3:5], strict=True):  # dpost, dres
        not_rounded(a, e)
    if with_bias:  # the sum over tokens of dy as it was rounded, rounded itself
        bound = half_unit(dtype) * (exact[2].abs().sum(0) + exact[5].abs()) * 1.01 + 1e-5
        assert low[5].dtype == dtype and ((low[5].float() - exact[5]).abs() <= bound).all()


@sigmoids_overflow
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("n", range(2, 9))
def test_row_sums_on_the_bf16_path(n, scale):
    leaves = inputs(ReadOptions(n), T=64, dtype=torch.bfloat16, scale=scale)
    res = triton_path.read(*leaves, ReadOptions(n))[3]
    assert (res.double().sum(-1) - 1).abs().max() <= 1e-6


def test_non_contiguous_streams_and_gradients():
    leaves = inputs(OPTIONS, dtype=torch.float32)
    assert all(leaf(t).is_contiguous() and not strided(t).is_contiguous() for t in leaves)
    results = in_both_layouts(lambda *own: triton_path.read(*own, OPTIONS), leaves)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_write_of_non_contiguous_tensors_and_gradients(shared):
    leaves = write_inputs(4, 7, 12, torch.float32, shared)
    assert all(torch.equal(a, b) for a, b in zip(*in_both_layouts(triton_path.write, leaves), strict=True))
    H, _, _, res, _ = leaves
    (grad,) = torch.autograd.grad(triton_path.write(*leaves).sum(), H)  # an expanded gradient, strides 0
    torch.testing.assert_close(grad, res.sum(1).unsqueeze(-1).expand_as(grad))


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
