"""What a study's report does not draw, and why; what a study does not show is not claimed."""

import pytest

from tests.studies.tables import row


@pytest.mark.parametrize(
    "rows, title, why",
    [
        (
            [row("mhc", 0, 3.0)],
            "Gaps to the baseline",
            "the table has no run of the baseline; name another kind",
        ),
        (
            [row("residual", 0, 3.0)],
            "Loss gap to the baseline over compute",
            "it takes two budgets of compute",
        ),
        (
            [row("residual", 0, 3.0)],
            "Compute multipliers",
            "there is the baseline alone",
        ),
        (
            [row("residual", 0, None), row("mhc", 0, None)],
            "Loss as a ratio",
            "it takes a size with pairs of runs at two",
        ),
        ([row("residual", 0, 3.0)], "Loss gap to the baseline over training", "a table has no curves"),
        (
            [row("residual", 0, 3.0)],
            "Ablation",
            "no kind was trained with different use_res, use_pre, use_post",
        ),
        ([row("residual", 0, 3.0)], "Expansion", "no kind was trained with different n"),
        ([row("residual", 0, 3.0)], "Stress", "no arm was trained at two learning rates"),
        ([row("residual", 0, 3.0)], "Iso-FLOP", "no compute was trained with in three sizes"),
    ],
)
def test_what_is_not_drawn_says_why(rows, title, why, report):
    assert report(rows).why(title).startswith(why)


def test_what_the_study_does_not_show(report):
    """All diverged, a column that is not there, one seed: nothing is claimed."""
    lost = report([row(kind, 0, None) for kind in ("residual", "mhc")])
    assert lost.table("losses").rows[1][4:] == ("0 of 1", "1", "–", "–", "–", "no pair")
    assert "2 of 2 points are of runs that diverged" in lost.words("limits")
    assert "the study tells no two arms apart" in lost.words("limits")
    bare = [
        {key: row(kind, 0, 3.0)[key] for key in ("kind", "parameters", "tokens", "loss")}
        for kind in ("residual", "mhc")
    ]
    told = report(bare).words("limits")
    assert "no column seed" in told and "no column diverged" in told
    two = report(
        [row(kind, seed, 3.0 + seed * (kind == "mhc")) for kind in ("residual", "mhc") for seed in (0, 1)]
    )
    assert "mhc and residual are not told apart at 1 of 1 places" in two.words("limits")
    assert two.table("losses").rows[1][9] == "not told apart"
