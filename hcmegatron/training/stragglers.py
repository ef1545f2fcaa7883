"""Names ranks that compute longer than their peers: a hot device, a busy host, a cable that is replaced by another way.

Everybody waits for the slowest, so that a step's time says that somebody is slow and not who it is. Each rank's own
time does (pipeline/own_time.py).
"""

from __future__ import annotations

import platform
from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from hcmegatron.pipeline.own_time import OwnTimes
from hcmegatron.platform.collective_failure import gathered
from hcmegatron.platform.distributed import device
from hcmegatron.training.observer import Observer, Step

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun

REMEMBERED = 20  # windows, of a rank's past


def times_as_long(
    own: Sequence[float], places: Sequence[tuple[int, int]], past: Sequence[float | None]
) -> list[float]:
    """By rank, how many times as long as is to be expected it has computed. Pure.

    That is beside the median of its peers, those that hold the same stage for other data. A rank without peers is
    compared with its own past, as far as others without peers have not become slower too: a machine that all of them
    share would otherwise have all of them named.

    Args:
        own: seconds.
        places: (pipeline rank, data-parallel rank).
        past: seconds that are usual for it; None where that is not known yet.
    """
    ratios, alone = [], []
    for rank, (stage, data) in enumerate(places):
        peers = [own[other] for other, (s, d) in enumerate(places) if s == stage and d != data]
        usual = median(peers) if peers else past[rank]
        ratios.append(own[rank] / usual if usual else 1.0)
        alone += [] if peers else [rank]
    slower = {rank: [ratios[other] for other in alone if other != rank] for rank in alone}
    for rank, others in slower.items():
        ratios[rank] /= max(1.0, median(others)) if others else 1.0
    return ratios


class Stragglers(Observer):
    """Every health.slow_window steps the ranks tell each other the median of their own times. Who was slow in two such
    windows is named, and again only when that changes.
    """

    def __init__(self, run: TrainingRun) -> None:
        health, groups = run.config.health, run.stepper.groups
        self.factor, self.window, self.log = health.slow_factor, health.slow_window, run.log
        self.times = OwnTimes(run.stepper.schedule, run.chunks)
        run.stepper.schedule = self.times.schedule
        self.pipeline = dist.get_process_group_ranks(groups.pp)
        here = (groups.pp.rank(), groups.dp.rank()), f"{platform.node()}, {device()}"
        self.places, self.where = zip(*gathered(here), strict=True)
        self._begin()
        self.past = [deque[float](maxlen=REMEMBERED) for _ in self.places]
        self.before: set[int] = set()  # slow in the last window
        self.named: set[int] = set()

    def on_step(self, step: Step) -> None:
        """Look at a step; exchange what a window came to. Collective."""
        seconds, waits = self.times.last()
        self.own.append(seconds)
        for rank, waited in waits.items():
            self.waits[self.pipeline[rank]] += waited
        if len(self.own) < self.window:
            return
        peer = max(self.waits, key=self.waits.__getitem__, default=-1)
        mine = torch.tensor(
            [median(self.own), peer, self.waits.get(peer, 0.0) / self.window], dtype=torch.float64
        ).to(device())
        everyones = [torch.empty_like(mine) for _ in self.places]
        dist.all_gather(everyones, mine)
        own, peers, waited = torch.stack(everyones).t().tolist()
        self._begin()
        self.log.say(*self.look(own, list(map(int, peers)), waited))

    def look(self, own: list[float], peers: list[int], waited: list[float]) -> list[str]:
        """What is to be said of a window.

        Args:
            own: by rank, the median of its own seconds a step.
            peers: by rank, for whom it waited longest; -1: not known.
            waited: and for how many seconds a step.
        """
        usual = [median(past) if len(past) > 1 else None for past in self.past]
        ratios = times_as_long(own, self.places, usual)
        slow = {rank for rank, ratio in enumerate(ratios) if ratio > self.factor}
        for rank, past in enumerate(self.past):
            if rank not in slow:
                past.append(own[rank])
        said = []
        for rank in sorted((slow & self.before) - self.named):
            waiting = [(seconds, other) for other, seconds in enumerate(waited) if peers[other] == rank]
            behind = "".join(f"; rank {other} waited {s:.3g} s for it" for s, other in sorted(waiting)[-1:])
            said.append(
                f"slow: rank {rank} ({self.where[rank]}) computed {own[rank]:.3g} s a step, {ratios[rank]:.1f} times "
                f"as long as {self._others(rank)}{behind}"
            )
        said += [
            f"no longer slow: rank {rank} ({self.where[rank]}), {own[rank]:.3g} s a step"
            for rank in sorted(self.named - slow)
        ]
        self.named = (self.named | (slow & self.before)) & slow
        self.before = slow
        return said

    def _others(self, rank: int) -> str:
        stage, data = self.places[rank]
        peers = any(s == stage and d != data for s, d in self.places)
        return "those with the same stage" if peers else "before"

    def _begin(self) -> None:
        self.own: list[float] = []
        self.waits: dict[int, float] = defaultdict(float)
