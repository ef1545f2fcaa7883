"""Block checkpoints where they are easily wrong: odd sizes, many micro-batches, evaluation, errors, double use."""

import contextlib
import gc
import weakref

import pytest
import torch

from hcmegatron.model.nodes import ActivationPolicy
from hcmegatron.recompute.block_checkpoint import BlockCheckpoint
from hcmegatron.recompute.block_plan import blocks
from hcmegatron.recompute.meter import Meter
from tests.recompute.stack import Stack


def gradients(stack, keepings, interleaved=True, sizes=None):
    """Gradients of all parameters and inputs after one micro-batch per policy; forwards first if interleaved."""
    stack.zero_grad()
    torch.manual_seed(5)
    inputs = [stack.input(size, seed) for seed, size in enumerate(sizes or [6] * len(keepings))]
    if interleaved:
        outputs = [
            stack(x, activation_policy, i)
            for i, (x, activation_policy) in enumerate(zip(inputs, keepings, strict=True))
        ]
        for output in outputs:
            output.square().sum().backward()
    else:
        for i, (x, activation_policy) in enumerate(zip(inputs, keepings, strict=True)):
            stack(x, activation_policy, i).square().sum().backward()
    return [p.grad for p in stack.parameters()] + [x.grad for x in inputs]


def assert_equal(a, b):
    assert len(a) == len(b)
    for first, second in zip(a, b, strict=True):
        assert (first is None and second is None) or torch.equal(first, second)


@pytest.mark.parametrize("sublayers", [1, 2, 5, 7])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_every_split_of_few_sublayers(sublayers, length):
    stack = Stack("mhc", 2, sublayers, C=8, dropout=0.2)
    split = blocks(sublayers, min(length, sublayers))
    assert_equal(gradients(stack, [ActivationPolicy()]), gradients(stack, [BlockCheckpoint(split)]))


@pytest.mark.parametrize("interleaved", [False, True])
def test_micro_batches_of_different_size_live_at_once(interleaved):
    stack, sizes = Stack("dhc", 4, 5, C=8, dropout=0.2), [3, 7, 1]
    plain = gradients(stack, [ActivationPolicy() for _ in sizes], interleaved, sizes)
    assert_equal(plain, gradients(stack, [BlockCheckpoint([1, 2, 2]) for _ in sizes], interleaved, sizes))


def test_sublayers_run_once_and_each_block_is_rebuilt_once():
    stack = Stack("mhc", 2, 6, C=8)
    entered = []
    for sublayer in stack.sublayers:
        read = sublayer.read
        sublayer.read = lambda *state, read=read, sublayer=sublayer: entered.append(sublayer) or read(*state)
    gradients(stack, [BlockCheckpoint([2, 2, 2])])
    assert stack.calls == 6
    assert entered == [*stack.sublayers, *(stack.sublayers[i] for i in (4, 5, 2, 3, 0, 1))]


def test_two_backwards_of_one_graph_rebuild_once():
    stack = Stack("mhc", 2, 4, C=8)

    def twice(activation_policy):
        stack.zero_grad()
        loss = stack(stack.input(4), activation_policy).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return [p.grad for p in stack.parameters()]

    assert_equal(twice(ActivationPolicy()), twice(BlockCheckpoint([2, 2])))


def test_masks_do_not_depend_on_what_else_was_drawn():
    """Before the forward, and between it and the rebuilding of a block."""
    stack = Stack("mhc", 2, 4, C=8, dropout=0.5)
    found = []
    for seed, activation_policy in enumerate((ActivationPolicy(), BlockCheckpoint([2, 2]))):
        stack.zero_grad()
        torch.manual_seed(seed)
        output = stack(x := stack.input(6), activation_policy, first_sample=3)
        torch.manual_seed(seed)
        output.square().sum().backward()
        found.append([x.grad, *(p.grad for p in stack.parameters())])
    assert_equal(*found)


def test_evaluation_applies_no_dropout_and_keeps_its_gradients():
    stack = Stack("mhc", 2, 4, C=8, dropout=0.5).eval()
    assert_equal(gradients(stack, [ActivationPolicy()]), gradients(stack, [BlockCheckpoint([2, 2])]))


def test_without_gradients_nothing_is_held():
    stack, meter = Stack("mhc", 2, 4, C=8), Meter()
    with torch.no_grad():
        output = stack(stack.input(4), BlockCheckpoint([2, 2], meter))
        plain = stack(stack.input(4), ActivationPolicy())
    assert torch.equal(output, plain)
    gc.collect()
    assert meter.bytes() == 0


def test_an_exception_in_forward_leaves_nothing_and_the_next_micro_batch_is_right():
    stack, meter = Stack("mhc", 2, 4, C=8), Meter()
    plain = gradients(stack, [ActivationPolicy()])
    linear = stack.linears[2].forward

    def broken(x):
        raise OSError("out of order")

    stack.linears[2].forward = broken
    with contextlib.suppress(OSError):  # pytest.raises would keep the frames
        stack(stack.input(4), BlockCheckpoint([2, 2], meter))
        pytest.fail("the exception was lost")
    stack.linears[2].forward = linear
    gc.collect()
    assert meter.bytes() == 0
    assert_equal(plain, gradients(stack, [BlockCheckpoint([2, 2], meter)]))


def test_a_graph_that_is_given_up_frees_everything():
    stack, meter = Stack("mhc", 2, 4, C=8), Meter()
    output = stack(stack.input(4), BlockCheckpoint([2, 2], meter))
    assert meter.bytes() > 0
    del output
    assert meter.bytes() == 0


def test_rebuilt_tensors_are_freed_as_backward_goes_on():
    """After a block's backward nothing of it is left, while earlier blocks still wait."""
    stack, meter = Stack("mhc", 2, 6, C=64), Meter()
    seen = []
    x = stack.input(4)
    x.register_hook(lambda _: seen.append(meter.bytes()))
    middle = []
    output = stack(x, BlockCheckpoint([2, 2, 2], meter))
    stack.norms[2].weight.register_hook(lambda _: middle.append(meter.bytes()))
    kept = meter.bytes()
    output.sum().backward()
    assert meter.bytes() == 0
    assert max(seen) < kept
    assert max(middle) < meter.peak


def test_a_sublayer_that_rebuilds_differently_is_an_error():
    stack = Stack("mhc", 2, 2, C=8)
    output = stack(stack.input(4), BlockCheckpoint([2]))
    sublayer = stack.sublayers[1]
    sublayer.write = lambda streams, y, *_: (streams + y.unsqueeze(-2),)
    with pytest.raises(RuntimeError, match="saved fewer tensors when rebuilt"):
        output.sum().backward()


def test_a_tape_does_not_outlive_its_graph():
    stack = Stack("mhc", 2, 2, C=8)
    tape = BlockCheckpoint([2])
    reference = weakref.ref(tape)
    output = stack(stack.input(4), tape)
    del tape
    output.sum().backward()
    del output
    assert reference() is None
