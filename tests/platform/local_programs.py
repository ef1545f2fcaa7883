"""Programs whose ranks the command starts itself, and whether anything of them is left."""

import os
import subprocess
import sys
import textwrap
import time

import hcmegatron

ROOT = os.path.dirname(os.path.dirname(hcmegatron.__file__))
HEAD = """
import functools, os, signal, sys, time
from hcmegatron.config import ConfigError
from hcmegatron.platform.local_launch import launch_ranks

def meet(place, path):
    # All ranks have started and left their pid before any goes on.
    open(f"{path}/pid{place.rank}", "w").write(str(os.getpid()))
    while len([n for n in os.listdir(path) if n.startswith("pid")]) < place.world_size:
        time.sleep(0.01)

def caught(worker):
    try:
        return launch_ranks(worker, 3)
    except ConfigError as error:
        print("said", error)
        return 2
"""
READY = "place.rank == 2 and open(f'{FOLDER}/ready', 'w')\n"


def script(folder, body, call):
    """A program whose ranks run `body`; its ranks' pids are left in the folder."""
    path = folder / "program.py"
    function = "def worker(place):\n    meet(place, FOLDER)\n" + textwrap.indent(
        textwrap.dedent(body), "    "
    )
    main = f"if __name__ == '__main__':\n    sys.exit({call})\n"
    path.write_text(
        f"import sys\nsys.path.insert(0, {ROOT!r})\n{HEAD}\nFOLDER = {str(folder)!r}\n{function}\n{main}"
    )
    return [sys.executable, str(path)]


def run(folder, body, call="launch_ranks(worker, 3)"):
    started = time.monotonic()
    done = subprocess.run(script(folder, body, call), capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - started


def start(folder, body):
    process = subprocess.Popen(
        script(folder, body, "launch_ranks(worker, 3)"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 20
    while not (folder / "ready").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    time.sleep(0.1)
    return process


def pids(folder):
    return [int(path.read_text()) for path in folder.glob("pid*")]


def assert_gone(folder, count=3):
    """No rank, nor anything it started, is left."""
    numbers = pids(folder)
    assert len(numbers) == count
    deadline = time.monotonic() + 5
    while any(map(_alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [number for number in numbers if _alive(number)]


def _alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
