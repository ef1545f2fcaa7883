"""Versions of what is installed, or of what is imported from a source path, which has no metadata."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys


def installed_version(module: str, distribution: str | None = None) -> str:
    """The version of an importable module.

    A module that is imported answers for itself: the metadata may be that of another copy, further down the path.

    Args:
        distribution: its name in the metadata, where it is not the module's.

    Raises:
        ImportError: it is neither installed nor importable.
    """
    loaded = getattr(sys.modules.get(module), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return importlib.metadata.version(distribution or module)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(module), "__version__", "unknown version"))


def megatron_core() -> str:
    """Megatron-Core's, without the commit that 0.19 adds to it: that of whatever repository its folder lies in."""
    return installed_version("megatron.core", "megatron-core").partition("+")[0]
