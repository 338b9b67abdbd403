"""``relaxprune prune``: its words, the job that they come to, and carrying it out."""
