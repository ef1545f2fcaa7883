"""What the figures of all ranks say together: who differs, who is slow, and whether a machine or a link is. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from hcmegatron.platform.agreement import in_words
from launch.doctor.findings import Finding, fault, ok, warning
from launch.doctor.peers import Offset
from launch.doctor.rounds import Pair, blame, cover
from launch.doctor.speed import Speed

SLOW_DEVICE = 0.9  # of the median of all devices
SLOW_IN_NOISE = 0.15  # the same where ranks and other programs have to share their cores
BUSY = 0.1  # of the time: from there on a CPU's speeds are those of whatever else runs on it
CLOCK_WARNING_S, CLOCK_FAULT_S = 0.5, 60.0  # beyond the uncertainty


def differences(of_nodes: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """What most machines have, and who has something else.

    Args:
        of_nodes: by machine, by name, what has to be the same everywhere.
    """
    keys = dict.fromkeys(key for facts in of_nodes.values() for key in facts)
    same = []
    for key in keys:
        values = {node: facts.get(key, "nothing") for node, facts in of_nodes.items()}
        (usual, count), *others = Counter(values.values()).most_common()
        if not others:
            same.append(key)
            continue
        tie = count == others[0][1]
        for value, _ in others:
            where = tuple(node for node, own in values.items() if own == value)
            yield fault(
                f"the same {key}",
                f"{value}, where {'as many' if tie else 'most'} machines have {usual}",
                "install the same everywhere, best from one shared environment",
            ).on(*(values if tie else where))  # of two halves neither is the wrong one
    if same and len(of_nodes) > 1:
        yield ok("the same everywhere", ", ".join(same)).on(*of_nodes)


def clocks(first: str, offsets: Mapping[str, Offset]) -> Iterator[Finding]:
    """Machines whose clock is not that of most: of the first and another one alone, neither is the wrong one.

    Args:
        offsets: by machine, its clock minus the first one's.
    """
    if not offsets:
        return
    known = {first: Offset(0.0, 0.0), **offsets}
    usual = statistics.median_low(offset.seconds for offset in known.values())
    unsure = max(offset.uncertainty for offset in offsets.values())
    remedy = "let chronyd or ntpd set it: logs, checkpoints and time limits would be misread"
    found = []
    for node, offset in known.items():
        apart = offset.seconds - usual
        if abs(apart) - unsure > CLOCK_WARNING_S:
            say = fault if abs(apart) - unsure > CLOCK_FAULT_S else warning
            side = "ahead of" if apart > 0 else "behind"
            others, blamed = ("others", [node]) if len(known) > 2 else ("other", known)
            said = f"{node}'s is {abs(apart):.3f} s {side} the {others} (+- {unsure:.3f})"
            found.append(say("clocks", said, remedy).on(*blamed))
    widest = max(abs(offset.seconds - usual) for offset in known.values())
    said = f"at most {1e3 * widest:.1f} ms from their median, to {1e3 * unsure:.1f} ms"
    yield from found or [ok("clocks", said).on(*known)]


def slow_devices(
    speeds: Mapping[int, Sequence[Speed]],
    node_of: Callable[[int], str | None],
    describe: Callable[[int], str],
) -> list[Finding]:
    """Devices whose matmuls were below SLOW_DEVICE of the median of all in every pass.

    Where everybody is disturbed, those below SLOW_IN_NOISE, without the time of waiting for cores.

    Args:
        speeds: by rank, TFLOP/s of each pass.
        node_of: a rank's machine; `describe` its device in words.
    """
    if not speeds:
        return []
    busy = busy_share(speeds)
    rate = (lambda one: one.undisturbed) if busy > BUSY else (lambda one: one.mean)
    least = SLOW_IN_NOISE if busy > BUSY else SLOW_DEVICE
    usual = [statistics.median(map(rate, turn)) for turn in zip(*speeds.values(), strict=True)]
    found = []
    for rank, own in speeds.items():
        share = max(rate(one) / median for one, median in zip(own, usual, strict=True))
        if share < least:
            waited = max(one.waited for one in own)
            why = f"; others had its core {waited:.0%} of the time" if waited > BUSY else ""
            said = f"{describe(rank)}: {share:.0%} of the median of {len(speeds)}, {max(map(rate, own)):.3g} TFLOP/s"
            remedy = "look at clocks, cooling and other programs on it; leave the machine out"
            found.append(fault("matmul of a device", said + why, remedy, machine=True).on(node_of(rank)))
    everywhere = dict.fromkeys(map(node_of, speeds))
    best = [max(one.median for one in own) for own in speeds.values()]
    spread = max(one.spread for own in speeds.values() for one in own)
    said = f"{len(best)} of {statistics.median(best):.3g} TFLOP/s, the slowest {min(best):.3g}, spread {spread:.0%}"
    if busy > BUSY:
        said += f"; hardly compared: other programs had the cores {busy:.0%} of the time"
        remedy = "end them, or measure again when it is quiet"
        return [*found, warning("matmul of devices", said, remedy).on(*everywhere)]
    return found or [ok("matmul of devices", said).on(*everywhere)]


def failed_device(device: str, why: str) -> Finding:
    """A device that cannot multiply or copy; CUDA's errors are several lines, of which the first says what it is."""
    said = f"{device}: {' '.join(why.partition(chr(10))[0].split())}"
    return fault("device", said, "look at dmesg (Xid) and nvidia-smi; leave the machine out", machine=True)


