"""The ends of every range, alike in the mathematics, the torch path and the Triton kernels: numbers that are not
finite, streams whose squares leave fp32's range, and options at their limits."""

from itertools import product

import pytest
import torch

from hcmegatron.connections.sinkhorn import sinkhorn
from hcmegatron.kernels import torch_path, triton_path
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.reference import compare, inputs, name_of, weights_like, write_inputs
from tests.kernels.reference import read as exact_read
from tests.kernels.reference import write as exact_write

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
    ),
    # the interpreter computes with NumPy, which says where infinities and NaN arise
    pytest.mark.filterwarnings(
        "ignore:((overflow|invalid value|divide by zero) encountered|All-NaN slice):RuntimeWarning"
    ),
]
NAN, INF = float("nan"), float("inf")
READS = {"mathematics": exact_read, "torch": torch_path.read, "triton": triton_path.read}
WRITES = {"mathematics": exact_write, "torch": torch_path.write, "triton": triton_path.write}
PATHS = {"torch": (torch_path.read, torch_path.write), "triton": (triton_path.read, triton_path.write)}


def run(operation, leaves, *arguments):
    """All outputs but the streams handed through, and all gradients."""
    own = [t.detach().requires_grad_() for t in leaves]
    outputs = operation(*own, *arguments)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    given = [w.to(o.dtype) for w, o in zip(weights_like(outputs), outputs, strict=True)]
    return outputs[:4] + list(torch.autograd.grad(outputs, own, given))


def where_not_finite(results, tokens):
    """Per token where a tensor has tokens, else per entry."""
    bad = [~t.isfinite() for t in results]
    return [b.flatten(1).any(1) if len(b) == tokens else b for b in bad]


def planted(leaves, at, index, value):
    leaves = [t.detach().clone() for t in leaves]
    leaves[at][index] = value
    return leaves


def plants(n):
    """(which leaf, where, what): rows and columns of residual logits, and an entry of the streams."""
    yield 3, slice(2 * n, 3 * n), -INF
    yield 3, slice(2 * n, None, n), -INF
    yield 3, slice(2 * n, None), -INF
    yield 0, (2, n - 1, 3), INF


def plants_everywhere(n):
    """Also an entry of every part of phi, scale and bias."""
    yield from plants(n)
    for part, value in product((0, n, 2 * n), (NAN, INF, -INF)):
        yield from ((1, (3, part), value), (2, part, value), (3, part, value))
    yield from ((0, (2, n - 1, 3), value) for value in (NAN, -INF))


NOT_FINITE = [
    *((ReadOptions(n, iterations=1), plants) for n in range(1, 9)),
    (ReadOptions(3, iterations=2), plants_everywhere),
    *((ReadOptions(3, iterations=2, sinkhorn_eps=eps), plants) for eps in ("additive", "clamp")),
    *((ReadOptions(3, iterations=1, rms_eps=kind, eps=1e-2), plants) for kind in ("inside", "added")),
    (ReadOptions(3, iterations=2, orientation="column_last"), plants),
]


@pytest.mark.parametrize(
    ("options", "where"),
    NOT_FINITE,
    ids=lambda value: name_of(value) if isinstance(value, ReadOptions) else "",
)
def test_reads_hide_nothing_that_is_not_finite(options, where):
    T = 4
    leaves = inputs(options, T, C=5, dtype=torch.float32)
    for at, index, value in where(options.n):
        results = {
            name: where_not_finite(run(read, planted(leaves, at, index, value), options), T)
            for name, read in READS.items()
        }
        for name, found in results.items():
            for mine, true in zip(found, results["mathematics"], strict=True):
                assert torch.equal(mine, true), (name, at, index, value)
        if isinstance(index, slice) and options.sinkhorn_eps == "none":
            assert results["mathematics"][3].all(), "res of logits that cannot be normalised"


@pytest.mark.parametrize("n", [3, 4])
def test_a_row_without_a_finite_logit_is_nan_and_keeps_to_its_token(n):
    options = ReadOptions(n, iterations=2)
    H, phi, scale, bias = inputs(options, T=3, C=5, dtype=torch.float32)
    phi = torch.zeros_like(phi)
    phi[0, 2 * n : 3 * n] = 1.0
    H = H.detach().clone()
    H[:, 0, 0] = torch.tensor([0.5, -INF, -0.5])
    scale = torch.ones_like(scale)
    for name, read in READS.items():
        res = read(H, phi, scale, bias, options)[3]
        assert res[1].isnan().all() and res[[0, 2]].isfinite().all(), name


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_writes_hide_nothing_that_is_not_finite(shared, value):
    n, T = 3, 4
    leaves = write_inputs(n, T, 5, torch.float32, shared)
    for at, index in ((0, (1, 1, 2)), (1, (1, 0, 2)), (2, (1, 1)), (3, (1, 1, 2)), (4, (0, 2))):
        results = {
            name: where_not_finite(run(write, planted(leaves, at, index, value)), T)
            for name, write in WRITES.items()
        }
        assert results["mathematics"][0].any()
        for name, found in results.items():
            for mine, true in zip(found, results["mathematics"], strict=True):
                assert torch.equal(mine, true), (name, at, value)


SIZES = [1e-36, 1e-30, 1e-20, 1e-13, 1e13, 1e19, 1e20, 1e30, 1e37]
EPSILONS = [
    *(ReadOptions(3, iterations=2, rms_eps=kind, eps=0.0) for kind in ("none", "inside", "added")),
    *(
        ReadOptions(3, iterations=2, rms_eps=kind, eps=e)
        for kind in ("inside", "added")
        for e in (1e-6, 1e-20)
    ),
]


