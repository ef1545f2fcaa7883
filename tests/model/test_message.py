"""What stages send one another: the streams, and a pre beside them, without a rounding, in both directions."""

import pytest
import torch

from hcmegatron.model.message import message_width, pack, unpack
from tests.connections.small_network import config

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pre_crosses_bit_for_bit_and_its_gradient_back(dtype):
    conn, n, C = config("mhc", n=4, single_pass=True), 4, 6
    g = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    H = torch.randn(5, 2, n, C, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    mix = torch.rand(5, 2, n, generator=g, dtype=torch.float64).to(wide).requires_grad_()
    dH, dmix = torch.randn_like(H), torch.randn_like(mix) * 1e-30
    dmix[0, 0, :2] = torch.tensor(
        [-0.0, 1.0000001]
    )  # halves of fp32 that are minus zero, or no number, as 16 bits
    dmix.view(-1)[7] = torch.tensor(-1.5 - 2**-17, dtype=wide)

    message = pack(H, mix)
    assert message.shape == (5, 2, message_width(conn, C, dtype)) and message.dtype == dtype
    received = message.detach().clone().requires_grad_()
    H2, mix2 = unpack(received, n, C)
    assert torch.equal(H2, H) and torch.equal(mix2, mix)
    torch.autograd.backward((H2, mix2), (dH, dmix))
    torch.autograd.backward(message, received.grad)
    assert torch.equal(H.grad, dH)
    same = torch.int64 if dtype == torch.float64 else torch.int32
    assert torch.equal(mix.grad.view(same), dmix.view(same))


def test_streams_alone_are_a_view():
    H = torch.randn(3, 1, 2, 4)
    message = pack(H)
    assert message.data_ptr() == H.data_ptr() and message.shape == (3, 1, 8)
    (again,) = unpack(message, 2, 4)
    assert again.data_ptr() == H.data_ptr() and torch.equal(again, H)
    assert message_width(config("mhc", n=2), 4, torch.bfloat16) == 8
