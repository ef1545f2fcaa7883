"""Dropout whose masks are a function of what they fall on.

Right before a mask is drawn the device's generator is seeded from (training.seed, the place in the network, the
micro-batch's first sample in the whole run, and the tensor-parallel rank where ranks hold different values). So no
two masks of a run are the same one; every layout without tensor parallelism and every schedule has those of one
process; recomputation draws a mask again by seeding again; and a run goes on without any generator's state.
"""

from __future__ import annotations

from dataclasses import dataclass

from hcmegatron.platform.seeds import seed_draws, seed_of


@dataclass(frozen=True)
class Dropout:
    """One place in the network where values are dropped out.

    Attributes:
        probability: of a value to be dropped.
        place: its name in the whole network.
        seed: training.seed.
        part: which of the tensor-parallel ranks' different values these are; 0 where all ranks hold the same.
    """

    probability: float
    place: str = ""
    seed: int = 0
    part: int = 0

    def begin(self, first_sample: int | None, training: bool) -> None:
        """Say which micro-batch the values are of, right before the mask is drawn. Nothing to do where none is.

        Args:
            first_sample: number of the micro-batch's first sequence, counted through the whole training run.
            training: of the module that drops out.

        Raises:
            ValueError: there is a mask to draw, and no first_sample.
        """
        if not (training and self.probability):
            return
        if first_sample is None:
            raise ValueError(
                f"dropout of {self.probability} at {self.place}: the micro-batch does not say which samples it holds; "
                "give the model first_sample, or train without dropout"
            )
        seed_draws(seed_of(self.seed, self.place, self.part, first_sample))
