"""`hcmegatron plan FILE --measure`: the ranks are started, measure side by side, and what they found becomes costs."""

from __future__ import annotations

import os
import pickle
import platform
import signal
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from hcmegatron.config.checks import check_world, smallest_world
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.data.blend import PreparedCorpus
from hcmegatron.data.corpus import Corpus, find_corpus
from hcmegatron.measure.bench import Bench
from hcmegatron.measure.quiet import Sample, quieter, sample
from hcmegatron.measure.stages import EVALUATED, Times
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.planner.machines import GIB, Machine
from hcmegatron.planner.measured import Measured, shape
from hcmegatron.platform import standard_streams
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.local_launch import launch_ranks
from hcmegatron.platform.peak_flops import peak_tflops
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.platform.versions import installed_version, megatron_core
from schedules.placement import Placement
from schedules.runtime.gpu import GPU

ROUNDS, WARMUP = 12, 2
LEAST_S = 20.0  # rounds go on for so long at least, for a machine's pace drifts
DISTURBED = 0.1  # from this share of the time on it is said
KEYS = {"F": "forward", "I": "input", "W": "weight", "B": "backward"}
AFTER = {"reduce": "gradient reduction", "update": "optimizer", "clear": "optimizer"}  # step_time.PARTS


def measure(config: Config, ranks: int | None = None) -> Measured:
    """The costs of a checked configuration, measured on this machine with so many ranks at once.

    Args:
        ranks: None: as many as hold the model once.

    Raises:
        ConfigError: they do not fit layout, batch or machine, or there is no data.
    """
    world = ranks or smallest_world(config)
    check_world(config, world)
    gpus = torch.cuda.device_count()
    if gpus and world > gpus:
        raise ConfigError(
            f"--measure: the layout asks for {world} ranks and there are {gpus} GPUs; use fewer ranks"
        )
    if not gpus and world > (cores := len(os.sched_getaffinity(0))):
        raise ConfigError(
            f"--measure: {world} ranks on {cores} cores would measure how they wait for each other; use {cores} ranks "
            "or fewer"
        )
    corpus = find_corpus(config.data)
    standard_streams.tell("hcmegatron: measuring, for about a minute")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured"
        status = launch_ranks(partial(_rank, config, corpus, path), world, "spawn" if gpus else "fork")
        if status == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        if status:
            raise ConfigError("--measure: a rank failed, as it says above")
        return pickle.loads(path.read_bytes())


def _rank(config: Config, corpus: Corpus | PreparedCorpus, path: Path, ranks: RankInfo) -> int:
    with process_groups(config, ranks, corpus.fingerprint) as groups:
        bench = Bench(config, groups, corpus)
        samples = rounds(bench, ROUNDS, LEAST_S)
        found = merged(samples)
        sizes = bench.communication(found)
        costs = gathered(config, found, sizes, bench.where)
    if ranks.rank == 0:
        busy = max(one.disturbed for one in quieter(samples))
        if busy > DISTURBED:
            standard_streams.tell(
                f"hcmegatron: warning: other programs had a rank's core {busy:.0%} of the time that it wanted it; "
                "measure again when the machine is quiet"
            )
        path.write_bytes(pickle.dumps(costs))
    return 0


def rounds(bench: Bench, least: int, seconds: float) -> list[Sample]:
    """The operations of as many rounds on every rank: `least`, and more for so many seconds. Collective."""
    found: list[Sample] = []
    for _ in range(WARMUP):
        bench.round()
    began = time.monotonic()
    while not _agreed(len(found) >= least and time.monotonic() - began >= seconds):
        found.append(sample(bench.round))
    return found


def merged(samples: list[Sample]) -> Times:
    """The operations of the quieter rounds."""
    found: Times = defaultdict(list)
    for one in quieter(samples):
        for name, own in one.value.items():
            found[name] += own
    return found


def _agreed(ready: bool) -> bool:
    """Whether rank 0 is ready."""
    answer = [ready]
    dist.broadcast_object_list(answer)
    return answer[0]


def gathered(config: Config, found: Times, sizes: Mapping[str, int], where: Placement) -> Measured:
    """Costs from what every rank has found. Collective; the same on all."""
    own = {name: statistics.median(seconds) for name, seconds in found.items() if seconds}
    of_ranks: list[dict[str, float]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_ranks, own)
    return combined(config, of_ranks, sizes, where, _machine(config, of_ranks, sizes))


