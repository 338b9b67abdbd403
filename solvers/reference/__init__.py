"""What the other solvers are measured against.

Solvers: ``exact`` (branch and bound), ``enumeration`` (every mask), ``relaxation`` (an outside convex solver) and
``saliency`` (one-shot scores). Engines: ``programs`` and ``exact_backends`` of the first and third, ``vertex_count`` of
the second.
"""
