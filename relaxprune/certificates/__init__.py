"""Certificates: proofs of how far a mask, or weights on a mask, can be from the best.

This folder makes certificates; ``verify`` checks them and imports nothing of the making. Names are loaded on first use,
so verifying loads only the verifier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .certificate import Certificate as Certificate
    from .certifying import certify as certify
    from .loading import load_certificate as load_certificate
    from .mask_certificate import MaskCertificate as MaskCertificate
    from .verify import CertificateError as CertificateError
    from .weight_certificate import WeightCertificate as WeightCertificate
    from .weight_certificate import certify_weights as certify_weights

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Certificate": ".certificate",
        "CertificateError": ".verify",
        "MaskCertificate": ".mask_certificate",
        "WeightCertificate": ".weight_certificate",
        "certify": ".certifying",
        "certify_weights": ".weight_certificate",
        "load_certificate": ".loading",
    },
)
