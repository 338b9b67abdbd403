"""Sharing a model's sparsity among its layers."""
