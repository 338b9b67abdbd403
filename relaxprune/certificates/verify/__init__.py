"""Checking a certificate without trusting its maker.

Nothing in this folder imports the code that makes certificates, nor the solvers: what is checked is a ``Claim``, a
plain value of this folder's own, which a certificate or its file hands over. Objectives, sets of masks, convex
functions and tangents are written a second time here, in numpy and from the mathematics alone. That is on purpose: a
mistake of the maker must not be repeated by the checker, so nothing is shared that could hold one.
"""

from .claim_file import StoredClaim as StoredClaim
from .claim_file import read_claim as read_claim
from .verification import verify as verify
from .verified import CertificateError as CertificateError
from .verified import Verification as Verification

__all__ = ["CertificateError", "StoredClaim", "Verification", "read_claim", "verify"]
