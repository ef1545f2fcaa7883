"""What happens where a setting is another than in the run that saved a checkpoint. No torch."""

from __future__ import annotations

from enum import Enum

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting


class Rule(Enum):
    """What happens where a setting is another than the checkpoint's."""

    ARCHITECTURE = "refused: the weights are of another network"
    STATE = "refused: what the optimizer remembers is of another kind"
    DATA = "the order of the data is another: refused where the run goes on, begun anew by checkpoint.load"
    TEXT = "compared by fingerprint, not as it is written; then as DATA, and a tokenizer as ARCHITECTURE"
    APPLIED = "takes effect on what is learnt, and is said"
    ROUNDING = "takes effect on where and in which order the same numbers are computed, and is said"
    BEGINNING = "decides how a run begins, so it has no effect, which is said"
    HARMLESS = "takes effect, and no number of the training depends on it"


_RULES = {
    Rule.ARCHITECTURE: """
        model.layers model.hidden_size model.heads model.query_groups model.head_dim model.attention
        model.ffn_hidden_size model.activation model.norm model.norm_eps model.norm_position model.qk_norm
        model.qk_norm_across_heads model.tie_embeddings model.rope_theta model.vocab_multiple model.vocab_size
        model.document_mask mla.kv_rank mla.q_rank mla.rope_dim moe.experts moe.top_k moe.ffn_hidden_size
        moe.shared_experts moe.first_dense moe.router moe.routed_scale connection.kind""",
    Rule.STATE: "optimizer.name",
    Rule.DATA: "data.sequence_length data.holdout data.seed",
    Rule.TEXT: "data.paths data.suffixes data.tokenizer",
    Rule.APPLIED: """
        model.hidden_dropout model.attention_dropout moe.expert_bias_rate moe.aux_loss moe.sequence_aux_loss
        moe.z_loss optimizer.lr optimizer.min_lr_ratio optimizer.schedule optimizer.warmup_steps
        optimizer.decay_steps optimizer.step_decay_at optimizer.step_decay_to optimizer.beta1 optimizer.beta2
        optimizer.eps optimizer.weight_decay optimizer.clip muon.lr muon.rms muon.momentum muon.nesterov
        muon.newton_schulz muon.weight_decay training.steps training.global_batch training.dtype training.seed
        health.on_bad_step health.loss_spike health.grad_norm_spike health.spike_window health.leave_out_batches""",
    Rule.ROUNDING: """
        moe.grouped moe.dispatcher parallel.pipeline parallel.virtual parallel.tensor parallel.sequence
        parallel.expert parallel.expert_tensor parallel.schedule parallel.overlap parallel.split_backward
        parallel.distributed_optimizer
        parallel.overlap_grad_reduce parallel.overlap_param_gather training.micro_batch recompute.mode
        recompute.block_length recompute.modules implementation kernels""",
    Rule.BEGINNING: "model.init_std checkpoint.init_from",
    Rule.HARMLESS: """
        data.validation data.test parallel.costs parallel.timeout_s parallel.transport training.eval_every
        training.eval_batches training.eval_prompt training.eval_tokens training.log_every training.max_bad_steps
        training.threads health.keep_bad_steps health.compare_parameters_every health.compare_gradients_every
        health.on_difference health.diverged_after health.slow_factor health.slow_window
        checkpoint.save_every checkpoint.keep_last checkpoint.keep_at checkpoint.asynchronous
        diagnostics.every diagnostics.tokens diagnostics.ablation_every
        checkpoint.resume checkpoint.load run.dir run.tensorboard run.wandb run.observers run.profile_at
        run.overcommit run.peak_tflops""",
}
RULE_OF = {key: rule for rule, keys in _RULES.items() for key in keys.split()} | {
    f"connection.{name}": Rule[own.metadata["change"].upper()]
    for name, (_, own) in accounting.fields().items()
}

# Of what the numbers depend on beside configuration and text: what changes where and how the same are computed.
HOW_COMPUTED = ("ranks", "CPU threads", "kernels", "implementation")


def more_than_rounding(config: Config) -> set[str]:
    """Settings under Rule.ROUNDING of which, here, more depends.

    A mask of dropout belongs to a micro-batch, and to a tensor-parallel rank's heads and tokens (model/dropout.py);
    kernels and implementations draw theirs in other ways. moe.aux_loss balances the tokens of a micro-batch.
    """
    hidden, attention = config.model.hidden_dropout > 0, config.model.attention_dropout > 0
    keys: set[str] = set()
    if hidden or attention or (config.moe.experts and config.moe.aux_loss):
        keys.add("training.micro_batch")
    if hidden or attention:
        keys |= {"kernels", "implementation", "parallel.sequence"}
    if attention or (hidden and config.parallel.sequence):
        keys.add("parallel.tensor")
    return keys
