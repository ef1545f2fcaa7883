"""The verb `train`: everything that can be wrong without starting, then the ranks. No torch before there is work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from hcmegatron.config import ConfigError, check_config, check_world, read_config, smallest_world
from hcmegatron.config.packaged import packaged
from hcmegatron.platform import cuda_environment, standard_streams
from hcmegatron.platform.exit_status import CORRUPTED, DIVERGED, HANG, STOPPED, USER_ERROR
from hcmegatron.platform.optional import require_extra, require_installed
from hcmegatron.platform.ranks import discover_ranks

OPTIONS = ("--restarts",)
TRAIN = "hcmegatron.training.run:train"  # what a rank of `train` does


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words; every other --word is a setting of the configuration."""
    parser.usage = "hcmegatron train FILE [--restarts N] [--section.key=value ...]"
    parser.description = (
        "Train as FILE says, with single settings overridden. Under torchrun, mpirun or srun this is "
        "one rank; otherwise the command starts on this machine the ranks that the layout asks for."
    )
    parser.epilog = (
        "hcmegatron config --help lists the settings. Exit status: 0 finished; 1 failed, as the output says; "
        f"{USER_ERROR} a mistake of the user's; {DIVERGED} diverged; {CORRUPTED} ranks that should agree do not; "
        f"{HANG} a rank hung, see hang/ in the run directory; {STOPPED} stopped by a signal: with "
        "checkpoint.resume=auto the same command goes on from its last checkpoint (0 under a launcher); 128 + N: a "
        "rank was killed by signal N."
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="YAML, where `extends: OTHER.yaml` builds on another; or the name of a packaged one, if no file is called "
        f"so: {', '.join(packaged())}",
    )
    parser.add_argument(
        "--restarts",
        metavar="N",
        type=_count,
        help="start the ranks again when one dies or hangs, from the newest checkpoint of the run directory, at most N "
        "times within any hour; torchrun has its own --max-restarts",
    )


def _count(text: str) -> int:
    """A number of restarts."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of restarts; use 1 or more")
    return int(text)


def main(options: argparse.Namespace, overrides: list[str], work: str = TRAIN) -> int:
    """Everything that can be wrong without starting is found here; then one rank runs, or several are started.

    Args:
        work: what a rank does, as module:function.

    Raises:
        ConfigError: a mistake in the configuration, or in what the machine has to run it with.
    """
    require_extra("hcmegatron train")
    from hcmegatron.data.corpus import find_corpus
    from hcmegatron.planner import measured
    from hcmegatron.training import resume
    from hcmegatron.training.device_check import check_device
    from hcmegatron.training.run_directory import examine_directory
    from hcmegatron.training.start_ranks import after_restart, let_the_first_speak, run_rank, start_ranks

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
            check_device(config)
    except ConfigError:
        if ranks is not None:
            let_the_first_speak(ranks)
        raise
    if ranks is None:
        standard_streams.warn(warnings)
        return start_ranks(config, options.file.stem, corpus, work, options.restarts)
    if ranks.rank == 0:
        standard_streams.warn(warnings)
    return run_rank(config, options.file.stem, corpus, work, after_restart(), ranks)
