"""Laws of the loss: known ones are found, gradients are those of the sums, intervals are of the runs."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from hcmegatron.studies.fit import DELTA, _resampled, fit_law, objective
from hcmegatron.studies.isoflop import growth, profiles
from hcmegatron.studies.laws import compute_law, loss_law, shared_law
from tests.studies.known import EXACT, KINDS, OF_COMPUTE, C, D, N


def test_a_law_without_noise_is_found_to_the_digit():
    fit = fit_law(loss_law(N, D), EXACT)
    assert fit.values == pytest.approx([1.8, 480, 2100, 0.35, 0.37], rel=1e-5)
    assert np.abs(fit.residuals).max() < 1e-8 and fit.draws.shape == (0, 5)


def test_compute_multipliers_without_noise_are_found_to_the_digit():
    law = compute_law(C, KINDS.tolist(), "residual")
    assert law.names == ("E", "K", "gamma", "m[dhc]", "m[mhc]")
    assert fit_law(law, OF_COMPUTE).values == pytest.approx([1.7, 70, 0.11, 1.1, 1.4], rel=1e-4)


def test_factors_of_size_and_tokens_without_noise_are_found_to_the_digit():
    """And by the best starts alone: the second kind is as the first one at 1.3 N and 1.1 D."""
    n, d, kinds = np.tile(N, 2), np.tile(D, 2), np.repeat(["residual", "mhc"], len(N))
    losses = np.concatenate([EXACT, 1.8 + 480 / (1.3 * N) ** 0.35 + 2100 / (1.1 * D) ** 0.37])
    law = shared_law(n, d, kinds.tolist(), "residual")
    assert law.names[5:] == ("m_N[mhc]", "m_D[mhc]")
    found = fit_law(law, losses, followed=2)
    assert found.values == pytest.approx([1.8, 480, 2100, 0.35, 0.37, 1.3, 1.1], rel=1e-4)
    assert found.undetermined() == []


@pytest.mark.parametrize("law", [loss_law(N, D), compute_law(C, KINDS.tolist(), "residual")])
def test_the_gradient_is_that_of_the_sum(law):
    draw = np.random.default_rng(1)
    runs = law.rows.shape[1]
    losses, weights = draw.normal(0.0, 0.002, runs), draw.integers(0, 3, runs).astype(float)
    theta = law.starts[5] + draw.normal(0, 0.1, len(law.starts[5]))
    losses += law.log_loss(theta)[0]
    of = [law, losses, weights, DELTA]
    expected = approx_fprime(theta, lambda at: objective(at, *of)[0], 1e-9)
    assert objective(theta, *of)[1] == pytest.approx(expected, rel=1e-2, abs=1e-7)


def test_a_wild_loss_moves_a_fit_by_little():
    wild = EXACT.copy()
    wild[7] *= 2
    assert fit_law(loss_law(N, D), wild).values == pytest.approx([1.8, 480, 2100, 0.35, 0.37], rel=0.01)


def test_intervals_hold_the_truth_and_are_a_function_of_the_seed():
    noisy = EXACT * np.exp(0.005 * np.random.default_rng(3).standard_normal(len(N)))
    fit, again, other = (fit_law(loss_law(N, D), noisy, 60, seed) for seed in (0, 0, 1))
    low, high = fit.interval(0.99).T
    assert (low < [1.8, 480, 2100, 0.35, 0.37]).all() and (high > [1.8, 480, 2100, 0.35, 0.37]).all()
    assert (fit.draws == again.draws).all() and (fit.draws != other.draws).any()
    assert (fit.interval(0.5)[:, 0] >= low).all() and (fit.interval(0.5)[:, 1] <= high).all()
    assert fit.unidentified() == []


def test_points_of_one_run_are_drawn_together():
    """Of three groups, three are drawn, and none in part."""
    draws = _resampled(np.random.default_rng(3), 6, 20, ["a", "a", "b", "b", "b", "c"])
    assert all(len({*one[:2]}) == len({*one[2:5]}) == 1 and one[0] + one[2] + one[5] == 3 for one in draws)
    assert len({tuple(one) for one in draws}) > 5
    noisy = EXACT * np.exp(0.01 * np.random.default_rng(3).standard_normal(len(N)))
    apart, together = (
        fit_law(loss_law(N, D), noisy, 20, groups=own) for own in (None, np.arange(len(N)) // 5)
    )
    assert (apart.draws != together.draws).any() and (apart.values == together.values).all()


def test_what_would_give_intervals_of_no_width_is_refused():
    with pytest.raises(ValueError, match="4 groups are too few to draw from for intervals of the 5 numbers"):
        fit_law(loss_law(N, D), EXACT, 20, groups=np.arange(len(N)) // 8)
    few = np.tile([0, 7, 13, 22], 5)
    with pytest.raises(ValueError, match="20 runs at 4 different places cannot fix the 5 numbers"):
        fit_law(loss_law(N[few], D[few]), EXACT[few])


def test_what_the_runs_do_not_fix_is_named():
    """Of one size E, A and alpha cannot be told apart; of five tokens' worth of runs nothing can be fitted."""
    tokens = np.tile(np.geomspace(1e9, 1e11, 8), 2)
    one = np.full(16, 1e9)
    losses = 1.8 + 480 / one**0.35 + 2100 / tokens**0.37
    assert fit_law(loss_law(one, tokens), losses).unidentified() == ["E", "A", "alpha"]
    assert fit_law(loss_law(N, D), EXACT).unidentified() == []
    with pytest.raises(ValueError, match="5 runs cannot fix the 5 numbers of this law; add runs"):
        fit_law(loss_law(one[:5], tokens[:5]), losses[:5])


