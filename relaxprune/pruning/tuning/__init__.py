"""Tuning kept weights together, block by block or all of a model's at once, towards what the dense model puts out."""
