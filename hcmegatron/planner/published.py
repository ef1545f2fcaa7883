"""Published throughput beside what the planner predicts, row by row: `python -m hcmegatron.planner.published`.

Nothing in a plan is tuned to these rows. 16-bit rows of tuned runs on H100 with a published layout are predicted;
beside that stands what one factor on the rate, fitted on two of them, makes of the others. Rows that are not predicted
are printed all the same, with the reason. FP8 rows check FLOPs, which do not depend on the precision.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hcmegatron.config.schema import Config
from hcmegatron.planner import counts
from hcmegatron.planner.machines import GIB, find_machine
from hcmegatron.planner.plan import Plan, changed_config, make_plan
from hcmegatron.planner.rates import Assumptions

_COMMON = {"connection.kind": "residual", "training.dtype": "bf16", "training.micro_batch": 1}
_MOE = {"moe.router": "softmax"}
# Architectures: the models' own published configurations. DeepSeek-V3 without multi-token prediction.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": {
        **_MOE,
        **{"model.layers": 48, "model.hidden_size": 2048, "model.heads": 32, "model.query_groups": 4},
        **{"model.head_dim": 128, "model.vocab_size": 151936, "model.qk_norm": True},
        **{"moe.experts": 128, "moe.top_k": 8, "moe.ffn_hidden_size": 768, "data.sequence_length": 4096},
    },
    "Qwen3-235B-A22B": {
        **_MOE,
        **{"model.layers": 94, "model.hidden_size": 4096, "model.heads": 64, "model.query_groups": 4},
        **{"model.head_dim": 128, "model.vocab_size": 151936, "model.qk_norm": True},
        **{"moe.experts": 128, "moe.top_k": 8, "moe.ffn_hidden_size": 1536, "data.sequence_length": 4096},
    },
    "DeepSeek-V3": {
        **{"model.layers": 61, "model.hidden_size": 7168, "model.heads": 128, "model.head_dim": 128},
        **{"model.attention": "mla", "mla.kv_rank": 512, "mla.q_rank": 1536, "mla.rope_dim": 64},
        **{"model.ffn_hidden_size": 18432, "model.vocab_size": 129280, "data.sequence_length": 4096},
        **{"moe.experts": 256, "moe.top_k": 8, "moe.ffn_hidden_size": 2048, "moe.shared_experts": 1},
        "moe.first_dense": 3,
    },
    # Every second layer attends within a window of 128 tokens; here all attend to everything before them.
    "GPT-OSS-120B": {
        **_MOE,
        **{"model.layers": 36, "model.hidden_size": 2880, "model.heads": 64, "model.query_groups": 8},
        **{"model.head_dim": 64, "model.vocab_size": 201088, "data.sequence_length": 4096},
        **{"moe.experts": 128, "moe.top_k": 4, "moe.ffn_hidden_size": 2880},
    },
    "Llama-3-8B": {
        **{"model.layers": 32, "model.hidden_size": 4096, "model.heads": 32, "model.query_groups": 8},
        **{"model.ffn_hidden_size": 14336, "model.vocab_size": 128256, "data.sequence_length": 8192},
    },
    "Llama-3-70B": {
        **{"model.layers": 80, "model.hidden_size": 8192, "model.heads": 64, "model.query_groups": 8},
        **{"model.ffn_hidden_size": 28672, "model.vocab_size": 128256, "data.sequence_length": 8192},
    },
    "Llama-3.1-405B": {
        **{"model.layers": 126, "model.hidden_size": 16384, "model.heads": 128, "model.query_groups": 8},
        **{"model.ffn_hidden_size": 53248, "model.vocab_size": 128256, "data.sequence_length": 8192},
    },
}

# Model: (TFLOP/s a GPU, tokens/s a GPU, row), of NVIDIA Megatron Bridge's performance summary, release 25.11.
FLOPS: dict[str, tuple[float, float, str]] = {
    "Qwen3-30B-A3B": (666, 28934, "DGX-GB300, 8 GPUs, FP8"),
    "Qwen3-235B-A22B": (907, 6131, "DGX-GB300, 256 GPUs, BF16"),
    "DeepSeek-V3": (961, 3848, "DGX-GB300, 256 GPUs, BF16, without MTP"),
    "Llama-3-8B": (744, 14451, "DGX-H100, 8 GPUs, FP8"),
    "Llama-3-70B": (2030, 4520, "DGX-GB300, 64 GPUs, FP8"),
}


def _layout(
    pipeline: int, tensor: int, expert: int, virtual: int | None = None, **more: Any
) -> dict[str, Any]:
    schedule = "interleaved" if virtual else "1f1b"
    return {
        **{"parallel.pipeline": pipeline, "parallel.tensor": tensor, "parallel.sequence": tensor > 1},
        **{"parallel.expert": expert, "parallel.virtual": virtual, "parallel.schedule": schedule},
        "parallel.split_backward": False,  # Megatron's runtime has backwards whole
        **{"parallel.overlap_grad_reduce": True, "parallel.overlap_param_gather": True, **more},
    }


@dataclass(frozen=True)
class PublishedRate:
    """A published rate.

    Attributes:
        tokens: per second and GPU.
        memory_gib: of the fullest rank, where published.
        fused_loss: the recipe's cross entropy is one kernel, see Assumptions.
        gradients: bytes each in the recipe; the planner's are 4.
        fitted: the factor is fitted on this row.
        not_modelled: why the plan is no prediction of it.
    """

    model: str
    gpu: str
    gpus: int
    batch: int
    layout: dict[str, Any]
    tokens: float
    source: str
    memory_gib: float | None = None
    more: dict[str, Any] = field(default_factory=dict)
    fused_loss: bool = False
    gradients: int = 4
    fitted: bool = False
    not_modelled: str = ""

    @cached_property
    def plan(self) -> Plan:
        """With fused kernels."""
        changes = {**self.layout, "training.global_batch": self.batch, **self.more}
        # their benchmarks balance the experts by force
        assumed = Assumptions(fused=True, fused_loss=self.fused_loss, imbalance=1.0)
        return make_plan(model(self.model, changes), find_machine(self.gpu), self.gpus, assumed)

    @property
    def peak(self) -> float:
        """Bytes of the fullest rank, with the recipe's gradients."""
        return max(
            held.peak.total() - (1 - self.gradients / 4) * held.peak["gradients"] for held in self.plan.memory
        )

    @property
    def own(self) -> float:
        """Tokens a second and GPU, planned."""
        return self.plan.tokens / self.plan.seconds / self.gpus


