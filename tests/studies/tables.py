"""Small tables of studies, as `study collect` writes them, with losses that can be reckoned by hand."""

import csv
import itertools

from tests.studies.known import A, B, E, alpha, beta


def row(kind, seed, loss, size="s", **others):
    """A run of 1e8 parameters on 2e9 tokens."""
    name = "-".join(
        map(str, (kind, size, *(v for v in others.values() if isinstance(v, int | str | bool)), seed))
    )
    return {
        "run": name,
        "group": name,
        "kind": kind,
        "size": size,
        "seed": seed,
        "parameters": 1e8,
        "tokens": 2e9,
        "loss": loss,
        "diverged": loss is None,
        "spikes": 0,
    } | others


def written(path, rows):
    """The rows as a CSV file with every column that one of them has."""
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for one in rows for key in one)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def grid(sizes=4, counts=3, seeds=2, kinds=(("residual", 1.0), ("mhc", 1.2))):
    """Runs of the known law: each kind as the first one at so many times N and D; seeds err by 0.1%."""
    rows = []
    for i, j, seed, (kind, factor) in itertools.product(range(sizes), range(counts), range(seeds), kinds):
        n, d = 1e8 * 4**i, 1e9 * 4**i * 3**j
        loss = (E + A / (factor * n) ** alpha + B / (factor * d) ** beta) * (1 + 0.001 * (seed - i % 2))
        size = {"size": f"d{i}", "parameters": n, "tokens": d, "group": f"{kind}{i}-{seed}"}
        rows.append(row(kind, seed, loss) | size | {"run": f"{kind}{i}-{seed}-{j}"})
    return rows
