"""This process's place among the ranks, read from what torchrun, mpirun or srun left in the environment.

Launchers nest: SLURM starts mpirun starts torchrun, and the outer ones' variables are still there. The
innermost launcher counts, so the order of search is torchrun, Open MPI or PMI (MPICH, Intel MPI), SLURM. What
a person exports by hand is believed where it agrees with the launcher, and refused where it does not.
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform.mpi import meet

# Below Linux's ephemeral range, so no outgoing connection takes a port between its choice and its use.
PORTS = range(20000, 32000)
STARTED_HERE = "this command"  # the source of a rank that no launcher started


@dataclass(frozen=True)
class RankInfo:
    """One process among world_size, local_world_size of them on this machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str  # where rank 0 listens
    master_port: int
    source: str  # who said so, in words
    apart: bool = False  # in a process of its own, below the command that started it
    interface: str = ""  # of this machine, that leads to rank 0; "": not known


def discover_ranks(environ: Mapping[str, str]) -> RankInfo | None:
    """The place that a launcher gave this process in `environ`, or None where there is no launcher.

    Under mpirun on several machines, without MASTER_ADDR, this is collective: the ranks meet over MPI.

    Raises:
        ConfigError: a launcher's variables are incomplete or impossible, or contradict others.
    """
    env = _Environment(environ)
    place = _torchrun(env)
    if place is None:
        mpi, pmi, slurm = _open_mpi(env), _pmi(env), _slurm(env)
        if mpi and pmi and (mpi.rank, mpi.world_size) != (pmi.rank, pmi.world_size):
            raise ConfigError(
                f"Open MPI says rank {mpi.rank} of {mpi.world_size}, but PMI_RANK = {pmi.rank} and "
                f"PMI_SIZE = {pmi.world_size}; start with one of the two"
            )
        place = mpi or pmi or slurm
        if place is None:
            return _by_hand(env)
        _agree(env, place)
    _possible(place)
    address, port, interface = env.text("MASTER_ADDR"), env.port(), ""
    if place.needs_meeting(address, port):
        met = meet(place.source, place.world_size, place.local_rank, PORTS, environ)
        address, port, interface = address or met.address, port or met.port, met.interface
    return RankInfo(
        place.rank,
        place.world_size,
        place.local_rank,
        place.local_world_size,
        address or _address(place),
        port or _port(place),
        place.source,
        interface=interface,
    )


@dataclass(frozen=True)
class _Place:
    """What one launcher says."""

    source: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    job: str | None = None  # the same in every rank of this launch and in no other; None: unknown
    first_host: str | None = None
    mpi: bool = False  # the ranks can find each other by MPI

    @property
    def one_machine(self) -> bool:
        return self.local_world_size == self.world_size

    def needs_meeting(self, address: str | None, port: int | None) -> bool:
        """Whether rank 0's address and port cannot be told from what the launcher has left in the environment."""
        return self.mpi and not self.one_machine and (address is None or (port is None and self.job is None))