_BRIDGE = "Megatron Bridge performance summary"
# Layout, micro-batch and recomputation: examples/llm_benchmark of its repository, September 2026.
_AUTOMODEL = "NeMo AutoModel performance summary"
_GATHERED = (
    "its parameters are gathered across nodes for every use (FSDP); the plan shards optimizer state alone"
)
_HERD = "2407.21783, Table 4; 128 layers, one each on 128 stages"
_FULL = {"recompute.mode": "full"}
ROWS = (
    PublishedRate(
        *("Qwen3-30B-A3B", "h100", 16, 1024, _layout(1, 1, 16), 1024 * 4096 / 20.1 / 16),  # 20.1 s a step
        *("tuned, 299 TFLOP/s; the layout is the recipe's, its overlap left out", 62.0),
        fused_loss=True,
        gradients=2,
    ),
    PublishedRate(  # FSDP within one node
        *("Qwen3-30B-A3B", "h100", 8, 512, _layout(1, 1, 8), 12040, f"{_AUTOMODEL}, 277 TFLOP/s"),
        more={"training.micro_batch": 4, **_FULL},
        fitted=True,
    ),
    PublishedRate(  # every expert on one rank
        *("GPT-OSS-120B", "h100", 64, 512, _layout(1, 1, 64), 7626, f"{_AUTOMODEL}, 231 TFLOP/s"),
        more={"training.micro_batch": 2},
    ),
    # 430 and 400 TFLOP/s, at 2.53 TFLOP a token. The paper leaves a layer out of the first and of the last stage.
    PublishedRate(
        *("Llama-3.1-405B", "h100", 8192, 2048, _layout(16, 8, 1, 8), 170, _HERD),
        more={"model.layers": 128},
        fitted=True,
    ),
    PublishedRate(
        *("Llama-3.1-405B", "h100", 16384, 2048, _layout(16, 8, 1, 8), 158, _HERD), more={"model.layers": 128}
    ),
    PublishedRate(
        *("GPT-OSS-120B", "h100", 64, 1280, _layout(4, 1, 8), 5824, f"{_BRIDGE} 26.04.01, 158 TFLOP/s"),
        not_modelled="not tuned: another trainer has 231 TFLOP/s on as many",
    ),
    PublishedRate(
        *("DeepSeek-V3", "h100", 256, 512, _layout(4, 1, 64, 8), 1002, f"{_AUTOMODEL}, 250 TFLOP/s"),
        more={"model.layers": 64, **_FULL},
        not_modelled=_GATHERED,
    ),
    PublishedRate(
        *("DeepSeek-V3", "h100", 1024, 8192, _layout(4, 1, 64, 4), 865, f"{_AUTOMODEL}, 216 TFLOP/s"),
        more={"model.layers": 64},
        not_modelled=_GATHERED,
    ),
    PublishedRate(
        *("GPT-OSS-120B", "gb200", 64, 1280, _layout(1, 1, 64), 16640, f"{_BRIDGE} 26.04.01"),
        more={"training.micro_batch": 4},
        not_modelled="no H100; attends with sinks and windows, for which there was no fused kernel",
    ),
    PublishedRate(
        *("Qwen3-235B-A22B", "gb200", 256, 8192, _layout(8, 1, 32, 3), 4916, f"{_BRIDGE} 25.11"),
        not_modelled="no H100",
    ),
    PublishedRate(
        *("DeepSeek-V3", "gb200", 256, 4096, _layout(4, 1, 64, 4), 3139, f"{_BRIDGE} 25.11"),
        not_modelled="no H100",
    ),
)


