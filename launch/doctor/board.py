"""What ranks tell each other before, while and after torch.distributed runs: by rank 0's key-value store, in time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform.ranks import RankInfo

_POLL_S = 0.02
LATE_S = 10.0  # by which rank 0's patience may have begun later than another's


class Lost(Exception):
    """Rank 0, or its store, is gone; in words."""


class Terminated(BaseException):
    """This process was told to end (SIGTERM): launchers end all ranks where one has died. No check may catch it."""


class Board:
    """Every rank pins what it has to say; rank 0 judges who was in time, and all hear the same.

    Raises:
        ConfigError: rank 0 is not to be reached within `limit`, or its port is taken.
    """

    def __init__(self, ranks: RankInfo, limit: float) -> None:
        self.ranks = ranks
        self._poll = _POLL_S * max(1.0, ranks.world_size / 64)  # all ask the one store
        import torch.distributed as dist

        from hcmegatron.platform.rendezvous import join_store

        if ranks.world_size == 1:
            self.store: dist.Store = dist.HashStore()
        else:
            self.store = join_store(ranks, timedelta(seconds=limit), "the doctor's --timeout")
        self.store.set_timeout(timedelta(seconds=limit))
        if self.store.add(f"came {ranks.rank}", 1) > 1:
            raise ConfigError(f"two processes say that they are rank {ranks.rank} of {ranks.world_size}")

    def pin(self, topic: str, value: Any) -> None:
        """Tell the others, without waiting for them."""
        try:
            self.store.set(f"{topic} {self.ranks.rank}", json.dumps(value))
        except RuntimeError as error:
            raise Lost(str(error).partition("\n")[0]) from None

    def read(self, topic: str, rank: int) -> Any:
        """What a rank has pinned; None if nothing."""
        try:
            key = f"{topic} {rank}"
            return json.loads(self.store.get(key)) if self.store.check([key]) else None
        except RuntimeError as error:
            raise Lost(str(error).partition("\n")[0]) from None

    def exchange(
        self, topic: str, value: Any, limit: float, among: Iterable[int], grace: float = math.inf
    ) -> dict[int, Any]:
        """By rank, in order, what those had to say who came within `limit` seconds; the same on all. Collective.

        Args:
            value: not None. Of ranks that are not `among` those waited for it is not heard.
            grace: seconds after the last one who came that the others get at most.

        Raises:
            Lost: rank 0 does not answer, or has given this rank up.
        """
        self.pin(topic, value)
        among, verdict, me = list(among), f"{topic}: who came", self.ranks.rank
        if me == 0:
            came = self._gather(topic, among, limit, grace)
            self.pin(verdict, came)  # in one answer: every rank's read of every other's would be ranks^2
            return came
        end = time.monotonic() + limit + LATE_S
        while (answer := self.read(verdict, 0)) is None:
            if time.monotonic() > end:
                raise Lost("rank 0 does not answer any more")
            time.sleep(self._poll)
        heard = {int(rank): said for rank, said in answer.items()}
        if me in among and me not in heard:
            raise Lost(f"rank 0 has waited {limit:.0f} s for this rank, and goes on without it")
        return heard

    def _gather(self, topic: str, among: list[int], limit: float, grace: float) -> dict[int, Any]:
        end, last, came = time.monotonic() + limit, math.inf, dict[int, Any]()
        while True:
            for rank in among:
                if rank not in came and (said := self.read(topic, rank)) is not None:
                    came[rank], last = said, time.monotonic()
            if len(came) == len(among) or time.monotonic() > min(end, last + grace):
                return dict(sorted(came.items()))
            time.sleep(self._poll)
