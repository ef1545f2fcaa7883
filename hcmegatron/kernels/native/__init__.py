"""Kernels in C for CPUs, compiled where they are first used (build.py) and called over raw addresses (library.py)."""
