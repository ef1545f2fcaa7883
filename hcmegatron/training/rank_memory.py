"""The most memory that each pipeline rank has held, left in the run directory for `hcmegatron report`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from hcmegatron.training.metrics import peak_memory_gib
from hcmegatron.training.observer import End, Observer

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun

FOLDER = "memory"


class RankMemory(Observer):
    """Writes memory/rank-000.json at the run's end: rank, pipeline_rank, gib, and whether it is of a GPU or of the
    whole process. Of every pipeline rank one tells, the first of its data and tensor parallel ranks; none sends
    anything. A place that cannot be written costs the run nothing, and is said where rank 0 finds it."""

    def __init__(self, run: TrainingRun) -> None:
        groups = run.stepper.groups
        self.log, self.rank, self.pipeline_rank = run.log, run.ranks.rank, groups.pp.rank()
        self.folder = run.directory / FOLDER if groups.dp.rank() == groups.tp.rank() == 0 else None
        self.tell = set(
            dist.get_process_group_ranks(groups.pp)
        )  # all that do, where this rank is one of them

    def on_end(self, end: End) -> None:
        """After an error nothing is written: what the run held then is not what it needs."""
        if self.folder is None or end.error is not None:
            return
        found = {
            "rank": self.rank,
            "pipeline_rank": self.pipeline_rank,
            "gib": peak_memory_gib(),
            "of": "GPU" if torch.cuda.is_available() else "process",
        }
        try:
            self.folder.mkdir(exist_ok=True)
            if self.rank == 0:
                self._remove_others()
            (self.folder / f"rank-{self.rank:03d}.json").write_text(json.dumps(found) + "\n")
        except OSError as error:
            self.log.say(f"warning: {self.folder} cannot be written: {error.strerror}")

    def _remove_others(self) -> None:
        """What ranks left that told in an earlier layout of this run."""
        own = {f"rank-{rank:03d}.json" for rank in self.tell}
        for path in self.folder.glob("rank-*.json"):
            if path.name not in own:
                path.unlink(missing_ok=True)
