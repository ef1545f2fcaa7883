"""Versions, also of what is imported from a source path and has no metadata."""

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hcmegatron
from hcmegatron.config import Config
from hcmegatron.platform.agreement import rank_facts
from hcmegatron.platform.versions import installed_version
from tests.ranks import ROOT


def nothing_is_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)


def test_what_is_imported_answers_for_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", SimpleNamespace(__version__="0.1"))
    assert installed_version("pytest") == "0.1" != importlib.metadata.version("pytest")
    monkeypatch.setattr(importlib.metadata, "version", nothing_is_installed)
    assert installed_version("hcmegatron") == hcmegatron.__version__
    assert installed_version("json.tool", "nobodys") == "unknown version"
    with pytest.raises(ImportError):
        installed_version("nobodys_module")


def test_what_is_installed_is_not_imported():
    assert "hypothesis.extra.lark" not in sys.modules
    assert installed_version("hypothesis.extra.lark", "hypothesis") == importlib.metadata.version(
        "hypothesis"
    )
    assert "hypothesis.extra.lark" not in sys.modules


def test_facts_need_no_metadata(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", nothing_is_installed)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.11"))
    monkeypatch.setitem(sys.modules, "megatron.core", SimpleNamespace(__version__="0.19.2+ba764a4"))
    found = rank_facts(Config(), 2)
    assert (found["torch"], found["megatron-core"]) == ("2.11", "0.19.2")
    assert found["hcmegatron"] == hcmegatron.__version__


def test_a_source_path_without_metadata(tmp_path):
    """All packages, by links, none of what an installer has noted about them."""
    packages = Path(sysconfig.get_paths()["purelib"])
    for path in packages.iterdir():
        if path.suffix not in (".dist-info", ".egg-info", ".pth"):
            (tmp_path / path.name).symlink_to(path)
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "import json, importlib.metadata\n"
        "assert not list(importlib.metadata.distributions(name='megatron-core'))\n"
        "from hcmegatron.platform import megatron\n"
        "from hcmegatron.platform.agreement import rank_facts\n"
        "from hcmegatron.config import Config\n"
        "found = rank_facts(Config(), 1)\n"
        "print(json.dumps([megatron.VERSION, found['megatron-core'], found['torch'], found['hcmegatron']]))"
    )
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=250, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    installed = importlib.metadata.version("megatron-core")
    assert json.loads(ended.stdout.splitlines()[-1]) == [
        installed,
        installed,
        torch.__version__,
        hcmegatron.__version__,
    ]
