"""What a start leaves out: collections while modules are imported, and the tracer of torch.compile."""

import gc

import pytest

from hcmegatron.platform import imports
from hcmegatron.platform.ranks import STARTED_HERE, RankInfo
from hcmegatron.training import start_ranks
from tests.platform import import_workers
from tests.ranks import run_ranks


@pytest.fixture
def collector(monkeypatch):
    monkeypatch.setattr(imports, "_ours", False)  # and back
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("was", [True, False])
def test_nothing_is_collected_meanwhile_nor_looked_at_later(was, ours, collector):
    """Later only in the command's own processes: a caller's objects remain the collector's."""
    gc.unfreeze()
    if ours:
        imports.process_is_ours()
    if not was:
        gc.disable()
    with pytest.raises(ImportError), imports.uncollected():
        assert not gc.isenabled()
        kept = [[]]
        raise ImportError
    assert gc.isenabled() is was
    assert (gc.get_freeze_count() > 1000) is ours
    assert any(one is kept for one in gc.get_objects()) is not ours


def test_a_rank_whose_modules_are_there_collects_as_before(monkeypatch):
    monkeypatch.setattr(start_ranks, "uncollected", lambda: pytest.fail("nothing is imported"))
    place = RankInfo(0, 1, 0, 1, "127.0.0.1", 1, STARTED_HERE)
    work = f"{import_workers.__name__}:done"
    assert start_ranks.run_rank(None, "name", None, work, (), place) == 7


@pytest.mark.ranks
def test_an_optimizer_s_step_needs_no_tracer():
    (found,) = run_ranks(1, import_workers.optimizers, preload=("hcmegatron.training.run",), timeout=120)
    for kind, (values, differentiable) in found.items():
        assert values == pytest.approx([0.9, 1.9], abs=1e-6) and differentiable, kind
