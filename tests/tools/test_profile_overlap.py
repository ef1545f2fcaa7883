"""The trace of a small overlapped case, on whatever device there is."""

import json

import pytest

from tests.ranks import run_ranks

# the published order for a pair of layers with experts, where all weight gradients come last
PAIR = (
    "I combine",
    "F attention",
    "F route",
    "I experts",
    "F dispatch",
    "I dispatch",
    "F experts",
    "I attention",
    "F combine",
    "F merge",
)


def events(tmp_path, *arguments):
    """Names of what the host began, in order."""
    path = tmp_path / "trace.json"
    run_ranks(
        1,
        "tools.profile_overlap:main",
        ["--trace", str(path), "--steps", "2", *arguments],
        process_group=False,
        timeout=120,
    )
    found = json.loads(path.read_text())["traceEvents"]
    found = [
        event for event in found if event.get("cat") != "gpu_user_annotation"
    ]  # the same names once more
    return [event["name"] for event in sorted(found, key=lambda event: event.get("ts", 0))]


@pytest.mark.ranks
@pytest.mark.parametrize("arguments", [(), ("--recompute", "block", "--all-to-all")], ids=["plain", "all"])
def test_forwards_and_backwards_interleave_in_the_trace(arguments, tmp_path):
    every = events(tmp_path, *arguments)
    names = [name for name in every if name[:2] in ("F ", "I ", "W ")]
    # 4 micro-batches through one dense layer and three with experts
    counts = [names.count(f"F {node}") for node in ("attention", "mlp", "dispatch", "combine")]
    assert counts == [16, 4, 12, 12]
    assert (
        names.count("I dispatch") == 11
    )  # the schedule's one I, of the chunk with a dense layer, goes without turns
    assert any(tuple(names[start : start + len(PAIR)]) == PAIR for start in range(len(names)))
    assert any("all_to_all" in name or "alltoall" in name for name in every) == ("--all-to-all" in arguments)
