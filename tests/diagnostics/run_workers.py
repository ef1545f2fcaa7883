"""Runs whose losses, or connections, are made to be odd."""

from __future__ import annotations

import os
from dataclasses import replace
from unittest import mock

import torch

from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import diagnostics_files, step
from hcmegatron.training.observer import Observer
from hcmegatron.training.run import train


class Planted(Observer):
    """Layer 2's attention has a residual map with a row sum of 3000 from the start."""

    def __init__(self, run: object) -> None:
        self.run = run

    def on_start(self) -> None:
        for chunk in self.run.chunks:
            for layer in unwrap(chunk).decoder.layers:
                if layer.layer_number == 2:
                    with torch.no_grad():
                        layer.attention_connection.A_r[0, 0] = 3000.0


def planted(config: Config) -> None:
    """Train with it."""
    assert train(config, discover_ranks(os.environ), observers=[Planted]) == 0


def spiking(config: Config, at: list[int]) -> None:
    """Train; the losses of these 1-based steps are said to be 50, and the gradients of layer 1's mlp are 100 times what
    they were."""
    usual = step.Stepper.update

    def update(self, mean):
        self.count = getattr(self, "count", 0) + 1
        if self.count not in at:
            return usual(self, mean)
        for chunk in self.chunks:
            for layer in unwrap(chunk).decoder.layers:
                if layer.layer_number == 1:
                    for parameter in layer.mlp.parameters():
                        parameter.main_grad.mul_(100)
        return usual(self, 50.0)

    usual_step = step.Stepper.step

    def stepped(self, seen):
        result = usual_step(self, seen)
        return replace(result, loss=50.0) if self.count in at else result

    step.Stepper.update, step.Stepper.step = update, stepped
    assert train(config, discover_ranks(os.environ)) == 0


def full_disk(config: Config) -> None:
    """Train where no arrays can be written."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with mock.patch.object(diagnostics_files, "write_arrays", full):
        assert train(config, discover_ranks(os.environ)) == 0
