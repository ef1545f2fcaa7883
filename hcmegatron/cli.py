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
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from hcmegatron import __version__, aliases
from hcmegatron.config import (
    Config,
    ConfigError,
    check_config,
    check_world,
    dump_config,
    read_config,
    smallest_world,
)
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.load import scalar
from hcmegatron.config.packaged import packaged
from hcmegatron.config.types import defaults, describe_field, leaves
from hcmegatron.platform import standard_streams
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.exit_status import CORRUPTED, DIVERGED, HANG, STOPPED, USER_ERROR
from hcmegatron.platform.imports import uncollected
from hcmegatron.platform.launcher_end import PATIENCE_S, already_told, tell_end
from hcmegatron.platform.optional import require_extra
from hcmegatron.platform.standard_streams import stand_in_for_closed

if TYPE_CHECKING:
    from hcmegatron.data.blend import PreparedCorpus
    from hcmegatron.data.corpus import Corpus
    from hcmegatron.planner.measured import Measured
    from hcmegatron.platform.ranks import RankInfo

HELP = ("--help", "--version")
TRAIN = "hcmegatron.training.run:train"  # what a rank of `train` does


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
    "schedule": ("schedules.cli", "draw, simulate and compare pipeline schedules"),
    "plan": ("hcmegatron.planner.cli", "what a run takes on a machine: memory, time, money"),
    "checkpoint": ("hcmegatron.training.checkpoint_cli", "list, show and verify the checkpoints of a run"),
    "replay": (
        "hcmegatron.training.replay_cli",
        "run a bad step that a run has kept once more, in one process",
    ),
    "generate": ("hcmegatron.training.generate_cli", "continue texts with a checkpoint of a run"),
    "profile": ("hcmegatron.profiling.cli", "what a few steps compute, communicate and hide, on all ranks"),
    "data": ("hcmegatron.data.cli", "prepare, show and check data sets, train tokenizers"),
    "doctor": ("launch.doctor.cli", "whether machines are healthy and fast, alone and together"),
    "report": ("hcmegatron.report.cli", "one HTML page that explains runs, or follows them"),
    "study": ("hcmegatron.studies.cli", "fit laws of the loss to a table of runs"),
    "launch": ("launch.cli", "a run as a job of SLURM, MPI, torchrun or this machine"),
    "status": ("launch.status", "where a run is: queue, step, time left, errors"),
    "logs": ("launch.logs", "what the ranks of a run wrote, errors first"),
    "cancel": ("launch.cancel", "end a run's jobs, with a checkpoint"),
}
# Of these, those that take every --section.key=value beside their own words, which are in their OPTIONS.
WITH_SETTINGS = ("plan", "generate", "profile", "doctor", "launch")

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
    parsers = {"train": _add_train(verbs), "config": _add_config(verbs)}
    for name, (_, words) in VERBS.items():
        parsers[name] = verbs.add_parser(name, help=words, allow_abbrev=False)
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
            parsers[asked].set_defaults(run=partial(module.main, start=_train))
    if asked == "train":
        known += ("--restarts",)
    if asked not in VERBS or asked in WITH_SETTINGS:  # every other --word is a setting
        _refuse_separate_values(arguments)
        overrides = [
            word for word in arguments if word.startswith("--") and word.partition("=")[0] not in known
        ]
        arguments = [word for word in arguments if word not in overrides]
    options, unknown = parser.parse_known_args(arguments)
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


