"""The quickstart's first losses of every kind of connection, to the last digit: what a change that is not meant to
change numbers keeps.

    python -m tools.golden --out before.json                    # at the commit before
    python -m tools.golden --out after.json --against before.json

Runs `hcmegatron train configs/quickstart.yaml` for each kind and keeps every step's loss and gradient norm, and the
loss on held-out text after the last step, which shows the updated parameters. Further --section.key=value settings
are passed on. The same machine, Python and torch give the same bits; others need not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from hcmegatron.config import ConfigError
from hcmegatron.config.load import load_config
from tools.table_kinds import KINDS

QUICKSTART = "configs/quickstart.yaml"

Losses = list[tuple[str, int, float, float | None]]  # what (train, validation), step, loss, gradient norm


def losses(kind: str, steps: int, settings: list[str], folder: Path) -> Losses:
    """Of one run."""
    directory = folder / kind
    own = [f"--connection.kind={kind}", f"--training.steps={steps}", f"--run.dir={directory}"]
    own += [] if kind == "residual" else [f"--connection.n={KINDS[kind]}"]
    own += ["--training.eval_every=0", "--run.tensorboard=false"]
    command = [sys.executable, "-m", "hcmegatron", "train", QUICKSTART, *own, *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["kind"], line["step"], line["loss"], line.get("grad_norm"))
        for line in lines
        if line["kind"] != "diagnostics"  # which may come at other steps
    ]


def differences(before: dict[str, Losses], after: dict[str, Losses]) -> list[str]:
    """Per kind, the first figure that is not the same; empty where all are."""
    found = []
    for kind in before:
        pairs = zip(map(tuple, before[kind]), map(tuple, after.get(kind, [])), strict=False)
        unequal = next((f"{old} before, {new} now" for old, new in pairs if old != new), None)
        if unequal is None and len(before[kind]) != len(after.get(kind, [])):
            unequal = f"{len(before[kind])} figures before, {len(after.get(kind, []))} now"
        if unequal:
            found.append(f"{kind}: {unequal}")
    return found


def main() -> int:
    """Runs, writes, compares. Returns 1 where a figure differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--against", type=Path, help="figures of another commit, to compare with")
    options, settings = parser.parse_known_args()
    try:
        load_config(QUICKSTART, settings)
    except ConfigError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: losses(kind, options.steps, settings, Path(folder)) for kind in KINDS}
    for kind, figures in found.items():
        print(f"{kind:>8}: loss {figures[0][2]!r} in step 1, {figures[-1][2]!r} on held-out text")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    if options.against is None:
        return 0
    unequal = differences(json.loads(options.against.read_text()), found)
    print("\n".join(unequal) or "all figures are the same, to the last digit")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
