"""Orthogonalised directions, and who orthogonalises what. No ranks."""

import math

import pytest
import torch

from hcmegatron.config import schema
from hcmegatron.connections.kinds.descriptor import Parameter
from hcmegatron.planner import layers, newton_schulz
from hcmegatron.planner.parameters import parameters_by_role, total_parameters
from hcmegatron.training.matrix_plan import Box, Place, gathering, owners_of, returning, rounds
from hcmegatron.training.muon import COEFFICIENTS, direction_of
from hcmegatron.training.muon import newton_schulz as orthogonalised
from hcmegatron.training.optimizer_roles import described
from tests.small_configs import small


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize("name, within", [("5", 0.35), ("8+2", 0.02)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 1)])
def test_singular_values_become_about_one(name, within, shape):
    matrix = random(*shape)
    U, _, V = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix, COEFFICIENTS[name])
    on_the_bases = torch.diagonal(U.mT @ found @ V.mT)
    assert (on_the_bases - 1).abs().max() < within
    assert (found - U @ torch.diag(on_the_bases) @ V).abs().max() < 1e-9  # its singular vectors stay


def test_no_gradient_gives_no_update():
    assert not orthogonalised(torch.zeros(4, 6), COEFFICIENTS["5"]).any()


def test_five_iterations_are_torchs_muon():
    weight = random(24, 40, dtype=torch.float32).bfloat16().float().requires_grad_()
    before, gradient = weight.detach().clone(), random(40, 24, dtype=torch.float32).mT.contiguous()
    torchs = torch.optim.Muon([weight], lr=0.5, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    weight.grad = gradient.clone()
    torchs.step()
    momentum = gradient.lerp(
        torch.zeros_like(gradient).lerp(gradient, 0.05), 0.95
    )  # of a first step, Nesterov's
    found = direction_of(momentum.bfloat16(), layers.Matrix("", 24, 40), COEFFICIENTS["5"], 0.2).float()
    torch.testing.assert_close(before - 0.5 * found, weight.detach(), rtol=0, atol=5e-3)


def test_fused_projections_are_orthogonalised_apart():
    """Two groups of four query rows, two of keys and two of values: eight, four and four rows are a matrix each."""
    whole = random(16, 6)
    matrix = layers.Matrix("", 16, 6, fused=(4, 2, 2), groups=2)
    found = direction_of(whole, matrix, COEFFICIENTS["8+2"], 0.2)
    rows = {
        "queries": [0, 1, 2, 3, 8, 9, 10, 11],
        "keys": [4, 5, 12, 13],
        "values": [6, 7, 14, 15],
    }
    for own in rows.values():
        alone = orthogonalised(whole[own], COEFFICIENTS["8+2"]) * 0.2 * math.sqrt(max(len(own), 6))
        torch.testing.assert_close(found[own], alone)
        assert found[own].square().mean().sqrt() == pytest.approx(0.2, rel=0.05)
    assert not torch.allclose(found, direction_of(whole, layers.Matrix("", 16, 6), COEFFICIENTS["8+2"], 0.2))


def test_roles():
    """Embedding, head, norms, routers, static coefficients and gates are AdamW's, everything else Muon's."""
    config = small("moe", "mhc")
    table = layers.matrices(config, 264)
    adamws = {
        key.removeprefix("decoder.layers.1.") for key, m in table.items() if m.optimizer_role == "adamw"
    }
    assert {key for key in adamws if "layers" not in key} == {
        "embedding.word_embeddings.weight",
        "output_layer.weight",
        "mlp.router.weight",
    }
    assert table["decoder.layers.1.mlp.experts.experts.linear_fc1.weight"].fused == (24, 24)
    assert layers.matrices(small("dense", "mhc"), 264)[
        "decoder.layers.0.self_attention.linear_qkv.weight"
    ].fused == (16, 8, 8)
    roles = parameters_by_role(config, 264)
    assert sum(map(sum, (part.values() for part in roles.values()))) == total_parameters(config, 264)
    assert set(roles["matrix"]) == {"attention", "MLP", "experts", "shared experts", "connections' phi"}
    assert {"embedding", "head", "routers", "norms", "connections' b_res"} <= set(roles["adamw"])


def test_what_a_run_says_of_it():
    config = small("dense", "shc")
    assert described(config, 264) == []
    config.optimizer.name = "muon"
    muon, adamw = described(config, 264)
    assert (
        muon
        == f"muon updates {4 * (64 * 32 + 32 * 32 + 3 * 32 * 48):,} parameters: attention 12,288, MLP 18,432"
    )
    assert adamw.startswith("adamw updates ") and "connections' A_m 32" in adamw


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match="is no matrix"):
        Parameter((4,), "projection", "matrix")


