"""The plan of a run: said before it, written, compared with its first steps, and refused where memory will not do."""

import json
from types import SimpleNamespace

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training import planned
from hcmegatron.training.observer import Step
from hcmegatron.training.planned import Planned, plan_run
from tests.planner.measured_cases import config, costs, written

GIB = 2**30
PLACE = RankInfo(0, 2, 0, 2, "h", 1, "this command")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Without a GPU, with 8 GiB; this process holds 1 GiB."""
    monkeypatch.setattr(planned.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(planned, "available_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(planned, "peak_memory_gib", lambda: 1.0)


def watched(tmp_path, steps, **changes):
    """What an observer says of a run that takes so many steps of 40, 35, 34, 33 ... seconds."""
    said = []
    loaded = config(training__steps=steps, **changes)
    log = SimpleNamespace(say=lambda *lines: said.extend(lines))
    plan = plan_run(loaded, PLACE)
    observer = Planned(SimpleNamespace(config=loaded, plan=plan, log=log, directory=tmp_path))
    for number in range(1, steps + 1):
        observer.on_step(Step(number, None, 0.0, 40.0 if number == 1 else 37.0 - number))
    return said, observer


def test_a_plan_with_measured_costs(tmp_path):
    """The median of steps 2 to 5, of 35 to 32 seconds; the first is left out."""
    path = written(tmp_path / "costs.yaml", costs())
    (before, after), _ = watched(tmp_path, 9, parallel__costs=str(path), parallel__split_backward=False)
    assert before.startswith("planned: fits, ") and before.endswith(
        " MiB on a rank of 4 GiB; a step takes 34 s"
    )
    assert after.endswith("; a step took 33.5 s, planned 34 s (1.01 of it)")
    assert "planned beside measured: rank 0 held 1 GiB, planned 1." in after
    assert json.loads((tmp_path / "plan.json").read_text())["step_s"] == pytest.approx(34.0)


def test_a_plan_without_says_no_time(tmp_path):
    (before, after), observer = watched(tmp_path, 2)
    assert "no step time, for nothing was measured" in before and "a step took" not in after
    assert observer.before == GIB  # what the process held before there was a model
    assert json.loads((tmp_path / "plan.json").read_text())["measured"] is None


def test_costs_of_another_run_are_refused(tmp_path):
    path = written(tmp_path / "costs.yaml", costs())
    with pytest.raises(ConfigError, match=r"model.layers = 4 when it was measured, 8 here"):
        watched(tmp_path, 2, parallel__costs=str(path), model__layers=8)


def test_too_little_memory_is_refused_or_said(monkeypatch, capsys):
    loaded = config()
    plan_run(loaded, PLACE)
    monkeypatch.setattr(planned, "available_bytes", lambda: 2**26)
    with pytest.raises(ConfigError) as refused:
        plan_run(loaded, PLACE)
    words = str(refused.value)
    assert "on a rank, which can have 32 MiB; recompute.mode = block or full keeps less" in words
    assert words.endswith("run.overcommit = true") and "\n" not in words
    loaded.run.overcommit = True
    plan_run(loaded, PLACE)
    assert "which can have 32 MiB" in capsys.readouterr().err


def test_a_gpu_is_known_by_its_name(monkeypatch):
    found = SimpleNamespace(name="NVIDIA H200", total_memory=100 * GIB)
    monkeypatch.setattr(planned.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(planned.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(planned.torch.cuda, "get_device_properties", lambda device: found)
    here = planned.machine(PLACE)
    assert (here.name, here.memory_gib, here.matmul_tflops) == ("h200", 100, 828)
    assert here.gpus_per_node == 2
    found.name = "NVIDIA GB200"
    assert planned.machine(PLACE).name == "gb200"
    found.name = "NVIDIA RTX 9"
    assert planned.machine(PLACE).name == "NVIDIA RTX 9"
