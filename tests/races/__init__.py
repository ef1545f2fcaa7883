"""Races between CUDA streams, looked for on a CPU: a table of variants, and controls that have to be found.

    python -m tests.races --list
    python -m tests.races --minutes 20 --out bench_out/races

A variant is a configuration whose step runs on emulated streams (tests/emulated), operation by operation: is everything
that is read written before, does memory outlive its use, and do the hosts' programs end on a GPU's hardware queues? A
control is a variant without one of the synchronisations that the program makes on purpose: every one of them has to be
missed somewhere. docs/races.md has the results.
"""
