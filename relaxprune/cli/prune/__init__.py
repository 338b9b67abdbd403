"""``relaxprune prune``: its words, the job they describe, and running it."""
