"""What the rank of test_layers.py does: builds small networks and reads what they are made of."""

from __future__ import annotations

import torch

from hcmegatron.config.schema import Config
from hcmegatron.connections.build import parameter_of
from hcmegatron.model.gpt import build_chunk
from hcmegatron.planner.stages import stages
from hcmegatron.platform.distributed import megatron_groups

Shapes = dict[str, tuple[int, tuple[int, ...]]]  # parameter -> (numbers, shape without an axis of experts)


def built(configs: list[Config]) -> list[tuple[Shapes, set[str], list[int]]]:
    """Per network: its parameters beside those of connections, and those of connections, by name; and the numbers in
    all of them, in order."""
    found = []
    with megatron_groups(configs[0]) as groups:
        for config in configs:
            with torch.device("meta"):
                model = build_chunk(
                    config, stages(config.model.layers, 1)[0], config.model.vocab_size, groups
                )
            parameters = dict(model.named_parameters())
            theirs = {name for name, parameter in parameters.items() if parameter_of(parameter)}
            shapes = {
                name: (parameter.numel(), tuple(parameter.shape[-2:]))
                for name, parameter in parameters.items()
                if name not in theirs
            }
            inside = {id(p) for c in model.connections() for p in c.parameters()}
            assert theirs == {name for name, parameter in parameters.items() if id(parameter) in inside}
            found.append((shapes, theirs, [parameter.numel() for parameter in parameters.values()]))
    return found
