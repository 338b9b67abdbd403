"""Solvers that move the kept weights.

Solvers: ``reconstruct`` and ``alps`` (ADMM on the weights), ``sparsegpt`` (column by column) and ``obs_swap``
(exchanges judged after refitting). Engines: ``weight_admm`` of the first two, ``obs_tableau`` of the last, and
``least_squares``, the best weights on a mask.
"""
