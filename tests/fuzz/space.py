"""What every setting of the schema may be in a fuzzed run: a strategy for each, derived from its type or listed here.

A new field with a fixed set of values is drawn from all of them without a line here. A number, a text or a list
needs small values in VALUES, or a reason in FIXED; `strategy` names a field that has neither.
"""

from __future__ import annotations

import itertools
import shutil
import types
import typing
from typing import Any, Literal

from hypothesis import strategies as st

from hcmegatron.config.ranges import RECOMPUTED_MODULES
from hcmegatron.config.types import defaults, leaves
from hcmegatron.connections import accounting

# Settings that every fuzzed run shares -> (value, why). `run.dir`, `data.paths` and `checkpoint.resume` are set by
# whoever runs a case.
FIXED: dict[str, tuple[Any, str]] = {
    "data.paths": ([], "the corpus of the fuzz"),
    "data.suffixes": ([".txt"], "the corpus of the fuzz"),
    "data.validation": ([], "prepared data sets"),
    "data.test": ([], "prepared data sets"),
    "data.tokenizer": ("byte", "the corpus of the fuzz is small"),
    "training.steps": (2, "one to save and one to come back to"),
    "training.threads": (1, "ranks share two cores"),
    "checkpoint.save_every": (1, "the first step is what is resumed"),
    "checkpoint.resume": ("never", "set by the second and third run of a case"),
    "checkpoint.load": (None, "resuming reads the same files"),
    "checkpoint.init_from": (None, "tests/training/test_as_residual.py"),
    "run.dir": (None, "set by every run of a case"),
    "run.wandb": ("off", "a service elsewhere"),
    "run.observers": ([], "somebody's own"),
    "run.profile_at": ([], "tests/profiling"),
    "run.overcommit": (False, "every case fits"),
    "parallel.costs": (None, "measured of one configuration each"),
    "parallel.timeout_s": (90, "a hang ends with stacks before the time limit of a case"),
    "implementation": ("auto", "te needs a GPU, and without one auto is local"),
}

