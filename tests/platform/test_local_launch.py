"""Ranks started by the command itself know their places, end together, and say once what went wrong."""

import os
import subprocess
import textwrap
import time

import pytest

from hcmegatron.platform.rank_process import without_native_frames
from tests.platform.local_programs import assert_gone, run, script


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
