"""What the ranks of a generation test run: a training that leaves a checkpoint, and texts from it in many layouts."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hcmegatron.cli import main
from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import pack_rows
from hcmegatron.data.feed import Feed
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.evaluate.generation import generate
from hcmegatron.evaluate.sampling import GREEDY, Sampling
from hcmegatron.model.gpt import ConnectionGPT, unwrap
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import checkpoint, loss, manifest, run
from hcmegatron.training.from_checkpoint import configured
from hcmegatron.training.generation import load_network
from hcmegatron.training.model import build_model
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from tests.training.workers import state_hash

DRAWN = Sampling(1.5, 0.9, 7)
PROMPTS = [list(b"line 12"), list(b"a"), list(b"\nline 999: ")]


def trained(config: Config) -> None:
    """Train."""
    assert run.train(config, discover_ranks(os.environ)) == 0


@dataclass
class Said:
    """Of one layout: tokens of every prompt, greedy and drawn; the logits that this rank had behind the prompts."""

    greedy: list[list[int]]
    drawn: list[list[int]]
    logits: dict[int, np.ndarray]


def said(path: Path, layouts: list[list[str]], tokens: int) -> list[Said]:
    """What a checkpoint's network says in each layout."""
    saved, found = manifest.read(path), []
    for overrides in layouts:
        config, _ = configured(saved, path, overrides, dist.get_world_size())
        with megatron_groups(config) as groups:
            network = load_network(config, groups, path, config.data.sequence_length, 2)
            texts = [
                [text.tokens for text in generate(network, PROMPTS, tokens, how)] for how in (GREEDY, DRAWN)
            ]
            found.append(Said(*texts, network.logits(PROMPTS)))
    return found


def training_forward(path: Path) -> list[np.ndarray]:
    """The logits behind the prompts of a forward in training, gradients and all: those that the loss is of."""
    saved, kept = manifest.read(path), []
    config, _ = configured(saved, path, [], 1)
    usual = ConnectionGPT.compute_language_model_loss

    def watched(self: ConnectionGPT, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        kept.append(logits.detach().transpose(0, 1).clone())
        return usual(self, labels, logits)

    end, length = ByteTokenizer.end_of_document, config.data.sequence_length
    with megatron_groups(config) as groups:
        (chunk,) = build_model(config, ByteTokenizer.vocab_size, groups)
        checkpoint.load_weights([chunk], path)
        chunk.train()
        found = []
        for first in range(0, len(PROMPTS), 2):
            prompts = PROMPTS[first : first + 2]
            rows = np.full((2, length + 1), end)
            for row, prompt in zip(rows, prompts, strict=False):
                row[: len(prompt)] = prompt
            batch = pack_rows(rows, end) | {"first_sample": 0}
            ConnectionGPT.compute_language_model_loss = watched
            feed = Feed(lambda _, batch=batch: batch, config.model.document_mask)
            output, of_loss = loss.forward_step(feed, chunk)
            of_loss(output)[0].backward()
            ConnectionGPT.compute_language_model_loss = usual
            for row, prompt in enumerate(prompts):
                found.append(kept[-1][row, len(prompt) - 1, : ByteTokenizer.vocab_size].numpy())
        assert unwrap(chunk).training and all(p.main_grad.abs().sum() > 0 for p in chunk.parameters())
    return found


def watched(config: Config) -> tuple[dict[int, str], int, list[dict]]:
    """Train: by saved step a hash of weights and optimizer state; how many texts were generated; and, of rank 0, the
    lines of metrics.jsonl. No text changes a random state."""
    hashes: dict[int, str] = {}
    texts = []
    usual_save, usual_text = checkpoint.Checkpoints.save, run.sample_text

    def noted(self: checkpoint.Checkpoints, at: manifest.Progress, **options: bool) -> list[str]:
        hashes[at.step] = state_hash(self)
        return usual_save(self, at, **options)

    def sample_text(*arguments: object) -> str | None:
        before = random_states()
        texts.append(usual_text(*arguments))
        assert all(map(torch.equal, before, random_states()))
        return texts[-1]

    checkpoint.Checkpoints.save, run.sample_text = noted, sample_text
    trained(config)
    if os.environ["RANK"] != "0":
        return hashes, len(texts), []
    lines = Path(config.run.dir, "metrics.jsonl").read_text().splitlines()
    return hashes, len(texts), [json.loads(line) for line in lines]


def random_states() -> list[torch.Tensor]:
    """Of torch, and of Megatron's regions."""
    return [torch.get_rng_state(), *get_cuda_rng_tracker().get_states().values()]


def commands(calls: list[list[str]]) -> list[tuple[int, str, str]]:
    """Run `hcmegatron` with each of these words: status, standard output and standard error. In ranks' processes, for
    it changes its own."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    found = []
    for words in calls:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            kept = os.dup(1), os.dup(2)
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            try:
                status = main(words)
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os.dup2(kept[0], 1), os.dup2(kept[1], 2)
            texts = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
            found.append((status, *texts))
    return found
