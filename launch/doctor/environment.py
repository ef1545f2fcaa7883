"""Environment variables that slow a run down or stop it, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil

from hcmegatron.platform.cores import own_cores
from hcmegatron.platform.cuda_environment import NEEDED_QUEUES, QUEUES, VARIABLES
from launch.doctor.findings import Finding, fault, note, ok, warning
from launch.doctor.subject import Subject


class Trap(NamedTuple):
    """A variable whose value does harm, and what to do."""

    variable: str
    harmful: Callable[[str], bool]
    remedy: str


def _is_on(value: str) -> bool:
    return value.strip().lower() not in ("", "0", "false", "off")


def _is_loud(value: str) -> bool:
    return value.upper() in ("INFO", "TRACE", "DETAIL", "DEBUG")


TRAPS = (
    Trap("CUDA_LAUNCH_BLOCKING", _is_on, "unset it: every kernel is waited for"),
    Trap("NCCL_P2P_DISABLE", _is_on, "unset it: GPUs of a machine exchange by way of host memory"),
    Trap("NCCL_SHM_DISABLE", _is_on, "unset it: ranks of a machine exchange over the network"),
    Trap("NCCL_IB_DISABLE", _is_on, "unset it: InfiniBand and RoCE are not used"),
    Trap("NCCL_NET_GDR_LEVEL", lambda v: v in ("0", "LOC"), "unset it: the network reads host memory only"),
    Trap("NCCL_DEBUG", lambda v: v.upper() == "TRACE", "use WARN: every call is written down"),
    Trap("TORCH_DISTRIBUTED_DEBUG", _is_loud, "unset it: every collective is compared between ranks"),
    Trap("NCCL_ASYNC_ERROR_HANDLING", lambda v: v == "0", "unset it: a lost rank would hang the others"),
    Trap(
        "TORCH_NCCL_ASYNC_ERROR_HANDLING", lambda v: v == "0", "unset it: a lost rank would hang the others"
    ),
    Trap("TORCH_NCCL_BLOCKING_WAIT", _is_on, "unset it: every collective is waited for on the host"),
    Trap("PYTHONDEVMODE", _is_on, "unset it: Python checks every allocation"),
)
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check(subject: Subject) -> Iterator[Finding]:
    """Every variable that does harm, or that nothing is wrong with."""
    environment = subject.system.environment
    found = [*_traps(subject), *_queues(subject), *_threads(subject), *_interfaces(subject)]
    yield from found
    if not found:
        looked = len(TRAPS) + len(VARIABLES) + len(INTERFACES) + 1
        known = sum(name in environment for name in (*VARIABLES, *INTERFACES, "OMP_NUM_THREADS"))
        yield ok("environment", f"{looked} variables looked at, {known} set, none does harm")


def _traps(subject: Subject) -> Iterator[Finding]:
    for trap in TRAPS:
        value = subject.system.environment.get(trap.variable)
        if value is not None and trap.harmful(value):
            yield warning(trap.variable, f"{trap.variable}={value}", trap.remedy)


def _queues(subject: Subject) -> Iterator[Finding]:
    """What training sets by itself unless somebody has set it."""
    say = warning if subject.gpu else note
    for name, variable in VARIABLES.items():
        value = subject.system.environment.get(name)
        if value is None or value == variable.value:
            continue
        if name == QUEUES and value.isdigit() and int(value) >= NEEDED_QUEUES:
            continue
        yield say(name, f"{name}={value}", f"unset it, or use {variable.value}: {variable.reason}")


def _threads(subject: Subject) -> Iterator[Finding]:
    value = subject.system.environment.get("OMP_NUM_THREADS", "")
    cores, ranks = own_cores(subject.ranks), subject.ranks.local_world_size
    if value.isdigit() and int(value) > cores:
        said = f"OMP_NUM_THREADS={value}; each of {ranks} ranks has {cores} cores"
        yield warning("OMP_NUM_THREADS", said, f"use {cores}, or unset it")


def _interfaces(subject: Subject) -> Iterator[Finding]:
    """Names of network interfaces that are not there; NCCL's may be a list of beginnings, with ^ or = before it."""
    here = psutil.net_if_addrs()
    for variable in INTERFACES:
        value = subject.system.environment.get(variable, "")
        if not value or value.startswith("^"):
            continue
        exact = value.startswith("=") or variable.startswith("GLOO")
        wanted = [name for name in value.removeprefix("=").split(",") if name]
        if not any(name == w or (not exact and name.startswith(w)) for w in wanted for name in here):
            yield fault(
                variable,
                f"{variable}={value}, and there is no such interface",
                f"unset it, or use one of {', '.join(here)}",
            )
