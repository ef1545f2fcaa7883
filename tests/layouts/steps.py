"""What the ranks of a layout do: one step of every network of a row."""

from __future__ import annotations

import sys

from hcmegatron.config.schema import Config
from hcmegatron.model import gpt
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.training import optimizer
from tests.layouts.network import Outcome, one_step


def steps(configs: list[Config], fault: str | None = None) -> list[Outcome]:
    """One step of each, all with the layout of the first; `fault` names one of FAULTS."""
    with megatron_groups(configs[0]) as groups:
        planted = FAULTS[fault]() if fault else None
        return [one_step(config, groups, planted) for config in configs]


def unmarked_for_sequence_parallel():
    def fault(chunks: list[gpt.ConnectionGPT]) -> None:
        for chunk in chunks:
            for connection in chunk.connections():
                for parameter in connection.parameters():
                    parameter.sequence_parallel = False

    return fault


def connections_in_bf16():
    def fault(chunks: list[gpt.ConnectionGPT]) -> None:
        for chunk in chunks:
            for connection in chunk.connections():
                for parameter in connection.parameters():
                    parameter.data = parameter.data.bfloat16().float()

    return fault


def norms_unmarked():
    def fault(chunks: list[gpt.ConnectionGPT]) -> None:
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                if "layernorm" in name:
                    parameter.sequence_parallel = False

    return fault


def experts_taken_for_replicated():
    def fault(chunks: list[gpt.ConnectionGPT]) -> None:
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                if ".experts." in name:
                    parameter.allreduce = True

    return fault


def split_weights_unmarked():
    def fault(chunks: list[gpt.ConnectionGPT]) -> None:
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.tensor_model_parallel = False

    return fault


def decay_by_dimension():
    """Megatron's own rule for weight decay, which decays A_r and b_res and spares W_m."""
    optimizer.decays = lambda parameter: parameter.dim() > 1


def tied_embedding_not_summed():
    # the package has a function of the module's name
    module = sys.modules["megatron.core.distributed.finalize_model_grads"]
    assert module._allreduce_word_embedding_grads
    module._allreduce_word_embedding_grads = lambda *_, **__: None


FAULTS = {
    fault.__name__: fault
    for fault in (
        unmarked_for_sequence_parallel,
        norms_unmarked,
        split_weights_unmarked,
        experts_taken_for_replicated,
        connections_in_bf16,
        decay_by_dimension,
        tied_embedding_not_summed,
    )
}
