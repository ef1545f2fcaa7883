"""Which schedule is quickest with one's own costs? No torch, no GPU, a second.

    python examples/simulate_own_costs.py

Four pipeline ranks, 16 micro-batches; a stage's F, I and W as somebody has measured them, in milliseconds; the last one
slower for the head; and a hop that is n = 4 times as wide as a plain stream's.
"""

from __future__ import annotations

from hcmegatron.schedules import Costs, Link, Simulation, StageCosts, generate, simulate, validate

RANKS, MICROBATCHES = 4, 16
STAGE = StageCosts(F=10.0, I=11.0, W=8.0, activation=1.0)  # of a quarter of the model
HEAD = 1.15  # how much longer the last stage takes
LINK = Link(latency=0.02, bandwidth=50e6)  # ms; bytes a ms, 50 GB/s
HOP = 4096 * 2560 * 2  # bytes of a plain stream: tokens of a micro-batch, hidden size, bf16


def simulated(name: str) -> Simulation:
    """The schedule's step. One that has several chunks a rank has stages that are so much smaller."""
    schedule = generate(name, RANKS, MICROBATCHES)
    validate(schedule)
    stages = schedule.placement.model_stages
    stage = STAGE.scaled(RANKS / stages)
    costs = Costs((stage,) * (stages - 1) + (stage.scaled(HEAD),), LINK, hop_bytes=HOP, streams=4)
    return simulate(schedule, costs)


def main() -> list[tuple[str, float]]:
    """Every schedule, the quickest first."""
    found = sorted(
        (simulated(name).makespan, name)
        for name in ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_v", "dualpipev")
    )
    for makespan, name in found:
        print(f"{name:12} {makespan:7.1f} ms, bubble {simulated(name).bubble_fraction:.1%}")
    return [(name, makespan) for makespan, name in found]


if __name__ == "__main__":
    main()
