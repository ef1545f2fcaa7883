"""What a study takes: as the planner plans each run; totals, limits, and what is printed."""

import json
import re
import time

import pytest

from hcmegatron.cli import main
from hcmegatron.config import ConfigError
from hcmegatron.planner.machines import find_machine
from hcmegatron.planner.plan import make_plan
from hcmegatron.studies.expand import expand
from hcmegatron.studies.places import packaged_studies
from hcmegatron.studies.plan import plan_study
from hcmegatron.studies.spec import read_study
from tests.pace import pace
from tests.ranks import ROOT
from tests.studies.files import written

END = "  baseline: residual\n"
DECAY = (END, END + "decay: {share: 0.2, branches: [0.5]}\n")


def planned(folder, *changes, overrides=()):
    return plan_study(read_study(written(folder, *changes), overrides))


def test_a_run_is_planned_as_the_planner_plans_its_configuration(tmp_path):
    plan = planned(tmp_path, DECAY)
    row = next(row for row in plan.rows if row.run.name == "mhc-d64-51.2Ktok-seed2")
    alone = make_plan(plan.study.config(row.run), find_machine("h100"), 1)
    assert row.steps == 100 + 10  # the branch trains ten more
    assert row.hours == row.gpu_hours == pytest.approx(alone.seconds * 110 / 3600)
    assert row.flops == pytest.approx(alone.model_flops * 110)
    assert (row.step.peak, row.step.seconds, row.fits) == (alone.peak, alone.seconds, True)


def test_an_optimizer_has_its_own_plan_of_a_step(tmp_path):
    kinds, optimizers = (
        ("kind: [residual, mhc]", "kind: [residual]"),
        ("  seed: [1, 2]", "  optimizer.name: [adamw, muon]"),
    )
    rows = planned(tmp_path, kinds, optimizers, ("[32, 64]", "[64]")).rows
    assert len(rows) == 2 and rows[0].step.peak != rows[1].step.peak


def test_files_may_be_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/small.yaml").write_text("extends: h100\nmemory_gib: 0.8\n")
    plan = planned(tmp_path, (END, END + "machine: {gpu: ~/small.yaml}\nrun_dir: ~/runs\n"))
    assert plan.machine.memory_gib == 0.8 and plan.study.run_dir == tmp_path / "home/runs"


def test_the_whole_is_the_sum_and_jobs_share_the_time(tmp_path):
    alone, two = (planned(tmp_path, overrides=[f"--study.machine.jobs={jobs}"]) for jobs in (1, 2))
    hours = [row.hours for row in alone.rows]
    assert len(hours) == 8 and alone.hours == pytest.approx(sum(hours)) == pytest.approx(alone.gpu_hours)
    assert two.gpu_hours == pytest.approx(sum(hours))
    assert max(max(hours), sum(hours) / 2) <= two.hours * (1 + 1e-9) and two.hours < sum(hours)


def test_a_run_that_cannot_be_laid_out_says_why_and_the_others_are_planned(tmp_path):
    batch = ("  seed: [1, 2]", "  training.global_batch: [8, 16]")
    plan = planned(tmp_path, batch, (END, END + "machine: {gpus: 2}\n"))
    fit = {row.run.name: row for row in plan.rows}
    assert [name for name, row in fit.items() if row.fits] == [
        name for name in fit if name.endswith("batch16")
    ]
    row = fit["mhc-d32-51.2Ktok-global_batch8"]
    assert row.step.why_not.startswith(
        "training.global_batch = 8 is not a multiple of training.micro_batch = 8 x data-"
    )
    assert row.hours is None and row.step.total > 0
    assert (
        plan.gpu_hours
        == pytest.approx(2 * plan.hours)
        == pytest.approx(2 * sum(r.hours or 0 for r in plan.rows))
    )


def test_a_run_that_needs_more_memory_says_how_much(tmp_path):
    (tmp_path / "small.yaml").write_text("extends: h100\nmemory_gib: 0.8\n")
    plan = planned(tmp_path, (END, END + "machine: {gpu: small.yaml}\n"))
    assert plan.machine.memory_gib == 0.8
    assert {row.fits for row in plan.rows} == {False}
    assert "GiB on pipeline rank 0, most of it " in plan.rows[0].step.why_not
    assert plan.rows[0].step.why_not.endswith("; a small has 0.80")


@pytest.mark.parametrize(("limit", "of"), [("max_hours", "hours"), ("max_gpu_hours", "gpu_hours")])
def test_a_study_that_takes_more_than_its_limits_is_refused(limit, of, tmp_path):
    found = getattr(planned(tmp_path), of)
    planned(tmp_path, overrides=[f"--study.limits.{limit}={1.01 * found}"]).require_within_limits()
    with pytest.raises(
        ConfigError, match=rf"--study.limits.{limit}=.*: is less than the .* hours planned; raise it"
    ):
        planned(tmp_path, overrides=[f"--study.limits.{limit}={0.99 * found}"]).require_within_limits()


