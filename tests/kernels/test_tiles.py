"""How work is laid out on a device: splits of the tokens, and turns of the programs that share a multiprocessor."""

import pytest
import torch
import triton
from triton import language as tl

from hcmegatron.kernels import tiles, triton_coefficients
from hcmegatron.kernels.tiles import Key, Tile, split_tokens

WIDTHS = (1280, 1920, 2048, 2560, 4096, 7168)  # of the models in configs/, and DeepSeek-V3's


@triton.jit
def choices(OUT):
    program = tl.program_id(0)
    tl.store(OUT + program, triton_coefficients.res_comes_first(program))


def test_a_tile_that_is_kept_is_the_next_launch_s(monkeypatch):
    monkeypatch.setattr(tiles, "_measured", {})
    H = torch.empty(3, 4, 48)
    key = Key("write_forward", 4, 48, 4, tiles.hardware(H.device).capability)
    assert tiles.tile("write_forward", H) == tiles.tile("write_forward", H) == tiles.rule(key)
    tiles.keep(key, Tile(2, 16))
    assert tiles.tile("write_forward", H) == Tile(2, 16)
    assert tiles.tile("write_forward", H.bfloat16()) == tiles.rule(Key("write_forward", 4, 48, 2))
    tiles._chosen.clear()


def test_tiles_without_a_device_are_those_of_the_one_planned_for():
    H = torch.empty(3, 4, 2560, dtype=torch.bfloat16, device="meta")
    found = []
    for capability in (80, 90, 80):
        with tiles.planned_for(capability):
            found.append(tiles.tile("project", H))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("tokens", [4096, 8192, 16384])
@pytest.mark.parametrize("C", WIDTHS)
def test_tokens_are_split_so_that_a_hopper_is_full_once(C, tokens):
    """And phi's gradient is not left in more parts than that takes."""
    tile = tiles.rule(Key("read_backward_streams", 4, C, 2))
    span = split_tokens(tokens, 4, C, 2, tile, 132)
    splits = -(-tokens // span)
    assert span % tile.BT == 0
    programs = -(-C // tile.BC) * splits
    assert 0.8 <= programs / (132 * tile.per_sm) <= 1


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 1000, 8191])
@pytest.mark.parametrize("processors", [1, 132])
def test_any_number_of_tokens_is_covered_and_no_split_is_empty(tokens, processors):
    tile = Tile(16, 64, G=4, per_sm=3)
    span = split_tokens(tokens, 4, 2560, 2, tile, processors)
    splits = -(-tokens // span)
    assert span % 16 == 0 and (splits - 1) * span < tokens <= splits * span
    assert splits <= tiles.MOST_SPLITS


def test_the_split_follows_from_the_device_alone():
    """So that results repeat: the same for every call, another where there are more multiprocessors."""
    tile = tiles.rule(Key("read_backward_streams", 4, 2560, 2))
    spans = {split_tokens.__wrapped__(8192, 4, 2560, 2, tile, 132) for _ in range(3)}
    assert len(spans) == 1
    assert split_tokens(8192, 4, 2560, 2, tile, 264) < spans.pop()


@pytest.mark.parametrize("C", WIDTHS)
@pytest.mark.parametrize("kernel", ["write_forward", "write_backward"])
def test_few_lanes_idle_at_the_end_of_a_row(kernel, C):
    BC = tiles.rule(Key(kernel, 4, C, 2)).BC
    assert -C % BC <= 0.1 * C


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter")
@pytest.mark.parametrize("processors", [108, 132, 148])
def test_programs_of_one_multiprocessor_take_turns(processors):
    """Four that share one, numbered so many apart: some make res first, some walk their streams first."""
    out = torch.zeros(4 * processors, dtype=torch.int32)
    choices[(len(out),)](out)
    together = out.view(4, processors).sum(0)
    assert ((together > 0) & (together < 4)).float().mean() > 0.9
    assert 0.4 < out.float().mean() < 0.6
