"""What a job is, whatever starts it: one rank's program, how many of them and where, and what a site asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hcmegatron.config.errors import ConfigError


class LaunchError(ConfigError):
    """A job that cannot be launched as it was asked for. One line: key, value, remedy."""


def _site(words: str, default: Any) -> Any:
    """A field that a cluster file or an option sets, and what it is in words."""
    return field(default=default, metadata={"words": words})


@dataclass(frozen=True)
class Job:
    """A job as launchers render it.

    Attributes:
        command: the program of one rank, as arguments. Every rank runs the same; who it is, its launcher tells it.
        run_dir: absolute; what is rendered is in its folder `launch`, as are logs.
        work_dir: absolute; the directory in which ranks start, which relative paths of a configuration mean.
        environment: variables that every rank gets, beside those that the launcher hands on.
        code: a copy of the code, which is to be first on the ranks' PYTHONPATH.
    """

    command: tuple[str, ...]
    run_dir: Path
    work_dir: Path
    name: str | None = _site("in the queue; null: the run directory's", None)
    nodes: int = _site("how many machines", 1)
    ranks_per_node: int = _site("ranks on each of them", 1)
    gpus_per_rank: int = _site("0: ranks compute on CPUs", 1)
    cpus_per_rank: int | None = _site("cores of a rank; null: what the site gives", None)
    memory_per_rank_gb: int | None = _site("host memory; null: what the site gives", None)
    time_limit: int | None = _site("minutes; null: the partition's", None)
    account: str | None = _site("who pays", None)
    partition: str | None = _site("queue of machines", None)
    qos: str | None = _site("quality of service", None)
    constraint: str | None = _site("features that machines must have", None)
    reservation: str | None = _site("of machines", None)
    exclude: tuple[str, ...] = _site("machines not to be used", ())
    spare_nodes: int = _site("machines more than `nodes`, of which the healthy ones compute", 0)
    container: str | None = _site("image that ranks run in", None)
    mounts: tuple[str, ...] = _site("directories that it sees, each from:to", ())
    environment: dict[str, str] = field(default_factory=dict, metadata={"words": "NAME: value of every rank"})
    modules: tuple[str, ...] = _site("`module load` of each of them", ())
    setup: tuple[str, ...] = _site("lines of shell before the ranks start", ())
    restarts: int = _site("after a rank or a machine has died, between two time limits", 3)
    chain: int = _site("jobs, each after the one before, where requeueing is not allowed; 0: requeue", 0)
    signal_seconds: int = _site("before the time limit, when ranks are told to save", 300)
    gpu_visibility: Literal["one", "all"] = _site("what a rank sees: its own GPU, or its machine's", "all")
    doctor: bool = _site("look at the machines first, and leave bad ones out", False)
    code: Path | None = None

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.nodes * self.ranks_per_node

    @property
    def title(self) -> str:
        """Its name in a queue: letters, digits and a few signs."""
        return self.name or re.sub(r"[^\w.+-]+", "-", self.run_dir.name, flags=re.ASCII).strip("-") or "run"

    @property
    def folder(self) -> Path:
        """Where scripts, logs and what happened are."""
        return self.run_dir / FOLDER


FOLDER = "launch"
