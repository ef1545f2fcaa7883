"""Whether settings fit together. Pure functions over a Config; no torch, no files, no ranks.

`check_config` looks at all settings, `check_world` at the number of ranks, `check_batch` at the data-parallel size.
"""

from __future__ import annotations

from hcmegatron.config.checks.layout import check_batch, check_parallel, check_world, smallest_world
from hcmegatron.config.checks.network import check_network
from hcmegatron.config.checks.refusals import Shown
from hcmegatron.config.checks.run import (
    check_diagnostics,
    check_fp64,
    check_health,
    check_muon,
    check_profile,
    check_recompute,
    check_training,
    warnings,
)
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ranges import check_value
from hcmegatron.config.schema import Config

__all__ = ["check_batch", "check_config", "check_world", "smallest_world"]


def check_config(config: Config, sources: dict[str, str] | None = None) -> list[str]:
    """Raises ConfigError where settings contradict each other; returns warnings, one line each.

    `sources` (from `load.read_config`) says where each setting was given: errors then name the place, and settings
    that were given but have no effect are warned of even at their default.
    """
    shown = Shown(config, sources or {})
    for key, value in shown.values.items():
        try:
            check_value(key, value)
        except ConfigError as error:
            raise ConfigError(f"{shown(key)} {error}") from None
    for concern in (
        check_network,
        check_parallel,
        check_recompute,
        check_training,
        check_muon,
        check_health,
        check_diagnostics,
        check_profile,
        check_fp64,
    ):
        concern(config, shown)
    return warnings(config, shown)
