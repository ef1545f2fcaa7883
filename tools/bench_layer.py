"""One decoder layer of the mHC paper's 27B model, with mHC and with the plain residual, with and without
recomputation: mHC's by blocks, the residual's of the whole layer, for it has no streams to rebuild.

    python -m tools.bench_layer [--tokens 4096] [--sequences 2] [--share 8] [--rounds 20] [--kinds dhc ihc] [--kernels]

Forward and backward of a one-layer network (MLA, 72 experts with 6 active and 2 shared, C = 2560; a vocabulary of 256,
so that embedding and head weigh nothing), bf16, the forms taking turns. Printed: milliseconds, and of these the host's
until all is enqueued, their ratio to the residual without recomputation, what a forward leaves in memory for its
backward, and the residual's TFLOP/s, without which the ratio says nothing: the paper's 1.067 was measured on a whole
system, and is comparable only where the baseline passes 300 TFLOP/s. --share 8 has an eighth of the experts with all of
the tokens, as each of eight expert-parallel ranks has where the router is balanced, without their messages. --kinds
puts other connections beside the residual; --kernels prints what the device spent its time on in each form. Without a
GPU the quickstart's dimensions are used in fp32: that checks the program, and tells nothing about GPUs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config import check_config
from hcmegatron.config.load import load_config
from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.connections.build import parameter_of
from hcmegatron.connections.kinds import KINDS
from hcmegatron.model.gpt import build_chunk, stages, unwrap
from hcmegatron.pipeline.configured_schedule import placement
from hcmegatron.pipeline.tied_embeddings import embedding_groups
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.platform.distributed import device, process_groups
from hcmegatron.platform.local_launch import free_port
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.recompute.block_plan import mib
from hcmegatron.training.data_parallel import DataParallel
from hcmegatron.training.model import wrap_chunk
from megatron.core.process_groups_config import ProcessGroupCollection
from tools.alternate import alternating, ratio
from tools.machine import Others, described

VOCABULARY = 256
LONGEST = 30  # kernels that are printed
PAPER_27B = {
    "model.hidden_size": 2560,
    "model.heads": 32,
    "model.head_dim": 128,
    "model.attention": "mla",
    "mla.kv_rank": 512,
    "mla.rope_dim": 64,
    "moe.experts": 72,
    "moe.top_k": 6,
    "moe.shared_experts": 2,
    "moe.ffn_hidden_size": 1536,
    "training.dtype": "bf16",
}
FORMS = {
    "residual": ("residual", "none"),
    "residual, layer recomputed": ("residual", "full"),
    "mhc": ("mhc", "none"),
    "mhc, block recomputed": ("mhc", "block"),
}


@dataclass(frozen=True)
class Load:
    """What a layer is given: sequences of so many tokens, and one in `share` of its experts."""

    tokens: int
    sequences: int = 1
    share: int = 1


def configuration(kind: str, recompute: str, load: Load) -> Config:
    """One MoE layer on one rank: the 27B model's on a GPU, the quickstart's elsewhere."""
    own = PAPER_27B if torch.cuda.is_available() else {"moe.experts": 8}
    settings = {
        "model.layers": 1,
        "moe.first_dense": 0,
        "parallel.pipeline": 1,
        "parallel.schedule": "megatron_1f1b",
        "connection.kind": kind,
        "recompute.mode": recompute,
        "data.sequence_length": load.tokens,
        "training.micro_batch": load.sequences,
        "training.global_batch": load.sequences,
        "training.threads": 1,
        **own,
        "moe.experts": int(own["moe.experts"]) // load.share,
    }
    config = load_config("configs/quickstart.yaml", [f"--{key}={value}" for key, value in settings.items()])
    check_config(config)
    return config


def kept(forward: Callable[[], Tensor]) -> int:
    """Bytes that the forward leaves allocated, as the allocator counts them."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        loss = forward()
        left = torch.cuda.memory_allocated() - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            loss = forward()
        left = sum(event.self_cpu_memory_usage for event in trace.events())
    loss.backward()
    return left


class Kernel(NamedTuple):
    """What the device ran in a step, by name: how often, and milliseconds in all."""

    name: str
    calls: int
    milliseconds: float


def kernels_of(step: Callable[[], None]) -> list[Kernel]:
    """A step's kernels (operators, where there is no GPU), the longest first."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities) as trace:
        step()
    events = trace.key_averages()
    if cuda:
        found = [
            Kernel(e.key, e.count, 1e-3 * e.self_device_time_total)
            for e in events
            if e.device_type == DeviceType.CUDA
        ]
    else:
        found = [Kernel(e.key, e.count, 1e-3 * e.self_cpu_time_total) for e in events]
    return sorted(found, key=lambda kernel: -kernel.milliseconds)


class MeasuredForm(NamedTuple):
    """Of one form: median seconds, those of the host until all was enqueued, the ratio to the residual's, bytes kept
    for backward, and a step's kernels."""

    seconds: float
    host: float
    ratio: float
    kept: int
    kernels: list[Kernel]


