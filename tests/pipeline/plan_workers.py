"""What the rank of test_schedule_plan.py runs: one step of a plain MoE network, Megatron's overlapped way and ours."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from hcmegatron.config import check_config
from hcmegatron.config.schema import Config
from hcmegatron.model import specs
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import ConnectionGPT, unwrap
from hcmegatron.model.transformer_config import transformer_config
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import device, process_groups
from hcmegatron.platform.ranks import RankInfo, free_port
from hcmegatron.training.loss import forward_step
from hcmegatron.training.model import build_model
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.common.model_chunk_schedule_plan import TransformerModelChunkSchedulePlan
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel.utils import set_streams
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from tests.model.workers import VOCAB, S, batches
from tests.small_configs import small_config
from tools.profile_overlap import all_to_all_of_one_rank

COUNT = 4


@dataclass
class Compared:
    """Loss summed over tokens, and per name of the whole network the mean loss's gradient."""

    loss: float
    gradients: dict[str, torch.Tensor]


def compare() -> tuple[Compared, Compared, int]:
    """Megatron's, ours, and how many of ours ran overlapped."""
    torch.set_num_threads(1)
    config = small_config("residual", True)
    config.moe.router, config.moe.grouped = "softmax", False
    config.parallel.schedule, config.parallel.overlap = "dualpipev", True
    config.training.global_batch = COUNT * config.training.micro_batch
    config.training.threads = 1
    check_config(config)
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "test")
    made = [
        {name: value.to(device()) for name, value in batch.items() if name != "first_sample"}
        for batch in batches(COUNT, config.training.micro_batch)
    ]
    with process_groups(config, alone) as groups:
        chunks = build_model(config, VOCAB, groups)
        reference = _plain(config, groups, [unwrap(chunk) for chunk in chunks])
        # freed inputs would be the outputs of an all-to-all that hands on its input
        with all_to_all_of_one_rank():
            theirs = _by_plans(reference, made)
        ours, pairs = _by_runner(config, chunks, groups, made)
    return theirs, ours, pairs


def _whole(chunks: list[ConnectionGPT]) -> dict[str, torch.nn.Parameter]:
    """Parameters by their name in the whole network."""
    found, first = {}, 0
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            name = re.sub(r"(?<=layers\.)\d+", lambda match, first=first: str(int(match[0]) + first), name)
            found[name] = parameter
        first += len(chunk.decoder.layers)
    return found


def _plain(config: Config, groups, chunks: list[ConnectionGPT]) -> GPTModel:
    """Megatron's own model and layers over the same parts, with the same weights."""
    provider = specs.backend(config)
    around = specs.norm_spec(config.model)
    layers = [
        ModuleSpec(
            TransformerLayer,
            submodules=TransformerLayerSubmodules(
                input_layernorm=around,
                self_attention=specs._attention(config, provider),
                self_attn_bda=get_bias_dropout_add,
                pre_mlp_layernorm=around,
                mlp=specs._experts(config, provider) if layer else specs._dense(provider),
                mlp_bda=get_bias_dropout_add,
            ),
        )
        for layer in range(config.model.layers)
    ]
    model = GPTModel(
        config=transformer_config(config),
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=layers, layer_norm=around),
        vocab_size=VOCAB,
        max_sequence_length=S,
        position_embedding_type="rope",
        rotary_base=config.model.rope_theta,
        pg_collection=groups,
    ).to(device())
    values = _whole(chunks)
    own = dict(model.named_parameters())
    assert own.keys() == values.keys(), own.keys() ^ values.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(values[name])
    return model


def _by_plans(model: GPTModel, made: list[dict[str, torch.Tensor]]) -> Compared:
    """Every micro-batch's forward beside the backward of the one before."""
    set_streams()
    total, tokens = 0.0, sum(batch["labels"].numel() for batch in made)
    before = None
    for batch in [*made, None]:
        plan = None
        if batch is not None:
            plan = model.build_schedule_plan(
                batch["tokens"], batch["position_ids"], None, labels=batch["labels"]
            )
        gradient = None if before is None else torch.full_like(before[1], 1 / tokens)
        output = TransformerModelChunkSchedulePlan.run(
            plan, None if before is None else before[0], b_grad=gradient
        )
        if batch is not None:
            total += float(output.detach().sum())
            before = plan, output.detach()
    return Compared(total, {name: parameter.grad.cpu() for name, parameter in model.named_parameters()})


def _by_runner(config: Config, chunks: list, groups, made: list) -> tuple[Compared, int]:
    schedule = build_forward_backward(config, chunks, groups, Execution())
    for chunk in chunks:
        chunk.zero_grad_buffer()
    losses = schedule(
        forward_step_func=forward_step,
        data_iterator=[iter(made) for _ in chunks],
        model=chunks,
        num_microbatches=COUNT,
        seq_length=S,
        micro_batch_size=config.training.micro_batch,
    )
    gradients = {
        name: parameter.main_grad.cpu()
        for name, parameter in _whole([unwrap(chunk) for chunk in chunks]).items()
    }
    pairs = sum(action.overlapped is not None for action in schedule.record.actions)
    return Compared(sum(float(loss["loss"][0]) for loss in losses), gradients), pairs