def _add_train(verbs: argparse._SubParsersAction) -> argparse.ArgumentParser:
    train = verbs.add_parser(
        "train",
        help="train a model as a YAML file says",
        usage="hcmegatron train FILE [--restarts N] [--section.key=value ...]",
        description="Train as FILE says, with single settings overridden. Under torchrun, mpirun or srun this is "
        "one rank; otherwise the command starts on this machine the ranks that the layout asks for.",
        epilog="hcmegatron config --help lists the settings. Exit status: 0 finished; 1 failed, as the output says; "
        f"{USER_ERROR} a mistake of the user's; {DIVERGED} diverged; {CORRUPTED} ranks that should agree do not; "
        f"{HANG} a rank hung, see hang/ in the run directory; {STOPPED} stopped by a signal: with "
        "checkpoint.resume=auto the same command goes on from its last checkpoint (0 under a launcher); 128 + N: a "
        "rank was killed by signal N.",
        allow_abbrev=False,
    )
    train.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="YAML, where `extends: OTHER.yaml` builds on another; or the name of a packaged one, if no file is called "
        f"so: {', '.join(packaged())}",
    )
    train.add_argument(
        "--restarts",
        metavar="N",
        type=_count,
        help="start the ranks again when one dies or hangs, from the newest checkpoint of the run directory, at most N "
        "times within any hour; torchrun has its own --max-restarts",
    )
    train.set_defaults(run=_train)
    return train


