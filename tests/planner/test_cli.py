"""`hcmegatron plan`: answers without torch and at once; mistakes are one line."""

import json
import resource
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from hcmegatron.cli import main
from tests.pace import pace
from tests.ranks import ROOT

FILE = str(ROOT / "configs/mhc-27b.yaml")
LAYOUT = [
    "--parallel.expert=8",
    "--parallel.pipeline=2",
    "--parallel.schedule=dualpipev",
    "--parallel.overlap=true",
]


def test_two_seconds_of_processor_and_no_torch():
    """Processor time, which other programs on the machine do not lengthen."""
    code = (
        "import sys; from hcmegatron.cli import main; "
        f"status = main(['plan', {FILE!r}, '--gpus', '256', '--price', '2']); "
        "sys.exit(status or 3 * ('torch' in sys.modules or 'megatron' in sys.modules))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0 * pace()
    for words in (
        "27,048,293,460 parameters, 4,138,873,940 active",
        "DOES NOT FIT: the fullest rank needs",
        "the quickest changes that make it fit:",
        "gradient reduction",
        "GPU-hours, ",
        "at 2 a GPU-hour",
        "what mhc adds to the plain residual's step",
        "assumed, not measured",
    ):
        assert words in " ".join(done.stdout.split()), words


def test_json_has_every_figure_and_the_picture_is_one(tmp_path, capsys):
    figures, picture = tmp_path / "plan.json", tmp_path / "plan.svg"
    (tmp_path / "r&d.yaml").write_text("extends: h100\n")  # a name that is no XML as it stands
    options = ["plan", FILE, "--gpus=256", f"--json={figures}", "--picture", str(picture), *LAYOUT]
    options.append(f"--gpu={tmp_path}/r&d.yaml")
    assert main(options) == 0
    out = capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert found["fits"] is True and f"{found['peak_bytes'] / 2**30:,.2f} of 79.10 GiB" in out
    assert found["data_parallel"] == 128 and found["microbatches"] == 10
    assert sum(found["parts_per_rank_s"][0].values()) == pytest.approx(found["step_s"])
    assert max(sum(rank["peak"].values()) for rank in found["memory_per_rank"]) == found["peak_bytes"]
    assert found["gpu_hours"] == pytest.approx(50000 * found["step_s"] / 3600 * 256)
    assert sum(sum(stage.values()) for stage in found["parameters_per_stage"]) == 27_048_293_460
    assert len(found["over_residual"]) == 4 and len(found["lighter"]) == 3
    root = ET.fromstring(picture.read_text())
    assert root.tag.endswith("svg")
    assert (
        sum(element.tag.endswith("circle") for element in root.iter()) == 2
    )  # a peak for every pipeline rank


class Page(HTMLParser):
    """The tags that are open, which have to be closed in turn, and the words."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(" ".join(data.split()))


@pytest.mark.parametrize("fits", [True, False])
def test_the_page_shows_what_the_terminal_does_and_stands_alone(tmp_path, capsys, fits):
    page = tmp_path / "plan.html"
    (tmp_path / "r&d.yaml").write_text("extends: h100\n")
    options = ["plan", FILE, "--gpus=256", f"--gpu={tmp_path}/r&d.yaml", f"--html={page}", "--price=3"]
    assert main([*options, *(LAYOUT if fits else [])]) == 0
    printed = capsys.readouterr().out
    found = Page()
    found.feed(page.read_text())
    found.close()
    assert found.open == [] and found.links == []
    assert "script" not in page.read_text() and "url(" not in page.read_text()
    assert "mhc-27b.yaml on 256 x r&d" in found.words
    assert sum("on the fullest rank" in word or "DOES NOT FIT" in word for word in found.words) == 1
    for line in printed.splitlines():
        words = [word for word in line.strip().split("  ") if word.strip()]
        if len(words) > 1 and not line.startswith("  --"):  # a table's
            for word in words:
                assert word.strip() in found.words, line
    drawn = page.read_text()
    assert drawn.count("<svg") == 1 and drawn.count('class="bar"') == (2 * 2 if fits else 2)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--gpus", "256", "--gpu", "h10"], "--gpu h10: unknown; did you mean h100?"),
        (["--gpus", "255"], "use 1275 or 1530"),
        (["--gpus", "12", "--parallel.pipeline=5"], "world size 12 is not a multiple of 5"),
        (["--gpus", "-8"], "--gpus -8: between 1"),
        (["--gpus", "many"], "is not a whole number"),
        ([], "--gpus is missing"),
        (["--gpus", "256", "--gpus", "128"], "--gpus 128: --gpus is given twice, as 256 before"),
        (["--gpus", "256", "--gpu", "v100"], "--gpu v100: unknown; did you mean h100?"),
        (["--gpus", "256", "--parallel.tensor=64", "--parallel.sequence=true"], "use 64 for model.heads"),
        (["--gpus", "256", "--parallel.pipeline=31"], "use 31 layers or more, or fewer stages"),
        (["--gpus", "256", "--price", "1e400"], "--price 1e400: finite, 0 or more"),
        (["--gpus", "256", "--html", "/nowhere/x.html"], "there is no directory /nowhere"),
        (["--gpus", "256", "--search", "--html", "x.html"], "--search takes no --price"),
        (["--gpus", "256", "--price", "-1"], "--price -1: finite, 0 or more"),
        (["--gpus", "256", "--kernel-speed", "2"], "--kernel-speed 2: between 0.01 and 1"),
        (["--gpus", "256", "--imbalance", "0.5"], "--imbalance 0.5: between 1 and 1000"),
        (["--gpus", "256", "--imbalance", "nan"], "--imbalance nan"),
        (["--gpus", "256", "--model.layers=-3"], "model.layers = -3 is out of range"),
        (["--gpus", "256", "--write", "x.yaml"], "--write without --search"),
        (["--gpus", "256", "--search", "--price", "2"], "--search takes no --price"),
        (
            ["--gpus", "8", "--search", "--parallel.tensor=2"],
            "--search chooses parallel.tensor; leave it out",
        ),
        (["--gpus", "256", "--pryce=2"], "did you mean --price?"),
        (["--gpus", "256", "--gpu", "nowhere.yaml"], "No such file"),
        (["--gpus", "256", "--json", "/nowhere/x.json"], "/nowhere/x.json: there is no directory"),
        (["--gpus", "256", "--json="], "is a directory"),
        (["--gpus", "256", "--json=x", "--picture=x"], "x: named for more than one output"),
        (["--gpus", "4", "--search"], "GiB more than a GPU has"),
    ],
)
def test_mistakes_are_one_line(options, words, capsys):
    assert main(["plan", FILE, *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.startswith("hcmegatron: error: ")


def test_a_search_prints_its_table_and_writes_the_best(tmp_path, capsys):
    small = ["--model.layers=4", "--training.global_batch=16"]
    chosen, figures = tmp_path / "best.yaml", tmp_path / "found.json"
    options = ["--gpus", "8", "--search", "--write", str(chosen), "--json", str(figures)]
    assert main(["plan", FILE, *options, *small]) == 0
    out = capsys.readouterr().out
    assert "the best of every other choice:" in out and "layouts:" in out
    assert "recompute selective[mla_up_proj]" in out  # brackets are no markup
    best = json.loads(figures.read_text())["best"][0]
    assert main(["plan", str(chosen), "--gpus", "8"]) == 0
    assert f"step {best['step_s']:.3f} s" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error():
    shell = f"set -o pipefail; {sys.executable} -m hcmegatron plan {FILE} --gpus 256 | head -c 1"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_settings_and_options_keep_apart(capsys):
    options = ["plan", FILE, "--gpus", "8", "--kernel-speed=1", "--parallel.expert=8"]
    assert main([*options, "--kernels=torch"]) == 0
    torch = capsys.readouterr().out
    assert main(options) == 0
    assert "connections' kernels at 100%" in torch and torch != capsys.readouterr().out
