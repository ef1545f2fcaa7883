"""With a kind's values as the residual network, equal streams stay equal, and each of them is that network's stream."""

import pytest
import torch

from hcmegatron.config.schema import Connection
from hcmegatron.connections import accounting
from hcmegatron.connections.build import build_connection
from hcmegatron.connections.expand_contract import expand

KINDS = {
    "mhc": {},
    "mhc, mean read": {"use_pre": False},
    "mhc, single pass": {"single_pass": True},
    "mhc, epsilon": {"pre_eps": 1e-6},
    "mhc_lite": {},
    "krom": {},
    "ihc": {},
    "ihc, epsilons": {"pre_eps": 1e-6, "post_eps": 1e-6},
}
C, SUB_LAYERS = 8, 5


@pytest.mark.parametrize("name", KINDS)
def test_equal_streams_are_the_residuals(name):
    conn = Connection(kind=name.split(",")[0], n=4, **KINDS[name])
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(3, 2, C, generator=generator)
    H, mix, given = expand(h, 4), None, {}
    for k in range(SUB_LAYERS):
        connection = build_connection(conn, C, k, norm_eps=1e-6, kernels="torch")
        values = accounting.kind_of(conn).as_residual(conn, k)
        with torch.no_grad():
            for key, value in values.items():
                getattr(connection, key).copy_(torch.tensor(value))
            if accounting.single_pass(conn):
                given = {"mix": mix}
            x, coefficients = connection.read(H, **given)
            mix = coefficients[0]
            W = torch.randn(C, C, generator=generator)
            H = connection.write(H, torch.tanh(x @ W), coefficients)
            h = h + torch.tanh(h @ W)
        seen = H.mean(-2, keepdim=True) if name == "mhc, mean read" else H
        torch.testing.assert_close(seen, h.unsqueeze(-2).expand_as(seen), rtol=2e-5, atol=2e-6)
