"""One run under fire: started, killed, looked at, continued, until it has had its kills; then it may finish."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hcmegatron.platform.exit_status import HANG, STOPPED
from hcmegatron.platform.local_launch import GRACE_S
from tools.kill_storm.command import Command, kill, until
from tools.kill_storm.judge import differences, lines, losses, newest_step
from tools.kill_storm.kills import LIMIT_S, SAVE_EVERY, Kill, Layout
from tools.kill_storm.phases import Phases

ENDS_S = 30.0  # after a death, on a machine that others use too
HANG_ENDS_S = 6 * LIMIT_S + GRACE_S + ENDS_S  # while saving, ranks wait for each other six times as long
FINISHES_S = 180.0
GONE_S = 5.0
ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

Report = dict[str, Any]
Draw = Callable[[random.Random, Layout], Kill]


class Wrong(Exception):
    """What must not happen has."""


def whole(layout: Layout, text: Path, directory: Path) -> None:
    """The undisturbed run, where it is not there yet."""
    if newest_step(directory) != layout.settings["training.steps"]:
        command = Command(arguments(layout, text, directory), directory.with_suffix(".out"))
        if not command.ends_within(FINISHES_S) or command.status != 0:
            command.clear()
            raise RuntimeError(
                f"the undisturbed run ended with {command.status}: {directory.with_suffix('.out')}"
            )


def arguments(layout: Layout, text: Path, directory: Path, restarts: bool = False) -> list[str]:
    """Of the command."""
    settings = {**layout.settings, "data.paths": f"[{text}]", "run.dir": directory}
    empty = text.with_name("all_settings_are_overrides.yaml")
    empty.write_text("{}\n")
    given = [f"--{key}={value}" for key, value in settings.items()]
    return ["train", str(empty), *(["--restarts=999"] if restarts else []), *given]


class Storm:
    """A run and whoever shoots at it.

    Args:
        seed: of everything that is drawn.
        tell: takes a report of every kill.
        draw: what is shot.
        restarts: whether the command has --restarts; None: drawn.
        others: layouts of the same network, to which it may move from one command to the next.
    """

    def __init__(
        self,
        layout: Layout,
        seed: int,
        text: Path,
        directory: Path,
        phases: Phases,
        tell: Callable[[Report], None],
        draw: Draw,
        restarts: bool | None = None,
        others: Sequence[Layout] = (),
    ) -> None:
        self.layout, self.text, self.directory, self.phases = layout, text, directory, phases
        self.tell, self.draw, self.random = tell, draw, random.Random(seed)
        drawn = bool(self.random.getrandbits(1)) or layout.ranks == 1
        self.restarts = drawn if restarts is None else restarts
        self.command: Command | None = None
        self.others, self.moved = others, False
        # Steps that may be lost: since the last save, or, where that is still being written, since the one before.
        asynchronous = layout.settings.get("checkpoint.asynchronous") != "false"
        self.lost = SAVE_EVERY * (2 if asynchronous else 1)

    def run(self, kills: int) -> None:
        """All of it. Wrong, with what it is."""
        try:
            for _ in range(kills):
                self._started()
                if not self.shoot(self.draw(self.random, self.layout)):
                    break  # it has finished meanwhile
            self.finish()
        finally:
            if self.command is not None:
                self.command.clear()

    def shoot(self, shot: Kill) -> bool:
        """Kill, and see that what has to happen does; False where the run has finished instead."""
        if shot.phase == "load" and not newest_step(self.directory):
            shot = shot._replace(phase="step")  # there is nothing to be loaded yet
        command = self._started()
        ends = self._ends()
        there = until(lambda: command.ended() or self._at(shot), FINISHES_S, pause=0.002)
        time.sleep(shot.delay)
        phase, saving = self.phases.now(), self.phases.saving(self.directory)
        ranks = command.ranks()
        whom = command.pid if shot.rank is None else ranks[shot.rank] if shot.rank < len(ranks) else None
        if command.ended():
            return self._judge_end(command, None)
        if not there or whom is None or not kill(whom, shot.signal):
            return True
        began = time.monotonic()
        limit = HANG_ENDS_S if shot.signal == signal.SIGSTOP else ENDS_S
        over = until(lambda: command.ended() or self._ends() > ends, limit)
        spent = time.monotonic() - began
        report = {
            "layout": self.layout.name,
            "target": "command" if shot.rank is None else "rank",
            "signal": shot.signal.name,
            "phase": phase,
            "saving": saving,
            "restarts": self.restarts,
            "seconds": round(spent, 2),
            "status": command.status,
        }
        self.tell(report)
        if not over:
            raise Wrong(f"{report}: nothing ended within {limit:.0f} s")
        if command.ended():
            return self._judge_end(command, shot, phase)
        return True

    def finish(self) -> None:
        """Let it come to its end, and compare."""
        for _ in range(10):
            command = self._started()
            if not command.ends_within(FINISHES_S):
                raise Wrong(f"it does not finish within {FINISHES_S:.0f} s")
            self._judge_end(command, None)
            if command.status == 0:
                break
        else:
            raise Wrong("ten starts without a kill, and it does not finish")
        self._judge_restarts()

    def compare(self, reference: Path) -> None:
        """With the undisturbed run; of one that has moved, that it has done as many steps."""
        if self.moved:
            steps, wanted = list(losses(self.directory)), list(losses(reference))
            if steps != wanted or newest_step(self.directory) != newest_step(reference):
                raise Wrong(f"steps {steps} are on record, undisturbed {wanted}")
            return
        if found := differences(self.directory, reference):
            raise Wrong(found)

    def _started(self) -> Command:
        if self.command is None or self.command.ended():
            if self.others and self.command is not None and self.random.getrandbits(1):
                self.layout, self.moved = self.random.choice(self.others), True
            self.phases.begin()
            given = arguments(self.layout, self.text, self.directory, self.restarts)
            self.command = Command(given, self.directory.with_suffix(".out"))
        return self.command

    def _at(self, shot: Kill) -> bool:
        """Whether there is somebody to be shot at in the phase."""
        saving = shot.phase == "save" and self.phases.saving(self.directory)
        if not saving and self.phases.now() != shot.phase:
            return False
        return shot.rank is None or len(self.command.ranks()) == self.layout.ranks

    def _ends(self) -> int:
        """How many lives have ended below a command that starts its ranks again."""
        return len(lines(self.directory / "restarts.jsonl", "ended"))

    def _judge_end(self, command: Command, shot: Kill | None, phase: str = "") -> bool:
        """Status, orphans, lost steps; whether there is more to train."""
        if not until(lambda: not command.left(), GONE_S):
            raise Wrong(f"processes are left of {command.pid}: {command.left()}")
        if command.status not in _allowed(shot, phase, self.restarts):
            raise Wrong(f"status {command.status} after {shot} in {phase}")
        done, saved = max(losses(self.directory), default=0), newest_step(self.directory)
        if done - saved > (0 if command.status == STOPPED else self.lost):
            raise Wrong(f"{done} steps were done, and the newest checkpoint is of step {saved}")
        return command.status != 0

    def _judge_restarts(self) -> None:
        """That no restart went back further than to the last save."""
        events = [
            *lines(self.directory / "restarts.jsonl", "ended"),
            *lines(self.directory / "restarts.jsonl", "resumed"),
        ]
        done = 0
        for event in sorted(events, key=lambda event: event["time"]):
            if event["event"] == "ended":
                done = event["after_step"] or 0
            elif done - event["from_step"] > self.lost:
                raise Wrong(f"after step {done} a restart went back to step {event['from_step']}")


def _allowed(shot: Kill | None, phase: str, restarts: bool) -> tuple[int, ...]:
    """The statuses with which a command may end."""
    if shot is None:
        # It may have given up only now, after the shots before.
        given_up = (1, HANG, *(128 + number for number in signal.valid_signals()))
        return (0, *(given_up if restarts else ()))
    killed = (-shot.signal, 128 + shot.signal)  # the command itself; one of its ranks
    if shot.signal in ASKS:
        # A process that has not come to listen to signals dies of one.
        return (STOPPED, 0, *(killed if phase == "start" else ()))
    if shot.rank is None:
        return killed[:1]
    if shot.signal == signal.SIGSTOP:
        return (1, HANG)
    return (killed[1], 0)
