"""Real connections and norms around cheap sub-layers, through the same interface as a chunk's layers."""

from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import nn

from hcmegatron.config.schema import Connection
from hcmegatron.connections.accounting import kind_of, streams
from hcmegatron.connections.build import build_connection
from hcmegatron.model.dropout import Dropout
from hcmegatron.model.layer import AroundSubLayer
from hcmegatron.model.norms import Norm


class Stack(nn.Module):
    """L sub-layers over C channels: norm, where the read has none, a linear (which saves its output), write."""

    def __init__(
        self,
        kind="mhc",
        n=4,
        sublayers=8,
        C=256,
        dropout=0.0,
        norm="rmsnorm",
        dtype=torch.float32,
        kernels="torch",
        **settings,
    ):
        super().__init__()
        conn = Connection(kind=kind, n=n, **settings)
        self.C, self.width, self.dtype = C, streams(conn), dtype
        torch.manual_seed(1)
        config = SimpleNamespace(params_dtype=dtype, sequence_parallel=False)
        self.connections = nn.ModuleList(
            build_connection(conn, C, k, norm_eps=1e-6, kernels=kernels) for k in range(sublayers)
        )
        self.norms = nn.ModuleList(
            nn.Identity() if kind_of(conn).normalises else Norm(config, C, 1e-6, norm)
            for _ in range(sublayers)
        )
        self.linears = nn.ModuleList(nn.Linear(C, C, bias=False, dtype=dtype) for _ in range(sublayers))
        with torch.no_grad():
            for parameter in self.connections.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        self.sublayers = [
            AroundSubLayer(connection, norm, nn.Identity(), Dropout(dropout, f"sub-layer {k}"))
            for k, (connection, norm) in enumerate(zip(self.connections, self.norms, strict=True))
        ]
        for sublayer, following in pairwise(self.sublayers):
            sublayer.following = following.connection
        self.calls = 0

    def forward(self, streams, activation_policy, first_sample=0):
        state = (streams,)
        for sublayer, linear in zip(self.sublayers, self.linears, strict=True):
            with activation_policy.node():
                streams, *projection = state
                x, coefficients = activation_policy.read(sublayer, streams, *projection)
                y = linear(x)
                self.calls += 1
                state = activation_policy.write(sublayer, streams, y, coefficients, first_sample=first_sample)
        return state[0]

    def input(self, tokens=16, seed=3):
        generator = torch.Generator().manual_seed(seed)
        made = torch.randn(tokens, 1, self.width, self.C, generator=generator).to(self.dtype)
        return made.requires_grad_()
