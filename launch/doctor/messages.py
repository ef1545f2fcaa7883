"""The last phase: messages between ranks that reach each other, in a thread, and what rank 0 makes of the figures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from launch.doctor import judge_links, speed
from launch.doctor.checks import AFTER_LOAD, run_checks
from launch.doctor.findings import Finding, fault, note
from launch.doctor.links import PASSES, ROUND_S, Link, Links, partners
from launch.doctor.rounds import Pair
from launch.doctor.visit import Visit

GRACE_S = 5.0  # for ranks that are behind the others at the end
Heard = dict[int, dict[str, Any]]


def measure_messages(visit: Visit, measuring: Sequence[int]) -> None:
    """All of it. The thread may hang; this rank can then still say in what. Collective.

    Args:
        measuring: the ranks that take part.
    """
    own: dict[str, Any] = {}
    if visit.ranks.rank in visit.leaders:
        own["findings"] = [finding.as_json() for finding in run_checks(AFTER_LOAD, visit.subject)]
    measuring = [rank for rank in measuring if rank in visit.alive]
    rounds = len(visit.nodes) + max(map(len, visit.nodes.values()))
    limit = 2 * visit.request.limit + 2 * PASSES * ROUND_S * rounds
    if visit.ranks.rank in measuring and len(measuring) > 1:
        thread = threading.Thread(target=_measure, args=(visit, measuring, own), name="messages", daemon=True)
        thread.start()
        thread.join(limit)
        visit.hung = thread.is_alive()
        if visit.hung:
            own = {**own, "error": f"no end within {limit:.0f} s", "at": visit.system.clock()}
    # Ranks that wait for one which has failed hear of it by the group's time limit.
    grace = GRACE_S + (visit.request.limit if "error" in own else 0)
    heard = visit.board.exchange("measured", own, limit + visit.request.limit, visit.alive, grace)
    if visit.ranks.rank == 0:
        _judge(visit, heard)


def _measure(visit: Visit, measuring: list[int], own: dict[str, Any]) -> None:
    """Fill `own` with what was found, or with why and in what it failed."""
    import torch.distributed as dist

    from hcmegatron.platform.gloo import share_event_loop

    nodes = [[measuring.index(rank) for rank in ranks if rank in measuring] for ranks in visit.nodes.values()]
    nodes, me, sizes = (
        [ranks for ranks in nodes if ranks],
        measuring.index(visit.ranks.rank),
        visit.request.sizes,
    )

    def say(what: str) -> None:
        own["doing"] = what
        visit.board.pin("doing", what)

    # NCCL's watchdog would abort this process over a lost peer; the thread's limit finds the hang, and says in what.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    try:
        device = speed.device(visit.ranks.local_rank)  # CUDA's current one is each thread's own
        say("forming the process group")
        if not visit.subject.gpu:
            share_event_loop()  # as training has it
        dist.init_process_group(
            "nccl" if visit.subject.gpu else "gloo",
            store=dist.PrefixStore("messages", visit.board.store),
            rank=me,
            world_size=len(measuring),
            timeout=timedelta(seconds=visit.request.limit),
        )
        dist.barrier()
        links, (within, between) = Links(device, me, say), partners(nodes, me)
        for what, turns in (("within", within), ("between", between)):
            found = links.pairs(turns, sizes.hop, lambda other: visit.describe(measuring[other]))
            own[what] = {measuring[other]: link for other, link in found.items()}
        own["collectives"] = links.collectives({"all-reduce": sizes.gradients, "all-to-all": sizes.dispatch})
        dist.destroy_process_group()
    except Exception as error:  # of a lost peer, mostly; whatever it is, it is told with what was being done
        own |= {"error": " ".join(str(error).partition("\n")[0].split()), "at": visit.system.clock()}


def _judge(visit: Visit, heard: Heard) -> None:
    for own in heard.values():
        visit.findings += map(Finding.from_json, own.get("findings", ()))
    gone = [rank for rank in visit.alive if rank not in heard]
    doing = dict.fromkeys(filter(None, (visit.board.read("doing", rank) for rank in gone)))
    visit.miss(gone, f"any more ({'; '.join(doing) or 'while messages were measured'})")
    if not gone:  # else the others' errors only say that their peer has gone
        visit.findings += _errors(visit, heard)
    within = _slowest(heard, "within", lambda rank: rank)
    between = _slowest(heard, "between", lambda rank: visit.cards[rank]["node"])
    visit.figures |= {"within": within, "between": between}
    visit.findings += judge_links.within_machines(
        {node: _indexed(within, ranks) for node, ranks in visit.nodes.items()},
        lambda node, index: visit.describe(visit.nodes[node][index]),
        visit.noise,
    )
    visit.findings += judge_links.between_machines(visit.names, _indexed(between, visit.names), visit.noise)
    measured = [own["collectives"] for own in heard.values() if "collectives" in own]
    for name in measured[0] if measured else ():
        size, seconds = measured[0][name][0], max(found[name][1] for found in measured)
        visit.figures[name] = {"bytes": size, "seconds": seconds, "ranks": len(measured)}
        said = f"{size / 2**20:.3g} MiB a rank over {len(measured)} ranks: {1e3 * seconds:.3g} ms"
        visit.findings.append(note(name, said).on(*visit.nodes))


def _errors(visit: Visit, heard: Heard) -> list[Finding]:
    """One fault for all: where one rank fails, the others fail because of it, and say so in their own ways."""
    failed = sorted((own["at"], rank) for rank, own in heard.items() if "error" in own)
    if not failed:
        return []
    first = failed[0][1]
    said = f"{visit.describe(first)}, {heard[first].get('doing')}: {heard[first]['error']}"
    if len(failed) > 1:
        said += f"; so did {len(failed) - 1} more, after it"
    where = dict.fromkeys(visit.cards[rank]["node"] for _, rank in failed)
    return [fault("messages", said, "docs/doctor.md, A measurement that fails").on(*where)]


def _slowest(heard: Heard, what: str, name: Callable[[int], Any]) -> list[tuple[Any, Any, Link]]:
    """Of every pair, by names: of both ends, and of the ranks of two machines, what the slowest found."""
    found: dict[tuple[Any, Any], Link] = {}
    for rank, own in heard.items():
        for other, figures in own.get(what, {}).items():
            first, second = sorted((name(rank), name(int(other))))
            link = Link(*figures)
            known = found.get((first, second), link)
            found[first, second] = Link(max(known.us, link.us), min(known.gbs, link.gbs), link.bytes)
    return [(*pair, link) for pair, link in found.items()]


def _indexed(links: Sequence[tuple[Any, Any, Link]], names: Sequence[Any]) -> dict[Pair, Link]:
    """By pair of indices of `names`, of the links between them."""
    found = {}
    for first, second, link in links:
        if first in names and second in names:
            low, high = sorted((names.index(first), names.index(second)))
            found[low, high] = link
    return found
