"""Ranks started by the command itself end together, say once what went wrong, and leave nothing behind."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import hcmegatron
from hcmegatron.platform.rank_process import without_native_frames

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


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ranks_know_their_places(tmp_path, method):
    done, _ = run(tmp_path, "os.write(1, f'{place}\\n'.encode())", f"launch_ranks(worker, 2, {method!r})")
    lines = sorted(done.stdout.splitlines())
    assert done.returncode == 0 and len(lines) == 2
    for rank, line in enumerate(lines):
        assert f"rank={rank}, world_size=2, local_rank={rank}, local_world_size=2" in line
        assert "master_addr='127.0.0.1'" in line
    assert len({line.split("master_port=")[1] for line in lines}) == 1


def test_one_rank_runs_in_this_process(tmp_path):
    done, _ = run(tmp_path, "print(os.getpid()); return 7", "print(os.getpid()) or launch_ranks(worker, 1)")
    assert len(set(done.stdout.split())) == 1 and done.returncode == 7


def test_a_failed_rank_ends_the_others_at_once(tmp_path):
    done, seconds = run(tmp_path, "if place.rank == 1: raise RuntimeError('broken part')\ntime.sleep(50)")
    assert done.returncode == 1 and seconds < 8
    assert done.stderr.count("RuntimeError: broken part") == 1 and "rank 1 of 3 failed" in done.stderr
    assert_gone(tmp_path)


def test_the_cause_is_told_and_not_its_consequences(tmp_path):
    body = """
        if place.rank == 2:
            raise RuntimeError('cause')
        time.sleep(0.3)
        raise RuntimeError('connection closed by peer')
    """
    done, _ = run(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + textwrap.dedent(body))
    assert "cause" in done.stderr and "closed by peer" not in done.stderr


def test_a_users_mistake_in_every_rank_is_said_once(tmp_path):
    done, _ = run(tmp_path, "raise ConfigError('data.paths = x does not exist')", "caught(worker)")
    assert (done.returncode, done.stdout, done.stderr) == (2, "said data.paths = x does not exist\n", "")


def test_a_killed_rank_is_named(tmp_path):
    done, seconds = run(tmp_path, "if place.rank == 0: os.kill(os.getpid(), 9)\ntime.sleep(50)")
    assert done.returncode == 128 + 9 and "rank 0 was killed by SIGKILL" in done.stderr and seconds < 8
    assert_gone(tmp_path)


def test_a_status_is_passed_through(tmp_path):
    done, _ = run(tmp_path, "return 5 if place.rank else 0")
    assert done.returncode == 5 and "ended with status 5" in done.stderr


def test_ranks_that_ignore_the_end_are_killed(tmp_path):
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nif place.rank == 1: return 1\ntime.sleep(50)"
    path = script(tmp_path, body, "launch_ranks(worker, 3)")
    text = (tmp_path / "program.py").read_text()
    (tmp_path / "program.py").write_text(
        text.replace(
            "if __name__",
            "import hcmegatron.platform.local_launch as module\nmodule.GRACE_S = 0.5\nif __name__",
        )
    )
    started = time.monotonic()
    done = subprocess.run(path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and time.monotonic() - started < 8
    assert_gone(tmp_path)


def _start(folder, body):
    process = subprocess.Popen(
        script(folder, body, "launch_ranks(worker, 3)"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 20
    while not (folder / "ready").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    time.sleep(0.1)
    return process


READY = "place.rank == 2 and open(f'{FOLDER}/ready', 'w')\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_every_rank(tmp_path, number):
    process = _start(tmp_path, READY + "time.sleep(50)")
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
    process = _start(tmp_path, body)
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
        process = _start(tmp_path, ready)
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


def test_native_stack_frames_are_left_out():
    text = (
        "Traceback (most recent call last):\n  File 'a', line 1\nRuntimeError: Connection reset\n"
        "Exception raised from recvBytes at ../Utils.hpp:678 (most recent call first):\n"
        "frame #0: c10::Error::Error() + 0x9d (0x7f in libc10.so)\n<omitting python frames>\n"
        "frame #27: _start + 0x21\n\nThe above exception was the cause:\nValueError: x\n"
    )
    assert without_native_frames(text) == (
        "Traceback (most recent call last):\n  File 'a', line 1\nRuntimeError: Connection reset\n"
        "The above exception was the cause:\nValueError: x\n"
    )


def test_a_second_interrupt_does_not_wait(tmp_path):
    process = _start(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + READY + "time.sleep(50)")
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
    process = _start(tmp_path, READY + "time.sleep(50)")
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
    process = _start(tmp_path, textwrap.dedent(body) + "time.sleep(0.2)\n" + READY + "time.sleep(50)")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    process.communicate(timeout=15)
    assert_gone(tmp_path, 6)


def test_forked_ranks_compute_and_talk(tmp_path):
    """torch imported by the parent, matmuls and a gloo all-reduce in the forks: no hang."""
    body = """
        import torch.distributed as dist
        from datetime import timedelta
        dist.init_process_group("gloo", init_method=f"tcp://{place.master_addr}:{place.master_port}",
                                rank=place.rank, world_size=place.world_size, timeout=timedelta(seconds=20))
        x = torch.ones(300, 300) * (place.rank + 1)
        x = (x @ x).sum() / 300**3
        dist.all_reduce(x)
        dist.destroy_process_group()
        return 0 if abs(x.item() - (1 + 4 + 9)) < 1e-3 else 1
    """
    path = script(tmp_path, body, "launch_ranks(worker, 3)")
    text = (tmp_path / "program.py").read_text()
    (tmp_path / "program.py").write_text("import torch\n" + text)
    done = subprocess.run(
        path, capture_output=True, text=True, timeout=60, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stderr


def test_what_all_ranks_have_found_is_raised_once_and_said_by_nobody(tmp_path):
    """Such as that the last checkpoint could not be saved: no status of a rank is told beside it."""
    body = "from hcmegatron.platform.collective_failure import Ended\nraise Ended('no room')"
    call = """print(str(caught_end(worker)))"""
    head = """
