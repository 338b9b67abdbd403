"""Frank-Wolfe methods.

Solvers: ``fw`` (annealed, the default), ``sparsefw`` (as published), ``dicg`` (pairwise steps without an active set),
``away_step``, ``pairwise`` and ``blended_pairwise`` (with one). Engines: ``annealing``, ``refining`` and ``restricted``
of ``fw``, ``in_face`` of ``dicg``, ``active_set`` and ``vertex_moves`` of the last three.
"""
