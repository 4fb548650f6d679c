"""Why a connection failed, in one of the words that ``response_flags`` of Istio's metrics may be.

Source: https://istio.io/latest/docs/reference/config/metrics/
"""

from __future__ import annotations

from meshlab.proxykit.certificates import CertificateError
from meshlab.proxykit.tls import TlsError
from meshlab.ztunnel.guard import DeniedError


def response_flag(failure: Exception, *, tunnelled: bool = False) -> str:
    """Say in Istio's words why a connection failed; ``tunnelled``: it was to be carried to another proxy."""
    if isinstance(failure, DeniedError):
        return "DENY"
    if isinstance(failure, CertificateError):
        return "IDENTITY_ERROR"
    if isinstance(failure, TlsError) or str(failure).startswith("TLS"):
        return "TLS_FAILURE"
    if isinstance(failure, TimeoutError) and tunnelled:
        return "NETWORK_POLICY"  # nothing answers at 15008, as where a policy of the network drops its packets
    return "CONNECT"
