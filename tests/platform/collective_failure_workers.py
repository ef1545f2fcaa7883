"""What ranks do together."""

from __future__ import annotations

import torch.distributed as dist

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform.collective_failure import kept_on_first_rank, on_first_rank


def found() -> tuple[str, int | None]:
    kept = kept_on_first_rank(lambda: dist.get_rank())
    return on_first_rank(lambda: f"found by {dist.get_rank()}"), kept


def mistaken() -> None:
    def refuse() -> None:
        raise ConfigError("run.dir = x cannot be used")

    on_first_rank(refuse)


def broken() -> None:
    def divide() -> int:
        return 1 // 0

    kept_on_first_rank(divide)
