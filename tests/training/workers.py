"""What the ranks of a training test run: whole runs, some of which are cut off."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import Batches
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import checkpoint, checkpoint_state, checkpoint_writer, recorder, shard_files, step
from hcmegatron.training.checkpoint_writer import CheckpointWriter
from hcmegatron.training.manifest import NotSaved
from hcmegatron.training.run import train


def run(config: Config, kill_at: int | None = None, kill_in_save: int | None = None) -> dict[int, str]:
    """Train; per saved step, a hash of weights and optimizer state.

    Args:
        kill_at: rank 1 is killed (SIGKILL) when it begins this 1-based step, and the checkpoint before is complete.
        kill_in_save: rank 0 is killed when the checkpoint of this step is written and not yet complete.
    """
    saved: dict[int, str] = {}
    usual_step, usual_save = step.Stepper.step, checkpoint.Checkpoints.save
    usual_complete = CheckpointWriter._complete

    saving: list[checkpoint.Checkpoints] = []

    def maybe_killed(self, seen):
        if kill_at == seen // config.training.global_batch + 1 and int(os.environ["RANK"]) == 1:
            for each in saving:
                each.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        return usual_step(self, seen)

    def noted(self, at, **options):
        saving[:] = [self]
        said = usual_save(self, at, **options)
        saved[at.step] = state_hash(self)
        return said

    def cut_off(self, partial, path, complete):
        if kill_in_save == complete.step:
            os.kill(os.getpid(), signal.SIGKILL)
        usual_complete(self, partial, path, complete)

    step.Stepper.step, checkpoint.Checkpoints.save = maybe_killed, noted
    CheckpointWriter._complete = cut_off
    assert train(config, discover_ranks(os.environ)) == 0
    return saved


def unseen(config: Config) -> None:
    """Resume, where rank 1 does not see the checkpoint's files when they are to be loaded."""
    if int(os.environ["RANK"]) == 1:

        def missing(path: Path) -> None:
            raise FileNotFoundError(2, "No such file or directory", str(path))

        shard_files.shapes = missing
    train(config, discover_ranks(os.environ))


def state_hash(checkpoints: checkpoint.Checkpoints) -> str:
    """Of every parameter, buffer and optimizer tensor of this rank."""
    digest = hashlib.sha256()
    tensors = [t for chunk in checkpoints.chunks for t in chunk.state_dict().values() if torch.is_tensor(t)]
    for group in checkpoints.optimizer.param_groups:
        for parameter in group["params"]:
            state = checkpoints.optimizer.chained_optimizers
            for optimizer in state:
                values = optimizer.optimizer.state.get(parameter, {})
                tensors += [values[name] for name in sorted(values) if torch.is_tensor(values[name])]
    assert len(tensors) > 20
    for tensor in tensors:
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def saved_again(config: Config, folder: Path) -> dict[str, list]:
    """Start from a checkpoint as `config` says and save it at once, untrained, into `folder`.

    Returns:
        Hyper-parameters of every group, as they were after loading; names of 16-bit weights that are not their
        optimizer's weights, rounded.
    """
    found: dict[str, list] = {}
    usual = checkpoint.Checkpoints.load

    class Done(Exception):
        pass

    def and_save(self, start):
        usual(self, start)
        keys = ("betas", "eps", "lr_mult", "wd_mult")
        groups = [group for group in self.optimizer.param_groups if group["params"]]
        found["groups"] = sorted({tuple(str(group[key]) for key in keys) for group in groups})
        found["rounded otherwise"] = [
            parameter.shape
            for parameter, held in checkpoint_state._updated(self.optimizer).items()
            if not torch.equal(
                parameter.detach().view(-1)[held.start : held.start + held.weights.numel()],
                held.weights.detach().view(-1).to(parameter.dtype),
            )
        ]
        self.writer.folder, self.saved = folder, None
        assert self.save(start.position) + self.finish() == [] and self.saved == start.position
        raise Done

    checkpoint.Checkpoints.load = and_save
    try:
        train(config, discover_ranks(os.environ))
    except Done:
        dist.destroy_process_group() if dist.is_initialized() else None
    return found


