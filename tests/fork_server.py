"""The processes that ranks are forked from: started fresh, imports done once, never more than one thread.

Importing torch takes seconds and Megatron more; a fork takes milliseconds. A process that has used torch's
thread pool cannot be forked (the child hangs in its first matmul), so pytest itself never forks. The first of these
processes imports torch; for each list of modules that ranks need, it forks one that imports them. That one reads
requests from a connection, forks the ranks, waits for all of them and answers with how each ended. What
ranks print and return goes through files in the request's directory. Started by ``tests.ranks``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Branch:
    """Asks for a process with the modules of ``preload``, under the environment ``env``."""

    preload: tuple[str, ...]
    env: dict[str, str]


@dataclass(frozen=True)
class Request:
    """``call`` is the pickled (args, kwargs): unpickled in the ranks only. Times are in seconds."""

    target: str
    world_size: int
    call: bytes
    directory: Path
    timeout: float
    grace: float
    process_group: bool
    sys_path: list[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """``exit_code`` is minus the signal for a rank that was killed; ``overtime`` where it had to be."""

    exit_code: int
    overtime: bool


def resolve(name: str):
    """``module`` or ``module:function``."""
    module, _, function = name.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, function) if function else loaded


def main(connection_fd: int) -> None:
    """Forks a process for every list of modules asked for, and answers with its number."""
    _die_with_parent(os.getppid())
    connection = Connection(connection_fd)
    import torch

    torch.set_num_threads(1)
    _import_what_torch_puts_off()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these processes
    connection.send("ready")
    first = os.getpid()
    for branch in iter(partial(_received, connection), None):
        fd = recv_handle(connection)
        pid = os.fork()
        if pid == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _die_with_parent(first)
            _serve(Connection(fd), branch)
            os._exit(0)
        os.close(fd)
        connection.send(pid)


def _serve(connection: Connection, branch: Branch) -> None:
    os.environ.clear()
    os.environ.update(branch.env)
    try:
        for name in branch.preload:
            loaded = resolve(name)
            if ":" in name:
                loaded()
        _import_what_torch_puts_off()
        gc.freeze()  # or every rank's collections go through all that was imported, and copy its pages
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    connection.send("ready")
    for request in iter(partial(_received, connection), None):
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            connection.send(f"{threads} threads after importing {branch.preload}: not safe to fork")
            continue
        connection.send(_run(request, connection))


def _received(connection: Connection) -> Branch | Request | None:
    """None once pytest has closed its end."""
    try:
        return connection.recv()
    except EOFError:
        return None


def _import_what_torch_puts_off() -> None:
    """Or every rank imports it for itself: in its first backward, and in its optimizer's first step.

    The second brings Triton along, which decides at its import whether to interpret: not before that is known.
    """
    import torch.fx.experimental.symbolic_shapes

    if "triton" in sys.modules or "TRITON_INTERPRET" in os.environ:
        import torch._dynamo  # noqa: F401


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run(request: Request, connection: Connection) -> list[Ending]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork_server = os.getpid()
    pids = []
    for rank in range(request.world_size):
        pid = os.fork()
        if pid == 0:
            connection.close()
            _rank_main(request, rank, port, fork_server)
        pids.append(pid)
    return _wait_for_all(pids, request, connection)


def _wait_for_all(pids: list[int], request: Request, connection: Connection) -> list[Ending]:
    """Waits until every rank has ended, the time is up, or ``grace`` after the first one failed."""
    endings: dict[int, Ending] = {}
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLHUP)
    pidfds = {os.pidfd_open(pid): pid for pid in pids}
    for fd in pidfds:
        poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + request.timeout
    overtime = False
    while len(endings) < len(pids):
        for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if fd == connection.fileno():  # pytest has gone
                _kill(pids)
                os._exit(1)
            poller.unregister(fd)
            pid = pidfds[fd]
            exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            endings[pid] = Ending(exit_code, overtime)
            if exit_code != 0:
                deadline = min(deadline, time.monotonic() + request.grace)
        if time.monotonic() >= deadline and not overtime:
            overtime = True
            alive = [pid for pid in pids if pid not in endings]
            for pid in alive:
                os.kill(pid, signal.SIGUSR1)  # writes its stacks
            time.sleep(0.3)
            _kill(alive)
            deadline = time.monotonic() + 60
    for fd in pidfds:
        os.close(fd)
    _kill(pids)  # what the ranks themselves may have started
    return [endings[pid] for pid in pids]


def _kill(pids: list[int]) -> None:
    """Each rank leads a session of its own, so that its children go with it."""
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # the whole session has ended already


def _rank_main(request: Request, rank: int, port: int, fork_server: int) -> None:
    """Runs the target in a forked child and never returns."""
    os.setsid()
    _die_with_parent(fork_server)
    output = os.open(request.directory / f"output.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    stacks = open(request.directory / f"stacks.{rank}", "w")  # noqa: SIM115, written by a signal handler
    faulthandler.enable(file=sys.__stderr__)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    sys.path[:] = request.sys_path
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(request.world_size),
        LOCAL_WORLD_SIZE=str(request.world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **request.env,
    )
    exit_code = 1
    try:
        result = (_call(request, rank), None)
        exit_code = 0
    except SystemExit as stop:
        exit_code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        result = (None, None if exit_code == 0 else traceback.format_exc())
    except BaseException:
        result = (None, traceback.format_exc())
    try:
        payload = pickle.dumps(result)
    except Exception:
        exit_code, payload = 1, pickle.dumps((None, traceback.format_exc()))
    (request.directory / f"result.{rank}").write_bytes(payload)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _call(request: Request, rank: int):
    import torch.distributed as dist

    from hcmegatron.platform.gloo import share_event_loop

    if request.process_group:
        share_event_loop()  # as training has it
        dist.init_process_group(
            "gloo",
            init_method=f"file://{request.directory}/rendezvous",
            rank=rank,
            world_size=request.world_size,
            timeout=timedelta(seconds=request.timeout),
        )
    args, kwargs = pickle.loads(request.call)
    result = resolve(request.target)(*args, **kwargs)
    if dist.is_initialized():
        dist.destroy_process_group()
    return result


if __name__ == "__main__":
    # As a module, so that the requests unpickle into the class that this process knows.
    from tests import fork_server

    fork_server.main(int(sys.argv[1]))
