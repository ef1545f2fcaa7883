"""One rank's part of an examination: who is there, what was said so far, and how ranks hear of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcmegatron.platform.ranks import RankInfo
from launch.doctor import judge
from launch.doctor.board import Board
from launch.doctor.findings import Finding, Report, fault
from launch.doctor.run_sizes import RunSizes
from launch.doctor.slurm_nodes import node_of_ranks
from launch.doctor.subject import Subject
from launch.doctor.system import System

LAST_S = 5.0  # that rank 0 waits for the others at the end


@dataclass(frozen=True)
class Request:
    """What is to be looked at.

    Attributes:
        directory: the run's.
        limit: seconds after which a rank that does not answer is given up.
    """

    directory: Path
    sizes: RunSizes
    limit: float = 30.0


class Visit:
    """What a rank knows of all of them.

    Attributes:
        cards: by rank, what it said of itself when it came.
        alive: the ranks that have answered so far.
        nodes: by machine its ranks, in order of the first; its keys in a list are `names`.
        leaders: the first rank of every machine, which speaks for it.
        findings: on rank 0, of all.
        noise: why rates of messages say little about links, in words; "" where there is no reason.
    """

    def __init__(self, request: Request, ranks: RankInfo, system: System, gpus: int) -> None:
        self.request, self.ranks, self.system = request, ranks, system
        self.subject = Subject(system, ranks, request.directory, request.sizes, gpus)
        self.alive = list(range(ranks.world_size))
        self.cards: dict[int, dict[str, Any]] = {}
        self.nodes: dict[str, list[int]] = {}
        self.findings: list[Finding] = []
        self.figures: dict[str, Any] = {"sizes": vars(request.sizes)}
        self.noise, self.hung = "", False

    def join(self) -> None:
        """Find rank 0. ConfigError where that takes longer than the limit."""
        self.board = Board(self.ranks, self.request.limit)

    def introduce(self, card: dict[str, Any]) -> None:
        """Tell the others of this rank, and hear who they are."""
        self.cards = self.exchange("card", card, "when it was called")
        for rank, other in self.cards.items():
            self.nodes.setdefault(other["node"], []).append(rank)

    @property
    def names(self) -> list[str]:
        """The machines that have come."""
        return list(self.nodes)

    @property
    def leaders(self) -> list[int]:
        """Who speaks for each of them."""
        return [ranks[0] for ranks in self.nodes.values()]

    def exchange(
        self, topic: str, value: Any, when: str, among: Sequence[int] | None = None
    ) -> dict[int, Any]:
        """By rank, what it has to say. Who does not answer is noted, and not waited for any more. Collective.

        Args:
            when: what was being done, in words.
            among: None: all who are there. What others say is not heard.
        """
        among = self.alive if among is None else [rank for rank in among if rank in self.alive]
        heard = self.board.exchange(topic, value, self.request.limit, among)
        self.miss([rank for rank in among if rank not in heard], when)
        return heard

    def miss(self, gone: Sequence[int], when: str) -> None:
        """Note ranks that did not answer."""
        self.alive = [rank for rank in self.alive if rank not in gone]
        self.findings += judge.missing(gone, self.ranks.world_size, self.node_of, when)

    def node_of(self, rank: int) -> str | None:
        """A rank's machine; of one that never came, where SLURM says it."""
        if rank in self.cards:
            return self.cards[rank]["node"]
        return node_of_ranks(self.system.environment).get(rank)

    def describe(self, rank: int) -> str:
        """A rank's device in words."""
        card = self.cards[rank]
        return f"rank {rank} ({'GPU' if self.subject.gpu else 'CPU'} {card['local_rank']} of {card['node']})"

    def cut_short(self) -> Report | None:
        """Rank 0's report of what was found until it was told to end."""
        if self.ranks.rank:
            return None
        remedy = "see who has died; srun and --ranks let the others say it (docs/doctor.md)"
        self.findings.append(fault("ranks", "told to end (SIGTERM) before everything was looked at", remedy))
        self.hung = True  # what was being measured is not waited for
        return self._report()

    def conclude(self) -> Report | None:
        """Rank 0's report. It waits until all have heard the last word, for its store goes with it."""
        if self.ranks.rank:
            self.board.pin("heard", True)
            return None
        self.board.exchange("heard", True, LAST_S, self.alive)
        return self._report()

    def _report(self) -> Report:
        named = dict.fromkeys([*self.nodes, *(node for one in self.findings for node in one.nodes)])
        return Report(self.findings, list(named) or [self.system.node], self.figures, self.hung)
