"""A run that is told to stop, or whose output goes nowhere, loses nothing; ranks that differ never begin."""

import json
import signal

import pytest

from tests.ranks import observe_ranks, run_ranks
from tests.small_configs import tiny
from tests.training import stop_workers

RUN = {"preload": ("tests.training.stop_workers",), "process_group": False, "timeout": 240}
ALONE = {"parallel": {"pipeline": 1}}


@pytest.mark.ranks
@pytest.mark.parametrize(
    "ranks, moment, number, eval_every, saved",
    [
        (
            2,
            "update",
            signal.SIGTERM,
            0,
            [2, 3],
        ),  # the rank's whole group, as launchers do, after an earlier save
        (1, "save", signal.SIGUSR1, 0, [2]),
        (1, "validation", signal.SIGINT, 3, [2, 3]),
        (1, "rehearsal", signal.SIGHUP, 0, []),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else None,
)
def test_it_ends_after_the_step_in_progress_with_a_checkpoint(
    ranks, moment, number, eval_every, saved, text, tmp_path
):
    sections = {
        "parallel": {"pipeline": ranks},
        "training": {"steps": 6, "eval_every": eval_every, "eval_batches": 8, "global_batch": 2},
    }
    config = tiny(text, tmp_path / "run", **sections)
    last = saved[-1] if saved else 0
    for rank in run_ranks(ranks, stop_workers.signalled, config, moment, int(number), last, **RUN):
        evaluated = int(moment == "validation")  # of three groups
        steps = list(range(1, last + 1))
        assert rank == {"steps": steps, "saved": saved, "evaluated": evaluated, "left": 0}
    log = (tmp_path / "run/train.log").read_text()
    assert "validation loss" not in log
    cut = f"the evaluation after step {last} was cut short by {number.name}, and has no result\n"
    assert log.count(cut) == evaluated
    how = "continue with checkpoint.resume=auto" if saved else "no checkpoint was saved"
    assert f"stopped by {number.name} after step {last}; {how}\nrun directory: {tmp_path}/run\n" in log
    folder = tmp_path / "run/checkpoints"
    assert sorted(path.name for path in folder.glob("*")) == [f"step-{step:08d}" for step in saved]


@pytest.mark.ranks
def test_a_second_interrupt_ends_at_once(text, tmp_path):
    config = tiny(text, tmp_path / "run", **ALONE)
    (outcome,) = observe_ranks(1, stop_workers.second_interrupt, config, False, **RUN)
    assert outcome.exit_code == -signal.SIGINT and not outcome.overtime
    assert "SIGINT: ending after this step, with a checkpoint; again: at once" in outcome.output


@pytest.mark.ranks
def test_an_interrupt_of_ranks_and_command_together_saves(text, tmp_path):
    """Every rank then has it twice: its own, and the one that the command passes on."""
    config = tiny(text, tmp_path / "run", parallel={"pipeline": 2}, training={"steps": 6, "global_batch": 2})
    run_ranks(2, stop_workers.second_interrupt, config, True, **RUN)
    assert "stopped by SIGINT after step 1; continue" in (tmp_path / "run/train.log").read_text()
    assert (tmp_path / "run/checkpoints/step-00000001").is_dir()


@pytest.mark.ranks
def test_output_that_goes_nowhere_stops_nothing(text, tmp_path):
    config = tiny(text, tmp_path / "run", **ALONE)
    run_ranks(1, stop_workers.unheard, config, **RUN)
    log = (tmp_path / "run/train.log").read_text().splitlines()
    assert sum("standard output takes no lines (Broken pipe): training goes on" in line for line in log) == 1
    assert log[-1] == f"run directory: {tmp_path}/run" and log[0] == f"run directory: {tmp_path}/run"
    steps = [line for line in log if line.startswith("step ") and "elapsed" in line]
    assert len(steps) == 4 and steps[-1].endswith("0:00:00 left")
    assert any(
        "parameters, at most" in line and "for weights, gradients and optimizer" in line for line in log
    )
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 4]


@pytest.mark.ranks
def test_ranks_that_differ_in_a_setting_never_begin(text, tmp_path):
    config = tiny(text, tmp_path / "run")
    outcomes = observe_ranks(2, stop_workers.differing, config, ("optimizer", "lr", 0.5), **RUN)
    for outcome in outcomes:
        assert outcome.exit_code == 1 and not outcome.overtime
        assert "optimizer.lr = 0.003 on rank 0, 0.5 on rank 1; start all ranks" in outcome.error
    assert not (tmp_path / "run").exists()
