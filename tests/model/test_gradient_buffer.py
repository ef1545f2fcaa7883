"""Weight gradients go straight to the data-parallel buffer, whoever looks at what autograd saves."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from hcmegatron.model.experts import _GroupedLinear
from hcmegatron.model.nodes import ActivationPolicy
from hcmegatron.model.separate_wgrad import deferrable_linear
from hcmegatron.model.wgrad_store import WeightGradStore
from hcmegatron.recompute.block_checkpoint import BlockCheckpoint
from hcmegatron.recompute.meter import Meter, MeteredPolicy


def buffered(*shape):
    """A weight as the data-parallel wrapper leaves it, with a list of the gradients it was told of."""
    weight = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    weight.main_grad, told = torch.ones(shape), []
    weight.gradient_added = lambda: told.append(weight.main_grad.clone())
    return weight, told


def plain(x, weight, store):
    return deferrable_linear(x, weight, store)


def grouped(x, weight, store):
    return _GroupedLinear.apply(x, weight, torch.tensor([3, 8], dtype=torch.int32), store)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(
    "activation_policy", [ActivationPolicy, lambda: BlockCheckpoint([1]), lambda: MeteredPolicy(Meter())]
)
@pytest.mark.parametrize(("operation", "shape"), [(plain, (8, 4)), (grouped, (2, 8, 4))])
def test_the_buffer_is_added_to(operation, shape, activation_policy, deferred):
    weight, told = buffered(*shape)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    store = WeightGradStore()
    with activation_policy().node():
        y = operation(x, weight, store)
    if deferred:
        with store.deferring():
            y.square().sum().backward()
        assert told == []
        store.pop_and_run()
    else:
        y.square().sum().backward()
    assert weight.grad is None
    assert len(told) == 1
    reference = weight.detach().clone().requires_grad_()
    operation(x.detach(), reference, None).square().sum().backward()
    torch.testing.assert_close(weight.main_grad, 1 + reference.grad)


def test_a_buffer_of_less_precision_leaves_it_to_autograd():
    weight, told = buffered(6, 4)
    weight.main_grad = weight.main_grad.bfloat16()
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        deferrable_linear(torch.ones(3, 4), weight, WeightGradStore()).sum().backward()
    assert told == [] and weight.grad is not None and weight.main_grad.eq(1).all()


def test_a_buffer_of_more_precision_is_added_to_in_it():
    weight, told = buffered(6, 4)
    weight.main_grad = weight.main_grad.double()
    x = torch.full((3, 4), 1 / 3)
    deferrable_linear(x, weight, WeightGradStore()).sum().backward()
    assert weight.grad is None and len(told) == 1
    assert torch.equal(weight.main_grad, 1 + x.double().sum(0).expand(6, 4))
