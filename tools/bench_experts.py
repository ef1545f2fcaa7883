"""Grouped experts against sequential ones, forward and backward, one thread.

    python -m tools.bench_experts

The experts alone on unevenly routed tokens (one expert without any), then a step of the quickstart's model.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import torch

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.load import load_config
from hcmegatron.config.schema import Config
from hcmegatron.model.experts import GroupedExperts
from hcmegatron.model.gpt import build_chunk, stages
from hcmegatron.model.initialise import initialise_weights
from hcmegatron.model.transformer_config import transformer_config
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import RankInfo, free_port
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from tools.alternate import alternating, ratio
from tools.machine import Others, described
from tools.targets import Targets, exit_status

ROUNDS = 15
# experts, tokens that reach them, C, width of an expert, dtype
SHAPES = (
    (8, 2048, 160, 112, "fp32"),  # the quickstart's micro-batch: 4 x 256 tokens, two experts each
    (16, 2048, 256, 128, "fp32"),
    (64, 2048, 256, 128, "fp32"),
    (64, 2048, 256, 128, "bf16"),
)


def main() -> int:
    """Prints medians and ratios, grouped over sequential; returns 1 where one misses its target."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    others = Others()
    print(described())
    config = load_config("configs/quickstart.yaml", ["--parallel.pipeline=1", "--training.threads=1"])
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "bench")
    targets = Targets()
    with process_groups(config, alone) as groups:
        for shape in SHAPES:
            compare(shown(*shape), experts(groups, *shape), targets)
        compare("quickstart model", model(config, groups), targets)
    return others.verdict(lambda: exit_status(targets.missed))


def shown(count: int, tokens: int, hidden_size: int, width: int, dtype: str) -> str:
    """The shape in words."""
    return f"{count} experts, {tokens} tokens, C {hidden_size}, width {width}, {dtype}"


def compare(name: str, candidates: dict[str, Callable[[], None]], targets: Targets) -> None:
    """Prints one line."""
    times = alternating(candidates, ROUNDS, warmup=2)
    found = ratio(times, "grouped", "sequential")
    medians = ", ".join(f"{key} {1e3 * statistics.median(value):.2f} ms" for key, value in times.items())
    print(f"{name}: {medians}, ratio {found:.2f} (target: {targets.below(name, found, 1)})")


def experts(
    groups: ProcessGroupCollection, count: int, tokens: int, hidden_size: int, width: int, dtype: str
) -> dict[str, Callable[[], None]]:
    """Forward and backward of the experts alone."""
    config = Config()
    config.model.hidden_size, config.training.dtype = hidden_size, dtype
    config.moe.experts, config.moe.ffn_hidden_size = count, width
    megatron = transformer_config(config)
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    modules = {
        "grouped": GroupedExperts(count, megatron, None, groups),
        "sequential": SequentialMLP(count, megatron, linears, groups),
    }
    generator = torch.Generator().manual_seed(1)
    likely = torch.rand(count, generator=generator)
    likely[0] = 0
    chosen = torch.multinomial(likely, tokens, replacement=True, generator=generator)
    counts = torch.bincount(chosen, minlength=count)
    x = torch.randn(tokens, hidden_size).to(megatron.params_dtype).requires_grad_()
    probs, gradient = torch.rand(tokens), torch.randn(tokens, hidden_size).to(megatron.params_dtype)
    for module in modules.values():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)

    def run(module: torch.nn.Module) -> None:
        module.zero_grad()
        module(x, counts, probs)[0].backward(gradient)

    return {name: lambda module=module: run(module) for name, module in modules.items()}


def model(config: Config, groups: ProcessGroupCollection) -> dict[str, Callable[[], None]]:
    """Forward and backward of one micro-batch through the whole model."""
    b, s, vocab_size = config.training.micro_batch, config.data.sequence_length, 384
    tokens = torch.randint(257, (b, s), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(s).expand(b, s)
    runs = {}
    for name in ("grouped", "sequential"):
        own = copy.deepcopy(config)
        own.moe.grouped = name == "grouped"
        chunk = build_chunk(own, stages(own.model.layers, 1)[0], vocab_size, groups)
        initialise_weights(chunk, own)

        def run(chunk: torch.nn.Module = chunk) -> None:
            chunk.zero_grad()
            chunk(tokens, positions, None, labels=tokens).mean().backward()

        runs[name] = run
    return runs


if __name__ == "__main__":
    raise SystemExit(main())
