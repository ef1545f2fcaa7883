"""Megatron's GPTModel with our block, and the chunks of it that a pipeline rank holds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.config.schema import Config, Model
from hcmegatron.connections.connection import Connection
from hcmegatron.model import te_wgrad
from hcmegatron.model.block import BlockSubmodules, ConnectionBlock
from hcmegatron.model.dropout import Dropout
from hcmegatron.model.execution import Execution
from hcmegatron.model.experts import GroupedLinear
from hcmegatron.model.specs import block_submodules
from hcmegatron.model.transformer_config import transformer_config
from hcmegatron.planner.layers import padded_vocab, softmax_entries
from hcmegatron.planner.stages import ModelStage, stages  # noqa: F401 (whoever builds a chunk asks here for its stage)
from hcmegatron.platform.megatron import flatten_state_dict
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig


class ConnectionGPT(GPTModel):
    """GPTModel whose decoder is a ConnectionBlock over the layers of one stage.

    Args:
        config: Megatron's.
        submodules: of the block.
        stage: whether the embedding and the head belong to this chunk.
        tokens: of the tokenizer.
        seed: of the masks of dropout.
    """

    def __init__(
        self,
        config: TransformerConfig,
        model: Model,
        submodules: BlockSubmodules,
        stage: ModelStage,
        tokens: int,
        sequence_length: int,
        seed: int,
        pg_collection: ProcessGroupCollection,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(
            config=config,
            # GPTModel builds a block of Megatron's; it gets an empty one, which ours replaces below.
            transformer_layer_spec=TransformerBlockSubmodules(layer_specs=[], layer_norm=None),
            vocab_size=padded_vocab(model, config.tensor_model_parallel_size, tokens),
            max_sequence_length=sequence_length,
            pre_process=stage.first,
            post_process=stage.last,
            parallel_output=True,
            share_embeddings_and_output_weights=model.tie_embeddings,
            position_embedding_type="rope",
            rotary_base=model.rope_theta,
            pg_collection=pg_collection,
            vp_stage=vp_stage,
        )
        self.decoder = ConnectionBlock(config, submodules, stage.first, stage.last, pg_collection)
        self.entry_dropout = Dropout(
            config.hidden_dropout,
            "embedding",
            seed,
            pg_collection.tp.rank() if config.sequence_parallel else 0,
        )
        self.copy = 0  # see mark_copy
        self.vocabulary = softmax_entries(model, tokens)
        if model.tie_embeddings and not (stage.first and stage.last):
            self._mark_tied_embedding()
        mark_weights(self, pg_collection)
        for connection in self.connections():
            for parameter in connection.parameters():
                # Under sequence parallelism each rank sees its part of the tokens, so gradients are summed.
                parameter.sequence_parallel = config.sequence_parallel

    def forward(
        self,
        *inputs: Any,
        first_sample: int | None = None,
        execution: Execution | None = None,
        **others: Any,
    ) -> Tensor:
        """As Megatron's.

        Args:
            first_sample: number of the micro-batch's first sequence, counted through the whole training run. Masks of
                dropout are a function of it; nothing else needs it.
            execution: how the layers' nodes are run; None: plainly.
        """
        if self.pre_process:
            self.entry_dropout.begin(first_sample, self.training)
        block = {"first_sample": first_sample, "execution": execution}
        return super().forward(*inputs, extra_block_kwargs=block, **others)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """As Megatron's, over the vocabulary alone: entries that pad it have no probability.

        Args:
            labels: [b, s].
            logits: [s, b, this tensor-parallel rank's part of the padded vocabulary]; changed in place.

        Returns:
            Nats [b, s].
        """
        first = self.pg_collection.tp.rank() * logits.shape[-1]
        # Outside of autograd: the softmax's gradient there is 0 already, and a recorded write would copy the gradient.
        with torch.no_grad():
            logits[..., max(0, self.vocabulary - first) :] = -math.inf
        return super().compute_language_model_loss(labels, logits)

    def _mark_tied_embedding(self) -> None:
        """Say that the embedding and the head's weight are two parameters, wherever their chunks are.

        Megatron goes by pipeline ranks: it does not see the ends of a V on a pipeline of one rank, whose weight it
        would count twice in the gradient norm, nor the first stage's copy on DualPipe's last rank, whose gradient
        buffer would be laid out in another way.
        """
        if self.pre_process or self.post_process:
            weight = self.shared_embedding_or_output_weight()
            weight.shared_embedding, weight.zero_out_wgrad = True, False
            weight.shared = self.post_process

    def mark_copy(self, copy: int) -> None:
        """Make this chunk the copy-th further one (from 1) of the same parameters, which another rank counts in the
        gradient norm and writes into checkpoints."""
        self.copy = copy
        for parameter in self.parameters():
            parameter.shared = True

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """As Megatron's; a further copy's entries are replicas of the first one's."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.copy:
            for entry in flatten_state_dict(state):
                if isinstance(entry, ShardedBase):
                    # 0 and 1 are taken: the embedding, and its tied copy in the head
                    entry.replica_id = (entry.replica_id[0] + 2 * self.copy, *entry.replica_id[1:])
        return state

    def connections(self) -> list[Any]:
        """Every connection of this chunk, the learned contraction included."""
        found = [module for module in self.modules() if isinstance(module, Connection)]
        return found + ([self.decoder.contract] if self.post_process else [])


def mark_weights(model: nn.Module, groups: ProcessGroupCollection) -> None:
    """Say which weights the tensor-parallel ranks hold different parts of, and which ranks have copies of experts.

    Megatron does the first while it initialises weights, which here is done by name (initialise.py). Without it a
    split weight is taken for a copy and all but one rank's part left out of the gradient norm. The second it does
    for expert parallelism alone: where experts are whole on each of several tensor-parallel ranks, which see
    different tokens, their gradients would not be summed.
    """
    experts_apart = groups.ep.size() > 1 or groups.expt_dp.size() != groups.dp.size()
    for name, module in model.named_modules():
        if (
            te_wgrad.of_engine(module)
            and getattr(module, "parallel_mode", "") is None
            and ".experts." not in name
        ):
            # Whole on every rank, which 0.16.1 does not say: its gradient would count once for each in the norm.
            module.weight.tensor_model_parallel = False
            continue
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding) and module.weight is not None:
            axis = 0
        elif isinstance(module, RowParallelLinear):
            axis = 1
        elif isinstance(module, GroupedLinear):
            axis = 1 + module.split
        else:
            continue
        module.weight.tensor_model_parallel = True
        module.weight.partition_dim, module.weight.partition_stride = axis, 1
    for module in model.modules():
        if isinstance(module, MoELayer):
            for parameter in module.experts.parameters():
                parameter.allreduce = not experts_apart


def build_chunk(
    config: Config,
    stage: ModelStage,
    tokens: int,
    pg_collection: ProcessGroupCollection,
    vp_stage: int | None = None,
) -> ConnectionGPT:
    """One chunk of the model, with uninitialised weights (see initialise.py).

    Args:
        tokens: of the tokenizer.
    """
    megatron_config = transformer_config(config)
    if vp_stage is not None and config.parallel.virtual is None:
        # Two stages a rank, which is not Megatron's interleaving: it is told only so much as to see that neither is
        # the other's copy of the embedding.
        megatron_config.virtual_pipeline_model_parallel_size = 2
    return ConnectionGPT(
        megatron_config,
        config.model,
        block_submodules(config, stage.layers),
        stage,
        tokens,
        config.data.sequence_length,
        config.training.seed,
        pg_collection,
        vp_stage,
    )


def unwrap(chunk: nn.Module) -> ConnectionGPT:
    """The chunk inside Megatron's wrappers."""
    while not isinstance(chunk, ConnectionGPT):
        chunk = chunk.module
    return chunk
