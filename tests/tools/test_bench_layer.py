"""The benchmark of one layer runs from end to end, and its recomputing rows do recompute."""

import pytest
import torch

from tests.ranks import run_ranks


@pytest.mark.ranks
@pytest.mark.skipif(torch.cuda.is_available(), reason="the small CPU run")
def test_recomputing_rows_keep_less():
    (found,) = run_ranks(
        1,
        "tools.bench_layer:main",
        ["--tokens", "64", "--rounds", "1"],
        process_group=False,
        timeout=120,
    )
    kept = {name: row.kept for name, row in found.items()}
    assert kept["residual"] > 0
    assert kept["residual, layer recomputed"] < 0.5 * kept["residual"]
    # the streams between attention and experts at least; what these keep stays
    streams = 64 * 4 * 128 * 4
    assert kept["mhc"] - kept["mhc, block recomputed"] > streams
