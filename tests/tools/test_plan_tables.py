"""docs/plans.md is what the program says now."""

from tools import plan_tables


def test_rows_of_the_page_are_the_program_s():
    """One model on so many GPUs, and what mHC adds at 27B; `python -m tools.plan_tables --write` renews the page."""
    lines = plan_tables.FILE.read_text(encoding="utf-8").splitlines()
    assert plan_tables.overhead_row(256, "none") in lines
    assert plan_tables.row("mhc-3b", 64) in lines
    assert sum(
        line.startswith(tuple(f"| {gpus:,} | " for gpus in plan_tables.GPUS)) and line.count("|") == 8
        for line in lines
    ) == (len(plan_tables.MODELS) * len(plan_tables.GPUS))


def test_a_table_takes_the_place_of_the_old_one_alone():
    text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n<!-- y -->\n<!-- end of y -->\n"
    new = plan_tables.put(text, "x", "| new |")
    assert new == "a\n<!-- x -->\n\n| new |\n\n<!-- end of x -->\nb\n<!-- y -->\n<!-- end of y -->\n"
    assert plan_tables.put(new, "x", "| new |") == new
