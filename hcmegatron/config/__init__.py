"""Configuration: dataclasses, YAML with `extends:`, dotted overrides; strict, and without torch."""

from hcmegatron.config.checks import check, check_batch, check_world, smallest_world
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import dump, load, read
from hcmegatron.config.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "check",
    "check_batch",
    "check_world",
    "dump",
    "load",
    "read",
    "smallest_world",
]
