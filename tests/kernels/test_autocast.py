"""What has a backward by hand computes in its own precision, also inside torch.autocast."""

import pytest
import torch

from hcmegatron import connection
from hcmegatron.kernels.native.library import obstacle
from hcmegatron.kernels.select import NATIVE_FILES

KERNELS = ["torch", "auto"] + ["native"] * (obstacle(4, *NATIVE_FILES) is None)


def results(own, inside, only_backward, dtype):
    """Outputs of a read and a write, and gradients of streams and parameters."""
    generator = torch.Generator().manual_seed(0)
    H = torch.randn(5, 2, own.streams, 32, generator=generator).to(dtype).requires_grad_()
    forward = torch.autocast("cpu", torch.bfloat16, enabled=inside and not only_backward)
    with forward:
        x, coefficients = own.read(H)
        out = own.write(H, torch.tanh(x), coefficients)
    with torch.autocast("cpu", torch.bfloat16, enabled=inside):
        gradients = torch.autograd.grad(out.float().square().sum(), [H, *own.parameters()])
    return [x, out, *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["shc", "dhc", "sfc", "dfc", "mhc", "krom", "ihc", "gr"])
def test_has_the_same_bits(kind, kernels, dtype):
    torch.manual_seed(1)
    own = connection(kind, hidden_size=32, n=4, kernels=kernels, stream_dtype=dtype)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = results(own, False, False, dtype)
    for only_backward in (False, True):
        for got, want in zip(results(own, True, only_backward, dtype), plain, strict=True):
            assert torch.equal(got, want)