def model(name: str, changes: dict[str, Any] | None = None) -> Config:
    """A published model as a configuration."""
    return changed_config(Config(), {**_COMMON, **MODELS[name], **(changes or {})})


def flops_per_token(config: Config) -> float:
    """As their reports count: forward and twice that, the router's scores left out."""
    forward = counts.forward_flops(config, counts.whole_model(config))
    return 3.0 * (forward.total() - forward["router"] - forward["connections"])


def factor() -> float:
    """What the planned rates are to be multiplied by so that the two fitted rows' errors are as large, one up and one
    down."""
    return math.exp(-statistics.mean(math.log(row.own / row.tokens) for row in ROWS if row.fitted))


def main() -> None:
    """Print both tables."""
    console = Console(highlight=False, width=200)
    table = Table(title="training FLOPs a token, G", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("model", "published", "planner", "error", "MFU of the row", "row"):
        table.add_column(name, justify="left" if name in ("model", "row") else "right")
    for name, (tflops, tokens, source) in FLOPS.items():
        published, own = tflops / tokens * 1e3, flops_per_token(model(name)) / 1e9
        table.add_row(
            name,
            f"{published:.2f}",
            f"{own:.2f}",
            f"{own / published - 1:+.2%}",
            _mfu(tflops, source),
            source,
        )
    console.print(table)
    scale = factor()
    title = f"tokens a second and GPU; fitted: {scale:.3f} of the plan, on the two rows with a star"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("model", "GPUs", "published", "planner", "error", "fitted", "MFU", "GiB", "source"):
        table.add_column(name, justify="left" if name in ("model", "source", "GPUs") else "right")
    for row in ROWS:
        plan = row.plan
        size = f"{row.peak / GIB:.0f}" + (f" ({row.memory_gib:g})" if row.memory_gib else "")
        table.add_row(
            row.model,
            f"{row.gpus} {row.gpu}",
            f"{row.tokens:,.0f}",
            f"{row.own:,.0f}",
            f"{row.own / row.tokens - 1:+.1%}",
            "-" if row.not_modelled else f"{scale * row.own / row.tokens - 1:+.1%}" + " *" * row.fitted,
            f"{plan.utilisation(plan.model_flops):.1%}",
            size,
            row.source + (f"; not modelled: {row.not_modelled}" if row.not_modelled else ""),
        )
    console.print(table)


def _mfu(tflops: float, source: str) -> str:
    """Of dense 16-bit peak, whatever the row's precision."""
    gpu = source.split("-")[1].split(",")[0].lower()
    peak = {"gb300": 2500.0}.get(gpu) or find_machine(gpu).peak_tflops  # GB300's dense bf16 is GB200's
    return f"{tflops / peak:.1%}"


if __name__ == "__main__":
    main()
