"""Tuning with a stand-in for the clock: what it chooses, keeps and restores."""

import pytest
import torch

from hcmegatron.kernels import tiles, tuning

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="in the interpreter, where nothing is timed"
)
STREAMS = torch.empty(1, 2, 16)


@pytest.fixture(autouse=True)
def no_tiles_kept(monkeypatch):
    monkeypatch.setattr(tiles, "_measured", {})


def test_every_kernel_has_distinct_tiles_that_start_with_the_rule():
    for kernel in tuning.TUNED:
        for n in (1, 4, 8):
            key = tiles.Key(kernel, n, 2560, 2)
            found = list(tuning.around(key))
            assert found[0] == tiles.rule(key)
            assert len(set(found)) == len(found) > 4


def test_keeps_the_fastest_and_restores_it(tmp_path, monkeypatch):
    """The clock prefers sixteen warps wherever they are tried."""
    file = tmp_path / "tiles.json"
    monkeypatch.setattr(tuning, "around", lambda key: [tiles.rule(key), tiles.Tile(16, 16, warps=16, G=2)])

    def clock(run):
        run()
        return sum(t.warps != 16 for t in tiles._measured.values())

    best = tuning.tune(2, 16, torch.float32, tokens=4, device="cpu", time=clock, file=file)
    assert set(best) == set(tuning.TUNED) and {t.warps for t in best.values()} == {16}
    tiles._measured.clear()
    assert tuning.restore("cpu", file) == len(best)
    assert all(tiles.tile(kernel, STREAMS) == tile for kernel, tile in best.items())
    other = tiles.Key("read_forward", 2, 32, 4)  # another shape
    assert tiles.tile("read_forward", torch.empty(1, 2, 32)) == tiles.rule(other)


def test_tuning_again_replaces_the_entries_of_its_shape(tmp_path, monkeypatch):
    file = tmp_path / "tiles.json"
    monkeypatch.setattr(tuning, "around", lambda key: [tiles.rule(key)])
    for _ in range(2):
        tuning.tune(2, 16, torch.float32, tokens=2, device="cpu", time=lambda run: 1.0, file=file)
    assert tuning.restore("cpu", file) == len(tuning.TUNED)


def test_without_a_file_nothing_is_restored(tmp_path):
    assert tuning.restore("cpu", tmp_path / "none.json") == 0
