"""A network from a checkpoint, without optimizer or gradients, in any layout: what texts are generated with."""

from __future__ import annotations

from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.evaluate.generation import Network
from hcmegatron.model.execution import Execution
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.training import checkpoint, manifest
from hcmegatron.training.model import initialised_chunks, wrap_chunk
from hcmegatron.training.on_every_rank import NotDone
from megatron.core.process_groups_config import ProcessGroupCollection


def load_network(
    config: Config, groups: ProcessGroupCollection, path: Path, length: int, micro_batch: int
) -> Network:
    """This rank's part of the network of a checkpoint, ready for `generate`. Collective.

    Args:
        config: the checkpoint's, for the layout that is wanted here.
        length, micro_batch: see Network.

    Raises:
        ConfigError: the checkpoint is damaged, or cannot be read by every rank.
    """
    tokenizer = build_tokenizer(config.data.tokenizer)
    checkpoint.verify_files(path, manifest.read(path))
    bare = initialised_chunks(config, tokenizer.vocab_size, groups)
    # what needs no gradients has no buffers for them
    chunks = [wrap_chunk(chunk.requires_grad_(False), config, groups) for chunk in bare]
    try:
        checkpoint.load_weights(chunks, path)
    except NotDone as error:
        raise ConfigError(
            f"checkpoint {path} cannot be read: {error}; every rank has to see it whole"
        ) from None
    schedule = build_forward_backward(config, chunks, groups, Execution())
    network = Network(config, chunks, schedule, groups, tokenizer, length, micro_batch)
    network.warm_start()
    return network
