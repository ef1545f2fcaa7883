"""A study's runs as processes of this machine, some at a time: begun, continued, tried again, until each has a result.

What is done next is a function of the files alone (state.py), so that another call goes on where one was killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from hcmegatron.config import ConfigError, smallest_world
from hcmegatron.platform.exit_status import DIVERGED, STOPPED
from hcmegatron.platform.process_signals import FORWARDED
from hcmegatron.studies.child import Child
from hcmegatron.studies.directory import ENDING_S, StudyDirectory
from hcmegatron.studies.record import Entry
from hcmegatron.studies.slots import Slot, Slots
from hcmegatron.studies.state import State, checkpoint, has_diverged, is_complete, newest_step, note, state_of
from launch.progress import last_line
from launch.queue import lock_holders, require_idle

LOG = "study.log"  # in a run directory: what its processes said
PAUSE_S = 0.3  # between two looks whether a branch can begin


class Running(NamedTuple):
    """A run that is being trained."""

    entry: Entry
    child: Child
    slot: Slot


class Runner:
    """Trains what has no result yet.

    Args:
        retries: how often a run is started again after an error without a new checkpoint in between.
        say: takes lines for the user.
    """

    def __init__(
        self, directory: StudyDirectory, slots: Slots, retries: int, say: Callable[[str], None]
    ) -> None:
        self.directory, self.slots, self.retries, self.say = directory, slots, retries, say
        self.record = directory.record
        self.running: list[Running] = []
        self.asked: signal.Signals | None = None
        self.states = {entry.name: self._state(entry) for entry in self.record.entries}
        self._refuse_large(len(slots.gpus))

    def run(self) -> int:
        """The exit status: 0 where every run has a result, STOPPED after a signal, else 1.

        Raises:
            ConfigError: a run is going on elsewhere.
        """
        if not self._left():
            self.say(f"nothing to train: all {len(self.states)} runs have ended")
        require_ended([self.record.run_dir(entry.name) for entry in self._left()])
        with self._signals():
            try:
                while True:
                    if self.asked is None:
                        self._start()
                    if not self.running:
                        break
                    for descriptor in wait([each.child.descriptor for each in self.running], PAUSE_S):
                        self._ended(descriptor)
            finally:
                for each in self.running:
                    each.child.tell(signal.SIGKILL)
                    each.child.wait()
        return self._finish()

    def _left(self) -> list[Entry]:
        """What may still be trained, in order."""
        busy = {each.entry.name for each in self.running}
        return [
            entry
            for entry in self.record.entries
            if entry.name not in busy and not self._is_over(self.states[entry.name])
        ]

    def _is_over(self, state: State) -> bool:
        return state.has_result or state.failures > self.retries

    def _start(self) -> None:
        """Start what can be, as far as there is room."""
        for entry in self._left():
            if self.asked is not None:
                return
            if not self._can_begin(entry):
                continue
            slot = self.slots.take(smallest_world(self.directory.configs[entry.name]))
            if slot is None:
                return
            run = self.record.run_dir(entry.name)
            note(run, "started", pid=os.getpid())
            words = ["train", str(self.record.config_file(entry.name))]
            child = Child(words, run / LOG, slot, self.directory.lock.close)
            self.running.append(Running(entry, child, slot))
            if self.asked is not None:  # while it was forked, so that it was not told
                child.tell(signal.SIGTERM)
            again = f", from step {self.states[entry.name].step}" if self.states[entry.name].step else ""
            self.say(f"{entry.name}: started{again}")

    def _can_begin(self, entry: Entry) -> bool:
        """Whether the checkpoint is there that a branch begins with."""
        if entry.trunk is None or self.states[entry.name].step:
            return True
        return is_complete(checkpoint(self.record.run_dir(entry.trunk), entry.at_step))

    def _ended(self, descriptor: int) -> None:
        """A run's process has ended: what has come of it."""
        each = next(each for each in self.running if each.child.descriptor == descriptor)
        status = each.child.wait()
        self.running.remove(each)
        self.slots.give(each.slot)
        entry, run = each.entry, self.record.run_dir(each.entry.name)
        told = self.asked is not None  # it was, or a signal came before it could listen
        note(run, "ended", status=status, step=newest_step(run), asked=told)
        state = self.states[entry.name] = self._state(entry)
        done = sum(state.has_result for state in self.states.values())
        count = f"({done} of {len(self.states)})"
        if state.name == "failed":
            said = last_line(run / LOG)
            why = f": {said}" if said.startswith("hcmegatron: ") else ""
            then = f"left alone, see {run / LOG}" if self._is_over(state) else "started again"
            self.say(f"{entry.name}: failed {state.failures} times ({_how(status)}), {then}{why}")
        elif state.name == "diverged":
            self.say(f"{entry.name}: diverged, which is its result {count}")
        elif state.name == "finished":
            self.say(f"{entry.name}: finished {count}")
        else:
            self.say(f"{entry.name}: ended at step {state.step} ({_how(status)})")

    def _state(self, entry: Entry) -> State:
        return state_of(self.record.run_dir(entry.name), entry.steps, entry.evaluation)

    def _finish(self) -> int:
        """What is left, in words; the exit status."""
        left = [
            entry
            for entry in self.record.entries
            if not self.states[entry.name].has_result and not has_diverged(entry, self.states)
        ]
        if self.asked is not None and left:
            self.say(
                f"stopped by {self.asked.name}: {len(left)} of {len(self.states)} runs are left; "
                "the same command goes on"
            )
            return STOPPED
        failed = [entry for entry in left if self.states[entry.name].name == "failed"]
        if failed:
            self.say(
                f"{len(failed)} runs failed: {failed[0].name}{' and others' if len(failed) > 1 else ''}; --again tries "
                "them once more"
            )
        unstarted = [entry for entry in left if entry not in failed]
        if unstarted:
            self.say(
                f"{len(unstarted)} branches have no checkpoint to begin with: {unstarted[0].name}"
                f"{' and others' if len(unstarted) > 1 else ''}"
            )
        return int(bool(failed or unstarted))

    def _refuse_large(self, gpus: int) -> None:
        """ConfigError where a run needs more GPUs than there are."""
        for name, config in self.directory.configs.items():
            if gpus and smallest_world(config) > gpus:
                raise ConfigError(
                    f"{name}: its layout asks for {smallest_world(config)} GPUs, and this machine has {gpus}; use "
                    "`study launch`, or CUDA_VISIBLE_DEVICES= to train it on CPUs"
                )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Any that asks this process to end asks its runs to save and end; a second Ctrl-C does not wait."""
        handlers = {number: signal.getsignal(number) for number in FORWARDED}
        heard = [
            number for number in FORWARDED if number != signal.SIGUSR2 and handlers[number] != signal.SIG_IGN
        ]
        for number in heard:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, handlers[number])

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = self.asked or signal.Signals(number)
        for each in self.running:
            each.child.tell(signal.SIGKILL if again and number == signal.SIGINT else signal.SIGTERM)


def _how(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if status > 128:
        return f"a rank was killed by {signal.Signals(status - 128).name}"
    return {DIVERGED: "diverged", STOPPED: "told to stop"}.get(status, f"status {status}")


def require_ended(runs: Sequence[Path]) -> None:
    """LaunchError where a job of one of them waits or runs; those of a command that was killed have ENDING_S to end."""
    deadline = time.monotonic() + ENDING_S
    while any(map(lock_holders, runs)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for run in runs:
        require_idle(run)


def forget_failures(run: Path) -> None:
    """Count a run's failures anew."""
    note(run, "ended", status=STOPPED, step=newest_step(run))