@pytest.mark.parametrize("path", ["mathematics", *PATHS])
@pytest.mark.parametrize("options", EPSILONS, ids=name_of)
def test_streams_of_any_size(options, path):
    """Against fp64, which squares all of these: coefficients, and gradients through them alone, in units of what a
    token of this size has. Tokens of ordinary size between them keep their bits."""
    read = READS[path]
    H, phi, scale, bias = inputs(options, T=2 * len(SIZES), C=8, dtype=torch.float32)
    phi = phi.detach() * 1e-1  # so that no token of the largest size leaves the range when it is projected
    ordinary = torch.arange(len(H)) % 2 == 1
    sizes = torch.ones(len(H), dtype=torch.float64)
    sizes[~ordinary] = torch.tensor(SIZES, dtype=torch.float64)
    H = (H.detach() * (sizes / H.detach().flatten(1).abs().amax(1)).view(-1, 1, 1)).float()
    leaves = [H, phi, scale.detach(), bias.detach()]

    def results(read, leaves):
        own = [t.clone().requires_grad_() for t in leaves]
        coefficients = read(*own, options)[1:4]
        given = [w.to(c.dtype) for w, c in zip(weights_like(coefficients), coefficients, strict=True)]
        return [*coefficients, *torch.autograd.grad(coefficients, own, given)]

    names = ("pre", "post", "res", "dH", "dphi", "dscale", "dbias")
    ours = dict(zip(names, results(read, leaves), strict=True))
    truth = dict(zip(names, results(exact_read, [t.double() for t in leaves]), strict=True))
    for name, want in truth.items():
        got = ours[name].double()
        if name == "dH":  # each token beside its own largest entry, where fp32 can hold that
            unit = want.flatten(1).abs().amax(1).view(-1, 1, 1)
            got, want = (t[(unit < 1e38).flatten()] / unit[unit < 1e38].view(-1, 1, 1) for t in (got, want))
            assert len(got) >= len(H) - 1
        assert (got - want).abs().max() < 2e-5 * want.abs().max(), name
    H[~ordinary] = 1.0
    among_ordinary = results(read, leaves)
    for name, got, usual in zip(names[:4], ours.values(), among_ordinary, strict=False):
        assert torch.equal(got[ordinary], usual[ordinary]), name


@pytest.mark.parametrize("size", [1e-20, 1e20, 1e30])
def test_a_fold_hands_on_streams_of_any_size(size):
    options = ReadOptions(3, iterations=2)
    n, T, C = options.n, 4, 8
    H, phi, scale, bias = (t.detach() for t in inputs(options, T, C, torch.float32))
    H = H * size
    still = torch.zeros(T, 1, C), torch.zeros(T, n), torch.eye(n).expand(T, n, n)
    out, projection = triton_path.write_and_project(H, *still, phi)
    folded = triton_path.read(out, phi, scale, bias, options, projection)
    exact = exact_read(H.double(), phi.double(), scale.double(), bias.double(), options)
    for got, want in zip(folded[1:4], exact[1:4], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


REFUSED = [
    ({"n": 0}, "n=0: must be at least 1"),
    ({"iterations": 0}, "iterations=0: must be at least 1"),
    ({"eps": -1e-6}, "eps=-1e-06: must be a finite number, 0 or more"),
    ({"eps": NAN}, "eps=nan"),
    ({"pre_eps": INF}, "pre_eps=inf"),
    ({"sinkhorn_eps": "added"}, "sinkhorn_eps='added': choose one of none, additive, clamp"),
    ({"rms_eps": "clamp"}, "rms_eps='clamp': choose one of none, inside, added"),
    ({"orientation": "v4"}, "orientation='v4': choose one of paper, deepseek_v4, column_last"),
]


@pytest.mark.parametrize(
    ("fields", "words"), REFUSED, ids=lambda value: "" if isinstance(value, str) else str(value)
)
def test_options_out_of_range_are_refused(fields, words):
    with pytest.raises(ValueError, match="^" + words):
        ReadOptions(**{"n": 2} | fields)


def test_sinkhorn_refuses_no_iterations():
    with pytest.raises(ValueError, match="iterations=0: must"):
        sinkhorn(torch.zeros(2, 2), 0)


EDGES = [
    *(
        ReadOptions(3, pre, post, res, iterations=1, orientation="column_last", pre_eps=0.1)
        for pre, post, res in product((True, False), repeat=3)
        if pre or post or res
    ),
    *(ReadOptions(1, iterations=1, sinkhorn_eps=eps) for eps in ("none", "additive", "clamp")),
    *(
        ReadOptions(3, iterations=1, sinkhorn_eps=eps, orientation=orientation)
        for eps in ("additive", "clamp")
        for orientation in ("paper", "column_last")
    ),
]


@pytest.mark.parametrize("path", PATHS)
def test_options_at_their_limits(path):
    for options in EDGES:
        compare(*PATHS[path], options, T=2, C=5, dtype=torch.float32, tolerance=1e-5)


@pytest.mark.parametrize("kind", ["none", "inside", "added"])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_zeros_without_an_epsilon(read, kind):
    """A token of zeros has no direction: its coefficients are those of the biases, its gradient comes from x alone."""
    options = ReadOptions(2, iterations=2, rms_eps=kind, eps=0.0)
    H, phi, scale, bias = inputs(options, T=2, C=4, dtype=torch.float32)
    H = H.detach().clone()
    H[0] = 0
    H.requires_grad_()
    x, pre, post, res, _ = read(H, phi, scale, bias, options)
    torch.testing.assert_close(pre[0], torch.sigmoid(bias[:2]))
    grads = torch.autograd.grad(x.sum() + pre.sum() + post.sum() + res[:, 0].sum(), (H, phi, scale, bias))
    assert all(g.isfinite().all() for g in grads)
    torch.testing.assert_close(grads[0][0], pre[0].unsqueeze(1).expand(2, 4))
