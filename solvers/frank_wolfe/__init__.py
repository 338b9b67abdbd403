"""Frank-Wolfe methods: one solver per file; what several of them share is in ``engine/``."""
