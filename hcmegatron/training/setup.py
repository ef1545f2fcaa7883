"""A run, put together: data, model, optimizer, schedule and checkpoints of this rank."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.data.blend import PreparedCorpus
from hcmegatron.data.corpus import Corpus
from hcmegatron.data.dataset import Batches, Validation
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.evaluate.generation import Network
from hcmegatron.model import accumulate
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.specs import te_skipped_reason
from hcmegatron.pipeline import cuda_streams
from hcmegatron.pipeline.configured_schedule import most_held, training_schedule
from hcmegatron.pipeline.forward_backward import build_forward_backward, start_watchdog
from hcmegatron.pipeline.replica_sync import replicas_planned
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.planner.hops import hop_costs
from hcmegatron.planner.layers import padded_vocab
from hcmegatron.platform import cuda_environment, standard_streams
from hcmegatron.platform.collective_failure import (
    Ended,
    in_one_line,
    kept_on_first_rank,
    on_first_rank,
    timed_out,
)
from hcmegatron.platform.ranks import STARTED_HERE, RankInfo
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training import checkpoint, optimizer_roles, resume
from hcmegatron.training.data_parallel import DataParallel
from hcmegatron.training.log import Log
from hcmegatron.training.manifest import Progress
from hcmegatron.training.memory_check import expected_memory
from hcmegatron.training.model import build_model, gather_parameters, kernels_chosen
from hcmegatron.training.observer import Observers, Step
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.planned import RunPlan, plan_run
from hcmegatron.training.resume import Start
from hcmegatron.training.run_directory import RunDirectory
from hcmegatron.training.sample_text import sampled_prompt
from hcmegatron.training.spikes import Spikes
from hcmegatron.training.step import Stepper
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from schedules.runtime.gpu import GPU
from schedules.runtime.watchdog import Watchdog


@dataclass
class TrainingRun:
    """A run on this rank, as the loop and its observers see it.

    Attributes:
        vocab_size: padded.
        validations: of each source that has held-out text; tests: of data.test.
        chunks: wrapped, in ascending order of their stages.
        start: the checkpoint that the run goes on from, if any; load_seconds: that filling model and optimizer from it
            took.
        position: where it goes on; after every step, where that has brought it.
        plan: on rank 0, what the planner says of it.
        directory: its files, which rank 0 writes; log: what it says, on rank 0.
        observers: whom the loop tells.
    """

    config: Config
    ranks: RankInfo
    directory: Path
    log: Log
    text: Text
    validations: list[Validation]
    tests: list[Validation]
    vocab_size: int
    chunks: list[DataParallel]
    recomputation: Recomputation
    optimizer: ChainedOptimizer
    stepper: Stepper
    checkpoints: checkpoint.Checkpoints
    start: Start | None
    position: Progress
    plan: RunPlan | None
    introduction: list[str] = field(default_factory=list)
    observers: Observers = field(default_factory=lambda: Observers(()))
    load_seconds: float = 0.0

    def go_on_at(self, position: Progress) -> None:
        """The next step is the one after `position`, on its data, judged by what it remembers."""
        self.position = position
        self.stepper.batches.left_out = position.left_out
        self.stepper.spikes = Spikes(self.config.health, position.recent)

    def network(self) -> Network:
        """What is trained, asked for texts in the shapes of an evaluation."""
        config, stepper = self.config, self.stepper
        shape = config.data.sequence_length, config.training.micro_batch
        return Network(config, self.chunks, stepper.schedule, stepper.groups, self.text.tokenizer, *shape)

    def after(self, step: Step) -> Progress:
        """Where a step has brought the run."""
        left_out, recent = self.stepper.batches.left_out, self.stepper.spikes.recent
        return Progress(step.number, step.result.samples.stop, left_out, recent)


@contextmanager
def assemble_run(
    config: Config,
    ranks: RankInfo,
    groups: ProcessGroupCollection,
    corpus: Corpus | PreparedCorpus,
    path: Path,
    start: Start | None = None,
) -> Iterator[TrainingRun]:
    """The run, with its directory claimed, its log open and its watchdog awake until the context is left. Collective.

    Raises:
        ConfigError: it does not fit the machine; or a run directory or checkpoint that cannot be used.
    """
    text, batches, validations, tests = _data(config, groups, corpus)
    tokens = text.tokenizer.vocab_size
    vocab_size = padded_vocab(config.model, config.parallel.tensor, tokens)
    memory = on_first_rank(lambda: expected_memory(config, vocab_size, ranks, batches.micro_batches))
    plan = kept_on_first_rank(lambda: plan_run(config, ranks))
    # made when all that can be refused has been
    directory = RunDirectory(path, config)
    chunks = build_model(config, tokens, groups)
    held = most_held(config, batches.micro_batches, groups.pp.rank())
    recomputation = Recomputation(
        config.recompute, [unwrap(chunk) for chunk in chunks], micro_batch_tokens(config), *held
    )
    gather_parameters(chunks)  # measuring a sub-layer for the plan has set their gathering off
    optimizer = build_optimizer(config, chunks, groups)
    with _watchdog(config, path) as watchdog:
        schedule = build_forward_backward(config, chunks, groups, recomputation.execution, watchdog)
        stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
        checkpoints = checkpoint.Checkpoints(path, config, corpus.fingerprint, chunks, optimizer)
        began = time.monotonic()
        if start:
            checkpoints.load(start)
        load_seconds = time.monotonic() - began
        position = start.position if start else Progress(0, 0)
        opened = kept_on_first_rank(
            lambda: Log(
                directory.path, config.training.steps, position.step + 1, ranks.source == STARTED_HERE
            )
        )
        with opened or Log(None) as log:
            run = TrainingRun(
                config,
                ranks,
                directory.path,
                log,
                text,
                validations,
                tests,
                vocab_size,
                chunks,
                recomputation,
                optimizer,
                stepper,
                checkpoints,
                start,
                position,
                plan,
                load_seconds=load_seconds,
            )
            run.go_on_at(position)
            run.introduction = _introduction(run, corpus, memory, groups.pp.rank())
            yield run


def _data(
    config: Config, groups: ProcessGroupCollection, corpus: Corpus | PreparedCorpus
) -> tuple[Text, Batches, list[Validation], list[Validation]]:
    """What this rank trains, is validated and is tested on.

    Raises:
        ConfigError: the text is too short, training.eval_prompt too long, or the network's vocabulary smaller than the
            tokenizer's.
    """
    text = Text(corpus, build_tokenizer(config.data.tokenizer))
    tokens = text.tokenizer.vocab_size
    if (config.model.vocab_size or tokens) < tokens:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}, fewer than the {tokens} tokens of data.tokenizer = "
            f"{config.data.tokenizer}; raise it, or leave it null"
        )
    sampled_prompt(config, text.tokenizer)  # a mistake in it is found before anything is written
    data_rank = groups.dp.rank(), groups.dp.size()
    sections = config.data, config.training
    return (
        text,
        Batches(text, *sections, *data_rank),
        [Validation(text, *sections, *data_rank, source=s) for s in range(len(text.held_out))],
        [Validation(text, *sections, *data_rank, source=s, test=True) for s in range(len(text.test))],
    )


def _introduction(
    run: TrainingRun, corpus: Corpus | PreparedCorpus, memory: str, pipeline_rank: int
) -> list[str]:
    """What a run says of itself before its first step."""
    config, chunks = run.config, run.chunks
    return [
        f"run directory: {run.directory}",
        f"{config.connection.kind} on {run.ranks.world_size} ranks, "
        f"{len(run.text):,} training tokens of {corpus.name}",
        run.text.split,
        memory,
        *kernels_chosen(chunks),
        *optimizer_roles.described(config, run.vocab_size),
        *accumulate.described(config.parallel.schedule, config.training.dtype, chunks),
        *_messages(run.stepper.schedule),
        *_of_the_gpu(config, run.stepper.batches.micro_batches, pipeline_rank),
        *resume.words(config, run.directory, run.start),
        *run.checkpoints.tidied,
        *te_skipped_reason(config),
        *replicas_planned(config.parallel, chunks),
        *run.recomputation.planned(),
    ]


def warn_of_environment(config: Config, ranks: RankInfo) -> None:
    """Say what of the environment may hang the run on GPUs, before anything is started that could."""
    if GPU.present() and ranks.rank == 0:
        for warning in cuda_streams.warnings(config.parallel, os.environ):
            standard_streams.tell(f"hcmegatron: {warning}")


def _messages(schedule: Callable) -> list[str]:
    """How messages go from stage to stage."""
    words = schedule.messages if isinstance(schedule, ScheduleRunner) else ""
    return [f"messages between stages: {words}"] if words else []


def _of_the_gpu(config: Config, microbatches: int, rank: int) -> list[str]:
    if not GPU.present():
        return []
    costs = hop_costs(config, training_schedule(config, microbatches))
    posted = cuda_streams.receives(config, costs, microbatches, rank)
    return [cuda_environment.described(os.environ), *posted]


@contextmanager
def _watchdog(config: Config, path: Path) -> Iterator[Watchdog | None]:
    """The watchdog, closed on all ranks together where all of them leave: rank 0 holds what they share."""
    watchdog = start_watchdog(config.parallel.timeout_s, path)
    ended: Ended | None = None
    try:
        yield watchdog
    except Ended as error:
        ended = error
    except RuntimeError as error:
        if watchdog is not None and timed_out(error):  # outside of a step, which reports its own
            watchdog.trip(f"rank {dist.get_rank()}: {in_one_line(error)}")
            error.add_note(f"positions and stacks of all ranks: {watchdog.directory}")
        raise
    if watchdog is not None:
        watchdog.close()
        dist.barrier()
    if ended is not None:
        raise ended
