"""The range of every setting, looked at alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.connections import accounting

RECOMPUTED_MODULES = ("core_attn", "mla_up_proj", "mlp", "shared_experts")
KERNEL_STREAMS = 8  # the most that the Triton and the native kernels hold (hcmegatron.kernels.select)
DEEPEST = 10_000  # layers, and so pipeline stages: what is listed one by one stays short
MOST_OBSERVED = 65_536  # tokens: of sixty layers with four streams 3 GB on every rank
LARGEST = 1e30  # of any number: 3.4e38 is where fp32 ends
BYTE_VOCABULARY = 257  # 256 bytes and the end of a document

# Words of a range -> (test, the settings it holds for).
_RANGES = {
    "at least 1": (
        lambda v: v >= 1,
        """model.hidden_size model.heads model.query_groups model.head_dim
        model.ffn_hidden_size model.vocab_multiple mla.kv_rank mla.q_rank mla.rope_dim moe.top_k
        moe.ffn_hidden_size parallel.tensor parallel.expert parallel.expert_tensor parallel.timeout_s
        data.sequence_length training.steps training.global_batch training.micro_batch
        optimizer.decay_steps training.eval_batches training.eval_tokens training.log_every training.max_bad_steps
        health.leave_out_batches health.slow_window
        checkpoint.keep_last""",
    ),
    "from 1 to 1024, or null for an equal share of the cores": (lambda v: 1 <= v <= 1024, "training.threads"),
    f"from 1 to {MOST_OBSERVED}": (lambda v: 1 <= v <= MOST_OBSERVED, "diagnostics.tokens"),
    f"from 1 to {DEEPEST}": (lambda v: 1 <= v <= DEEPEST, "model.layers parallel.pipeline"),
    f"from 2 to {DEEPEST}, or null for plain stages": (lambda v: 2 <= v <= DEEPEST, "parallel.virtual"),
    f"at least {BYTE_VOCABULARY}, the byte tokenizer's": (
        lambda v: v >= BYTE_VOCABULARY,
        "model.vocab_size",
    ),
    "0 or more": (
        lambda v: v >= 0,
        """model.norm_eps moe.experts moe.shared_experts moe.first_dense moe.expert_bias_rate
        moe.aux_loss moe.sequence_aux_loss moe.z_loss
        data.seed optimizer.warmup_steps optimizer.weight_decay optimizer.clip muon.weight_decay training.seed
        training.eval_every checkpoint.save_every health.loss_spike health.grad_norm_spike health.diverged_after
        health.keep_bad_steps health.compare_parameters_every health.compare_gradients_every
        diagnostics.every diagnostics.ablation_every""",
    ),
    "above 0": (
        lambda v: v > 0,
        """model.rope_theta model.init_std moe.routed_scale optimizer.lr
        optimizer.eps muon.lr muon.rms run.peak_tflops""",
    ),
    "from 0 to below 1": (
        lambda v: 0 <= v < 1,
        """model.hidden_dropout model.attention_dropout data.holdout optimizer.beta1
        optimizer.beta2 muon.momentum""",
    ),
    "at least 4": (lambda v: v >= 4, "health.spike_window"),
    "0, or above 1": (lambda v: v == 0 or v > 1, "health.slow_factor"),
    "from 0 to 1": (lambda v: 0 <= v <= 1, "optimizer.min_lr_ratio"),
    "a list of numbers above 0 and below 1, rising": (
        lambda v: all(0 < x < 1 for x in v) and sorted(set(v)) == v,
        "optimizer.step_decay_at",
    ),
    "a list of numbers above 0 and up to 1": (
        lambda v: all(0 < x <= 1 for x in v),
        "optimizer.step_decay_to",
    ),
    "a list of whole numbers of at least 1, rising": (
        lambda v: all(x >= 1 for x in v) and sorted(set(v)) == v,
        "run.profile_at checkpoint.keep_at",
    ),
    "paper, live, or a whole number of sub-layers of at least 1": (
        lambda v: v in ("paper", "live") or (v.isascii() and v.isdigit() and int(v) >= 1),
        "recompute.block_length",
    ),
    f"a list out of {', '.join(RECOMPUTED_MODULES)}, each once": (
        lambda v: set(v) <= set(RECOMPUTED_MODULES) and len(set(v)) == len(v),
        "recompute.modules",
    ),
    "a list of names like my_package.my_module:MyObserver": (
        lambda v: (
            all(all(part.isidentifier() for part in name.replace(":", ".", 1).split(".")) for name in v)
            and all(":" in name for name in v)
        ),
        "run.observers",
    ),
    "a list of suffixes like .txt": (
        lambda v: bool(v) and all(s.startswith(".") for s in v),
        "data.suffixes",
    ),
}
RANGE_OF: dict[str, tuple[str, Callable[[Any], bool]]] = {
    key: (words, test) for words, (test, keys) in _RANGES.items() for key in keys.split()
}
# The connections' stand in their descriptors.
RANGE_OF |= {
    f"connection.{name}": (own.metadata["range"].words, own.metadata["range"].test)
    for name, (_, own) in accounting.fields().items()
    if own.metadata["range"]
}


def check_value(key: str, value: Any) -> None:
    """Raises ConfigError, without naming place or key, where a value is out of its setting's range."""
    if isinstance(value, float) and abs(value) > LARGEST:
        raise ConfigError(f"is out of range; numbers go up to {LARGEST:g}, since most become 32-bit ones")
    if key in RANGE_OF and value is not None:
        words, test = RANGE_OF[key]
        if not test(value):
            raise ConfigError(f"is out of range; it must be {words}")
