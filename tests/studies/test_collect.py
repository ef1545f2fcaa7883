"""The table that `study collect` writes is what `study fit` reads."""

import json
import math

import pytest

from hcmegatron.cli import main
from hcmegatron.studies.collect import write_table
from hcmegatron.studies.directory import StudyDirectory
from hcmegatron.studies.read_results import read_results
from hcmegatron.studies.run_cli import opened
from hcmegatron.studies.table import Table
from tests.studies import study_workers
from tests.studies.known import EXACT, KINDS, OF_COMPUTE, C, D, N
from tests.studies.miniature import MINIATURE, write_study

ABLATION = """
  kind:
    residual:
    mhc-res: {kind: mhc, use_pre: false, use_post: false}
    mhc-none: {kind: mhc, use_pre: false, use_post: false, use_res: false}
    mhc-n2: {kind: mhc, n: 2}
    mhc-slow: {kind: mhc, optimizer.beta2: 0.9}
    mhc:
"""


def test_fit_takes_it_as_it_is(tmp_path, capsys):
    rows = [
        {
            "run": f"r{i}",
            "group": f"r{i // 2}",
            "kind": "residual",
            "parameters": int(n),
            "tokens": int(d),
            "loss": loss,
        }
        for i, (n, d, loss) in enumerate(zip(N, D, EXACT, strict=True))
    ]
    rows.append({**rows[0], "run": "d", "loss": math.nan})
    csv, parquet = sorted(write_table(rows, tmp_path), key=lambda path: path.suffix)
    for file in (csv, parquet):
        words = ["--csv", str(file), "--group", "group", "--bootstraps", "20", "--json"]
        assert main(["study", "fit", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        law = found["L = E + A/N^alpha + B/D^beta; N* grows as C^a"]["all runs"]
        assert law["values"]["beta"] == pytest.approx(0.37, rel=1e-3) and found["without a number"] == 1


def test_kinds_are_told_apart(tmp_path, capsys):
    rows = [
        {"kind": str(kind), "group": f"r{i}", "parameters": 1e3, "tokens": c / 6e3, "loss": loss}
        for i, (c, loss, kind) in enumerate(zip(C, OF_COMPUTE, KINDS, strict=True))
    ]
    file, _ = write_table(rows, tmp_path)
    words = ["--csv", str(file), "--kind", "kind", "--group", "group", "--bootstraps", "20"]
    assert main(["study", "fit", *words]) == 0 and "m[mhc]                1.4 " in capsys.readouterr().out


def test_columns_of_several_types_and_of_none(tmp_path):
    rows = [{"a": 1, "b": 1, "c": None, "d": math.inf}, {"a": 0.5, "b": "x", "c": None, "d": 2.0}]
    for file in write_table(rows, tmp_path):
        table = Table(str(file))
        assert table.words("b") == ["1", "x"] and table.words("c") == ["", ""] and table.words("d")[0] == ""
        assert table.numbers("a").tolist() == [1.0, 0.5]


def test_a_table_alone_tells_arms_of_one_kind_apart(tmp_path, capsys):
    """By their settings, and those that differ in other sections by their labels."""
    text = MINIATURE.replace("  kind: [residual, shc]\n", ABLATION[1:])
    study, found = opened(write_study(tmp_path, text), [f"--study.run_dir={tmp_path}/study"])
    claim = StudyDirectory(study.run_dir, study.name, found)
    claim.lock.close()
    for entry in claim.record.entries:
        study_workers.finished(claim.record.run_dir(entry.name), entry.steps)
    assert main(["study", "collect", str(claim.path)]) == 0
    for table in ("table.csv", "table.parquet"):
        results = read_results(Table(str(claim.path / table)), "residual")
        assert results.unit == "nats a byte" and [results.names[arm] for arm in results.arms] == [
            "residual",
            "mhc-n2",
            "mhc-none",
            "mhc-res",
            "mhc",
            "mhc-slow",
        ]
        switches = [[arm.get(f"use_{name}") for name in ("pre", "post", "res")] for arm in results.arms]
        on = ["true"] * 3
        assert switches == [[""] * 3, on, ["false"] * 3, ["false", "false", "true"], on, on]
        assert [arm.get("n") for arm in results.arms] == ["", "2", "4", "4", "4", "4"]
    own = tmp_path / "alone"
    capsys.readouterr()
    assert main(["study", "report", "--table", str(claim.path / "table.csv"), "--out", str(own)]) == 0
    assert (own / "tables" / "ablation.csv").read_text().count("\n") == 4
    assert "Held-out losses, nats a byte" in (own / "report.html").read_text()
