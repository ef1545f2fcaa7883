"""hcmegatron train: in this process as a launcher's rank, in ranks that it starts where there is none; what ends it is
said once."""

import os
import subprocess
import sys
import textwrap
import time
import types

import pytest

from hcmegatron import cli
from hcmegatron.config import load_config
from hcmegatron.data.corpus import find_corpus
from hcmegatron.platform.launcher_end import PATIENCE_S
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training import device_check
from hcmegatron.training.manifest import NotSaved
from tests.cli.command import QUICKSTART, ROOT

pytestmark = pytest.mark.usefixtures("by_itself")


def test_a_rank_of_a_launcher_trains_in_this_process(torchrun, trained):
    assert cli.main(["train", str(QUICKSTART), "--training.steps=40"]) == 0
    ((config, ranks, name, corpus, observers),) = trained
    assert observers == ()
    assert corpus == find_corpus(config.data)  # what was looked for is handed on, not read and hashed again
    assert ranks == RankInfo(1, 2, 1, 2, "h", 1234, "torchrun") and name == "quickstart"
    assert config == load_config(QUICKSTART, ["--training.steps=40"])


def test_cudas_variables_are_set_before_the_gpu_is_asked_what_it_is(torchrun, trained, monkeypatch):
    name, seen = "CUDA_DEVICE_MAX_CONNECTIONS", []
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key != name})
    monkeypatch.setattr(device_check, "check_device", lambda config: seen.append(os.environ.get(name)))
    assert cli.main(["train", str(QUICKSTART)]) == 0
    assert seen == ["32"]


def test_a_configuration_of_ones_own_in_the_run_directory_is_told_of(
    torchrun, monkeypatch, tmp_path, trained, capsys
):
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "proj").mkdir()
    own = tmp_path / "proj" / "config.yaml"
    own.write_text(f"extends: {QUICKSTART}  # mine\n")
    assert cli.main(["train", str(own), "--run.dir=proj", "--checkpoint.resume=true"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "config.yaml" in line]
    assert "was not written by a run" in line and "is left alone" in line and "config.resolved.yaml" in line
    assert len(trained) == 1 and own.read_text() == f"extends: {QUICKSTART}  # mine\n"


def test_a_run_whose_last_checkpoint_failed_ends_with_one_line_and_status_1(torchrun, monkeypatch, capsys):
    def train(config, ranks, name, corpus, observers):
        raise NotSaved("the checkpoint after step 4 could not be saved: No space left on device")

    monkeypatch.setenv("RANK", "0")
    stub = types.ModuleType("hcmegatron.training.run")
    stub.train = train
    monkeypatch.setitem(sys.modules, "hcmegatron.training.run", stub)
    assert cli.main(["train", str(QUICKSTART)]) == 1
    assert capsys.readouterr().err == (
        "hcmegatron: error: the checkpoint after step 4 could not be saved: No space left on device\n"
    )


def test_a_world_that_does_not_fit_is_said_once_a_machine(torchrun, trained, monkeypatch, capsys):
    """The other ranks let the first one speak; the launcher ends them when it exits."""
    wrong, waited = ["train", str(QUICKSTART), "--parallel.pipeline=4", "--parallel.schedule=1f1b"], []
    monkeypatch.setattr(time, "sleep", waited.append)
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert cli.main(wrong) == 2
        assert "world size 2 is not a multiple of 4" in capsys.readouterr().err
        assert waited == [PATIENCE_S] * rank and not trained


def test_torchrun_says_a_mistake_once(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    wrong = ["--parallel.pipeline=4", "--parallel.schedule=1f1b"]
    command = [*torchrun, "hcmegatron", "train", str(QUICKSTART), *wrong]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode != 0 and done.stderr.count("world size 2 is not a multiple of 4") == 1


def started(tmp_path, body, *overrides):
    """`hcmegatron train quickstart` in its own process, with `body` as the trainer."""
    code = "import sys, types, os\n"
    code += f"sys.path.insert(0, {str(ROOT)!r})\n"
    code += (
        "stub = types.ModuleType('hcmegatron.training.run')\nsys.modules['hcmegatron.training.run'] = stub\n"
    )
    code += f"def train(config, ranks, name, corpus, observers):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    code += "stub.train = train\nfrom hcmegatron.cli import main\n"
    code += f"sys.exit(main({['train', str(QUICKSTART), *overrides]}))"
    path = tmp_path / "started.py"
    path.write_text(code)
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)


def test_without_a_launcher_the_layouts_ranks_are_started(tmp_path):
    body = (
        "os.write(1, f'{ranks.rank}/{ranks.world_size} {name} {config.training.steps}\\n'.encode())\nreturn 0"
    )
    done = started(tmp_path, body, "--training.steps=77")
    assert (done.returncode, sorted(done.stdout.splitlines())) == (
        0,
        ["0/2 quickstart 77", "1/2 quickstart 77"],
    )


def test_a_mistake_found_by_the_ranks_is_one_line(tmp_path):
    body = "from hcmegatron.config import ConfigError\nraise ConfigError('run.dir = x is already in use')"
    done = started(tmp_path, body)
    assert (done.returncode, done.stderr) == (2, "hcmegatron: error: run.dir = x is already in use\n")


def test_what_ends_a_run_on_all_ranks_is_one_line(tmp_path):
    """And no line about the status of a rank."""
    body = "from hcmegatron.training.manifest import NotSaved\nraise NotSaved('step 4 could not be saved')"
    done = started(tmp_path, body)
    assert (done.returncode, done.stderr) == (1, "hcmegatron: error: step 4 could not be saved\n")
