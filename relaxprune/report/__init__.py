"""Reports to look at: one HTML page for a run, or for several side by side, and the same numbers as JSON."""
