"""A run in fp64, which is for tests of equality: what `config` accepts of it trains."""

import json
import math

import pytest

from hcmegatron.config import check_config
from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


@pytest.mark.ranks
def test_fp64_trains_like_fp32_with_smaller_errors(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {n}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    norms = {}
    for dtype in ("fp32", "fp64"):
        config = tiny(text, tmp_path / dtype, training={"dtype": dtype, "steps": 2}, moe={"grouped": False})
        config.optimizer.clip, config.model.hidden_dropout = 0.0, 0.0
        check_config(config)
        run_ranks(2, workers.run, config, **RUN)
        lines = [json.loads(line) for line in (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()]
        norms[dtype] = [line["grad_norm"] for line in lines if line["kind"] == "train"]
        assert len(norms[dtype]) == 2 and all(math.isfinite(norm) for norm in norms[dtype])
    assert norms["fp64"] == pytest.approx(norms["fp32"], rel=1e-4) and norms["fp64"] != norms["fp32"]
