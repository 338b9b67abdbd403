"""Measuring a pruned model on held-out text."""
