"""A part of the table of variants and of the controls (python -m tests.races has all), and the checker itself.

Emulated: the operations run on CPU, one after another; what is checked is what the streams were told to wait for.
"""

import re

import pytest

from tests.emulated.queues import held_up, left_over
from tests.emulated.streams import Item
from tests.races.__main__ import main
from tests.races.controls import CONTROLS, EXEMPT, IN_PROCESS, controls
from tests.races.judge import INTERPRETED, WORKER, found, judged
from tests.races.report import Result, append, read, table, totals
from tests.races.sites import in_source, sites
from tests.races.variants import variants
from tests.ranks import run_ranks

ranks = pytest.mark.ranks
PLACE = re.compile(r"\[[^\[\]]* at (hcmegatron|schedules|tests/races)/[\w/]+\.py:\d+[^\[\]]*\]")
SOME = (
    "dualpipev-p1-overlap-mhc-block-moe",
    "dualpipev-p1-overlap-dropout-dhc-full-moe",
    "dualpipev-p1-overlap-dp2-mhc-none-moe",
    "dualpipev-p1-overlap-ep2-mhc-none-moe",
)
ALIKE = ("dualpipev-p2-overlap-residual-none-moe", "dualpipe-p2-overlap-evaluation-mhc-none-moe")
MISSED = (
    ("dualpipev-p1-overlap-mhc-none-moe", "hcmegatron/pipeline/lanes.py Lanes.on wait_event"),
    ("dualpipev-p1-overlap-mhc-none-moe", "hcmegatron/pipeline/lanes.py Lanes.on record_stream"),
    (
        "dualpipev-p1-overlap-mhc-block-moe",
        "hcmegatron/recompute/block_checkpoint.py Handle.tensor _used_here",
    ),
    ("dualpipev-p2-overlap-residual-none-moe", "schedules/runtime/p2p.py P2PChannels._wait wait"),
    (IN_PROCESS, "schedules/runtime/in_process.py _Receiving.wait record_stream"),
)


def test_every_synchronisation_has_a_control_or_a_reason_to_have_none():
    """A new one fails here until it has: tests/races/controls.py."""
    assert set(CONTROLS) | set(EXEMPT) == set(sites())
    assert not set(CONTROLS) & set(EXEMPT)
    assert {name for name, _ in controls()} - {IN_PROCESS} <= set(variants())


def test_a_synchronisation_is_found_by_what_it_calls_and_named_by_where():
    source = "class A:\n  def f(self):\n    s.wait_event(\n      e)\n    s.wait_event(e)\n    lines.on(1)\n"
    assert [str(site) for site in in_source(source, "a.py")] == [
        "a.py A.f wait_event",
        "a.py A.f wait_event 2",
    ]


def test_the_table_has_every_dimension():
    configs = {name: one.config() for name, one in variants().items()}
    pairs = {(c.parallel.schedule, c.parallel.pipeline, c.parallel.overlap) for c in configs.values()}
    for schedule in ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_v", "dualpipe", "dualpipev"):
        for pipeline in (2, 4):
            assert (schedule, pipeline, False) in pairs
            assert not schedule.startswith("dualpipe") or (schedule, pipeline, True) in pairs
    overlapped = [c for c in configs.values() if c.parallel.overlap]
    assert {c.connection.kind for c in overlapped} == {
        "residual",
        "shc",
        "dhc",
        "sfc",
        "dfc",
        "mhc",
        "ihc",
        "gr",
    }
    assert {c.recompute.mode for c in overlapped} == {"none", "block", "full", "selective"}
    assert {bool(c.moe.experts) for c in overlapped} == {True, False}
    assert {(c.parallel.tensor, c.parallel.expert) for c in overlapped} >= {(1, 1), (2, 1), (1, 2), (2, 2)}
    assert any(c.kernels == "triton" for c in overlapped)


@ranks
@pytest.mark.parametrize("name", SOME)
def test_nothing_is_found(name):
    result = judged(name)
    assert not result.unexpected, "\n".join((result.words(), result.error or "", *result.findings))
    assert result.operations > 1000
    assert result.streams > 1


@ranks
@pytest.mark.parametrize(("name", "without"), MISSED)
def test_what_is_taken_away_is_missed(name, without):
    result = judged(name, without)
    assert result.findings, result.words()
    for finding in result.findings:
        assert len(PLACE.findall(finding)) >= 2, finding


