"""Tokens of experts with rows of zeros between them: which rows, and that gradients come back."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from hcmegatron.model.expert_padding import TILE, by_onednn, padded, rows, wanted
from tests.model import experts_workers
from tests.ranks import run_ranks


def test_few_numbers_of_rows_for_any_number_of_tokens():
    assert [rows(count) for count in (0, 1, 16, 17, 128, 129, 257, 4096)] == [
        0,
        16,
        16,
        32,
        128,
        160,
        320,
        4096,
    ]
    for count in range(1, 5000):
        assert count <= rows(count) < max(count + TILE, 1.25 * count)
        assert rows(count) % TILE == 0 and rows(rows(count)) == rows(count)
    assert len({rows(count) for count in range(1, 4097)}) < 30


def test_only_where_onednn_multiplies():
    tokens = torch.zeros(2, 3)
    assert wanted(tokens.bfloat16()) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert wanted(tokens.half()) == torch.ops.mkldnn._is_mkldnn_fp16_supported()
    assert not wanted(tokens) and not wanted(tokens.double())
    assert not wanted(tokens.to("meta", torch.bfloat16))


def test_the_tokens_themselves_are_not_kept():
    tokens = torch.randn(5, 3, requires_grad=True)
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)), lambda t: t):
        padded(tokens, torch.rand(5, requires_grad=True), torch.tensor([2, 3]))
    assert set(kept) <= {(5,)}  # places


def test_tokens_keep_their_order_and_get_their_gradients():
    counts = torch.tensor([3, 0, 17, 1])
    tokens, probs = torch.randn(21, 5, requires_grad=True), torch.rand(21, requires_grad=True)
    wide = padded(tokens, probs, counts)
    assert wide.counts.tolist() == [16, 0, 32, 16] and len(wide.tokens) == len(wide.probs) == 64
    assert wide.places.tolist() == [*range(3), *range(16, 33), 48]
    assert torch.equal(wide.tokens[wide.places], tokens) and torch.equal(wide.probs[wide.places], probs)
    assert int(wide.tokens.any(1).sum()) == int(wide.probs.ne(0).sum()) == 21
    by_rows = torch.randn(64, 5)
    ((wide.tokens * by_rows).sum() + wide.probs.sum()).backward()
    assert torch.equal(tokens.grad, by_rows[wide.places]) and torch.equal(probs.grad, torch.ones(21))


def test_no_tokens():
    wide = padded(torch.zeros(0, 5), torch.zeros(0), torch.zeros(4, dtype=torch.int64))
    assert wide.tokens.shape == (0, 5) and wide.counts.tolist() == [0] * 4 and len(wide.places) == 0


@pytest.mark.ranks
def test_products_of_experts():
    """In 16 bits all six of a forward and its backward, where they are oneDNN's; in fp32 none."""
    counts = [5, 0, 130, 16]
    for dtype, multiplied in (
        ("bf16", [16, 0, 160, 16] if by_onednn(torch.bfloat16) else counts),
        ("fp32", counts),
    ):
        (found,) = run_ranks(
            1, experts_workers.rows_multiplied, counts, dtype, preload=("tests.model.workers",)
        )
        assert found == [multiplied] * 6
