"""The benchmark of one layer runs from end to end, and its recomputing rows do recompute."""

import pytest
import torch

from tests.ranks import run_ranks
from tools import bench_layer
from tools.bench_layer import Load


@pytest.mark.ranks
@pytest.mark.skipif(torch.cuda.is_available(), reason="the small CPU run")
def test_recomputing_rows_keep_less():
    (found,) = run_ranks(
        1,
        "tools.bench_layer:main",
        ["--tokens", "64", "--rounds", "1", "--kernels"],
        process_group=False,
        timeout=120,
    )
    kept = {name: row.kept for name, row in found.items()}
    assert kept["residual"] > 0
    assert kept["residual, layer recomputed"] < 0.5 * kept["residual"]
    # the streams between attention and experts at least; what these keep stays
    streams = 64 * 4 * 128 * 4
    assert kept["mhc"] - kept["mhc, block recomputed"] > streams
    for row in found.values():
        assert 0 < row.host <= row.seconds
        names = [kernel.name for kernel in row.kernels]
        assert "aten::mm" in names and len(names) == len(set(names))
        assert [k.milliseconds for k in row.kernels] == sorted(
            (k.milliseconds for k in row.kernels), reverse=True
        )


def test_a_share_of_the_experts_has_all_of_the_tokens():
    whole, share = (bench_layer.configuration("mhc", "none", Load(64, 2, of)) for of in (1, 4))
    assert (whole.moe.experts, share.moe.experts) == (8, 2)
    assert whole.training.micro_batch == share.training.micro_batch == 2
    assert list(bench_layer.forms_of(["ihc"])) == ["residual", "ihc"]
