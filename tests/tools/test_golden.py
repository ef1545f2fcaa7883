"""Golden losses: any digit that differs is named."""

import math

from tools.golden import differences

BEFORE = {
    "mhc": [["train", 1, 5.630895376205444, 0.5], ["validation", 1, 2.878492030701503, None]],
    "shc": [["train", 1, 5.0, 0.5]],
}


def test_the_first_unequal_figure_of_a_kind_is_named():
    assert differences(BEFORE, BEFORE) == []
    nearest = math.nextafter(2.878492030701503, 3)
    after = {"mhc": [BEFORE["mhc"][0], ("validation", 1, nearest, None)], "shc": BEFORE["shc"]}
    (found,) = differences(BEFORE, after)
    assert found.startswith(
        "mhc: ('validation', 1, 2.878492030701503, None) before, ('validation', 1, 2.8784"
    )


def test_figures_that_are_missing_are_no_agreement():
    assert differences(BEFORE, {"mhc": BEFORE["mhc"][:1]}) == [
        "mhc: 2 figures before, 1 now",
        "shc: 1 figures before, 0 now",
    ]
