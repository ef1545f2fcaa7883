"""Settings in words, and the one form of a refusal: what is wrong; what to do."""

from __future__ import annotations

from typing import NoReturn

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten
from hcmegatron.connections.kinds.multiples import nearest_multiples


class Shown:
    """A setting in words: key, value, and where it was given."""

    def __init__(self, config: Config, sources: dict[str, str]) -> None:
        self.values, self.sources = flatten(config), sources

    def __call__(self, key: str) -> str:
        source = self.sources.get(key, "--")
        value = self.values[key]
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        # An override repeats the key and value, so naming it says nothing new.
        return f"{key} = {text}" + ("" if source.startswith("--") else f" ({source})")


def refuse(problem: str, remedy: str) -> NoReturn:
    """ConfigError."""
    raise ConfigError(f"{problem}; {remedy}")


def need(holds: bool, problem: str, remedy: str) -> None:
    """ConfigError unless it holds."""
    if not holds:
        refuse(problem, remedy)


def divisible(shown: Shown, key: str, by: str, why: str = "") -> None:
    """ConfigError unless one setting is a multiple of the other."""
    value, divisor = shown.values[key], shown.values[by]
    need(
        value % divisor == 0,
        f"{shown(key)} is not divisible by {shown(by)}{why}",
        f"use {nearest_multiples(value, divisor)} for {key}, or a divisor of {value} for {by}",
    )
