"""Ports and marks that ambient has fixed: the same for redirect rules, proxies and proofs.

Source: https://istio.io/latest/docs/ambient/architecture/traffic-redirection/ and
https://istio.io/latest/docs/ops/deployment/application-requirements/#ports-used-by-istio
"""

from __future__ import annotations

OUTBOUND_PORT = 15001
"""Where a pod's node proxy takes what its apps send out."""
PLAINTEXT_PORT = 15006
"""Where it takes what comes in plaintext."""
HBONE_PORT = 15008
"""Where it, or a waypoint, takes HBONE."""
DNS_PORT = 15053
PROXY_MARK = 0x539
"""SO_MARK of every socket that a node proxy opens in a pod: its traffic is not redirected."""
