"""Fused versions of the connections' operations, and their selection. torch and triton only.

Dimension letters: T tokens (s*b), n streams, C channels, K coefficient columns (pre | post | res: n + n +
n*n).
"""
