"""Checking a certificate without trusting whoever made it."""
