"""From a problem to a solution: solve, refit, compare."""
