"""Kinds from outside this package: modules that register them when they are imported.

Named in the environment variable HCMEGATRON_PLUGINS (comma-separated), or by installed packages as entry points of the
group `hcmegatron.plugins`. They are imported with this package's own kinds, in every process, so that configuration,
planner and ranks all know them.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import entry_points

from hcmegatron.installation import InstallationError

GROUP = "hcmegatron.plugins"
VARIABLE = "HCMEGATRON_PLUGINS"


def load() -> None:
    """Import them, those of the variable first.

    Raises:
        InstallationError: one cannot be imported.
    """
    named = [(f"{VARIABLE}={name}", name) for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    installed = [
        (f"the entry point {point.name} = {point.value}", point.module) for point in entry_points(group=GROUP)
    ]
    for place, name in named + installed:
        try:
            importlib.import_module(name.strip())
        except Exception as error:  # whatever the module raises is why it cannot be used
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InstallationError(
                f"{place}: {reason}; name a module that can be imported (PYTHONPATH), or take the name out"
            ) from error
