"""A small overlapped case in one process, to be profiled or checked: both chunks of a V, experts in all layers but one.

    python -m tools.profile_overlap --trace out.json     torch.profiler's trace, for Perfetto or chrome://tracing
    compute-sanitizer --tool racecheck python -m tools.profile_overlap --steps 1
    compute-sanitizer --tool memcheck python -m tools.profile_overlap --steps 1

On a GPU the trace shows every lane as a stream, and --all-to-all sends the tokens of the one rank to itself through
NCCL, so that dispatch and combine are kernels on the communication stream. On CPU nodes run one after another, in the
same order. Racecheck looks for races inside kernels; those between lanes are what tests/pipeline/test_overlap_cuda.py
looks for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config import check_config
from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.nodes import MicroBatch, Node, State
from hcmegatron.pipeline import overlap
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import device, process_groups
from hcmegatron.platform.local_launch import free_port
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.loss import forward_step
from hcmegatron.training.model import build_model
from megatron.core.tensor_parallel import mappings
from schedules.node_costs import Turn

VOCABULARY = 256
MICRO_BATCHES = 4


def small_case() -> Config:
    """One pipeline rank under DualPipeV, overlapped, deterministic."""
    config = Config()
    m, e, p, t = config.model, config.moe, config.parallel, config.training
    m.layers, m.hidden_size, m.heads, m.ffn_hidden_size = 4, 128, 4, 256
    e.experts, e.top_k, e.ffn_hidden_size, e.shared_experts, e.first_dense = 8, 2, 128, 1, 1
    p.schedule, p.overlap = "dualpipev", True
    t.global_batch, t.micro_batch, t.dtype = 2 * MICRO_BATCHES, 2, "bf16"
    return config


def all_to_all_of_one_rank() -> AbstractContextManager:
    """Inside, Megatron's all-to-all communicates in groups of one rank too, where it hands on its input otherwise."""
    usual = mappings._AllToAll.forward

    def forward(ctx: Any, group: dist.ProcessGroup, input: Tensor, *splits: Any) -> Tensor:
        output = usual(ctx, group, input, *splits)
        if group.size() > 1:
            return output
        received = torch.empty_like(input, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, input.contiguous(), group=group)
        return received

    return mock.patch.object(mappings._AllToAll, "forward", staticmethod(forward))


@contextmanager
def named() -> Iterator[None]:
    """Inside, the nodes of a forward (F) and the turns of a backward (I, W) have their names in traces."""
    usual_node, usual_turn = Node.forward, overlap._Backward.turn

    def forward(node: Node, state: State, micro_batch: MicroBatch) -> State:
        with record_function(f"F {node.name}"):
            return usual_node(node, state, micro_batch)

    def turn(back: overlap._Backward, turn: Turn) -> None:
        with record_function(f"{turn.phase} {turn.role}"):
            usual_turn(back, turn)

    with mock.patch.object(Node, "forward", forward), mock.patch.object(overlap._Backward, "turn", turn):
        yield


def prepared(config: Config, groups: Any) -> Callable[[], None]:
    """What runs one step, without the optimizer."""
    chunks = build_model(config, VOCABULARY, groups)
    held = most_held(config, MICRO_BATCHES, 0)
    recomputation = Recomputation(
        config.recompute, [unwrap(chunk) for chunk in chunks], micro_batch_tokens(config), *held
    )
    recomputation.measured()  # times are without measuring
    schedule = build_forward_backward(config, chunks, groups, recomputation.execution)
    size, length = config.training.micro_batch, config.data.sequence_length
    text = torch.randint(
        VOCABULARY, (size, length + 1), generator=torch.Generator().manual_seed(1), dtype=torch.long
    ).to(device())
    batch = {
        "tokens": text[:, :-1].contiguous(),
        "labels": text[:, 1:].contiguous(),
        "loss_mask": torch.ones(size, length, device=device()),
        "position_ids": torch.arange(length, device=device()).expand(size, -1),
        "first_sample": 0,
    }

    def step() -> None:
        for chunk in chunks:
            chunk.zero_grad_buffer()
        schedule(
            forward_step_func=forward_step,
            data_iterator=[iter([batch] * MICRO_BATCHES) for _ in chunks],
            model=chunks,
            num_microbatches=MICRO_BATCHES,
            seq_length=length,
            micro_batch_size=size,
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def main(arguments: list[str] | None = None) -> None:
    """Runs the steps; writes the trace where one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", metavar="FILE", help="where torch.profiler's trace goes")
    parser.add_argument("--steps", type=int, default=3, help="of which the first one is not in the trace")
    parser.add_argument("--recompute", choices=["none", "block"], default="none")
    parser.add_argument("--all-to-all", action="store_true")
    args = parser.parse_args(arguments)
    config = small_case()
    config.recompute.mode = args.recompute
    config.training.threads = 1
    check_config(config)
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "profile")
    communicating = all_to_all_of_one_rank() if args.all_to_all else nullcontext()
    with process_groups(config, alone) as groups, communicating, named():
        step = prepared(config, groups)
        step()
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) if args.trace else nullcontext() as trace:
            for _ in range(args.steps - 1):
                step()
        if trace is not None:
            trace.export_chrome_trace(args.trace)
            print(f"{args.trace}: {args.steps - 1} steps of {config.parallel.schedule} on {device()}")


if __name__ == "__main__":
    main()