def test_an_interval_over_a_factor_of_ten_is_named():
    draws = np.array([[1.8, 40.0, 2100.0, 0.35, 0.0], [1.8, 480.0, 2100.0, 0.35, 0.5]])
    fit = fit_law(loss_law(N, D), EXACT)
    assert replace(fit, draws=draws).unidentified(level=1 - 1e-9) == ["A", "beta"]


def test_a_baseline_that_nothing_has_is_refused():
    with pytest.raises(ValueError, match="baseline = none: no run has it; there are dhc, mhc, residual"):
        compute_law(C, KINDS.tolist(), "none")


def test_iso_flop_profiles_of_a_known_law():
    """N* = G (C/6)^a with a = beta / (alpha + beta), G = (alpha A / (beta B))^(1 / (alpha + beta)): Hoffmann, Eq. 4."""
    alpha, beta = 0.35, 0.37
    best = (alpha * 480 / (beta * 2100)) ** (1 / (alpha + beta))
    sizes, compute, losses = [], [], []
    for budget in (1e18, 1e19, 1e20):
        middle = best * (budget / 6) ** (beta / (alpha + beta))
        for size in middle * np.geomspace(0.8, 1.25, 7):
            sizes.append(size)
            compute.append(budget)
            losses.append(1.8 + 480 / size**alpha + 2100 / (budget / 6 / size) ** beta)
    found = profiles(*map(np.array, (compute, sizes, losses)))
    assert [profile.runs for profile in found] == [7, 7, 7]
    assert [profile.parameters for profile in found] == pytest.approx(sizes[3::7], rel=1e-2)
    assert [profile.loss for profile in found] == pytest.approx(losses[3::7], rel=1e-5)
    assert growth(found)[0] == pytest.approx(beta / (alpha + beta), rel=1e-3)
    edge = profiles(np.full(3, 1e18), np.array(sizes[:3]), np.array(losses[:3]))
    assert edge[0].parameters is None and growth(edge) is None
    assert profiles(np.full(2, 1e18), np.array(sizes[:2]), np.array(losses[:2])) == []
