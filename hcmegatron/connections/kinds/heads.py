"""How n streams become one before the final norm: the ways, each in a line of HEADS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hcmegatron.connections.kinds.descriptor import Head, Parameter, Parameters, setting
from hcmegatron.connections.kinds.shared_settings import Rooted, Several, Trained


@dataclass
class LearnedHead(Rooted, Trained):
    """What the learned contraction reads: it predicts its weights as mHC predicts pre."""


def _parameters(n: int, C: int) -> Parameters:
    return {
        "phi_head": Parameter((n * C, n), "projection", "matrix"),
        "alpha_head": Parameter((1,), "gate"),
        "b_head": Parameter((n,), "static"),
    }


_ENDS = "hcmegatron.connections.expand_contract"

HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head("sum", f"{_ENDS}:Sum"),
        Head("mean", f"{_ENDS}:Mean"),
        Head(
            "head", f"{_ENDS}:ContractHead", _parameters, lambda n, C: 2 * n * C * n + 2 * n * C, LearnedHead
        ),
    )
}


@dataclass
class Streams(Several):
    """Of kinds that widen the stream n times. Others have nothing to contract."""

    contract: Literal[tuple(HEADS)] = setting(  # type: ignore[valid-type]
        "sum", elsewhere="use hcmegatron.contract or hcmegatron.contraction"
    )  # how the streams become one before the final norm
