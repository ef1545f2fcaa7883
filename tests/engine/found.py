"""What ranks report. Apart from workers.py: whoever reads a report imports its class, and with workers.py the stub."""

from dataclasses import dataclass


@dataclass
class Found:
    """A step on one rank: its sums of losses and tokens, and gradients by their place in the network."""

    loss: list[float]
    norm: float
    gradients: dict[tuple, bytes]
    engine: dict[str, int]  # Transformer Engine's modules, by class
    local: int  # Megatron's linears, beside the head's
    separable: int
