"""The command in a process of its own, and a machine that lacks a package."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import hcmegatron

ROOT = Path(hcmegatron.__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def program(*arguments, **environ):
    command = [sys.executable, "-m", "hcmegatron", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def without(package):
    """importlib.util.find_spec on a machine that lacks the package."""
    usual = importlib.util.find_spec
    return lambda name, *rest: None if name.partition(".")[0] == package else usual(name, *rest)
