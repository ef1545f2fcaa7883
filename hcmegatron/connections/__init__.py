"""Residual-stream connections: residual, Hyper-, Frac- and Manifold-Constrained Hyper-Connections.

`kinds` has a descriptor of every kind, `accounting` answers from it how wide, how large and how costly a connection is,
both without importing torch; `build` makes modules, `connected` puts one around a sub-layer of any torch network.
"""
