"""Signals to ranks that the command has started: all hear them, may save, and leave nothing behind."""

import os
import re
import signal
import subprocess
import textwrap
import time

import pytest

from tests.platform.local_programs import READY, assert_gone, pids, run, script, start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_every_rank(tmp_path, number):
    process = start(tmp_path, READY + "time.sleep(50)")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 128 + number and stderr.decode() == f"hcmegatron: ended by {number.name}\n"
    assert_gone(tmp_path)


@pytest.mark.parametrize("last", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ranks_may_save_after_signals(tmp_path, last):
    """What shuts a machine down sends several; only a second SIGINT does not wait for the ranks."""
    body = f"""
        saved = []
        signal.signal(signal.SIGTERM, lambda *_: saved.append(1))
        signal.signal(signal.{last.name}, lambda *_: saved.append(1))
    """
    body = (
        textwrap.dedent(body)
        + READY
        + "while not saved: time.sleep(0.01)\ntime.sleep(0.5)\nos.write(1, b's')\nreturn 0"
    )
    process = start(tmp_path, body)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(last)
    stdout, stderr = process.communicate(timeout=15)
    assert (process.returncode, stdout, stderr) == (0, b"sss", b"")


def test_what_is_ignored_stays_ignored(tmp_path):
    """A lost terminal ends no run that was started under nohup."""
    ready = READY + "time.sleep(1.5)\nreturn 0"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(tmp_path, ready)
    finally:
        signal.signal(signal.SIGHUP, before)
    for pid in (process.pid, *pids(tmp_path)):
        os.kill(pid, signal.SIGHUP)
    _, stderr = process.communicate(timeout=15)
    assert (process.returncode, stderr) == (0, b"")


def test_a_lost_terminal_and_a_stopped_rank_leave_nothing(tmp_path):
    """A stopped rank does not hear that it should end."""
    body = "if place.rank == 0: os.kill(os.getpid(), signal.SIGSTOP)\n" + READY + "time.sleep(50)"
    path = script(tmp_path, body, "launch_ranks(worker, 3)")
    text = (tmp_path / "program.py").read_text()
    short = "import hcmegatron.platform.local_launch as module\nmodule.GRACE_S = 0.5\nif __name__"
    (tmp_path / "program.py").write_text(text.replace("if __name__", short))
    process = subprocess.Popen(path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=15)
    assert (process.returncode, stderr) == (128 + signal.SIGHUP, b"hcmegatron: ended by SIGHUP\n")
    assert_gone(tmp_path)


def test_a_second_interrupt_does_not_wait(tmp_path):
    process = start(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + READY + "time.sleep(50)")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    assert process.returncode == 128 + signal.SIGINT
    assert_gone(tmp_path)


def test_a_second_interrupt_leaves_no_rank_the_time_to_notice(tmp_path):
    """The last rank writes a file when the first one's end of a pipe is closed, as a watchdog does with its stacks."""
    body = """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if place.rank == 0:
            os.close(READER)
        else:
            os.close(WRITER)
        if place.rank == 2:
            open(f'{FOLDER}/ready', 'w')
            os.read(READER, 1)
            open(f'{FOLDER}/stacks', 'w')
        time.sleep(50)
    """
    path = script(tmp_path, body, "launch_ranks(worker, 3)")
    text = (tmp_path / "program.py").read_text()
    pipe = "READER, WRITER = os.pipe()\n"
    (tmp_path / "program.py").write_text(text.replace("def meet(", pipe + "def meet("))
    text = (tmp_path / "program.py").read_text()
    call = "launch_ranks(worker, 3)"
    # the parent keeps no end either, once all ranks have theirs
    closing = (
        "__import__('threading').Timer(1.0, lambda: (os.close(READER), os.close(WRITER))).start() or " + call
    )
    (tmp_path / "program.py").write_text(text.replace(f"sys.exit({call})", f"sys.exit({closing})"))
    process = subprocess.Popen(path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    assert process.returncode == 128 + signal.SIGINT and not (tmp_path / "stacks").exists()
    assert_gone(tmp_path)


def test_no_orphans_of_a_killed_parent(tmp_path):
    process = start(tmp_path, READY + "time.sleep(50)")
    process.kill()
    process.wait(timeout=15)
    assert_gone(tmp_path)


def test_what_a_rank_started_ends_with_it(tmp_path):
    body = """
        child = os.fork()
        if not child:
            time.sleep(50)
        open(f'{FOLDER}/pid1{place.rank}', 'w').write(str(child))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    """
    process = start(tmp_path, textwrap.dedent(body) + "time.sleep(0.2)\n" + READY + "time.sleep(50)")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    process.communicate(timeout=15)
    assert_gone(tmp_path, 6)


def test_a_rank_that_is_interrupted_alone_is_named(tmp_path):
    """Not by way of the command, which would be told of it."""
    done, _ = run(tmp_path, "if place.rank == 1: os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(50)")
    assert (done.returncode, done.stderr) == (128 + 2, "hcmegatron: rank 1 was ended by SIGINT\n")


def test_an_interrupt_that_came_before_a_rank_listens_is_heard_when_it_does(tmp_path):
    """Signals wait from the fork until then."""
    path = script(tmp_path, "return 0", "launch_ranks(worker, 3)")
    text = (tmp_path / "program.py").read_text()
    early = "import hcmegatron.platform.rank_process as process\nusual = process.end_with_parent\n"
    early += "process.end_with_parent = lambda number: (usual(number), os.kill(os.getpid(), signal.SIGINT))\n"
    (tmp_path / "program.py").write_text(text.replace("if __name__", early + "if __name__"))
    done = subprocess.run(path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGINT
    assert re.fullmatch(r"hcmegatron: rank \d was ended by SIGINT\n", done.stderr)