def caught_end(worker):
    from hcmegatron.platform.collective_failure import Ended
    try:
        return launch_ranks(worker, 3)
    except Ended as error:
        return f"ended: {error}"
"""
    path = script(tmp_path, body, call)
    program = tmp_path / "program.py"
    program.write_text(program.read_text().replace("if __name__", head + "\nif __name__"))
    done = subprocess.run(path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("ended: no room\n", "")


def test_a_rank_that_only_went_along_is_not_the_cause(tmp_path):
    body = """
        from hcmegatron.platform.collective_failure import PeerFailed
        ready = f'{FOLDER}/ready'
        if place.rank == 0:
            while not os.path.exists(ready):
                time.sleep(0.05)
            raise PeerFailed('rank 2 failed: RuntimeError: the cause')
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if place.rank == 2:
            open(ready, 'w').close()
        time.sleep(0.5)
        if place.rank == 2:
            raise RuntimeError('the cause')
    """
    done, _ = run(tmp_path, body)
    assert done.returncode == 1 and "rank 2 of 3 failed:\nTraceback" in done.stderr
    assert (
        done.stderr.count("the cause") == 2 and "rank 0" not in done.stderr
    )  # in the source's line, and said


def test_a_rank_that_is_killed_is_noticed_although_its_child_lives(tmp_path):
    """What it has started holds whatever was open at the fork, and ends with it."""
    body = """
        if place.rank == 1:
            child = os.fork()
            if not child:
                time.sleep(50)
            open(f'{FOLDER}/pid1{place.rank}', 'w').write(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(50)
    """
    done, seconds = run(tmp_path, body)
    assert done.returncode == 128 + 9 and "rank 1 was killed by SIGKILL" in done.stderr and seconds < 8
    assert_gone(tmp_path, 4)


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


def test_ranks_that_are_given_time_say_what_they_make_of_another_ones_death(tmp_path):
    """Rank 0's word counts then; without it, and after that time, the others are ended as ever."""
    body = """
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if place.rank == 2:
        time.sleep(60)
    time.sleep(1)
    return 6 if WORD else time.sleep(60)
    """
    for word, status in (("True", 6), ("False", 128 + 9)):
        folder = tmp_path / word
        folder.mkdir()
        done, seconds = run(folder, body.replace("WORD", word), "launch_ranks(worker, 3, patience=3)")
        assert done.returncode == status and 1 < seconds < 20, (done, seconds)
