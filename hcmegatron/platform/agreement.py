"""What all ranks of a job must have in common, and in words where they do not.

Ranks that differ in a learning rate or in their data would train to the end, each on its own terms; ranks that differ
in the layout would wait for each other until the time limit.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence

from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten
from hcmegatron.platform.versions import installed_version, megatron_core

# Of all settings, these may be a rank's own: they change how fast it computes, not what.
OF_A_RANK = frozenset({"training.threads"})
SHOWN = 3  # differences that are spelled out

Facts = Mapping[str, str]


def rank_facts(config: Config, world_size: int, data: str | None = None) -> dict[str, str]:
    """Every setting by dotted key, the versions and the data.

    Args:
        data: the corpus's fingerprint; None where there is no corpus.
    """
    found = {key: _text(value) for key, value in flatten(config).items() if key not in OF_A_RANK}
    found |= {"the world size": str(world_size), "Python": platform.python_version()}
    found |= {
        "torch": installed_version("torch"),
        "megatron-core": megatron_core(),
        "hcmegatron": installed_version("hcmegatron"),
    }
    return found if data is None else found | {"the data's fingerprint": data}


def disagreement(of_ranks: Sequence[Facts]) -> str | None:
    """One line that names what differs and the ranks that differ in it, or None. Pure.

    Args:
        of_ranks: the facts of every rank, in order.
    """
    keys = dict.fromkeys(key for facts in of_ranks for key in facts)
    differing = [key for key in keys if len({facts.get(key) for facts in of_ranks}) > 1]
    if not differing:
        return None
    said = [
        f"{key} = {_by_rank([facts.get(key, 'nothing') for facts in of_ranks])}" for key in differing[:SHOWN]
    ]
    if len(differing) > SHOWN:
        said.append(f"{len(differing) - SHOWN} more differ")
    return f"{'; '.join(said)}; start all ranks with the same configuration, data and versions"


def _by_rank(values: Sequence[str]) -> str:
    """ "3 on ranks 0, 2, 5 on rank 1"."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {in_words(where)}" for value, where in ranks.items())


def in_words(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0, 2", "ranks 0 to 5, 7": ascending numbers, with runs of three and more as ranges."""
    parts: list[str] = []
    start = 0
    for index, rank in enumerate(ranks):
        if index + 1 < len(ranks) and ranks[index + 1] == rank + 1:
            continue
        run = ranks[start : index + 1]
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
        start = index + 1
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts)}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
