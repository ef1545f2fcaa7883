"""A transformer of plain torch, with any connection around its sub-layers, trained on real text. Needs torch alone.

    python examples/connect_torch_transformer.py                     # mHC with four streams
    python examples/connect_torch_transformer.py --kind residual     # the same network as it was

What changes in the network: every `h = h + T(h)` becomes a `Connected(T, connection)`, the embedding is expanded to n
streams in front of the first, and these are contracted behind the last.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hcmegatron as hc

C, HEADS, LENGTH, BATCH = 64, 4, 64, 8


class Attention(nn.Module):
    """Causal self-attention behind a norm: x [b,s,C] -> y [b,s,C]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = norm, nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the past."""
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def mlp(norm: nn.Module) -> nn.Module:
    """An MLP behind a norm."""
    return nn.Sequential(norm, nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))


class Transformer(nn.Module):
    """Bytes [b,s] -> logits [b,s,256]."""

    def __init__(self, kind: str, layers: int = 2, **settings: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, C), nn.Embedding(LENGTH, C)
        self.sub_layers = nn.ModuleList()
        for k, make in enumerate([Attention, mlp] * layers):
            connection = hc.connection(kind, hidden_size=C, index=k, **settings)
            norm = nn.Identity() if connection.normalises else nn.RMSNorm(C)  # gr's read is normed
            self.sub_layers.append(hc.Connected(make(norm), connection))
        self.head = nn.Sequential(nn.RMSNorm(C), nn.Linear(C, 256))

    def forward(self, tokens: Tensor) -> Tensor:
        """Expand, sub-layers, contract, head."""
        h = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        H = hc.expand(h, self.sub_layers[0].connection.streams)
        for sub_layer in self.sub_layers:
            H = sub_layer(H)
        return self.head(hc.contract(H))

    def loss(self, batch: Tensor) -> Tensor:
        """Nats a byte of windows [b, s+1]."""
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def text() -> tuple[Tensor, Tensor]:
    """The sources of two modules of Python's standard library, to train on, and of a third that is held out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    read = [
        torch.tensor(list((library / f"{name}.py").read_bytes()))
        for name in ("argparse", "typing", "tarfile")
    ]
    return torch.cat(read[:2]), read[2]


def windows(source: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count, LENGTH + 1] bytes from random places."""
    starts = torch.randint(len(source) - LENGTH - 1, (count, 1), generator=generator)
    return source[starts + torch.arange(LENGTH + 1)]


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """For the optimizer: weight decay is not of connections' gates and biases."""
    connections = {p: own for p in model.parameters() if (own := hc.parameter_of(p))}
    still = [p for p, own in connections.items() if not own.decays]
    others = [p for p in model.parameters() if p not in connections or connections[p].decays]
    return [{"params": others}, {"params": still, "weight_decay": 0.0}]


def main(arguments: list[str] | None = None) -> float:
    """Train, and return the loss on held-out text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="mhc")
    parser.add_argument("--streams", type=int, default=4, help="of HC and mHC; fractions of FC")
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    count = {"residual": {}, "sfc": {"fractions": asked.streams}, "dfc": {"fractions": asked.streams}}
    model = Transformer(asked.kind, **count.get(asked.kind, {"streams": asked.streams}))
    print(model.sub_layers[0].connection)
    optimizer = torch.optim.AdamW(groups(model), lr=3e-3)
    (training, held_out), generator = text(), torch.Generator().manual_seed(0)
    for step in range(1, asked.steps + 1):
        loss = model.loss(windows(training, BATCH, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == asked.steps:
            print(f"step {step}: {loss:.3f} nats a byte")
    with torch.no_grad():
        validation = float(model.loss(windows(held_out, 64, generator)))
    print(f"held out: {validation:.3f}")
    return validation


if __name__ == "__main__":
    main()