def _count(text: str) -> int:
    """A number of restarts."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of restarts; use 1 or more")
    return int(text)


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
    _warn([*check_config(config, sources), *not_installed(config)])
    print(dump_config(config), end="")
    return 0


def _train(options: argparse.Namespace, overrides: list[str], work: str = TRAIN) -> int:
    """Everything that can be wrong without starting is found here; then one rank runs, or several are started.

    Args:
        work: what a rank does, as module:function.
    """
    require_extra("hcmegatron train")
    from hcmegatron.data.corpus import find_corpus
    from hcmegatron.planner import measured
    from hcmegatron.platform import cuda_environment
    from hcmegatron.platform.optional import require_installed
    from hcmegatron.platform.ranks import discover_ranks
    from hcmegatron.training import resume
    from hcmegatron.training.run_directory import examine_directory

    # torch's warnings of lost connections come with pages of native stack; read when torch is loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    cuda_environment.prepare(os.environ)  # before anything asks the GPU what it is, which starts CUDA
    ranks = discover_ranks(os.environ)
    if options.restarts and ranks is not None:
        raise ConfigError(
            f"--restarts = {options.restarts}: {ranks.source} started this rank, so it would have to start it again; "
            "use torchrun --max-restarts, or have the job requeued, with checkpoint.resume=auto"
        )
    try:
        config, sources = read_config(options.file, overrides)
        if config.run.profile_at:
            # torch.profiler's own words; read when torch is loaded
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        warnings = check_config(config, sources)
        require_installed(config)
        if ranks is not None:
            check_world(config, ranks.world_size)
        measured.fitting(config, smallest_world(config) if ranks is None else ranks.world_size)
        corpus = find_corpus(config.data)
        warnings += corpus.warnings()
        resume.find_start(config, Path(config.run.dir or ""), corpus.fingerprint)
        if config.run.dir is not None and (ranks is None or ranks.rank == 0):  # only the first writes there
            warnings += examine_directory(Path(config.run.dir), config)
        if ranks is not None:
            _check_device(config)
    except ConfigError:
        if ranks is not None:
            _let_the_first_speak(ranks)
        raise
    if ranks is None:
        _warn(warnings)
        return _start_ranks(config, options.file.stem, corpus, work, options.restarts)
    if ranks.rank == 0:
        _warn(warnings)
    return _rank(config, options.file.stem, corpus, work, _after_restart(), ranks)


def _check_device(config: Config, device: str | None = None) -> None:
    """What the configuration asks for by name and only torch can say of this machine. ConfigError where it cannot run.

    device: "cuda" or "cpu", where the ranks will be; None for the GPU if there is one.
    """
    if config.implementation == "te":
        from hcmegatron.platform.optional import transformer_engine

        if not (found := transformer_engine()).usable:
            raise ConfigError(f"implementation = te: {found.words}; use implementation=auto or local")
    if config.kernels == "triton" and "kernels" not in ineffective(config):
        from hcmegatron.kernels.select import select_kernels

        try:
            select_kernels("triton", n=config.connection.n, device=device)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _measure(config: Config, ranks: int | None) -> Measured:
    """What `plan --measure` has the planner, which knows no torch, plan with."""
    from hcmegatron.platform import cuda_environment
    from hcmegatron.platform.optional import require_installed

    require_extra("hcmegatron plan --measure")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    cuda_environment.prepare(os.environ)  # as training has it
    require_installed(config)
    _check_device(config)
    from hcmegatron.measure.run import measure

    return measure(config, ranks)


def _rank(
    config: Config,
    name: str,
    corpus: Corpus | PreparedCorpus,
    work: str,
    observers: Sequence[Callable[..., Any]],
    ranks: RankInfo,
) -> int:
    """One rank of a run. What ends it is said once, by the launch where this command started the ranks."""
    from hcmegatron.platform.rank_process import TORCHRUN_ENDED, end_with_parent, without_native_frames
    from hcmegatron.platform.ranks import STARTED_HERE

    module, _, function = work.partition(":")
    with uncollected():
        run = getattr(importlib.import_module(module), function)
    if ranks.source == "torchrun":
        end_with_parent(TORCHRUN_ENDED)  # its ranks outlive a torchrun that is killed: they save and end
    if ranks.source == STARTED_HERE:
        return run(config, ranks, name, corpus, observers)
    try:
        return run(config, ranks, name, corpus, observers)
    except Ended as error:
        if ranks.rank == 0:
            standard_streams.tell(f"hcmegatron: error: {error}")
        return error.status
    except ConfigError:
        _let_the_first_speak(ranks)
        raise
    except Exception:
        standard_streams.tell(
            f"hcmegatron: rank {ranks.rank} of {ranks.world_size} failed:\n"
            + without_native_frames(traceback.format_exc())
        )
        return 1


def _let_the_first_speak(ranks: RankInfo) -> None:
    """The others of a machine wait, and are ended meanwhile, or need not say the same again."""
    if ranks.local_rank > 0:
        time.sleep(PATIENCE_S)
        if already_told(os.environ):
            raise SystemExit(0)


def _after_restart() -> Sequence[Callable[..., Any]]:
    """The observers of a rank that torchrun, or a job's script, has started again: who writes down how long coming
    back took."""
    names = ("HCMEGATRON_RESTART", "TORCHELASTIC_RESTART_COUNT")
    number = int(next((os.environ[name] for name in names if name in os.environ), "0"))
    if not number:
        return ()
    from hcmegatron.training.heartbeat import Heartbeat

    return (partial(Heartbeat, number=number),)


def _start_ranks(
    config: Config,
    name: str,
    corpus: Corpus | PreparedCorpus,
    work: str = TRAIN,
    restarts: int | None = None,
) -> int:
    """Start the ranks that hold the model once, on this machine's GPUs or else on its CPU.

    Args:
        work: what each does, as module:function.
        restarts: how often within an hour they are started again when one has died; None: they are not.
    """
    from hcmegatron.platform.local_launch import launch_ranks

    with uncollected():
        import torch

    world_size, gpus = smallest_world(config), torch.cuda.device_count()
    _check_device(config, "cuda" if gpus >= world_size else "cpu")
    if gpus == 0:
        with uncollected():
            importlib.import_module(work.partition(":")[0])  # once, for all forks
    elif gpus < world_size:
        _warn(
            [f"the layout asks for {world_size} ranks and there are {gpus} GPUs: training on the CPU instead"]
        )
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    method = "spawn" if gpus else "fork"
    if not restarts:
        return launch_ranks(partial(_rank, config, name, corpus, work, ()), world_size, method)

    from hcmegatron.platform.restarts import Beat, supervise
    from hcmegatron.training.heartbeat import Heartbeat
    from hcmegatron.training.resume import resumed
    from hcmegatron.training.run_directory import choose_directory

    directory = choose_directory(config, name)
    config = replace(config, run=replace(config.run, dir=str(directory)))  # the same for every life

    def worker(number: int, beat: Beat) -> Callable[[RankInfo], int]:
        life = resumed(config, directory) if number else config
        return partial(_rank, life, name, corpus, work, (partial(Heartbeat, number=number, beat=beat),))

    return supervise(worker, world_size, method, directory, restarts)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        standard_streams.tell(f"hcmegatron: warning: {warning}")


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
