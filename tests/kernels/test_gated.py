"""The gated residual's read on Triton (in the interpreter where there is no GPU) against its formulas in fp64."""

import pytest
import torch

from hcmegatron.connections.gated import gated_read
from hcmegatron.kernels import gated_function, torch_gated
from hcmegatron.kernels.native import gated as native_gated
from hcmegatron.kernels.native.library import obstacle
from tests.kernels.reference import leaf, strided

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
    ),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]
PATHS = {"torch": torch_gated.read, "triton": gated_function.read}
if obstacle(1, native_gated.FILE) is None:
    PATHS["native"] = native_gated.read


def given(T, n, C, r=3, dtype=torch.float32, seed=0):
    """R, gamma, W_d, W_u, W_w, and gradients of x, s and R."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(T, n, C), (n, C), (n * C, r), (r, n * C), (n * C, n), (T, C), (T, n), (T, n, C)]
    drawn = [torch.randn(shape, generator=g) for shape in shapes]
    for at in (0, 5, 7):
        drawn[at] = drawn[at].to(dtype)
    return drawn[:5], drawn[5:]


def exact(R, gamma, W_d, W_u, W_w, eps):
    x, G, s = gated_read(R, gamma, W_d, W_u, W_w, eps)
    return x, s, G.mean(-1) / R.shape[1], R


def results(read, leaves, gradients, eps, cast=lambda t: t):
    own = [cast(leaf(t)).detach().requires_grad_() for t in leaves]
    x, s, shares, R = read(*own, eps)
    grads = torch.autograd.grad([x, s, R], own, [cast(g) for g in gradients])
    return [x, s, shares, *grads]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("T", "n", "C"),
    [(0, 4, 8), (1, 1, 12), (35, 4, 20), (9, 3, 130), (3, 8, 5), (7, 4, 48), (2, 8, 16), (0, 2, 16)],
)
def test_fp32(path, T, n, C):
    leaves, gradients = given(T, n, C)
    mine = results(PATHS[path], leaves, gradients, 1e-2)
    for got, want in zip(mine, results(exact, leaves, gradients, 1e-2, torch.Tensor.double), strict=True):
        assert got.shape == want.shape
        if want.numel():
            assert (got - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1)


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_precision_of_products_is_left_as_it_was(before):
    """Whichever of torch's two settings a program uses: reading the older one fails where only the newer is set."""
    matmul = torch.backends.cuda.matmul
    assert (matmul.allow_tf32, matmul.fp32_precision) == (False, "none")
    try:
        matmul.fp32_precision = before
        for dtype, fast in ((torch.bfloat16, True), (torch.float32, False)):
            with gated_function._products(torch.empty(1, 1, 1, dtype=dtype)):
                assert matmul.allow_tf32 == fast
            assert matmul.fp32_precision == before
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = "none"


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_and_so_is_that_of_all_backends(before):
    matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    try:
        torch.set_float32_matmul_precision(before)
        own = [matmul.fp32_precision for matmul in matmuls]
        for dtype, fast in ((torch.bfloat16, True), (torch.float32, False)):
            with gated_function._products(torch.empty(1, 1, 1, dtype=dtype)):
                assert matmuls[0].allow_tf32 == fast
            assert torch.get_float32_matmul_precision() == before
            assert [matmul.fp32_precision for matmul in matmuls] == own
    finally:
        torch.set_float32_matmul_precision("highest")
        for matmul in matmuls:
            matmul.fp32_precision = "none"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_streams_are_rounded_once(path, dtype):
    leaves, gradients = given(9, 4, 32, dtype=dtype)
    low = results(PATHS[path], leaves, gradients, 1e-6)
    truth = results(exact, leaves, gradients, 1e-6, torch.Tensor.double)
    unit = torch.finfo(dtype).eps * (1.0 if dtype == torch.bfloat16 else 0.5)  # the interpreter cuts bf16 off
    for at, (got, want) in enumerate(zip(low, truth, strict=True)):
        bound = unit * want.abs() * 1.001 if at in (0, 3) else 0 * want
        assert got.dtype == (dtype if at in (0, 3) else torch.float32)
        assert ((got.double() - want).abs() <= bound + 1e-5 * want.abs().max().clamp(min=1)).all()


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e25])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_streams_of_any_size(size, eps):
    """Gradients over the size, streams of zeros among them."""
    leaves, gradients = given(5, 3, 16)
    leaves[0] = leaves[0] * size
    leaves[0][1, 2] = 0.0
    gradients[2] = torch.zeros_like(gradients[2])
    first, *others = [results(read, leaves, gradients, eps) for read in PATHS.values()]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert a.isfinite().all() and b.isfinite().all()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * a.abs().max().item())


@pytest.mark.parametrize("path", PATHS)
def test_layouts_in_memory_and_outputs_that_reach_no_loss(path):
    leaves, _ = given(4, 3, 16)
    plain, other = (PATHS[path](*(view(t) for t in leaves), 1e-6) for view in (leaf, strided))
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b)
    own = [leaf(t) for t in leaves]
    x, s, _, R = PATHS[path](*own, 1e-6)
    for out in (x, s, R):
        for g in torch.autograd.grad(out.sum(), own, retain_graph=True):
            assert g.isfinite().all()


def test_fp64_is_refused():
    with pytest.raises(ValueError, match="kernels=triton: streams of torch"):
        gated_function.read(*(t.double() for t in given(2, 2, 4)[0]), 1e-6)


def test_keeps_the_streams_once_and_little_else():
    """Beside R, of a token n numbers of the norm and r + n of the projections; two of the norm on Triton."""
    leaves, _ = given(64, 4, 32, r=5)
    for path in PATHS:
        norm = 8 if path == "triton" else 4
        own = [leaf(t) for t in leaves]
        assert kept(PATHS[path], own) == sum(t.numel() for t in leaves) + 64 * (norm + 5 + 4)


def kept(read, leaves):
    """Numbers that autograd holds of a read, every storage once."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.setdefault(t.untyped_storage().data_ptr(), t.numel()) and t, lambda t: t
    ):
        read(*leaves, 1e-6)
    return sum(sizes.values())
