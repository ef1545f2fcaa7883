"""One decoder layer of the mHC paper's 27B model, with mHC and with the plain residual, with and without
block recomputation.

    python -m tools.bench_layer [--tokens 4096] [--rounds 20]

Forward and backward of a one-layer network (MLA, 72 experts with 6 active and 2 shared, C = 2560; a
vocabulary of 256, so that embedding and head weigh nothing), bf16, the forms taking turns. Printed:
milliseconds, their ratio to the residual without recomputation, and the residual's TFLOP/s, without which the
ratio says nothing: the paper's 1.067 was measured on a whole system, and is comparable only where the
baseline passes 300 TFLOP/s. Without a GPU the quickstart's dimensions are used in fp32: that checks the
program, and tells nothing about GPUs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.load import load
from hcmegatron.config.schema import Config
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.platform.distributed import device, process_groups
from hcmegatron.platform.local_launch import free_port
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training.model import build_model
from tools.alternate import alternating, ratio

VOCABULARY = 256
PAPER_27B = {
    "model.hidden_size": 2560,
    "model.heads": 32,
    "model.head_dim": 128,
    "model.attention": "mla",
    "mla.kv_rank": 512,
    "mla.rope_dim": 64,
    "moe.experts": 72,
    "moe.top_k": 6,
    "moe.shared_experts": 2,
    "moe.ffn_hidden_size": 1536,
    "training.dtype": "bf16",
}
FORMS = {
    "residual": ("residual", "none"),
    "residual, recomputed": ("residual", "block"),
    "mhc": ("mhc", "none"),
    "mhc, recomputed": ("mhc", "block"),
}


def configuration(kind: str, recompute: str, tokens: int) -> Config:
    """One MoE layer on one rank: the 27B model's on a GPU, the quickstart's elsewhere."""
    settings = {
        "model.layers": 1,
        "moe.first_dense": 0,
        "parallel.pipeline": 1,
        "parallel.schedule": "megatron_1f1b",
        "connection.kind": kind,
        "recompute.mode": recompute,
        "data.sequence_length": tokens,
        "training.micro_batch": 1,
        "training.global_batch": 1,
        **(PAPER_27B if torch.cuda.is_available() else {}),
    }
    return load("configs/quickstart.yaml", [f"--{key}={value}" for key, value in settings.items()])


def main() -> dict[str, float]:
    """Prints the table; returns each form's ratio to the residual."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096 if torch.cuda.is_available() else 256)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "bench")
    first = configuration("residual", "none", args.tokens)
    with process_groups(first, alone) as groups:

        def made(kind: str, recompute: str) -> Callable[[], None]:
            config = configuration(kind, recompute, args.tokens)
            (chunk,) = build_model(config, VOCABULARY, groups)
            tokens = torch.randint(VOCABULARY, (1, args.tokens), device=device())
            positions = torch.arange(args.tokens, device=device()).unsqueeze(0)

            def step() -> None:
                chunk.zero_grad_buffer()
                chunk(tokens, positions, None, labels=tokens).sum().backward()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()

            return step

        times = alternating({name: made(*form) for name, form in FORMS.items()}, args.rounds, warmup=3)
    seconds = statistics.median(times["residual"])
    tflops = args.tokens * training_flops_per_token(first, VOCABULARY) / seconds / 1e12
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, the quickstart's dimensions"
    print(f"{where}, torch {torch.__version__}, {args.tokens} tokens, {time.strftime('%Y-%m-%d')}")
    ratios = {name: ratio(times, name, "residual") for name in times}
    for name, values in times.items():
        print(f"{name:>22}: {1e3 * statistics.median(values):8.2f} ms, {ratios[name]:.3f} of the residual")
    print(f"the residual's rate: {tflops:.3g} TFLOP/s")
    return ratios


if __name__ == "__main__":
    main()
