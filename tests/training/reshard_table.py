"""Whether what each layout writes is what others read, bit for bit.

    python -m tests.training.reshard_table [--all] [--journal FILE]

Every layout trains two steps and saves; others load that, save it again untrained, and both checkpoints are compared
tensor by tensor: weights, router biases, Adam's moments and count. The pairs are chosen so that every layout is read by
three others at least, and every change of every axis of a layout, from each of its values to each other one, occurs.
With a journal, pairs that it has are not run again: a table that was cut off goes on.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.ranks import RanksFailed, run_ranks
from tests.training import workers
from tests.training.reshard_cases import RUN, content, differing, network

SHARDED = {"distributed_optimizer": True}
WHOLE = {"distributed_optimizer": False}
READERS = 3  # of each layout, at least


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
    "interleaved": Layout(2, {"pipeline": 2, "schedule": "interleaved", "virtual": 2, **WHOLE}),
    "mirrors": Layout(2, {"pipeline": 2, "schedule": "dualpipe", **WHOLE}),
    "a V, bf16": Layout(2, {"pipeline": 2, "schedule": "dualpipev", **WHOLE}, "bf16"),
}


def axes(layout: Layout) -> dict[str, Any]:
    """Where a layout stands on every axis of a change."""
    split = layout.parallel
    pipeline, tensor = split.get("pipeline", 1), split.get("tensor", 1)
    schedule = split.get("schedule", "megatron_1f1b")
    return {
        "DP": layout.ranks // (pipeline * tensor),
        "TP": tensor,
        "PP": pipeline,
        "EP": split.get("expert", 1),
        "expert TP": split.get("expert_tensor", 1),
        "SP": split.get("sequence", False),
        "schedule": schedule if pipeline > 1 else None,
        "virtual": split.get("virtual", 1),
        "mirrors": schedule == "dualpipe",
        "distributed optimizer": split.get("distributed_optimizer", layout.dtype == "bf16"),
        "grouped experts": layout.grouped,
        "precision": layout.dtype,
    }


def changes(writer: str, reader: str) -> set[tuple[str, Any, Any]]:
    """(axis, from, to) of what is another where one reads what another wrote."""
    before, after = axes(LAYOUTS[writer]), axes(LAYOUTS[reader])
    return {(axis, before[axis], after[axis]) for axis in before if before[axis] != after[axis]}


def chosen() -> list[tuple[str, str]]:
    """(writer, reader) pairs, few of them: each next one has the most changes that none before it had."""
    every = list(itertools.permutations(LAYOUTS, 2))
    missing = set().union(*(changes(*pair) for pair in every))
    found: list[tuple[str, str]] = []
    while missing:
        found.append(max(every, key=lambda pair: len(changes(*pair) & missing)))
        missing -= changes(*found[-1])
    read = Counter(writer for writer, _ in found)
    for pair in sorted(set(every) - set(found), key=lambda pair: -len(changes(*pair))):
        if read[pair[0]] < READERS:
            found.append(pair)
            read[pair[0]] += 1
    return sorted(found, key=every.index)


def config_of(layout: Layout, text: Path, directory: Path, **sections: dict[str, Any]) -> Any:
    """Of a run of two steps."""
    training = {"dtype": layout.dtype, "global_batch": 4, "steps": 2}
    config = network(text, directory, layout.parallel, layout.dtype, training=training, **sections)
    config.moe.grouped = layout.grouped
    return config


def compared(text: Path, root: Path, path: Path, original: dict[str, Any], reads: Layout) -> str:
    """What is another when a layout has loaded a checkpoint and saved it again; "" where nothing is."""
    config = config_of(reads, text, root / "reader", checkpoint={"load": str(path)})
    config.training.steps = 3
    try:
        run_ranks(reads.ranks, workers.saved_again, config, root / "again", **RUN)
        return ", ".join(differing(content(root / "again/step-00000002"), original))
    except RanksFailed as error:
        return " ".join(str(error)[-800:].split())
    finally:
        shutil.rmtree(root / "reader", ignore_errors=True)
        shutil.rmtree(root / "again", ignore_errors=True)


def main(argv: list[str]) -> int:
    """Print a line for each pair; 1 where one differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.reshard_table")
    parser.add_argument("--all", action="store_true", help="every ordered pair, not the chosen ones")
    parser.add_argument(
        "--journal", type=Path, help="a file of results, to which those that it lacks are added"
    )
    asked = parser.parse_args(argv)
    pairs = list(itertools.permutations(LAYOUTS, 2)) if asked.all else chosen()
    lines = asked.journal.read_text().splitlines() if asked.journal and asked.journal.exists() else []
    results = {tuple(line.split(" -> ")[:2]): line for line in lines if line.count(" -> ") == 2}
    with tempfile.TemporaryDirectory(prefix="reshard-") as folder:
        root = Path(folder)
        text = root / "text.txt"
        text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
        todo = [pair for pair in pairs if pair not in results]
        for writer, of_writer in itertools.groupby(todo, key=lambda pair: pair[0]):
            directory, wrote = root / "writer", LAYOUTS[writer]
            run_ranks(wrote.ranks, workers.run, config_of(wrote, text, directory), **RUN)
            path = directory / "checkpoints/step-00000002"
            original = content(path)
            for _, reader in of_writer:
                found = compared(text, root, path, original, LAYOUTS[reader])
                results[writer, reader] = f"{writer} -> {reader} -> {found or 'the same bits'}"
                if asked.journal:
                    with asked.journal.open("a") as stream:
                        stream.write(results[writer, reader] + "\n")
                print(results[writer, reader], flush=True)
            shutil.rmtree(directory)
    wrong = sum(not results[pair].endswith(" -> the same bits") for pair in pairs)
    print(
        f"{len(pairs)} pairs, {wrong} wrong; changes: {len(set().union(*(changes(*pair) for pair in pairs)))}"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
