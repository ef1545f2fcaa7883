"""Environment variables that CUDA and NCCL read once, when they start: set here, where nobody has set them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import NamedTuple


class Variable(NamedTuple):
    """What is set where nothing is, and why, in words."""

    value: str
    reason: str


QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
VARIABLES: dict[str, Variable] = {
    # Streams share the device's hardware queues, 8 by default. A posted receive spins until its message comes, and
    # what is behind it in its queue waits, of whatever stream. Megatron's scripts export 1, so that communication
    # which its tensor-parallel linears enqueue first also starts first; with more queues a matmul may take the
    # multiprocessors before it, so that some of that communication is no longer hidden (never a wrong result).
    QUEUES: Variable("32", "a queue for every stream"),
    # Else a kernel's code is loaded at its first launch, which waits for the device.
    "CUDA_MODULE_LOADING": Variable("EAGER", "kernels loaded before receives are posted"),
    # Else torch.cuda.is_available() starts CUDA, and a process that has started it cannot be forked.
    "PYTORCH_NVML_BASED_CUDA_CHECK": Variable("1", "looking for GPUs does not start CUDA"),
}
NEEDED_QUEUES = 32
# How many collectives NCCL's flight recorder keeps, for when a run hangs (platform/flight_recorder.py); read when the
# first group is made. The second name is torch's older one, which it warns of.
RECORDER, OLDER_RECORDER, RECORDED = "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"


def prepare(environment: MutableMapping[str, str]) -> None:
    """Set what is not set. Before CUDA starts, and inherited by every process started from here."""
    for name, variable in VARIABLES.items():
        environment.setdefault(name, variable.value)
    if OLDER_RECORDER not in environment:
        environment.setdefault(RECORDER, RECORDED)


def described(environment: Mapping[str, str]) -> str:
    """What the variables are now, in one line."""
    values = (
        f"{name}={environment.get(name, '')}"
        + ("" if environment.get(name) == variable.value else f" (not {variable.value}: {variable.reason})")
        for name, variable in VARIABLES.items()
    )
    return "environment: " + ", ".join(values)


def dangers(environment: Mapping[str, str], streams: int) -> list[str]:
    """Loud warnings of values under which receives that are posted ahead may stall a pipeline, in words.

    Args:
        streams: on which this rank enqueues work at once.
    """
    value = environment.get(QUEUES, "8")
    queues = int(value) if value.isdigit() else 8
    if queues >= min(streams, NEEDED_QUEUES):
        return []
    return [
        f"WARNING: {QUEUES}={value}, and this rank's work is on {streams} streams: what shares a queue with a receive "
        f"waits for its message, and the pipeline may hang. Leave the variable unset, or set it to {NEEDED_QUEUES}. "
        "(Tensor-parallel communication is hidden best with 1, which Megatron's own schedules can be run with.)"
    ]
