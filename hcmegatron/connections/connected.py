"""A sub-layer of any torch network with a connection around it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hcmegatron.connections.connection import Connection


class Connected(nn.Module):
    """H' = carry(H) + write(T(read(H))): in the place of `h + T(h)`, over streams H instead of h.

    T is all that a residual branch has, its norm included: T = norm, then attention or MLP (pre-norm), or with a norm
    behind them (post-norm). The connection adds no norm, unless it `normalises` (gr): then T has none in front.

        connection = hcmegatron.connection("mhc", hidden_size=C, streams=4, index=k)
        layer = Connected(nn.Sequential(nn.RMSNorm(C), mlp), connection)
        H = layer(H)

    Args:
        sub_layer: T, which takes x [s,b,C], and whatever else `forward` is given, to y [s,b,C].
        connection: of build.connection; one for every sub-layer, with its number as index.

    Raises:
        ValueError: a single-pass connection.
    """

    def __init__(self, sub_layer: nn.Module, connection: Connection) -> None:
        super().__init__()
        if connection.single_pass:
            raise ValueError(
                "single_pass=True: a single-pass connection hands its pre to the next sub-layer's, and Connected "
                "knows of no next one; use single_pass=False, or read(H, mix=pre) and write of your own"
            )
        self.sub_layer, self.connection = sub_layer, connection

    def forward(self, H: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Streams [s,b,w,C] -> [s,b,w,C]. The first two are the tokens' dimensions, in whichever order T has them.

        Args:
            H: the streams.
            *args: for the sub-layer, behind x: masks, positions.
            **kwargs: the same, by name.

        Raises:
            ValueError: H is not four-dimensional, or as wide as the connection's streams.
            TypeError: the sub-layer returns anything but one tensor of x's shape.
        """
        built = self.connection.built
        if H.dim() != 4 or (built and H.shape[-2:] != (built.streams, built.hidden_size)):
            width = f"{built.streams}, {built.hidden_size}" if built else "w, C"
            raise ValueError(
                f"streams of shape {list(H.shape)}: must be [s, b, {width}]; make them with "
                "hcmegatron.expand(h, connection.streams)"
            )
        x, coefficients = self.connection.read(H)
        y = self.sub_layer(x, *args, **kwargs)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            what = f"a tensor of shape {list(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise TypeError(
                f"{type(self.sub_layer).__name__} returned {what}: a sub-layer returns one tensor of its input's "
                f"shape, {list(x.shape)}"
            )
        return self.connection.write(H, y, coefficients)
