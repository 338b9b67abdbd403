"""Proofs of how far a mask is from the best one."""

from .certificate import Certificate as Certificate
from .certificate_file import load_certificate as load_certificate
from .certifying import certify as certify

__all__ = ["Certificate", "certify", "load_certificate"]
