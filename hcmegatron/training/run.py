"""The training loop. Read from top to bottom; each call leads into one room."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.data.corpus import find
from hcmegatron.data.dataset import Batches, Text, Validation
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.model.gpt import padded_vocab, unwrap
from hcmegatron.model.specs import passed_over
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.pipeline import cuda_streams
from hcmegatron.pipeline.mirrors import copies_planned
from hcmegatron.pipeline.placement import most_held
from hcmegatron.pipeline.schedule import build_schedule, start_watchdog
from hcmegatron.platform import cuda_environment
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.peak import peak_tflops
from hcmegatron.platform.ranks import STARTED_HERE, RankInfo
from hcmegatron.platform.standard_streams import tell
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training import checkpoint, resume
from hcmegatron.training.figures import Figures
from hcmegatron.training.guards import Finite, StopFlag
from hcmegatron.training.manifest import NotSaved, Position
from hcmegatron.training.memory import expected
from hcmegatron.training.model import build_model, gather_parameters, kernels_chosen
from hcmegatron.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from hcmegatron.training.recorder import Recorder
from hcmegatron.training.run_directory import RunDirectory, choose, on_first_rank
from hcmegatron.training.step import Stepper
from schedules.runtime.gpu import GPU


def train(config: Config, ranks: RankInfo, name: str = "run") -> int:
    """Train as `config` says, on this rank. Returns the process's exit code.

    Args:
        name: of the run directory that is made where run.dir is not set.

    Raises:
        ConfigError: a checkpoint or run directory that cannot be used.
        Diverged: training.max_bad_steps non-finite steps in a row.
        NotSaved: the last checkpoint.
    """
    corpus = find(config.data)
    if GPU.present() and ranks.rank == 0:
        for warning in cuda_streams.warnings(config, os.environ):
            tell(f"hcmegatron: {warning}")
    with process_groups(config, ranks, corpus.fingerprint) as groups:
        stop = StopFlag(launched=ranks.source == STARTED_HERE and ranks.world_size > 1)
        path: Path = on_first_rank(lambda: choose(config, name))
        depends_on = checkpoint.depends_on()
        start = on_first_rank(lambda: resume.find(config, path, corpus.fingerprint, depends_on))
        if start and start.position.step == config.training.steps:
            if ranks.rank == 0:
                tell(f"hcmegatron: {resume.finished(start)}")
            return 0
        if start:
            checkpoint.verify(start)

        text = Text(corpus, ByteTokenizer())
        data_rank = groups.dp.rank(), groups.dp.size()
        batches = Batches(text, config, *data_rank)
        validation = Validation(text, config, *data_rank) if len(text.heldout) else None

        vocab_size = padded_vocab(config, text.tokenizer.vocab_size)
        memory = on_first_rank(lambda: expected(config, vocab_size, ranks, batches.micro_batches))
        directory = RunDirectory(path, config)  # made when all that can be refused has been
        chunks = build_model(config, text.tokenizer.vocab_size, groups)
        held = most_held(config, batches.micro_batches, groups.pp.rank())
        recomputation = Recomputation(config, [unwrap(chunk) for chunk in chunks], *held)
        gather_parameters(chunks)  # measuring a sub-layer for the plan has set their gathering off
        optimizer = build_optimizer(config, chunks, groups)
        watchdog = start_watchdog(config, path)
        schedule = build_schedule(config, chunks, groups, watchdog)
        stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
        checkpoints = checkpoint.Checkpoints(path, config, corpus.fingerprint, chunks, optimizer)
        if start:
            checkpoints.load(start)
        done, seen = start.position if start else Position(0, 0)

        peak, peak_name = peak_tflops(config.run.peak_tflops, DTYPES[config.training.dtype])
        figures = Figures(config, vocab_size, ranks.world_size, peak)
        finite = Finite(config)
        steps = config.training.steps
        with Recorder(
            directory.path if ranks.rank == 0 else None,
            steps,
            done + 1,
            config.run.tensorboard,
            watched=ranks.source == STARTED_HERE,
        ) as recorder:
            recorder.say(f"run directory: {path}")
            recorder.say(
                f"{config.connection.kind} on {ranks.world_size} ranks, "
                f"{len(text.train):,} training tokens of {corpus.name}",
                corpus.split(),
            )
            recorder.say(memory)
            recorder.say(*kernels_chosen(chunks))
            if GPU.present():
                recorder.say(
                    cuda_environment.described(os.environ),
                    *cuda_streams.receives(config, batches.micro_batches, groups.pp.rank()),
                )
            recorder.say(f"MFU is of {peak:.3g} TFLOP/s a rank ({peak_name})")
            recorder.say(*resume.words(config, path, start), *checkpoints.tidied)
            recorder.say(*passed_over(config), *copies_planned(config, chunks), *recomputation.planned())
            recorder.say(*stepper.rehearse())
            figures.start()
            reached = Position(done, seen)
            for step in range(done + 1, steps + 1) if not stop.agreed() else ():
                rate = learning_rate(step, config.optimizer, steps)
                set_learning_rate(optimizer, rate, config.optimizer.weight_decay)
                result = stepper.step(seen)
                done, seen = step, result.samples.stop
                if result.updated:
                    reached = Position(step, seen)
                metrics, line = figures.of(step, result, rate)
                recorder.step(step, metrics, line, show=_due(step, config.training.log_every, steps))
                recorder.say(*recomputation.measured())
                finite.check(step, result, recorder)
                # A step that was skipped has changed nothing: what there is to save is from before it.
                if step == steps or (result.updated and _due(step, config.checkpoint.save_every, steps)):
                    recorder.say(*checkpoints.save(reached, keep_older=not result.updated))
                if validation and _due(step, config.training.eval_every, steps) and not stop.agreed():
                    loss = validation.nats_per_byte(stepper.evaluate(validation, validation.micro_batches))
                    recorder.validation(step, loss, validation)
                if stop.agreed():
                    recorder.say(*checkpoints.save(reached, keep_older=not result.updated))
                    break
                figures.start()
            if stop.name and done < steps:
                recorder.say(resume.stopped(stop.name, done, checkpoints.saved))
            recorder.say(f"run directory: {path}")
        if watchdog is not None:
            watchdog.close()
            dist.barrier()
        if checkpoints.failed:
            raise NotSaved(f"{checkpoints.failed}; make room and continue with checkpoint.resume=true")
    return 0


def _due(step: int, every: int, steps: int) -> bool:
    """Every so many steps, and at the end."""
    return step == steps or (every > 0 and step % every == 0)