def content(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Dtype, shape and hash of a checkpoint's whole tensors, without the vocabulary's padding."""
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {
        key: torch.full(tuple(entry.size), float("nan"), dtype=entry.properties.dtype)
        for key, entry in metadata.items()
    }
    dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    for key in tensors:
        if key.endswith(("word_embeddings.weight", "output_layer.weight")):
            tensors[key] = tensors[key][: ByteTokenizer.vocab_size]
    return {
        key: (
            str(tensor.dtype),
            tuple(tensor.shape),
            hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
        )
        for key, tensor in tensors.items()
    }


def samples(config: Config) -> list[int]:
    """Train; the samples that this rank trains on, in order."""
    seen: list[int] = []
    usual_window, usual_rehearse = Batches.window, step.Stepper.rehearse

    def window(self, sample):
        seen.append(sample)
        return usual_window(self, sample)

    def rehearse(self):
        said = usual_rehearse(self)
        seen.clear()
        self.batches._packed = (None, {})  # so that the first step reads for itself
        return said

    Batches.window, step.Stepper.rehearse = window, rehearse
    train(config, discover_ranks(os.environ))
    return seen


def full_disk(config: Config, at: list[int]) -> str:
    """Train where rank 1 can write no file beyond 2,000 bytes while it saves at these steps; how the run ended."""
    usual = CheckpointWriter.write

    def limited(self, share, position, updates, keep_older):
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        if position.step in at and int(os.environ["RANK"]) == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1]))
        try:
            return usual(self, share, position, updates, keep_older)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    CheckpointWriter.write = limited
    try:
        train(config, discover_ranks(os.environ))
        return ""
    except NotSaved as error:
        return str(error)


def mistaken_save(config: Config) -> None:
    """Train where rank 1's part of a save calls something wrongly."""
    usual = checkpoint_writer.to_save

    def wrong(chunks, optimizer):
        if int(os.environ["RANK"]) == 1:
            None.missing  # noqa: B018
        return usual(chunks, optimizer)

    checkpoint_writer.to_save = wrong
    train(config, discover_ranks(os.environ))


def unwritable_metrics(config: Config) -> None:
    """Train where rank 0 cannot open metrics.jsonl."""

    def full(path, first_step):
        raise OSError(28, "No space left on device", str(path))

    recorder.drop_later_metrics = full
    train(config, discover_ranks(os.environ))


def failing_validation(config: Config) -> None:
    """Train with a validation that cannot be."""

    def evaluate(self, make, micro_batches):
        raise RuntimeError("no validation")

    step.Stepper.evaluate = evaluate
    train(config, discover_ranks(os.environ))


def poisoned(config: Config, bad_steps: list[int], stop_at: int | None = None) -> dict[str, list]:
    """Train with gradients that are not finite at these 1-based steps; per step, whether weights moved.

    stop_at: the run has been told to stop when this step begins.
    """
    moved: list[bool] = []
    usual_gradients, usual_step = step.Stepper.gradients, step.Stepper.step

    def gradients(self, seen):
        sums, waited = usual_gradients(self, seen)
        if (
            seen // config.training.global_batch + 1 in bad_steps
            and self.chunks[0].training
            and getattr(self, "stepping", False)
        ):
            next(iter(self.chunks[0].parameters())).main_grad.fill_(float("nan"))
        return sums, waited

    def watched(self, seen):
        before = [p.detach().clone() for chunk in self.chunks for p in chunk.parameters()]
        biases = self._router_biases()
        self.stepping = True
        result = usual_step(self, seen)
        if stop_at == seen // config.training.global_batch + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        after = [p for chunk in self.chunks for p in chunk.parameters()]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        same = same and all(torch.equal(a, b) for a, b in zip(biases, self._router_biases(), strict=True))
        moved.append(not same)
        return result

    step.Stepper.gradients, step.Stepper.step = gradients, watched
    try:
        train(config, discover_ranks(os.environ))
        ended = ""
    except RuntimeError as error:
        ended = str(error)
    return {"moved": moved, "ended": [ended]}
