"""What studies' tests do in a process that may fork: `study run` with trainings that are real, or made up."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hcmegatron.training.run  # noqa: F401 - once, for all children
from hcmegatron import cli
from hcmegatron.config import read_config
from hcmegatron.platform.exit_status import DIVERGED, STOPPED
from tools import study_storm

REAL = cli.main


def alone() -> None:
    """No launcher's rank: the command starts its own."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def storm(folder: Path, study: Path, kills: int) -> list[str]:
    """A study under fire."""
    alone()
    return study_storm.storm(folder, [str(study)], kills, 3, 2)


def command(*words: str) -> int:
    """hcmegatron WORDS, real."""
    alone()
    return REAL(list(words))


def made_up(study: Path, how: str, *words: str, asked_after: float = 0.0) -> int:
    """`study run` whose runs are `how`, a function of this module's that is given run directory and steps.

    Args:
        asked_after: seconds after which the command is sent SIGTERM; 0: it is not.
    """
    alone()

    def train(arguments: list[str]) -> int:
        config = read_config(arguments[1])[0]
        with (study.parent / "started").open("a") as file:
            file.write(f"{Path(config.run.dir).name}\n")
        return HOW[how](Path(config.run.dir), config.training.steps)

    cli.main = train
    if asked_after:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, asked_after)
    return REAL(["study", "run", str(study), *words])


def finished(run: Path, steps: int) -> int:
    """A run that ends as it should, with all that its configuration keeps."""
    for step in range(4, steps + 1):
        saved(run, step)
    lines = [{"step": step, "kind": "train", "loss": 3.0, "grad_norm": 1.0} for step in range(1, steps + 1)]
    lines.append({"step": steps, "kind": "validation", "loss": 2.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


def saved(run: Path, step: int) -> None:
    """A checkpoint as `study` looks at them."""
    path = run / f"checkpoints/step-{step:08d}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text("{}")


def fails(run: Path, steps: int) -> int:
    """A run that ends with an error, of the kind shc; the others finish."""
    if run.name.startswith("shc"):
        print("hcmegatron: error: no luck", file=sys.stderr)
        return 1
    return finished(run, steps)


def dies(run: Path, steps: int) -> int:
    """A run that is killed after each new checkpoint, until it has four."""
    have = len(list(run.glob("checkpoints/*")))
    if have < 4:
        saved(run, have + 1)
        os.kill(os.getpid(), signal.SIGKILL)
    return finished(run, steps)


def diverges(run: Path, steps: int) -> int:
    """A run that diverges at once, of the kind shc."""
    if run.name.startswith("shc"):
        (run / "train.log").write_text("ended by Diverged: as expected\n")
        return DIVERGED
    return finished(run, steps)


def waits(run: Path, steps: int) -> int:
    """A run that ends when it is told to, as one that saves."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    (run / "ready").touch()
    time.sleep(60)
    return 1


HOW: dict[str, Callable[[Path, int], int]] = {
    each.__name__: each for each in (finished, fails, dies, diverges, waits)
}


def killed(study: Path) -> list[int]:
    """Kill a `study run` whose two runs wait; their processes' numbers."""
    pid = os.fork()
    if not pid:
        os._exit(made_up(study, "waits", "--jobs=2", f"--study.run_dir={study.parent}/study"))
    while len(ready := list(study.parent.glob("study/runs/*/ready"))) < 2:
        time.sleep(0.05)
    children = [process.pid for process in study_storm._descendants(pid)]
    assert len(ready) == len(children) == 2
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return children
