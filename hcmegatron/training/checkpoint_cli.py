"""The verb `checkpoint`: what there is, what one is of, whether it is still what was written; without torch. And one of
connections that compute what residuals do, as one of residuals."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from hcmegatron.config import ConfigError
from hcmegatron.config.types import defaults
from hcmegatron.training import manifest
from hcmegatron.training.manifest import Manifest

DAMAGED = 1  # exit status of verify
ACTIONS = ("list", "show", "verify", "contract")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.usage = (
        "hcmegatron checkpoint {list,show,verify} PATH, or hcmegatron checkpoint contract PATH DIRECTORY"
    )
    parser.description = (
        "list: the checkpoints of a run directory. show: what the newest of them, or the one named, is of. verify: "
        "compare every byte with its checksums; exit status 1 where any differs. contract: write the newest of them, "
        "or the one named, without its connections, as a checkpoint of residuals, into a run directory that is made; "
        "only where they compute what residuals do. None of them runs anything of it."
    )
    parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=", ".join(ACTIONS))
    parser.add_argument("path", metavar="PATH", type=Path, help="a checkpoint, or a run directory")
    parser.add_argument("into", metavar="DIRECTORY", type=Path, nargs="?", help="of contract: what is made")


def main(options: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        ConfigError: there is no checkpoint; for show, it is damaged; for contract, see to_residual.contract.
    """
    if (options.action == "contract") != (options.into is not None):
        wrong = "one directory that is made" if options.into is None else f"not {options.into}"
        raise ConfigError(
            f"checkpoint {options.action} takes a path and {wrong}; see hcmegatron checkpoint --help"
        )
    found = _checkpoints(options.path)
    if options.action == "list":
        return _list(found)
    if options.action == "show":
        return _show(found[-1])
    if options.action == "contract":
        return _contract(found[-1], options.into)
    return max([_verify(path) for path in found])


def _checkpoints(path: Path) -> list[Path]:
    """The checkpoint that a path is, or those under it, oldest first."""
    if (path / manifest.MANIFEST).exists():
        return [path]
    for folder in (path / "checkpoints", path):
        if found := manifest.every(folder):
            return found
    if path.is_dir() and path.name.startswith("step-"):
        return [path]  # a partial one, which its reader refuses by name
    raise ConfigError(
        f"{path}: {'no checkpoint in it' if path.is_dir() else 'there is no such directory'}; name a checkpoint or a "
        "run directory"
    )


def _list(paths: list[Path]) -> int:
    for path in paths:
        try:
            print(f"{path}  {_summary(manifest.read(path))}")
        except ConfigError as error:
            print(f"{path}  {getattr(error, 'what', error)}")
    folder = paths[0].parent
    for path in sorted([*folder.glob(f"{manifest.PATTERN}.*")]):
        if path not in paths:
            print(f"{path}  not used: {'set aside' if '.damaged' in path.name else 'left by a save'}")
    return 0


def _summary(saved: Manifest) -> str:
    samples = "samples not said" if saved.samples is None else f"{saved.samples} samples"
    size = sum(file.bytes for file in saved.files.values())
    return f"step {saved.step}, {samples}, {len(saved.files)} files, {size / 1e6:.1f} MB"


def _show(path: Path) -> int:
    saved = manifest.read(path)
    print(f"checkpoint: {path}\n{_summary(saved)}\nupdates of the weights: {saved.updates}")
    print(f"corpus: {saved.text or 'not said'}")
    for name, value in saved.environment.items():
        print(f"{name}: {value}")
    initial = defaults()
    print("settings that are not the defaults:")
    for key, value in saved.config.items():
        if key not in initial or initial[key] != value:
            print(f"  {key} = {json.dumps(value)}")
    return 0


def _contract(path: Path, run: Path) -> int:
    from hcmegatron.training.to_residual import (
        contract,  # torch takes seconds, which the other actions do not
    )

    made = contract(path, run)
    print(f"{made}: {_summary(manifest.read(made))}, of residual connections, from {path}")
    return 0


def _verify(path: Path) -> int:
    began = time.perf_counter()
    try:
        saved = manifest.read(path)
        manifest.verify(path, saved)
    except ConfigError as error:
        print(error)
        return DAMAGED
    took = time.perf_counter() - began
    gigabytes = sum(file.bytes for file in saved.files.values()) / 1e9
    unsummed = [name for name, file in saved.files.items() if file.crc32 is None and file.blake2b is None]
    if unsummed:
        print(
            f"{path}: of format 1, without checksums; its {len(unsummed)} files have the sizes that were written"
        )
        return 0
    print(f"{path}: every byte is as it was written ({gigabytes:.3f} GB in {took:.2f} s)")
    return 0
