"""The verb: what it prints and writes, and what it says to bad input."""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmegatron.config.schema import Schedule
from schedules.cli import add_arguments, main
from schedules.cost_config import read_cost_config
from schedules.csv_form import from_csv, to_csv
from schedules.generators import GENERATORS, SCHEDULES, generate
from schedules.report import make_report
from schedules.split_backward import split_backward

ROOT = Path(__file__).parents[2]
# A file of a few lines with 20^7 values.
LAUGHS = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}' if i else '1'] * 20)}]\n" for i in range(7))


def call(*words):
    parser = argparse.ArgumentParser(prog="hcmegatron schedule", allow_abbrev=False)
    add_arguments(parser)
    return main(parser.parse_args([str(word) for word in words]))


def refused(capsys, *words):
    """The one line on stderr, with exit code 2 and nothing on stdout."""
    try:
        code = call(*words)
    except SystemExit as leaving:
        code = leaving.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1, (code, out, err)
    return err


def test_compare_shows_every_schedule(capsys):
    assert call("dualpipe", "--ranks", 8, "--microbatches", 20, "--compare") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines[:8]] == list("01234567")
    rows = {line.split()[0]: line.split()[1:] for line in lines[10:]}
    assert rows.keys() == set(GENERATORS)
    assert rows["1f1b"] == ["81", "25.9%", "+0.0%", "8", "1x"]
    assert rows["dualpipe"] == ["63", "4.8%", "+0.0%", "9", "2x"]


def test_split_backward_is_of_all_that_are_compared(capsys, tmp_path):
    """By hand: 1F1B's 7 stages of fill and drain have F and I instead of F and B, of which W is one."""
    chart = tmp_path / "1f1b.csv"
    words = ("1f1b", "--ranks", 8, "--microbatches", 20, "--compare", "--split-backward", "--csv", chart)
    assert call(*words) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[10:]}
    assert rows["1f1b"][0] == "74" == rows["gpipe"][0] and rows["zb_h1"][0] == "67"
    assert from_csv(chart.read_text(), "1f1b").actions == split_backward(generate("1f1b", 8, 20)).actions


def test_the_same_work_in_every_schedule(tmp_path):
    """Costs are those of a rank's share: schedules with two stages per rank have the same busy time."""
    call("1f1b", "--ranks", 4, "--microbatches", 8, "--compare", "--json", tmp_path / "all.json")
    found = json.loads((tmp_path / "all.json").read_text())
    assert {entry["schedule"] for entry in found} == set(GENERATORS)
    assert {busy for entry in found for busy in entry["busy_per_rank"]} == {8 * 3.0}


def test_lockstep_and_hops_reproduce_the_published_figures(tmp_path):
    for latency, expected in ((0, 66), (0.25, 72.5), (0.5, 79.5)):
        size = ("--ranks", 8, "--microbatches", 20, "--latency", latency)
        assert call("dualpipe", *size, "--sending", "lockstep", "--json", tmp_path / "f.json") == 0
        found = json.loads((tmp_path / "f.json").read_text())
        assert (found["makespan"], found["makespan_with_free_links"]) == (expected, 66)


def test_files(tmp_path):
    files = {name: tmp_path / f"out.{name}" for name in ("svg", "trace", "csv", "json")}
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    assert call("dualpipev", "--ranks", 3, "--microbatches", 7, *options) == 0
    assert ElementTree.fromstring(files["svg"].read_text()).tag.endswith("svg")
    assert json.loads(files["trace"].read_text())["traceEvents"]
    schedule = generate("dualpipev", 3, 7)
    assert from_csv(files["csv"].read_text()).actions == schedule.actions
    found = json.loads(files["json"].read_text())
    assert found["critical_path"][-1]["end"] == found["makespan"]
    assert found["actions_per_rank"] == [[str(a) for a in actions] for actions in schedule.actions]


def test_a_csv_file_in_place_of_a_name(tmp_path, capsys):
    file = tmp_path / "mine.csv"
    call("zb_v", "--ranks", 3, "--microbatches", 6, "--csv", file)
    capsys.readouterr()
    assert call(file, "--compare") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[5:]}
    assert rows["mine"] == rows["zb_v"]


def test_streams_widen_the_hops(tmp_path):
    found = []
    for n in (1, 4):
        size = ("--ranks", 4, "--microbatches", 8, "--hop-bytes", 2, "--bandwidth", 16, "--streams", n)
        call("1f1b", *size, "--json", tmp_path / "f.json")
        found.append(json.loads((tmp_path / "f.json").read_text()))
    free = found[0]["makespan_with_free_links"]
    assert found[1]["makespan"] - free == 4 * (found[0]["makespan"] - free) > 0
    assert sum(found[1]["exposed_communication_per_rank"]) > 0


