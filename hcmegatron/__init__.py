"""Hyper-Connections on Megatron-Core: the trainer."""
