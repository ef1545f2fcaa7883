"""Runs that are signalled at a chosen moment, or whose output goes nowhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import STARTED_HERE, discover_ranks
from hcmegatron.training import checkpoint, step
from hcmegatron.training.manifest import Progress
from hcmegatron.training.run import train
from tests.small_configs import tiny

__all__ = ["tiny"]


def signalled(config: Config, moment: str, number: int, last: int) -> dict[str, Any]:
    """Train, and send the last rank's process group a signal: in or after 1-based step `last`, in the validation or
    the checkpoint after it, or in the rehearsal.

    Returns:
        the steps that ran, the checkpoints that were saved, how many groups were evaluated, the processes that a save
        has left.
    """
    place = discover_ranks(os.environ)
    noted: dict[str, Any] = {"steps": [], "saved": [], "evaluated": 0, "left": 0}

    def send() -> None:
        if place.rank == place.world_size - 1:
            os.killpg(0, number)

    def around(owner: type, name: str, note: Callable[..., None], when: str) -> None:
        usual = getattr(owner, name)

        def method(self: Any, *args: Any, **options: Any) -> Any:
            note(self, *args)
            if moment == when and (when == "rehearsal" or noted["steps"][-1] == last):
                send()
            return usual(self, *args, **options)

        setattr(owner, name, method)

    def after_step(self: Any, seen: int) -> step.StepResult:
        noted["steps"].append(seen // config.training.global_batch + 1)
        result = usual_step(self, seen)
        if moment == "update" and noted["steps"][-1] == last:  # after the step's last collective
            send()
        return result

    def note_evaluation(*_: Any) -> None:
        noted["evaluated"] += 1

    def note_save(checkpoints: checkpoint.Checkpoints, at: Progress) -> None:
        if at != checkpoints.saved:
            noted["saved"].append(at.step)

    usual_step, step.Stepper.step = step.Stepper.step, after_step
    around(step.Stepper, "rehearse", lambda *_: None, "rehearsal")
    around(step.Stepper, "evaluate", note_evaluation, "validation")
    around(checkpoint.Checkpoints, "save", note_save, "save")
    assert train(config, place) == 0
    noted["left"] = len(psutil.Process().children(recursive=True))
    return noted


def unheard(config: Config) -> None:
    """Train with standard output that nobody reads and standard error on a full device."""
    if int(os.environ["RANK"]) == 0:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    assert train(config, discover_ranks(os.environ)) == 0


def differing(config: Config, of_rank_1: tuple[str, str, Any]) -> None:
    """Train with another value of one setting on rank 1."""
    if int(os.environ["RANK"]) == 1:
        section, key, value = of_rank_1
        setattr(getattr(config, section), key, value)
    train(config, discover_ranks(os.environ))


def second_interrupt(config: Config, launched: bool) -> None:
    """A first SIGINT asks for the end, a second one does not wait for it.

    launched: by the command, which hears a second Ctrl-C itself and passes the first one on: that may be the second
    SIGINT of a rank that was sent one along with the command.
    """
    usual_step = step.Stepper.step

    def interrupted(self: Any, seen: int) -> step.StepResult:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return usual_step(self, seen)

    step.Stepper.step = interrupted
    place = discover_ranks(os.environ)
    train(config, replace(place, source=STARTED_HERE, apart=True) if launched else place)
