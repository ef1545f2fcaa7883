"""Planned bytes beside those of the real Megatron objects on CPU, by rank.

    python -m tools.planned_memory
    python -m tools.planned_memory --activations [WORD ...]

Weights, gradients, master weights and optimizer state of miniature models under layouts of every sort, to the byte:
each layout is built and stepped once on forked ranks, and every rank's bytes are compared with the planner's.

With --activations: what comes and goes in a step over two pipeline ranks, for every schedule, recomputation and kind of
connection (or those whose names have all the words). Storages are counted as operations make and drop them, and receive
buffers while what has come in them is in use, not those that are posted, of which a CPU has more than a GPU. `held` is
what is left when an action has ended: activations, what deferred weight gradients need, messages sent through gloo.
`most` has the working set of what runs too, for which the planner takes the GPU's kernels and the table the CPU's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from hcmegatron.config import Config, check_config, load_config
from hcmegatron.connections.kinds import KINDS
from hcmegatron.planner.buffers import Resident, resident
from hcmegatron.planner.layers import padded_vocab
from hcmegatron.planner.layout import make_layout
from hcmegatron.planner.machines import MACHINES
from hcmegatron.planner.plan import make_plan
from hcmegatron.planner.rates import Assumptions
from hcmegatron.planner.step_memory import MOVING, RankMemory
from tests.ranks import ROOT, run_ranks
from tools.measured_memory import Moving

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
        config = load_config(ROOT / f"configs/{file}.yaml", options)
        check_config(config)
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
    Case("expert 2 of data 4, Muon, bf16", 4, MIXTURE, "parallel.expert=2 optimizer.name=muon"),
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
    where = make_layout(config, MACHINES["h100"], ranks)
    vocab = padded_vocab(config.model, config.parallel.tensor, TOKENS)

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


BATCH = 12  # cases that one pair of ranks runs
PIPELINE = """
model.layers=8 model.hidden_size=128 model.heads=4 model.head_dim=16 model.ffn_hidden_size=96 mla.kv_rank=24
mla.rope_dim=8 moe.experts=8 moe.top_k=3 moe.ffn_hidden_size=32 moe.shared_experts=1 model.vocab_size=384
model.norm=layernorm_plain kernels=torch data.sequence_length=64 training.global_batch=12 training.micro_batch=1
optimizer.warmup_steps=0 parallel.pipeline=2
"""
SPLITS = ("1f1b", "gpipe", "interleaved", "zb_h1", "zb_v", "dualpipev", "dualpipe")
MODES = {
    "none": "recompute.mode=none",
    "selective": "recompute.mode=selective recompute.modules=[core_attn,mla_up_proj,mlp,shared_experts]",
    "block": "recompute.mode=block",
    "full": "recompute.mode=full",
}


def moving_cases() -> Iterator[Case]:
    """Every schedule, recomputation and kind over two pipeline ranks."""
    for kind in KINDS:
        n = 1 if kind == "residual" else 4
        for schedule in SPLITS:
            chunks = " parallel.virtual=2" if schedule == "interleaved" else ""
            for mode, settings in MODES.items():
                if (kind, mode) != ("residual", "block"):  # no streams, no blocks
                    # what is sent is held until it has gone, as on a GPU; shared memory has it at once
                    connection = (
                        f"connection.kind={kind} connection.n={n} parallel.schedule={schedule}{chunks} "
                        "parallel.transport=gloo"
                    )
                    yield Case(
                        f"{schedule} {mode} {kind}", 2, ("mhc-3b", PIPELINE), f"{connection} {settings}"
                    )


class Ratio(NamedTuple):
    """A rank's planned bytes over the real ones, and during which action there are most."""

    rank: int
    held: float
    most: float
    during: tuple[str, str]


def compare_moving(cases: list[Case]) -> list[list[Ratio]]:
    """Of every case, of every pipeline rank."""
    configs = [case.config for case in cases]
    options = {"preload": PRELOAD, "timeout": 60 + 30 * len(cases)}
    real = run_ranks(2, "tools.measured_memory:moving", configs, TOKENS, **options)
    found = []
    for number, config in enumerate(configs):
        plan = make_plan(config, MACHINES["h100"], 2, Assumptions(imbalance=1.0))
        found.append([_ratio(rank, own, real[rank][number]) for rank, own in enumerate(plan.memory)])
    return found


def _ratio(rank: int, planned: RankMemory, real: Moving) -> Ratio:
    pool = MOVING.index("receive buffers")
    most = sum(planned.top.held) - planned.top.held[pool]
    return Ratio(rank, planned.between / real.between, most / real.most, (planned.action, real.during))


AIM = 0.05  # of what is held between actions


def activations(words: list[str]) -> int:
    """Print the table of the cases that have all the words in their names; 1 where a rank misses AIM."""
    cases = [case for case in moving_cases() if set(words) <= set(case.name.split())]
    found: list[Ratio] = []
    print("| case | held, planned / real by rank | most, planned / real | most during, planned and real |")
    print("|---|---|---|---|")
    for first in range(0, len(cases), BATCH):
        own = cases[first : first + BATCH]
        for case, ratios in zip(own, compare_moving(own), strict=True):
            held, most = (" ".join(f"{r[i]:.3f}" for r in ratios) for i in (1, 2))
            during = "; ".join(" ".join(r.during) for r in ratios)
            print(f"| {case.name} | {held} | {most} | {during} |", flush=True)
            found += ratios
    least, most = (pick(ratio.held for ratio in found) for pick in (min, max))
    print(f"{len(cases)} cases, held: planned / real {least:.3f} to {most:.3f}")
    return int(least < 1 - AIM or most > 1 + AIM)


def main(arguments: list[str] | None = None) -> int:
    """Print a table; 1 where a byte of what is always there is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.planned_memory", description=__doc__)
    parser.add_argument("--activations", nargs="*", metavar="WORD", help="what comes and goes in a step")
    options = parser.parse_args(arguments)
    if options.activations is not None:
        return activations(options.activations)
    wrong = 0
    print(HEAD)
    for case in CASES:
        found = compare(case)
        print(line(found), flush=True)
        wrong += found.worst
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
