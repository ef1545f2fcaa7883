"""The lines that run on a GPU, on an emulated one: times are events', on every lane."""

import pytest

from hcmegatron.pipeline.configured_schedule import training_schedule
from hcmegatron.profiling import files
from hcmegatron.profiling.timeline import joined
from hcmegatron.profiling.trace import to_trace
from tests.profiling import traces
from tests.ranks import run_ranks
from tests.small_configs import small_config

RUN = {"preload": ("tests.pipeline.emulated_workers",), "timeout": 120, "process_group": False}


@pytest.mark.ranks
@pytest.mark.parametrize(("schedule", "overlap"), [("dualpipev", True), ("1f1b", False)])
def test_a_profiled_step_of_an_emulated_gpu(schedule, overlap, tmp_path):
    config = small_config("mhc", True)
    config.parallel.schedule, config.parallel.pipeline, config.parallel.overlap = schedule, 2, overlap
    config.training.global_batch, config.training.micro_batch, config.kernels = 6, 1, "torch"
    plain, profiled = (
        run_ranks(2, "tests.profiling.gpu_workers:second_step", config, directory, **RUN)
        for directory in (None, tmp_path)
    )
    for (*numbers, _), (*others, nothing) in zip(profiled, plain, strict=True):
        assert numbers == others and numbers[1] and nothing == []
    assert any(line.startswith("profile of step 2: ") for line in profiled[0][2])
    found = files.read_summary(tmp_path)
    assert found["steps"] == [2] and set(found["communication"]) == {
        "hop",
        "dispatch",
        "combine",
        "reduction",
    }
    for own in found["per_rank"]:
        assert own["compute_ms"] + sum(own["bubble_ms"].values()) == pytest.approx(found["step_ms"], rel=1e-6)
        assert own["lanes"]["high priority"]["busy_ms"] > 0 and own["bubble_ms"]["fill"] >= 0
    for record in files.read_records(tmp_path):
        (step,) = record.steps
        assert step.begin <= step.pipeline[0] and step.pipeline[1] <= step.finalised <= step.end
        spans = [(ran.start, ran.end) for ran in step.actions]
        for node in step.nodes:  # events and actions are on one clock
            start = max(since for since, _ in spans if since <= node.start)
            assert node.end <= max(until for since, until in spans if since <= start), node
    timeline = joined(files.read_records(tmp_path), 0)
    traces.check(to_trace([timeline], training_schedule(config, 6)))
