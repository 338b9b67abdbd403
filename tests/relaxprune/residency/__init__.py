"""Tests of ``relaxprune.residency``: weights and hidden states that travel."""
