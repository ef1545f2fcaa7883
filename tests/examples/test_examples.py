"""The programs of examples/ run, and show what they say."""

import json
import os
import subprocess
import sys

import pytest

from tests.ranks import ROOT

SMALL = {
    "model": {"layers": 1, "hidden_size": 32, "ffn_hidden_size": 32},
    "moe": {"experts": 0},
    "parallel": {"pipeline": 1, "schedule": "megatron_1f1b"},
    "training": {"steps": 2, "eval_batches": 1, "global_batch": 2, "log_every": 1},
    "data": {"sequence_length": 32},
}


def run(*words, **environment):
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | environment,
        cwd=ROOT / "examples",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_a_transformer_of_plain_torch_learns_with_mhc():
    out, _ = run("connect_torch_transformer.py", "--steps", 12, "--streams", 2)
    assert out.startswith("Manifold('mhc', hidden_size=64, index=0, streams=2, kernels='torch: ")
    assert (
        2.0 < float(out.splitlines()[-1].removeprefix("held out: ")) < 4.5
    )  # log 256 = 5.55 before the first step


@pytest.mark.ranks
def test_two_ranks_have_the_losses_and_gradients_of_one_process():
    out, said = run("dualpipev_two_ranks.py")
    assert out.splitlines()[-1] == "losses equal: True; gradients equal: True" and said == ""


@pytest.mark.ranks
def test_a_rank_that_fails_ends_the_two(tmp_path):
    """Its peer waits for a message that never comes."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if '--multiprocessing-fork' in sys.argv:\n"
        "    import torch.distributed as dist\n"
        "    form = dist.init_process_group\n"
        "    dist.init_process_group = lambda *a, rank, **k: (form(*a, rank=rank, **k), 1 / (rank - 1))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples/dualpipev_two_ranks.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_schedules_with_own_costs():
    out, _ = run("simulate_own_costs.py")
    assert [line.split()[0] for line in out.splitlines()][:2] == ["zb_v", "dualpipev"]
    # 16 times the last stage's 29 x 1.15, 3 times the others' 29, and 6 hops of 0.02 + 4 x 4096 x 2560 x 2 / 50e6
    assert "gpipe          630.8 ms, bubble 23.7%" in out


@pytest.mark.ranks
def test_a_connection_from_outside_is_configured_and_trained(tmp_path):
    settings = SMALL | {"connection": {"kind": "layerscale", "gamma_init": 0.5}}
    settings["run"] = {"tensorboard": False, "peak_tflops": 0.01, "dir": str(tmp_path / "run")}
    program = f"import hcmegatron; print(hcmegatron.train('quickstart', **{settings}))"
    out, said = run("-c", program, HCMEGATRON_PLUGINS="own_connection")
    assert out.splitlines()[-1] == str(tmp_path / "run"), said
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert "  gamma_init: 0.5\n" in (tmp_path / "run/config.yaml").read_text()


def test_without_its_plug_in_it_is_unknown():
    program = "import hcmegatron\ntry: hcmegatron.train('quickstart', connection={'kind': 'layerscale'})\n"
    out, _ = run("-c", program + "except hcmegatron.ConfigError as error: print(error)")
    assert "--connection.kind=layerscale: connection.kind = layerscale is not one of residual, " in out
