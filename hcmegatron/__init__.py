"""Hyper-Connections on Megatron-Core: the trainer."""

__version__ = "0.1.0"
