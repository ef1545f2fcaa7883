"""A storm in miniature, in a process that may fork: every shot is named."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tools.kill_storm import campaign
from tools.kill_storm.kills import LAYOUTS, Kill

SHOTS = (
    Kill(1, signal.SIGKILL, "save", 0.0),
    Kill(None, signal.SIGKILL, "step", 0.0),
    Kill(0, signal.SIGTERM, "evaluation", 0.0),
    Kill(None, signal.SIGUSR1, "save", 0.0),
)


def storm(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """One run with these shots: how many runs went wrong, and what is on record of each shot."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]  # no launcher's rank: the command starts its own
    first = LAYOUTS[0]
    short = first._replace(settings={**first.settings, "training.steps": 12})
    shots = iter(SHOTS)
    wrong = campaign.fire(
        folder,
        lambda *_: next(shots),
        len(SHOTS),
        enough=lambda runs, kills: runs > 0,
        restarts=True,
        layouts=[short],
    )
    return wrong, campaign.lines(folder / campaign.KILLS, "kill")
