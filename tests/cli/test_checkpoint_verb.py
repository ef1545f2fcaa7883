"""hcmegatron checkpoint list, show and verify: without torch, whatever there is."""

import subprocess
import sys

import pytest

from hcmegatron import cli
from tests.training.resume_cases import made, saved


def test_a_run_is_listed_shown_and_verified(tmp_path, capsys):
    two, four = (saved(tmp_path, made(optimizer={"lr": 0.5}), step) for step in (2, 4))
    two.with_suffix(".damaged").mkdir()
    assert cli.main(["checkpoint", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{two}  step 2, 32 samples, 1 files, 0.0 MB",
        f"{four}  step 4, 64 samples, 1 files, 0.0 MB",
        f"{two}.damaged  not used: set aside",
    ]
    assert cli.main(["checkpoint", "show", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"checkpoint: {four}\nstep 4, 64 samples")
    assert "  optimizer.lr = 0.5\n" in shown and "optimizer.clip" not in shown and "torch: 2.13.0\n" in shown
    assert cli.main(["checkpoint", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("every byte is as it was written") == 2


def test_what_is_damaged_is_named_and_the_status_1(tmp_path, capsys):
    path = saved(tmp_path, made())
    whole = saved(tmp_path, made(), 2)
    (path / "__0_0.distcp").write_bytes(b"weightr")
    assert cli.main(["checkpoint", "list", str(tmp_path)]) == 0  # nothing is looked into
    capsys.readouterr()
    assert cli.main(["checkpoint", "verify", str(tmp_path)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{whole}: every byte")
    assert f"checkpoint {path} is corrupt: __0_0.distcp is not as it was written" in second
    (path / "manifest.json").unlink()
    assert cli.main(["checkpoint", "list", str(tmp_path)]) == 0
    assert f"{path}  is partial or no checkpoint: it has no manifest.json" in capsys.readouterr().out
    for name in (tmp_path, path):
        assert cli.main(["checkpoint", "show", str(name)]) == cli.USER_ERROR
        assert "is partial or no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, words", [("missing", "there is no such directory"), (".", "no checkpoint in it")]
)
def test_where_there_is_no_checkpoint(name, words, tmp_path, capsys):
    assert cli.main(["checkpoint", "list", str(tmp_path / name)]) == cli.USER_ERROR
    assert words in capsys.readouterr().err


def test_no_torch_is_loaded(tmp_path):
    path = saved(tmp_path, made())
    code = f"""
import sys
from hcmegatron import cli
for action in ("list", "show", "verify"):
    assert cli.main(["checkpoint", action, {str(path)!r}]) == 0
assert not {{"torch", "pickle"}} & sys.modules.keys(), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
