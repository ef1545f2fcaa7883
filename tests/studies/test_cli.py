"""hcmegatron study fit: any table, and one line for what is wrong with it."""

import csv
import json

import pytest
import threadpoolctl  # noqa: F401 - sets a variable of the environment where it is imported first

from hcmegatron.cli import main
from tests.studies.known import EXACT, KINDS, OF_COMPUTE, C, D, N


def written(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def table(tmp_path):
    return written(
        tmp_path / "runs.csv",
        [{"parameters": n, "tokens": d, "loss": loss} for n, d, loss in zip(N, D, EXACT, strict=True)]
        + [{"parameters": 1e9, "tokens": 1e9, "loss": ""}, {"parameters": 1e9, "tokens": 1e9, "loss": "nan"}],
    )


def fit(capsys, *words):
    assert main(["study", "fit", *words]) == 0
    return capsys.readouterr().out


def test_a_table_of_runs(table, capsys):
    found = json.loads(fit(capsys, "--csv", table, "--bootstraps", "20", "--json"))
    assert (found["rows"], found["without a number"]) == (32, 2)
    law = found["L = E + A/N^alpha + B/D^beta; N* grows as C^a"]["all runs"]
    assert law["values"]["beta"] == pytest.approx(0.37) and law["values"]["a"] == pytest.approx(37 / 72)
    assert law["runs"] == 30 and law["intervals"]["E"] == pytest.approx([1.8, 1.8])
    told = fit(capsys, "--csv", table, "--bootstraps", "20", "--drop-highest", "2")
    assert "32 rows, 2 of them without a number, 2 highest losses dropped" in told
    assert "all runs: 28 runs" in told and "warning" not in told


def test_other_names_and_the_compute_multiplier(tmp_path, capsys):
    rows = [
        {"size": 1e8 * (c / 1e16) ** 0.5, "C": c, "L": loss, "connection": kind, "run": index}
        for index, (c, loss, kind) in enumerate(zip(C, OF_COMPUTE, KINDS, strict=True))
    ]
    path = written(tmp_path / "runs.csv", rows)
    words = ["--parameters", "size", "--flops", "C", "--loss", "L", "--kind", "connection", "--group", "run"]
    told = fit(capsys, "--csv", path, "--bootstraps", "20", *words)
    assert "L = E + K/(m C)^gamma" in told and "m[mhc]                1.4 " in told


def test_residuals_of_any_table_as_figures(table, tmp_path, capsys):
    """A law that is exact leaves none; every run is in the file once for N, D and the prediction."""
    assert (
        main(["study", "fit", "--csv", table, "--bootstraps", "20", "--plot", str(tmp_path / "plots")]) == 0
    )
    assert f"{tmp_path / 'plots'}: residuals as SVG, PNG and CSV\n" == capsys.readouterr().err
    with open(tmp_path / "plots" / "residuals.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 30 and max(abs(float(row["y"])) for row in rows) < 1e-6
    assert [float(row["x"]) for row in rows[:30]] == pytest.approx(N.tolist())
    assert (tmp_path / "plots" / "residuals.png").stat().st_size > 1000


def test_what_is_left_out_is_said(tmp_path, capsys):
    """A kind of two runs has no law of its own, and one budget says nothing of growth."""
    rows = [
        {"parameters": n, "tokens": d, "loss": loss, "kind": "residual"}
        for n, d, loss in zip(N, D, EXACT, strict=True)
    ]
    path = written(tmp_path / "runs.csv", [*rows, *({**row, "kind": "mhc"} for row in rows[:2])])
    told = fit(capsys, "--csv", path, "--bootstraps", "20", "--kind", "kind")
    assert "  mhc: no law of its own, which takes more than 5 runs; it has 2\n" in told
    found = json.loads(fit(capsys, "--csv", path, "--bootstraps", "20", "--kind", "kind", "--json"))
    assert found["kinds without a law of their own, with their runs"] == {"mhc": 2}
    budget = [
        {"parameters": n, "tokens": 1e19 / (6 * n), "loss": 2 + abs(n / 1e9 - 1)}
        for n in (2e8, 5e8, 1e9, 2e9, 3e9, 5e9)
    ]
    told = fit(capsys, "--csv", written(tmp_path / "one.csv", budget), "--bootstraps", "20")
    assert "None" not in told and "say how N* grows; there are fewer" in told


@pytest.mark.parametrize(
    "words, said",
    [
        (["--csv", "{}/none.csv"], "--csv {}/none.csv: No such file or directory"),
        (["--csv", "{}"], "--csv {}: Is a directory"),
        (["--csv", "{}/empty.csv"], "--csv {}/empty.csv: has no rows"),
        (["--csv", "{}/bad.parquet"], "--csv {}/bad.parquet: is no Parquet file"),
        (["--csv", "{}/binary.csv"], "--csv {}/binary.csv: is no CSV file"),
        (["--csv", "{}/few.csv"], "{}/few.csv: 2 runs cannot fix the 5 numbers of this law; add runs"),
        (
            ["--csv", "{}/few.csv", "--loss", "nats"],
            "{}/few.csv has no column nats; it has parameters, tokens, loss",
        ),
        (["--csv", "{}/word.csv"], "{}/word.csv, row 3: loss = high is no number"),
        (["--csv", "{}/zero.csv"], "{}/zero.csv, row 2: tokens = 0; a power law needs it positive"),
        (["--csv", "{}/few.csv", "--bootstraps", "3"], "--bootstraps = 3; it has to be at least 20"),
        (["--csv", "{}/few.csv", "--level", "1"], "--level = 1.0; it has to be between 0 and 1"),
        (["--csv", "{}/few.csv", "--drop-highest", "-1"], "--drop-highest = -1; it has to be at least 0"),
        (
            ["--csv", "{}/few.csv", "--drop-highest", "9"],
            "{}/few.csv: no run is left that has every number; add runs",
        ),
        (["--csv", "{}/few.csv", "--kind", "tokens"], "{}/few.csv: baseline = residual: no run has it"),
        (
            ["--csv", "{}/few.csv", "--flops", "C", "--tokens", "D"],
            "--tokens D: D follows from --flops and --parameters; give one of the two",
        ),
        (
            ["--csv", "{}/few.csv", "--baseline", "mhc"],
            "--baseline mhc: is of a connection's kinds; name their column by --kind",
        ),
        ([], "the following arguments are required: --csv"),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("parameters,tokens,loss\n")
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "binary.csv").write_bytes(b"a\xff\xfe\n1\n")
    (tmp_path / "few.csv").write_text("parameters,tokens,loss\n1e8,1e9,3\n1e9,1e9,2.5\n")
    (tmp_path / "word.csv").write_text("parameters,tokens,loss\n1e8,1e9,3\n1e9,1e9,high\n")
    (tmp_path / "zero.csv").write_text("parameters,tokens,loss\n1e8,0,3\n")
    status = main(["study", "fit", *(word.format(tmp_path) for word in words)])
    error = capsys.readouterr().err
    assert status == 2 and said.format(tmp_path) in error and error.count("\n") == 1
