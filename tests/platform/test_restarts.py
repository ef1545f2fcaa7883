"""Ranks that are started again: what is, what is not, what is said and written down."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import hcmegatron

ROOT = os.path.dirname(os.path.dirname(hcmegatron.__file__))
PROGRAM = """
import functools, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from hcmegatron import cli
from hcmegatron.config import ConfigError
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.restarts import supervise

FOLDER = Path({folder!r})

def body(life, beat, place):
{body}

if __name__ == "__main__":
    cli._run = lambda arguments: supervise(
        lambda life, beat: functools.partial(body, life, beat), {ranks}, "fork", FOLDER, {limit}
    )
    sys.exit(cli.main())
"""


def start(folder, body, ranks=2, limit=9):
    """The command's handling of errors around ranks that run `body`."""
    text = PROGRAM.format(
        root=ROOT,
        folder=str(folder),
        body=textwrap.indent(textwrap.dedent(body), "    "),
        ranks=ranks,
        limit=limit,
    )
    (folder / "program.py").write_text(text)
    return subprocess.Popen([sys.executable, folder / "program.py"], stderr=subprocess.PIPE, text=True)


def run(folder, body, **options):
    process = start(folder, body, **options)
    _, said = process.communicate(timeout=30)
    return process.returncode, said, events(folder)


def events(folder):
    file = folder / "restarts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_rank_is_started_again(tmp_path, ranks):
    """One rank alone, too: it is a process of its own here."""
    body = """
        beat[:] = time.monotonic(), 4.0 + life
        if life == 0 and place.rank == place.world_size - 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if life == 0:
            time.sleep(50)
        return 0
    """
    status, said, (event,) = run(tmp_path, body, ranks=ranks)
    assert status == 0
    assert said == f"hcmegatron: rank {ranks - 1} was killed by SIGSEGV\nhcmegatron: restart 1 in 1 s\n"
    seconds = event.pop("seconds")
    assert event.pop("time") and 0 <= seconds["detect"] < 5 and 0 <= seconds["end"] < 5
    said = f"rank {ranks - 1} was killed by SIGSEGV"
    cause = {"rank": ranks - 1, "signal": "SIGSEGV", "said": said}
    assert event == {"event": "ended", "life": 1, "cause": cause, "after_step": 4, "restart_in": 1.0}


def test_an_exception_and_a_hang_are_started_again(tmp_path):
    body = """
        beat[:] = time.monotonic(), float(life)
        if place.rank == 1 and life == 0:
            raise RuntimeError("broken part")
        if place.rank == 1 and life == 1:
            os._exit(124)
        return 0
    """
    status, said, (first, second) = run(tmp_path, body)
    assert status == 0 and "RuntimeError: broken part" in said
    assert first["cause"] == {"rank": 1, "status": 1, "said": "RuntimeError: broken part"}
    hung = "rank 1 hung, or waited for one that did: see hang/ in the run directory"
    assert second["cause"] == {"rank": 1, "status": 124, "said": hung}
    assert f"hcmegatron: {hung}\nhcmegatron: restart 2 in 1 s\n" in said


@pytest.mark.parametrize(
    "body, status, said",
    [
        ("return 0", 0, ""),
        ("return 75", 75, ""),
        ("raise ConfigError('data.paths = x')", 2, "hcmegatron: error: data.paths = x\n"),
        ("raise Ended('diverged', 3)", 3, "hcmegatron: error: diverged\n"),
        ("raise Ended('not saved', 1)", 1, "hcmegatron: error: not saved\n"),
    ],
)
def test_what_is_no_death_is_not_started_again(tmp_path, body, status, said):
    assert run(tmp_path, body) == (status, said, [])


def test_a_run_that_does_not_get_on_is_given_up(tmp_path):
    """The waits are made short; what they are is the policy's table."""
    body = """
        beat[:] = time.monotonic(), 5.0
        return 7
    """
    body = textwrap.dedent(body)
    process = start(tmp_path, body, ranks=1)
    process.kill()
    process.wait()
    text = (tmp_path / "program.py").read_text()
    short = "import hcmegatron.platform.restart_policy as policy\npolicy.FIRST_WAIT_S = 0.01\nFOLDER ="
    (tmp_path / "program.py").write_text(text.replace("FOLDER =", short, 1))
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=30
    )
    why = "it ended 3 times in a row after step 5, so another start would not help"
    assert done.returncode == 7
    assert (
        done.stderr.splitlines()[-1] == f"hcmegatron: not started again: {why}; see {tmp_path}/restarts.jsonl"
    )
    assert [event.get("restart_in") for event in events(tmp_path)] == [0.01, 0.02, None]
    assert events(tmp_path)[-1]["gave_up"] == why


def test_a_signal_in_the_pause_ends_the_run(tmp_path):
    process = start(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", ranks=1)
    deadline = time.monotonic() + 20
    while not events(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    stopped = "hcmegatron: stopped by SIGTERM before restart 1; continue with checkpoint.resume=auto"
    assert process.returncode == 75 and said.splitlines()[-1] == stopped


def test_a_rank_that_dies_while_it_ends_for_a_signal_is_not_started_again(tmp_path):
    body = """
        told = []
        signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
        (FOLDER / f"ready{place.rank}").touch()
        while not told:
            time.sleep(0.01)
        raise RuntimeError("in its last save")
    """
    process = start(tmp_path, body)
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 1 and "in its last save" in said and "restart" not in said
    assert events(tmp_path) == []
