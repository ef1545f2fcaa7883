"""Small runs that launchers' scripts start."""

import json
import sys
from pathlib import Path

from hcmegatron.config import dump_config
from launch import launchers
from launch.job import Job
from tests.ranks import ROOT
from tests.small_configs import put, tiny

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


def configured(directory, text, steps):
    """A configuration whose learning rate does not depend on how many steps there are to be."""
    text.write_text("".join(f"line {number}: {number * number}\n" for number in range(2000)))
    config = put(
        tiny(text, directory), training={"steps": steps, "threads": 1}, optimizer={"schedule": "constant"}
    )
    return put(config, checkpoint={"save_every": 1, "resume": "auto"})


def start_command(launcher, config, nodes, ranks_per_node, restarts=0, setup=(), words=()):
    """The arguments that start a job's script, once its files are there."""
    directory = Path(config.run.dir)
    file = directory / "launch/config.yaml"
    job = Job(
        command=(sys.executable, "-m", "hcmegatron", "train", str(file), *words),
        run_dir=directory,
        work_dir=ROOT,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        gpus_per_rank=0,
        restarts=restarts,
        environment={"OMP_NUM_THREADS": "1"},
        setup=(f"export PATH={Path(sys.executable).parent}:$PATH", *setup),
    )
    for name, content in launchers.find(launcher).render(job).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    file.write_text(dump_config(config))
    return ["bash", str(directory / "launch/job.sh")]


def losses(directory):
    """Of the steps that are done, as the metrics have them."""
    try:
        lines = (directory / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
