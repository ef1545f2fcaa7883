"""When a run saves: every so many steps, after those that are asked for, at its end, and when it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcmegatron.training import resume
from hcmegatron.training.manifest import NotSaved, Progress
from hcmegatron.training.observer import End, Observer, Rewind, Step, is_due

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun


class Saving(Observer):
    """Saves checkpoints. The last observer, so that a step is on record before it is on disk.

    A step that was skipped has changed nothing: what there is to save is from before it, and older checkpoints stay.
    The last step and those that are asked for are saved as done all the same: by the one a run is known as finished,
    from the others its branches begin.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.checkpoints = run, run.checkpoints
        self.every, self.steps = run.config.checkpoint.save_every, run.config.training.steps
        self.kept = frozenset(run.config.checkpoint.keep_at)
        self.reached: Progress | None = None
        self.checkpoints.told = self.checkpoints.saved
        self.skipped = False  # the last step was

    def on_step(self, step: Step) -> None:
        """Hear of a save that has come to its end, and save where it is time to."""
        hear(self.run, self.checkpoints.finish() if self.checkpoints.arrived() else [])
        self.skipped = not step.result.updated
        needed = step.number in self.kept or step.number == self.steps
        done = self.run.position.step == step.number  # and the run has not gone back
        if not self.skipped or (needed and done and self.reached is not None):
            self.reached = self.run.position
        if needed or (not self.skipped and is_due(step.number, self.every, self.steps)):
            self._save()

    def on_rewind(self, rewind: Rewind) -> None:
        """What there is to save is the checkpoint itself, and what is left out since."""
        self.reached, self.checkpoints.told = rewind.to, self.checkpoints.saved

    def on_end(self, end: End) -> None:
        """Save what a signal has cut off, and wait for what is being written.

        Raises:
            NotSaved: the last checkpoint; on every rank.
        """
        if end.error is not None:
            self.run.log.say(*self.checkpoints.rescue())
            return
        hear(self.run, self.checkpoints.finish())
        if end.stopped_by and end.step < self.steps:
            self._save()
            hear(self.run, self.checkpoints.finish())
            self.run.log.say(resume.stopped(end.stopped_by, end.step, self.checkpoints.saved))
        if self.checkpoints.failed:
            raise NotSaved(f"{self.checkpoints.failed}; make room and continue with checkpoint.resume=auto")

    def _save(self) -> None:
        if self.reached is not None:  # otherwise there is nothing but what the run began with
            hear(self.run, self.checkpoints.save(self.reached, keep_older=self.skipped))


def hear(run: TrainingRun, said: list[str]) -> None:
    """Pass on what was said of saving, and that a checkpoint is complete."""
    run.log.say(*said)
    checkpoints = run.checkpoints
    if checkpoints.saved != checkpoints.told:
        checkpoints.told = checkpoints.saved
        run.observers.on_checkpoint(checkpoints.saved)
