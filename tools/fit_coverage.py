"""How often the intervals of fitted laws hold the truth, on laws that are known.

    python -m tools.fit_coverage              # 200 tables, 200 bootstraps each
    python -m tools.fit_coverage --draws 40   # sooner

Every table has the losses of 96 runs of a known law L = E + A/N^alpha + B/D^beta, each with an error of 1% of the loss
(normal in its logarithm); and those of 60 runs of two connections, of L = E + K/(m C)^gamma. Of every number the share
of tables whose 90% interval holds it should be 90%: between 85 and 95 counts as right.
"""

from __future__ import annotations

import argparse

import numpy as np

from hcmegatron.studies.fit import Fit, fit_law
from hcmegatron.studies.laws import compute_law, loss_law
from tools.targets import Targets, exit_status

LOSS = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
COMPUTE = {"E": 1.7, "K": 70.0, "gamma": 0.11, "m[mhc]": 1.25}


def loss_table(draw: np.random.Generator, bootstraps: int, noise: float = 0.01) -> Fit:
    """A fit of twelve sizes with eight numbers of tokens each."""
    sizes, tokens = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(3e7, 1e10, 12), np.geomspace(5e8, 3e11, 8))
    )
    losses = LOSS["E"] + LOSS["A"] / sizes ** LOSS["alpha"] + LOSS["B"] / tokens ** LOSS["beta"]
    noisy = losses * np.exp(noise * draw.standard_normal(len(losses)))
    return fit_law(loss_law(sizes, tokens), noisy, bootstraps, int(draw.integers(2**31)))


def compute_table(draw: np.random.Generator, bootstraps: int, noise: float = 0.01) -> Fit:
    """A fit of ten budgets, three seeds each, of two connections."""
    compute = np.tile(np.geomspace(1e16, 1e21, 10), 6)
    kinds = np.repeat(["residual", "mhc"], 30)
    factor = np.where(kinds == "mhc", COMPUTE["m[mhc]"], 1.0)
    losses = COMPUTE["E"] + COMPUTE["K"] / (factor * compute) ** COMPUTE["gamma"]
    noisy = losses * np.exp(noise * draw.standard_normal(len(losses)))
    law = compute_law(compute, kinds.tolist(), "residual")
    return fit_law(law, noisy, bootstraps, int(draw.integers(2**31)))


def main() -> int:
    """Prints a table; returns 1 where a share is outside of its range."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--draws", type=int, default=200, help="tables (default: 200)")
    parser.add_argument("--bootstraps", type=int, default=200, help="of each (default: 200)")
    options = parser.parse_args()
    targets = Targets()
    print(f"| law | number | truth | intervals that hold it (target) |\n{'|---' * 4}|")
    for name, table, truth in (
        ("L(N, D)", loss_table, LOSS),
        ("L(C), two kinds", compute_table, COMPUTE),
    ):
        draw = np.random.default_rng(0)
        held = np.zeros(len(truth))
        true = np.array(list(truth.values()))
        for _ in range(options.draws):
            low, high = table(draw, options.bootstraps).interval().T
            held += (low <= true) & (true <= high)
        for number, value, share in zip(truth, true, held / options.draws, strict=True):
            target = targets.between(f"{name}: {number}", share, 0.85, 0.95)
            print(f"| {name} | {number} | {value:g} | {share:.1%} ({target}) |", flush=True)
    return exit_status(targets.missed)


if __name__ == "__main__":
    raise SystemExit(main())
