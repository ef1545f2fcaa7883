"""This rank's chunks: built, initialised, wrapped for precision and data parallelism."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from hcmegatron.config.schema import Config, distributed_optimizer
from hcmegatron.model.gpt import ConnectionGPT, build_chunk, stages, unwrap
from hcmegatron.model.initialise import initialise_weights
from hcmegatron.pipeline.configured_schedule import placement
from hcmegatron.pipeline.megatron_schedule import widen_messages
from hcmegatron.pipeline.tied_embeddings import embedding_groups
from hcmegatron.platform.distributed import device
from hcmegatron.training.as_residual import begin_as_residual
from hcmegatron.training.data_parallel import DataParallel
from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module, float16_to_fp32


def build_model(config: Config, tokens: int, groups: ProcessGroupCollection) -> list[DataParallel]:
    """The chunks of this pipeline rank, wrapped, in ascending order of their stages.

    Args:
        tokens: of the tokenizer.
    """
    return [wrap_chunk(chunk, config, groups) for chunk in initialised_chunks(config, tokens, groups)]


def initialised_chunks(config: Config, tokens: int, groups: ProcessGroupCollection) -> list[ConnectionGPT]:
    """The bare chunks of this pipeline rank."""
    where = placement(config.parallel)
    layers = stages(config.model.layers, where.model_stages)
    groups = embedding_groups(groups, where)
    chunks = []
    for index, stage in enumerate(where.stages_of(groups.pp.rank())):
        vp_stage = index if where.stages > where.ranks else None
        model = build_chunk(config, layers[where.model_stage(stage)], tokens, groups, vp_stage)
        initialise_weights(model.to(device()), config)
        if config.checkpoint.init_from is not None:
            begin_as_residual(model, config)
        if where.path_of(stage):
            model.mark_copy(where.path_of(stage))
        chunks.append(model)
    return chunks


def wrap_chunk(model: ConnectionGPT, config: Config, groups: ProcessGroupCollection) -> DataParallel:
    """Megatron's wrappers: 16-bit weights where asked for, and gradient buffers with data-parallel reduction."""
    parallel, megatron_config = config.parallel, model.config
    module = half(model) if config.training.dtype == "bf16" else model
    wrapped = DataParallel(
        megatron_config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=config.training.dtype != "fp64",
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            use_distributed_optimizer=distributed_optimizer(config),
            **_buckets(config),
        ),
        module,
        pg_collection=groups,
    )
    widen_messages([wrapped], model.decoder.message_width)
    wrapped.config.finalize_model_grads_func = finalize_model_grads
    if parallel.overlap_grad_reduce:
        wrapped.config.no_sync_func = wrapped.no_sync
    return wrapped


def _buckets(config: Config) -> dict[str, int]:
    """Gradients that are reduced together. Megatron has several buckets on the first pipeline rank alone; where a
    stage's copies on two ranks are summed buffer by buffer, each buffer is one on both, which places them alike."""
    return {"bucket_size": sys.maxsize} if len(placement(config.parallel).paths) > 1 else {}


def kernels_chosen(chunks: list[nn.Module]) -> list[str]:
    """In words, what this rank's connections run on and why. Plain residuals have no kernels and nothing to say."""
    connections = [connection for chunk in chunks for connection in unwrap(chunk).connections()]
    return sorted({f"kernels: {c.kernels.reason}" for c in connections if hasattr(c, "kernels")})


class HalfModule(Float16Module):
    """Megatron's, for any placement: fp32 leaves the chunk that has the head, wherever that is.

    Megatron's asks for the pipeline rank instead, and would send fp32 between the stages of a V.
    """

    def forward(self, *inputs: Any, fp32_output: bool = True, **kwargs: Any) -> Any:
        """The chunk's output, in fp32 where it is a loss or logits."""
        outputs = self.module(*inputs, **kwargs)
        return float16_to_fp32(outputs) if self.module.post_process and fp32_output else outputs


def half(model: ConnectionGPT) -> HalfModule:
    """bf16 weights, except connections and whatever is no weight, which stay as they are."""
    values = [tensor.detach().clone() for tensor in _not_cast(model)]
    module = HalfModule(model.config, model)
    # zip over the model again: buffers are new tensors after the cast
    for tensor, value in zip(_not_cast(model), values, strict=True):
        tensor.data = value
    return module


def _not_cast(model: ConnectionGPT) -> list[Tensor]:
    """Parameters of connections, and every buffer: what counts, accumulates or is compared needs its precision.

    A router's tokens per expert, for one, stop counting at 256 in bf16. Megatron itself restores its expert bias, at
    the first forward, which is after a checkpoint has been loaded into it.
    """
    connections = [parameter for connection in model.connections() for parameter in connection.parameters()]
    return [*connections, *model.buffers()]


def gather_parameters(chunks: list[nn.Module]) -> None:
    """Wait for the updated parameters of other data-parallel ranks, which may still be on their way. Collective.

    With parallel.overlap_param_gather they arrive during the next forward; whoever reads weights before that, such
    as a checkpoint, calls this first.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)
