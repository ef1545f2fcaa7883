"""Our schedules as Megatron's forward_backward_func: what they take, refuse, and hand on."""

import pytest

from tests.pipeline import contract_workers
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks
RUN = {"preload": ("tests.pipeline.contract_workers",), "timeout": 120}


def test_groups_get_the_run_s_timeout():
    for transport, replica_sync in run_ranks(2, contract_workers.timeouts, **RUN):
        assert transport == [77, 77] and replica_sync == [77, 77]


def test_attention_leaves_room_where_lanes_overlap():
    (found,) = run_ranks(1, contract_workers.persistent_attention, **RUN)
    assert found == [True, True, False]


def test_what_megatron_s_callers_pass():
    """Every argument that Megatron's functions give a default is taken at that default."""
    (functions,) = run_ranks(1, contract_workers.megatron_defaults, **RUN)
    cases = [{}, *functions.values()]
    assert all("force_all_reduce" in case for case in cases[1:])
    cases = [{name: value for name, value in case.items() if name != "forward_only"} for case in cases]
    usual, *others = run_ranks(2, contract_workers.calls, cases, **RUN)[0]
    assert len(usual) == 2 and all(other == usual for other in others)


REFUSED = {
    "decoder_seq_length": ({"decoder_seq_length": 8}, ["decoder_seq_length"]),
    "two": ({"collect_non_loss_data": True, "pg_collection": 1}, ["collect_non_loss_data, pg_collection"]),
    "too few lengths": ({"seq_length": [16]}, ["1 lengths for 2 micro-batches"]),
    "uneven": ({"seq_length": [16, 15]}, ["15 tokens", "2 ranks of sequence parallelism"]),
}


def test_refusals_are_one_line():
    cases = [case for case, _ in REFUSED.values()] + [{"sequence_length": 16}]
    for *refused, unknown in run_ranks(2, contract_workers.calls, cases, **RUN):
        for (name, error), (_, words) in zip(refused, REFUSED.values(), strict=True):
            assert name == "ValueError" and "\n" not in error
            assert all(word in error for word in words), error
        assert unknown[0] == "TypeError" and "sequence_length" in unknown[1]
