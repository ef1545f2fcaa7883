"""The sections of a report, each a function of the runs: what it cannot say for want of a file it says in words."""
