"""Profiles of real runs: complete, valid, and without an effect on what is trained."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hcmegatron.config import ConfigError, check_config
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.profiling import cli, files
from hcmegatron.profiling.clock import ClockOffset, between
from hcmegatron.profiling.kineto import Kineto
from hcmegatron.profiling.observer import Profiler
from hcmegatron.profiling.table import lines
from schedules import generate
from schedules.costs import Costs
from schedules.simulate import simulate
from tests.profiling import traces, workers
from tests.profiling.simulated import records
from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import workers as training

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
LAYOUTS = {
    "1f1b": {"schedule": "1f1b"},
    "overlapped": {"schedule": "dualpipev", "overlap": True},
    "split, recomputed": {"schedule": "dualpipe"},
    "experts apart": {"pipeline": 1, "expert": 2, "schedule": "1f1b"},
}


def config_of(text, directory, layout):
    config = tiny(text, directory, parallel=LAYOUTS[layout], training={"global_batch": 8, "steps": 4})
    config.model.layers = 4
    config.recompute.mode = "block" if "recomputed" in layout else "none"
    return config


def losses(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"], entry.get("grad_norm")) for entry in found]


@pytest.mark.ranks
@pytest.mark.parametrize("layout", LAYOUTS)
def test_profiled_steps_train_as_others_do(layout, text, tmp_path):
    """The same bits in losses, gradient norms, weights and optimizer; a profile that is whole and adds up."""
    config = config_of(text, tmp_path / "plain", layout)
    plain = run_ranks(2, training.run, config, **RUN)
    config.run.dir, config.run.profile_at = str(tmp_path / "run"), [2, 3]
    profiled = run_ranks(2, training.run, config, **RUN)
    assert profiled == plain and len(plain[0]) == 2
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")

    found = files.read_summary(tmp_path / "run")
    assert found["steps"] == [2, 3] and found["step"] == 2 and found["ranks"] == 2
    for own in found["per_rank"]:
        whole = own["compute_ms"] + sum(own["bubble_ms"].values())
        assert whole == pytest.approx(found["step_ms"], rel=1e-6)
        assert own["compute_ms"] > 0 and min(own["bubble_ms"].values()) >= 0
    exposed = sum(own["exposed_ms"] for own in found["communication"].values())
    assert exposed == pytest.approx(sum(own["bubble_ms"]["waiting"] for own in found["per_rank"]), rel=1e-6)
    kinds = {"hop", "dispatch", "combine", "reduction"} - ({"hop"} if "apart" in layout else set())
    assert set(found["communication"]) == kinds
    assert {action["action"] for action in found["actions"]} >= {"F", "B"}
    assert found["critical_path"] and found["what_if"]
    records = files.read_records(tmp_path / "run")
    assert [record.rank for record in records] == [0, 1] and all(len(r.steps) == 2 for r in records)
    nodes = {(node.phase, node.node) for record in records for node in record.steps[0].nodes}
    backward = "I" if layout == "overlapped" else "B"
    for node in ("attention", "route", "dispatch", "experts", "combine", "merge", "mlp"):
        assert ("F", node) in nodes and ({("B", node), ("I", node)} & nodes), node
    assert (backward, "attention") in nodes
    with gzip.open(tmp_path / "run/profile/trace.json.gz") as file:
        trace = json.load(file)
    slices, arrows = traces.check(trace)
    assert len(arrows) == 2 * sum(len(record.steps[0].sends) for record in records)
    names = {name for own in slices.values() for *_, name in own}
    assert "ProfilerStep#3" in names and any("aten::" in name for name in names)
    with gzip.open(tmp_path / "run/profile/kineto/rank-001.json.gz") as file:
        assert json.load(file)["distributedInfo"]["rank"] == 1
    log = (tmp_path / "run/train.log").read_text()
    assert "profile of step 2: " in log and "profiled steps took " in log
    assert "\n".join(lines(found)) in log


@pytest.mark.ranks
def test_the_verb_keeps_nothing_but_the_profile(text, tmp_path):
    config = config_of(text, tmp_path / "run", "1f1b")
    config.run.profile_at = [3, 4]
    run_ranks(2, workers.profiled, config, **RUN)
    found = files.read_summary(tmp_path / "run")
    assert found["steps"] == [3, 4] and found["unprofiled_step_ms"] > 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names <= {".lock", "config.yaml", "environment.json", "profile", "train.log", "plan.json"}


@pytest.mark.ranks
def test_clocks_of_ranks_are_told_apart():
    """Two and four seconds ahead, as far as the shortest round trip tells."""
    first, second, third = run_ranks(3, workers.offsets, 2.0)
    assert first == (0.0, 0.0)
    for (seconds, uncertainty), ahead in ((second, 2.0), (third, 4.0)):
        assert 0 < uncertainty < 0.05
        assert abs(seconds + ahead) <= uncertainty


def test_clocks_that_drift_are_less_certain():
    found = between(ClockOffset(1.0, 1e-4), ClockOffset(1.002, 2e-4))
    assert found == pytest.approx((1.001, 1.2e-3))


def test_what_cannot_be_profiled_is_refused(text, tmp_path):
    config = tiny(text, tmp_path / "run", run={"profile_at": [2]})
    with pytest.raises(
        ConfigError, match=r"^run\.profile_at = \[2\] with parallel\.schedule = megatron_1f1b: Megatron"
    ):
        check_config(config)
    config = config_of(text, tmp_path / "run", "1f1b")
    config.run.profile_at = [2, 9]
    with pytest.raises(
        ConfigError, match=r"^run\.profile_at = \[2, 9\] with training\.steps = 4 names a step that"
    ):
        check_config(config)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", "0"], "--steps 0: expected a whole number from 1 to 1000"),
        (["--run.dir=here"], "--run.dir: of `hcmegatron profile` that is --out"),
        (["--run.profile_at=[3]"], "--run.profile_at: of `hcmegatron profile` that is --steps"),
        (
            ["--checkpoint.resume=auto"],
            "--checkpoint.resume: of `hcmegatron profile` that is --checkpoint.load=RUN",
        ),
        (["--json", "x.json"], "--json x.json: without --out; say where the profile goes"),
    ],
)
def test_mistakes_are_one_line(arguments, line, capfd):
    from hcmegatron.cli import main

    assert main(["profile", "configs/quickstart.yaml", *arguments]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and line in said[0]


def test_damaged_files_are_named(tmp_path):
    assert files.read_summary(tmp_path) is None and files.read_records(tmp_path) == []
    files.write(tmp_path, files.SUMMARY, {"format": 9})
    with pytest.raises(ValueError, match=r"summary\.json is of another format; this version reads 1"):
        files.read_summary(tmp_path)
    (tmp_path / "profile/summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is damaged: "):
        files.read_summary(tmp_path)
    files.write(tmp_path, files.rank_file(0), {"format": 1})
    with pytest.raises(ValueError, match=r"rank-000\.json is no record of a rank: "):
        files.read_records(tmp_path)


def test_the_command_takes_its_settings_with_it():
    seen = []
    parser = cli.argparse.ArgumentParser()
    cli.add_arguments(parser)
    options = parser.parse_args(["a.yaml", "--steps", "2", "--out", "a dir"])
    assert cli.main(options, ["--training.seed=3"], lambda *given: seen.append(given[1:]) or 0) == 0
    assert seen == [
        (
            [
                "--training.seed=3",
                "--run.profile_at=[3, 4, 5]",
                "--checkpoint.resume=never",
                '--run.dir="a dir"',
            ],
            "hcmegatron.profiling.run:profile",
        )
    ]


@pytest.mark.ranks
def test_a_profile_that_cannot_be_written_does_not_end_the_run(text, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "profile").write_text("a file where the folder would be")
    config = tiny(
        text, directory, parallel={"pipeline": 1, "schedule": "1f1b"}, checkpoint={"resume": "auto"}
    )
    config.run.profile_at = [2]
    run_ranks(1, training.run, config, **RUN)
    log = (directory / "train.log").read_text()
    assert "torch.profiler's trace cannot be written: " in log and "the profile cannot be written: " in log
    assert "profile of step 2: " in log and "step 4/4" in log


def without(_path):
    """torch.profiler's own file, were it not there."""
    raise RuntimeError("no trace to export")


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (b"", "Expecting value"),
        (gzip.compress(b"{}"), "traceEvents"),
        (gzip.compress(b'{"traceEvents": []}'), "not enough values"),
        (gzip.compress(bytes(1000))[:-9], "EOFError"),
        (b"no gzip", "Not a gzipped file"),
        (None, "no trace to export"),
    ],
    ids=["empty", "no events", "no anchor", "cut off", "not compressed", "not exported"],
)
def test_a_damaged_trace_of_torch_profiler_does_not_end_the_run(left, words, tmp_path):
    """As on a rank whose $TMPDIR is full, where torch.profiler writes first; the others wait for what it says."""
    watching = observer_of(due=[2])
    watching.kineto = Kineto()
    export = without if left is None else lambda path: Path(path).write_bytes(left)
    watching.kineto.profiler = SimpleNamespace(export_chrome_trace=export)
    events, trouble = watching._host_events(tmp_path / "kineto/rank-000.json.gz")
    assert events == [] and trouble.startswith("torch.profiler's trace is damaged, as where ")
    assert words in trouble and "\n" not in trouble