class _Environment:
    """Environment variables read as numbers, with a clear line for what is missing or wrong."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def has(self, *names: str) -> bool:
        return any(name in self.environ for name in names)

    def text(self, *names: str) -> str | None:
        """The first of the variables that is set and not empty."""
        return next((self.environ[name] for name in names if self.environ.get(name)), None)

    def number(self, source: str, *names: str) -> int:
        """The first of the variables that is set, as a number."""
        name = next((name for name in names if name in self.environ), None)
        if name is None:
            raise ConfigError(
                f"{source} gives this process a rank, but {' or '.join(names)} is not set; "
                "start with torchrun, mpirun or srun, or unset the others to start ranks here"
            )
        if not re.fullmatch(r"[0-9]{1,9}", self.environ[name].strip()):
            raise ConfigError(
                f"{name} = {self.environ[name]!r} is set, which is not a whole number; unset it"
            )
        return int(self.environ[name])

    def place(
        self, source: str, *names: str | tuple[str, ...], job: str | None = None, mpi: bool = False
    ) -> _Place:
        """From the names of rank, world size, local rank and local world size."""
        numbers = [self.number(source, *((name,) if isinstance(name, str) else name)) for name in names]
        return _Place(source, *numbers, job=job, mpi=mpi)

    def port(self) -> int | None:
        """MASTER_PORT, checked."""
        if self.text("MASTER_PORT") is None:
            return None
        port = self.number("MASTER_ADDR", "MASTER_PORT")
        if not 0 < port < 65536:
            raise ConfigError(f"MASTER_PORT = {port} in the environment is not a port; use 1 to 65535")
        return port


_BY_HAND = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def _torchrun(env: _Environment) -> _Place | None:
    if not env.has("TORCHELASTIC_RUN_ID"):
        return None
    return env.place("torchrun", *_BY_HAND)


def _open_mpi(env: _Environment) -> _Place | None:
    names = [f"OMPI_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    if not env.has(*names):
        return None
    return env.place("Open MPI", *names, job=env.text("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"), mpi=True)


def _pmi(env: _Environment) -> _Place | None:
    """MPICH and Intel MPI; Cray names the local ones differently, `srun --mpi=pmi2` does not set them."""
    if not env.has("PMI_RANK", "PMI_SIZE"):
        return None
    local_rank, local_size = ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"), ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
    if not env.has(*local_rank) and env.has("SLURM_STEP_NUM_TASKS"):
        return None
    job = env.text("PALS_APID")
    return env.place("PMI", "PMI_RANK", "PMI_SIZE", local_rank, local_size, job=job, mpi=True)


def _slurm(env: _Environment) -> _Place | None:
    """A task of srun. One task is no launch: batch scripts and interactive shells look like that."""
    if not env.has("SLURM_STEP_NUM_TASKS") or env.number("SLURM", "SLURM_STEP_NUM_TASKS") == 1:
        return None
    rank, size, local_rank, node = (
        env.number("SLURM", f"SLURM_{word}") for word in ("PROCID", "STEP_NUM_TASKS", "LOCALID", "NODEID")
    )
    layout = env.text("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") or ""
    tasks = tasks_per_node(layout)
    if node >= len(tasks) or sum(tasks) != size:
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE = {layout!r} does not fit SLURM_STEP_NUM_TASKS = {size} and "
            f"SLURM_NODEID = {node}; start with srun, and unset what was exported by hand"
        )
    job = f"{env.text('SLURM_JOB_ID')}.{env.text('SLURM_STEP_ID')}"
    hosts = env.text("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    return _Place("SLURM", rank, size, local_rank, tasks[node], job, first_host(hosts) if hosts else None)


def _by_hand(env: _Environment) -> RankInfo | None:
    """No launcher: all of torch's variables, exported by hand, or none of them."""
    given = [name for name in _BY_HAND if env.has(name)]
    if not given:
        return None
    place = env.place(given[0], *_BY_HAND)
    _possible(place)
    if place.world_size > 1 and env.text("MASTER_ADDR") is None:
        raise ConfigError("RANK and WORLD_SIZE are set, but MASTER_ADDR is not; set it to the host of rank 0")
    port = env.port() or 0
    if place.world_size > 1 and not port:
        raise ConfigError(
            "RANK and WORLD_SIZE are set, but MASTER_PORT is not; set it to a free port of rank 0's host"
        )
    return RankInfo(
        place.rank,
        place.world_size,
        place.local_rank,
        place.local_world_size,
        env.text("MASTER_ADDR") or "127.0.0.1",
        port or free_port(),
        "the environment",
    )


def _agree(env: _Environment, place: _Place) -> None:
    """RANK and the like, exported beside mpirun or srun, have to say the same."""
    for name in _BY_HAND:
        value = getattr(place, name.lower())
        if env.has(name) and env.number(name, name) != value:
            raise ConfigError(
                f"{name} = {env.text(name)} contradicts {place.source}, which says {value}; unset {name}"
            )


def _possible(place: _Place) -> None:
    inside = place.rank < place.world_size and place.local_rank < place.local_world_size <= place.world_size
    if not inside:
        raise ConfigError(
            f"{place.source} says rank {place.rank} of {place.world_size} and local rank "
            f"{place.local_rank} of {place.local_world_size}, which is impossible; start with one launcher"
        )


def _address(place: _Place) -> str:
    if place.one_machine:
        return "127.0.0.1"
    if place.first_host is None:
        raise ConfigError(
            f"{place.source} started ranks on several machines and does not say where rank 0 is; set MASTER_ADDR "
            "to its host"
        )
    try:
        socket.getaddrinfo(place.first_host, None)
    except OSError as error:
        raise ConfigError(
            f"{place.source}'s first node {place.first_host} has no address ({error}); set MASTER_ADDR to one"
        ) from None
    return place.first_host


def _port(place: _Place) -> int:
    """A port that all ranks of this launch, and only they, arrive at without a message."""
    if place.job is None and not place.one_machine:
        raise ConfigError(
            f"{place.source} started ranks on several machines without a job's name to derive a port from; "
            "set MASTER_PORT for all of them"
        )
    key = f"{place.source} {place.job or launcher_process()}"
    return PORTS[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(PORTS)]


def launcher_process() -> int:
    """The nearest ancestor without an MPI rank: mpirun's daemon here, above any wrapper scripts."""
    for process in psutil.Process().parents():
        try:
            if not {"PMI_RANK", "OMPI_COMM_WORLD_RANK"} & process.environ().keys():
                return process.pid
        except psutil.AccessDenied:  # another user's, so not one of this launch's wrappers
            return process.pid
    return 0


def free_port() -> int:
    """A port on which nothing listens now. From a random place on, so that runs started together differ."""
    start = random.randrange(len(PORTS))
    for port in (*PORTS[start:], *PORTS[:start]):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ConfigError(f"no free port between {PORTS.start} and {PORTS.stop}; end what listens there")


def tasks_per_node(text: str) -> list[int]:
    """SLURM's "2(x3),1" as [2, 2, 2, 1]; [] where it is not of that form."""
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return []
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def first_host(nodes: str) -> str:
    """The first name of a SLURM node list: "gpu[007-009,12],login" begins with gpu007."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0])
