"""What the ranks of a generation test run: a training that leaves a checkpoint, and texts from it in many layouts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import pack_rows
from hcmegatron.data.feed import Feed
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.evaluate.generation import generate
from hcmegatron.evaluate.sampling import GREEDY, Sampling
from hcmegatron.model.gpt import ConnectionGPT, unwrap
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import checkpoint, loss, manifest
from hcmegatron.training.from_checkpoint import configured
from hcmegatron.training.generation import load_network
from hcmegatron.training.model import build_model
from hcmegatron.training.run import train

DRAWN = Sampling(1.5, 0.9, 7)
PROMPTS = [list(b"line 12"), list(b"a"), list(b"ababab 4"), list(b"12: ab"), list(b"\nline 999: ")]


def trained(config: Config) -> None:
    """Train."""
    assert train(config, discover_ranks(os.environ)) == 0


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
