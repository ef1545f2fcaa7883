"""Configurations and checkpoints of one file, for tests of where a run starts from. No torch."""

from dataclasses import replace
from pathlib import Path

import pytest

from hcmegatron.config import Config, ConfigError
from hcmegatron.config.types import flatten
from hcmegatron.training import checksums, manifest, resume
from hcmegatron.training.manifest import Manifest
from tests.small_configs import put

HERE = {"ranks": 2, "torch": "2.13.0"}


def made(**sections):
    config = Config()
    config.checkpoint.resume, config.run.dir = "auto", "run"
    return put(config, **sections)


def saved(directory: Path, config: Config, step=4, **changes) -> Path:
    """A checkpoint with one file in a run directory."""
    path = directory / "checkpoints" / manifest.name(step)
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_bytes(b"weights")
    files = checksums.summed(path, ["__0_0.distcp"])
    replace(Manifest(step, 16 * step, step, flatten(config), "text", HERE, files), **changes).write(path)
    return path


def start(config, directory, text="text", environment=HERE):
    return resume.find_start(config, directory, text, environment)


def refused(config, directory, text="text"):
    with pytest.raises(ConfigError) as error:
        start(config, directory, text)
    assert "\n" not in str(error.value)
    return str(error.value)
