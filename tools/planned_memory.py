"""Planned bytes beside those of the real Megatron objects on CPU, by rank.

    python -m tools.planned_memory

Weights, gradients, master weights and optimizer state of miniature models under layouts of every sort, to the byte:
each layout is built and stepped once on forked ranks, and every rank's bytes are compared with the planner's.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hcmegatron.config import Config, check, load
from hcmegatron.planner.buffers import Resident, resident
from hcmegatron.planner.layers import padded_vocab
from hcmegatron.planner.layout import layout
from hcmegatron.planner.machines import MACHINES
from tests.ranks import ROOT, run_ranks

TOKENS = 261  # a tokenizer's; padded to 384 rows
PRELOAD = ("tests.model.workers", "tools.measured_memory")
SMALL = """
model.layers=4 model.hidden_size=72 model.heads=4 model.vocab_size=null data.sequence_length=16
training.global_batch=24 training.micro_batch=1 optimizer.warmup_steps=0
"""
DENSE = "olmo-1b", SMALL + "model.ffn_hidden_size=100"  # tied embeddings, DHC
MIXTURE = (  # latent attention, shared experts, mHC
    "mhc-3b",
    SMALL
    + "model.head_dim=12 model.ffn_hidden_size=100 mla.kv_rank=20 mla.rope_dim=6 moe.experts=8 moe.top_k=2 "
    "moe.ffn_hidden_size=48",
)


@dataclass(frozen=True)
class Case:
    """A layout to compare: on so many ranks, a model and settings that change it. `large`: it needs gigabytes."""

    name: str
    ranks: int
    model: tuple[str, str]
    settings: str = ""
    large: bool = False

    @property
    def config(self) -> Config:
        """Checked."""
        file, small = self.model
        settings = dict(setting.split("=") for setting in f"{small} {self.settings}".split())
        options = [f"--{key}={value}" for key, value in settings.items()]
        config = load(ROOT / f"configs/{file}.yaml", options)
        check(config)
        return config


SPLIT = "parallel.tensor=2 parallel.sequence=true"
CASES = (
    Case("one rank, tied embeddings, bf16", 1, DENSE),
    Case("data 3, tied, bf16", 3, DENSE),
    Case("pipeline 2, data 2, tied, bf16", 4, DENSE, "parallel.pipeline=2 parallel.schedule=1f1b"),
    Case("the same, optimizer whole", 4, DENSE, "parallel.pipeline=2 parallel.distributed_optimizer=false"),
    Case("tensor 2, sequence, data 2, fp32, sharded", 4, DENSE,
         f"{SPLIT} training.dtype=fp32 parallel.distributed_optimizer=true"),
    Case("expert 4, bf16", 4, MIXTURE, "parallel.expert=4"),
    Case("expert 2 of data 4, one after another", 4, MIXTURE, "parallel.expert=2 moe.grouped=false"),
    Case("tensor 2, experts whole, fp32, optimizer whole", 4, MIXTURE, f"{SPLIT} training.dtype=fp32"),
    Case("tensor 2, expert 2 x expert tensor 2, rank of queries", 4, MIXTURE,
         f"{SPLIT} parallel.expert=2 parallel.expert_tensor=2 mla.q_rank=14"),
    Case("DualPipe with its mirrors, data 2, overlapped", 4, MIXTURE,
         "parallel.schedule=dualpipe parallel.pipeline=2 parallel.overlap_grad_reduce=true parallel.expert=2"),
    Case("DualPipeV, data 2, tied", 4, DENSE, "parallel.schedule=dualpipev parallel.pipeline=2"),
    Case("interleaved, 2 chunks, expert 2", 4, MIXTURE,
         "parallel.schedule=interleaved parallel.pipeline=2 parallel.virtual=2 parallel.expert=2"),
    Case("fp64", 2, MIXTURE, "training.dtype=fp64 optimizer.clip=0 moe.grouped=false"),
    Case("several buckets", 2, DENSE,
         "model.tie_embeddings=false model.hidden_size=416 model.vocab_size=100000 "
         "parallel.overlap_grad_reduce=true", large=True),
)  # fmt: skip


@dataclass
class Row:
    """A rank's bytes of weights, gradients and optimizer state: planned and real."""

    planned: tuple[int, int, int]
    real: tuple[int, int, int]


@dataclass
class Compared:
    """A case on all its ranks."""

    case: Case
    rows: list[Row] = field(default_factory=list)

    @property
    def worst(self) -> int:
        """The largest difference of any figure of any rank, bytes."""
        return max(abs(a - b) for row in self.rows for a, b in zip(row.planned, row.real, strict=True))


def planned(config: Config, ranks: int) -> list[tuple[int, int, int]]:
    """Of every rank, in Megatron's order: a pipeline stage's ranks are consecutive."""
    where = layout(config, MACHINES["h100"], ranks)
    vocab = padded_vocab(config, TOKENS)

    def of_stage(rank: int) -> Resident:
        return resident(config, vocab, where.held(rank), ranks, first=rank == 0)

    found = [of_stage(rank) for rank in range(config.parallel.pipeline)]
    return [(own.weights, own.gradients, own.state(owner)) for own in found for owner in own.owners]


def compare(case: Case) -> Compared:
    """Build the case on forked ranks."""
    config = case.config
    real = run_ranks(
        case.ranks, "tools.measured_memory:resident", config, TOKENS, preload=PRELOAD, timeout=300
    )
    rows = zip(planned(config, case.ranks), map(tuple, real), strict=True)
    return Compared(case, [Row(*row) for row in rows])


HEAD = "| layout | ranks | planned, bytes | real, bytes | largest difference on any rank |\n|---|---|---|---|---|"


def line(found: Compared) -> str:
    """Of a markdown table: the fullest rank, and the largest difference on any."""
    fullest = max(found.rows, key=lambda row: sum(row.real))
    name, ranks = found.case.name, found.case.ranks
    return f"| {name} | {ranks} | {sum(fullest.planned):,} | {sum(fullest.real):,} | {found.worst:,} |"


def main() -> int:
    """Print the table; 1 where a byte is wrong."""
    wrong = 0
    print(HEAD)
    for case in CASES:
        found = compare(case)
        print(line(found), flush=True)
        wrong += found.worst
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
