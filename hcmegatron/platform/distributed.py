"""torch.distributed and Megatron's process groups, from a configuration and this process's place among the ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config, Parallel
from hcmegatron.platform.agreement import rank_facts
from hcmegatron.platform.cores import own_cores
from hcmegatron.platform.gloo import share_event_loop
from hcmegatron.platform.ranks import STARTED_HERE, RankInfo
from hcmegatron.platform.rendezvous import meet_ranks
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from schedules.runtime.gpu import GPU


def device() -> torch.device:
    """The one place that this project's own code takes its device from."""
    return GPU.device() if GPU.present() else torch.device("cpu")


def threads(config: Config, ranks: RankInfo) -> int:
    """CPU threads of this rank: training.threads, or as many as it has cores of its own."""
    return config.training.threads or own_cores(ranks)


def timeout(parallel: Parallel) -> timedelta:
    """parallel.timeout_s, which every group of training gets."""
    return timedelta(seconds=parallel.timeout_s)


def device_index(local_rank: int, local_world_size: int, visible: int) -> int:
    """The GPU of a rank among those that it sees. Pure.

    Args:
        visible: how many it sees: all of the machine's, or its own alone (srun --gpus-per-task=1).

    Raises:
        ConfigError: there are fewer than ranks.
    """
    if visible >= local_world_size:
        return local_rank
    if visible == 1:
        return 0
    raise ConfigError(
        f"local rank {local_rank} of {local_world_size} sees {visible} GPUs; let every rank see all GPUs of the "
        "machine, one for each rank, or its own alone (CUDA_VISIBLE_DEVICES, --gpus-per-task=1)"
    )


@contextmanager
def process_groups(
    config: Config, ranks: RankInfo, data: str | None = None
) -> Iterator[ProcessGroupCollection]:
    """Start torch.distributed and Megatron's groups for the layout of `config`; end them on leaving.

    Args:
        data: the corpus's fingerprint, which has to be the same on all ranks, as the configuration has.

    Yields:
        Every group by name, to be passed on explicitly.

    Raises:
        ConfigError: ranks are missing or differ; see platform/rendezvous.py.
        RuntimeError: so do ranks that this command started, which is no mistake of the user's: one hangs or has died.
    """
    if GPU.present():
        torch.cuda.set_device(
            device_index(ranks.local_rank, ranks.local_world_size, torch.cuda.device_count())
        )
    else:
        torch.set_num_threads(threads(config, ranks))
    if ranks.interface:  # gloo takes what this machine's name stands for, often a loopback address
        os.environ.setdefault("GLOO_SOCKET_IFNAME", ranks.interface)
    share_event_loop()
    facts = rank_facts(config, ranks.world_size, data)
    try:
        store = meet_ranks(ranks, facts, timeout(config.parallel))
    except ConfigError as error:
        if ranks.source == STARTED_HERE:
            raise RuntimeError(str(error)) from None
        raise
    dist.init_process_group(
        GPU.backend if GPU.present() else "gloo",
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout(config.parallel),
    )
    try:
        with megatron_groups(config) as groups:
            yield groups
    finally:
        dist.destroy_process_group()


def default_store() -> dist.Store:
    """A handle of its own on the key-value store that torch.distributed was started with.

    torch has no public way to it; every other way would need a second port.
    """
    return dist.distributed_c10d._get_default_store().clone()


@contextmanager
def megatron_groups(config: Config) -> Iterator[ProcessGroupCollection]:
    """Megatron's groups over a torch.distributed that is running, and its random states seeded."""
    parallel = config.parallel
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        distributed_timeout_minutes=parallel.timeout_s / 60,
        # all-to-alls that run beside computation; only NCCL has streams to give priority to
        high_priority_stream_groups=["ep", "ep_tp"] if parallel.overlap and GPU.present() else None,
    )
    try:
        seed_regions(config)
        yield ProcessGroupCollection.use_mpu_process_groups()
    finally:
        parallel_state.destroy_model_parallel()


def seed_regions(config: Config) -> None:
    """Set Megatron's random states (default, tensor parallel, expert parallel) to those of a run's beginning."""
    tensor_parallel.model_parallel_cuda_manual_seed(config.training.seed, force_reset_rng=True)
