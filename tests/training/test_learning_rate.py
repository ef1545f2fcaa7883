"""The learning rate of named steps, and what it comes to in the optimizer's groups."""

from types import SimpleNamespace

import pytest

from hcmegatron.config.schema import Optimizer
from hcmegatron.training.optimizer import learning_rate, set_learning_rate


def rates(settings, steps, at):
    return [learning_rate(step, settings, steps) for step in at]


def test_cosine_at_named_steps():
    """Up to 3e-3 in 20 steps, then half a cosine down to a tenth of it: 3e-4 + 1.35e-3 (1 + cos pi x)."""
    cosine = Optimizer(lr=3e-3, min_lr_ratio=0.1, schedule="cosine", warmup_steps=20)
    # a twentieth of the rate, half of it, all; then x = 1/4, 1/2, 3/4, 1
    named = [1.5e-4, 1.5e-3, 3e-3, 2.6045941546018392e-3, 1.65e-3, 6.954058453981609e-4, 3e-4]
    assert rates(cosine, 220, [1, 10, 20, 70, 120, 170, 220]) == pytest.approx(named, rel=1e-12)
    assert learning_rate(21, cosine, 220) == pytest.approx(2.99983345385e-3, rel=1e-10)
    assert learning_rate(230, cosine, 220) == pytest.approx(3e-4)  # past the end it stays down
    assert rates(Optimizer(lr=1.0, min_lr_ratio=0.0, warmup_steps=0), 4, [1, 2, 3, 4]) == pytest.approx(
        [0.8535533905932737, 0.5, 0.14644660940672627, 0.0]
    )


def test_a_warmup_as_long_as_the_run():
    cosine = Optimizer(lr=1.0, min_lr_ratio=0.5, warmup_steps=4)
    assert rates(cosine, 4, [1, 2, 3, 4]) == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(5, cosine, 4) == 0.5
    decay = Optimizer(lr=1.0, schedule="step", warmup_steps=4)
    assert rates(decay, 4, [1, 2, 3, 4]) == [0.25, 0.5, 0.75, 1.0]


def test_step_decay_at_named_steps():
    """mHC: 0.316 of the rate from 80% of training on, 0.1 from 90% on; the step at the border is still before."""
    decay = Optimizer(lr=1e-3, schedule="step", warmup_steps=10)
    named = [1e-4, 1e-3, 1e-3, 1e-3, 3.16e-4, 3.16e-4, 1e-4, 1e-4]
    assert rates(decay, 100, [1, 10, 11, 80, 81, 90, 91, 100]) == pytest.approx(named, rel=1e-12)


def test_constant_after_the_warmup():
    constant = Optimizer(lr=2e-3, schedule="constant", warmup_steps=2)
    assert rates(constant, 10, [1, 2, 3, 10]) == [1e-3, 2e-3, 2e-3, 2e-3]


def test_warm_up_stable_decay_at_named_steps():
    """The rate until four steps before the end, then a quarter of the way down to a tenth with each."""
    wsd = Optimizer(lr=1.0, schedule="wsd", warmup_steps=2, decay_steps=4, min_lr_ratio=0.1)
    named = [0.5, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]
    assert rates(wsd, 10, [1, 2, 3, 6, 7, 8, 9, 10, 11]) == pytest.approx(named, rel=1e-12)


def test_before_its_decay_a_rate_does_not_depend_on_how_long_the_run_is():
    wsd = Optimizer(lr=3e-3, schedule="wsd", warmup_steps=3, decay_steps=5, min_lr_ratio=0.03)
    assert rates(wsd, 20, range(1, 16)) == rates(wsd, 1000, range(1, 16))
    assert learning_rate(16, wsd, 20) < learning_rate(16, wsd, 1000)


def test_groups_get_the_rate_and_decay_times_their_own_factors():
    groups = [{"lr_mult": 1.0, "wd_mult": 1.0}, {"lr_mult": 0.5, "wd_mult": 0.0}]
    set_learning_rate(SimpleNamespace(param_groups=groups), 4e-3, 0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(4e-3, 0.1), (2e-3, 0.0)]
