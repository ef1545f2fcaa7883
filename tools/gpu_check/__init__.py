"""One command for a machine with one or more GPUs and little time: what only a device can show, in phases."""
