"""What the ranks of an overlap test run: a step with FBs node by node, with what was executed."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import torch

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.nodes import Node
from hcmegatron.model.wgrad_store import DeferredWgrads
from hcmegatron.pipeline.chunk_stage import ChunkStage
from hcmegatron.pipeline.configured_schedule import first_micro_batches, most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.pipeline.micro_batch_graph import GraphSegment
from hcmegatron.pipeline.overlap import OverlappedStage
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.model import build_model
from schedules.actions import FB, Action, B, F, I, W
from tests.model.workers import VOCAB, S, batches, groups_of, megatron_loss_step, randomise_connections
from tests.recompute.workers import digest


@dataclass
class Step:
    """One rank's step. bits: a digest of every gradient and buffer. called: what the stages were asked for, as a
    schedule writes it; recorded: the same by the runtime. pairs: per FB its turns as planned and its nodes as they
    ran."""

    loss: float | None
    bits: dict[str, str]
    called: tuple[Action, ...]
    recorded: tuple[Action, ...]
    pairs: list[tuple[list, list]]


def steps(configs: list[Config], count: int) -> list[Step]:
    torch.set_num_threads(1)
    return [step(config, count) for config in configs]


def step(config: Config, count: int) -> Step:
    with groups_of(config) as groups, watching() as pairs:
        wrapped = build_model(config, VOCAB, groups)
        chunks = [unwrap(chunk) for chunk in wrapped]
        rank = groups.pp.rank()
        execution = Recomputation(
            config.recompute, chunks, micro_batch_tokens(config), *most_held(config, count, rank)
        ).execution
        for chunk in chunks:
            randomise_connections(chunk)
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        runner = build_forward_backward(config, wrapped, groups, execution)
        called = log_calls(runner.stages)
        own = batches(count * groups.dp.size(), config.training.micro_batch)[
            groups.dp.rank() :: groups.dp.size()
        ]
        losses = runner(
            forward_step_func=megatron_loss_step,
            data_iterator=[iter(own[first:]) for first in first_micro_batches(config.parallel, rank, count)],
            model=wrapped,
            num_microbatches=count,
            seq_length=S,
            micro_batch_size=config.training.micro_batch,
        )
        bits = {
            f"{c}.{name}": digest(tensor)
            for c, chunk in enumerate(chunks)
            for name, tensor in (
                *((name, p.main_grad) for name, p in chunk.named_parameters()),
                *chunk.named_buffers(),
            )
        }
        total = sum(float(entry["loss"][0]) for entry in losses) if losses else None
        return Step(total, bits, tuple(called), runner.record.actions, pairs)


def log_calls(stages: dict[int, ChunkStage]) -> list[Action]:
    """From now on, what each stage is called for."""
    calls: list[Action] = []
    numbers = {id(stage): number for number, stage in stages.items()}

    def log(stage, name, action):
        usual = getattr(stage, name)

        def logged(microbatch, *rest):
            calls.append(action(numbers[id(stage)], microbatch, *rest))
            return usual(microbatch, *rest)

        setattr(stage, name, logged)

    def pair(number, microbatch, input, backward_stage, backward_microbatch, *rest):
        return FB(F(number, microbatch), B(numbers[id(backward_stage)], backward_microbatch))

    for stage in stages.values():
        log(stage, "forward", lambda number, microbatch, *_: F(number, microbatch))
        log(stage, "backward", lambda number, microbatch, *_: B(number, microbatch))
        log(stage, "backward_input", lambda number, microbatch, *_: I(number, microbatch))
        log(stage, "backward_weight", W)
        if hasattr(stage, "forward_backward"):
            log(stage, "forward_backward", pair)
    return calls


class watching:
    """Notes the nodes that run inside every FB where they run, and weight gradients where they are computed."""

    def __enter__(self) -> list[tuple[list, list]]:
        pairs: list[tuple[list, list]] = []
        open_pair: list[list] = []
        usual_forward, usual_backward = Node.forward, GraphSegment.backward
        usual_init, usual_pair = GraphSegment.__init__, OverlappedStage.forward_backward
        usual_left, usual_run = DeferredWgrads.__init__, DeferredWgrads.run
        last: list[str] = [""]
        unnamed: list[DeferredWgrads] = []  # of the node whose backward comes next

        def forward(node, state, micro_batch):
            last[0] = node.name
            if open_pair:
                open_pair[-1].append((node.name, "F"))
            return usual_forward(node, state, micro_batch)

        def init(piece, state, cut=None, *rest):
            usual_init(piece, state, cut, *rest)
            piece.node = last[0] if cut else "embedding"

        def backward(piece, gradients):
            if open_pair:
                open_pair[-1].append((piece.node, "B"))
            while unnamed:
                unnamed.pop().node = piece.node
            return usual_backward(piece, gradients)

        def left(work):
            usual_left(work)
            unnamed.append(work)

        def run(work):
            if open_pair:
                open_pair[-1].append((work.node, "W"))
            return usual_run(work)

        def pair(stage, *args):
            open_pair.append([])
            usual_pair(stage, *args)
            pairs.append((list(stage.executed), open_pair.pop()))

        self.patches = [
            mock.patch.object(Node, "forward", forward),
            mock.patch.object(GraphSegment, "backward", backward),
            mock.patch.object(GraphSegment, "__init__", init),
            mock.patch.object(DeferredWgrads, "__init__", left),
            mock.patch.object(DeferredWgrads, "run", run),
            mock.patch.object(OverlappedStage, "forward_backward", pair),
        ]
        for patch in self.patches:
            patch.__enter__()
        return pairs

    def __exit__(self, *error) -> None:
        for patch in self.patches:
            patch.__exit__(*error)
