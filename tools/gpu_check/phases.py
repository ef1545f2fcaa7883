"""The phases of a check, most valuable first: what each answers, what hangs on the answer, and what it may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

MINUTES = 10  # that one GPU is kept at most
FACTS_SECONDS = 20  # for the look at the machine, which comes first
FEW = 3  # phases at once in miniature
SHARING_NCCL = (2, 30)  # from which on two ranks may share a GPU


@dataclass(frozen=True)
class Phase:
    """One process of its own, ended at its limit; what it has found until then is kept.

    Attributes:
        answers: the question.
        decides: what is decided by the answer.
        seconds: its limit.
        target: module:function, called with a tools.gpu_check.worker.PhaseContext.
        shared: it measures no time that has to be right, and may run beside the phases next to it that do not either.
        gpus: that it needs.
        sharing: fewer will do where NCCL lets ranks share one.
        packages: modules that it cannot do without.
        compiles: torch.compile is left on, which takes its time where Megatron uses it.
    """

    name: str
    answers: str
    decides: str
    seconds: int
    target: str
    shared: bool = False
    gpus: int = 1
    sharing: bool = False
    packages: tuple[str, ...] = ("megatron.core",)
    compiles: bool = False


PHASES = (
    Phase(
        "warm-start",
        "Which calls of the host wait for a kernel that spins, as a posted receive does, with modules loaded lazily "
        "and eagerly?",
        "what warm_start has to do before the first receive is posted",
        30,
        "tools.gpu_check.parents:warm_start",
        packages=(),
    ),
    Phase(
        "queues",
        "Does what waits behind a spinning receive hold up other streams, with 1, 8 and 32 connections?",
        "whether a dangerous CUDA_DEVICE_MAX_CONNECTIONS is refused or only warned of",
        15,
        "tools.gpu_check.parents:queues",
        packages=(),
    ),
    Phase(
        "tests",
        "Do the tests that need a GPU pass?",
        "whether kernels and lanes may be used on this device at all",
        85,
        "tools.gpu_check.correctness:tests",
        shared=True,
        packages=("megatron.core", "pytest"),
    ),
    Phase(
        "equality",
        "Have overlapped and serialised training the same bits: plain, recomputed, with all-to-alls?",
        "whether parallel.overlap is safe",
        85,
        "tools.gpu_check.correctness:equality",
        shared=True,
    ),
    Phase(
        "schedules",
        "Does every schedule, a stream for each rank, give one process's losses and gradients?",
        "whether the runtime's events and buffers are right",
        85,
        "tools.gpu_check.correctness:schedules",
        shared=True,
        packages=("megatron.core", "pytest"),
    ),
    Phase(
        "kinds",
        "Are losses and gradients of every kind of connection right with its kernels, in fp32 and with bf16 streams?",
        "which connections may be trained on this device",
        85,
        "tools.gpu_check.kinds:kinds",
        shared=True,
        packages=("megatron.core", "triton"),
    ),
    Phase(
        "kernels",
        "How far are the kernels from fp64, and from the speed of a copy, beside everyone else's?",
        "which kernel is worked on next",
        60,
        "tools.gpu_check.speed:kernels",
        packages=("triton",),
        compiles=True,
    ),
    Phase(
        "nccl",
        "Do two ranks train to the losses of one, under 1F1B and overlapped DualPipeV, with 8 and 32 connections?",
        "whether the pipeline can be used on GPUs",
        75,
        "tools.gpu_check.parents:training",
        shared=True,
        gpus=2,
        sharing=True,
    ),
    Phase(
        "host-syncs",
        "Where does the host wait for the device in a step, line by line?",
        "which copies are pinned, cached or left out next",
        75,
        "tools.gpu_check.overlap:host_syncs",
        shared=True,
    ),
    Phase(
        "trace",
        "Is there work on the high-priority streams, and beside computation?",
        "whether lanes do overlap, or only could",
        75,
        "tools.gpu_check.overlap:trace",
        shared=True,
    ),
    Phase(
        "layer",
        "What does a layer of the 27B model take with mHC over the plain residual, in time and TFLOP/s?",
        "whether the cost of mHC is near the paper's 1.067",
        75,
        "tools.gpu_check.speed:layer",
        compiles=True,
    ),
    Phase(
        "connections",
        "What do the other kinds of connection cost in that layer, and their kernels beside a copy? What does Muon's "
        "update take beside AdamW's?",
        "which connection's kernels are worked on next",
        120,
        "tools.gpu_check.kinds:connections",
        packages=("megatron.core", "triton"),
        compiles=True,
    ),
    Phase(
        "tiles",
        "Which tiles are faster than the rule's, kernel by kernel?",
        "the rule in hcmegatron/kernels/tiles.py",
        40,
        "tools.gpu_check.speed:tiles",
        packages=("triton",),
    ),
    Phase(
        "receives",
        "How many multiprocessors does a spinning receive hold with max_ctas 1, 4 and 16, does a kernel's first launch "
        "wait for it, and how fast are messages?",
        "the blocks of a channel, and how far ahead receives are posted",
        35,
        "tools.gpu_check.parents:receives",
        gpus=2,
        sharing=True,
        packages=(),
    ),
    Phase(
        "memory",
        "How much memory does each mode of recomputation keep and need at most, and at what cost in time?",
        "the default of recompute.mode, and the planner's arithmetic",
        40,
        "tools.gpu_check.speed:memory",
    ),
    Phase(
        "pipelines",
        "How long do steps of DualPipe, DualPipeV, 1F1B and Megatron's 1F1B take on the same model, and how much "
        "communication is exposed?",
        "the default of parallel.schedule",
        150,
        "tools.gpu_check.parents:pipelines",
        gpus=2,
        compiles=True,
    ),
)


def phases_named(names: Sequence[str]) -> tuple[Phase, ...]:
    """In the registry's order. ValueError: a name is none of a phase."""
    known = [phase.name for phase in PHASES]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--phases {' '.join(unknown)}: no such phase; known: {', '.join(known)}")
    return tuple(phase for phase in PHASES if phase.name in names)