def test_what_is_printed_and_written(tmp_path, capsys):
    study = written(tmp_path, DECAY)
    assert main(["study", "plan", str(study), "--json", str(tmp_path / "plan.json")]) == 0
    told = capsys.readouterr().out
    assert (
        "8 runs (kind 2 x size 2 x tokens 1 x seed 2) and 8 branches of them, each on 1 x h100, 1 at a time"
        in told
    )
    assert "mhc-d64-51.2Ktok-seed*" in told and "100 + 10" in told
    assert "size d32: model.hidden_size = dial 32 = 32; model.heads = dial 32 / 16 = 2" in told
    figures = json.loads((tmp_path / "plan.json").read_text())
    plan = plan_study(read_study(study))
    assert figures["gpu_hours"] == plan.gpu_hours and len(figures["runs"]) == 8
    row = figures["runs"][-1]
    assert row["name"] == "mhc-d64-51.2Ktok-seed2" and row["axes"]["tokens"] == 51200
    assert row["branches"] == [{"name": "at0.5", "at_step": 40, "steps": 50, "tokens": 25600}]
    assert row["total"] == sum(row["parameters"].values()) and row["settings"]["optimizer.decay_steps"] == 20


def test_a_search_plans_with_the_best_layout_and_says_how_to_have_it(tmp_path, capsys):
    changes = (
        ("  tokens: [51200]\n", "  training.global_batch: [16]\n"),
        (END, END + "machine: {gpus: 4}\n"),
    )
    study = written(tmp_path, *changes, ("[32, 64]", "[64]"))
    assert main(["study", "plan", str(study), "--search"]) == 0
    told = capsys.readouterr().out
    assert "runs do not fit" not in told and "residual, 2 layers of 64: parallel." in told
    assert (
        all(row.fits for row in plan_study(read_study(study)).rows) is False
    )  # in its own layout: a batch of 8 x 4


def test_the_packaged_studies():
    """Each can be planned, and each of its variants; what the papers' take is known."""
    assert packaged_studies() == [
        "ablation",
        "connections",
        "expansion",
        "laptop",
        "mhc-scaling",
        "olmo-hc",
        "olmoe-fc",
        "stability",
    ]
    rows = {}
    for name in packaged_studies():
        for variant in (None, *read_study(name).variants):
            plan = plan_study(read_study(name, [f"--{variant}"] if variant else []))
            assert all(row.fits for row in plan.rows), [row.step.why_not for row in plan.rows]
            rows |= {f"{plan.study.name}/{row.run.name}": row for row in plan.rows}
    same = [rows[f"connections-same-flops/{kind}-seed1-2.2e11flop"] for kind in ("residual", "mhc")]
    assert [row.flops for row in same] == pytest.approx([2.2e11] * 2, rel=2e-3)
    assert same[0].run.tokens == rows["connections/residual-525Ktok-seed1"].run.tokens > same[1].run.tokens
    assert rows["mhc-scaling/mhc-27b-seed1"].step.active == pytest.approx(4.14e9, rel=1e-3)
    assert rows["mhc-scaling/mhc-3b-1t-seed1"].run.tokens == pytest.approx(1.05e12, rel=2e-3)
    assert rows["olmo-hc/dhc-n4-1b"].step.parameters["connections"] == 394_048
    assert rows["olmoe-fc/dfc-olmoe-1b-7b"].step.parameters["connections"] == 165_056


@pytest.mark.parametrize("words", [[], ["--quick"], ["--study.axes.seed=[1, 2, 3, 4]"]], ids=" ".join)
def test_the_study_that_the_page_shows_is_planned(words, tmp_path):
    page = (ROOT / "docs/studies.md").read_text()
    (tmp_path / "my-study.yaml").write_text(re.search("```yaml\n(about: .*?)```", page, re.DOTALL)[1])
    assert all(word in page for word in words)
    runs = expand(read_study(str(tmp_path / "my-study.yaml"), words))
    assert len(runs) == {"": 10, "--quick": 4}.get("".join(words), 14)


def test_five_hundred_runs_are_planned_in_ten_seconds_of_process_time():
    began = time.process_time()
    seeds = ["--study.axes.seed=" + str(list(range(28)))]
    assert len(plan_study(read_study("laptop", seeds)).rows) == 504
    assert time.process_time() - began < 10 * pace()
    assert len(expand(read_study("laptop", seeds))) == 504
