"""Which machine a rank is on, as SLURM has it: also of ranks that never came."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hcmegatron.platform.ranks import tasks_per_node


def expand(nodes: str) -> list[str]:
    """The names of a SLURM node list: "gpu[007-009,12],login" is gpu007, gpu008, gpu009, gpu12, login."""
    found = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        names = [""]
        for text, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            names = [name + end for name in names for end in ([text] if text else _numbers(ranges))]
        found += names
    return found


def _numbers(ranges: str) -> list[str]:
    found = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return found


def node_of_ranks(environment: Mapping[str, str]) -> dict[int, str]:
    """By rank; empty where SLURM did not start the ranks, or in another order than node by node."""
    nodes = expand(environment.get("SLURM_STEP_NODELIST", ""))
    tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    distribution = environment.get("SLURM_DISTRIBUTION", "block")
    if len(nodes) != len(tasks) or not distribution.startswith("block"):
        return {}
    return dict(enumerate(node for node, count in zip(nodes, tasks, strict=True) for _ in range(count)))
