"""What is taken along to a machine without pip and network, and how it is used there."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.gpu_check import prepare, wheels


def wheel(folder, name, version="1.0", tags="py3-none-any", **files):
    """A wheel with these modules."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for module, text in files.items():
            archive.writestr(f"{module}.py", text)
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        )
    return path


def test_wheels_that_fit():
    def fits(name, python=(3, 12)):
        return wheels.wheel_fits(wheels.wheel_of(Path(name)), python)

    assert fits("a-1-py3-none-any.whl") and fits("a-1-py2.py3-none-any.whl")
    assert fits("megatron_core-0.19.2-cp312-cp312-manylinux_2_28_x86_64.whl")
    assert not fits("megatron_core-0.19.2-cp313-cp313-manylinux_2_28_x86_64.whl")
    assert fits("psutil-7-cp36-abi3-manylinux2014_x86_64.whl") and not fits(
        "psutil-7-cp36-cp36m-linux_x86_64.whl"
    )
    assert not fits("a-1-cp313-abi3-linux_x86_64.whl")
    with pytest.raises(ValueError, match="not the name of a wheel"):
        wheels.wheel_of(Path("megatron.zip"))


def test_what_is_installed_is_left_alone(tmp_path):
    folder, site = tmp_path / "wheels", tmp_path / "site"
    wheel(folder, "nobodys_own", nobodys_own="x = 1")
    wheel(folder, "pytest", pytest="x = 1")
    wheel(folder, "megatron_core", "0.0.1", megatron_core="x = 1")
    assert wheels.unpack(folder, site) == site
    assert {path.stem for path in site.glob("*.py")} == {"nobodys_own", "megatron_core"}
    wheel(folder, "other", tags="cp27-cp27m-any", other="")
    with pytest.raises(ValueError, match=r"made for cp27, and this is Python 3\."):
        wheels.unpack(folder, site)
    (folder / "other-1.0-cp27-cp27m-any.whl").unlink()
    (folder / "torn-1.0-py3-none-any.whl").write_text("PK")
    with pytest.raises(ValueError, match="copy it again"):
        wheels.unpack(folder, site)
    with pytest.raises(ValueError, match="there are no wheels in it"):
        wheels.unpack(tmp_path / "site", site)


def test_a_prepared_folder_runs_where_nothing_is_installed(tmp_path):
    """By a Python without packages, in another directory: it lists its phases, and says that torch is missing."""
    brought, out = tmp_path / "brought", tmp_path / "folder"
    wheel(brought, "megatron_core", "0.0.1", nobody="")
    assert prepare.main(["--out", str(out), "--wheels", str(brought), "--python", "3.12"]) == 0
    assert (out / "tree" / "COMMIT").read_text().strip() not in ("", "unknown")
    assert prepare.size(out) < 16 * 2**20
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    bare = {"PATH": os.environ["PATH"], "PYTHON": str(python), "PYTHONNOUSERSITE": "1"}
    if subprocess.run([python, "-c", "import torch"], env=bare, capture_output=True).returncode == 0:
        pytest.skip(f"{python} has torch of its own")

    def run(*arguments):
        command = ["bash", str(out / "run.sh"), *arguments]
        return subprocess.run(command, env=bare, cwd="/", capture_output=True, text=True, timeout=100)

    listed = run("--list")
    assert listed.returncode == 0 and "| warm-start | 30 |" in listed.stdout, listed.stderr
    ended = run()
    assert ended.returncode == 1 and "No module named 'torch'" in ended.stdout, ended.stderr
    written = json.loads((out / "results" / "report.json").read_text())
    assert {one["status"] for one in written["phases"]} == {"not run"}


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch, capsys):
    brought = tmp_path / "brought"
    wheel(brought, "megatron_core", "0.0.1", "cp39-cp39-any", nobody="")
    assert prepare.main(["--out", str(tmp_path / "a"), "--wheels", str(brought)]) == 1
    assert "megatron_core-0.0.1-cp39-cp39-any.whl: not for Python 3.12" in capsys.readouterr().err
    shutil.rmtree(brought)
    wheel(brought, "megatron_core", "0.0.1", nobody="")
    monkeypatch.setattr(prepare, "LIMIT", 2**20)
    assert prepare.main(["--out", str(tmp_path / "b"), "--wheels", str(brought)]) == 1
    assert "MiB, of 1 that it may have" in capsys.readouterr().err
    assert prepare.main(["--out", str(tmp_path / "d"), "--megatron", str(tmp_path)]) == 1
    assert "there is no megatron/core in it" in capsys.readouterr().err


def test_a_source_is_taken_along(tmp_path, monkeypatch):
    source = tmp_path / "source"
    (source / "megatron" / "core").mkdir(parents=True)
    (source / "megatron" / "core" / "package_info.py").write_text("__version__ = '0.19.2'\n")
    fetched = []
    monkeypatch.setattr(prepare, "fetch", lambda names, python, into: fetched.extend(names))
    out = tmp_path / "out"
    prepare.prepare(out, "3.12", source, None, None)
    assert (out / "source" / "megatron" / "core" / "package_info.py").exists()
    assert '--source "$here/source"' in (out / "run.sh").read_text()
    assert fetched == list(prepare.NEEDS)
    prepare.prepare(tmp_path / "other", "3.11", None, None, None)
    assert fetched[-1] == "megatron-core==0.16.1"
