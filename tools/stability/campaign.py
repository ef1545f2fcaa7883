"""The runs one after another, two at a time: forks of this process, which has imported everything once.

A run that is on record is left alone; one that was cut off is made anew.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch.fx.experimental.symbolic_shapes  # noqa: F401  (what torch puts off, as below for all the forks)

import hcmegatron.training.run  # noqa: F401
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import dump_config, load_config
from hcmegatron.platform.exit_status import DIVERGED
from tools.kill_storm.command import Command
from tools.stability import records
from tools.stability.rule import Plan, Run, wanted

CONFIG = Path(__file__).parents[2] / "configs/stability.yaml"
AT_ONCE = 2
PAUSE_S = 0.05


def campaign(plan: Plan, folder: Path, minutes: float) -> list[Run]:
    """Make the runs that are not on record, as long as there is time; those that are still to be made.

    Raises:
        ConfigError: the folder has runs of another plan or configuration.
        RuntimeError: a run ended otherwise than by its last step or by diverging.
    """
    began, warmup = time.monotonic(), _same_plan(plan, folder)
    done, started = records.read(folder), {}
    running: dict[Run, Command] = {}
    try:
        while time.monotonic() - began < 60 * minutes:
            for run in wanted(plan, done):
                if len(running) < AT_ONCE and run not in running:
                    started[run], running[run] = time.monotonic(), _start(plan, folder, run)
            if not running:
                break
            for run in [run for run, command in running.items() if command.ended()]:
                seconds, status = time.monotonic() - started[run], running.pop(run).status
                directory = folder / run.name
                if status not in (0, DIVERGED):
                    raise RuntimeError(f"{run.name} ended with status {status}: see {directory}.out")
                shutil.rmtree(directory / "checkpoints", ignore_errors=True)
                done[run] = records.measure(run, directory, status, warmup, plan.window, seconds)
                records.write(folder, done)
                print(f"{run.name}: loss {done[run].loss:.4f}, {seconds:.1f} s", flush=True)
            time.sleep(PAUSE_S)
    finally:
        for command in running.values():
            command.clear()
    return wanted(plan, done)


def _start(plan: Plan, folder: Path, run: Run) -> Command:
    directory = folder / run.name
    shutil.rmtree(directory, ignore_errors=True)
    own = [f"--connection.kind={run.kind}", f"--optimizer.lr={run.rate!r}", f"--run.dir={directory}"]
    own += [f"--training.seed={run.seed}", f"--data.seed={run.seed}"]
    return Command(["train", str(CONFIG), *plan.settings, *own], Path(f"{directory}.out"))


def _same_plan(plan: Plan, folder: Path) -> int:
    """Write what the runs of the folder are, or hold it to what is written; the steps of warm-up."""
    config = load_config(CONFIG, list(plan.settings))
    text = json.dumps({"plan": asdict(plan), "config": dump_config(config)}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    if file.exists() and file.read_text() != text:
        raise ConfigError(f"--folder {folder}: has runs of another plan or configuration; name another one")
    file.write_text(text)
    return config.optimizer.warmup_steps
