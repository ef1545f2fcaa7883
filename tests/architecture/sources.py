"""The project's files as trees of syntax. No torch."""

from __future__ import annotations

import ast
from functools import cache

from tests.ranks import ROOT

PACKAGES = ("hcmegatron", "launch", "schedules", "tools")


@cache
def modules() -> dict[str, ast.Module]:
    """By name: hcmegatron.model.gpt, and hcmegatron.model of its __init__.py."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text())
    return found


def room(module: str) -> str:
    """The folder that a file belongs to: hcmegatron.model, schedules, schedules.runtime, tools."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "hcmegatron" or parts[1:2] == ["runtime"] else parts[0]
