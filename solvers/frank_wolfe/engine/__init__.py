"""Engines of the Frank-Wolfe solvers: phases, active sets and moves. Nothing here is a solver."""
