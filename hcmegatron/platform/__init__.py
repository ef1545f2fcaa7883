"""Versions, devices, launchers: the only room that knows CUDA's absence and what may be missing."""
