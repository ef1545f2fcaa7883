"""What every connection is: read a sub-layer's input from the streams, write its output back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hcmegatron.connections.mixing import mix
from hcmegatron.kernels.select import Kernels

Coefficients = tuple[Tensor, ...]
Projection = tuple[Tensor, Tensor]  # of mHC: Hv phi [T, K] and the sums of squares [T], T = s b, fp32


@dataclass(frozen=True)
class Built:
    """What a connection was built as.

    Attributes:
        streams: w, the width of the stream in units of C.
        index: of the sub-layer, through the whole network.
        settings: how many streams or fractions, and those that are not the defaults.
        kernels: which, and why, in words; None of kinds without.
        normalises: whether x is normed already, so that the sub-layer has no norm in front.
    """

    kind: str
    hidden_size: int
    streams: int
    index: int
    settings: dict[str, Any]
    kernels: str | None
    normalises: bool = False


class Connection(nn.Module):
    """The connection around one sub-layer T (norm -> attention or FFN), in three parts; the head is `ends`' or a module
    of its own (kinds/heads.py).

    Streams H are [s, b, w, C] with w = accounting.streams(conn): n for HC and mHC, 1 for residual and FC, which
    views its single stream as m contiguous fractions.

    - `read` makes T's input and the coefficients, once per token, in fp32 (fp64 for fp64 streams); they stay in that
      precision until applied, and `write` of the same sub-layer takes them back.
    - `carry` is the residual map: what the streams become without T.
    - `write` adds T's output to what was carried. Kinds with kernels do both in one pass.

    Coefficients are (pre, post, res, ...): x = pre H, H' = res H + post y, with res[o, i] the weight of stream i in
    stream o. (pre, post) says that the carry is the identity, () that post is one, too: the residual connection.
    Leading dimensions are the tokens' [s, b], or absent where they are static. mHC appends H itself, as it left the
    read: a write that uses it gives the streams one gradient, formed in the read's backward, instead of two to add.

    A kind whose descriptor says that it `normalises` returns T's normed input from `read`: the layer has no norm there.
    A kind's class is built as Class(conn, C, index, *, norm_eps, kernels, dtype, device): conn has the fields of its
    descriptor's settings, index is the sub-layer's number through the whole network, kernels are None where its
    descriptor says so. Its parameters are those that its descriptor lists.

    A single-pass connection's read takes the pre of the sub-layer before; its own, coefficients[0], is for the next.

    Attributes:
        built: by build.connection or build.build_connection.
        single_pass: as its descriptor says.
    """

    built: Built | None = None
    single_pass = False

    @property
    def streams(self) -> int:
        """w, the width of the stream in units of C: what expand takes."""
        assert self.built is not None, "of a connection that hcmegatron.connection has built"
        return self.built.streams

    @property
    def normalises(self) -> bool:
        """Whether `read` norms what it gives T, which then has no norm in front."""
        assert self.built is not None, "of a connection that hcmegatron.connection has built"
        return self.built.normalises

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """A sub-layer stands between a connection's parts, so it is not called itself: TypeError that says how."""
        raise TypeError(
            "a connection is not called itself: Connected(sub_layer, connection)(H) runs a sub-layer with it, or x, "
            "coefficients = connection.read(H), y = sub_layer(x), H = connection.write(H, y, coefficients)"
        )

    def extra_repr(self) -> str:
        """What it was built as, in the words of hcmegatron.connection."""
        if self.built is None:
            return ""
        built = self.built
        words = {"hidden_size": built.hidden_size, "index": built.index, **built.settings}
        if built.kernels:
            words["kernels"] = built.kernels
        return ", ".join([repr(built.kind), *(f"{name}={value!r}" for name, value in words.items())])

    def read(
        self, H: Tensor, projection: Projection | None = None, mix: Tensor | None = None
    ) -> tuple[Tensor, Coefficients]:
        """H [s,b,w,C] -> the sub-layer's input x [s,b,C] in H's dtype, and the coefficients.

        projection: what the previous connection's `write_and_project` gave for this one and this H.
        mix: of a single-pass connection, the pre [s,b,n] of the sub-layer before; None for the network's first one,
            which reads stream 0, equal to the others there.
        """
        raise NotImplementedError

    def carry(self, H: Tensor, coefficients: Coefficients) -> Tensor:
        """H [s,b,w,C] -> what the streams are without T: res H, in res's precision, or H itself."""
        return mix(H, coefficients[2]) if len(coefficients) > 2 else H

    def write(
        self,
        H: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """H [s,b,w,C], y = T(x) [s,b,C], bias [C] still to be added to y, dropout probability -> H'
        [s,b,w,C]: the carried streams plus post dropout(y + bias), summed in the coefficients' precision and rounded
        once."""
        y = biased(y, bias, dropout, self.training).unsqueeze(-2)
        if len(coefficients) > 1:
            post = coefficients[1]
            y = post.unsqueeze(-1) * y.to(post.dtype)
        return (self.carry(H, coefficients) + y).to(H.dtype)

    def write_and_project(
        self,
        following: Connection,
        H: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Projection | None]:
        """`write`, and in the same pass over the streams what `following.read` would start with; None where
        the kernels have no such fold. The projection carries no gradient and stays valid for as long as H'
        and the parameters of `following` do, so it may be kept beside H' for a block that is recomputed.
        """
        return self.write(H, y, coefficients, bias, dropout), None


def compute_dtype(H: Tensor) -> torch.dtype:
    """Coefficients and sums over streams: fp32, or fp64 for fp64 streams."""
    return torch.float64 if H.dtype == torch.float64 else torch.float32


def per_token(
    H: Tensor, y: Tensor, post: Tensor, res: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """With tokens [s, b] as one dimension, in front: static coefficients are repeated for every token."""
    s, b, n, _ = H.shape
    carry = None if res is None else res.expand(s, b, n, n).flatten(0, 1)
    return H.flatten(0, 1), y.flatten(0, 1), post.expand(s, b, n).flatten(0, 1), carry


def write_streams(
    kernels: Kernels,
    H: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """The kernels' write over tokens [s, b] as one dimension.

    H [s,b,n,C]; y [s,b,1 or n,C]; bias [1 or n,C]; post [n] or [s,b,n]; res [n,n] or [s,b,n,n], or None where
    the carry is the identity -> [s,b,n,C].
    """
    out: Tensor = kernels.write(*per_token(H, y, post, res), bias, dropout)
    return out.view(H.shape)


def biased(y: Tensor, bias: Tensor | None, dropout: float, training: bool) -> Tensor:
    """Megatron's sub-layers hand back (output, bias): dropout(y + bias), in fp32 or better where that is not y."""
    if bias is not None or (dropout and training):
        y = y.to(compute_dtype(y))
    if bias is not None:
        y = y + bias
    return F.dropout(y, dropout, training) if dropout else y
