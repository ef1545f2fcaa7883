"""A run under fire in miniature, and that the judge sees what he is there for."""

import json
import shutil
import signal

import pytest

from hcmegatron.training.checksums import summed
from hcmegatron.training.manifest import Manifest
from tests.ranks import run_ranks
from tests.tools import storm_workers
from tools.kill_storm import campaign, judge

RUN = {"preload": ("tests.tools.storm_workers",), "process_group": False, "timeout": 120}


@pytest.mark.ranks
def test_four_shots_and_the_same_bits(tmp_path):
    ((wrong, kills),) = run_ranks(1, storm_workers.storm, tmp_path, **RUN)
    (run,) = judge.lines(tmp_path / "runs.jsonl", "kill")
    assert (wrong, run["wrong"]) == (0, "")
    hit = [(kill["target"], kill["signal"], kill["status"]) for kill in kills]
    assert hit == [
        ("rank", "SIGKILL", None),  # started again
        ("command", "SIGKILL", -signal.SIGKILL),
        ("rank", "SIGTERM", 75),
        ("command", "SIGUSR1", 75),
    ]
    said = campaign.summary(tmp_path)
    assert "| moe dualpipev, 2 ranks | 4 | 1 | 1 |" in said
    columns = {
        line.count("|") for line in said if line.startswith(("| phase", "|---|---|---|---|---|-", "| save"))
    }
    assert len(columns) == 1


def recorded(directory, losses, data):
    """A run's files: (loss, gradient norm) of its steps, and a checkpoint whose tensors are `data`."""
    path = directory / f"checkpoints/step-{len(losses):08d}"
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_bytes(data)
    entries = [
        {"kind": "train", "step": n, "loss": loss, "grad_norm": 1.0} for n, loss in enumerate(losses, 1)
    ]
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps(entry) + "\n" for entry in entries) + '{"kind": "tr'
    )
    files = summed(path, ["__0_0.distcp"])
    Manifest(len(losses), 2 * len(losses), len(losses), {}, "text", {}, files).write(path)


def test_the_judge_sees_another_bit(tmp_path):
    recorded(tmp_path / "whole", [0.5, 0.25], b"weights")
    shutil.copytree(tmp_path / "whole", tmp_path / "same")
    recorded(tmp_path / "loss", [0.5, 0.25000000000000006], b"weights")
    recorded(tmp_path / "short", [0.5], b"weights")
    recorded(tmp_path / "tensors", [0.5, 0.25], b"weightz")
    whole = tmp_path / "whole"
    assert judge.differences(tmp_path / "same", whole) == ""
    assert "step 2: loss and gradient norm (0.25000000000000006, 1.0)" in judge.differences(
        tmp_path / "loss", whole
    )
    assert "step 2: loss and gradient norm None" in judge.differences(tmp_path / "short", whole)
    assert judge.differences(tmp_path / "tensors", whole) == "the last checkpoint: __0_0.distcp"
    assert judge.newest_step(tmp_path / "nothing") == 0
