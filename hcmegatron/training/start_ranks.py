"""The ranks of a run: one that a launcher has started, or several that this command starts, and starts again."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hcmegatron.config import Config, ConfigError, smallest_world
from hcmegatron.platform import standard_streams
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.imports import uncollected
from hcmegatron.platform.launcher_end import PATIENCE_S, already_told
from hcmegatron.training.device_check import check_device

if TYPE_CHECKING:
    from hcmegatron.data.blend import PreparedCorpus
    from hcmegatron.data.corpus import Corpus
    from hcmegatron.platform.ranks import RankInfo


def start_ranks(
    config: Config,
    name: str,
    corpus: Corpus | PreparedCorpus,
    work: str,
    restarts: int | None = None,
) -> int:
    """Start the ranks that hold the model once, on this machine's GPUs or else on its CPU.

    Args:
        work: what each does, as module:function.
        restarts: how often within an hour they are started again when one has died; None: they are not.
    """
    from hcmegatron.platform.local_launch import launch_ranks, start_method

    with uncollected():
        import torch

    world_size, gpus = smallest_world(config), torch.cuda.device_count()
    check_device(config, "cuda" if gpus >= world_size else "cpu")
    method = start_method(world_size, gpus, work.partition(":")[0])
    if not restarts:
        return launch_ranks(partial(run_rank, config, name, corpus, work, ()), world_size, method)

    from hcmegatron.platform.restarts import Beat, supervise
    from hcmegatron.training.heartbeat import Heartbeat
    from hcmegatron.training.resume import resumed
    from hcmegatron.training.run_directory import choose_directory

    directory = choose_directory(config, name)
    config = replace(config, run=replace(config.run, dir=str(directory)))  # the same for every life

    def worker(number: int, beat: Beat) -> Callable[[RankInfo], int]:
        life = resumed(config, directory) if number else config
        return partial(run_rank, life, name, corpus, work, (partial(Heartbeat, number=number, beat=beat),))

    return supervise(worker, world_size, method, directory, restarts)


def run_rank(
    config: Config,
    name: str,
    corpus: Corpus | PreparedCorpus,
    work: str,
    observers: Sequence[Callable[..., Any]],
    ranks: RankInfo,
) -> int:
    """One rank of a run. What ends it is said once, by the launch where this command started the ranks."""
    from hcmegatron.platform.process_signals import end_with_parent
    from hcmegatron.platform.rank_process import TORCHRUN_ENDED, without_native_frames
    from hcmegatron.platform.ranks import STARTED_HERE

    module, _, function = work.partition(":")
    with nullcontext() if module in sys.modules else uncollected():
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
        let_the_first_speak(ranks)
        raise
    except Exception:
        standard_streams.tell(
            f"hcmegatron: rank {ranks.rank} of {ranks.world_size} failed:\n"
            + without_native_frames(traceback.format_exc())
        )
        return 1


def let_the_first_speak(ranks: RankInfo) -> None:
    """The others of a machine wait, and are ended meanwhile, or need not say the same again."""
    if ranks.local_rank > 0:
        time.sleep(PATIENCE_S)
        if already_told(os.environ):
            raise SystemExit(0)


def after_restart() -> Sequence[Callable[..., Any]]:
    """The observers of a rank that torchrun, or a job's script, has started again: who writes down how long coming
    back took."""
    names = ("HCMEGATRON_RESTART", "TORCHELASTIC_RESTART_COUNT")
    number = int(next((os.environ[name] for name in names if name in os.environ), "0"))
    if not number:
        return ()
    from hcmegatron.training.heartbeat import Heartbeat

    return (partial(Heartbeat, number=number),)
