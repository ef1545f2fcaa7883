"""Scaling studies: laws of the loss, fitted to a table of runs."""
