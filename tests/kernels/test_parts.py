"""Scales and biases by part, as the module owns them, and the sums that the backward's programs leave in parts."""

import pytest
import torch

from hcmegatron.kernels import tiles, torch_path, triton_path, triton_read_backward
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.reference import inputs, leaf, name_of, weights_like

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
)
OPTIONS = [
    ReadOptions(4, iterations=3),
    ReadOptions(3, iterations=3, use_pre=False),
    ReadOptions(2, iterations=3, use_post=False),
    ReadOptions(3, iterations=3, use_res=False),
    ReadOptions(1, iterations=2),
]


@pytest.mark.parametrize("path", [torch_path, triton_path], ids=["torch", "triton"])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_one_alpha_a_part_is_the_same_alpha_in_every_column(options, path):
    H, phi, _, bias = inputs(options, T=19, dtype=torch.float32)
    sizes = [size for size in options.sizes if size]
    alphas = [torch.tensor([0.3 + i]) for i in range(len(sizes))]

    def run(spread):
        own = [leaf(t) for t in (H, phi)]
        scale, biases = [leaf(a) for a in alphas], [leaf(b) for b in bias.split(sizes)]
        given = (scale, biases)
        if spread:
            expanded = [a.expand(len(b)) for a, b in zip(scale, biases, strict=True)]
            given = (torch.cat(expanded), torch.cat(biases))
        out = path.read(*own, *given, options)
        loss = sum((o * w).sum() for o, w in zip(out, weights_like(out), strict=True))
        return [*out, *torch.autograd.grad(loss, [*own, *scale, *biases])]

    for mine, spread in zip(run(False), run(True), strict=True):
        assert mine.shape == spread.shape
        torch.testing.assert_close(mine, spread, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [0, 1])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_parts_are_summed(options, stride):
    """More programs and more of phi than one pass takes."""
    n, K, C, splits, programs = options.n, options.columns, 13, 3, 21
    given = torch.Generator().manual_seed(1)
    parts = torch.randn(splits, n * C * K, generator=given)
    sums = torch.randn(programs, 2, K, generator=given)
    dphi, dbias, dscale = torch.full((n * C * K,), torch.nan), torch.full((K,), torch.nan), []
    sizes = [size for size in options.sizes if size]
    dscale = torch.full((K if stride else len(sizes),), torch.nan)
    triton_read_backward.read_backward_sums[(1 + -(-len(dphi) // 32),)](
        parts,
        sums,
        dphi,
        dbias,
        dscale,
        splits,
        programs,
        W=len(dphi),
        N=n,
        K=K,
        KP=tiles.columns(K),
        SCALE_STRIDE=stride,
        USE_PRE=options.use_pre,
        USE_POST=options.use_post,
        USE_RES=options.use_res,
        BT=8,
        BC=32,
    )
    torch.testing.assert_close(dphi, parts.sum(0))
    torch.testing.assert_close(dbias, sums[:, 0].sum(0))
    of_columns = sums[:, 1].sum(0)
    wanted = of_columns if stride else torch.stack([p.sum() for p in of_columns.split(sizes)])
    torch.testing.assert_close(dscale, wanted, rtol=1e-5, atol=1e-5)
