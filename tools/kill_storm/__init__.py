"""Runs under fire: killed at random, continued, and compared with undisturbed ones (python -m tools.kill_storm)."""
