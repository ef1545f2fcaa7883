"""Process groups that some ranks of a job make beside others, in an order that all of them share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def groups_of_all(own: Sequence[int], device: torch.device) -> list[tuple[int, ...]]:
    """What the ranks of the whole job have as ``own``, each once, sorted. Collective over all of them, and all
    have as many numbers.

    torch.distributed names a group by how many the process has made before, so that only groups which every
    rank takes part in making, in the same order, have one name on all of them. (With
    ``use_local_synchronization`` it counts the groups that a rank belongs to, which differ from rank to rank
    once Megatron has made its own: the two ends of such a pair wait for each other for ever.)
    """
    mine = torch.tensor(own, dtype=torch.long, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return sorted({tuple(each.tolist()) for each in found})
