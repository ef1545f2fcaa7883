"""Operations measured on two ranks, and steps planned from them beside the same steps as they run, in miniature."""

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.measure import run
from hcmegatron.measure.run import combined, measure
from hcmegatron.pipeline.configured_schedule import placement
from hcmegatron.planner.machines import Machine
from tests.measure import workers
from tests.ranks import run_ranks
from tests.small_configs import tiny

HERE = Machine("here", 0.1, 0.1, 8, 0.02, 2, 1.0, 1.0)
RANKS = {"preload": ("tests.measure.workers",), "process_group": False, "timeout": 120}
LOOSE = 3.0  # planned over measured and the other way round; tools/planned_measured.py measures it properly


def small(tmp_path, schedule, pipeline=2, **more):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    parallel = {"pipeline": pipeline, "schedule": schedule, **more}
    model = {"layers": 4, "hidden_size": 64}
    batch = {"global_batch": 8, "micro_batch": 2 // pipeline, "threads": 1}
    return tiny(text, tmp_path / "run", parallel=parallel, model=model, training=batch)


@pytest.mark.ranks
def test_steps_are_planned_from_operations(tmp_path):
    """A schedule with I, W and overlapped pairs, Megatron's own, and data parallelism, one after another."""
    configs = [
        small(tmp_path, "dualpipev", overlap=True),
        small(tmp_path, "megatron_1f1b"),
        small(tmp_path, "1f1b", pipeline=1, overlap_grad_reduce=True),
    ]
    found = [
        run_ranks(2, workers.row, config, 3, str(tmp_path / f"row {number}"), **RANKS)[0]
        for number, config in enumerate(configs)
    ]
    found, carriers = zip(*found, strict=True)
    assert carriers == (["SharedMemoryTransport"], ["DistributedTransport"], [])  # as their steps' messages
    pairs, megatrons, data = (row.costs for row in found)
    for config, row in zip(configs, found, strict=True):
        row.costs.require(config, 2, "costs")
        assert 1 / LOOSE < row.ratio < LOOSE, (row.planned_s, row.measured_s, row.costs.as_yaml())
        assert set(row.costs.after) == {"gradient reduction", "optimizer"}
        times = [row.costs.settings[key] for key in ("forward", "backward")] + [row.costs.forward_only]
        stages = placement(config.parallel).model_stages
        assert all(len(own) == stages and min(own) > 0 for own in times)
        assert set(row.costs.others) == {"hop", "all-reduce", "all-gather", "all-to-all", "copy"} - (
            {"hop"} if config.parallel.pipeline == 1 else set()
        )
    for stage in range(4):
        F, B, FB = (pairs.settings[key][stage] for key in ("forward", "backward", "overlapped"))
        assert max(F, B) <= FB <= F + B
        assert min(pairs.settings[key][stage] for key in ("input", "weight")) > 0
    assert "weight" not in megatrons.settings and "latency" in megatrons.settings
    assert 0 <= megatrons.settings["occupied"] <= megatrons.others["hop"]["seconds"]
    assert "latency" not in data.settings and data.settings["hop_bytes"] == 32 * 2 * 64 * 4


@pytest.mark.ranks
def test_messages_are_measured_as_a_step_receives_them():
    assert run_ranks(2, workers.hop, preload=RANKS["preload"], timeout=60) == [(True, 0, True)] * 2


def test_the_slower_of_those_that_do_the_same_counts(tmp_path):
    """Copies of a stage on two ranks (DualPipe), and what a message adds to a computation, half for each end."""
    config = small(tmp_path, "dualpipe")
    after = {"reduce": 3.0, "update": 2.0, "clear": 1.0, "copy": 0.5}
    one = {"F 0": 1.0, "B 0": 2.0, "E 0": 0.5, "F 3": 4.0, "B 3": 5.0, "E 3": 0.75}
    other = {"F 1": 3.0, "B 1": 6.0, "E 1": 0.5, "F 2": 1.5, "B 2": 1.0, "E 2": 0.25}
    of_ranks = [
        {**one, **after, "hop": 0.25, "alone": 1.0, "beside": 1.5},
        {**other, **after, "reduce": 4.0, "hop": 0.5, "alone": 1.0, "beside": 1.25},
    ]
    found = combined(config, of_ranks, {"hop": 4096, "copy": 4096}, placement(config.parallel), HERE)
    assert found.settings == {
        "forward": [1.5, 4.0],
        "backward": [2.0, 6.0],
        "latency": 0.25,  # of 0.5, without the sender's part
        "occupied": 0.25,
        "hop_bytes": 2048.0,
        "streams": 2,
    }
    assert found.forward_only == [0.5, 0.75]
    assert found.after == {"gradient reduction": 4.0, "optimizer": 3.0}
    assert found.others["copy"] == {"bytes": 4096, "seconds": 0.5}


def test_pairs_save_for_both_of_their_stages(tmp_path):
    config = small(tmp_path, "dualpipev", pipeline=1)
    own = {
        "F 0": 2.0,
        "B 0": 4.0,
        "F 1": 3.0,
        "B 1": 5.0,
        "FB 0 1": 6.0,
        "FB 1 0": 9.0,
    }  # saving 1, and nothing
    rest = dict.fromkeys(("reduce", "update", "clear", "E 0", "E 1"), 1.0)
    found = combined(config, [{**own, **rest}], {"hop": 4096}, placement(config.parallel), HERE)
    assert found.settings["overlapped"] == [5.5, 7.5]


def test_more_ranks_than_cores_are_not_measured(tmp_path):
    config = small(tmp_path, "1f1b")
    config.training.global_batch = 1024
    with pytest.raises(ConfigError, match=r"1024 ranks on .* cores would measure how they wait"):
        measure(config, 1024)
    with pytest.raises(ConfigError, match="world size 3 is not a multiple of 2"):
        measure(config, 3)


@pytest.mark.parametrize(("status", "raised"), [(130, KeyboardInterrupt), (1, ConfigError)])
def test_an_interruption_is_none_of_the_user_s_mistakes(tmp_path, monkeypatch, status, raised):
    monkeypatch.setattr(run, "launch_ranks", lambda *_: status)
    with pytest.raises(raised):
        measure(small(tmp_path, "1f1b"))
