"""A small causal pre-norm network in plain torch, with a connection around every sub-layer."""

import torch
from torch import nn
from torch.nn import functional as F

from hcmegatron.config.schema import Connection as ConnectionConfig
from hcmegatron.connections import accounting, kinds
from hcmegatron.connections.accounting import streams
from hcmegatron.connections.build import build_connection, build_contract
from hcmegatron.connections.expand_contract import expand

KINDS = tuple(kinds.KINDS)
WIDE = tuple(kind for kind in KINDS if streams(ConnectionConfig(kind=kind, n=2)) == 2)  # with streams to mix
LINEAR = tuple(kind for kind in WIDE if not kinds.KINDS[kind].normalises)  # whose read is a sum of them


def config(kind, **fields):
    return ConnectionConfig(kind=kind, **fields)


def fits(conn, C=12):
    return accounting.problem(conn, C, str) is None


def some(kind, n, **fields):
    """With n streams or fractions, or the next number that the kind takes."""
    return next(conn for more in range(n, 9) if fits(conn := config(kind, n=more, **fields)))


class SubLayer(nn.Module):
    """Norm, then a mean over the past (odd index: none), then two linears: causal, cheap, nonlinear."""

    def __init__(self, C, index, eps):
        super().__init__()
        self.eps, self.over_time = eps, index % 2 == 0
        self.up, self.down = nn.Linear(C, 2 * C), nn.Linear(2 * C, C)

    def forward(self, x):
        x = F.rms_norm(x, x.shape[-1:], eps=self.eps)
        if self.over_time:
            x = x.cumsum(0) / torch.arange(1, x.shape[0] + 1, dtype=x.dtype)[:, None, None]
        return F.linear(F.silu(self.up(x)), self.down.weight), self.down.bias


class Network(nn.Module):
    """h [s,b,C] -> [s,b,C]. Sub-layers' weights depend on the seed only, not on the connection."""

    def __init__(self, conn, C=12, sublayers=4, seed=0, eps=0.0):
        super().__init__()
        self.conn, self.eps = conn, eps
        torch.manual_seed(seed)
        self.sublayers = nn.ModuleList(SubLayer(C, k, eps) for k in range(sublayers)).double()
        self.connections = nn.ModuleList(
            build_connection(conn, C, k, norm_eps=1e-6, dtype=torch.float64) for k in range(sublayers)
        )
        self.contract = build_contract(conn, C, norm_eps=1e-6, dtype=torch.float64)

    def forward(self, h, inputs=None, coefficients=None, streams=None):
        H, mix = expand(h, self.connections[0].streams), ()
        for T, connection in zip(self.sublayers, self.connections, strict=True):
            x, c = connection.read(H, None, *mix)
            mix = c[:1] if connection.single_pass else ()
            y, bias = T(x)
            H = connection.write(H, y, c, bias)
            for kept, value in ((inputs, (x, y + bias)), (coefficients, c), (streams, H)):
                if kept is not None:
                    kept.append(value)
        return F.rms_norm(self.contract(H, *mix), h.shape[-1:], eps=self.eps)

    def connection_parameters(self):
        return [*self.connections.parameters(), *self.contract.parameters()]


def randomise(module, scale=0.3, seed=1):
    """Add noise to every parameter of a connection: at init half of the gradients vanish by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return module


def tokens(s=5, b=2, C=12, seed=2):
    return torch.randn(s, b, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
