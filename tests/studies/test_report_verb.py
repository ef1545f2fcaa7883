"""hcmegatron study report: a study's directory on one page, and one line for a mistake."""

import csv
import json
import re

import pytest

from hcmegatron.cli import main
from hcmegatron.studies.record import Record, write_record
from tests.studies.reported import Report
from tests.studies.tables import row, written


def study(folder, losses):
    """A study's directory with runs of a smooth loss, and a table of their ends."""
    rows = []
    for (kind, seed), offset in losses.items():
        name = f"{kind}-{seed}"
        (folder / "runs" / name).mkdir(parents=True)
        entries = [{"step": step, "kind": "train", "loss": 5 - 0.01 * step + offset} for step in range(1, 41)]
        (folder / "runs" / name / "metrics.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in entries)
        )
        rows.append(row(kind, seed, 4.6 + offset) | {"run": name, "group": name})
    return written(folder / "table.csv", rows)


def gaps_of(folder):
    with open(folder / "report" / "tables" / "losses.csv") as stream:
        return [line["gap"][:7] for line in csv.DictReader(stream)]


def test_the_gap_over_training_and_a_study_on_one_page(tmp_path, capsys):
    """Gaps of -0.1 and -0.3 at every step; the page needs nothing from elsewhere."""
    losses = {("residual", 0): 0.0, ("residual", 1): 0.5, ("mhc", 0): -0.1, ("mhc", 1): 0.2}
    table = study(tmp_path, losses)
    found = Report(table, directory=tmp_path)
    series = found.series("gap-training", "mhc")
    assert (series.x[0], series.x[-1]) == (1, 40) and series.y == pytest.approx([-0.2] * 40)
    assert series.low == pytest.approx([-0.2 - 6.313752 * 0.1] * 40, rel=1e-5) and set(series.counts) == {2}
    assert main(["study", "report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/report/report.html\n" in said and "1 figures as SVG, PNG and CSV" in said
    page = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/svg+xml;base64," in page and not re.search(r"(src|href)=\"(?!data:|#)", page)
    with open(tmp_path / "report" / "figures" / "gap-training.csv") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 40 and float(lines[7]["y"]) == pytest.approx(-0.2) and lines[7]["runs"] == "2"
    files = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    assert files == {f"gap-training.{ending}" for ending in ("svg", "png", "csv")}
    assert gaps_of(tmp_path) == ["–", "-0.2000"]
    write_record(Record(tmp_path, "s", (), "mhc"))
    assert main(["study", "report", str(tmp_path)]) == 0 and gaps_of(tmp_path) == ["–", "+0.2000"]
    assert main(["study", "report", str(tmp_path), "--baseline", "residual"]) == 0
    assert gaps_of(tmp_path) == ["–", "-0.2000"]


def test_a_decay_has_not_its_runs_curve(tmp_path):
    """Of kinds that share a decay's tokens alone, nothing is drawn; of a run's end, its curves are."""
    study(tmp_path, {("residual", 0): 0.0, ("mhc", 0): -0.1})

    def rows(**mhc_ends_with):
        ends = [
            row(kind, 0, loss) | {"run": f"{kind}-0", "group": f"{kind}-0", "tokens": tokens}
            for kind, loss, tokens in (("residual", 4.6, 4e9), ("mhc", 4.5, mhc_ends_with["tokens"]))
        ]
        decays = [{**end, "run": f"{end['run']}--at0.5", "tokens": 1e9} for end in ends]
        return written(tmp_path / "table.csv", [*ends, *decays])

    title = "Loss gap to the baseline over training"
    assert Report(rows(tokens=8e9), directory=tmp_path).why(title).startswith("no pair of runs")
    assert len(Report(rows(tokens=4e9), directory=tmp_path).plot("gap-training").panels) == 1


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "takes a study's directory or --table FILE: neither is given; name one"),
        (
            ["{}", "--table", "{}/good.csv"],
            "takes a study's directory or --table FILE: both are given; name one",
        ),
        (["{}/none"], "{}/none: there is no such directory; name a study's, such as runs/studies/NAME"),
        (["{}"], "{}: has neither table.parquet nor table.csv; collect the study: hcmegatron study collect"),
        (["--table", "{}/none.csv"], "--table {}/none.csv: No such file or directory"),
        (["--table", "{}/good.csv", "--level", "2"], "--level = 2.0; it has to be between 0 and 1"),
        (["--table", "{}/good.csv", "--bootstraps", "5"], "--bootstraps = 5; it has to be at least 20"),
        (["--table", "{}/good.csv", "--flops", "C"], "{}/good.csv has no column C; it has run, group, kind"),
        (["--table", "{}/good.csv", "--axis", "C"], "{}/good.csv has no column C; it has run, group, kind"),
        (["--table", "{}/bare.csv"], "{}/bare.csv has no column kind; it has parameters, tokens, loss"),
        (
            ["--table", "{}/twice.csv"],
            "mhc-s-0 and mhc-s-0 have the same kind, settings, size, tokens, seed and learning",
        ),
        (["--table", "{}/unsure.csv"], "{}/unsure.csv, row 2: diverged = maybe is neither true nor false"),
        (
            ["--table", "{}/empty.csv"],
            "{}/empty.csv: no row has parameters and tokens; collect the study once runs",
        ),
        (
            ["--table", "{}/good.csv", "--out", "{}/good.csv"],
            "{}/good.csv/figures: cannot be written: Not a directory",
        ),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, capsys):
    good = row("mhc", 0, 3.0)
    tables = {
        "good": [good],
        "bare": [{"parameters": 1e8, "tokens": 1e9, "loss": 3}],
        "twice": [good, good],
        "unsure": [good | {"diverged": "maybe"}],
        "empty": [good | {"tokens": ""}],
    }
    for name, rows in tables.items():
        written(tmp_path / f"{name}.csv", rows)
    status = main(["study", "report", *(word.format(tmp_path) for word in words)])
    error = capsys.readouterr().err
    assert status == 2 and said.format(tmp_path) in error and error.count("\n") == 1
