"""A run directory is read as far as it is whole: torn, missing, strange, empty and very long."""

import json
import math

import numpy as np
import pytest

from hcmegatron.config import ConfigError
from hcmegatron.report import thin
from hcmegatron.report.charts import Words
from hcmegatron.report.inputs.json_lines import JsonLines
from hcmegatron.report.inputs.metrics import columns, moving_mean, window_of
from hcmegatron.report.inputs.run import directories
from hcmegatron.report.sections.comparison import gap
from hcmegatron.report.sections.diagnostics import diagnostics
from hcmegatron.report.sections.overlap import overlap
from hcmegatron.report.sections.summary import outcome
from tests.report.run_directories import (
    add_events,
    add_observations,
    lines,
    make_run,
    make_whole_run,
    train_line,
)


def read(path):
    (directory,) = directories([path])
    return directory.read()


def test_a_file_that_grows_is_read_on_and_a_torn_line_waits_for_its_end(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    assert not file.look() and file.entries == []
    file.path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert file.look() and file.entries == [{"step": 1}, {"step": 2}] and file.torn
    assert not file.look()
    with file.path.open("a") as stream:
        stream.write('ep": 3}\nnull\n\xff\n[' + "[" * 100_000 + "\n")
    assert file.look() and file.entries[-1] == {"step": 3} and not file.torn
    assert file.unreadable == 3


def test_a_file_in_the_old_ones_place_is_read_anew(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    lines(file.path, [{"step": step} for step in range(5)])
    file.look()
    new = tmp_path / "new"
    lines(new, [{"step": 7}, *({"step": step} for step in range(9))])
    new.replace(file.path)
    assert file.look() and len(file.entries) == 10 and file.entries[0] == {"step": 7}
    file.path.write_text('{"step": 8}\n')  # shorter, the same file
    assert file.look() and file.entries == [{"step": 8}]
    assert file.replaced == 2


def test_steps_tokens_and_hours():
    entries = [
        train_line(1, 4.0),
        train_line(2, 3.0),
        train_line(4, 2.0),
        {"step": 4, "kind": "validation", "loss": 2.5},
    ]
    training, validation = columns(entries, 64.0)
    assert training.over["step"].tolist() == [1, 2, 4]
    assert training.over["tokens"].tolist() == [64, 128, 256]  # step 3 is missing, and had tokens
    assert training.over["hours"] == pytest.approx([0.1 / 3600, 0.2 / 3600, 0.3 / 3600])
    assert validation.over["tokens"].tolist() == [256] and validation["loss"].tolist() == [2.5]
    assert math.isnan(validation["bits_per_byte"][0])
    _, tested = columns([*entries, {"step": 4, "kind": "test", "loss": 2.7}], 64.0)
    assert (tested["loss"].tolist(), tested["test loss"].tolist()) == ([2.5], [2.7])


def test_of_a_step_that_is_there_twice_the_later_line_counts_and_what_is_no_number_is_none():
    entries = [
        train_line(2, 9.0),
        train_line(1, 4.0),
        train_line(2, 3.0),
        {"step": True},
        {"step": -1, "kind": "train"},
    ]
    entries.append(train_line(3, None, grad_norm="inf", extra=float("inf")))
    training, _ = columns(entries, 64.0)
    assert training["loss"].tolist()[:2] == [4.0, 3.0] and math.isnan(training["loss"][2])
    assert not training.has("extra") and math.isnan(training["grad_norm"][2])


def test_moving_mean():
    values = np.array([1.0, 2.0, np.nan, 6.0, 3.0])
    assert moving_mean(values, 3).tolist() == [1.5, 1.5, 4.0, 4.5, 4.5]
    assert np.isnan(moving_mean(np.full(4, np.nan), 3)).all()
    assert [window_of(entries) for entries in (3, 25, 440, 100_000)] == [1, 5, 9, 2001]


def test_a_hundred_thousand_steps_are_drawn_with_every_spike():
    values = np.sin(np.arange(100_000) / 3000)
    values[77_777], values[5], values[60_000:60_004] = 50.0, -50.0, np.nan
    kept = thin.drawn(values)
    assert len(kept) <= thin.MOST_POINTS + 2 + 1
    assert {0, 5, 77_777, 99_999, 60_000} <= set(kept.tolist())
    assert thin.drawn(values[:1000]).tolist() == list(range(1000))
    assert thin.words(1000) == "" and "100,000" in thin.words(100_000)
    assert thin.chosen(1000, 4) == [0, 333, 666, 999]


def test_what_is_no_run_directory_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    run = make_run(tmp_path / "run", steps=3)
    for paths, words in (
        ([tmp_path / "none"], "there is no such directory; name a run directory"),
        ([tmp_path / "file"], "is a file; name a run directory"),
        ([tmp_path / "empty"], "is no run directory"),
        ([run, run / "."], "is named twice"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            directories(paths)
        assert "\n" not in str(caught.value)


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [make_run(tmp_path / parent / "mhc", steps=1) for parent in ("a", "b")]
    assert [found.name for found in directories(paths)] == ["a/mhc", "b/mhc"]


def test_a_run_that_has_nothing_but_metrics_is_read(tmp_path):
    lines(tmp_path / "metrics.jsonl", [train_line(1, 3.0)])
    run = read(tmp_path)
    assert run.steps == 1 and run.planned_steps is None and run.config is None and run.plan is None
    assert "there is no config.yaml" in run.remarks


@pytest.mark.parametrize(
    "text", ["[1, 2]", "a: [", "\x00\x01", "!!python/object/apply:os.system ['true']", "x: &a [*a]"]
)
def test_a_configuration_that_is_damaged_is_a_remark(tmp_path, text):
    make_run(tmp_path / "run", steps=2)
    (tmp_path / "run" / "config.yaml").write_text(text)
    run = read(tmp_path / "run")
    assert run.config is None and (run.remarks or run.configuration)


def test_how_a_run_ended(tmp_path):
    whole = make_run(tmp_path / "whole", steps=60)
    assert outcome(read(whole)).startswith("finished after step 60 of 60; training loss 2.7")
    stopped = make_run(tmp_path / "stopped", steps=30, planned=1000)
    (stopped / "train.log").write_text("step 30/1000\nstopped by SIGUSR1 after step 30; continue with x\n")
    assert outcome(read(stopped)).startswith("stopped after step 30 of 1,000 by SIGUSR1; ")
    with (stopped / "metrics.jsonl").open("a") as stream:
        for step in (31, 32):
            stream.write(json.dumps(train_line(step, None, nonfinite={"loss": "nan"})) + "\n")
    assert outcome(read(stopped)).startswith(
        "diverged: the last 2 losses, to step 32 of 1,000, are not finite; "
    )
    failed = make_run(tmp_path / "failed", steps=10, planned=20)
    cause = {"rank": 0, "status": 1}
    lines(
        failed / "restarts.jsonl", [{"event": "ended", "cause": cause, "after_step": 10, "gave_up": "no use"}]
    )
    assert "failed after step 10 of 20: rank 0 ended with status 1; not started again: no use" in outcome(
        read(failed)
    )
    (whole / "metrics.jsonl").write_text("")
    assert outcome(read(whole)) == "has no step on record."


def test_a_run_whose_directory_a_job_holds_is_running(tmp_path):
    from hcmegatron.training.run_directory import locked

    run = make_run(tmp_path / "run", steps=5, planned=50)
    with locked(run):
        assert read(run).running and outcome(read(run)).startswith("is running, after step 5 of 50")
    assert not read(run).running


def test_events_in_the_order_of_steps(tmp_path):
    run = make_run(tmp_path / "run")
    add_events(run)
    add_observations(run)
    (run / "hang").mkdir()
    (run / "hang" / "rank-0.txt").write_text("")
    (run / "checkpoints" / "step-00000040.partial").mkdir()
    (run / "anomalies" / "step-00000034.json").write_text("{")
    found = read(run).events
    assert [(event.step, event.kind) for event in found] == [
        (20, "rewind"),
        (20, "restart"),
        (20, "checkpoint"),
        (30, "death"),
        (33, "skip"),
        (34, "skip"),
        (40, "checkpoint"),
        (45, "skip"),
        (60, "warning"),
        (60, "checkpoint"),
        (None, "hang"),
    ]
    words = [event.words for event in found]
    assert words[0] == "back to the checkpoint after step 20 from step 33; sequences 100 to 103 are left out"
    assert words[3] == "rank 1 ended with SIGKILL" and words[4].startswith("bad step: loss 14.2 deviations")
    assert words[5] == "bad step: step-00000034.json cannot be read"
    assert (
        words[7] == "not finite: loss nan"
        and words[9] == "set aside as damaged: checkpoints/step-00000060.damaged"
    )


def test_observations_whose_arrays_are_damaged_or_missing_are_still_there(tmp_path):
    run = make_run(tmp_path / "run")
    add_observations(run, steps=(10, 20, 30))
    (run / "diagnostics" / "step-00000010.npz").unlink()
    whole = (run / "diagnostics" / "step-00000020.npz").read_bytes()
    (run / "diagnostics" / "step-00000020.npz").write_bytes(whole[: len(whole) // 2])
    with (run / "diagnostics.jsonl").open("a") as stream:
        stream.write('{"step": 40, "scalars": {"loss": null, "x": "y"}, "warnings": [3]}\n7\n{"torn')
    found = read(run)
    assert [
        (each.step, bool(each.file), bool(each.file and each.arrays())) for each in found.observations
    ] == [
        (10, False, False),
        (20, True, False),
        (30, True, True),
        (40, False, False),
    ]
    assert found.remarks == ("diagnostics.jsonl: lines left out that are none: 1",)
    (words,) = (part for part in diagnostics([found]).parts if isinstance(part, Words))
    assert words.lines == ("The arrays of these steps' observations are damaged: 20.",)


def test_the_gap_is_taken_at_the_same_tokens():
    """Of a run with twice the tokens a step, step k is beside the other's step 2k."""
    small = [train_line(step, 10.0 - 0.01 * step) for step in range(1, 101)]
    large = [train_line(step, 9.5 - 0.02 * step, tokens_per_s=1280.0) for step in range(1, 61)]
    base, own = columns(small, 64.0)[0], columns(large, 128.0)[0]
    kept, found = gap(own, base, "loss")
    assert kept.tolist() == list(range(50))  # 6,400 tokens are what both have
    assert found[5:40] == pytest.approx(np.full(35, -0.5))
    assert len(gap(own, columns([], 1.0)[0], "loss")[1]) == 0


def of_step(step, *warned, tokens=32, **scalars):
    found = [
        {"code": c, "layer": layer, "value": 2.0, "bound": 1.0, "message": f"{c} {layer}"}
        for c, layer in warned
    ]
    return {"step": step, "tokens": tokens, "seconds": 0.1, "scalars": scalars, "warnings": found}


GAIN, GATES, SPIKE = ("composite_gain", "a"), ("gates_saturated", "b"), ("loss_spike", "a")


def test_a_step_that_spikes_and_is_observed_is_one_observation(tmp_path):
    run = make_run(tmp_path / "run", steps=5)
    spike = of_step(3, SPIKE, tokens=0, training_loss=50.0)
    lines(run / "diagnostics.jsonl", [spike, of_step(3, GAIN, loss=4.0)])
    found = read(run)
    (seen,) = found.observations
    assert seen.scalars == {"training_loss": 50.0, "loss": 4.0} and seen.tokens == 32
    assert [warned.code for warned in seen.warnings] == ["loss_spike", "composite_gain"]
    assert [event.words for event in found.events] == ["loss_spike a", "composite_gain a"]


def test_a_standing_warning_is_one_event_until_it_has_gone(tmp_path):
    run = make_run(tmp_path / "run", steps=5)
    spike = of_step(4, SPIKE, tokens=0)
    found = [of_step(1, GAIN), of_step(2, GAIN, GATES), spike, of_step(5, GAIN), of_step(6), of_step(7, GAIN)]
    lines(run / "diagnostics.jsonl", found)
    assert [(event.step, event.words) for event in read(run).events] == [
        (1, "composite_gain a"),
        (2, "gates_saturated b"),
        (4, "loss_spike a"),
        (7, "composite_gain a"),
    ]


@pytest.mark.parametrize(
    "name", ["plan.json", "environment.json", "memory/rank-000.json", "profile/summary.json"]
)
@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "\x00"])
def test_a_file_that_is_damaged_is_a_remark_and_one_that_is_absent_is_none(name, text, tmp_path):
    run = make_whole_run(tmp_path / "run", steps=20)
    assert read(run).remarks == ()
    (run / name).write_text(text)
    (remark,) = read(run).remarks
    assert remark.startswith(f"{name} is ") and "\n" not in remark
    (run / name).unlink()
    assert read(run).remarks == ()


def test_a_profile_of_another_format_is_said(tmp_path):
    run = make_whole_run(tmp_path / "run", steps=20)
    (run / "profile/summary.json").write_text('{"format": 9}')
    found = read(run)
    assert found.profile is None
    assert found.remarks == ("profile/summary.json is of another format; this version reads 1",)
    assert overlap([found]).parts[0].lines == ("run: its profile cannot be read.",)
    (run / "profile/summary.json").write_text('{"format": 1, "ranks": 2, "step": 11}')
    (words,) = overlap([read(run)]).parts
    assert words.lines == ("run: profile/summary.json is not whole: KeyError('step_ms').",)


def test_ranks_of_an_earlier_larger_layout_are_not_shown(tmp_path):
    run = make_whole_run(tmp_path / "run", steps=20)
    (run / "profile/rank-002.json").write_text("{")
    (run / "memory/rank-002.json").write_text('{"rank": 2, "pipeline_rank": 2, "gib": 9.0}')
    found = read(run)
    assert found.remarks == () and [record.rank for record in found.records] == [0, 1]
    assert found.memory.keys() == {0, 1}
