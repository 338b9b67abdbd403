"""Methods that project onto the polytope.

Solvers: ``fista`` (accelerated projected gradient) and ``admm`` (alternating directions on residual and mask).
"""
