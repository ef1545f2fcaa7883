"""Configuration: dataclasses, YAML with `extends:`, dotted overrides; strict, and without torch."""

import hcmegatron.own_schedules  # noqa: F401  (before schedules is imported)
from hcmegatron.config.checks import check_batch, check_config, check_world, smallest_world
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import dump_config, load_config, read_config
from hcmegatron.config.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "check_batch",
    "check_config",
    "check_world",
    "dump_config",
    "load_config",
    "read_config",
    "smallest_world",
]
