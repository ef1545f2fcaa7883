"""The micro-batches of a bad step one by one through the whole network in this process: is it the data, or a number?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import pack_rows
from hcmegatron.data.feed import Feed
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.distributed import device, process_groups
from hcmegatron.platform.ranks import RankInfo, free_port
from hcmegatron.training import loss
from hcmegatron.training.checkpoint import load_weights
from hcmegatron.training.model import build_model
from hcmegatron.training.on_every_rank import NotDone
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

# Classes of parameters by what their names have, the first that fits.
CLASSES = {
    "connection.": "connections",
    "norm": "norms",
    "word_embeddings": "embedding",
    "output_layer": "head",
    "self_attention": "attention",
    "router": "router",
    "shared_experts": "shared experts",
    "experts": "experts",
    "mlp": "MLP",
}


def replay(
    config: Config,
    samples: np.ndarray,
    tokens: np.ndarray,
    checkpoint: Path | None,
    of_residual: bool = False,
) -> Iterator[str]:
    """Run micro-batches forward and backward, each by itself; nothing is updated.

    Args:
        config: for one process.
        samples: [B], their numbers in the whole training run, by which dropout draws its masks.
        tokens: [B, S + 1].
        checkpoint: whose weights are used; None: those that the configuration initialises.
        of_residual: it is of residuals, which the connections over its weights begin as.

    Yields:
        Lines for the user: of the weights where they are not finite, then of every micro-batch.

    Raises:
        ConfigError: the checkpoint is of another network.
    """
    tokenizer = build_tokenizer(config.data.tokenizer)
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "replay")
    with process_groups(config, alone) as groups:
        (chunk,) = build_model(config, tokenizer.vocab_size, groups)
        if checkpoint is not None:
            _load(chunk, checkpoint, of_residual)
        odd = [name for name, weights in unwrap(chunk).named_parameters() if not finite(weights)]
        if odd:
            yield f"weights that are not finite: {', '.join(odd[:8])}{' ...' if odd[8:] else ''}"
        if config.moe.experts:
            MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1, device=device()))
        size = config.training.micro_batch
        for first in range(0, len(samples), size):
            part = slice(first, first + size)
            batch = pack_rows(tokens[part], tokenizer.end_of_document) | {"first_sample": int(samples[first])}
            where = f"micro-batch {first // size}, sequences {samples[part][0]} to {samples[part][-1]}"
            yield f"{where}: {_one(chunk, batch, config.model.document_mask)}"


def finite(tensor: Tensor) -> bool:
    """Whether all of its numbers are."""
    return bool(torch.isfinite(tensor).all())


def kind_of(parameter: str) -> str:
    """The class of a parameter of this name."""
    return next((kind for part, kind in CLASSES.items() if part in parameter), "others")


def _load(chunk: nn.Module, checkpoint: Path, of_residual: bool) -> None:
    """Fill the network's weights; ConfigError where they are not those of the checkpoint."""
    try:
        load_weights([chunk], checkpoint, of_residual)
    except NotDone as error:
        raise ConfigError(
            f"checkpoint {checkpoint} does not fit the network of the kept step: {error}; name one of the same network "
            "with --checkpoint=DIR"
        ) from None


def _one(chunk: nn.Module, batch: dict[str, Any], masked: bool) -> str:
    """What one micro-batch comes to, in words."""
    chunk.train()
    chunk.zero_grad_buffer()
    feed = Feed(lambda _: batch, masked, unused=() if masked else {"document_ids"})
    model = unwrap(chunk)
    with first_not_finite(model) as found:
        output, of_loss = loss.forward_step(feed, chunk)
    total, weight, _ = of_loss(output)
    total.backward()
    squares: dict[str, float] = defaultdict(float)
    odd = []
    for name, parameter in model.named_parameters():
        squares[kind_of(name)] += float((parameter.main_grad.double() / weight).square().sum())
        if not finite(parameter.main_grad):
            odd.append(name)
    norms = "  ".join(f"{kind} {math.sqrt(square):.4g}" for kind, square in sorted(squares.items()))
    said = f"loss {float(total.detach() / weight):.6g}, gradient norm {math.sqrt(sum(squares.values())):.4g} ({norms})"
    if found:
        said += f"; first output that is not finite: {found[0]}"
    if odd:
        said += f"; gradients that are not finite: {len(odd)}, in backward first of {odd[-1]}"
    return said


@contextmanager
def first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Within it, modules of `model` whose output is not finite are noted, in the order in which they end."""
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        if all(map(finite, _numbers(output))):
            return
        begun = "finite" if all(map(finite, _numbers(inputs))) else "inputs that are not finite either"
        found.append(f"{name} ({type(module).__name__}), of {begun}{' inputs' if begun == 'finite' else ''}")

    hooks = [
        module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _numbers(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a module's inputs or outputs."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
