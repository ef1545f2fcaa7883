"""What a checkpoint costs: seconds that training is stopped, until it has its name, to load it, and to go on from it.

    python -m tools.checkpoint_times [--models quickstart large] [--ranks 1 2] [--rounds 5] [--folder DIR]

Saves with and without checkpoint.asynchronous take turns in one run; medians, of the rank that is stopped longest. The
first save of a run agrees who writes what, and the first one in the background allocates the copies. "Meanwhile" is how
much longer a step takes while a checkpoint is being written. The restart is a new process each time, until the first
step has ended, by part. The large model has 85 million parameters, and a checkpoint of about 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # ranks are forked, which a GPU would not survive

from hcmegatron.config.load import load_config
from hcmegatron.config.schema import Config
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.local_launch import launch_ranks
from hcmegatron.platform.ranks import RankInfo
from tools.targets import Targets, exit_status

LARGE = {
    "model.layers": 12,
    "model.hidden_size": 768,
    "model.heads": 12,
    "model.attention": "gqa",
    "model.ffn_hidden_size": 2048,
    "moe.experts": 0,
    "data.sequence_length": 32,
    "training.global_batch": 2,
    "training.micro_batch": 1,
    "parallel.schedule": "1f1b",
}
ALONE = {"parallel.pipeline": 1, "parallel.schedule": "megatron_1f1b"}
MOST = 0.10  # of the time of a save without checkpoint.asynchronous that training may be stopped
PARTS = (
    "processes and imports",
    "data",
    "groups",
    "verification",
    "model",
    "load",
    "rehearsal",
    "first step",
)


def config_of(model: str, ranks: int, directory: Path) -> Config:
    """The quickstart, or a larger dense network, over as many pipeline ranks."""
    settings = (LARGE if model == "large" else {}) | (ALONE if ranks == 1 else {"parallel.pipeline": ranks})
    settings |= {
        "training.threads": 1,
        "training.eval_every": 0,
        "run.peak_tflops": 0.1,
        "run.dir": directory,
    }
    settings |= {"training.log_every": 10**6, "run.tensorboard": False}
    return load_config("configs/quickstart.yaml", [f"--{key}={value}" for key, value in settings.items()])


def saves(config: Config, rounds: int, output: Path, ranks: RankInfo) -> int:
    """Save by turns; rank 0 writes the seconds into a file, by what they are of."""
    import torch.distributed as dist

    from hcmegatron.data.corpus import find_corpus
    from hcmegatron.platform.distributed import process_groups
    from hcmegatron.training.manifest import Progress
    from hcmegatron.training.run import one_step
    from hcmegatron.training.setup import assemble_run

    corpus = find_corpus(config.data)
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        dist.barrier()
        start = time.perf_counter()
        work()
        dist.barrier()  # as the next step would: the slowest rank stops them all
        times.setdefault(name, []).append(time.perf_counter() - start)

    with (
        process_groups(config, ranks) as groups,
        assemble_run(config, ranks, groups, corpus, Path(config.run.dir)) as run,
    ):
        done = 0

        def step(name: str = "step") -> None:
            nonlocal done
            done += 1
            timed(name, lambda: one_step(run, done, 0))

        def save() -> None:
            if said := run.checkpoints.save(Progress(done, done)):
                raise RuntimeError(said)

        step("warm-up")
        for number in range(rounds + 1):
            step()
            config.checkpoint.asynchronous = False
            timed("sync save" if number else "sync first", save)
            step("warm-up")
            config.checkpoint.asynchronous = True
            start = time.perf_counter()
            timed("async block" if number else "async first", save)
            while not run.checkpoints.arrived():
                step("step while writing")
            run.checkpoints.finish()
            times.setdefault("async save", []).append(time.perf_counter() - start)
        if ranks.rank == 0:
            newest = sorted((Path(config.run.dir) / "checkpoints").glob("step-*"))[-1]
            size = sum(file.stat().st_size for file in newest.iterdir())
            medians = {name: statistics.median(values) for name, values in times.items()}
            output.write_text(json.dumps(medians | {"bytes": size}))
    return 0


def restarted(config: Config, began: float, output: Path, ranks: RankInfo) -> int:
    """Continue a run until its first step has ended; rank 0 writes the seconds of every part."""
    from hcmegatron.training import checkpoint, run
    from hcmegatron.training.step import Stepper

    marks = [began, time.time()]

    def marked(owner: Any, name: str, before: bool = False) -> None:
        usual = getattr(owner, name)

        def method(*args: Any, **options: Any) -> Any:
            if before:
                marks.append(time.time())
            result = usual(*args, **options)
            marks.append(time.time())
            return result

        setattr(owner, name, method)

    marked(run, "find_corpus")
    marked(run, "StopFlag")  # asked for when the groups are there
    marked(checkpoint, "find")
    marked(checkpoint.Checkpoints, "load", before=True)
    marked(Stepper, "rehearse")
    usual_step = Stepper.step

    def step(self: Stepper, seen: int) -> None:
        usual_step(self, seen)
        marks.append(time.time())
        if ranks.rank == 0:
            parts = zip(PARTS, marks, marks[1:], strict=False)
            output.write_text(json.dumps({name: end - start for name, start, end in parts}))
        raise Ended("the first step has ended", 0)

    Stepper.step = step
    return run.train(config, ranks)


def main(argv: list[str]) -> int:
    """Print a table for each model and number of ranks; 1 where training is stopped for longer than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    models = ("quickstart", "large")
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="on the file system that is measured; else temporary files'"
    )
    parser.add_argument("--of-saves", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--of-restart", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # ranks are forked
    if asked.of_saves or asked.of_restart:
        return child(asked)
    targets = Targets()
    for model in asked.models:
        for ranks in asked.ranks:
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                measured(model, ranks, Path(folder), asked.rounds, targets)
    return exit_status(targets.missed)


def child(asked: argparse.Namespace) -> int:
    """One measurement, in a process of its own that has used no threads: ranks are its forks."""
    import hcmegatron.training.run  # noqa: F401  (once, for all forks)

    (model,), (ranks,) = asked.models, asked.ranks
    config, output = config_of(model, ranks, asked.folder / "run"), asked.folder / "seconds.json"
    if asked.of_saves:
        return launch_ranks(partial(saves, config, asked.rounds, output), ranks)
    config.checkpoint.resume = "required"
    try:
        return launch_ranks(partial(restarted, config, asked.of_restart, output), ranks)
    except Ended as ended:
        return ended.status


def measured(model: str, ranks: int, folder: Path, rounds: int, targets: Targets) -> None:
    """Measure one model on so many ranks, and print it."""

    def run(*options: str) -> dict[str, float]:
        command = [sys.executable, "-m", "tools.checkpoint_times", "--models", model, "--ranks", str(ranks)]
        command += ["--folder", str(folder), "--rounds", str(rounds), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((folder / "seconds.json").read_text())

    found = run("--of-saves")
    restarts = [run("--of-restart", str(time.time())) for _ in range(rounds)]
    parts = {part: statistics.median(one[part] for one in restarts) for part in PARTS}
    share = found["async block"] / found["sync save"]
    slower = found.get("step while writing", found["step"]) / found["step"]
    targets.at_most(f"stopped, {model}, {ranks} ranks", share, MOST)
    print(f"{model}, {ranks} ranks, {found['bytes'] / 1e6:.1f} MB, a step {found['step']:.3f} s")
    print(
        f"  stopped: sync {found['sync save']:.4f} s, async {found['async block']:.4f} s ({share:.1%}); "
        f"the first ones {found['sync first']:.4f} and {found['async first']:.4f} s"
    )
    print(
        f"  until it has its name: sync {found['sync save']:.3f} s, async {found['async save']:.3f} s; "
        f"steps meanwhile {slower:.2f} times as long"
    )
    print(
        f"  restart to the end of the first step {sum(parts.values()):.2f} s: "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
