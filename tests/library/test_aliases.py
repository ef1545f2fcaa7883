"""hcmegatron.schedules is schedules, and no other package of its name."""

import importlib
import subprocess
import sys

import pytest

import hcmegatron
import schedules.draw.svg
from hcmegatron import aliases
from hcmegatron.installation import InstallationError
from tests.ranks import ROOT


def test_an_alias_is_the_module_itself():
    assert hcmegatron.schedules is schedules is importlib.import_module("hcmegatron.schedules")
    assert importlib.import_module("hcmegatron.schedules.draw.svg") is schedules.draw.svg
    from hcmegatron.schedules.draw.svg import to_svg
    from hcmegatron.schedules.schedule import Schedule

    assert Schedule is schedules.Schedule and to_svg is schedules.draw.to_svg
    assert schedules.__name__ == "schedules" and schedules.__spec__.name == "schedules"
    assert schedules.draw.svg.__spec__.name == "schedules.draw.svg"
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'hcmegatron\.schedules\.nowhere'"):
        importlib.import_module("hcmegatron.schedules.nowhere")


def test_nothing_runs_twice():
    program = (
        "import sys, hcmegatron.schedules.runtime.runtime, hcmegatron.schedules.generators, schedules.generators\n"
        "from hcmegatron.schedules.actions import Action\n"
        "names = [n for n, m in sys.modules.items() if m.__name__.startswith('hcmegatron.schedules')]\n"
        "assert names == [] and 'schedules.runtime.runtime' in sys.modules, names"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize("foreign", ["schedules.py", "schedules/__init__.py"])
def test_a_foreign_package_is_named_and_not_used(foreign, tmp_path):
    path = tmp_path / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("print('ran')")
    program = "import hcmegatron\ntry:\n    import hcmegatron.schedules\nexcept ImportError as error:\n    print(error)"
    options = {"capture_output": True, "text": True, "timeout": 60}
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    said = (
        f"another package named schedules is found first, {path}, and hcmegatron's own is {ROOT}/schedules; take its "
        "directory off the path (PYTHONPATH, the current directory), or rename it\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], env=environment, **options)
    assert (done.stdout, done.stderr) == (said, "")
    words = [sys.executable, "-P", "-m", "hcmegatron", "config"]
    done = subprocess.run(words, env=environment, **options)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"hcmegatron: error: {said}")


def test_one_that_is_loaded_already_is_seen(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedules", sys.modules["json"])
    with pytest.raises(InstallationError, match=r"json/__init__\.py, and hcmegatron's own is"):
        aliases.require_own("schedules")


def test_one_that_is_gone_is_said_to_be():
    with pytest.raises(
        InstallationError, match="the package nowhere, which belongs to hcmegatron, is not at"
    ):
        aliases.require_own("nowhere")