def network(config: Config, groups: ProcessGroupCollection) -> DataParallel:
    """Wrapped as for training. Its weights are drawn on the device: values do not matter here, and a CPU takes half a
    minute for those of 72 experts."""
    where = placement(config.parallel)
    (stage,) = stages(config.model.layers, where.model_stages)
    chunk = build_chunk(config, stage, VOCABULARY, embedding_groups(groups, where)).to(device())
    with torch.no_grad():
        for weight in chunk.parameters():
            if weight.dim() == 2 and parameter_of(weight) is None:
                weight.normal_(0.0, config.model.init_std)
    return wrap_chunk(chunk, config, groups)


class MeasuredLayer(NamedTuple):
    """All forms by name, and the residual's TFLOP/s."""

    forms: dict[str, MeasuredForm]
    tflops: float


def forms_of(kinds: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The residual and these kinds of connection, nothing recomputed."""
    return {kind: (kind, "none") for kind in ("residual", *kinds)}


class Step:
    """A form's forward and backward; host holds the seconds until each was enqueued."""

    def __init__(self, config: Config, groups: ProcessGroupCollection) -> None:
        self.chunk = network(config, groups)
        self.recomputation = Recomputation(
            config.recompute, [unwrap(self.chunk)], micro_batch_tokens(config), live=1, deferred=0
        )
        self.recomputation.measured()  # times are without measuring
        shape = config.training.micro_batch, config.data.sequence_length
        self.ids = torch.randint(VOCABULARY, shape, device=device())
        self.positions = torch.arange(shape[1], device=device()).expand(*shape)
        self.host: list[float] = []

    def forward(self) -> Tensor:
        """The loss."""
        execution = self.recomputation.execution
        return self.chunk(self.ids, self.positions, None, labels=self.ids, execution=execution).sum()

    def __call__(self) -> None:
        """Forward, backward, and whatever the device has left to do."""
        start = time.perf_counter()
        self.chunk.zero_grad_buffer()
        self.forward().backward()
        self.host.append(time.perf_counter() - start)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def measure(
    load: Load, rounds: int, forms: Mapping[str, tuple[str, str]] = FORMS, profiled: bool = False
) -> MeasuredLayer:
    """The forms, of which the residual is one, taking turns."""
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "bench")
    first = configuration("residual", "none", load)
    with process_groups(first, alone) as groups:
        steps, bytes_kept = {}, {}
        for name, form in forms.items():
            steps[name] = step = Step(configuration(*form, load), groups)
            step()  # what is kept does not include what the first step caches
            bytes_kept[name] = kept(step.forward)
        times = alternating(steps, rounds, warmup=3)
        host = {name: statistics.median(step.host[-rounds:]) for name, step in steps.items()}
        kernels = {name: kernels_of(step) if profiled else [] for name, step in steps.items()}
    found = {
        name: MeasuredForm(
            statistics.median(times[name]),
            host[name],
            ratio(times, name, "residual"),
            bytes_kept[name],
            kernels[name],
        )
        for name in forms
    }
    flops = load.sequences * load.tokens * training_flops_per_token(first, VOCABULARY)
    return MeasuredLayer(found, flops / found["residual"].seconds / 1e12)


def default_tokens() -> int:
    """The paper's sequence on a GPU, few elsewhere."""
    return 4096 if torch.cuda.is_available() else 256


def main(arguments: list[str] | None = None) -> dict[str, MeasuredForm]:
    """Prints and returns the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=default_tokens())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS)[1:], help="these beside the residual, not recomputed"
    )
    parser.add_argument("--share", type=int, default=1, help="one in so many of the experts")
    parser.add_argument("--sequences", type=int, default=1, help="of a micro-batch")
    parser.add_argument("--kernels", action="store_true", help="the longest of every form")
    args = parser.parse_args(arguments)
    others = Others()
    forms = forms_of(args.kinds) if args.kinds else FORMS
    load = Load(args.tokens, args.sequences, args.share)
    found = measure(load, args.rounds, forms, args.kernels)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else described()
    print(f"{where}, torch {torch.__version__}, {load}, {time.strftime('%Y-%m-%d')}")
    for name, one in found.forms.items():
        print(
            f"{name:>26}: {1e3 * one.seconds:8.2f} ms ({1e3 * one.host:.2f} of the host), {one.ratio:.3f} of the "
            f"residual, keeps {mib(one.kept)}"
        )
        for kernel in one.kernels[:LONGEST]:
            print(f"{kernel.milliseconds:12.3f} ms, {kernel.calls:5} x {kernel.name[:90]}")
    print(f"the residual's rate: {found.tflops:.3g} TFLOP/s")
    print(others)
    return found.forms


if __name__ == "__main__":
    main()
