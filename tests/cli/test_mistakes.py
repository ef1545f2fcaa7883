"""One line and status 2 for every mistake, and nothing written."""

import os
import time

import pytest
import torch

from hcmegatron import cli
from tests.cli.command import QUICKSTART, without

pytestmark = pytest.mark.usefixtures("by_itself")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["trian", "train"]),
        (["train"], ["FILE", "train --help"]),
        (["train", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["train", "{}", "--training.steps", "3"], ["--section.key=value"]),
        (["train", "{}", "--training.steps"], ["--training.steps=VALUE"]),
        (["--training.steps=3"], ["no verb"]),
        (["train", "{}", "-x"], ["-x"]),
        (["train", "{}", "--training.stps=3"], ["training.stps", "did you mean training.steps?"]),
        (["train", "{}", "--model.hidden_size=131"], ["model.hidden_size = 131", "model.heads"]),
        (["train", "{}", "--parallel.context=2"], ["context parallelism"]),
        (["train", "{}", "--data.paths=[nowhere]"], ["data.paths = nowhere", "does not exist"]),
        (["train", "{}", "--data.paths=[binary.txt]"], ["binary.txt is binary"]),
        (["train", "{}", "--data.paths=[empty.txt]"], ["empty.txt", "empty"]),
        (["config", "--training.steps", "10"], ["--training.steps 10", "--training.steps=10"]),
        (["config", "--training.stps", "10"], ["training.stps", "did you mean training.steps?"]),
        (["config", "--run.tensorboard", "{}"], ["--run.tensorboard=VALUE"]),
        (["config", "--parallel.data=2"], ["parallel.data", "what is left of the world size"]),
        (["train", "{}", "--data.paths=[x.jsonl]"], ["JSON (.jsonl) would be trained on as it is written"]),
        (["train", "{}", "--data.paths=[*.none]"], ["data.paths = *.none", "nothing there has such a name"]),
        (["train", "{}", "--run.dir=used"], ["run.dir = used is already in use"]),
        (["train", "{}", "--run.dir=empty.txt"], ["run.dir = empty.txt is a file"]),
        (["train", "{}", f"--run.dir={'x' * 300}"], ["run.dir = x", "File name too long"]),
        (["train", "x" * 300], ["File name too long"]),
        (
            ["train", "{}", "--kernels=triton", "--connection.n=9"],
            ["kernels = triton", "connection.n = 9", "8"],
        ),
        (
            ["train", "{}", "--implementation=te"],
            ["implementation = te", "Transformer Engine is not installed here"],
        ),
        (
            ["schedule", "1f1b", "--ranks=2", "--microbatches=4", "--foo"],
            ["unrecognized arguments: --foo", "see hcmegatron schedule --help"],
        ),
        (["schedule", "no-such-schedule", "--ranks=2", "--microbatches=4"], ["no-such-schedule"]),
    ],
)
def test_mistakes(arguments, words, tmp_path, capsys, trained, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", without("transformer_engine"))
    (tmp_path / "binary.txt").write_bytes(b"\0" * 2000)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "x.jsonl").write_text('{"text": "words"}\n' * 200)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "metrics.jsonl").touch()
    before = sorted(os.listdir())
    try:
        status = cli.main([str(QUICKSTART) if word == "{}" else word for word in arguments])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("hcmegatron")
    for word in words:
        assert word in printed.err
    assert not trained and sorted(os.listdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_kernels_that_cannot_run_here_are_refused_before_the_run_directory(
    launcher, request, monkeypatch, trained, capsys
):
    if launcher:
        request.getfixturevalue(launcher)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    wanted = ["train", str(QUICKSTART), "--kernels=triton"]
    assert cli.main(wanted) == 2
    line = "hcmegatron: error: kernels=triton cannot run: no CUDA device; use kernels=auto or torch\n"
    assert capsys.readouterr().err == line
    monkeypatch.setattr("importlib.util.find_spec", without("triton"))
    for verb, status in ((wanted, 2), (["config", *wanted[1:]], 0)):  # written here, trained elsewhere
        assert cli.main(verb) == status
        assert "kernels = triton: Triton is not installed" in capsys.readouterr().err
    assert not trained and not os.listdir()


def test_contradicting_launchers(torchrun, monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK")
    assert cli.main(["train", str(QUICKSTART)]) == 2
    assert "LOCAL_RANK is not set" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5", "9999999"])
def test_a_number_of_restarts_is_one(number, capsys):
    assert cli.main(["train", str(QUICKSTART), "--restarts", number]) == 2
    error = capsys.readouterr().err
    assert f"argument --restarts: '{number}' is not a number of restarts; use 1 or more" in error
    assert error.count("\n") == 1


def test_ranks_of_a_launcher_are_not_restarted_here(torchrun, capsys):
    assert cli.main(["train", str(QUICKSTART), "--restarts=3"]) == 2
    assert capsys.readouterr().err == (
        "hcmegatron: error: --restarts = 3: torchrun started this rank, so it would have to start it again; use "
        "torchrun --max-restarts, or have the job requeued, with checkpoint.resume=auto\n"
    )
