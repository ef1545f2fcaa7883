"""Whether what each layout writes is what each other layout reads, bit for bit: python -m tests.training.reshard_table

Every layout trains two steps and saves; every other one loads that, saves it again untrained, and both checkpoints are
compared tensor by tensor: weights, router biases, Adam's moments and count.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.ranks import RanksFailed, run_ranks
from tests.training import workers
from tests.training.reshard_cases import RUN, content, differing, network

SHARDED = {"distributed_optimizer": True}
WHOLE = {"distributed_optimizer": False}


class Layout(NamedTuple):
    """A way to split the network: ranks, the section `parallel`, precision, and moe.grouped."""

    ranks: int
    parallel: dict[str, Any]
    dtype: str = "fp32"
    grouped: bool = True


LAYOUTS = {
    "one process": Layout(1, {}),
    "one after another": Layout(1, {}, "fp32", False),
    "DP 2, sharded": Layout(2, SHARDED),
    "TP 2 + SP, sharded": Layout(2, {"tensor": 2, "sequence": True, **SHARDED}),
    "EP 2, sharded": Layout(2, {"expert": 2, **SHARDED}),
    "EP 2, one after another": Layout(2, {"expert": 2, **WHOLE}, "fp32", False),
    "TP 2 x expert TP 2": Layout(2, {"tensor": 2, "sequence": True, "expert_tensor": 2, **WHOLE}),
    "EP 2 x TP 2 + SP, sharded": Layout(4, {"tensor": 2, "sequence": True, "expert": 2, **SHARDED}),
    "PP 2 x EP 2, bf16": Layout(4, {"pipeline": 2, "expert": 2, **SHARDED}, "bf16"),
    "a V, bf16": Layout(2, {"pipeline": 2, "schedule": "dualpipev", **WHOLE}, "bf16"),
}


def config_of(layout: Layout, text: Path, directory: Path, **sections: dict[str, Any]) -> Any:
    """Of a run of two steps."""
    training = {"dtype": layout.dtype, "global_batch": 4, "steps": 2}
    config = network(text, directory, layout.parallel, layout.dtype, training=training, **sections)
    config.moe.grouped = layout.grouped
    return config


def main() -> int:
    """Print a line for each pair; 1 where one differs."""
    wrong = pairs = 0
    with tempfile.TemporaryDirectory(prefix="reshard-") as folder:
        root = Path(folder)
        text = root / "text.txt"
        text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
        for writer, wrote in LAYOUTS.items():
            directory = root / "writer"
            run_ranks(wrote.ranks, workers.run, config_of(wrote, text, directory), **RUN)
            path = directory / "checkpoints/step-00000002"
            original = content(path)
            for reader, reads in LAYOUTS.items():
                pairs += 1
                load = {"checkpoint": {"load": str(path)}}
                config = config_of(reads, text, root / "reader", **load)
                config.training.steps = 3
                try:
                    run_ranks(reads.ranks, workers.saved_again, config, root / "again", **RUN)
                    found = differing(content(root / "again/step-00000002"), original)
                except RanksFailed as error:
                    found = [str(error)[-800:]]
                wrong += bool(found)
                print(f"{writer} -> {reader}: {found or 'the same bits'}", flush=True)
                shutil.rmtree(root / "reader", ignore_errors=True)
                shutil.rmtree(root / "again", ignore_errors=True)
            shutil.rmtree(directory)
    print(f"{pairs} pairs, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
