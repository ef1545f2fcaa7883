"""Every kind of connection trained by the quickstart: loss and speed, as the table of docs/benchmarks.md.

    python -m tools.table_kinds [--steps 150]

One run after another of `hcmegatron train configs/quickstart.yaml --connection.kind=...`; the figures are
read from each run directory. Tokens a second is the median over steps. What a kind costs over the plain residual is
`python -m tools.bench_kinds`'s to say, which compares neighbouring steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hcmegatron.connections.kinds import KINDS as kinds

KINDS = {name: 4 if "n" in kind.fields else 1 for name, kind in kinds.items()}


def row(kind: str, n: int, steps: int, folder: Path) -> tuple[float, float]:
    """(validation loss, tokens a second) of one run."""
    directory = folder / kind
    settings = [f"--connection.kind={kind}", f"--training.steps={steps}"]
    settings += [] if kind == "residual" else [f"--connection.n={n}"]
    settings += [f"--run.dir={directory}", "--training.eval_every=0", "--run.tensorboard=false"]
    command = [sys.executable, "-m", "hcmegatron", "train", "configs/quickstart.yaml", *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_s"] for line in lines if line["kind"] == "train"]
    (loss,) = [line["loss"] for line in lines if line["kind"] == "validation"]
    return loss, statistics.median(speeds)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    print(f"| connection, {steps} steps | validation loss, nats a byte | tokens/s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind, n in KINDS.items():
            loss, speed = row(kind, n, steps, Path(folder))
            label = kind if n == 1 else f"{kind}, n = {n}"
            print(f"| {label} | {loss:.3f} | {speed:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
