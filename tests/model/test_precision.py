"""Weight gradients of 16-bit layers are summed in 32 bits, without a rounding to 16 bits on the way."""

import pytest
import torch

from hcmegatron.model.accumulate import add_product
from tests.model import deferred_workers
from tests.ranks import run_ranks


def error(found, exact):
    return float((found.double() - exact).abs().max() / exact.abs().max())


def test_a_product_is_added_in_the_precision_of_the_sum():
    generator = torch.Generator().manual_seed(1)
    into = torch.randn(24, 16, generator=generator)
    left, right = (torch.randn(*size, generator=generator).bfloat16() for size in ((24, 256), (256, 16)))
    exact = into.double() + left.double() @ right.double()
    rounded = into + left.matmul(right)
    add_product(into, left, right)
    assert error(into, exact) < 1e-6 < 1e-4 < error(rounded, exact)


def test_in_one_precision_nothing_is_cast():
    into, left, right = torch.ones(2, 3), torch.ones(2, 4), torch.ones(4, 3)
    expected = into.addmm(left, right)
    add_product(into, left, right)
    assert torch.equal(into, expected)


@pytest.mark.ranks
def test_gradients_of_a_chunk_in_16_bits():
    """Every dense weight's gradient over three micro-batches against the same products in 64 bits; at once and left for
    later. Rounded on the way, the error would be one of 2^-9 of a micro-batch's gradient."""
    (found,) = run_ranks(1, deferred_workers.exact, preload=("tests.model.workers",))
    for how in ("whole", "deferred"):
        errors = found[how]
        assert len(errors) > 8
        assert max(errors.values()) < 2e-6, (how, errors)
