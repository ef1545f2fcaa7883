"""What the ranks of the pipeline's tests run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.chunk_stage import ChunkStage
from hcmegatron.pipeline.configured_schedule import training_schedule
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.training.loss import forward_step
from hcmegatron.training.model import wrap_chunk
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from schedules.costs import Costs
from schedules.memory import peaks
from schedules.runtime.program import Peaks
from schedules.simulate import simulate
from tests.layouts.network import Batches, Outcome, chunks_of, gradients, one_step
from tests.model.deferred_workers import Matmuls
from tests.model.workers import groups_of


def steps(configs: list[Config]) -> list[Outcome]:
    """One step of each network."""
    outcomes = []
    for config in configs:
        with groups_of(config) as groups:
            outcomes.append(one_step(config, groups))
    return outcomes


def evaluations(configs: list[Config], counts: list[int]) -> list[list[float]]:
    """Per network and number of micro-batches, the loss summed over all of them, between training steps.

    They leave nothing behind: no tokens counted for experts' biases, no bias moved, no random number drawn.
    """
    found = []
    for config in configs:
        with groups_of(config) as groups:
            chunks = [wrap_chunk(chunk, config, groups) for chunk in chunks_of(config, groups)]
            optimizer = build_optimizer(config, chunks, groups)
            schedule = build_forward_backward(config, chunks, groups, Execution())
            batches = Batches(config, groups.dp.rank(), groups.dp.size())
            stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
            stepper.gradients(0)
            before = _training_state(chunks)
            found.append([stepper.evaluate(partial(batches, 1), count) for count in counts])
            after = _training_state(chunks)
            assert len(after) == len(before) and all(map(torch.equal, after, before))
    return found


def _training_state(chunks: list[torch.nn.Module]) -> list[torch.Tensor]:
    """Everything but parameters that a training step reads and an evaluation could change."""
    buffers = [buffer for chunk in chunks for buffer in unwrap(chunk).buffers()]
    regions = get_cuda_rng_tracker().get_states()
    return [torch.get_rng_state(), *(t.clone() for t in (*regions.values(), *buffers))]


class Trimmed(Batches):
    """Micro-batches of different lengths."""

    def __init__(self, config: Config, lengths: list[int]) -> None:
        super().__init__(config, 0, 1)
        self.lengths = lengths

    def __call__(self, step: int, micro_batch: int) -> dict[str, torch.Tensor | int]:
        whole = super().__call__(step, micro_batch)
        sample, length = whole.pop("first_sample"), self.lengths[micro_batch]
        return {name: tensor[:, :length] for name, tensor in whole.items()} | {"first_sample": sample}


def lengths(configs: list[Config], lengths: list[int]) -> list[Outcome]:
    """Gradients of micro-batches of these lengths, through our runtime."""
    outcomes = []
    for config in configs:
        with groups_of(config) as groups:
            chunks = [wrap_chunk(chunk, config, groups) for chunk in chunks_of(config, groups)]
            batches = Trimmed(config, lengths)
            losses = build_forward_backward(config, chunks, groups, Execution())(
                forward_step_func=forward_step,
                data_iterator=[(batches(0, i) for i in range(len(lengths))) for _ in chunks],
                model=chunks,
                num_microbatches=len(lengths),
                seq_length=lengths,
                micro_batch_size=config.training.micro_batch,
            )
            sums = sum((entry["loss"][:2] for entry in losses), torch.zeros(2))
            dist.all_reduce(sums)
            outcomes.append(Outcome((sums[0] / sums[1]).item(), 1.0, gradients(chunks), [], {}))
    return outcomes


@dataclass
class Held:
    """What one rank held at most and computed in a step, beside what its schedule says."""

    counted: Peaks  # by the runtime's record
    kept: Peaks  # by the stages and the buffer pool themselves
    planned: Peaks
    simulated_chunks: int
    live_limit: int | None
    weight_matmuls_in_I: int
    weight_matmuls_in_W: int
    separable_in_W: int  # separable weights of the stage, over all W


def held(configs: list[Config]) -> list[Held]:
    """Second steps, watched."""
    found = []
    for config in configs:
        with groups_of(config) as groups:
            found.append(_held(config, groups))
    return found


def _held(config: Config, groups: object) -> Held:
    chunks = [wrap_chunk(chunk, config, groups) for chunk in chunks_of(config, groups)]
    optimizer = build_optimizer(config, chunks, groups)
    runner = build_forward_backward(config, chunks, groups, Execution())
    assert isinstance(runner, ScheduleRunner)
    batches = Batches(config, groups.dp.rank(), groups.dp.size())
    stepper = Stepper(config, chunks, optimizer, runner, batches, groups)
    stepper.gradients(0)

    rank, count = groups.pp.rank(), batches.micro_batches
    weights = {
        stage: [tuple(p.shape) for p in watched.model.parameters() if getattr(p, "separable", False)]
        for stage, watched in runner.stages.items()
    }
    shapes = {shape for own in weights.values() for shape in own}
    in_i, in_w = Matmuls(), Matmuls()
    most = [0, 0, 0]
    separable = 0
    (runtime,) = runner._runtimes.values()

    def note() -> None:
        graphs = sum(len(stage._graphs) for stage in runner.stages.values())
        pending = sum(len(stage.wgrad_store) for stage in runner.stages.values())
        for place, value in enumerate((graphs + pending, pending, runtime._pool.in_use)):
            most[place] = max(most[place], value)

    def watch(stage: ChunkStage, number: int) -> None:
        forward, backward_input, backward_weight = stage.forward, stage.backward_input, stage.backward_weight

        def noted_forward(*arguments):
            output = forward(*arguments)
            note()
            return output

        def noted_input(*arguments):
            with in_i:
                gradient = backward_input(*arguments)
            note()
            return gradient

        def noted_weight(microbatch):
            nonlocal separable
            separable += len(weights[number])
            with in_w:
                backward_weight(microbatch)

        stage.forward, stage.backward_input, stage.backward_weight = noted_forward, noted_input, noted_weight

    for number, stage in runner.stages.items():
        watch(stage, number)
    stepper.gradients(1)
    schedule = training_schedule(config, count)
    return Held(
        counted=runner.record.peaks,
        kept=Peaks(*most),
        planned=runtime.program.peaks,
        simulated_chunks=peaks(simulate(schedule, Costs()))[rank].chunks,
        live_limit=schedule.live_limit and schedule.live_limit[rank],
        weight_matmuls_in_I=sum(shape in shapes for shape in in_i.shapes),
        weight_matmuls_in_W=sum(shape in shapes for shape in in_w.shapes),
        separable_in_W=separable,
    )
