"""The command's answers: configurations, help and versions, at less than half a second and without torch."""

import resource
import subprocess
import sys

import pytest

from hcmegatron import cli
from hcmegatron.config import Config, load_config
from hcmegatron.platform import exit_status
from tests.cli.command import QUICKSTART, ROOT, program, without

pytestmark = pytest.mark.usefixtures("by_itself")


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