# The first value of each is the simplest: `--shrink` goes back to it. Repeated values are drawn more often.
VALUES: dict[str, list[Any]] = {
    "model.layers": [2, 3, 4, 5, 6, 8],
    "model.hidden_size": [16, 24, 32, 48, 20, 36],
    "model.heads": [2, 4, 1, 3, 6],
    "model.query_groups": [None, 1, 2, 3],
    "model.head_dim": [None, None, 8, 4, 6],
    "model.ffn_hidden_size": [16, 24, 40, 20, 14],
    "model.norm_eps": [1e-6, 1e-5, 1e-2],
    "model.rope_theta": [10000.0, 500.0],
    "model.vocab_multiple": [1, 128, 8, 3],
    "model.vocab_size": [None, None, 257, 262, 300],
    "model.hidden_dropout": [*[0.0] * 5, 0.1, 0.5],
    "model.attention_dropout": [*[0.0] * 5, 0.2],
    "model.init_std": [0.1, 0.05, 0.02],
    "mla.kv_rank": [8, 12, 7],
    "mla.q_rank": [None, 8, 13],
    "mla.rope_dim": [4, 2, 8],
    "moe.experts": [0, 0, 4, 2, 8, 3],
    "moe.top_k": [2, 1, 3],
    "moe.ffn_hidden_size": [16, 8, 24, 12, 10],
    "moe.shared_experts": [0, 1, 2],
    "moe.first_dense": [0, 1, 2],
    "moe.expert_bias_rate": [1e-3, 0.0, 0.1],
    "moe.aux_loss": [0.0, 0.0, 1e-2],
    "moe.sequence_aux_loss": [0.0, 0.0, 0.3],
    "moe.z_loss": [0.0, 1e-3],
    "moe.routed_scale": [1.0, 2.5],
    "parallel.pipeline": [1, 1, 2, 4],
    "parallel.virtual": [None, 2, 3, 4],
    "parallel.tensor": [1, 2, 4],
    "parallel.expert": [1, 2, 4, 4],
    "parallel.expert_tensor": [1, 2, 4, 4],
    "parallel.overlap": [False, True, True],  # few schedules have it
    "data.sequence_length": [16, 8, 32, 15, 24],
    "data.holdout": [0.0, 0.1, 0.3],
    "data.seed": [1234, 0, 7],
    "optimizer.lr": [3e-3, 1e-2],
    "optimizer.min_lr_ratio": [0.1, 0.0, 1.0],
    "optimizer.warmup_steps": [0, 1, 2, 20],
    "optimizer.decay_steps": [40, 1, 2],
    "optimizer.step_decay_at": [[0.8, 0.9], [0.5], []],
    "optimizer.step_decay_to": [[0.316, 0.1], [0.5], []],
    "optimizer.beta1": [0.9, 0.0, 0.5],
    "optimizer.beta2": [0.95, 0.0, 0.999],
    "optimizer.eps": [1.0, 1e-8],
    "optimizer.weight_decay": [0.1, 0.0],
    "optimizer.clip": [1.0, 0.0, 0.05],
    "muon.lr": [None, 1e-2],
    "muon.rms": [0.2, 1.0],
    "muon.momentum": [0.95, 0.0],
    "muon.weight_decay": [None, 0.0, 0.5],
    "training.global_batch": [4, 1, 2, 3, 5, 6, 8, 9, 12, 16, 24],
    "training.micro_batch": [1, 2, 3, 4],
    "training.dtype": [*["fp32"] * 5, *["bf16"] * 4, "fp64"],
    "training.seed": [1234, 0, 7],
    "training.eval_every": [0, 1, 2],
    "training.eval_batches": [1, 2, 3],
    "training.eval_prompt": [None, None, "a"],
    "training.eval_tokens": [2, 1, 5],
    "training.log_every": [1, 2],
    "training.max_bad_steps": [5, 1],
    "checkpoint.keep_last": [2, 3],
    "checkpoint.keep_at": [[], [1]],
    "health.loss_spike": [0.0, 0.0, 6.0],
    "health.grad_norm_spike": [0.0, 0.0, 8.0],
    "health.spike_window": [128, 4],
    "health.leave_out_batches": [1, 2],
    "health.keep_bad_steps": [4, 0],
    "health.diverged_after": [0, 50],
    "health.compare_parameters_every": [0, 1],
    "health.compare_gradients_every": [0, 1],
    "health.slow_factor": [0.0, 2.0],
    "health.slow_window": [10, 1],
    "diagnostics.every": [100, 0, 1, 2],
    "diagnostics.tokens": [512, 7, 1],
    "diagnostics.ablation_every": [0, 0, 2],
    "recompute.block_length": ["paper", "live", "1", "2", "3"],
    "recompute.modules": [
        [],
        *(list(some) for size in (1, 2) for some in itertools.combinations(RECOMPUTED_MODULES, size)),
    ],
    "run.tensorboard": [False, False, False, False, False, False, True],  # importing it takes a second
    "run.peak_tflops": [0.01, 0.01, 0.01, None],  # None measures
    "kernels": [
        "torch",
        "torch",
        "torch",
        "torch",
        "auto",
        "auto",
        "triton",
        *(["native"] if shutil.which("cc") else []),
    ],  # triton runs in its interpreter
}

# What the kinds' descriptors say that tests try.
VALUES |= {
    f"connection.{name}": list(own.metadata["tries"])
    for name, (_, own) in accounting.fields().items()
    if own.metadata["tries"]
}

# What the run is built around: where settings do not fit together, the others give way.
STRUCTURE = (
    "model.attention",
    "connection.kind",
    "training.dtype",
    "recompute.mode",
    "parallel.pipeline",
    "parallel.tensor",
    "parallel.expert",
    "parallel.expert_tensor",
    "parallel.schedule",
)


def drawn() -> list[str]:
    """The keys that are drawn, in the schema's order."""
    return [key for key in leaves() if key not in FIXED]


def simplest(key: str) -> Any:
    """The value that shrinking goes back to."""
    return FIXED[key][0] if key in FIXED else values(key)[0]


def strategy(key: str) -> st.SearchStrategy:
    """Of a setting's values."""
    return st.sampled_from(values(key))


def values(key: str) -> list[Any]:
    """What a setting may be; KeyError names one that nobody has thought of."""
    if key in VALUES:
        return VALUES[key]
    hint, optional = leaves()[key], []
    if isinstance(hint, types.UnionType):
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        optional = [None]
    if hint is bool:
        return [*optional, defaults()[key], not defaults()[key]] if not optional else [*optional, False, True]
    if typing.get_origin(hint) is Literal:
        return [*optional, *typing.get_args(hint)]
    raise KeyError(f"{key} is new: give it values in tests/fuzz/space.py (VALUES), or a fixed one (FIXED)")
