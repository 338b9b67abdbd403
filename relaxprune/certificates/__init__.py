"""Proofs of how far a mask is from the best one."""

from .certificate import Certificate as Certificate
from .certificate_file import load_certificate as load_certificate
from .certifying import certify as certify
from .weight_certificate import WeightCertificate as WeightCertificate
from .weight_certificate import certify_weights as certify_weights

__all__ = ["Certificate", "WeightCertificate", "certify", "certify_weights", "load_certificate"]
