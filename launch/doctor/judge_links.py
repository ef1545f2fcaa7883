"""What rates between ranks say: which machine is slow, where healthy machines' links differ by design. Pure.

Links of a machine are compared with the same links of other machines: some GPUs of a box may share NVLink and others
PCIe. Machines are compared by their best link, and by what their partners have with others: an oversubscribed spine
slows whoever is behind another leaf switch, and is nobody's fault.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from launch.doctor.findings import Finding, fault, note, ok, warning
from launch.doctor.judge import SLOW_IN_NOISE
from launch.doctor.links import Link
from launch.doctor.rounds import Pair

SLOW_LINK = 0.7
UNEVEN = "as it should be where the hardware is uneven (NVLink pairs, oversubscribed switches); else look at the cables"


def between_machines(nodes: Sequence[str], links: Mapping[Pair, Link], noise: str = "") -> list[Finding]:
    """Machines whose links are slow, whomever they meet; other slow pairs are a warning, laid to none.

    A machine is slow whose best link is below SLOW_LINK of the median of all machines' best ones, and most of whose
    partners have more with others: not the neighbour of a slow one, alone with it behind a switch.

    Args:
        links: by pair of indices of `nodes`.
        noise: why rates say little about links; "" where there is no reason.
    """
    name = "links between machines"
    if not links:
        return []
    rates, least = {pair: link.gbs for pair, link in links.items()}, SLOW_IN_NOISE if noise else SLOW_LINK
    usual, best = _usual(rates)
    slow = [index for index in best if best[index] < least * usual and _held_up(index, rates, least)]
    found = []
    for index in slow:
        own = statistics.median(rate for pair, rate in rates.items() if index in pair)
        said = f"{nodes[index]}: {own:.3g} GB/s to whomever, {own / usual:.0%} of what others have"
        remedy = "look at its network adapter and cable; leave the machine out"
        found.append(fault(name, said, remedy, machine=True).on(nodes[index]))
    left = {pair: rate for pair, rate in rates.items() if rate < least * usual and not {*pair} & {*slow}}
    found += _uneven(name, nodes, left, usual, len(rates), nodes)
    return found or [_said(name, links, noise).on(*nodes)]


def within_machines(
    machines: Mapping[str, Mapping[Pair, Link]], describe: Callable[[str, int], str], noise: str = ""
) -> list[Finding]:
    """Pairs below SLOW_LINK of the median of the same pair in all machines. Of one machine alone: a warning at most.

    Args:
        machines: by machine, by pair of its ranks' indices.
        describe: a rank in words, by machine and index.
        noise: as of `between_machines`.
    """
    name, least = "links within machines", SLOW_IN_NOISE if noise else SLOW_LINK
    machines = {node: links for node, links in machines.items() if links}
    if not machines:
        return []
    found = []
    if len(machines) == 1:
        ((node, links),) = machines.items()
        rates = {pair: link.gbs for pair, link in links.items()}
        usual, best = _usual(rates)
        low = {pair: rate for pair, rate in rates.items() if min(best[i] for i in pair) < least * usual}
        ranks = {index: describe(node, index) for index in best}
        return _uneven(name, ranks, low, usual, len(rates), [node]) or [_said(name, links, noise).on(node)]
    for node, links in machines.items():
        shares = {}
        for pair, link in links.items():
            same = [other[pair].gbs for other in machines.values() if pair in other]
            shares[pair] = link.gbs / statistics.median_high(same)
        if low := [pair for pair in shares if shares[pair] < least]:
            worst = min(low, key=shares.__getitem__)
            first, second = (describe(node, index) for index in worst)
            said = f"{len(low)} of {len(links)} below the same of other machines; {first} and {second}: "
            said += f"{links[worst].gbs:.3g} GB/s, {shares[worst]:.0%}"
            remedy = "nvidia-smi topo -m, nvidia-smi nvlink --status; leave the machine out"
            found.append(fault(name, said, remedy, machine=True).on(node))
    every = {(node, *pair): link for node, links in machines.items() for pair, link in links.items()}
    return found or [_said(name, every, noise).on(*machines)]


def _usual(rates: Mapping[Pair, float]) -> tuple[float, dict[int, float]]:
    """The median of the best rates of all members, which one slow member does not lower, and each one's best."""
    members = sorted({member for pair in rates for member in pair})
    best = {member: max(rate for pair, rate in rates.items() if member in pair) for member in members}
    return statistics.median_high(best.values()), best


def _held_up(member: int, rates: Mapping[Pair, float], least: float) -> bool:
    """Whether most of its partners have more with others than with it."""
    own = {sum(pair) - member: rate for pair, rate in rates.items() if member in pair}
    more = 0
    for partner, rate in own.items():
        others = [rates[pair] for pair in rates if partner in pair and member not in pair]
        more += bool(others) and rate < least * statistics.median_low(others)
    return 2 * more > len(own)


def _uneven(
    name: str,
    names: Sequence[str] | Mapping[int, str],
    low: Mapping[Pair, float],
    usual: float,
    pairs: int,
    on: Sequence[str],
) -> list[Finding]:
    if not low:
        return []
    first, second = min(low, key=low.__getitem__)
    said = f"{len(low)} of {pairs} are slower than the others; {names[first]} and {names[second]}: "
    said += f"{low[first, second]:.3g} GB/s, {low[first, second] / usual:.0%} of what others have"
    return [warning(name, said, UNEVEN).on(*on)]


def _said(name: str, links: Mapping[tuple, Link], noise: str) -> Finding:
    rates, us = [link.gbs for link in links.values()], statistics.median(link.us for link in links.values())
    size = max(link.bytes for link in links.values()) / 2**20
    said = (
        f"{len(rates)} of {size:.3g} MiB: {statistics.median(rates):.3g} GB/s, the slowest {min(rates):.3g}"
    )
    said += f"; {us:.0f} us"
    return note(name, f"{said}; hardly compared: {noise}") if noise else ok(name, said)
