"""What pip installs, in a folder of its own: the packages alone, away from the checkout and without Megatron-Core."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT

PACKAGES = ("hcmegatron", "launch", "schedules")
# The finders of an editable install come before every path.
WITHOUT_CHECKOUT = (
    "import sys\n"
    "sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in str(each).lower()]\n"
    "sys.modules.update(dict.fromkeys(('megatron', 'tensorboard')))\n"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel has, and examples/ beside it. Built from a copy, for setuptools writes into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "configs"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    command = [sys.executable, "-m", "pip", *words, str(folder / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.rmtree(source)
    return folder


def run(installed, program, *words):
    (installed / "site/sitecustomize.py").write_text(WITHOUT_CHECKOUT)
    done = subprocess.run(
        [sys.executable, *program, *map(str, words)],
        cwd=installed / "examples",
        env=os.environ | {"PYTHONPATH": str(installed / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_files_are_those_of_the_packages(installed):
    site = installed / "site"
    program = "import hcmegatron as h, launch as l, schedules as s; print(h.__file__, l.__file__, s.__file__)"
    assert run(installed, ["-c", program]).split() == [str(site / name / "__init__.py") for name in PACKAGES]

    def files(root):
        folders = (*PACKAGES, "hcmegatron/configs")  # a link in the checkout, which rglob does not follow
        found = (path for name in folders for path in (root / name).rglob("*") if path.is_file())
        return {path.relative_to(root) for path in found if path.suffix != ".pyc"}

    assert files(site) == files(
        ROOT
    )  # data as well: configurations, the report's page, the launcher's templates
    assert files(site) >= {Path("hcmegatron/configs/quickstart.yaml"), Path("launch/templates/slurm.sh")}


def test_the_examples_run_with_torch_alone(installed):
    out = run(installed, ["connect_torch_transformer.py"], "--steps", 2, "--streams", 2)
    assert out.splitlines()[-1].startswith("held out: ")
    assert "dualpipev" in run(installed, ["simulate_own_costs.py"])


@pytest.mark.ranks
def test_stages_of_ones_own_run_under_dualpipev(installed):
    out = run(installed, ["dualpipev_two_ranks.py"])
    assert out.splitlines()[-1] == "losses equal: True; gradients equal: True"
