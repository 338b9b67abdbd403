"""Reordering channels for N:M patterns."""
