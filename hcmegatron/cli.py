"""The one command: hcmegatron <verb>.

A user's mistake is one line on stderr and exit status 2, before anything is started or written. What a verb
needs is imported when the verb runs, so that help, mistakes and configurations answer without torch.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hcmegatron.config import Config, ConfigError, check, check_world, dump, read, smallest_world
from hcmegatron.config.types import defaults, describe, leaves
from hcmegatron.platform.streams import stand_in_for_closed, tell

if TYPE_CHECKING:
    from hcmegatron.platform.ranks import RankInfo

USER_ERROR = 2
# All ranks of a launcher find the same mistake. The first of every machine says it, whereupon the launcher ends the
# others; one that exited at once could have the first ended before it has spoken.
PATIENCE_S = 5.0
HELP = ("--help", "--version")


class _Parser(argparse.ArgumentParser):
    """argparse, with this program's one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized"):
            message += " (a setting is written --section.key=value)"
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status."""
    stand_in_for_closed()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        tell(f"hcmegatron: error: {error}")
        return USER_ERROR
    except KeyboardInterrupt:
        tell("hcmegatron: ended by SIGINT")
        return 130


def _run(arguments: list[str]) -> int:
    parser = _Parser(
        prog="hcmegatron",
        description="Train language models with Hyper-, Frac- and Manifold-Constrained Hyper-Connections.",
        epilog="example: hcmegatron train configs/quickstart.yaml --training.steps=100",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the versions and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    _add_train(verbs)
    _add_config(verbs)
    schedule = verbs.add_parser(
        "schedule", help="draw, simulate and compare pipeline schedules", allow_abbrev=False
    )

    overrides: list[str] = []
    if next((word for word in arguments if not word.startswith("-")), None) == "schedule":
        from schedules import cli

        cli.add_arguments(schedule)
        schedule.set_defaults(run=lambda options, overrides: cli.main(options))
    else:  # every other --word is a setting
        overrides = [word for word in arguments if word.startswith("--") and word not in HELP]
        arguments = [word for word in arguments if word not in overrides]
    options = parser.parse_args(arguments)
    if options.version:
        print(_versions())
        return 0
    if options.verb is None:
        if overrides:
            parser.error(f"{overrides[0]}: no verb before it")
        parser.print_help()
        return 0
    return options.run(options, overrides)


def _add_train(verbs: argparse._SubParsersAction) -> None:
    train = verbs.add_parser(
        "train",
        help="train a model as a YAML file says",
        usage="hcmegatron train FILE [--section.key=value ...]",
        description="Train as FILE says, with single settings overridden. Under torchrun, mpirun or srun this is "
        "one rank; otherwise the command starts on this machine the ranks that the layout asks for.",
        epilog="hcmegatron config --help lists the settings.",
        allow_abbrev=False,
    )
    train.add_argument(
        "file", metavar="FILE", type=Path, help="YAML; `extends: OTHER.yaml` builds on another"
    )
    train.set_defaults(run=_train)


def _add_config(verbs: argparse._SubParsersAction) -> None:
    initial = defaults()
    settings = "\n".join(f"  {key} = {initial[key]}    ({describe(hint)})" for key, hint in leaves().items())
    config = verbs.add_parser(
        "config",
        help="check a YAML file and print all its settings",
        usage="hcmegatron config [FILE] [--section.key=value ...]",
        description="Print the configuration that FILE makes, or the defaults, after every check that needs no data.",
        epilog=f"settings, their defaults, and what they can be:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    config.add_argument("file", metavar="FILE", type=Path, nargs="?")
    config.set_defaults(run=_config)


def _config(options: argparse.Namespace, overrides: list[str]) -> int:
    config, sources = read(options.file, overrides)
    _warn(check(config, sources))
    try:
        print(dump(config), end="", flush=True)
    except BrokenPipeError:  # hcmegatron config | head
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # for the interpreter's own flush at exit
    return 0


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    """Everything that can be wrong without starting is found here; then one rank runs, or several are started."""
    from hcmegatron.data.corpus import find
    from hcmegatron.platform.ranks import discover

    # torch's warnings of lost connections come with pages of native stack; read when torch is loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    ranks = discover(os.environ)
    try:
        config, sources = read(options.file, overrides)
        warnings = check(config, sources)
        if ranks is not None:
            check_world(config, ranks.world_size)
        find(config.data)
    except ConfigError:
        if ranks is not None and ranks.local_rank > 0:
            time.sleep(PATIENCE_S)
        raise
    if ranks is None:
        _warn(warnings)
        return _start_ranks(config, options.file.stem)
    if ranks.rank == 0:
        _warn(warnings)
    return _rank(config, options.file.stem, ranks)


def _rank(config: Config, name: str, ranks: RankInfo) -> int:
    """One rank of a training run. A run that diverged says so once and exits with status 1."""
    from hcmegatron.platform.local_launch import end_with_parent, without_native_frames
    from hcmegatron.platform.ranks import STARTED_HERE
    from hcmegatron.training.guards import Diverged
    from hcmegatron.training.run import train

    if ranks.source == "torchrun":
        end_with_parent(signal.SIGTERM)  # its ranks outlive a torchrun that is killed: they save and end
    try:
        return train(config, ranks, name)
    except Diverged as error:
        if ranks.rank == 0:
            tell(f"hcmegatron: error: {error}")
        return 1
    except ConfigError:
        if ranks.source != STARTED_HERE and ranks.local_rank > 0:
            time.sleep(PATIENCE_S)
        raise
    except Exception:
        if ranks.source == STARTED_HERE:  # the launch says it
            raise
        tell(
            f"hcmegatron: rank {ranks.rank} of {ranks.world_size} failed:\n"
            + without_native_frames(traceback.format_exc())
        )
        return 1


def _start_ranks(config: Config, name: str) -> int:
    """Start the ranks that hold the model once, on this machine's GPUs or else on its CPU."""
    import torch

    from hcmegatron.platform.local_launch import launch

    world_size, gpus = smallest_world(config), torch.cuda.device_count()
    worker = partial(_rank, config, name)
    if gpus == 0:
        import hcmegatron.training.run  # noqa: F401  (once, for all forks)

        return launch(worker, world_size, "fork")
    if gpus < world_size:
        _warn(
            [f"the layout asks for {world_size} ranks and there are {gpus} GPUs: training on the CPU instead"]
        )
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return launch(worker, world_size, "spawn")


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        tell(f"hcmegatron: warning: {warning}")


def _versions() -> str:
    """This program and what it stands on, without importing any of it."""
    import importlib.metadata

    names = ("torch", "megatron-core", "triton", "numpy")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    own = importlib.metadata.version("hcmegatron")
    return f"hcmegatron {own} (Python {platform.python_version()}, {', '.join(found)})"