def observer_of(due):
    config = SimpleNamespace(run=SimpleNamespace(profile_at=due))
    schedule = object.__new__(ScheduleRunner)
    stepper = SimpleNamespace(groups=None, schedule=schedule)
    return Profiler(SimpleNamespace(config=config, stepper=stepper, position=SimpleNamespace(step=0)))


def test_the_cost_of_profiling_has_profilings_own_work_in_it():
    """Whole steps beside whole steps, whatever their records say."""
    watching = observer_of(due=[3, 4, 5])
    watching._write = lambda: None
    for number, seconds in ((1, 0.5), (2, 0.1), (3, 0.25), (4, 0.5), (5, 2.0)):
        watching.on_step(SimpleNamespace(number=number, seconds=seconds))
    watching.kineto = Kineto()
    assert watching._cost(2) == {
        "unprofiled_step_ms": 300.0,
        "profiled_step_ms": 375.0,
        "kineto_step_ms": 2000.0,
    }


def test_files_of_an_earlier_larger_layout_are_removed_and_not_read(tmp_path):
    (tmp_path / "profile/kineto").mkdir(parents=True)
    for rank in range(12):
        for name in (files.rank_file(rank), files.kineto_file(rank)):
            (tmp_path / "profile" / name).write_text("{")
    (tmp_path / "profile/rank-mine.json.gz").touch()
    made = records(simulate(generate("1f1b", 2, 4), Costs()))
    for record in made:
        files.write(tmp_path, files.rank_file(record.rank), record.as_json())
    assert files.read_records(tmp_path, 2) == made
    files.write_all(tmp_path, made, {"format": 1}, {})
    assert files.read_records(tmp_path) == made
    left = {str(path.relative_to(tmp_path / "profile")) for path in (tmp_path / "profile").rglob("rank-*")}
    own = {name(rank) for name in (files.rank_file, files.kineto_file) for rank in (0, 1)}
    assert left == {*own, "rank-mine.json.gz"}


