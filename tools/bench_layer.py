"""One decoder layer of the mHC paper's 27B model, with mHC and with the plain residual, with and without
recomputation: mHC's by blocks, the residual's of the whole layer, for it has no streams to rebuild.

    python -m tools.bench_layer [--tokens 4096] [--rounds 20]

Forward and backward of a one-layer network (MLA, 72 experts with 6 active and 2 shared, C = 2560; a
vocabulary of 256, so that embedding and head weigh nothing), bf16, the forms taking turns. Printed:
milliseconds, their ratio to the residual without recomputation, what a forward leaves in memory for its
backward, and the residual's TFLOP/s, without which the ratio says nothing: the paper's 1.067 was measured on
a whole system, and is comparable only where the baseline passes 300 TFLOP/s. Without a GPU the quickstart's
dimensions are used in fp32: that checks the program, and tells nothing about GPUs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config import check_config
from hcmegatron.config.load import load_config
from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.connections.build import parameter_of
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


def configuration(kind: str, recompute: str, tokens: int) -> Config:
    """One MoE layer on one rank: the 27B model's on a GPU, the quickstart's elsewhere."""
    settings = {
        "model.layers": 1,
        "moe.first_dense": 0,
        "parallel.pipeline": 1,
        "parallel.schedule": "megatron_1f1b",
        "connection.kind": kind,
        "recompute.mode": recompute,
        "data.sequence_length": tokens,
        "training.micro_batch": 1,
        "training.global_batch": 1,
        "training.threads": 1,
        **(PAPER_27B if torch.cuda.is_available() else {}),
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


class MeasuredForm(NamedTuple):
    """Of one form: median seconds, their ratio to the residual's, and bytes kept for backward."""

    seconds: float
    ratio: float
    kept: int


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


def measure(tokens: int, rounds: int) -> MeasuredLayer:
    """The forms taking turns."""
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "bench")
    first = configuration("residual", "none", tokens)
    with process_groups(first, alone) as groups:
        bytes_kept = {}

        def made(name: str, kind: str, recompute: str) -> Callable[[], None]:
            config = configuration(kind, recompute, tokens)
            chunk = network(config, groups)
            recomputation = Recomputation(
                config.recompute, [unwrap(chunk)], micro_batch_tokens(config), live=1, deferred=0
            )
            recomputation.measured()  # times are without measuring
            ids = torch.randint(VOCABULARY, (1, tokens), device=device())
            positions = torch.arange(tokens, device=device()).unsqueeze(0)

            def forward() -> Tensor:
                return chunk(ids, positions, None, labels=ids, execution=recomputation.execution).sum()

            def step() -> None:
                chunk.zero_grad_buffer()
                forward().backward()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()

            step()  # what is kept does not include what the first step caches
            bytes_kept[name] = kept(forward)
            return step

        times = alternating({name: made(name, *form) for name, form in FORMS.items()}, rounds, warmup=3)
    found = {
        name: MeasuredForm(statistics.median(values), ratio(times, name, "residual"), bytes_kept[name])
        for name, values in times.items()
    }
    flops = tokens * training_flops_per_token(first, VOCABULARY)
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
    args = parser.parse_args(arguments)
    others = Others()
    found = measure(args.tokens, args.rounds)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else described()
    print(f"{where}, torch {torch.__version__}, {args.tokens} tokens, {time.strftime('%Y-%m-%d')}")
    for name, one in found.forms.items():
        print(
            f"{name:>26}: {1e3 * one.seconds:8.2f} ms, {one.ratio:.3f} of the residual, keeps {mib(one.kept)}"
        )
    print(f"the residual's rate: {found.tflops:.3g} TFLOP/s")
    print(others)
    return found.forms


if __name__ == "__main__":
    main()
