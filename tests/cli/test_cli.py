"""The command: one line and status 2 for every mistake, nothing written, no torch before it is needed."""

import importlib.util
import os
import resource
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path
from unittest import mock

import pytest
import torch

import hcmegatron
from hcmegatron import cli
from hcmegatron.config import Config, load_config
from hcmegatron.data.corpus import find_corpus
from hcmegatron.platform import exit_status
from hcmegatron.platform.launcher_end import PATIENCE_S
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training import device_check
from hcmegatron.training.manifest import NotSaved

ROOT = Path(hcmegatron.__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC", "OMPI_", "PMI", "SLURM_")


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """In an empty directory, without a launcher; what the program sets in the environment is taken back."""
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):
        for name in list(os.environ):
            if name.startswith(LAUNCHERS):
                del os.environ[name]
        yield


def program(*arguments, **environ):
    command = [sys.executable, "-m", "hcmegatron", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


@pytest.fixture
def torchrun(monkeypatch):
    """This process as rank 1 of 2 under torchrun."""
    place = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1234}
    for name, value in {**place, "MASTER_ADDR": "h", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the trainer; the calls it got."""
    calls = []
    stub = types.ModuleType("hcmegatron.training.run")
    stub.train = lambda *arguments: calls.append(arguments) or 0
    monkeypatch.setitem(sys.modules, "hcmegatron.training.run", stub)
    return calls


def test_config_prints_what_loads_as_the_same(tmp_path, capsys):
    assert cli.main(["config", str(QUICKSTART), "--training.steps=3"]) == 0
    printed = capsys.readouterr()
    (tmp_path / "again.yaml").write_text(printed.out)
    assert load_config(tmp_path / "again.yaml") == load_config(QUICKSTART, ["--training.steps=3"])
    assert "warning: optimizer.warmup_steps" in printed.err


@pytest.mark.parametrize("setting", ["implementation=te", "kernels=triton"])
def test_config_warns_of_what_is_not_installed_here(setting, tmp_path, capsys, monkeypatch):
    for package in ("transformer_engine", "triton"):
        monkeypatch.setattr("importlib.util.find_spec", without(package))
    assert cli.main(["config", f"--{setting}", "--parallel.pipeline=2", "--parallel.schedule=zb_h1"]) == 0
    printed = capsys.readouterr()
    assert f"{setting.replace('=', ': ')}\n" in printed.out
    assert f"warning: {setting.replace('=', ' = ')}" in printed.err and "not installed here" in printed.err


def test_config_alone_prints_the_defaults(tmp_path, capsys):
    assert cli.main(["config"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "again.yaml") == Config()


def test_help_and_version(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("train", "config", "schedule"))
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hcmegatron 0.1.0 (Python 3.")
    with pytest.raises(SystemExit) as left:
        cli.main(["config", "--help"])
    assert left.value.code == 0
    assert "connection.kind = mhc    (one of residual, shc" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    words = capsys.readouterr().out.partition("Exit status:")[2].split()
    statuses = {value for name, value in vars(exit_status).items() if name.isupper()}
    assert len(statuses) == 5 and statuses <= {int(word) for word in words if word.isdigit()}


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


def without(package):
    """importlib.util.find_spec on a machine that lacks the package."""
    usual = importlib.util.find_spec
    return lambda name, *rest: None if name.partition(".")[0] == package else usual(name, *rest)


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


def test_a_rank_of_a_launcher_trains_in_this_process(torchrun, trained):
    assert cli.main(["train", str(QUICKSTART), "--training.steps=40"]) == 0
    ((config, ranks, name, corpus, observers),) = trained
    assert observers == ()
    assert corpus == find_corpus(config.data)  # what was looked for is handed on, not read and hashed again
    assert ranks == RankInfo(1, 2, 1, 2, "h", 1234, "torchrun") and name == "quickstart"
    assert config == load_config(QUICKSTART, ["--training.steps=40"])


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


def test_contradicting_launchers(torchrun, monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK")
    assert cli.main(["train", str(QUICKSTART)]) == 2
    assert "LOCAL_RANK is not set" in capsys.readouterr().err


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


def test_no_torch_for_help_configurations_and_mistakes(tmp_path):
    code = (
        "import sys; from hcmegatron.cli import main\n"
        f"main(['config', {str(QUICKSTART)!r}])\n"
        f"main(['train', {str(QUICKSTART)!r}, '--data.paths=[no]'])\n"
        f"main(['train', {str(QUICKSTART)!r}, '--run.dir=configs'])\n"
        "main(['--version'])\n"
        "print([name for name in ('torch', 'numpy', 'megatron', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in ("[]", "['psutil']")


def test_answers_cost_less_than_half_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for arguments in (["--help"], ["config", QUICKSTART], ["train", "nowhere.yaml"]):
        program(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent / 3 < 0.5  # processor time: the machine may be busy


SPEAKING = [
    ["config"],
    ["--help"],
    ["train", "--help"],
    ["--version"],
    ["schedule", "1f1b", "--ranks=2", "--microbatches=4"],
    ["schedule", "--help"],
]


@pytest.mark.parametrize("arguments", SPEAKING, ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes(arguments, unbuffered):
    """A reader that has gone, as head does, is no error; a full disk is one line."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "hcmegatron", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, os.fdopen(writer, "w") as broken:
        gone = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, env=env, text=True, timeout=60)
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, text=True, timeout=60)
    assert (gone.returncode, gone.stderr) == (0, "")
    line = "hcmegatron: error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=["", "C"])
def test_names_that_are_not_text_in_the_locale_are_written_out(locale, tmp_path):
    name = os.fsdecode(b"f\xff\xc3\xa9.yaml")
    (tmp_path / name).write_text("training:\n  steps: 3\nconnection:\n  kind: residual\n  n: 4\n")
    done = program("config", name, **locale)
    assert done.returncode == 0 and done.stderr.count("udcff") == done.stderr.count("warning") == 2
    (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"\0" * 400)
    done = program("train", QUICKSTART, "--data.paths=[.]", "--run.dir=\u00e9", **locale)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "udcff.txt is binary" in done.stderr


def test_a_path_on_the_command_line_is_text_as_typed(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed, path in (
        ("a #b", "'a #b'"),
        ("*x", "'*x'"),
        ("~/x", f"{tmp_path}/x"),
        ("'q'", "q"),
        ("null", "null"),
    ):
        assert cli.main(["config", f"--run.dir={typed}"]) == 0
        assert f"\n  dir: {path}\n" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_said_before_torch_is_imported(tmp_path):
    code = "import sys; from hcmegatron.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code, "train", str(QUICKSTART), f"--checkpoint.load={tmp_path}/missing"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert found.stdout.split() == ["2", "False"]
    assert found.stderr.count("\n") == 1 and "there is no such directory" in found.stderr


def test_cudas_variables_are_set_before_the_gpu_is_asked_what_it_is(torchrun, trained, monkeypatch):
    name, seen = "CUDA_DEVICE_MAX_CONNECTIONS", []
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key != name})
    monkeypatch.setattr(device_check, "check_device", lambda config: seen.append(os.environ.get(name)))
    assert cli.main(["train", str(QUICKSTART)]) == 0
    assert seen == ["32"]


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
