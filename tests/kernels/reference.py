"""The mathematics of hcmegatron.connections, in the kernels' signatures, followed by autograd: what kernels
must equal."""

import itertools

import torch
from torch.nn import functional as F

from hcmegatron.connections.manifold import project, residual_matrix
from hcmegatron.connections.mixing import aggregate, mix_and_add
from hcmegatron.kernels.options import ReadOptions

VARIANTS = [
    ReadOptions(1),
    ReadOptions(2),
    ReadOptions(3),
    ReadOptions(4),
    ReadOptions(8, iterations=5),
    ReadOptions(4, iterations=1),
    *(ReadOptions(4, sinkhorn_eps=eps) for eps in ("additive", "clamp")),
    *(ReadOptions(4, rms_eps=kind, eps=1e-2) for kind in ("inside", "added")),
    *(ReadOptions(3, orientation=o) for o in ("deepseek_v4", "column_last")),
    ReadOptions(2, orientation="column_last", sinkhorn_eps="clamp", rms_eps="added", eps=1e-6),
    ReadOptions(
        2, orientation="deepseek_v4", sinkhorn_eps="additive", rms_eps="inside", eps=1e-6, pre_eps=1e-6
    ),
    *(ReadOptions(4, **{off: False}) for off in ("use_pre", "use_post", "use_res")),
    ReadOptions(3, use_pre=False, use_post=False),
]


def name_of(options):
    default = ReadOptions(options.n)
    changed = [f"{k}={v}" for k, v in vars(options).items() if v != getattr(default, k)]
    return "-".join([f"n{options.n}", *changed])


def read(H, phi, scale, bias, options):
    """x, pre, post, res, H of H [T,n,C]; phi [nC,K]; scale, bias [K]."""
    T, n, _ = H.shape
    logits = scale * project(H, phi, options.rms_eps, options.eps) + bias
    l_pre, l_post, l_res = logits.split(options.sizes, -1)
    pre = torch.sigmoid(l_pre) + options.pre_eps if options.use_pre else logits.new_full((T, n), 1 / n)
    post = 2 * torch.sigmoid(l_post) if options.use_post else logits.new_ones(T, n)
    res = torch.eye(n, dtype=logits.dtype).expand(T, n, n)
    if options.use_res:
        L = l_res.unflatten(-1, (n, n))
        res = residual_matrix(L, options.iterations, options.sinkhorn_eps, options.orientation)
    return aggregate(H, pre), pre, post, res, H


def write(H, y, post, res, bias=None, dropout=0.0):
    y = y if bias is None else y + bias
    return mix_and_add(H, F.dropout(y, dropout) if dropout else y, post, res)


def inputs(options, T=7, C=12, dtype=torch.float64, scale=1.0, seed=0):
    """H, phi, scale, bias: leaves. phi, scale and bias are fp32 beside low-precision streams."""
    g = torch.Generator().manual_seed(seed)
    n, K = options.n, options.columns
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape, by=1.0):
        return by * torch.randn(*shape, generator=g, dtype=torch.float64)

    H, phi = draw(T, n, C).to(dtype), draw(n * C, K, by=(n * C) ** -0.5).to(wide)
    s, b = (1 + 0.3 * draw(K)).to(wide), draw(K, by=scale).to(wide)
    return [t.requires_grad_() for t in (H, phi, s, b)]


def sub_layer(read, write, H, phi, scale, bias, options, y_scale):
    """Read, an elementwise nonlinear T, write: every output reaches the loss. Returns x, coefficients and
    H'."""
    x, pre, post, res, H = read(H, phi, scale, bias, options)
    y = torch.tanh(x * y_scale).unsqueeze(1)
    return x, pre, post, res, write(H, y, post, res)


def weights_like(outputs, seed=5):
    """Fixed random weights of a scalar loss: one per entry of every output."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(o.shape, generator=g, dtype=torch.float64) for o in outputs]


def compare(
    read_a, write_a, options, T=7, C=12, dtype=torch.float64, scale=1.0, tolerance=1e-11, device="cpu"
):
    """Outputs and gradients of `read_a`, `write_a` at `dtype` against the reference in fp64 on the same
    numbers.

    Errors are relative to the largest entry of the exact tensor (or to 1).
    """
    leaves = inputs(options, T, C, dtype, scale)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    leaves = [t.detach().to(device).requires_grad_() for t in leaves]
    y_scale = torch.linspace(0.5, 1.5, C, dtype=torch.float64)
    ours = sub_layer(read_a, write_a, *leaves, options, y_scale.to(device, dtype))
    truth = sub_layer(read, write, *exact, options, y_scale)
    loss = sum((o.double() * w.to(device)).sum() for o, w in zip(ours, weights_like(truth), strict=True))
    true_loss = sum((o * w).sum() for o, w in zip(truth, weights_like(truth), strict=True))
    grads = torch.autograd.grad(loss, leaves)
    true_grads = torch.autograd.grad(true_loss, exact)
    names = ("x", "pre", "post", "res", "H'", "dH", "dphi", "dscale", "dbias")
    for name, got, want in zip(names, itertools.chain(ours, grads), (*truth, *true_grads), strict=True):
        assert got.shape == want.shape, name
        if want.numel():
            error = (got.double().cpu() - want).abs().max() / want.abs().max().clamp(min=1)
            assert error <= tolerance, f"{name}: {error:.2e}"
