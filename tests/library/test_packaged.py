"""Configurations by name."""

from pathlib import Path

import pytest

from hcmegatron.config import ConfigError, load_config
from hcmegatron.config.packaged import FOLDER, locate, packaged
from tests.ranks import ROOT


def test_those_of_the_checkout():
    assert {"quickstart", "mhc-27b", "olmoe-1b-7b"} <= set(packaged())
    assert packaged() == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_a_name_is_found_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("mhc-27b") == load_config(ROOT / "configs/mhc-27b.yaml")
    (tmp_path / "quickstart.yaml").write_text("training: {steps: 7}")
    assert (
        load_config("quickstart").training.steps
        == load_config(FOLDER / "quickstart.yaml").training.steps
        != 7
    )


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("training: {steps: 7}")
    assert load_config("quickstart").training.steps == 7


def test_a_file_extends_a_packaged_one(tmp_path):
    (tmp_path / "own.yaml").write_text("extends: quickstart\ntraining: {steps: 7}")
    own, theirs = load_config(tmp_path / "own.yaml"), load_config("quickstart")
    assert own.training.steps == 7 and own.model == theirs.model


def test_what_is_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"quickstrat: there is no such file, nor a .*; did you mean quickstart\?$"
    ):
        locate(Path("quickstrat"))
    with pytest.raises(ConfigError, match=r"whatever: .*; packaged are mhc-27b, .*, quickstart, stability$"):
        locate(Path("whatever"))
    for path in ("quickstart.yaml", "configs/quickstart"):
        with pytest.raises(ConfigError, match="there is no such file; give the path of a YAML file"):
            load_config(path)
