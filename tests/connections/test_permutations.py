"""mHC-lite and KromHC: their formulas written out token by token, double stochasticity to rounding, and mistakes."""

import itertools
import math

import pytest
import torch

from hcmegatron.connections.build import build_connection
from hcmegatron.connections.permutations import kronecker_mixture, permutation_mixture
from hcmegatron.kernels import torch_permutations
from hcmegatron.kernels.options import ReadOptions
from tests.connections.small_network import config, randomise, some

CASES = [("mhc_lite", 2), ("mhc_lite", 3), ("mhc_lite", 4), ("krom", 2), ("krom", 4), ("krom", 8)]
C, S = 5, 3


def lite_matrix(logits, n):
    """Entry (o, i): the shares of all permutations that bring stream i to o."""
    shares = logits.exp() / logits.exp().sum()
    rows = []
    for o in range(n):
        of_row = [
            [p for p, image in enumerate(itertools.permutations(range(n))) if image[o] == i] for i in range(n)
        ]
        rows.append(torch.stack([sum(shares[p] for p in ps) for ps in of_row]))
    return torch.stack(rows)


def krom_matrix(logits, n):
    """torch.kron of [[a, 1-a], [1-a, a]], a = e^l0 / (e^l0 + e^l1)."""
    M = torch.ones(1, 1, dtype=logits.dtype)
    for l0, l1 in logits.view(-1, 2):
        a = 1 / (1 + (l1 - l0).exp())
        M = torch.kron(M, torch.stack([torch.stack([a, 1 - a]), torch.stack([1 - a, a])]))
    return M


def by_formulas(kind, n, p, H, y):
    """x and H' of streams [s, n, C], one token after the other."""
    xs, outs = [], []
    for token, y_token in zip(H, y, strict=True):
        Hv = token.reshape(-1)
        t = Hv @ p["phi"] / Hv.square().mean().sqrt()
        pre = 1 / (1 + (-(p["alpha_pre"] * t[:n] + p["b_pre"])).exp())
        post = 2 / (1 + (-(p["alpha_post"] * t[n : 2 * n] + p["b_post"])).exp())
        L = p["alpha_res"] * t[2 * n :] + p["b_res"].reshape(-1)
        res = {"mhc_lite": lite_matrix, "krom": krom_matrix}[kind](L, n)
        xs.append(sum(pre[i] * token[i] for i in range(n)))
        outs.append(
            torch.stack([sum(res[o, i] * token[i] for i in range(n)) + post[o] * y_token for o in range(n)])
        )
    return torch.stack(xs), torch.stack(outs)


@pytest.mark.parametrize(("kind", "n"), CASES)
def test_forward_and_every_gradient_by_the_formulas(kind, n):
    connection = randomise(build_connection(config(kind, n=n), C, 1, norm_eps=1e-6, dtype=torch.float64))
    g = torch.Generator().manual_seed(4)
    H, y, wx, wo = (
        torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in ((S, n, C), (S, C), (S, C), (S, n, C))
    )
    H, y = H.requires_grad_(), y.requires_grad_()
    names, parameters = zip(*connection.named_parameters(), strict=True)
    leaves = [H, y, *parameters]
    x, coefficients = connection.read(H.unsqueeze(1))
    out = connection.write(H.unsqueeze(1), y.unsqueeze(1), coefficients)
    ours = [x.squeeze(1), out.squeeze(1)]
    exact = by_formulas(kind, n, dict(zip(names, parameters, strict=True)), H, y)
    grads = [torch.autograd.grad((x * wx).sum() + (o * wo).sum(), leaves) for x, o in (ours, exact)]
    for name, got, want in zip(
        ("x", "H'", "dH", "dy", *names), (*ours, *grads[0]), (*exact, *grads[1]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")
        assert want.abs().max() > 1e-5, name


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize(("kind", "n"), CASES)
def test_doubly_stochastic_to_rounding(kind, n, scale):
    """Rows and columns, whatever the logits, in fp32: of Sinkhorn after 20 iterations only the rows are."""
    options = ReadOptions(n, res_map={"mhc_lite": "permutations", "krom": "kronecker"}[kind])
    logits = scale * torch.randn(options.res_columns, 500, generator=torch.Generator().manual_seed(n))
    M = torch_permutations.forward(logits, options)
    assert (M >= 0).all()
    for dim in (0, 1):
        assert (M.sum(dim) - 1).abs().max() <= 4e-7
    d = torch_permutations.backward(logits, M.cumsum(0), options)
    assert d.isfinite().all() and (d.abs().max() > 1e-3 or scale > 1)


def test_the_identity_comes_first():
    for n in (1, 2, 3, 4):
        logits = torch.full((math.factorial(n),), -torch.inf)
        logits[0] = 0
        assert torch.equal(permutation_mixture(logits, n), torch.eye(n))
    assert torch.equal(kronecker_mixture(torch.tensor([[0, -torch.inf]] * 3)), torch.eye(8))


@pytest.mark.parametrize("kind", ["mhc_lite", "krom"])
def test_initial_res(kind):
    connection = build_connection(config(kind, n=4), 6, 0, norm_eps=0.0)
    res = connection.coefficients(torch.randn(2, 1, 4, 6))[2]
    diagonal = res.diagonal(dim1=-2, dim2=-1)
    expected = {
        "mhc_lite": (1 + 5 * math.exp(-8)) / (1 + 23 * math.exp(-8)),
        "krom": (1 + math.exp(-8)) ** -2,
    }
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, expected[kind]))


def test_a_dynamic_product_of_matrices_keeps_both_gains_at_one():
    """The composite map of many sub-layers, forward and backward: what mHC's finite iteration gives up."""
    for kind in ("mhc_lite", "krom"):
        composite = torch.eye(4)
        for index in range(40):
            connection = randomise(
                build_connection(some(kind, 4), 6, index, norm_eps=0.0), scale=2.0, seed=index
            )
            composite = connection.coefficients(torch.randn(1, 1, 4, 6))[2][0, 0].detach() @ composite
        assert (composite.sum(0) - 1).abs().max() < 1e-5 and (composite.sum(1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: permutation_mixture(torch.zeros(5), 3), r"logits are \[5\]: must be \[..., 6\]"),
        (lambda: kronecker_mixture(torch.zeros(3)), r"logits are \[3\]: must be \[..., K, 2\]"),
        (lambda: kronecker_mixture(torch.zeros(0, 2)), r"must be \[..., K, 2\], two a factor"),
        (lambda: ReadOptions(5, res_map="permutations"), "n=5: res_map=permutations takes up to 4 streams"),
        (
            lambda: ReadOptions(6, res_map="kronecker"),
            "n=6: res_map=kronecker takes a power of two from 2 on",
        ),
        (
            lambda: ReadOptions(4, res_map="birkhoff"),
            "res_map='birkhoff': choose one of sinkhorn, permutations",
        ),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ValueError, match=words):
        make()
