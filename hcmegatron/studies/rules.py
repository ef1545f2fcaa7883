"""Learning rates and batch sizes by published laws. N: active parameters without embedding and head; D: tokens.

Their numbers were found for AdamW, other data and other sizes: a study of connections should know that its rates are
near their best for every kind, which an axis `lr_times: [0.5, 1, 2]` shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

# Of a rule that is known and cannot be had.
REFUSED = {
    "mup": "needs Megatron-Core's use_mup, which its releases up to 0.19 have not, and which knows no widened streams",
}


class Law(NamedTuple):
    """A learning rate, or a batch in tokens, as a function of N and D; its words and its source."""

    words: str
    source: str
    at: Callable[[float, float], float]


LEARNING_RATES = {
    "olmo_ladder": Law(
        "0.0047 (N / 108e6)^(-1/3) / 2",
        "the model ladder of OLMo-core, whose half is for warm-up, stable, decay",
        lambda N, D: 0.0047 * (N / 108e6) ** (-1 / 3) / 2,
    ),
    "step_law": Law(
        "1.79 N^-0.713 D^0.307",
        "Step Law, 2503.04715",
        lambda N, D: 1.79 * N**-0.713 * D**0.307,
    ),
}
BATCHES = {
    "olmo_ladder": Law(
        "2048 * 160 (N / 108e6)^(2/3) tokens",
        "the model ladder of OLMo-core",
        lambda N, D: 2048 * 160 * (N / 108e6) ** (2 / 3),
    ),
    "step_law": Law("0.58 D^0.571 tokens", "Step Law, 2503.04715", lambda N, D: 0.58 * D**0.571),
}
