"""The benchmark's own arithmetic, and that it runs from end to end where there is no GPU."""

import csv
import sys

import pytest
import torch

from tools import bench_kernels


def test_element_plan_for_four_streams():
    plan = bench_kernels.plan(4)
    assert (plan["read"], plan["write"], plan["sub-layer"], plan["sub-layer, folded"]) == (9, 9, 18, 14)
    assert (plan["write backward"], plan["read backward"], plan["sub-layer backward"]) == (14, 18, 32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the small CPU run")
def test_writes_its_table(tmp_path, monkeypatch, capsys):
    arguments = ["--hidden", "16", "--tokens", "8", "--only", "torch", "eager", "triton", "te"]
    monkeypatch.setattr(sys, "argv", ["bench_kernels", *arguments, "--out", str(tmp_path)])
    bench_kernels.main()
    said = capsys.readouterr().out
    assert "skipped triton: " in said and "skipped te: transformer_engine is not installed" in said
    with (tmp_path / "kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["candidate"] for r in rows} == {"hcmegatron torch", "torch eager"}
    assert {r["operation"] for r in rows} == set(bench_kernels.plan(4)) - {"sub-layer, folded"}
    kept = {r["candidate"]: float(r["kept_bytes_per_token"]) for r in rows}
    assert kept["hcmegatron torch"] < kept["torch eager"]
    for r in rows:
        assert float(r["bytes_planned"]) == bench_kernels.plan(4)[r["operation"]] * 16 * 8 * 4
