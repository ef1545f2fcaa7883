"""What is to be trained, a run directory each: a study's runs, and behind each of them its branches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hcmegatron.config.schema import Config
from hcmegatron.studies.expand import branch_settings
from hcmegatron.studies.runs import Branch, StudyRun
from hcmegatron.studies.study import Study, with_settings


@dataclass(frozen=True)
class Task:
    """A run, or a decay from one of its checkpoints.

    Attributes:
        name: of its directory.
        config: without the directories, which are the study directory's to give (directory.py).
    """

    name: str
    run: StudyRun
    branch: Branch | None
    config: Config

    @property
    def steps(self) -> int:
        """Its last one; a branch counts those of its run before it."""
        return self.run.steps if self.branch is None else self.branch.steps

    @property
    def tokens(self) -> int:
        """That it has been trained with then."""
        return self.run.tokens if self.branch is None else self.branch.tokens


def tasks(study: Study, runs: Iterable[StudyRun]) -> tuple[Task, ...]:
    """Every run, and behind it its branches: the order in which they are started."""
    found: list[Task] = []
    for run in runs:
        found.append(Task(run.name, run, None, _config(study, study.config(run))))
        for branch in run.branches:
            config = with_settings(study.base_config, branch_settings(run, branch))
            found.append(Task(f"{run.name}--{branch.name}", run, branch, _config(study, config)))
    return tuple(found)


def _config(study: Study, config: Config) -> Config:
    """What a study asks of every run: that it can go on, and that it ends when it has diverged."""
    limit = study.stop.diverged_steps
    if limit:
        config = replace(
            config,
            health=replace(config.health, diverged_after=limit),
            training=replace(config.training, max_bad_steps=limit),
        )
    return replace(config, checkpoint=replace(config.checkpoint, resume="auto"))
