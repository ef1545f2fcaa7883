"""Runs that are signalled at a chosen moment, or whose output goes nowhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psutil

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import discover
from hcmegatron.training import checkpoint, step
from hcmegatron.training.run import train
from tests.training.workers import tiny

__all__ = ["tiny"]


def signalled(config: Config, moment: str, number: int, last: int) -> dict[str, Any]:
    """Train, and send the last rank's process group a signal: in or after 1-based step `last`, in the validation or
    the checkpoint after it, or in the rehearsal.

    Returns:
        the steps that ran, the checkpoints that were saved, the processes that a save has left.
    """
    place = discover(os.environ)
    noted: dict[str, Any] = {"steps": [], "saved": [], "left": 0}

    def send() -> None:
        if place.rank == place.world_size - 1:
            os.killpg(0, number)

    def around(owner: type, name: str, note: Callable[..., None], when: str) -> None:
        usual = getattr(owner, name)

        def method(self: Any, *args: Any) -> Any:
            note(*args)
            if moment == when and (when == "rehearsal" or noted["steps"][-1] == last):
                send()
            return usual(self, *args)

        setattr(owner, name, method)

    def after_step(self: Any, index: int) -> step.StepResult:
        noted["steps"].append(index + 1)
        result = usual_step(self, index)
        if moment == "update" and index + 1 == last:  # after the step's last collective
            send()
        return result

    usual_step, step.Stepper.step = step.Stepper.step, after_step
    around(step.Stepper, "rehearse", lambda: None, "rehearsal")
    around(step.Stepper, "evaluate", lambda *_: None, "validation")
    around(checkpoint.Checkpoints, "save", lambda done: noted["saved"].append(done), "save")
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
    assert train(config, discover(os.environ)) == 0


def differing(config: Config, of_rank_1: tuple[str, str, Any]) -> None:
    """Train with another value of one setting on rank 1."""
    if int(os.environ["RANK"]) == 1:
        section, key, value = of_rank_1
        setattr(getattr(config, section), key, value)
    train(config, discover(os.environ))


def second_interrupt(config: Config) -> None:
    """A first SIGINT asks for the end, a second one does not wait for it."""
    usual_step = step.Stepper.step

    def interrupted(self: Any, index: int) -> step.StepResult:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return usual_step(self, index)

    step.Stepper.step = interrupted
    train(config, discover(os.environ))
