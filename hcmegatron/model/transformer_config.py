"""From our configuration to Megatron's TransformerConfig. The only place that knows both vocabularies."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from hcmegatron.config.schema import MLA, Config, MoE
from hcmegatron.model.accumulate import megatron_fuses
from hcmegatron.platform.megatron import AUXILIARY_LOSS_OF_ONE_RANK
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def moe_layers(moe: MoE, layers: int) -> list[bool]:
    """For every transformer layer, whether its second sub-layer is a mixture of experts."""
    return [moe.experts > 0 and layer >= moe.first_dense for layer in range(layers)]


def transformer_config(config: Config) -> TransformerConfig:
    """Megatron's configuration of the same model and layout.

    Returns:
        MLATransformerConfig where attention is MLA, else TransformerConfig. `hidden_size` is C: the width of the
        stream between pipeline stages is set by the stage adapter (hcmegatron/pipeline).
    """
    model, parallel = config.model, config.parallel
    dtype = DTYPES[config.training.dtype]
    head_dim = model.head_dim or model.hidden_size // model.heads
    settings: dict = dict(
        num_layers=model.layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.heads,
        num_query_groups=model.query_groups or model.heads,
        kv_channels=head_dim,
        ffn_hidden_size=model.ffn_hidden_size,
        gated_linear_unit=model.activation == "swiglu",
        activation_func=F.silu if model.activation == "swiglu" else F.gelu,
        add_bias_linear=False,
        normalization="LayerNorm" if model.norm.startswith("layernorm") else "RMSNorm",
        layernorm_epsilon=model.norm_eps,
        # MLA norms its latents, which tensor-parallel ranks have whole; Megatron sums those of heads over the ranks.
        qk_layernorm=model.qk_norm and model.attention == "gqa",
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        init_method_std=model.init_std,
        # Values come from initialise(), a function of parameter names; Megatron only allocates.
        perform_initialization=False,
        use_cpu_initialization=not torch.cuda.is_available(),
        params_dtype=dtype,
        bf16=config.training.dtype == "bf16",
        pipeline_dtype=dtype,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual,
        sequence_parallel=parallel.sequence,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        gradient_accumulation_fusion=megatron_fuses(parallel.schedule, config.training.dtype),
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        deallocate_pipeline_outputs=parallel.pipeline > 1,
        batch_p2p_comm=False,
        # Not the default: the loss is a mean over tokens of the global batch, whatever the micro-batches hold.
        calculate_per_token_loss=True,
    )
    if config.moe.experts:
        settings |= _mixture(config)
    if config.recompute.modules:
        settings |= dict(recompute_granularity="selective", recompute_modules=list(config.recompute.modules))
    if model.attention == "mla":
        settings |= _latents(config.mla, head_dim, model.rope_theta)
    with warnings.catch_warnings():
        # Recomputing core_attn makes Megatron warn of Transformer Engine's fused attention, whatever runs.
        warnings.filterwarnings("ignore", message=".*core_attn.*")
        return (MLATransformerConfig if model.attention == "mla" else TransformerConfig)(**settings)


def _mixture(config: Config) -> dict:
    moe = config.moe
    return dict(
        num_moe_experts=moe.experts,
        moe_layer_freq=[int(is_moe) for is_moe in moe_layers(moe, config.model.layers)],
        moe_ffn_hidden_size=moe.ffn_hidden_size,
        moe_shared_expert_intermediate_size=moe.shared_experts * moe.ffn_hidden_size or None,
        moe_router_topk=moe.top_k,
        moe_router_score_function=moe.router,
        moe_router_dtype="fp32",
        moe_router_enable_expert_bias=moe.router == "sigmoid" and moe.expert_bias_rate > 0,
        moe_router_bias_update_rate=moe.expert_bias_rate,
        moe_router_topk_scaling_factor=moe.routed_scale if moe.routed_scale != 1.0 else None,
        moe_router_pre_softmax=moe.router == "softmax",
        moe_z_loss_coeff=moe.z_loss * _auxiliary_scale(config) or None,
        moe_token_dispatcher_type=moe.dispatcher,
        moe_permute_fusion=False,
        **_auxiliary_losses(config),
    )


def _latents(mla: MLA, head_dim: int, rope_theta: float) -> dict:
    return dict(
        multi_latent_attention=True,
        q_lora_rank=mla.q_rank,
        kv_lora_rank=mla.kv_rank,
        qk_head_dim=head_dim,
        qk_pos_emb_head_dim=mla.rope_dim,
        v_head_dim=head_dim,
        rope_type="rope",
        rotary_base=rope_theta,
    )


def _auxiliary_scale(config: Config) -> int:
    """Factor on the coefficients of auxiliary losses that makes them independent of the layout.

    With a loss per token, 0.16.1 weighs a rank's part of an auxiliary loss by the rank's own tokens. Under
    sequence parallelism those are a share of the micro-batch's, while the loss is already a share of the whole.
    """
    return config.parallel.tensor if config.parallel.sequence and AUXILIARY_LOSS_OF_ONE_RANK else 1


def _auxiliary_losses(config: Config) -> dict:
    # 0.16.1 weighs the mean over a micro-batch's sequences by the tokens of one of them, 0.19.2 by those of all.
    sequences = config.training.micro_batch if AUXILIARY_LOSS_OF_ONE_RANK else 1
    losses = {"aux_loss": config.moe.aux_loss, "seq_aux_loss": config.moe.sequence_aux_loss * sequences}
    active = {name: value * _auxiliary_scale(config) for name, value in losses.items() if value > 0}
    if not active:
        return dict(moe_router_load_balancing_type="none", moe_aux_loss_coeff=0.0)
    if len(active) == 1:
        ((name, value),) = active.items()
        return dict(moe_router_load_balancing_type=name, moe_aux_loss_coeff=value)
    return dict(moe_router_load_balancing_type=list(active), moe_aux_loss_coeff=list(active.values()))