def waves(phases: Sequence[Phase], miniature: bool = False) -> Iterator[list[Phase]]:
    """Those that run at once: neighbours that are shared, and in miniature, where no time is measured, any few."""
    if miniature:
        yield from (list(phases[at : at + FEW]) for at in range(0, len(phases), FEW))
        return
    for shared, neighbours in groupby(phases, key=lambda phase: phase.shared):
        if shared:
            yield list(neighbours)
        else:
            yield from ([phase] for phase in neighbours)


def most_seconds(phases: Sequence[Phase]) -> int:
    """If every one of them takes its limit."""
    return sum(max(phase.seconds for phase in wave) for wave in waves(phases))


def of_one_gpu() -> tuple[Phase, ...]:
    """Those that can run there, with an NCCL that lets ranks share it."""
    return tuple(phase for phase in PHASES if phase.gpus == 1 or phase.sharing)


def missing_for(phase: Phase, facts: Mapping) -> str | None:
    """Why a machine of these facts (machine.py) cannot run it, in words; None where it can.

    In miniature, ranks are processes of gloo and everything is on the CPU, so that only packages can be missing.
    """
    packages = facts["packages"]
    if absent := [name for name in phase.packages if not packages.get(name)]:
        return f"{', '.join(absent)} cannot be imported"
    if facts["miniature"] or len(facts["gpus"]) >= phase.gpus:
        return None
    have = f"{len(facts['gpus'])} of {phase.gpus} GPUs"
    if not phase.sharing:
        return have
    nccl = tuple(facts["nccl"] or ())
    if nccl >= SHARING_NCCL:
        return None
    return f"{have}, and NCCL {'.'.join(map(str, nccl)) or 'is absent'}, where ranks share one from 2.30 on"


def phase_table(phases: Sequence[Phase] = PHASES) -> str:
    """Seconds allowed by phase, what it answers and decides, as docs/gpu.md has it."""
    lines = ["| phase | seconds | answers | decides | needs |", "|---|---|---|---|---|"]
    for wave in waves(phases):
        for phase in wave:
            beside = [other.name for other in wave if other is not phase]
            seconds = f"{phase.seconds}" + (f", beside {', '.join(beside)}" if beside else "")
            needs = "two GPUs, or NCCL 2.30" if phase.sharing else "two GPUs" if phase.gpus > 1 else "one GPU"
            lines.append(f"| {phase.name} | {seconds} | {phase.answers} | {phase.decides} | {needs} |")
    return "\n".join(lines) + "\n"
