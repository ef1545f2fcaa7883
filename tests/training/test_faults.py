"""A few of the cases of tests/training/faults.py, which runs hundreds."""

import shutil
import subprocess

import pytest

from tests.ranks import observe_ranks
from tests.small_configs import tiny
from tests.training import faults
from tests.training.faults import NEW, OLD, Case

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    return faults.undamaged(text, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize(
    "case",
    [Case("__1_0.distcp", "flip", 0.5, 0), Case("manifest.json", "remove", 0.0, 0)],
    ids=lambda case: f"{case.file} {case.damage}",
)
def test_what_is_damaged_is_found_and_the_one_before_used(case, whole, text, tmp_path):
    assert faults.judge(case, whole, text, tmp_path) == ""


def test_a_disk_that_is_full_leaves_the_checkpoint_before(whole, text, tmp_path):
    try:
        found = faults.judge_full_disk(100_000, whole, text, tmp_path)
    except (subprocess.CalledProcessError, FileNotFoundError, PermissionError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    assert found == ""


def test_where_none_is_whole_all_ranks_stop_with_one_line(whole, text, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole.directory, run)
    faults.inflict(Case("__0_0.distcp", "flip", 0.5, 0), run)
    victim = run / OLD / "__1_0.distcp"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    for outcome in observe_ranks(
        2, faults.RESUME, tiny(text, run, checkpoint={"resume": "auto"}), **faults.RUN
    ):
        assert outcome.exit_code == 1 and not outcome.overtime
        line = outcome.error.splitlines()[-1]
        assert "ConfigError: no checkpoint in" in line and "none was changed" in line
        assert "__0_0.distcp is not as it was written" in line and "__1_0.distcp is not as" in line
    assert (run / NEW).is_dir() and (run / OLD).is_dir()


def test_there_are_hundreds_of_different_cases():
    found = faults.cases(["a", "b", "c", "d"], 180, 0)
    assert len(set(found)) == 180
    assert {case.damage for case in found} == set(faults.DAMAGES)
