"""Pruning a whole model: calibration, Gram matrices, blocks, run folders."""
