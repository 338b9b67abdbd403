"""Searches over masks by exchanging entries: one solver per file; what they share is in ``engine/``."""
