"""The transformer layer with a connection around each of its two sub-layers, as nodes.

Dimensions: s sequence, b micro-batch size, n streams, C hidden size. Streams H are [s, b, n, C].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from hcmegatron.connections.connection import Coefficients, Connection
from hcmegatron.model.dropout import Dropout
from hcmegatron.model.nodes import Lane, MicroBatch, Node, State
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import BaseTransformerLayer


@dataclass
class LayerSubmodules:
    """Specs of a layer's parts. A norm left out is the identity: pre-norm networks have no output norms."""

    attention_connection: Callable[[], Connection]
    self_attention: ModuleSpec
    mlp_connection: Callable[[], Connection]
    mlp: ModuleSpec
    input_layernorm: ModuleSpec | type = IdentityOp
    attention_output_layernorm: ModuleSpec | type = IdentityOp
    pre_mlp_layernorm: ModuleSpec | type = IdentityOp
    mlp_output_layernorm: ModuleSpec | type = IdentityOp


class AroundSubLayer:
    """Norm and connection around one sub-layer T: nodes.SubLayer. The modules belong to the layer.

    Args:
        dropout: of T's output.

    Attributes:
        following: the next sub-layer's connection in this chunk, whose projection `write` computes where kernels fold.
    """

    def __init__(
        self,
        connection: Connection,
        input_norm: nn.Module,
        output_norm: nn.Module,
        dropout: Dropout,
    ) -> None:
        self.connection, self.input_norm, self.output_norm = connection, input_norm, output_norm
        self.dropout = dropout
        self.single_pass = connection.single_pass
        self.following: Connection | None = None

    def read(self, streams: Tensor, *projection: Tensor) -> tuple[Tensor, Coefficients]:
        """[s, b, n, C] -> T's input [s, b, C] and the coefficients."""
        await_parameters(self.connection)
        mix: tuple[Tensor, ...] = ()
        if self.single_pass:
            given, *projection = projection or (self.connection.first_mix(streams),)
            mix = (given,)
        x, coefficients = self.connection.read(streams, projection or None, *mix)
        used = (*mix, *coefficients[len(mix) :])  # the pre that x was read with
        for hook in self.connection._forward_hooks.values():  # as calling it would: see await_parameters
            hook(self.connection, (streams,), (x, used))
        return self.input_norm(x), coefficients

    def write(
        self,
        streams: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        first_sample: int | None = None,
    ) -> State:
        """T's output y [s, b, C] into the streams: [s, b, n, C], and the next read's mix and projection."""
        y = self.output_norm(y)
        self.dropout.begin(first_sample, self.connection.training)
        written = (streams, y, coefficients, bias, self.dropout.probability)
        mix = coefficients[:1] if self.single_pass else ()
        if self.following is None:
            return (self.connection.write(*written), *mix)
        await_parameters(self.following)
        streams, projection = self.connection.write_and_project(self.following, *written)
        return (streams, *mix, *(projection or ()))


def await_parameters(module: nn.Module) -> None:
    """What calling the module would begin with: waiting for parameters that other data-parallel ranks have updated
    and that are still on their way (parallel.overlap_param_gather). Connections are read and written, not called."""
    for hook in module._forward_pre_hooks.values():
        hook(module, ())