def busy_share(speeds: Mapping[int, Sequence[Speed]]) -> float:
    """Of the time, that other programs had the cores of the median rank: one busy machine among many is slow itself."""
    return statistics.median(max(speed.waited for speed in own) for own in speeds.values()) if speeds else 0.0


def unreachable(nodes: Sequence[str], broken: Mapping[Pair, str]) -> list[Finding]:
    """Machines and links to which plain sockets find no way.

    Args:
        broken: by pair of indices of `nodes`, why.
    """
    name, pairs = "connections", len(nodes) * (len(nodes) - 1) // 2
    if not broken:
        return (
            [ok(name, f"{pairs} of {pairs} pairs of machines reach each other").on(*nodes)] if pairs else []
        )
    why = Counter(broken.values()).most_common(1)[0][0]
    remedy = (
        "open the ports between ranks' machines (all, not only MASTER_PORT); ip route, firewall-cmd, nft list"
    )
    if len(broken) == pairs:
        return [fault(name, f"no two machines reach each other ({why})", remedy).on(*nodes)]
    machines, links = blame(range(len(nodes)), broken)
    found = []
    for index in machines:
        lost = sum(index in pair for pair in broken)
        said = f"{nodes[index]} is cut off from {lost} of {len(nodes) - 1} machines ({why})"
        found.append(fault(name, said, remedy, machine=True).on(nodes[index]))
    return found + _of_links(name, nodes, links, lambda pair: f"unreachable: {broken[pair]}", remedy)


def _of_links(
    name: str, names: Sequence[str], links: Sequence[Pair], words: Callable[[Pair], str], remedy: str
) -> list[Finding]:
    """A fault for every bad link, laid to the fewest machines without which all of them are gone."""
    without = cover(links)
    found = []
    for pair in links:
        said = f"{names[pair[0]]} and {names[pair[1]]}: {words(pair)}"
        blamed = (names[index] for index in pair if index in without)
        found.append(fault(name, said, remedy, machine=True).on(*blamed))
    return found


def missing(
    gone: Iterable[int], world: int, node_of: Callable[[int], str | None], when: str
) -> list[Finding]:
    """Ranks that did not come, or stopped answering, by machine.

    Args:
        node_of: a rank's machine, where it is known.
        when: what was being done, in words.
    """
    of_nodes: dict[str | None, list[int]] = {}
    for rank in gone:
        of_nodes.setdefault(node_of(rank), []).append(rank)
    found = []
    for node, ranks in of_nodes.items():
        said = f"{in_words(ranks)} of {world} did not answer {when}"
        remedy = "see what it said; look whether the machine is up, and reaches rank 0's"
        found.append(fault("ranks", said, remedy, machine=True).on(*filter(None, [node])))
    return found


def shared_directory(first: str, seen: Mapping[str, str]) -> list[Finding]:
    """By machine, what its rank saw of the file that the first machine's rank wrote and locked."""
    name = "run directory, shared"
    hidden = [node for node, saw in seen.items() if saw == "not seen"]
    unlocked = [node for node, saw in seen.items() if saw == "not locked"]
    found = []
    if hidden:
        said = f"what {first} writes there is not seen by {len(hidden)} of {len(seen)} other machines"
        remedy = "put run.dir on a file system that all machines mount"
        # seen by nobody else, it is the directory that is not shared, and no machine's fault
        found.append(fault(name, said, remedy).on(*([first] if len(hidden) == len(seen) else []), *hidden))
    if unlocked:
        said = f"{first}'s lock does not hold on {len(unlocked)} of {len(seen)} other machines"
        found.append(
            warning(name, said, "mount with locks; take care that no two jobs share run.dir").on(*unlocked)
        )
    if not found and seen:
        found.append(ok(name, f"seen, and locked, on {len(seen) + 1} machines").on(first, *seen))
    return found
