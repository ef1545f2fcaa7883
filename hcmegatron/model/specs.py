"""Specs of a layer's parts, through Megatron's spec system, from configuration."""

from __future__ import annotations

from functools import partial

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config, Model, has_to_split, split_by
from hcmegatron.connections import accounting
from hcmegatron.connections.build import build_connection, build_contract
from hcmegatron.model import te_wgrad
from hcmegatron.model.attention import Attention, CoreAttention
from hcmegatron.model.block import BlockSubmodules
from hcmegatron.model.experts import GroupedExperts
from hcmegatron.model.latent_attention import LatentAttention, NormedLatents
from hcmegatron.model.layer import ConnectionLayer, LayerSubmodules
from hcmegatron.model.norms import Norm
from hcmegatron.model.transformer_config import DTYPES, moe_layers
from hcmegatron.platform.megatron import HAVE_TE, experts_of
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec


class LocalBackend(LocalSpecProvider):
    """Megatron's local linears with our core attention and experts."""

    def core_attention(self) -> type:
        """scaled_dot_product_attention: Megatron's local core refuses MLA."""
        return CoreAttention


def backend(config: Config) -> LocalSpecProvider:
    """The provider of linears, attention and experts that `implementation` asks for.

    Raises:
        ConfigError: implementation is te, and Transformer Engine is not installed or cannot split a backward that the
            schedule splits.
    """
    if config.implementation == "te":
        if not HAVE_TE:
            raise ConfigError(
                "implementation: te asks for Transformer Engine, which is not installed; use implementation: local"
            )
        if reason := _unsplit(config):
            raise ConfigError(
                f"implementation: te with {split_by(config)}, which leaves weight gradients for later; {reason}: "
                "update it, or use implementation: local"
            )
    if config.implementation == "local" or not HAVE_TE or te_skipped_reason(config):
        return LocalBackend()
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

    return TESpecProvider()


def te_skipped_reason(config: Config) -> list[str]:
    """Why `implementation: auto` leaves out a Transformer Engine that is installed, in words; nothing where it does
    not."""
    if not HAVE_TE or config.implementation != "auto" or not (reason := _unsplit(config)):
        return []
    return [
        "implementation = auto takes Megatron's local layers, although Transformer Engine is installed: "
        f"{split_by(config)} leaves weight gradients for later; {reason}"
    ]


def _unsplit(config: Config) -> str:
    """Why Transformer Engine cannot split backward as the schedule does; empty where it can or need not."""
    return te_wgrad.kept_back() if has_to_split(config) else ""


def norm_spec(model: Model) -> ModuleSpec:
    """The model's norm, over whatever width it is built for."""
    return ModuleSpec(module=Norm, params={"kind": model.norm})


def block_submodules(config: Config, layers: range) -> BlockSubmodules:
    """The parts of a chunk with these layers, 0-based in the whole network."""
    contract = partial(
        build_contract, config.connection, config.model.hidden_size, norm_eps=config.model.norm_eps
    )
    return BlockSubmodules(
        connection=config.connection,
        layers=[layer_spec(config, layer) for layer in layers],
        contract=contract,
        final_norm=norm_spec(config.model),
    )


def layer_spec(config: Config, layer: int) -> ModuleSpec:
    """Layer `layer` (0-based in the whole network) of the model."""
    provider = backend(config)
    around = norm_spec(config.model)
    # A connection whose read is normed leaves no norm to the layer.
    before = IdentityOp if accounting.kind_of(config.connection).normalises else around
    position = {
        "pre": {"input_layernorm": before, "pre_mlp_layernorm": before},
        "post": {"attention_output_layernorm": around, "mlp_output_layernorm": around},
    }[config.model.norm_position]
    return ModuleSpec(
        module=ConnectionLayer,
        params={"global_layer": layer, "seed": config.training.seed},
        submodules=LayerSubmodules(
            attention_connection=_connection(config, 2 * layer),
            self_attention=_attention(config, provider),
            mlp_connection=_connection(config, 2 * layer + 1),
            mlp=_experts(config, provider)
            if moe_layers(config.moe, config.model.layers)[layer]
            else _dense(provider),
            **position,
        ),
    )


def _connection(config: Config, index: int) -> partial:
    return partial(
        build_connection,
        config.connection,
        config.model.hidden_size,
        index,
        norm_eps=config.model.norm_eps,
        kernels=config.kernels,
        streams=DTYPES[config.training.dtype],
    )


def _attention(config: Config, provider: LocalSpecProvider) -> ModuleSpec:
    # Transformer Engine ignores the mask itself unless it is called arbitrary.
    kind = AttnMaskType.arbitrary if config.model.document_mask else AttnMaskType.causal
    masked = {"attn_mask_type": kind}
    column, row = provider.column_parallel_linear(), provider.row_parallel_linear()
    qk_norm = norm_spec(config.model) if config.model.qk_norm else IdentityOp
    if config.model.attention == "gqa":
        return ModuleSpec(
            module=Attention,
            params=masked | {"norm_across_heads": config.model.qk_norm_across_heads},
            submodules=SelfAttentionSubmodules(
                linear_qkv=column,
                core_attention=provider.core_attention(),
                linear_proj=row,
                q_layernorm=qk_norm,
                k_layernorm=qk_norm,
            ),
        )
    # MLA norms its latents (DeepSeek-V2, section 2.1), whatever qk_norm says of full-width queries and keys.
    latent = norm_spec(config.model)
    local = isinstance(provider, LocalBackend)
    # Transformer Engine's: whole on every tensor-parallel rank, as in Megatron's own specs. Local: LatentAttention.
    down = column if local else provider.linear()
    return ModuleSpec(
        module=LatentAttention if local else NormedLatents,
        params=masked,
        submodules=MLASelfAttentionSubmodules(
            linear_q_proj=column,
            linear_q_down_proj=down,
            linear_q_up_proj=column,
            linear_kv_down_proj=down,
            linear_kv_up_proj=column,
            core_attention=provider.core_attention(),
            linear_proj=row,
            q_layernorm=latent,
            kv_layernorm=latent,
        ),
    )


def _mlp(provider: LocalSpecProvider) -> MLPSubmodules:
    return MLPSubmodules(
        linear_fc1=provider.column_parallel_linear(), linear_fc2=provider.row_parallel_linear()
    )


def _dense(provider: LocalSpecProvider) -> ModuleSpec:
    return ModuleSpec(module=MLP, submodules=_mlp(provider))


def _experts(config: Config, provider: LocalSpecProvider) -> ModuleSpec:
    if isinstance(provider, LocalBackend):
        grouped = config.moe.grouped and config.training.dtype != "fp64"  # torch groups no 64-bit matmuls
        experts = (
            ModuleSpec(GroupedExperts) if grouped else ModuleSpec(SequentialMLP, submodules=_mlp(provider))
        )
    else:
        experts = experts_of(provider, config.moe.grouped)
    return ModuleSpec(
        module=MoELayer,
        submodules=MoESubmodules(
            experts=experts,
            shared_experts=ModuleSpec(module=SharedExpertMLP, submodules=_mlp(provider)),
        ),
    )
