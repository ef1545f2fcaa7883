"""An examination, phase after phase, on every rank: each machine alone; then directory, sockets, devices, messages.

What a rank finds it tells by the board (board.py), so that one that dies or hangs in any phase is missed by name within
a time limit. Rank 0 judges.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform.cores import own_cores
from hcmegatron.platform.ranks import RankInfo
from launch.doctor import judge, packages, speed, storage
from launch.doctor.board import Terminated
from launch.doctor.checks import OF_A_MACHINE, run_checks
from launch.doctor.findings import Finding, Report, fault, note
from launch.doctor.messages import measure_messages
from launch.doctor.peers import Listener, Offset, clock_offset, own_address, reach
from launch.doctor.rounds import Pair, blame, cover
from launch.doctor.system import System
from launch.doctor.visit import Request, Visit

PASSES = 2  # over the devices: one is slow that is so in both
GPU_S, CPU_S, COPY_S = 1.5, 0.3, 0.2  # of multiplying in a pass, and of copying
BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same in all processes, and containers, of a machine


def examine(request: Request, ranks: RankInfo, system: System) -> Report | None:
    """Look at everything. Collective.

    Returns:
        on rank 0 the report, after SIGTERM that of what was found so far; elsewhere None. On every rank that does
        not find rank 0: what this machine alone says.

    Raises:
        Lost: rank 0 has gone meanwhile.
    """
    import torch

    visit = Visit(request, ranks, system, torch.cuda.device_count())
    try:
        return _examined(visit)
    except Terminated:
        return visit.cut_short()


def _examined(visit: Visit) -> Report | None:
    import torch

    ranks, system = visit.ranks, visit.system
    if not visit.subject.gpu:
        torch.set_num_threads(own_cores(ranks))  # as training has it
    own = run_checks(OF_A_MACHINE, visit.subject) if ranks.local_rank == 0 else []
    try:
        visit.join()
    except ConfigError as error:
        lost = fault("ranks", str(error), "start every rank; look whether rank 0's port is open")
        return Report([*own, lost.on(system.node)], [system.node])
    listener = Listener(system.clock)
    try:
        introduce(visit, own, listener.port)
        share_directory(visit)
        measuring = reach_others(visit)
        failed = measure_devices(visit)
        measure_messages(visit, [rank for rank in measuring if rank not in failed])
        return visit.conclude()
    finally:
        listener.close()


def introduce(visit: Visit, own: list[Finding], port: int) -> None:
    """Who is there, on which machine, with which versions; and what every machine said of itself."""
    try:
        of_torch = packages.of_torch()
    except RuntimeError as error:  # the driver or the device
        own = [*own, judge.failed_device(f"rank {visit.ranks.rank}", str(error)).on(visit.system.node)]
        of_torch = {}
    card = {
        "node": visit.system.node,
        "machine": BOOT.read_text().strip(),
        "cores": sorted(os.sched_getaffinity(0)),
        "gpus": visit.subject.gpus,
        "local_rank": visit.ranks.local_rank,
        "address": [own_address(visit.ranks, visit.system), port],
        "findings": [finding.as_json() for finding in own],
        "facts": {**packages.installed(), **of_torch, "code": packages.code_fingerprint()},
    }
    visit.introduce(card)
    for other in visit.cards.values():
        visit.findings += map(Finding.from_json, other["findings"])
    facts = {node: visit.cards[ranks[0]]["facts"] for node, ranks in visit.nodes.items()}
    facts = {node: known for node, known in facts.items() if "CUDA" in known}  # else its device has failed
    visit.findings += judge.differences(facts)


def share_directory(visit: Visit) -> None:
    """The run directory, as the first machine finds it and as the others see it."""
    probe = storage.open_probe(visit.request.directory) if visit.ranks.rank == 0 else None
    if isinstance(probe, Finding):
        visit.findings.append(probe.on(*visit.names))  # whoever looks would find the same
        probe = None
    try:
        token = visit.exchange("token", str(probe.token) if probe else "", "", [0])[0]
        follows = token and visit.ranks.rank in visit.leaders[1:]
        saw = storage.seen_from_here(token) if follows else ""
        seen = visit.exchange("seen", saw, "while it looked at the run directory", visit.leaders)
        if probe:
            others = {visit.cards[rank]["node"]: said for rank, said in seen.items() if rank}
            visit.findings += judge.shared_directory(visit.system.node, others)
            check = {"storage": lambda subject: storage.check(subject, probe)}
            visit.findings += [one.on(*visit.names) for one in run_checks(check, visit.subject)]
    finally:
        if probe:
            probe.close()


def reach_others(visit: Visit) -> list[int]:
    """Plain sockets between machines, both ways, and clocks.

    Returns:
        the ranks that messages are measured between: those of machines which all reach each other, which have GPUs, or
        none, as most do, and which have found nothing in themselves for which they are to be left out.
    """
    me, leaders, names = visit.ranks.rank, visit.leaders, visit.names
    addresses = {rank: tuple(visit.cards[rank]["address"]) for rank in leaders if rank != me}
    said: dict[str, Any] = {}
    if me in leaders:
        said["clock"] = clock_offset(0, addresses[0], visit.system) if me else None
        said["failed"] = {rank: why for rank, why in reach(addresses, visit.system).items() if why}
    heard = visit.exchange("reach", said, "while sockets were tried", leaders)
    broken: dict[Pair, str] = {}
    for rank, own in heard.items():
        for other, why in own["failed"].items():
            low, high = sorted((leaders.index(rank), leaders.index(int(other))))
            broken[low, high] = why
    visit.findings += judge.unreachable(names, broken)
    # an offset is rank 0's clock against the other's; said the other way round
    clocks = {names[leaders.index(rank)]: own["clock"] for rank, own in heard.items() if own["clock"]}
    offsets = {node: Offset(-seconds, uncertainty) for node, (seconds, uncertainty) in clocks.items()}
    visit.findings += judge.clocks(names[0], offsets)
    visit.figures["clocks_s"] = {node: offset._asdict() for node, offset in offsets.items()}
    machines, links = blame(range(len(names)), broken)
    out = {*machines, *cover(links), *(i for i, rank in enumerate(leaders) if rank not in heard)}
    gpus = {rank: visit.cards[rank]["gpus"] > 0 for rank in visit.cards}
    usual = Counter(gpus.values()).most_common(1)[0][0]
    of_machines = [Finding.from_json(one) for card in visit.cards.values() for one in card["findings"]]
    out |= {names.index(node) for node in Report(of_machines, names).bad}
    reached = [rank for index, own in enumerate(visit.nodes.values()) if index not in out for rank in own]
    return [rank for rank in reached if gpus[rank] == usual]


def measure_devices(visit: Visit) -> dict[int, str]:
    """Matmuls and copies of every device: of GPUs all at once; of a machine's CPU ranks few at a time.

    Returns:
        by rank whose device could not multiply, why; the same on all ranks.
    """
    gpu, turns = visit.subject.gpu, take_turns({rank: visit.cards[rank] for rank in visit.alive})
    dtype, failed = visit.request.sizes.dtype, dict[int, str]()
    speeds: dict[int, list[speed.Speed]] = {rank: [] for rank in visit.alive}

    def measure() -> speed.Speed:
        device = speed.device(visit.ranks.local_rank)
        return speed.matmul_tflops(device, dtype, GPU_S if gpu else CPU_S)

    for number in range(PASSES):
        for turn in range(1 + max(turns.values())):
            mine = turns[visit.ranks.rank] == turn and visit.ranks.rank not in failed
            own = _tried(measure) if mine else []
            heard = visit.exchange(f"matmul {number} {turn}", own, "while devices were measured")
            failed |= {rank: found for rank, found in heard.items() if isinstance(found, str)}
            for rank, found in heard.items():
                speeds[rank] += [speed.Speed(*found)] if found and rank not in failed else []
    speeds = {rank: found for rank, found in speeds.items() if len(found) == PASSES}
    visit.findings += judge.slow_devices(speeds, visit.node_of, visit.describe)
    visit.figures["matmul_tflops"] = {
        rank: max(one.median for one in found) for rank, found in speeds.items()
    }
    if visit.ranks.rank == 0:
        visit.noise = _noise(visit, speeds)
        visit.figures["ranks_per_node"] = max(map(len, visit.nodes.values()))
        said = failed.get(0) or _tried(lambda: visit.figures.update(_of_the_first_device(visit)) or ())
        last = {0: said} if isinstance(said, str) else {}  # which the others do not know of
        for rank, why in {**failed, **last}.items():
            visit.findings.append(judge.failed_device(visit.describe(rank), why).on(visit.node_of(rank)))
        if visit.ranks.world_size == 1:
            alone = note("other ranks", "none: nothing to compare clocks and speeds with, no links")
            visit.findings.append(alone.on(visit.system.node))
    return failed


def _tried(measure: Callable[[], Iterable[float]]) -> list[float] | str:
    """What was measured, or in words why the device could not: torch raises RuntimeErrors for all that CUDA says."""
    try:
        return list(measure())
    except RuntimeError as error:
        return str(error) or type(error).__name__


def _of_the_first_device(visit: Visit) -> dict[str, Any]:
    """Figures that rank 0's device stands for all with."""
    device = speed.device(visit.ranks.local_rank)
    return {
        "device": speed.device_name(device),
        "copy_tbs": speed.copy_tbs(device, COPY_S).median,
        "memory_gib": speed.memory_gib(device, visit.ranks.local_world_size),
    }


