"""The mathematics of hcmegatron.connections, in the kernels' signatures, followed by autograd: what kernels
must equal."""

import itertools

import torch
from torch.nn import functional as F

from hcmegatron.connections.manifold import project, residual_matrix
from hcmegatron.connections.mixing import aggregate, mix_and_add
from hcmegatron.connections.permutations import kronecker_mixture, permutation_mixture
from hcmegatron.kernels.options import ReadOptions

VARIANTS = [
    ReadOptions(1),
    ReadOptions(2),
    ReadOptions(3),
    ReadOptions(4),
    ReadOptions(8, iterations=5),
    ReadOptions(4, iterations=1),
    *(ReadOptions(n, sinkhorn_eps=eps) for n in (3, 4) for eps in ("additive", "clamp")),
    *(ReadOptions(4, rms_eps=kind, eps=1e-2) for kind in ("inside", "added")),
    *(ReadOptions(3, orientation=o) for o in ("deepseek_v4", "column_last")),
    ReadOptions(2, orientation="column_last", sinkhorn_eps="clamp", rms_eps="added", eps=1e-6),
    ReadOptions(
        2, orientation="deepseek_v4", sinkhorn_eps="additive", rms_eps="inside", eps=1e-6, pre_eps=1e-6
    ),
    *(ReadOptions(4, **{off: False}) for off in ("use_pre", "use_post", "use_res")),
    ReadOptions(3, use_pre=False, use_post=False),
    ReadOptions(3, use_res=False, rms_eps="off", pre_eps=1e-2, post_eps=1e-2),
    *(ReadOptions(n, res_map="permutations") for n in (1, 2, 3, 4)),
    *(ReadOptions(n, res_map="kronecker") for n in (2, 4, 8)),
    ReadOptions(4, res_map="permutations", use_pre=False, rms_eps="inside", eps=1e-2),
    ReadOptions(4, res_map="kronecker", use_post=False, rms_eps="added", eps=1e-2, pre_eps=1e-6),
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
    post = 2 * torch.sigmoid(l_post) + options.post_eps if options.use_post else logits.new_ones(T, n)
    res = torch.eye(n, dtype=logits.dtype).expand(T, n, n)
    if options.use_res and options.res_map == "permutations":
        res = permutation_mixture(l_res, n)
    elif options.use_res and options.res_map == "kronecker":
        res = kronecker_mixture(l_res.unflatten(-1, (-1, 2)))
    elif options.use_res:
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


# (n, standard deviation of the logits, seed): most draws at 100 and 300 lead to a permutation matrix, where every
# gradient is zero and nothing would be compared; these do not (none of 60 seeds at n = 2 and 300).
LARGE_LOGITS = [
    *((2, scale, seed) for scale in (30.0, 100.0) for seed in (17, 25)),
    *((4, scale, seed) for scale in (10.0, 30.0, 100.0, 300.0) for seed in (2, 54)),
    *((8, scale, seed) for scale in (30.0, 100.0) for seed in (3, 5)),
    *((8, 300.0, seed) for seed in (5, 13)),
]


def compare_large_logits(read_a, write_a, n, scale, seed):
    """`compare` in fp32 at `inputs` with biases of this scale, whose gradients are no zeros."""
    options = ReadOptions(n)
    leaves = inputs(options, T=5, dtype=torch.float32, scale=scale, seed=seed)
    exact = compare(read_a, write_a, options, leaves=leaves, tolerance=1e-5)
    assert exact["dbias"][2 * n :].abs().max() > 0.05


def compare_extreme_logits(read_a, write_a, n, size):
    """`compare` in fp32 at `extreme` inputs.

    A logit in fp32 is rounded by up to u = 2^-24 of its size, by which the exact result itself moves: d res =
    res * P(u) with P a projection, which keeps sizes, so that no computation that starts from rounded logits can
    be asked for less than u.
    """
    options = ReadOptions(n)
    exact = compare(
        read_a, write_a, options, leaves=extreme(options, size), tolerance=max(1e-5, size * 2.0**-24)
    )
    assert exact["dbias"][2 * n :].abs().max() > 0.1  # of the residual logits, all of them extreme


def extreme(options, size, T=5, C=12, seed=0):
    """fp32 `inputs` whose logits reach `size` and whose coefficients still depend on them.

    Biases of +-size on whole rows and columns of the residual logits: any of their exponentials leaves fp32's
    range, and the doubly stochastic matrix, to which both kinds of shift are the same, stays in the interior
    (logits that are large at random lead to a corner, where every gradient is zero). Every other entry of pre
    and post is at +-size, where its gradient vanishes, the rest near zero.
    """
    H, phi, s, b = (t.detach() for t in inputs(options, T, C, torch.float32, seed=seed))
    n = options.n
    g = torch.Generator().manual_seed(seed + 1)
    sign = size * (2.0 * torch.randint(2, (4, n), generator=g) - 1)
    sign[2:, 0], sign[2:, 1] = size, -size  # both occur, whatever was drawn
    sign[:2, ::2] = 0
    shift = torch.cat([sign[0], sign[1], (sign[2].unsqueeze(1) + sign[3]).flatten() / 2])
    return [t.requires_grad_() for t in (H, phi, s, b + shift)]


def write_inputs(n, T, C, dtype=torch.float64, shared=True, with_bias=True, seed=0):
    """H, y, post, res and bias (or None) of a write: leaves, y the same for all streams or a part for each (FC).
    post and res are fp32 beside low-precision streams."""
    g = torch.Generator().manual_seed(seed)
    rows = 1 if shared else n
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(kind, *shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(kind).requires_grad_()

    leaves = [draw(dtype, T, n, C), draw(dtype, T, rows, C), draw(wide, T, n), draw(wide, T, n, n)]
    return [*leaves, draw(dtype, rows, C) if with_bias else None]


def leaf(t):
    return t.detach().requires_grad_()


def strided(t):
    """The same numbers with the last dimension no longer adjacent in memory."""
    return leaf(t.detach().mT.contiguous().mT if t.ndim > 1 else t.detach().repeat_interleave(2)[::2])


def in_both_layouts(operation, leaves):
    """Outputs and all gradients of an operation on the leaves, as they are and strided: one list each."""
    results = []
    for view in (leaf, strided):
        own = [view(t) for t in leaves]
        out = operation(*own)
        out = [out] if isinstance(out, torch.Tensor) else list(out)
        given = [view(w.to(o.dtype)).detach() for w, o in zip(weights_like(out), out, strict=True)]
        results.append([*out, *torch.autograd.grad(out, own, given)])
    return results


def exact_copies(leaves):
    """The same numbers in fp64."""
    return [None if t is None else t.detach().double().requires_grad_() for t in leaves]


def close(got, want, tolerance):
    """Within `tolerance` of the largest entry of the exact tensor (or of 1)."""
    assert got.shape == want.shape
    if want.numel():
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1)
        assert error <= tolerance, f"{error:.2e}"


def rounded_once(low, exact):
    """Within half a unit in the last place of the exact numbers, and the error of fp32 sums."""
    unit = torch.finfo(low.dtype).eps / 2
    bound = unit * exact.abs() * (1 + 1e-3) + 2e-6 * exact.abs().max()
    assert ((low.double() - exact).abs() <= bound).all(), ((low.double() - exact).abs() / bound).max()


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
    read_a,
    write_a,
    options,
    T=7,
    C=12,
    dtype=torch.float64,
    scale=1.0,
    tolerance=1e-11,
    device="cpu",
    leaves=None,
):
    """Outputs and gradients of `read_a`, `write_a` at `dtype` against the reference in fp64 on the same
    numbers: `leaves`, or `inputs` of the sizes given. Returns the exact tensors by name.

    Errors are relative to the largest entry of the exact tensor (or to 1).
    """
    leaves = inputs(options, T, C, dtype, scale) if leaves is None else leaves
    C = leaves[0].shape[-1]
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
    exact = dict(zip(names, (*truth, *true_grads), strict=True))
    for (name, want), got in zip(exact.items(), itertools.chain(ours, grads), strict=True):
        assert got.shape == want.shape, name
        if want.numel():
            error = (got.double().cpu() - want).abs().max() / want.abs().max().clamp(min=1)
            assert error <= tolerance, f"{name}: {error:.2e}"
    return exact
