"""The compiled read and write against the mathematics in fp64: every variant, every gradient, every size."""

import copy
import functools
import pickle

import pytest
import torch

from hcmegatron.kernels import torch_path
from hcmegatron.kernels.native.library import obstacle
from hcmegatron.kernels.native.primitives import FILES, NativePrimitives
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.select import select_kernels
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

pytestmark = pytest.mark.skipif(
    obstacle(1, *FILES) is not None, reason=f"not compiled: {obstacle(1, *FILES)}"
)

read = functools.partial(torch_path.read, primitives=NativePrimitives())
write = functools.partial(torch_path.write, primitives=NativePrimitives())
single = functools.partial(compare, read, write, dtype=torch.float32, tolerance=1e-5)


@pytest.mark.parametrize("C", [12, 32])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_equals_the_mathematics(options, C):
    """At 12 channels, no multiple of 16, what goes over the streams is torch's."""
    single(options, T=21, C=C)


@pytest.mark.parametrize("n", range(1, 9))
def test_streams_up_to_8(n):
    single(ReadOptions(n), T=40, C=16)


def test_more_streams_and_fp64_are_torchs():
    single(ReadOptions(9, iterations=2), C=16)
    compare(read, write, ReadOptions(4), C=16)


@pytest.mark.parametrize("T", [0, 1, 15, 16, 17])
def test_few_tokens(T):
    single(ReadOptions(4), T=T, C=16)


@pytest.mark.parametrize(("n", "scale", "seed"), LARGE_LOGITS)
def test_large_logits(n, scale, seed):
    compare_large_logits(read, write, n, scale, seed)


