"""Residual-stream connections: residual, Hyper-, Frac- and Manifold-Constrained Hyper-Connections.

`facts` answers how wide, how large and how costly a connection is without importing torch; `build` makes
modules.
"""
