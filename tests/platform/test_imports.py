"""What a start leaves out: collections while modules are imported, and the tracer of torch.compile."""

import gc

import pytest

from hcmegatron.platform.imports import uncollected
from tests.platform import import_workers
from tests.ranks import run_ranks


@pytest.fixture
def collector():
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("was", [True, False])
def test_nothing_is_collected_meanwhile_nor_looked_at_later(was, collector):
    if not was:
        gc.disable()
    with pytest.raises(ImportError), uncollected():
        assert not gc.isenabled()
        kept = [[]]
        raise ImportError
    assert gc.isenabled() is was
    assert gc.get_freeze_count() > 1000 and not any(one is kept for one in gc.get_objects())


@pytest.mark.ranks
def test_an_optimizer_s_step_needs_no_tracer():
    (found,) = run_ranks(1, import_workers.optimizers, preload=("hcmegatron.training.run",), timeout=120)
    for kind, (values, differentiable) in found.items():
        assert values == pytest.approx([0.9, 1.9], abs=1e-6) and differentiable, kind
