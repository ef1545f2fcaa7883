"""What of an observation is worth a warning, with the sub-layer and what to do about it. No torch.

The bounds are far from what healthy runs showed (docs/diagnostics.md): a rule that fires is to be looked at, and none
stops a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hcmegatron.diagnostics.files import Warned

GREW = 3.0  # times its norm of the last observation, from which a sub-layer's gradient has grown


class Rule(NamedTuple):
    """A figure per sub-layer, the bound above which it is worth a warning, and what is said then.

    Attributes:
        of: arrays of an observation -> [S], or [1] for the end of the stack; None where they have no such figure.
        what: a format for the value.
    """

    code: str
    of: Callable[[Mapping[str, np.ndarray]], np.ndarray | None]
    bound: float
    what: str
    remedy: str


def _largest(*names: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray | None]:
    def of(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
        return np.max([arrays[name] for name in names], 0) if names[0] in arrays else None

    return of


def _collapsed(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Of the streams that leave the last sub-layer, how similar the least similar two are. FC's fractions are parts of
    one stream, whose pre is a matrix."""
    similarity = arrays["stream_similarity"][-1]
    return similarity.min()[None] if len(similarity) > 1 and arrays["pre"].ndim == 2 else None


RULES = (
    Rule(
        "composite_gain",
        _largest("composite_forward", "composite_backward"),
        100.0,
        "signals or gradients can grow {:.3g} times from there to the end of the stack",
        "lower optimizer.lr or connection.lr_multiplier, or use connection.kind=mhc",
    ),
    Rule(
        "column_sums",
        _largest("doubly_stochastic_error"),
        0.1,
        "a row or column of the residual map sums to 1 but for {:.3g}",
        "raise connection.sinkhorn_iterations, or lower connection.lr_multiplier",
    ),
    Rule(
        "streams_collapsed",
        _collapsed,
        0.99999,  # the quickstart's, after 25 steps: 0.9992
        "all streams are as good as one after it: no two have a cosine below {:.6f}",
        "raise connection.lr_multiplier, or save memory with a smaller connection.n",
    ),
    Rule(
        "gates_saturated",
        _largest("gate_saturation"),
        0.5,
        "{:.0%} of what predicts its coefficients is saturated, and hardly learns",
        "lower connection.lr_multiplier, or of a kind that has it connection.alpha_init or connection.tanh",
    ),
)


def warnings(arrays: Mapping[str, np.ndarray]) -> list[Warned]:
    """All that the rules find, in their order and in depth order. What is not a number is beyond every bound."""
    names, found = [str(name) for name in arrays["sublayers"]], []
    for rule in RULES:
        values = rule.of(arrays)
        if values is None:
            continue
        for name, value in zip(names[-len(values) :], values.tolist(), strict=True):
            if not value <= rule.bound:
                message = f"{name}: {rule.what.format(value)}; {rule.remedy}"
                found.append(Warned(rule.code, name, value, rule.bound, message))
    return found


def spiked(
    names: Sequence[str], loss: float, why: str, norms: np.ndarray, before: np.ndarray | None
) -> Warned:
    """The warning of a step whose loss spiked: which sub-layer's gradient grew first.

    Backward comes from the end of the stack: the first is the last sub-layer in depth whose gradient norm is more than
    GREW times that of the last observation; where none is, the one that grew most, or, without an observation before
    it, the one with the largest norm.

    Args:
        why: what makes it a spike, in words.
        norms, before: [S], of the sub-layers' gradients at this step and at the last observation.
    """
    if before is None:
        place, grown = int(np.argmax(norms)), float("nan")
        what = "has the largest gradient norm"
    else:
        ratios = norms / np.maximum(before, np.finfo(float).tiny)
        over = np.flatnonzero(ratios > GREW)
        place = int(over[-1]) if len(over) else int(np.argmax(ratios))
        grown = float(ratios[place])
        what = f"was the first whose gradient grew, to {grown:.3g} times that of the last observation"
    message = (
        f"{names[place]}: {what}, where the loss spiked to {loss:.4g} ({why}); lower optimizer.lr, or let "
        "health.loss_spike skip such steps"
    )
    return Warned("loss_spike", names[place], grown, GREW, message)


@dataclass
class Said:
    """Which warnings have been said: each once, and again only after it has cleared."""

    standing: set[tuple[str, str]] = field(default_factory=set)

    def lines(self, found: Iterable[Warned]) -> list[str]:
        """What is new of an observation's: of every code one line, with its worst sub-layer and the others' number."""
        found = list(found)
        new = [warned for warned in found if (warned.code, warned.layer) not in self.standing]
        self.standing = {(warned.code, warned.layer) for warned in found}
        lines = []
        for code in dict.fromkeys(warned.code for warned in new):
            of_code = [warned for warned in new if warned.code == code]
            worst = max(of_code, key=lambda warned: np.nan_to_num(warned.value, nan=np.inf))
            others = [warned.layer for warned in of_code if warned is not worst]
            more = (
                f" (so do {', '.join(others[:3])}{f' and {len(others) - 3} more' if len(others) > 3 else ''})"
            )
            lines.append(f"warning: {worst.message}{more if others else ''}")
        return lines
