"""Searches over masks by exchanging entries.

Solvers: ``swap`` (1-swap descent), ``ils`` (iterated local search). Engines: ``gains`` (what exchanges change),
``pair_search``, ``group_masks`` and ``interchange`` (which of them help), ``across`` (moves between rows), ``descent``
(rounds of all of these) and ``local_search`` (kick and descend).
"""