@ranks
def test_messages_over_streams_give_the_gradients_of_the_cpu():
    """Bit for bit: the transport for GPUs, with receives posted late, beside those between CPUs."""
    for name in ALIKE:
        config = variants()[name].config()
        emulated = found(name)
        plain = run_ranks(2, f"{WORKER}:plain", config, timeout=120, preload=(WORKER,))
        for own, gradients in zip(emulated, plain, strict=True):
            assert own.findings == {}
            assert sum(stream.startswith("channel") for stream in own.operations) >= 2
            assert len(gradients) > 10
            assert own.gradients == gradients, name


@ranks
def test_weight_gradients_are_left_on_computations_lane_alone():
    """They are computed on the current stream, which waits for no other lane: elsewhere they would be a race."""
    (said,) = run_ranks(1, f"{WORKER}:left_on_another_lane", preload=(WORKER,))
    assert said == "weight gradients left on Lane.HIGH_PRIORITY"


def test_a_hang_names_what_holds_which_stream():
    receive, send = (Item(kind, "channel", 1, (0, 1)) for kind in ("receive", "send"))
    ready = Item("record", "compute", 1)
    # the second rank's send is behind a receive in the only queue
    other = Item("receive", "back", 1, (1, 0))
    logs = [[receive, Item("kernel", "compute")], [other, Item("kernel", "back"), ready, send]]
    assert left_over(logs, 4) > 0  # nobody sends back
    (first, second) = held_up(logs, 1)
    assert first.startswith("rank 0: receive 1 of (0, 1) holds stream channel; rank 1's is in queue 0 behind")
    assert second.endswith("there is no other end")
    collective = Item("collective", "compute", 1, "tp", 2)
    assert left_over([[collective], [collective]], 1) == 0
    (alone,) = held_up([[collective], []], 1)
    assert alone.startswith("rank 0: collective 1 of tp holds stream compute")


def result(variant, without=None, **values):
    return Result(variant, without, 1, 10, 2, **{"findings": {}, "hangs": {}, "seconds": 1.0} | values)


def test_results_are_read_back_and_counted(tmp_path):
    file = tmp_path / "results.jsonl"
    one, other = "1f1b-p2-mhc-none-dense", "dualpipev-p2-overlap-mhc-none-moe"
    given = [
        result(one, hangs={8: ["rank 0: ..."]}),
        result(other, findings={"x": 2}),
        result(one, "site 1", findings={"y": 1}),
        result(one, "site 2"),
        result(other, "site 2", hangs={32: ["rank 1: ..."]}),
        result(one, "site 3"),
    ]
    for each in (result(other), *given):
        append(file, each)
    back = read(file)
    assert sorted(map(repr, back)) == sorted(map(repr, given))
    found = totals(back)
    assert (found.variants, found.findings, found.hanging[8]) == (2, 1, 1)
    assert (found.missed, found.unmissed) == ({"site 1", "site 2"}, {"site 3"})
    text = table(back)
    assert f"| {one} | 1 | 2 | 10 | 0 | ends | ends | hangs | ends |" in text
    assert "| 1f1b | 2 | no | 1 | 10 | 2 | 0 | 0 | 0 | 1 | 0 |" in text
    assert "| dualpipev | 2 | yes | 1 | 10 | 2 | 1 | 0 | 0 | 0 | 0 |" in text


def test_half_a_line_is_passed_over_and_not_added_to(tmp_path):
    """Of a run that was killed while it wrote."""
    file = tmp_path / "results.jsonl"
    append(file, result("one"))
    file.write_text(file.read_text() + '{"variant": "tw')
    append(file, result("three"))
    assert [each.variant for each in read(file)] == ["one", "three"]


@pytest.mark.parametrize(
    "options, words",
    [(["--minutes", "nan"], "--minutes nan"), (["--out", "/dev/null/x"], "--out /dev/null/x")],
)
def test_options_that_cannot_be(options, words, capsys):
    with pytest.raises(SystemExit):
        main(["--minutes", "0", *options])
    assert words in capsys.readouterr().err


def test_a_name_that_nothing_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "no such variant", "--list"])
    assert "no such variant" in capsys.readouterr().err
    assert main(["--only", "triton", "--list"]) == 0
    assert capsys.readouterr().out.count("triton") >= 3
    assert INTERPRETED  # which those need
