"""Engines of the exchange solvers: gains, pair searches and descents. Nothing here is a solver."""
