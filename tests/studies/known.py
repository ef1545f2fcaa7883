"""Losses of known laws."""

import numpy as np

N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(3e7, 1e10, 6), np.geomspace(5e8, 3e11, 5)))
E, A, B, alpha, beta = 1.8, 480, 2100, 0.35, 0.37
EXACT = E + A / N**alpha + B / D**beta
C = np.tile(np.geomspace(1e16, 1e21, 8), 3)
KINDS = np.repeat(["residual", "dhc", "mhc"], 8)
FACTOR = np.repeat([1.0, 1.1, 1.4], 8)
OF_COMPUTE = 1.7 + 70 / (FACTOR * C) ** 0.11
