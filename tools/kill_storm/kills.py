"""What is killed, how and when: drawn from a seed. And the runs that it happens to."""

from __future__ import annotations

import random
import signal
from typing import NamedTuple

from tools.kill_storm.phases import PHASES

LIMIT_S = 15  # parallel.timeout_s
STEPS, SAVE_EVERY = 24, 3

COMMON = {
    "model.layers": 4,
    "model.hidden_size": 16,
    "model.heads": 2,
    "model.head_dim": 8,
    "model.ffn_hidden_size": 24,
    "model.hidden_dropout": 0.1,
    "model.vocab_multiple": 1,
    "connection.n": 2,
    "connection.sinkhorn_iterations": 3,
    "data.sequence_length": 32,
    "data.holdout": 0.1,
    "training.steps": STEPS,
    "training.global_batch": 8,
    "training.micro_batch": 1,
    "training.threads": 1,
    "training.eval_every": 4,
    "training.eval_batches": 4,
    "optimizer.warmup_steps": 4,
    "checkpoint.resume": "auto",
    "checkpoint.save_every": SAVE_EVERY,
    "parallel.timeout_s": LIMIT_S,
    "run.tensorboard": "false",
    "run.peak_tflops": 0.01,
}
MOE = {
    "model.attention": "mla",
    "mla.kv_rank": 8,
    "mla.rope_dim": 4,
    "moe.experts": 4,
    "moe.top_k": 2,
    "moe.ffn_hidden_size": 12,
    "moe.shared_experts": 1,
    "moe.first_dense": 1,
}


class Layout(NamedTuple):
    """A network and how it is split."""

    name: str
    ranks: int
    settings: dict[str, object]


def _layout(name: str, ranks: int, moe: bool, synchronous: bool = False, **parallel: object) -> Layout:
    own: dict[str, object] = {f"parallel.{key}": value for key, value in parallel.items()}
    if parallel.get("pipeline") == 4:
        own["model.layers"] = 8
    if synchronous:
        own["checkpoint.asynchronous"] = "false"
    return Layout(name, ranks, {**COMMON, **(MOE if moe else {}), **own})


LAYOUTS = (
    _layout("moe dualpipev, 2 ranks", 2, True, pipeline=2, schedule="dualpipev"),
    _layout("dense dualpipe, 2 ranks", 2, False, pipeline=2, schedule="dualpipe"),
    _layout("moe dualpipev, 4 ranks", 4, True, pipeline=4, schedule="dualpipev"),
    _layout("dense 1f1b, 2 ranks, synchronous saves", 2, False, True, pipeline=2, schedule="1f1b"),
    _layout("dense, tensor parallel, 2 ranks", 2, False, tensor=2, sequence="true"),
    _layout("moe, expert parallel, 2 ranks", 2, True, expert=2),
    _layout(
        "moe dualpipev, 2 x 2 expert-parallel ranks", 4, True, pipeline=2, expert=2, schedule="dualpipev"
    ),
    _layout("moe, 1 rank", 1, True),
)


def same_network(one: Layout, other: Layout) -> bool:
    """Whether two layouts are of one network, and save alike."""
    own = [
        {key: value for key, value in each.settings.items() if not key.startswith("parallel.")}
        for each in (one, other)
    ]
    return own[0] == own[1]


class Kill(NamedTuple):
    """A signal to the command, or to one of its ranks, in a phase.

    Attributes:
        rank: among the ranks; None: the command itself.
        delay: seconds in the phase before.
    """

    rank: int | None
    signal: signal.Signals
    phase: str
    delay: float


# (weight, whether it goes to a rank, signal)
_HOW = (
    (30, True, signal.SIGKILL),
    (10, True, signal.SIGSEGV),
    (6, True, signal.SIGABRT),
    (8, True, signal.SIGTERM),
    (4, True, signal.SIGINT),
    (6, True, signal.SIGSTOP),
    (18, False, signal.SIGKILL),
    (8, False, signal.SIGTERM),
    (4, False, signal.SIGINT),
    (4, False, signal.SIGUSR1),
    (2, False, signal.SIGHUP),
)
_PHASE_WEIGHTS = {"start": 2, "load": 2, "rehearsal": 2, "step": 4, "evaluation": 3, "save": 5}


def draw(random_: random.Random, layout: Layout) -> Kill:
    """Anything, at any time."""
    _, to_rank, number = random_.choices(_HOW, [weight for weight, *_ in _HOW])[0]
    if number == signal.SIGSTOP and layout.ranks == 1:
        number = signal.SIGKILL  # nobody would notice
    phase = random_.choices(PHASES, [_PHASE_WEIGHTS[phase] for phase in PHASES])[0]
    rank = random_.randrange(layout.ranks) if to_rank else None
    return Kill(rank, number, phase, random_.uniform(0.0, 0.03))
