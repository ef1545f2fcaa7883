"""Whatever stops a pipeline, every rank says where it was, and the job ends within the limit."""

import re
import signal
import socket
import time

import pytest
import torch.fx.experimental.symbolic_shapes  # noqa: F401, or the first backward takes seconds to import it
from torch.distributed import HashStore

from schedules import generate
from schedules.runtime import InProcessWorld, PipelineError, Watchdog, step_all
from schedules.runtime.watchdog import EXIT_CODE
from tests.ranks import observe_ranks
from tests.runtime import workers
from tests.runtime.stages import stages_of
from tests.runtime.workers import _fail, _Misbehaving, _stall, runtime

pytestmark = pytest.mark.alone

RANKS, LIMIT = 4, 4.0


def disturb(how, culprit, tmp_path, tcp=False, shared=False):
    """The outcomes, and what all ranks printed."""
    port = None
    if tcp:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    outcomes = observe_ranks(
        RANKS,
        workers.disturb,
        *(how, culprit, LIMIT, tmp_path, port, workers.CPU, shared),
        timeout=60,
        grace=60,
        preload=("torch.distributed", "tests.runtime.workers"),
    )
    ended = time.monotonic()
    began = min(float(re.search(r"begins (\S+)", outcome.output)[1]) for outcome in outcomes)
    assert ended - began < LIMIT + 3  # 3: starting and collecting processes on a busy machine
    for outcome in outcomes:
        assert outcome.exit_code != 0 and not outcome.overtime, str(outcome)
        if how not in ("kill", "hold") or outcome.rank != culprit:
            assert re.search(rf"^  rank {outcome.rank}, dualpipev, step 2: ", outcome.output, re.M), str(
                outcome
            )
            stacks = (tmp_path / f"hang/rank-{outcome.rank}.txt").read_text()
            assert "pipeline watchdog" in stacks or "_execute" in stacks or "disturb" in stacks
    return outcomes, "\n".join(outcome.output for outcome in outcomes)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("culprit", "tcp", "shared"),
    [(2, False, False), (0, True, False), (2, False, True)],
    ids=["file store", "its host killed", "shared memory"],
)
def test_killed(culprit, tcp, shared, tmp_path):
    outcomes, said = disturb("kill", culprit, tmp_path, tcp, shared)
    assert outcomes[culprit].exit_code == -signal.SIGKILL
    assert f"(rank {culprit})" in said  # somebody was waiting for it
    if not tcp:
        assert f"no answer from rank {culprit}; last heard of: rank {culprit}, dualpipev, step 1" in said


@pytest.mark.ranks
@pytest.mark.parametrize("shared", [False, True], ids=["gloo", "shared memory"])
def test_stalled(shared, tmp_path):
    outcomes, said = disturb("stall", 2, tmp_path, shared=shared)
    assert all(outcome.exit_code in (1, EXIT_CODE) for outcome in outcomes)
    assert re.search(r"rank 2, dualpipev, step 2: action \d+ of \d+, \S*2F7\S*, computing for", said)
    assert re.search(r"waiting for the activation of micro-batch 7 from stage 2 to stage 3 \(rank 2\)", said)
    assert "in _stall" in (tmp_path / "hang/rank-2.txt").read_text()


@pytest.mark.ranks
def test_no_python_runs_any_more(tmp_path):
    """The stuck rank cannot speak; the others do, also for it, and it ends with its stacks all the same."""
    outcomes, said = disturb("hold", 1, tmp_path)
    assert [outcome.exit_code for outcome in outcomes].count(EXIT_CODE) >= 2
    assert "no answer from rank 1; last heard of: rank 1, dualpipev, step" in said
    assert "Timeout (0:00:04)!" in outcomes[1].output and "in _hold" in outcomes[1].output


@pytest.mark.ranks
def test_cut_short(tmp_path):
    outcomes, said = disturb("cut", 1, tmp_path)
    assert all(outcome.exit_code in (1, EXIT_CODE) for outcome in outcomes)
    assert re.search(r"rank 1, dualpipev, step 2: ", said)
    assert re.search(r"waiting for the \w+ of micro-batch \d+ from stage \d to stage \d \(rank 1\)", said)


@pytest.mark.ranks
def test_an_exception_of_a_stage_ends_all_ranks(tmp_path):
    outcomes, _ = disturb("fail", 1, tmp_path)
    assert "ArithmeticError: no more numbers" in outcomes[1].output + (outcomes[1].error or "")
    assert "pipeline stopped: rank 1: ArithmeticError: no more numbers" in outcomes[3].output


def in_process(act, tmp_path, limit):
    lengths = [3] * 8
    schedule = generate("1f1b", 2, len(lengths))
    world = InProcessWorld(2)
    stages = [stages_of(schedule, rank, lengths) for rank in range(2)]
    stages[1][1] = _Misbehaving(stages[1][1], 3, act)
    runtimes = [runtime(schedule, r, stages[r], world.transport(r), lengths) for r in range(2)]
    step_all(world, runtimes, limit, tmp_path)


def test_in_process_stall(tmp_path):
    with pytest.raises(PipelineError) as caught:
        in_process(_stall, tmp_path, limit=2.0)
    assert "rank 0, 1f1b, step 1: action 9 of 16, 0B3, waiting for the gradient" in str(caught.value)
    assert "rank 1, 1f1b, step 1: action 7 of 16, 1F3, computing" in str(caught.value)
    assert "in _stall" in (tmp_path / "stacks.txt").read_text()


def test_in_process_exception(tmp_path):
    with pytest.raises(ArithmeticError, match="no more numbers") as caught:
        in_process(_fail, tmp_path, limit=20.0)
    notes = "\n".join(caught.value.__notes__)
    assert re.search(r"rank 0, 1f1b, step 1: action \d of 16, 0\w+, waiting", notes)
    assert "rank 1, 1f1b, step 1: action 7 of 16, 1F3" in notes


def test_a_limit_has_to_be_positive(tmp_path):
    with pytest.raises(ValueError, match="limit=0"):
        Watchdog(None, 0, 1, 0, tmp_path)


def test_what_cannot_be_written_keeps_nothing_from_ending(tmp_path, capsys):
    """The directory of the report is a file; and what is recorded elsewhere raises."""

    def record(directory, rank):
        raise LookupError(f"nothing of rank {rank}")

    (tmp_path / "hang").touch()
    dog = Watchdog(HashStore(), 0, 1, 100.0, tmp_path, record)
    dog.close()  # or its thread would end this process
    dog._report("first")
    said = capsys.readouterr().err
    assert "pipeline stopped: first" in said and f"could not write all of {tmp_path}/hang: [Errno" in said
    dog = Watchdog(HashStore(), 0, 1, 100.0, tmp_path / "other", record)
    dog.close()
    dog._report("second")
    assert "could not write all of" in (said := capsys.readouterr().err) and "nothing of rank 0" in said
    report = (tmp_path / "other/hang/rank-0.txt").read_text()
    assert report.startswith("second\nrank 0: in no step of this runtime\n\n")
