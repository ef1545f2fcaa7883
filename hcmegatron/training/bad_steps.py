"""What a run does with steps that are not finite or that spike: skips them, goes back before them, or stops."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.exit_status import DIVERGED
from hcmegatron.training import checkpoint
from hcmegatron.training.kept_steps import keep_step
from hcmegatron.training.model import gather_parameters
from hcmegatron.training.observer import Observer, Rewind, Step
from hcmegatron.training.resume import Start
from hcmegatron.training.saving import hear
from hcmegatron.training.step import NOT_FINITE

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun


class Diverged(Ended):
    """A step was bad, or several in a row, and the run was not to go on."""

    status = DIVERGED


class BadSteps(Observer):
    """Counts steps whose loss or gradient was not finite or spiked, says which they were, keeps their batches, goes
    back to a checkpoint where that is asked for, and gives up after several.

    In a row are bad steps with none but repeated ones between them: what a rewind has the run do again is no recovery.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.limit, self.log = run, run.config.training.max_bad_steps, run.log
        self.row = self.total = self.furthest = 0

    def on_step(self, step: Step) -> None:
        """Look at a step. Collective.

        Raises:
            Diverged: it was the last of training.max_bad_steps in a row, or the first that stops the run.
        """
        if step.result.updated:
            if step.number > self.furthest:
                self.row = 0
            return
        self.row, self.total, self.furthest = self.row + 1, self.total + 1, max(self.furthest, step.number)
        health, samples = self.run.config.health, step.result.samples
        where = f"step {step.number}, sequences {samples[0]} to {samples[-1]} of the data order"
        what = f"loss {step.result.loss}, gradient norm {step.result.grad_norm}"
        if step.result.bad not in ("", NOT_FINITE):
            what += f" ({step.result.bad})"
        hear(self.run, self.run.checkpoints.finish())  # what is being written is the one before the step
        rewinds = health.on_bad_step == "rewind"
        start = self._checkpoint() if rewinds and self.row < self.limit else None
        kept = keep_step(self.run, step, start)
        if health.on_bad_step == "stop":
            self.log.say(*kept)
            raise Diverged(f"{what} at {where}; weights are as before it, and health.on_bad_step is stop")
        if self.row >= self.limit:
            self.log.say(f"skipped: {what} at {where}; {self.total} skipped so far", *kept)
            kind = "non-finite" if step.result.bad in ("", NOT_FINITE) else "bad"
            raise Diverged(
                f"{self.row} {kind} steps in a row; the last was {where}; weights are as before them"
            )
        if start is None:
            none = "; there is no checkpoint to go back to yet" if rewinds else ""
            self.log.say(f"skipped: {what} at {where}{none}; {self.total} skipped so far", *kept)
            return
        left_out = self._go_back(start, step)
        self.log.say(
            f"going back: {what} at {where}; to {start.path} after step {start.position.step}, and sequences "
            f"{left_out[0]} to {left_out[-1]} are left out from now on; {self.total} bad so far",
            *start.aside,
            *kept,
        )

    def _checkpoint(self) -> Start | None:
        """The newest whole checkpoint of this run, or the one that it went on from. One of which it had the weights
        alone is no way back: optimizer and connections are not as they were then."""
        config, run = self.run.config, self.run
        own = replace(config, checkpoint=replace(config.checkpoint, resume="auto", load=None, init_from=None))
        writer = run.checkpoints.writer
        found = checkpoint.find(own, run.directory, writer.text, claimed=True, environment=writer.environment)
        if found is not None or run.start is None or run.start.weights_only:
            return found
        try:
            checkpoint.verify(run.start)  # it may have gone since
        except ConfigError as error:
            self.log.say(f"warning: {error}")
            return None
        return run.start

    def _go_back(self, start: Start, step: Step) -> range:
        """Be at the checkpoint again, with what is left out of the data from now on."""
        run, settings = self.run, self.run.config
        gather_parameters(run.chunks)  # none may arrive after those that are loaded
        run.checkpoints.load(start)
        first = step.result.samples.start
        batches = settings.health.leave_out_batches
        stop = step.result.samples.stop + (batches - 1) * settings.training.global_batch
        known = run.stepper.batches.left_out  # since the checkpoint, too
        to = start.position._replace(left_out=(*known, (first, stop)))
        run.go_on_at(to)
        run.observers.on_rewind(Rewind(step, to, range(first, stop)))
        return range(first, stop)
