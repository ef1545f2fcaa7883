"""What the ranks of a training test run: whole runs, some of which are cut off."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import torch

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import discover
from hcmegatron.training import checkpoint, step
from hcmegatron.training.run import train


def tiny(text: Path, directory: Path, **sections: dict) -> Config:
    """mHC with MLA and MoE, dropout and a MoE router with biases: everything that a checkpoint has to hold."""
    config = Config()
    m = config.model
    m.layers, m.hidden_size, m.heads, m.head_dim, m.ffn_hidden_size = 2, 16, 2, 8, 24
    m.attention, m.hidden_dropout, m.vocab_multiple = "mla", 0.1, 1
    config.mla.kv_rank, config.mla.rope_dim = 8, 4
    e = config.moe
    e.experts, e.top_k, e.ffn_hidden_size, e.shared_experts, e.first_dense = 4, 2, 12, 1, 1
    config.connection.n = 2
    config.parallel.pipeline = 2
    config.data.paths, config.data.sequence_length, config.data.holdout = [str(text)], 32, 0.1
    t = config.training
    t.steps, t.global_batch, t.micro_batch, t.eval_every, t.eval_batches = 4, 2, 1, 0, 1
    config.optimizer.warmup_steps = 2
    config.checkpoint.save_every = 2
    config.run.dir, config.run.tensorboard, config.run.peak_tflops = str(directory), False, 0.01
    for section, values in sections.items():
        for key, value in values.items():
            setattr(getattr(config, section), key, value)
    return config


def run(config: Config, kill_at: int | None = None, kill_in_save: int | None = None) -> dict[int, str]:
    """Train; per saved step, a hash of weights and optimizer state.

    Args:
        kill_at: rank 1 is killed (SIGKILL) when it begins this 1-based step.
        kill_in_save: rank 0 is killed when the checkpoint of this step is written and not yet complete.
    """
    saved: dict[int, str] = {}
    usual_step, usual_save = step.Stepper.step, checkpoint.Checkpoints.save
    usual_manifest = checkpoint.Checkpoints._manifest

    def maybe_killed(self, index):
        if kill_at == index + 1 and int(os.environ["RANK"]) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual_step(self, index)

    def noted(self, index):
        path = usual_save(self, index)
        saved[index] = state_hash(self)
        return path

    def cut_off(self, path, index):
        if kill_in_save == index:
            os.kill(os.getpid(), signal.SIGKILL)
        usual_manifest(self, path, index)

    step.Stepper.step, checkpoint.Checkpoints.save = maybe_killed, noted
    checkpoint.Checkpoints._manifest = cut_off
    assert train(config, discover(os.environ)) == 0
    return saved


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


def poisoned(config: Config, bad_steps: list[int]) -> dict[str, list]:
    """Train with gradients that are not finite at these 1-based steps; per step, whether weights moved."""
    moved: list[bool] = []
    usual_gradients, usual_step = step.Stepper.gradients, step.Stepper.step

    def gradients(self, index):
        sums, waited = usual_gradients(self, index)
        if index + 1 in bad_steps and self.chunks[0].training and getattr(self, "stepping", False):
            next(iter(self.chunks[0].parameters())).main_grad.fill_(float("nan"))
        return sums, waited

    def watched(self, index):
        before = [p.detach().clone() for chunk in self.chunks for p in chunk.parameters()]
        biases = self._router_biases()
        self.stepping = True
        result = usual_step(self, index)
        after = [p for chunk in self.chunks for p in chunk.parameters()]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        same = same and all(torch.equal(a, b) for a, b in zip(biases, self._router_biases(), strict=True))
        moved.append(not same)
        return result

    step.Stepper.gradients, step.Stepper.step = gradients, watched
    try:
        train(config, discover(os.environ))
        ended = ""
    except RuntimeError as error:
        ended = str(error)
    return {"moved": moved, "ended": [ended]}
