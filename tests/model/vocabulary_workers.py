"""What the ranks of a vocabulary test run: one step, and the gradients of what pads embedding and head."""

from __future__ import annotations

from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.distributed import megatron_groups
from tests.layouts import network
from tests.small_configs import VOCAB


def steps(configs: list[Config]) -> list[tuple[float, float, float, int]]:
    """Per configuration: loss, gradient norm, the largest gradient of padded entries, and how many these are."""
    with megatron_groups(configs[0]) as groups:
        return [_step(config, groups) for config in configs]


def _step(config: Config, groups: object) -> tuple[float, float, float, int]:
    chunks = []
    usual = network.wrap_chunk

    def noted(model, *args):
        chunks.append(usual(model, *args))
        return chunks[-1]

    network.wrap_chunk = noted
    try:
        outcome = network.one_step(config, groups)
    finally:
        network.wrap_chunk = usual
    largest, entries = 0.0, 0
    for chunk in chunks:
        model = unwrap(chunk)
        for weight in (model.embedding.word_embeddings.weight, model.output_layer.weight):
            first = groups.tp.rank() * len(weight)
            padding = weight.main_grad[max(0, VOCAB - first) :]
            entries += len(padding)
            largest = max(largest, float(padding.abs().max()) if len(padding) else 0.0)
    return outcome.loss, outcome.norm, largest, entries
