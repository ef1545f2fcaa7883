"""What a real run's own writers leave behind, in the report: files of the forms that are written today, not of those
that the other tests make."""

import re

import pytest

from hcmegatron.cli import main
from hcmegatron.report.inputs.run import directories
from tests.ranks import run_ranks
from tests.small_configs import put, tiny
from tests.training import workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two ranks, six steps under DualPipeV, observed every third, profiled in the fourth and fifth."""
    folder = tmp_path_factory.mktemp("real")
    text = folder / "text.txt"
    text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    config = tiny(text, folder / "run", parallel={"schedule": "dualpipev", "overlap": True})
    put(config, model={"layers": 4}, training={"steps": 6, "global_batch": 4}, checkpoint={"save_every": 0})
    put(config, diagnostics={"every": 3, "tokens": 40}, run={"profile_at": [4, 5]})
    (folder / "run" / "memory").mkdir(parents=True)  # of an earlier layout, as four pipeline ranks leave it
    (folder / "run" / "memory" / "rank-003.json").write_text('{"rank": 3, "pipeline_rank": 3, "gib": 9.0}')
    config.checkpoint.resume = "auto"
    run_ranks(2, workers.run, config, **RUN)
    return folder / "run"


@pytest.mark.ranks
def test_the_report_of_a_real_run_has_all_its_sections(run, capsys):
    assert main(["report", str(run), "--no-files"]) == 0
    assert capsys.readouterr().err == ""
    text = (run / "report.html").read_text()
    words = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    for there in (
        "Simulated with planned times",
        "As it ran",
        "Simulated with measured times",
        "Residual maps, mean over tokens",
        "Communication, of all ranks",
        "Waited for longest, on its way",
        "A step if",
        "Critical path",
    ):
        assert there in words, there
    for missing in (
        "No run was profiled",
        "No diagnostics are on record",
        "no schedule is",
        "cannot be read",
    ):
        assert missing not in words, missing


@pytest.mark.ranks
def test_what_is_read_of_a_real_run_is_whole(run):
    (directory,) = directories([run])
    found = directory.read()
    assert found.remarks == () and found.steps == 6 and set(found.memory) == {0, 1}
    assert sorted(path.name for path in (run / "memory").iterdir()) == ["rank-000.json", "rank-001.json"]
    assert [observation.step for observation in found.observations] == [3, 6]
    assert all(observation.file for observation in found.observations)
