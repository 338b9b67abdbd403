"""Engines of the solvers that move weights. Nothing here is a solver."""