def combined(
    config: Config,
    of_ranks: Sequence[Mapping[str, float]],
    sizes: Mapping[str, int],
    where: Placement,
    machine: Machine,
) -> Measured:
    """Costs from the medians of every rank: of ranks that do the same, the slower one's."""
    worst: dict[str, float] = {}
    for own in of_ranks:
        for name, seconds in own.items():
            worst[name] = max(seconds, worst.get(name, 0.0))

    def by_stage(what: str) -> list[float]:
        copies = [where.copies(stage) for stage in range(where.model_stages)]
        return [max(worst.get(f"{what} {copy}", 0.0) for copy in own) for own in copies]

    settings = {key: by_stage(what) for what, key in KEYS.items() if f"{what} 0" in worst}
    if overlapped := _overlapped(worst, settings, where):
        settings["overlapped"] = overlapped
    if "hop" in worst:
        # what an exchange adds to a computation is that of two ends of messages: one sent, one received
        beside = max(0.0, *(own["beside"] - own["alone"] for own in of_ranks if "beside" in own)) / 2
        # no end takes longer than the whole way, of which the sender's part is in what it is occupied
        beside = min(beside, worst["hop"])
        settings |= {"latency": worst["hop"] - beside, "occupied": beside}
    n = accounting.streams(config.connection)
    after: dict[str, float] = defaultdict(float)
    for what, part in AFTER.items():
        after[part] += worst[what]
    return Measured(
        {**settings, "hop_bytes": sizes["hop"] / n, "streams": n},
        by_stage(EVALUATED),
        dict(after),
        {name: {"bytes": size, "seconds": worst[name]} for name, size in sizes.items() if name in worst},
        shape(config),
        len(of_ranks),
        datetime.now().isoformat(" ", "minutes"),
        {
            "hcmegatron": installed_version("hcmegatron"),
            "torch": installed_version("torch"),
            "megatron-core": megatron_core(),
        },
        machine,
    )


def _overlapped(
    worst: Mapping[str, float], settings: Mapping[str, list[float]], where: Placement
) -> list[float]:
    """By model stage, its F with its own B: what a pair of two stages saves counts for both (schedules/costs.py)."""
    saved: dict[int, list[float]] = defaultdict(list)
    for name, seconds in worst.items():
        what, *ends = name.split()
        if what == "FB":
            f, b = (where.model_stage(int(end)) for end in ends)
            apart = settings["forward"][f] + settings["backward"][b]
            for stage in (f, b):
                saved[stage].append(max(0.0, apart - seconds))
    found = []
    for stage in range(where.model_stages if saved else 0):
        F, B = settings["forward"][stage], settings["backward"][stage]
        found.append(max(F, B, F + B - statistics.fmean(saved[stage])))
    return found


def _machine(config: Config, of_ranks: Sequence[Mapping[str, float]], sizes: Mapping[str, int]) -> Machine:
    """This one, as a rank sees it with the others beside it: its share of what there is, as measured."""
    ranks = len(of_ranks)
    matmul, _ = peak_tflops(None, DTYPES[config.training.dtype])
    # of an odd number of pipeline ranks the last one has no partner for a hop
    slowest = {
        name: max(own[name] for own in of_ranks if name in own) for name in of_ranks[0] if name in sizes
    }
    gather = slowest.get("all-gather", 0.0)
    rate = sizes["all-gather"] * (ranks - 1) / gather / 1e9 if gather else 1.0  # one alone sends nothing
    latency = 1e6 * slowest.get("hop", 1e-5)
    if GPU.present():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        name, memory = properties.name, properties.total_memory
    else:
        name = f"{platform.node() or 'this machine'}, {len(os.sched_getaffinity(0))} cores"
        memory = psutil.virtual_memory().total / ranks
    copied = 2 * sizes["copy"] / slowest["copy"] / 1e12
    found = Machine(name, matmul, matmul, memory / GIB, copied, ranks, rate, rate, latency, latency, 1.0)
    return found if GPU.present() else replace(found, context_gib=0.0, communicator_gib=0.0)
