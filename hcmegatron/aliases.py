"""Packages of this project that lie beside this one, importable from it: hcmegatron.schedules is schedules.

The same module objects, whichever name they are imported by: there is one Schedule class, and one registry.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from hcmegatron.installation import InstallationError

ALIASES = {"hcmegatron.schedules": "schedules", "hcmegatron.launch": "launch"}
HOME = Path(__file__).resolve().parent.parent


def require_own(package: str) -> None:
    """That a package of ALIASES is the one beside this package.

    Raises:
        InstallationError: another one of its name comes first on the path, or it is not there.
    """
    loaded = sys.modules.get(package)
    spec = loaded.__spec__ if loaded else importlib.util.find_spec(package)
    ours = HOME / package
    if spec is None:
        raise InstallationError(
            f"the package {package}, which belongs to hcmegatron, is not at {ours}; install again"
        )
    places = (
        [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    )
    found = Path(places[0]).resolve() if places else Path(package)
    if found not in (ours, ours / "__init__.py"):
        raise InstallationError(
            f"another package named {package} is found first, {found}, and hcmegatron's own is {ours}; take its "
            "directory off the path (PYTHONPATH, the current directory), or rename it"
        )


class _Loader(Loader):
    """Hands over the module that is imported by its own name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself, whose spec the import machinery is about to put its own in place of."""
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run."""
        module.__spec__ = self.spec


class _Finder:
    """Of the aliases and of what is in them. First, because a package's path would find its files a second time."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an alias, None of any other name and where there is no such module."""
        for alias, package in ALIASES.items():
            if name == alias or name.startswith(f"{alias}."):
                require_own(package)
                own = package + name.removeprefix(alias)
                return ModuleSpec(name, _Loader(own)) if importlib.util.find_spec(own) else None
        return None


def install() -> None:
    """Have imports find the aliases. Once."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
