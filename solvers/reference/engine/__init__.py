"""Engines of the exact methods and referees. Nothing here is a solver."""
