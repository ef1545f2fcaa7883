"""The file system of the run directory: whether what checkpoints rely on works there, how fast, and for how many."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hcmegatron.planner.machines import gib
from launch.doctor.findings import Finding, fault, note, ok, warning
from launch.doctor.subject import Subject

BLOCK, MOST, SECONDS = 4 << 20, 64 << 20, 1.0  # bytes of a write, and how much is written at most
SLOW_MB, SLOW_FSYNC_S = 50.0, 0.1
REPLACED = 40  # times, while another thread reads
READ_S = 10.0  # for a read of them
SEEN_S = 5.0  # after which a file has to be visible on other machines: network file systems remember for a few seconds
TOKEN = "token"
NAME = "run directory"
# Whether a process of its own can take the lock: 0 it could, 1 it could not.
_TRY = (
    "import fcntl, sys\n"
    "try: fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    "except BlockingIOError: sys.exit(1)\n"
)


class Probe:
    """A folder of this check's own in the run directory, or in the nearest that there is above it.

    It holds a locked file until it is closed, for other machines to look at.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, directory: Path) -> None:
        directory = directory.absolute()
        self.parent = next(path for path in (directory, *directory.parents) if path.exists())
        self.folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=self.parent))
        self.token = self.folder / TOKEN
        self.token.write_text(self.folder.name)
        self._lock = open(self.token, "rb")  # noqa: SIM115 (as long as the probe)
        self.locked = _try_lock(self._lock)

    def close(self) -> None:
        """Leave nothing behind."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def open_probe(directory: Path) -> Probe | Finding:
    """The probe, or the fault that there cannot be one."""
    try:
        return Probe(directory)
    except OSError as error:
        where = error.filename or directory
        why = f"{Path(where).parent}: {error.strerror}"
        if full := _full(error):
            return full
        return fault(NAME, f"cannot be written: {why}", "choose another run.dir, or mount it for writing")


def check(subject: Subject, probe: Probe) -> Iterator[Finding]:
    """What one machine can tell of the file system. Writes up to 64 MiB, which are gone afterwards."""
    yield replaces(probe.folder)
    yield locks(probe)
    yield space(subject, probe.folder)
    yield speed(probe.folder)


def replaces(folder: Path) -> Finding:
    """A file is replaced while another thread reads it: every read finds one of them whole."""
    name, remedy = "rename over a file", "another file system for run.dir"
    path, found, read_once, done = folder / "replaced", set(), threading.Event(), threading.Event()
    texts = {b"a" * 65536, b"b" * 65536}

    def read() -> None:
        while not done.is_set():
            try:
                found.add(path.read_bytes())
            except OSError as error:
                found.add(error.strerror.encode())
            read_once.set()

    reader = threading.Thread(target=read, daemon=True)
    try:
        path.write_bytes(min(texts))
        reader.start()
        for turn in range(REPLACED):
            new = folder / "new"
            new.write_bytes(sorted(texts)[turn % 2])
            os.replace(new, path)
        reading = read_once.wait(READ_S)
    except OSError as error:
        return _full(error) or fault(name, error.strerror, remedy)
    finally:
        done.set()
    if not reading:
        return fault(name, f"no read of 64 KiB came to an end within {READ_S:.0f} s", remedy)
    reader.join()
    if found <= texts:
        return ok(name, f"{REPLACED} times, every reader found a whole file")
    bad = sorted(found - texts, key=len)
    why = bad[0].decode() if 0 < len(bad[0]) < 256 else f"{len(bad[0])} of 65536 bytes"
    return fault(name, f"a reader found it missing or in part ({why})", remedy)


def _full(error: OSError) -> Finding | None:
    """The fault that a write on a full disk, or beyond a quota, is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return fault("free space", error.strerror, "free some, raise the quota, or choose another run.dir")


def locks(probe: Probe) -> Finding:
    """flock, with which a run keeps a second job out of its directory, between two processes."""
    name, remedy = (
        "flock",
        "mount with locks (Lustre: -o flock), else take care that no two jobs share run.dir",
    )
    if not probe.locked:
        return warning(name, "there are no locks here", remedy)
    taken = subprocess.run([sys.executable, "-S", "-E", "-c", _TRY, str(probe.token)], timeout=60).returncode
    if taken == 1:
        return ok(name, "a second process is kept out")
    return warning(name, "a second process gets the lock too", remedy)


def speed(folder: Path) -> Finding:
    """fsync of a small file, and bytes a second that reach the disk."""
    try:
        return _speed(folder)
    except OSError as error:
        return _full(error) or fault("write speed", error.strerror, "another file system for run.dir")


def _speed(folder: Path) -> Finding:
    small = []
    for number in range(5):
        begin = time.perf_counter()
        with open(folder / f"small-{number}", "wb") as stream:
            _write(stream, b"x" * 4096)
        small.append(time.perf_counter() - begin)
    fsync = statistics.median(small)
    block, written, begin = os.urandom(BLOCK), 0, time.perf_counter()
    with open(folder / "large", "wb") as stream:
        while written < MOST and time.perf_counter() - begin < SECONDS:
            written += stream.write(block)
        _write(stream, b"")
    rate = written / (time.perf_counter() - begin) / 1e6
    value = f"{rate:,.0f} MB/s of {written >> 20} MiB, fsync {1e3 * fsync:.1f} ms"
    if rate < SLOW_MB or fsync > SLOW_FSYNC_S:
        return warning("write speed", value, "a faster file system for run.dir; checkpoint.save_every larger")
    return ok("write speed", value)


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())


def space(subject: Subject, folder: Path) -> Finding:
    """Free bytes beside the run's checkpoints."""
    sizes, status = subject.sizes, subject.system.statvfs(str(folder))
    free = status.f_bavail * status.f_frsize
    if not sizes.checkpoint:
        return note("free space", f"{gib(free)} GiB; checkpoints not known without FILE")
    needed = sizes.checkpoint * sizes.kept
    value = f"{gib(free)} GiB, for {sizes.kept} checkpoints of {gib(sizes.checkpoint)} GiB"
    if free < needed:
        return fault("free space", value, f"free {gib(needed - free)} GiB, or lower checkpoint.keep_last")
    return ok("free space", value)


def seen_from_here(token: str) -> str:
    """What another machine's rank sees of the first one's locked file: "seen", "not seen", or "not locked"."""
    path, end = Path(token), time.monotonic() + SEEN_S
    while True:
        try:
            with open(path, "rb") as stream:
                if stream.read() != path.parent.name.encode():
                    return "not seen"
                return "not locked" if _try_lock(stream) else "seen"
        except OSError:
            if time.monotonic() > end:
                return "not seen"
            time.sleep(0.1)


def _try_lock(stream: BinaryIO) -> bool:
    """Whether the lock could be taken; held until the file is closed."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
