"""The coefficients that a rank's connections compute, for whoever wants to see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.model.gpt import unwrap


@contextmanager
def coefficients_heard(
    chunks: Sequence[nn.Module], tell: Callable[[int, tuple[Tensor, ...]], None]
) -> Iterator[None]:
    """Within it, `tell(sublayer, (pre, post, res))` is called whenever a connection reads in a forward.

    Plain residuals have no coefficients, and are not heard. Forwards that recomputation runs again are not, either.

    Args:
        chunks: this rank's, wrapped or not.
    """

    def heard(sublayer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(connection: nn.Module, inputs: Any, outputs: tuple[Tensor, tuple[Tensor, ...]]) -> None:
            _, coefficients = outputs
            in_backward = torch._C._current_graph_task_id() != -1
            if coefficients and not in_backward:
                tell(sublayer, tuple(value.detach() for value in coefficients[:3]))

        return hook

    with ExitStack() as hooks:
        for chunk in chunks:
            for layer in unwrap(chunk).decoder.layers:
                for place, sublayer in enumerate(layer.sublayers):
                    number = 2 * (layer.layer_number - 1) + place
                    handle = sublayer.connection.register_forward_hook(heard(number))
                    hooks.callback(handle.remove)
        yield