@pytest.mark.parametrize("size", [100.0, 300.0, 1000.0])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_extreme_logits(n, size):
    compare_extreme_logits(read, write, n, size)


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_streams_whose_squares_leave_fp32(size):
    leaves = inputs(ReadOptions(3), T=18, C=16, dtype=torch.float32)
    leaves[0] = (leaves[0].detach() * size).requires_grad_()
    ours, theirs = (each(*leaves, ReadOptions(3)) for each in (read, torch_path.read))
    made = [
        torch.autograd.grad(out[0].sum() / size + out[3].square().sum(), leaves) for out in (ours, theirs)
    ]
    for got, want in zip((*ours, *made[0]), (*theirs, *made[1]), strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("column", [0, 3, 7])
def test_nan_reaches_what_it_reaches_in_torch(column):
    """One token's NaN in the logits of pre, post or res."""
    leaves = inputs(ReadOptions(2), T=20, C=16, dtype=torch.float32)
    leaves[0].data[5, 0, 3] = float("nan")
    leaves[1].data[:, :column] = 0
    for got, want in zip(
        read(*leaves, ReadOptions(2)), torch_path.read(*leaves, ReadOptions(2)), strict=True
    ):
        assert torch.equal(got.isnan(), want.isnan())


def test_sinkhorns_limit():
    options = ReadOptions(4, sinkhorn_backward="implicit")
    leaves = inputs(options, T=20, C=16, dtype=torch.float32)
    for got, want in zip(
        *(_gradients(each, leaves, options) for each in (read, torch_path.read)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_given_mix():
    options, mix = ReadOptions(3), torch.rand(20, 3, requires_grad=True)
    leaves = [*inputs(options, T=20, C=16, dtype=torch.float32), mix]

    def mixed(path):
        return lambda *own: path(*own[:4], options, mix=own[4])

    for got, want in zip(*(_gradients(mixed(each), leaves) for each in (read, torch_path.read)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def _gradients(operation, leaves, *options):
    outputs = operation(*leaves, *options)
    return torch.autograd.grad(
        outputs, leaves, [w.to(o.dtype) for w, o in zip(weights_like(outputs), outputs, strict=True)]
    )


def test_non_contiguous_streams_and_gradients():
    options = ReadOptions(3)
    results = in_both_layouts(
        lambda *own: read(*own, options), inputs(options, T=20, C=16, dtype=torch.float32)
    )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("use", range(5))
def test_one_output_that_reaches_the_loss(use):
    """The gradients of the others are None."""
    leaves = inputs(ReadOptions(4), T=20, C=16, dtype=torch.float32)
    made = [
        torch.autograd.grad(each(*leaves, ReadOptions(4))[use].square().sum(), leaves, materialize_grads=True)
        for each in (read, torch_path.read)
    ]
    for got, want in zip(*made, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("C", [24, 48])
@pytest.mark.parametrize(
    "options", [ReadOptions(3), ReadOptions(4, orientation="column_last", rms_eps="inside", eps=1e-2)]
)
def test_bf16_reads_are_rounded_once(options, C):
    leaves = inputs(options, T=33, C=C, dtype=torch.bfloat16)
    g = torch.Generator().manual_seed(3)
    given = [torch.randn(shape, generator=g).bfloat16() for shape in ((33, C), (33, options.n, C))]

    def run(read, leaves):
        x, *coefficients, streams = read(*leaves, options)
        weights = [w.to(c.dtype) for w, c in zip(weights_like(coefficients), coefficients, strict=True)]
        gradients = [w.to(x.dtype) for w in given]
        outputs = (x, *coefficients, streams)
        return x, torch.autograd.grad(outputs, leaves[0], [gradients[0], *weights, gradients[1]])[0]

    for got, want in zip(run(read, leaves), run(exact_read, exact_copies(leaves)), strict=True):
        assert got.dtype == torch.bfloat16
        rounded_once(got, want)


@pytest.mark.parametrize("C", [12, 48])
@pytest.mark.parametrize("T", [0, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("identity", [True, False], ids=["identity", "res"])
@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
@pytest.mark.parametrize("n", range(1, 9))
def test_writes(n, shared, identity, dtype, T, C):
    """H' and all gradients; a bias is added in fp32, which makes y wider than bf16 streams."""
    for with_bias in (False, True):
        leaves = write_inputs(n, T, C, dtype, shared, with_bias)
        if identity:
            leaves[3] = None
        exact = exact_copies(leaves)
        if identity:
            exact[3] = torch.eye(n, dtype=torch.float64).expand(T, n, n)
        given = [i for i, leaf in enumerate(leaves) if leaf is not None]
        out, truth = write(*leaves), exact_write(*exact)
        weight = weights_like([truth])[0].to(dtype)
        grads = torch.autograd.grad(out, [leaves[i] for i in given], weight)
        true_grads = torch.autograd.grad(truth, [exact[i] for i in given], weight.double())
        for i, got, want in zip((-1, *given), (out, *grads), (truth, *true_grads), strict=True):
            assert got.shape == want.shape
            if got.numel() and i in (2, 3):
                torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
            elif got.numel():
                assert got.dtype == dtype
                rounded_once(got, want)


@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_writes_of_non_contiguous_tensors_and_gradients(shared):
    results = in_both_layouts(write, write_inputs(4, 7, 16, torch.float32, shared=shared))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_bf16_is_rounded_as_torch_rounds():
    """Ties to even, the smallest numbers, what overflows, infinities and NaN: post * y of every such number."""
    ends = torch.tensor(
        [0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F7FFFFF, 1, 0x8000, 0x7F800000, 0x7FC00000, 0x7F800001]
    )
    bits = torch.cat([ends, torch.randint(0, 2**31 - 1, (503,), generator=torch.Generator().manual_seed(1))])
    numbers = bits.to(torch.int32).view(torch.float32)
    numbers = torch.stack([numbers, -numbers]).view(64, 1, 16)
    zeros = torch.zeros(64, 1, 16, dtype=torch.bfloat16)
    out = write(zeros, numbers, torch.ones(64, 1), torch.zeros(64, 1, 1))
    torch.testing.assert_close(out, numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_what_chooses_them_can_be_copied_and_pickled():
    """Connections hold it, and they are copied."""
    kernels = select_kernels("native", n=2)
    for made in (copy.deepcopy(kernels), pickle.loads(pickle.dumps(kernels))):
        leaves = write_inputs(2, 3, 16, torch.float32)
        assert torch.equal(made.write(*leaves), kernels.write(*leaves))
