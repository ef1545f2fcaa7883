"""Launching: a job's scripts for SLURM, MPI, torchrun or this machine, their submission, and what became of it.

No torch: it runs on login nodes, and answers at once.
"""