def test_layers_are_shared_out_unevenly(tmp_path):
    """10 layers on 4 ranks: 3, 3, 2, 2; on 8 stages: 2, 2, 1, ... 1."""
    for name, busy in (("1f1b", [9, 9, 6, 6]), ("zb_v", [9, 9, 6, 6])):
        call(name, "--ranks", 4, "--microbatches", 1, "--layers", 10, "--json", tmp_path / "f.json")
        found = json.loads((tmp_path / "f.json").read_text())["busy_per_rank"]
        assert sum(found) == 30
        assert found == busy


def test_costs_from_a_file_and_options_over_it(tmp_path):
    moe = [
        {"role": "attention", "lane": "compute", "forward": 3, "dgrad": 4, "wgrad": 2},
        {"role": "dispatch", "lane": "communication", "forward": 2, "dgrad": 2},
        {"role": "experts", "lane": "compute", "forward": 3, "dgrad": 3, "wgrad": 3},
        {"role": "combine", "lane": "communication", "forward": 2, "dgrad": 2},
    ]
    (tmp_path / "c.json").write_text(
        json.dumps({"nodes": moe, "layers": 16, "links": {"0-1": {"latency": 1}}, "latency": 0.5})
    )
    (tmp_path / "c.yaml").write_text("forward: 2\ninput: [1, 1, 1, 1]\nlead: 0.5\n")
    size = ("--ranks", 4, "--microbatches", 8)
    found = {}
    for name, extra in (
        ("early", ()),
        ("first", ("--lead", 1)),
        ("yaml", ("--costs", tmp_path / "c.yaml", "--forward", 4)),
    ):
        costs = () if name == "yaml" else ("--costs", tmp_path / "c.json")
        assert call("dualpipe", *size, *costs, *extra, "--json", tmp_path / "f.json") == 0
        found[name] = json.loads((tmp_path / "f.json").read_text())
    # Overlapping hides all-to-alls, so the simulator gives F a shorter lead than all of it.
    assert found["early"]["lead"] < 1
    assert found["early"]["makespan"] < found["first"]["makespan"]
    assert found["yaml"]["lead"] == 0.5
    assert found["yaml"]["busy_per_rank"] == [8 * (4 + 1 + 1)] * 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dualpipe --ranks 7 --microbatches 20", "ranks=7 is odd.*the smallest above it that works is 8"),
        ("dualpipe --ranks 0 --microbatches 4", "ranks=0; the smallest that works is 2"),
        ("dualpipe --ranks 8 --microbatches 21", "microbatches=21 is odd.*works is 22"),
        (
            "dualpipe --ranks 8 --microbatches 14",
            "microbatches=14 with ranks=8; the smallest that works is 16",
        ),
        ("dualpipev --ranks 8 --microbatches 14", "the smallest that works is 16"),
        ("1f1b --ranks 0 --microbatches 4", "ranks=0; the smallest that works is 1"),
        ("gpipe --ranks 4 --microbatches -3", "microbatches=-3 with ranks=4; the smallest that works is 1"),
        ("1f1b --ranks 2.5 --microbatches 4", "'2.5' is not a whole number"),
        ("1f1b --microbatches 4", "--ranks is missing"),
        ("1f1b --ranks 4", "--microbatches is missing"),
        ("1f1b --ranks 64 --microbatches 1000000000", "is more than 262144"),
        ("dualpip --ranks 4 --microbatches 8", "unknown schedule 'dualpip'; known: gpipe, 1f1b"),
        ("1f1b --ranks 4 --microbatches 8 --forward -1", "forward=-1"),
        ("1f1b --ranks 4 --microbatches 8 --backward -2", "backward=-2"),
        ("1f1b --ranks 4 --microbatches 8 --forward nan", "forward=nan: expected a number"),
        ("1f1b --ranks 4 --microbatches 8 --weight inf", "weight=inf"),
        ("1f1b --ranks 4 --microbatches 8 --forward x", "'x' is not a number"),
        ("1f1b --ranks 4 --microbatches 8 --forward 1,2", "forward: 2 entries for the 4 stages"),
        ("1f1b --ranks 4 --microbatches 8 --latency 1,2", r"latency=\[1.0, 2.0\]: expected a number"),
        ("1f1b --ranks 4 --microbatches 8 --bandwidth 0", "bandwidth=0"),
        ("1f1b --ranks 4 --microbatches 8 --streams 1.5", "streams=1.5"),
        ("1f1b --ranks 4 --microbatches 8 --lead 2", "lead=2"),
        ("1f1b --ranks 4 --microbatches 8 --lead often", "'often' is neither auto nor a number"),
        ("1f1b --ranks 4 --microbatches 8 --layers 3.5", "layers=3.5"),
        ("1f1b --ranks 4 --microbatches 8 --overlapped 9", r"FB=9.0 is more than F \+ B = 3.0"),
        ("1f1b --ranks 4 --microbatches 8 --sending late", "invalid choice: 'late'"),
        ("1f1b --ranks 4 --microbatches 8 --svg nowhere/x.svg", "there is no directory nowhere"),
        ("1f1b --ranks 4 --microbatches 8 --svg .", "is a directory"),
        ("1f1b --ranks 4 --microbatches 8 --costs none.json", "none.json: No such file"),
        ("1f1b --ranks 4 --microbatches 8 --svg out.json", "out.json: named for more than one output"),
        ("1f1b --ranks 4 --microbatches 8 --forward 1e308", "expected 0, or a number between"),
        ("1f1b --ranks 4 --microbatches 8 --forward 1e-308", "expected 0, or a number between"),
        ("1f1b --ranks 4 --microbatches 8 --layers 1e9", "layers=1000000000.0: at most 10000"),
        ("none.csv", "none.csv: No such file"),
        ("a\nb.csv", r"a\\nb.csv: No such file"),
        (
            "1f1b --ranks 4 --microbatches 8 --rank 2",
            "unrecognized arguments: --rank 2; see .* schedule --help",
        ),
        ("1f1b --ranks 4 --microbatches 8 --svg " + "x" * 300, "File name too long"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = refused(capsys, *words.split(" "), "--json", "out.json")
    assert re.search(message, err), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0B0\n1F0,1X0\n", "line 2, cell 2: '1X0' is no action"),
        ("0F0,(0F1;0B0)OVERLAP,0B1\n", "line 1, cell 2: '(0F1;0B0)OVERLAP' is no action"),
        ("0F0,0B0\n0F1,0B1\n", "line 2: 0F1: stage 0 already is on line 1"),
        ("0F0,0B0\n2F0,2B0\n", "no line has stage 1"),
        ("\n\n", "no actions"),
        ("", "no actions"),
        ("0F0\n1F0,1B0\n", "rank 0: 0B0, or 0I0 and 0W0, is missing"),
        ("0F99999999,0B99999999\n", "no line has a forward of micro-batch 0, yet there is one of 99999999"),
        ("99999999F0,99999999B0\n", "no line has stage 0, yet there is a stage 99999999"),
        ("\x00", "line 1"),
        ("0F0," + "x" * 200_000, "line 1: field larger than field limit"),
        ("0F" + "9" * 5000, "line 1, cell 1"),
    ],
)
def test_unreadable_csv_names_line_and_cell(text, message, capsys, tmp_path):
    (tmp_path / "s.csv").write_text(text)
    assert message in refused(capsys, tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{", "c.json: Expecting property name"),
        ("c.json", "[1]", "expected keys and values"),
        ("c.json", '{"forwrad": 1}', "unknown key 'forwrad'; did you mean 'forward'?"),
        ("c.json", '{"forward": "fast"}', "forward='fast': expected a number"),
        ("c.json", '{"forward": true}', "forward=True: expected a number"),
        ("c.json", '{"links": {"0-9": {}}}', "links: '0-9': ranks are 0 .. 1"),
        ("c.json", '{"links": {"a": {}}}', "links: 'a' is not two ranks"),
        ("c.json", '{"links": [1]}', "links=[1]"),
        ("c.json", '{"links": {"0-1": {"speed": 1}}}', "expected latency and bandwidth"),
        ("c.json", '{"sending": "late"}', "sending='late': early or lockstep"),
        ("c.json", '{"nodes": [{"role": "attention"}], "layers": 2}', "expected role, lane, forward, dgrad"),
        ("c.json", '{"nodes": []}', "expected a list of a layer's nodes"),
        (
            "c.json",
            '{"nodes": [{"role":"attention","lane":"compute","forward":1,"dgrad":1}]}',
            "layers has to say",
        ),
        ("c.yaml", "forward: [", "c.yaml: while parsing"),
        ("c.json", '{"forward": 1, "forward": 2}', "c.json: 'forward' is given twice"),
        ("c.yaml", "forward: 1\nforward: 2\n", "c.yaml: line 2: 'forward' is given twice"),
        ("c.yaml", "links:\n  0-1: {latency: 1, latency: 2}\n", "line 2: 'latency' is given twice"),
        ("c.yaml", "forward: yes\n", "forward='yes': expected a number"),
        ("c.json", '{"links": ' + "[" * 100_000, "c.json: is nested too deeply"),
        ("c.yaml", "links: " + "[" * 100_000, "c.yaml: is nested too deeply"),
        ("c.json", '{"links": ' + "[" * 50 + "]" * 50 + "}", "c.json: is nested too deeply"),
        ("c.yaml", "links: &x [*x]\n", "c.yaml: is nested too deeply"),
        ("c.yaml", LAUGHS, "c.yaml: holds more than 100000 values"),
        ("c.json", '{"forward": ' + "9" * 5000 + "}", "c.json: Exceeds the limit"),
        ("c.json", b"\xff", "c.json: is not UTF-8 text (byte 0)"),
    ],
)
def test_bad_costs_file(name, text, message, capsys, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    size = ("--ranks", 2, "--microbatches", 4)
    assert message in refused(capsys, "1f1b", *size, "--costs", tmp_path / name)


def test_costs_in_yaml_are_numbers_as_yaml_1_2_writes_them(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "\ufefflatency: 1e-3\nforward: 1E1\nbandwidth: .inf\ninput: 010\nweight: +2.5e+0\n"
    )
    found = read_cost_config(tmp_path / "c.yaml")
    assert found == {"latency": 1e-3, "forward": 10.0, "bandwidth": float("inf"), "input": 10, "weight": 2.5}


def test_both_spellings_of_a_name_are_read_and_one_is_printed(capsys):
    said = []
    for name in ("zb-h1", "zb_h1"):
        assert call(name, "--ranks", 2, "--microbatches", 4, "--compare") == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "\nzb_h1 " in said[0] and said[0].count("zb_h1") == 1
    assert set(GENERATORS) < set(get_args(Schedule))  # train's names


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_the_advice_of_a_refusal_is_accepted(name):
    for P in range(-1, 7):
        for M in range(-1, 15):
            ranks, microbatches = P, M
            for _ in range(2):  # one advice on the ranks, one on the micro-batches
                try:
                    generate(name, ranks, microbatches)
                    break
                except ValueError as error:
                    key, advice = re.search(r": (ranks|microbatches)=.* works is (\d+)", str(error)).groups()
                    ranks, microbatches = (
                        (int(advice), microbatches) if key == "ranks" else (ranks, int(advice))
                    )
            generate(name, ranks, microbatches)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_smallest_sizes_and_no_costs_at_all(name, tmp_path, capsys):
    """A makespan of 0 is no division by 0, in any picture."""
    P = 1 if (kind := SCHEDULES[name]).misfit(1) is None else kind.misfit(1).smallest
    M = kind.misfit(P, 0).smallest
    zero = ("--forward", 0, "--input", 0, "--weight", 0)
    files = [word for kind in ("svg", "trace", "json") for word in (f"--{kind}", tmp_path / kind)]
    assert call(name, "--ranks", P, "--microbatches", M, *zero, *files) == 0
    assert json.loads((tmp_path / "json").read_text())["makespan"] == 0
    assert f"{name}  " in capsys.readouterr().out


def test_a_rank_may_be_empty(tmp_path, capsys):
    (tmp_path / "s.csv").write_text("0F0,0B0\n\n1F0,1B0\n")
    assert call(tmp_path / "s.csv", "--json", tmp_path / "j") == 0
    found = json.loads((tmp_path / "j").read_text())
    assert found["busy_per_rank"] == [3 * 1.5, 0, 3 * 1.5]
    assert [step["action"] for step in found["critical_path"]] == ["0F0", "1F0", "1B0", "0B0"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_csv_is_read_or_refused_never_a_crash(data):
    text = to_csv(generate("dualpipev", 2, 4))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        drop = data.draw(st.integers(0, 6))
        text = text[:at] + data.draw(st.text('0123456789FBIW,;()\n"xé', max_size=4)) + text[at + drop :]
    try:
        make_report(from_csv(text), {})
    except ValueError as error:
        assert "\n" not in str(error)


def test_compare_says_why_a_schedule_is_left_out(capsys):
    assert call("1f1b", "--ranks", 3, "--microbatches", 4, "--compare") == 0
    out = capsys.readouterr().out
    assert "dualpipe     ranks=3 is odd" in out
    assert "dualpipev    microbatches=4 with ranks=3; the smallest that works is 6" in out


def test_answers_quickly_and_without_torch():
    """As a process of its own; the limit is several times what an idle machine needs."""
    code = (
        "import sys, runpy; sys.argv = ['schedules', 'dualpipe', '--ranks', '8', '--microbatches', '20', '--compare']\n"
        "try: runpy.run_module('schedules', run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'megatron', 'hcmegatron', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 5