def take_turns(cards: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    """By rank, in which turn it multiplies: of a machine's CPU ranks as many at once as half of its cores. Pure.

    Args:
        cards: by rank, its machine (whatever names that goes by), the cores that it may run on, and its gpus.
    """
    found, before, cores = {}, Counter[str](), cores_of_machines(cards.values())
    for rank, card in cards.items():
        found[rank] = 0 if card["gpus"] else before[card["machine"]] // max(1, cores[card["machine"]] // 2)
        before[card["machine"]] += 1
    return found


def cores_of_machines(cards: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """By machine, how many cores its ranks may run on, all together. Pure."""
    found: dict[str, set[int]] = {}
    for card in cards:
        found.setdefault(card["machine"], set()).update(card["cores"])
    return {machine: len(cores) for machine, cores in found.items()}


def _noise(visit: Visit, speeds: Mapping[int, Sequence[speed.Speed]]) -> str:
    """Why rates of messages say little about links; "" where there is no reason."""
    if (busy := judge.busy_share(speeds)) > judge.BUSY:
        return f"other programs had the cores {busy:.0%} of the time"
    cards = [visit.cards[rank] for rank in visit.alive]
    cores = cores_of_machines(cards)
    for machine, ranks in Counter(card["machine"] for card in cards).items():
        if ranks > cores[machine] and not visit.subject.gpu:
            return f"{ranks} ranks share {cores[machine]} cores"
    return ""
