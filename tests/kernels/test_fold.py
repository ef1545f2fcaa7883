"""The fold in the model: a sub-layer's write computes the next one's projection, also into a recomputed block."""

from itertools import pairwise

import pytest
import torch

from hcmegatron.kernels import read_function
from hcmegatron.model.nodes import ActivationPolicy, Lane, MicroBatch, Node
from hcmegatron.pipeline.lanes import Lanes
from hcmegatron.pipeline.micro_batch_graph import MicroBatchGraph
from hcmegatron.recompute.block_checkpoint import BlockCheckpoint
from hcmegatron.recompute.measure_terms import measure_terms
from hcmegatron.recompute.meter import Meter
from tests.recompute.stack import Stack

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
)
SUBLAYERS, TOKENS, N, C = 5, 3, 2, 16
K = N * N + 2 * N


FOLDING = {"mhc": {}, "mhc single pass": {"single_pass": True}, "ihc": {}}


def stack(kernels, kind="mhc", **options):
    return Stack(kind.split()[0], N, SUBLAYERS, C, kernels=kernels, **FOLDING[kind], **options)


def run(model, activation_policy, tokens=TOKENS):
    """The output, and the gradients of all parameters and of the input."""
    model.zero_grad()
    torch.manual_seed(5)
    x = model.input(tokens)
    output = model(x, activation_policy)
    output.square().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in model.parameters())]


@pytest.fixture
def reads(monkeypatch):
    """For every read, whether it was handed its projection."""
    seen = []
    usual = read_function.ReadFunction.forward

    def forward(ctx, *arguments):
        seen.append(arguments[3] is not None)
        return usual(ctx, *arguments)

    monkeypatch.setattr(read_function.ReadFunction, "forward", staticmethod(forward))
    return seen


@pytest.mark.parametrize("kind", ["mhc", "mhc single pass"])
def test_every_read_but_the_first_is_handed_its_projection(reads, kind):
    folded = run(stack("triton", kind), ActivationPolicy())
    assert reads == [False] + [True] * (SUBLAYERS - 1)
    for ours, plain in zip(folded, run(stack("torch", kind), ActivationPolicy()), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_a_connection_without_a_projection_takes_none(reads):
    model = stack("triton")
    for sublayer, following in pairwise(model.sublayers):
        sublayer.following = None if following is model.sublayers[2] else following.connection
    run(model, ActivationPolicy())
    assert reads == [False, True, False, True, True]


@pytest.mark.parametrize(
    ("kind", "lengths", "dropout"),
    [
        *(("mhc", lengths, dropout) for lengths in ([5], [1, 2, 2], [2, 3]) for dropout in (0.0, 0.3)),
        ("ihc", [2, 3], 0.3),
    ],
)
def test_across_a_recomputed_blocks_boundary_bit_for_bit(reads, kind, lengths, dropout):
    model = stack("triton", kind, dropout=dropout)
    plain = run(model, ActivationPolicy())
    reads.clear()
    rebuilt = run(model, BlockCheckpoint(lengths))
    # the forward, and each block again from what it kept: only the chunk's first streams come without a projection
    assert reads.count(False) == 2
    assert len(reads) == 2 * SUBLAYERS
    assert all(torch.equal(a, b) for a, b in zip(plain, rebuilt, strict=True))


def test_the_plan_counts_the_projection_that_a_block_keeps():
    plain, folding = (
        measure_terms(stack(kernels).sublayers[0], N, C, TOKENS, torch.float32, torch.device("cpu"))
        for kernels in ("torch", "triton")
    )
    projection = TOKENS * (K + 1) * 4
    assert folding.streams - plain.streams == projection
    model, meter = stack("triton"), Meter()
    output = model(model.input(TOKENS), BlockCheckpoint([1] * SUBLAYERS, meter))
    # the first block has none
    assert meter.bytes() == SUBLAYERS * (folding.streams + folding.output) - projection
    del output


def test_the_projection_crosses_the_cuts_of_an_overlapped_pass(reads):
    """As under parallel.overlap: every sub-layer's graph apart, the projection from node to node beside the streams."""
    model = stack("triton")
    plain = run(model, ActivationPolicy())
    reads.clear()

    def node(sublayer, linear):
        def forward(state, micro_batch):
            streams, *projection = state
            x, coefficients = micro_batch.activation_policy.read(sublayer, streams, *projection)
            return micro_batch.activation_policy.write(sublayer, streams, linear(x), coefficients)

        return Node("mlp", Lane.COMPUTE, forward)

    model.zero_grad()
    torch.manual_seed(5)
    x, micro_batch, passing = model.input(TOKENS), MicroBatch(), MicroBatchGraph(Lanes(torch.device("cpu")))
    passing.begin((x.view_as(x),), SUBLAYERS)
    for layer, parts in enumerate(zip(model.sublayers, model.linears, strict=True)):
        passing.forward(layer, node(*parts), micro_batch)
    output, *_ = passing.end()
    output.square().sum().backward()
    passing.begin_backward()
    for layer in reversed(range(SUBLAYERS)):
        passing.backward(layer, 1, None)
    passing.end_backward()
    assert reads == [False] + [True] * (SUBLAYERS - 1)
    cut = [output.detach(), x.grad, *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(plain, cut, strict=True))
