"""What the other solvers are measured against: exact methods, referees and one-shot scores, one per file."""