def test_cost_is_of_the_shorter_side():
    assert newton_schulz.flops(layers.Matrix("", 6, 2), 5) == 5 * (4 * 2 * 2 * 6 + 2 * 8)
    fused = layers.Matrix("", 16, 6, fused=(4, 2, 2), groups=2)
    assert newton_schulz.flops(fused, 1) == sum(4 * m * m * n + 2 * m**3 for m, n in ((6, 8), (4, 6), (4, 6)))
    assert [newton_schulz.iterations(schema.Muon(newton_schulz=name)) for name in COEFFICIENTS] == [5, 10]
    assert [len(each) for each in COEFFICIENTS.values()] == [5, 10]


def place(name):
    return Place(name, ())


def test_owners_hold_a_part_as_long_as_the_work_is_even():
    costs = {place(name): cost for name, cost in zip("abcd", (4.0, 3.0, 2.0, 1.0), strict=True)}
    everywhere = dict.fromkeys(costs, (0, 1))
    assert owners_of(costs, everywhere, 2) == {place("a"): 0, place("b"): 1, place("c"): 1, place("d"): 0}
    first = dict.fromkeys(costs, (0,))
    found = owners_of(costs, first, 2)
    assert [sum(costs[p] for p in costs if found[p] == rank) for rank in (0, 1)] == [5.0, 5.0]
    apart = {place("a"): (0,), place("b"): (1,), place("c"): (1,), place("d"): (0,)}
    assert owners_of(costs, apart, 2) == {place("a"): 0, place("b"): 1, place("c"): 1, place("d"): 0}


def test_what_one_rank_sends_another_receives():
    """Rows of a on two ranks, b on the second and c on all three."""
    a = [Box(place("a"), (0, 0), (2, 4)), Box(place("a"), (2, 0), (2, 4))]
    b, c = Box(place("b"), (0, 0), (3, 3)), Box(place("c"), (0, 0), (1, 1))
    held = [[a[0], c], [a[1], b, c], [c]]
    (each,) = rounds(held, {place("a"): 8.0, place("b"): 9.0, place("c"): 1.0}, most=100)
    there = [gathering(each, rank, 3) for rank in range(3)]
    back = [returning(each, held, rank) for rank in range(3)]
    for moves in (there, back):
        for source in range(3):
            for to in range(3):
                assert moves[source].sent[to] == moves[to].received[source]
    arrived = [box for move in there for boxes in move.received for box in boxes]
    assert sorted(arrived) == sorted([*a, b, c])
    for rank in range(3):
        assert sorted(box for boxes in back[rank].received for box in boxes) == sorted(held[rank])


def test_large_networks_go_in_rounds():
    boxes = [Box(place(name), (0, 0), (4, 4)) for name in "abcde"]
    costs = {box.place: 1.0 for box in boxes}
    found = list(rounds([boxes, boxes], costs, most=32))
    assert [sorted(p.key for p in each.owners) for each in found] == [["a", "b"], ["c", "d"], ["e"]]
    assert all(set(each.owners.values()) == {0, 1} for each in found[:2])
    one = gathering(found[0], 0, 2)
    assert not one.travels  # both hold all of it
    assert returning(found[0], [boxes, boxes], 0).travels


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_what_all_ranks_hold_comes_back_in_bounded_rounds(ranks):
    """Replicated state: every rank gets all matrices of a round back."""
    boxes = [Box(place(name), (0, 0), (4, 4)) for name in "abcdefgh"]
    held = [boxes] * ranks
    found = list(rounds(held, {box.place: 1.0 for box in boxes}, most=32))
    assert sorted(p for each in found for p in each.owners) == sorted(box.place for box in boxes)
    for each in found:
        for rank in range(ranks):
            back = returning(each, held, rank)
            assert sum(box.numbers for some in back.received for box in some) <= 32


def test_ranks_that_hold_the_same_send_alike():
    """Four ranks with the upper half of eight matrices and four with the lower: half of what is owned is elsewhere."""
    halves = [[Box(place(name), (row, 0), (2, 4)) for name in "abcdefgh"] for row in (0, 2)]
    held = [halves[rank // 4] for rank in range(8)]
    (each,) = rounds(held, {box.place: 1.0 for box in halves[0]}, most=1000)
    sent = [0] * 8
    for box, source in each.sources.items():
        sent[source] += box.numbers * (each.owners[box.place] != source)
    assert sent == [8] * 8
