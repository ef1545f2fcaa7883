"""Bytes held for backward, and the time that recomputing costs, in every mode of recomputation.

    python -m tools.bench_recompute [--section.key=value ...]

One process, one stage of 60 sub-layers, mHC with four streams. Bytes are the unique storages that the
autograd graph of one micro-batch holds; the peak is the most of them at any time of the backward. Times are
of forward and backward, modes alternating in one run, as the median ratio to the run without recomputation
beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config import Config, ConfigError, check_config, load_config
from hcmegatron.config.schema import micro_batch_tokens
from hcmegatron.model.execution import Execution, Layer
from hcmegatron.model.gpt import ConnectionGPT
from hcmegatron.model.nodes import Node, State
from hcmegatron.platform.distributed import device, process_groups
from hcmegatron.platform.local_launch import free_port
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.recompute.block_plan import mib
from hcmegatron.recompute.execution import RecomputedBlocks
from hcmegatron.recompute.meter import Meter, MeteredPolicy
from hcmegatron.training.model import initialised_chunks
from tools.alternate import alternating, ratio
from tools.machine import Others, described
from tools.targets import Targets, exit_status

ROUNDS = 7
VOCAB = 512
MODEL = """
model: {layers: 30, hidden_size: 256, heads: 4, ffn_hidden_size: 704}
data: {sequence_length: 256}
training: {micro_batch: 1, global_batch: 1, threads: 1}
parallel: {schedule: 1f1b}  # under Megatron's own, its linears may add to buffers that a bare chunk has not
"""
MODES = {
    "none": [],
    "block": ["--recompute.mode=block"],
    "block and core_attn, mlp": ["--recompute.mode=block", "--recompute.modules=[core_attn, mlp]"],
    "full": ["--recompute.mode=full"],
}


@dataclass(frozen=True)
class HeldBytes:
    """Bytes of connections, norms and sub-layers' outputs between forward and backward, and with one block rebuilt;
    the same of all activations, and their most at any time."""

    around: int
    rebuilt: int
    everything: int
    peak: int


class Sampling(MeteredPolicy):
    """Samples after every sub-layer, also of those that run again in backward."""

    def write(self, *args: object) -> State:
        state = super().write(*args)
        self.meter.sample()
        return state


class Watched(Execution):
    """Plain, watched by a meter; of recomputed layers each is one node as ever."""

    def __init__(self, usual: Execution, meter: Meter) -> None:
        self.usual, self.meter = usual, meter

    def activation_policy(self, sublayers: int) -> Sampling:
        return Sampling(self.meter)

    def nodes(self, layer: Layer) -> tuple[Node, ...]:
        return self.usual.nodes(layer)


def held(
    chunk: ConnectionGPT, recomputation: Recomputation, forward: Callable[[Execution], torch.Tensor]
) -> HeldBytes:
    """What one micro-batch holds."""
    meter = Meter(chunk)
    if recomputation.plan is None:
        loss = forward(Watched(recomputation.execution, meter))
    else:
        loss = forward(RecomputedBlocks(recomputation.plan.length, meter))
    around, inside = meter.bytes("around"), meter.bytes("inside")
    loss.backward()
    return HeldBytes(around, max(around, meter.peak), around + inside, meter.everything)


def configurations(overrides: list[str]) -> dict[str, Config]:
    """Of every mode. ConfigError where an override does not fit."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(MODEL)
        file.flush()
        configs = {
            name: load_config(Path(file.name), [*settings, *overrides]) for name, settings in MODES.items()
        }
    for config in configs.values():
        check_config(config)
    return configs


class MeasuredModes(NamedTuple):
    """By mode: bytes held, seconds of every round, and on a GPU the most bytes that the allocator gave out in a step
    beyond what it had before. `planned`: what the blocks are, in words."""

    held: dict[str, HeldBytes]
    seconds: dict[str, list[float]]
    allocated: dict[str, int]
    planned: list[str]


def measure(configs: dict[str, Config], rounds: int) -> MeasuredModes:
    """Every mode's bytes, then their times in turn."""
    config = configs["none"]
    bytes_held: dict[str, HeldBytes] = {}
    steps: dict[str, Callable[[], None]] = {}
    allocated: dict[str, int] = {}
    planned: list[str] = []
    with process_groups(config, RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "bench")) as groups:
        tokens = torch.randint(
            0, VOCAB, (config.training.micro_batch, config.data.sequence_length), device=device()
        )
        positions = torch.arange(config.data.sequence_length, device=device()).expand_as(tokens)
        for name, config in configs.items():
            (chunk,) = initialised_chunks(config, VOCAB, groups)
            recomputation = Recomputation(
                config.recompute, [chunk], micro_batch_tokens(config), live=1, deferred=0
            )
            recomputation.measured()  # times are without measuring

            def forward(execution: Execution, chunk: ConnectionGPT = chunk) -> torch.Tensor:
                return chunk(tokens, positions, None, labels=tokens, execution=execution).sum()

            def step(
                forward: Callable[[Execution], torch.Tensor] = forward,
                execution: Execution = recomputation.execution,
            ) -> None:
                forward(execution).backward()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()

            bytes_held[name], steps[name] = held(chunk, recomputation, forward), step
            if torch.cuda.is_available():
                allocated[name] = most_allocated(step)
            planned += recomputation.planned() if name == "block" else []
        return MeasuredModes(bytes_held, alternating(steps, rounds), allocated, planned)


def most_allocated(step: Callable[[], None]) -> int:
    """Bytes of a second step, whose gradients are there already."""
    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def main() -> int:
    """Prints a table; returns 1 where the default setting misses a target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    _, overrides = parser.parse_known_args()
    try:
        configs = configurations(overrides)
    except ConfigError as error:
        parser.error(str(error))
    others = Others()
    print(described())
    bytes_held, times, _, planned = measure(configs, ROUNDS)
    for line in planned:
        print(line)
    plain = bytes_held["none"]
    print(
        "| recompute | connections and norms | with a block rebuilt | all activations | their peak | time |"
    )
    print("|---|---|---|---|---|---|")
    for name, found in bytes_held.items():
        columns = {
            key: f"{mib(value)} ({value / getattr(plain, key):.2f})" for key, value in vars(found).items()
        }
        if name == "full":  # a layer's input is all that is held, and with it its inside comes back
            columns["around"] = columns["rebuilt"] = "-"
        print(f"| {name} | {' | '.join(columns.values())} | {ratio(times, name, 'none'):.3f} |")
    print(f"{1e3 * statistics.median(times['none']):.0f} ms a micro-batch without recomputation")
    targets = Targets()
    if not overrides:  # the shares are of this depth and width
        kept, rebuilt = (
            getattr(bytes_held["block"], key) / getattr(plain, key) for key in ("around", "rebuilt")
        )
        print(
            f"block keeps {kept:.2f} of connections and norms (target: {targets.below('block keeps', kept, 0.25)})"
        )
        print(
            f"with a block rebuilt {rebuilt:.2f} (target: {targets.below('with a block rebuilt', rebuilt, 0.34)})"
        )
    return others.verdict(lambda: exit_status(targets.missed))


if __name__ == "__main__":
    raise SystemExit(main())
