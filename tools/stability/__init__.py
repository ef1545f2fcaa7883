"""Connections beyond their best learning rate: runs, tables and the figure of docs/stability.md."""