@pytest.mark.ranks
def test_a_profile_that_is_told_to_stop_says_how_far_it_came(text, tmp_path):
    """It ends as training does, and keeps what there is."""
    config = tiny(text, tmp_path / "run", parallel={"pipeline": 1, "schedule": "1f1b"})
    config.run.profile_at = [1, 2, 3, 4]
    assert run_ranks(1, workers.stopped, config, 2, **RUN) == [75]
    assert files.read_summary(tmp_path / "run")["steps"] == [1, 2]
    log = (tmp_path / "run/train.log").read_text()
    assert "stopped by SIGTERM: 2 of 4 steps were profiled" in log


@pytest.mark.ranks
def test_the_verb_fails_without_a_profile(text, tmp_path):
    config = tiny(text, tmp_path / "run", parallel={"pipeline": 1, "schedule": "1f1b"})
    config.run.profile_at = [1]
    assert run_ranks(1, workers.unwritten, config, **RUN) == [1]
    log = (tmp_path / "run/train.log").read_text()
    assert "the profile cannot be written: [Errno 28] No space left on device" in log


def test_figures_that_are_not_there_are_a_failure_in_one_line(tmp_path, capsys):
    parser = cli.argparse.ArgumentParser()
    cli.add_arguments(parser)
    arguments = ["a.yaml", "--out", str(tmp_path / "run"), "--json", str(tmp_path / "figures.json")]
    assert cli.main(parser.parse_args(arguments), [], lambda *_: 0) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "summary.json: there is no such profile" in err
    files.write(tmp_path / "run", files.SUMMARY, {"format": 1})
    assert cli.main(parser.parse_args(arguments), [], lambda *_: 0) == 0
    assert json.loads((tmp_path / "figures.json").read_text()) == {"format": 1}