class ConnectionLayer(MegatronModule, BaseTransformerLayer):
    """Attention, then an MLP or a mixture of experts, each as `write(H, T(read(H)))`.

    Args:
        global_layer: 0-based number in the whole network. It replaces the number that Megatron derives from a
            round-robin placement, so that any placement of layers on ranks is possible.
        seed: training.seed.

    Attributes:
        nodes: attention, mlp in a dense layer; attention, route, dispatch, experts, combine, merge in a MoE layer.
        sublayers: what surrounds attention and what surrounds the MLP or the experts.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: LayerSubmodules,
        global_layer: int,
        seed: int,
        pg_collection: ProcessGroupCollection,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = global_layer + 1

        def norm(spec: ModuleSpec | type) -> Any:
            return build_module(
                spec, config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon
            )

        self.attention_connection = submodules.attention_connection()
        self.input_layernorm = norm(submodules.input_layernorm)
        self.self_attention = build_module(
            submodules.self_attention,
            config=config,
            layer_number=self.layer_number,
            pg_collection=pg_collection,
        )
        self.attention_output_layernorm = norm(submodules.attention_output_layernorm)

        self.mlp_connection = submodules.mlp_connection()
        self.pre_mlp_layernorm = norm(submodules.pre_mlp_layernorm)
        groups = (
            {"tp_group": pg_collection.tp}
            if issubclass(submodules.mlp.module, MLP)
            else {"pg_collection": pg_collection, "layer_number": self.layer_number}
        )
        self.mlp = build_module(submodules.mlp, config=config, **groups)
        self.is_moe = not isinstance(self.mlp, MLP)
        self.merged_by: tuple[str, ...] = ()  # tensors of the dispatcher that a merge reads
        if self.is_moe:
            self.mlp.set_layer_number(self.layer_number)
            if isinstance(self.mlp.token_dispatcher, MoEAlltoAllTokenDispatcher):
                self.merged_by = ("reversed_local_input_permutation_mapping", "routing_map")
        # Megatron's own modules see to the other choices of selective recomputation.
        self.recompute_mlp = config.recompute_granularity == "selective" and "mlp" in config.recompute_modules
        # Megatron's all-gather leaves the tokens in a global buffer, into which shared experts under sequence
        # parallelism gather theirs: they have to come after whoever reads it.
        self.shared_experts_last = (
            config.sequence_parallel and config.moe_token_dispatcher_type == "allgather"
        )
        self.mlp_output_layernorm = norm(submodules.mlp_output_layernorm)

        place, rank = f"layers.{global_layer}", pg_collection.tp.rank()
        # Each tensor-parallel rank has other heads, and under sequence parallelism other tokens.
        self.core_dropout = Dropout(config.attention_dropout, f"{place}.core_attention", seed, rank)
        tokens = rank if config.sequence_parallel else 0
        self.around_attention = AroundSubLayer(
            self.attention_connection,
            self.input_layernorm,
            self.attention_output_layernorm,
            Dropout(config.hidden_dropout, f"{place}.attention", seed, tokens),
        )
        self.around_mlp = AroundSubLayer(
            self.mlp_connection,
            self.pre_mlp_layernorm,
            self.mlp_output_layernorm,
            Dropout(config.hidden_dropout, f"{place}.mlp", seed, tokens),
        )
        self.sublayers = (self.around_attention, self.around_mlp)

        self.nodes = self._nodes()

    def _nodes(self) -> tuple[Node, ...]:
        attention = Node("attention", Lane.COMPUTE, self._attention)
        if not self.is_moe:
            return attention, Node("mlp", Lane.COMPUTE, self._mlp)
        return (
            attention,
            Node("route", Lane.COMPUTE, self._route),
            Node("dispatch", Lane.COMMUNICATION, self._dispatch),
            Node("experts", Lane.COMPUTE, self._experts),
            Node("combine", Lane.COMMUNICATION, self._combine),
            Node("merge", Lane.HIGH_PRIORITY, self._merge),
        )

    def forward(self, state: State, micro_batch: MicroBatch, nodes: Sequence[Node]) -> State:
        """These nodes in order: the layer's own, or what an execution makes of them (execution.py)."""
        for node in nodes:
            state = node.forward(state, micro_batch)
        return state

    # Nodes. Each returns the streams first; `coefficients` are those that the read computed for the write.

    def _attention(self, state: State, micro_batch: MicroBatch) -> State:
        streams, *projection = state
        x, coefficients = micro_batch.activation_policy.read(self.around_attention, streams, *projection)
        # Before the whole of attention, as one cannot tell its core: when Megatron computes the core again, it puts
        # the generators back to what they were at its beginning.
        self.core_dropout.begin(micro_batch.first_sample, self.training)
        y, bias = self.self_attention(
            x, attention_mask=micro_batch.attention_mask, rotary_pos_emb=micro_batch.rotary
        )
        return micro_batch.activation_policy.write(
            self.around_attention, streams, y, coefficients, bias, micro_batch.first_sample
        )

    def _mlp(self, state: State, micro_batch: MicroBatch) -> State:
        streams, *projection = state
        x, coefficients = micro_batch.activation_policy.read(self.around_mlp, streams, *projection)
        mlp = partial(tensor_parallel.checkpoint, self.mlp, False) if self.recompute_mlp else self.mlp
        y, bias = mlp(x)
        return micro_batch.activation_policy.write(
            self.around_mlp, streams, y, coefficients, bias, micro_batch.first_sample
        )

    def _route(self, state: State, micro_batch: MicroBatch) -> State:
        streams, *projection = state
        x, coefficients = micro_batch.activation_policy.read(self.around_mlp, streams, *projection)
        probs, routing_map = self.mlp.route(x)
        tokens, probs = self.mlp.preprocess(x, probs, routing_map)
        self._detach_dispatchers("probs")
        return (streams, x, tokens, probs, *self._kept_by_dispatcher(), *coefficients)

    def _detach_dispatchers(self, name: str) -> None:
        """Leave the dispatcher the values of `name` alone, of which it still asks the dtype. Until it routes again it
        would keep their graph: of a recomputed layer, the input and its gradient after the backward that used them."""
        dispatcher = self.mlp.token_dispatcher
        if (kept := getattr(dispatcher, name, None)) is not None:
            setattr(dispatcher, name, kept.detach())

    def _kept_by_dispatcher(self) -> State:
        """What the merge will read of this micro-batch. The dispatcher keeps it until it routes the next one, and for
        the stream that it was made on: on its way with the state it lasts until the merge, on whatever lane."""
        return tuple(getattr(self.mlp.token_dispatcher, name) for name in self.merged_by)

    def _dispatch(self, state: State, micro_batch: MicroBatch) -> State:
        streams, x, tokens, probs, *rest = state
        tokens, probs = self.mlp.dispatch(tokens, probs)
        return (streams, x, tokens, probs, *rest)

    def _experts(self, state: State, micro_batch: MicroBatch) -> State:
        streams, x, tokens, probs, *rest = state
        if self.shared_experts_last:
            routed, _ = self.mlp.routed_experts_compute(tokens, probs)
            shared = self.mlp.shared_experts_compute(x)
        else:
            shared = self.mlp.shared_experts_compute(x)
            routed, _ = self.mlp.routed_experts_compute(tokens, probs)
        self._detach_dispatchers("local_probs")
        # without shared experts the slot is dropped, not filled with None: states hold tensors only
        return (streams, routed, *(() if shared is None else (shared,)), *rest)

    def _combine(self, state: State, micro_batch: MicroBatch) -> State:
        streams, routed, *rest = state
        return (streams, self.mlp.combine(routed), *rest)

    def _merge(self, state: State, micro_batch: MicroBatch) -> State:
        streams, routed, *rest = state
        shared = rest.pop(0) if self.mlp.use_shared_expert else None
        for name in self.merged_by:
            setattr(self.mlp.token_dispatcher, name, rest.pop(0))
        y = self.mlp.postprocess(routed, shared)
        return micro_batch.activation_policy.write(
            self.around_mlp, streams, y, tuple(rest), first_sample=micro_batch.first_sample
        )
