"""Whether a step's loss or gradient norm is far above those of the steps before it. No torch.

OLMo-core's skip-step optimizer asks how many standard deviations a loss is above the mean of the last 128. Spikes in
the window move both: with four of one height among 128, the next is within six deviations (sqrt(124 / 4) = 5.6). The
median, and the median distance from it (MAD), are moved by no spikes that are fewer than half. Only good steps are in
the window here anyway, so that a run that stays high ends by training.max_bad_steps and not by getting used to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

from hcmegatron.config.schema import Health

Recent = tuple[tuple[float, float], ...]  # (loss, gradient norm) of good steps, oldest first
NORMAL = 1.4826  # of a normal distribution, the standard deviation over the MAD
# Of the median: a deviation is at least so much. A loss that no longer changes has next to none, and every digit of it
# would be a spike.
LEAST = 1e-3


def deviations(value: float, others: Sequence[float]) -> float:
    """How many robust standard deviations `value` is above the median of `others`."""
    middle = median(others)
    spread = NORMAL * median(abs(other - middle) for other in others)
    return (value - middle) / max(spread, LEAST * abs(middle), 1e-30)


class Spikes:
    """The last good steps of a run, and whether another one is a spike beside them.

    Every rank has the same, since loss and gradient norm of a step are known to all: no message is needed.
    """

    def __init__(self, health: Health, recent: Iterable[tuple[float, float]] = ()) -> None:
        self.limits = {"loss": health.loss_spike, "gradient norm": health.grad_norm_spike}
        self.enough = health.spike_window // 2
        self.asked = any(self.limits.values())
        self._recent = deque(map(tuple, recent if self.asked else ()), maxlen=health.spike_window)

    @property
    def recent(self) -> Recent:
        """What has to be kept to go on judging alike; nothing where nobody asks for spikes."""
        return tuple(self._recent)

    def found(self, loss: float, grad_norm: float) -> str:
        """What of a step is a spike, in words; "" where it is none."""
        if not self.asked or len(self._recent) < self.enough:
            return ""
        for (name, limit), value, others in zip(
            self.limits.items(), (loss, grad_norm), zip(*self._recent, strict=True), strict=True
        ):
            if limit and (far := deviations(value, others)) > limit:
                return (
                    f"{name} {far:.1f} deviations above the median {median(others):.4g} of the last "
                    f"{len(others)} good steps"
                )
        return ""

    def add(self, loss: float, grad_norm: float) -> None:
        """A good step."""
        if self.asked:
            self._recent.append((loss, grad_norm))
