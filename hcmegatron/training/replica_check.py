"""Compares what ranks hold in common, and what they compute of the same micro-batch, every so many steps."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from torch import Tensor

from hcmegatron.platform.collective_failure import Ended, gathered, on_first_rank
from hcmegatron.platform.distributed import device
from hcmegatron.platform.exit_status import CORRUPTED
from hcmegatron.platform.seeds import seed_of
from hcmegatron.training import manifest
from hcmegatron.training.agreement import differing, gradients_held, hashed, in_words, state_held
from hcmegatron.training.model import gather_parameters
from hcmegatron.training.observer import Observer, Rewind, Step, is_due
from hcmegatron.training.saving import hear

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun

HELD, COMPUTED = "tensors of weights and optimizer", "gradients of one micro-batch"


class Corrupted(Ended):
    """Ranks that have to agree do not."""

    status = CORRUPTED


class ReplicaCheck(Observer):
    """After every so many steps and the last one, before it is saved: parameters, buffers and optimizer state that
    several ranks hold (data-parallel copies, what tensor parallelism does not split, DualPipe's mirrors, tied
    embeddings); and gradients of one micro-batch, which every data-parallel rank computes once more.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.health, self.steps = run, run.config.health, run.config.training.steps
        self.place = f"{platform.node()}, {device()}"
        self.repeatable = True  # as far as is known: a rank's gradients are the same if computed again
        # by what was compared: who differed when it was last, and after which step nobody did
        self.said: dict[str, str] = {}
        self.agreed = dict.fromkeys((HELD, COMPUTED), run.position.step)

    def on_step(self, step: Step) -> None:
        """Compare what is due. Collective.

        Raises:
            Corrupted: something differs, and health.on_difference is stop.
        """
        if self.run.position.step < step.number:
            return  # the run has gone back: what it holds now was loaded
        if self._due(step, self.health.compare_parameters_every):
            gather_parameters(self.run.chunks)
            found = self._compared(state_held(self.run.chunks, self.run.optimizer))
            self._judge(step, HELD, found)
        if self.repeatable and self._due(step, self.health.compare_gradients_every):
            self._compare_gradients(step)

    def _due(self, step: Step, every: int) -> bool:
        return every > 0 and is_due(step.number, every, self.steps)

    def _compare_gradients(self, step: Step) -> None:
        """A difference is looked at twice: kernels may not give the same bits again, which is no rank's fault."""
        first = self._gradients(step)
        before, found = hashed(first), self._compared(first)
        if not found:
            return self._judge(step, COMPUTED, found)
        steady = gathered(before == hashed(self._gradients(step)))
        if sum(steady) * 2 <= len(steady):
            self.repeatable = False
            self.run.log.say(
                f"step {step.number}: gradients of one micro-batch are not the same when they are computed again, on "
                f"{len(steady) - sum(steady)} of {len(steady)} ranks: they are compared no more "
                "(health.compare_gradients_every needs deterministic kernels)"
            )
            return
        self._judge(step, COMPUTED, found)

    def _gradients(self, step: Step) -> dict[str, Tensor]:
        run, groups = self.run, self.run.stepper.groups
        sums = run.stepper.own_gradients(step.result.samples.start)
        return gradients_held(run.chunks, sums, f"stage {groups.pp.rank()}, tensor rank {groups.tp.rank()}")

    def _compared(self, held: dict[str, Tensor]) -> str:
        """Who differs, in words; "" where nobody does. Collective."""
        found = differing(gathered(hashed(held)))
        if not found:
            return ""
        own = self.run.ranks.rank
        named = (name for name in held if own in getattr(found.get(seed_of(name)), "odd", ()))
        everyones = gathered((next(named, ""), self.place))
        names, where = zip(*everyones, strict=True)
        return in_words(found.values(), names, where)

    def on_rewind(self, rewind: Rewind) -> None:
        """What was compared after that is no more."""
        self.agreed = {what: min(after, rewind.to.step) for what, after in self.agreed.items()}
        self.said.clear()

    def _set_aside(self, agreed: int) -> list[str]:
        """Take their names from this run's checkpoints after step `agreed`: what is read from one is equal again."""
        said = []
        for path in manifest.every(self.run.checkpoints.folder):
            if manifest.name(agreed) < path.name:
                said.append(str(path.rename(manifest.aside(path))))
        return said

    def _judge(self, step: Step, what: str, found: str) -> None:
        if not found:
            self.agreed[what] = step.number
            self.said.pop(what, None)
            return
        line = f"after step {step.number}, {what} that should be the same on several ranks are not: {found}"
        if self.health.on_difference == "stop":
            hear(self.run, self.run.checkpoints.finish())
            aside = on_first_rank(lambda: self._set_aside(self.agreed[what]))
            suspect = f"; checkpoints after that are set aside: {', '.join(aside)}" if aside else ""
            raise Corrupted(
                f"{line}; they agreed after step {self.agreed[what]}: go on from a checkpoint up to there{suspect}"
            )
        if found != self.said.get(what):
            self.run.log.say(f"WARNING: {line}; training goes on (health.on_difference is warn)")
        self.said[what] = found
