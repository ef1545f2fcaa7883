"""Kinds from outside the package: named in the environment or by an entry point, and what can be wrong with them."""

import dataclasses
import subprocess
import sys

import pytest

from hcmegatron.connections.kinds import KINDS, register
from tests.ranks import ROOT

EXAMPLES = ROOT / "examples"
KINDS_SHOWN = "from hcmegatron.connections.kinds import KINDS; print(*KINDS)"
OWN = ["residual", "shc", "dhc", "sfc", "dfc", "mhc", "mhc_lite", "krom", "ihc", "gr"]


def python(*words, path, **environment):
    done = subprocess.run(
        [sys.executable, "-P", *words],
        env={"PYTHONPATH": ":".join(map(str, [ROOT, *path])), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout.split(), done.stderr


def test_a_module_that_the_environment_names():
    found = python("-c", KINDS_SHOWN, path=[EXAMPLES], HCMEGATRON_PLUGINS=" own_connection,")
    assert found == (0, [*OWN, "layerscale"], "")


def test_an_entry_point_of_an_installed_package(tmp_path):
    package = tmp_path / "own-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[hcmegatron.plugins]\nlayerscale = own_connection\n")
    assert python("-c", KINDS_SHOWN, path=[EXAMPLES, tmp_path]) == (0, [*OWN, "layerscale"], "")
    status, _, said = python("-m", "hcmegatron", "config", path=[tmp_path])
    assert status == 2 and said.startswith(
        "hcmegatron: error: the entry point layerscale = own_connection: ModuleNotFoundError: No module named 'own_co"
    )


def test_one_that_cannot_be_imported_is_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    for name, why in (
        ("nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("broken", "ZeroDivisionError: "),
    ):
        status, out, said = python("-m", "hcmegatron", "config", path=[tmp_path], HCMEGATRON_PLUGINS=name)
        assert (status, out, said.count("\n")) == (2, [], 1)
        assert said.startswith(f"hcmegatron: error: HCMEGATRON_PLUGINS={name}: {why}")
        assert said.endswith("; name a module that can be imported (PYTHONPATH), or take the name out\n")


def test_registering_too_late_or_under_a_name_that_is_taken():
    program = (
        "import hcmegatron.config.schema, dataclasses\nfrom hcmegatron.connections.kinds import KINDS, register\n"
        "try: register(dataclasses.replace(KINDS['mhc'], name='mine'))\nexcept RuntimeError as error: print(error)"
    )
    status, out, _ = python("-c", program, path=[])
    assert status == 0 and " ".join(out) == (
        "connection kind 'mine' comes after configuration was derived from the kinds; register it before "
        "hcmegatron.config is imported, or name its module in HCMEGATRON_PLUGINS"
    )
    assert register(KINDS["mhc"]) is KINDS["mhc"]
    with pytest.raises(
        ValueError, match=r"named 'mhc' is there already \(Manifold-Constrained .*\); rename yours"
    ):
        register(dataclasses.replace(KINDS["mhc"]))
