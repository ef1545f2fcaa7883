"""Steps on a CPU: the sum of measured terms, and that the tool which measures them finds them."""

import pytest

from hcmegatron.config import ConfigError, load_config
from hcmegatron.planner import counts
from hcmegatron.studies.cpu import Cpu, read_cpu
from hcmegatron.studies.plan import plan_study
from hcmegatron.studies.spec import read_study
from hcmegatron.studies.study import with_settings
from tests.studies.files import written
from tools import cpu_rates

KNOWN = Cpu("known", 25.0, 4.0, 10.0, 6.0, dict(residual=0, shc=0.5, dhc=1.5, sfc=0.7, dfc=1.2, mhc=2.0))


def test_a_step_is_its_calls_and_its_arithmetic():
    config = with_settings(load_config("stability"), {"model.layers": 3, "training.micro_batch": 4})
    per_token = 3 * counts.forward_flops(config, counts.whole_model(config)).total()
    calls = 2 * 3 * (4.0 + 2 * 2.0)  # two micro-batches of three layers with two mHC each, ms
    assert KNOWN.seconds(config) == pytest.approx((10 + calls) / 1e3 + per_token * 8 * 64 / 25e9)
    other = Cpu(
        "other", 25.0, 4.0, 10.0, 6.0, {"residual": 0.0, "shc": 3.0}
    )  # mHC as the slowest that is known
    assert other.seconds(config) == pytest.approx(KNOWN.seconds(config) + 2 * 3 * 2 * 1.0 / 1e3)


def test_the_tool_finds_what_trainings_took(monkeypatch):
    def took(changes, steps):
        return 2.0 + steps * KNOWN.seconds(with_settings(load_config("stability"), cpu_rates.BASE | changes))

    monkeypatch.setattr(cpu_rates, "of_training", took)
    monkeypatch.setattr(cpu_rates.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(cpu_rates.time, "process_time", lambda: 4.0)
    found = cpu_rates.rates()
    assert (
        found["gflops"] == 25.0
        and found["layer_ms"] == 4.0
        and found["step_ms"] == 10.0
        and found["start_s"] == 6.0
    )
    assert {kind: found["connection_ms"][kind] for kind in KNOWN.connection_ms} == KNOWN.connection_ms


def test_a_plan_on_a_cpu_counts_starts_of_runs_and_branches(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "gflops: 25\nlayer_ms: 4\nstep_ms: 10\nstart_s: 6\nconnection_ms: {residual: 0, mhc: 2}\n"
    )
    end = "  baseline: residual\n"
    more = end + "machine: {cpu: own.yaml, jobs: 2}\ndecay: {branches: [0.5]}\n"
    plan = plan_study(read_study(written(tmp_path, (end, more))))
    row = next(row for row in plan.rows if row.run.name == "mhc-d64-51.2Ktok-seed1")
    step = KNOWN.seconds(plan.study.config(row.run))
    assert row.hours == pytest.approx((110 * step + 2 * 6) / 3600) and row.fits and row.step.peak is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gflops: 1\n", "cpu.yaml: lacks layer_ms, step_ms, start_s; python -m tools.cpu_rates finds them"),
        (
            "gflops: 0\n",
            "cpu.yaml:1: gflops = 0 is out of range; it must be from 0 to 1e9, and gflops above 0",
        ),
        ("gflops: fast\n", "cpu.yaml:1: gflops = fast is not a number"),
        ("gigaflops: 1\n", "cpu.yaml:1: gigaflops = 1 is unknown; did you mean gflops?"),
        (
            "connection_ms: {mhc: -1}\n",
            "cpu.yaml:1: connection_ms.mhc = -1 is out of range; it must be from 0",
        ),
    ],
)
def test_a_file_that_says_no_cpu(text, said, tmp_path):
    path = tmp_path / "cpu.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_cpu(path)
    assert said in str(error.value)
