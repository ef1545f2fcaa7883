"""A checkpoint does not depend on the schedule that the run was under: whatever continues it has the same losses, with
dropout, whose masks go on as if nothing had changed."""

import json

import pytest

from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import workers

pytestmark = pytest.mark.ranks

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    return path


def losses(text, directory, ranks, start_from=None, tied=False, **parallel):
    """Loss by step of a run of 4 steps, every one of which is saved; continued from a checkpoint if one is named."""
    config = tiny(
        text,
        directory,
        model={"layers": 5, "attention_dropout": 0.1, "tie_embeddings": tied},
        training={"global_batch": 4},
        checkpoint={"save_every": 1, "keep_last": 4, "load": start_from and str(start_from)},
        parallel=parallel,
    )
    run_ranks(ranks, workers.run, config, **RUN)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def test_checkpoints_do_not_depend_on_the_schedule(text, tmp_path):
    """DualPipeV on 2 ranks -> 1F1B on 4 -> DualPipeV on 2, and -> one process; uneven layers throughout."""
    v, line = tmp_path / "v", tmp_path / "line"
    whole = losses(text, v, 2, pipeline=2, schedule="dualpipev")
    assert sorted(whole) == [1, 2, 3, 4]
    assert len({round(loss, 5) for loss in whole.values()}) == 4

    saved = "checkpoints/step-0000000"
    longer = losses(text, line, 4, v / f"{saved}2", pipeline=4, schedule="1f1b")
    assert longer == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)
    back = losses(text, tmp_path / "back", 2, line / f"{saved}3", pipeline=2, schedule="dualpipev")
    assert back == pytest.approx({4: whole[4]}, rel=1e-5)
    single = losses(text, tmp_path / "single", 1, v / f"{saved}2", pipeline=1, schedule="1f1b")
    assert single == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)


def test_tied_embeddings_through_gpipe_and_interleaved(text, tmp_path):
    """GPipe -> interleaved (both have the embedding on both ranks) -> a V (twice on one rank). With its optimizer
    state, or the second step after each change would have another loss."""
    whole = losses(text, tmp_path / "whole", 2, tied=True, pipeline=2, schedule="gpipe")
    assert sorted(whole) == [1, 2, 3, 4]
    saved = "checkpoints/step-0000000"
    start = tmp_path / "whole" / f"{saved}1"
    chunks = losses(
        text, tmp_path / "chunks", 2, start, tied=True, pipeline=2, virtual=2, schedule="interleaved"
    )
    assert chunks == pytest.approx({step: whole[step] for step in (2, 3, 4)}, rel=1e-5)
    start = tmp_path / "chunks" / f"{saved}2"
    v = losses(text, tmp_path / "v", 2, start, tied=True, pipeline=2, schedule="dualpipev")
    assert v == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)


def test_with_the_distributed_optimizer(text, tmp_path):
    """ZB-V on 2 ranks -> two data-parallel ranks, and the optimizer that shards nothing. Two steps: one would not show
    a wrong count of Adam's steps."""
    v = tmp_path / "v"
    sharded = {"distributed_optimizer": True}
    whole = losses(text, v, 2, pipeline=2, schedule="zb_v", **sharded)
    saved = v / "checkpoints/step-00000002"
    halves = losses(text, tmp_path / "halves", 2, saved, pipeline=1, schedule="1f1b", **sharded)
    assert halves == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)
    plain = losses(text, tmp_path / "plain", 2, saved, pipeline=2, schedule="zb_v")
    assert plain == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)
