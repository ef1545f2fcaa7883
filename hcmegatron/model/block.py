"""The layers of one chunk: expand where the embedding enters, contract before the final norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.config.schema import Connection
from hcmegatron.connections import accounting
from hcmegatron.connections.expand_contract import expand
from hcmegatron.model.execution import Execution
from hcmegatron.model.layer import AroundSubLayer
from hcmegatron.model.message import message_width, pack, unpack
from hcmegatron.model.nodes import ActivationPolicy, MicroBatch, State
from hcmegatron.platform.megatron import replace_prefix_for_sharding, sharded_state_dict_default
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import make_viewless_tensor


@dataclass
class BlockSubmodules:
    """What a block is built of (specs.block_submodules).

    Attributes:
        connection: its kind and settings, for the ends of the stack.
        layers: specs of this chunk's layers.
        contract, final_norm: of the last chunk alone: makes C of n*C, and the norm before the head.
    """

    connection: Connection
    layers: list[ModuleSpec]
    contract: Callable[[], nn.Module]
    final_norm: ModuleSpec


class ConnectionBlock(MegatronModule):
    """Takes the place of Megatron's TransformerBlock inside GPTModel.

    Between chunks the streams travel as [s, b, n*C] (C for FC), which is what Megatron's schedules see, with what
    message.py puts behind them.

    Args:
        pre_process, post_process: whether the embedding enters and the final norm leaves here.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: BlockSubmodules,
        pre_process: bool,
        post_process: bool,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        self.pre_process, self.post_process = pre_process, post_process
        self.tp_group = pg_collection.tp
        # FC and residual are C wide between sub-layers; the connection itself views C as fractions.
        self.streams = accounting.streams(submodules.connection)
        self.message_width = message_width(
            submodules.connection, config.hidden_size, config.pipeline_dtype or config.params_dtype
        )
        self.input_tensor: Tensor | None = None
        self.layers = nn.ModuleList(
            build_module(layer, config=config, pg_collection=pg_collection) for layer in submodules.layers
        )
        for sublayer, following in pairwise(self.sublayers):
            sublayer.following = following.connection
        if post_process:
            self.contract = submodules.contract()
            self.final_layernorm = build_module(
                submodules.final_norm,
                config=config,
                hidden_size=config.hidden_size,
                eps=config.layernorm_epsilon,
            )

    def set_input_tensor(self, input_tensor: Tensor) -> None:
        """What the previous pipeline stage sent: [s, b, message_width]."""
        self.input_tensor = input_tensor

    def streams_in(self, hidden_states: Tensor | None) -> State:
        """The chunk's first streams [s, b, n, C], from the embedding [s, b, C] or the tensor that was received; from
        there also the pre of a single-pass kind."""
        if self.pre_process:
            return (expand(hidden_states, self.streams),)
        assert self.input_tensor is not None, "a later pipeline stage needs set_input_tensor before forward"
        received = make_viewless_tensor(inp=self.input_tensor, requires_grad=True, keep_graph=True)
        return unpack(received, self.streams, self.config.hidden_size)

    def streams_out(self, state: State) -> Tensor:
        """What goes on: normed [s, b, C] to the head, or a message [s, b, width] to the next stage."""
        if self.post_process:
            return self.final_layernorm(self.contract(*state))
        # Megatron frees what it has sent, and refuses to free a view.
        return make_viewless_tensor(inp=pack(*state), requires_grad=True, keep_graph=True)

    @property
    def sublayers(self) -> list[AroundSubLayer]:
        """The sub-layers of this chunk, in order."""
        return [sublayer for layer in self.layers for sublayer in layer.sublayers]

    def forward(
        self,
        hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None = None,
        first_sample: int | None = None,
        execution: Execution | None = None,
        **unused: Any,
    ) -> Tensor:
        """The chunk's forward, called by GPTModel.

        Args:
            first_sample: see MicroBatch.
            execution: how the layers' nodes are run; None: plainly.
        """
        given = [name for name, value in unused.items() if value is not None]
        assert not given, f"ConnectionBlock does not take {given}"
        execution = execution or Execution()
        activation_policy = (
            execution.activation_policy(len(self.sublayers))
            if torch.is_grad_enabled()
            else ActivationPolicy()
        )
        micro_batch = MicroBatch(attention_mask, rotary_pos_emb, activation_policy, first_sample)
        return self.streams_out(execution.run(self.layers, self.streams_in(hidden_states), micro_batch))

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Checkpoint keys with global layer numbers, so that they depend neither on layout nor on schedule."""
        assert not sharded_offsets
        state: dict[str, Any] = {}
        for index, layer in enumerate(self.layers):
            local, stored = f"{prefix}layers.{index}.", f"{prefix}layers.{layer.layer_number - 1}."
            of_layer = layer.sharded_state_dict(local, (), metadata)
            replace_prefix_for_sharding(of_layer, local, stored)
            state |= of_layer
        for name, module in self.named_children():
            if module is not self.layers:
                state |= sharded_state_dict_default(
                    module, f"{prefix}{name}.", (), metadata, tp_group=self.tp_group
                )
        return state
