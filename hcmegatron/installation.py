"""What can be wrong with what is imported, before any configuration is read."""

from __future__ import annotations


class InstallationError(ImportError):
    """A package that is in the way, missing, or named as a plug-in and not importable. One line, with the remedy."""
