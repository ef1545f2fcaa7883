"""The one command: hcmegatron <verb>.

A user's mistake is one line on stderr and exit status 2, before anything is started or written. What a verb
needs is imported when the verb runs, so that help, mistakes and configurations answer without torch.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import platform
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from hcmegatron import __version__, aliases
from hcmegatron.config import (
    Config,
    ConfigError,
    check_config,
    dump_config,
    read_config,
)
from hcmegatron.config.load import scalar
from hcmegatron.config.types import defaults, describe_field, leaves
from hcmegatron.platform import standard_streams
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.exit_status import USER_ERROR
from hcmegatron.platform.launcher_end import tell_end
from hcmegatron.platform.optional import require_extra
from hcmegatron.platform.standard_streams import stand_in_for_closed

if TYPE_CHECKING:
    from hcmegatron.planner.measured import Measured

HELP = ("--help", "--version")


class _Parser(argparse.ArgumentParser):
    """argparse, with this program's one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def print_help(self, file: IO[str] | None = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse's own swallows a full disk


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status."""
    stand_in_for_closed()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _status(arguments)
    except Exception:
        tell_end(1, os.environ)
        raise
    return tell_end(status, os.environ) if _verb(arguments) == "train" else status


def _status(arguments: list[str]) -> int:
    """The exit status of a verb, after saying why it is not 0."""
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text in the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(arguments)
        finally:  # also of --help, which leaves by SystemExit: what cannot be written is found here, not at exit
            if sys.stdout is not None:
                sys.stdout.flush()
    except ConfigError as error:
        return _failed(f"error: {error}", USER_ERROR)
    except Ended as error:
        return _failed(f"error: {error}", error.status)
    except KeyboardInterrupt:
        return _failed("ended by SIGINT", 130)
    except OSError as error:
        if _verb(arguments) == "train" and not {"-h", *HELP} & set(arguments):
            raise  # of a run
        return _unwritable(error)


def _failed(line: str, status: int) -> int:
    standard_streams.tell(f"hcmegatron: {line}")
    return status


def _unwritable(error: OSError) -> int:
    """The status after standard output broke, or a file that an error names. A reader that has seen enough, like head,
    is no error."""
    if error.filename is not None:
        return _failed(f"error: {error.filename}: {error.strerror}", 1)
    standard_streams.silence(1)  # for the interpreter's own flush at exit
    if isinstance(error, BrokenPipeError):
        return 0
    return _failed(f"error: standard output cannot be written: {error.strerror}", 1)


# Verbs with options of their own: the module that has them, which is imported where it is asked for.
VERBS = {
    "train": ("hcmegatron.training.train_cli", "train a model as a YAML file says"),
    "schedule": ("schedules.cli", "draw, simulate and compare pipeline schedules"),
    "plan": ("hcmegatron.planner.cli", "what a run takes on a machine: memory, time, money"),
    "checkpoint": (
        "hcmegatron.training.checkpoint_cli",
        "list, show, verify and contract the checkpoints of a run",
    ),
    "replay": (
        "hcmegatron.training.replay_cli",
        "run a bad step that a run has kept once more, in one process",
    ),
    "generate": ("hcmegatron.training.generate_cli", "continue texts with a checkpoint of a run"),
    "profile": ("hcmegatron.profiling.cli", "what a few steps compute, communicate and hide, on all ranks"),
    "diagnostics": ("hcmegatron.diagnostics.cli", "what the connections of a run did after a step"),
    "data": ("hcmegatron.data.cli", "prepare, show and check data sets, train tokenizers"),
    "doctor": ("launch.doctor.cli", "whether machines are healthy and fast, alone and together"),
    "report": ("hcmegatron.report.cli", "one HTML page that explains runs, or follows them"),
    "study": ("hcmegatron.studies.cli", "scaling studies: plan the runs of one file, fit laws of the loss"),
    "launch": ("launch.cli", "a run as a job of SLURM, MPI, torchrun or this machine"),
    "status": ("launch.status", "where a run is: queue, step, time left, errors"),
    "logs": ("launch.logs", "what the ranks of a run wrote, errors first"),
    "cancel": ("launch.cancel", "end a run's jobs, with a checkpoint"),
}
# Of these, those that take every --section.key=value beside their own words, which are in their OPTIONS.
WITH_SETTINGS = ("train", "plan", "generate", "profile", "doctor", "launch")

# Of these, those that need what `pip install 'hcmegatron[train]'` adds, as `train` does.
WITH_MEGATRON = {"replay", "data", "generate", "profile"}


def _verb(arguments: list[str]) -> str | None:
    return next((word for word in arguments if not word.startswith("-")), None)


def _run(arguments: list[str]) -> int:
    parser = _Parser(
        prog="hcmegatron",
        description="Train language models with Hyper-, Frac- and Manifold-Constrained Hyper-Connections.",
        epilog="example: hcmegatron train configs/quickstart.yaml --training.steps=100",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the versions and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    parsers = {
        name: verbs.add_parser(name, help=words, allow_abbrev=False) for name, (_, words) in VERBS.items()
    }
    parsers["config"] = _add_config(verbs)
    overrides: list[str] = []
    asked, known = _verb(arguments), HELP
    if asked in VERBS:
        if asked in WITH_MEGATRON:
            require_extra(f"hcmegatron {asked}")
        if (package := VERBS[asked][0].partition(".")[0]) in aliases.ALIASES.values():
            aliases.require_own(package)
        module = importlib.import_module(VERBS[asked][0])
        module.add_arguments(parsers[asked])
        parsers[asked].set_defaults(run=lambda options, overrides: module.main(options))
        if asked in WITH_SETTINGS:
            parsers[asked].set_defaults(run=module.main)
            known += module.OPTIONS
        if asked == "plan":
            parsers[asked].set_defaults(run=partial(module.main, measure=_measure))
        if asked == "profile":
            train = importlib.import_module(VERBS["train"][0])
            parsers[asked].set_defaults(run=partial(module.main, start=train.main))
    if asked not in VERBS or asked in WITH_SETTINGS:  # every other --word is a setting
        _refuse_separate_values(arguments)
        overrides = [
            word for word in arguments if word.startswith("--") and word.partition("=")[0] not in known
        ]
        arguments = [word for word in arguments if word not in overrides]
    options, unknown = parser.parse_known_args(arguments)
    if unknown and hasattr(options, "more"):  # which a verb's main reads by itself
        options.more, unknown = unknown, []
    if unknown:  # the verb's own parser, or its action's, knows what it takes
        its_parser = getattr(options, "parser", parsers.get(options.verb, parser))
        its_parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.version:
        print(_versions())
        return 0
    if options.verb is None:
        if overrides:
            parser.error(f"{overrides[0]}: no verb before it")
        parser.print_help()
        return 0
    return options.run(options, overrides)


def _refuse_separate_values(arguments: list[str]) -> None:
    """ConfigError for `--training.steps 10`, whose 10 would be taken for the file."""
    for word, value in pairwise(arguments):
        hint = leaves().get(word.removeprefix("--")) if word.startswith("--") else None
        if hint is None or value.startswith("--"):
            continue
        if hint is not bool or value in ("true", "false"):  # `--run.tensorboard FILE` only lacks its value
            raise ConfigError(f"{word} {value}: a setting is written --section.key=value: {word}={value}")


def _add_config(verbs: argparse._SubParsersAction) -> argparse.ArgumentParser:
    initial = defaults()
    settings = "\n".join(
        f"  {key} = {scalar(initial[key])}    ({describe_field(hint)})" for key, hint in leaves().items()
    )
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
    return config


def _config(options: argparse.Namespace, overrides: list[str]) -> int:
    from hcmegatron.platform.optional import not_installed

    config, sources = read_config(options.file, overrides)
    standard_streams.warn([*check_config(config, sources), *not_installed(config)])
    print(dump_config(config), end="")
    return 0


def _measure(config: Config, ranks: int | None) -> Measured:
    """What `plan --measure` has the planner, which knows no torch, plan with."""
    from hcmegatron.platform import cuda_environment
    from hcmegatron.platform.optional import require_installed
    from hcmegatron.training.device_check import check_device

    require_extra("hcmegatron plan --measure")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    cuda_environment.prepare(os.environ)  # as training has it
    require_installed(config)
    check_device(config)
    from hcmegatron.measure.run import measure  # torch, after CUDA's environment

    return measure(config, ranks)


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
    return f"hcmegatron {__version__} (Python {platform.python_version()}, {', '.join(found)})"
