"""Solvers that move the kept weights: one per file; what they share is in ``engine/``."""
