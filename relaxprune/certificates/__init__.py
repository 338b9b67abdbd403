"""Proofs of how far a mask is from the best one."""

from .certificate import Certificate as Certificate
from .certifying import certify as certify

__all__ = ["Certificate", "certify"]
