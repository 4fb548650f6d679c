"""SPIFFE identities as Istio writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TRUST_DOMAIN = r"[a-z0-9._-]{1,255}"
_SEGMENT = r"(?!\.\.?(?:/|\Z))[a-zA-Z0-9._-]+"
"""SPIFFE allows no other character, and neither ``.`` nor ``..`` as a whole segment."""
_SHAPE = re.compile(rf"spiffe://({_TRUST_DOMAIN})/ns/({_SEGMENT})/sa/({_SEGMENT})")
_LONGEST = 2048
_SHOWN = 80


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """Who a workload is: ``spiffe://<trust domain>/ns/<namespace>/sa/<service account>``."""

    trust_domain: str
    namespace: str
    service_account: str

    @classmethod
    def parse(cls, uri: str) -> SpiffeId:
        """Read ``spiffe://<trust domain>/ns/<namespace>/sa/<service account>``.

        Raises:
            ValueError: ``uri`` has another shape, a character that no SPIFFE ID has, or more than 2048 bytes.

        Source: https://istio.io/latest/docs/concepts/security/#istio-identity
        https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#2-spiffe-identity
        """
        match = _SHAPE.fullmatch(uri) if len(uri) <= _LONGEST else None
        if match is None:
            shown = repr(uri[:_SHOWN]) + ("..." if len(uri) > _SHOWN else "")
            raise ValueError(f"{shown} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")
        return cls(*match.groups())

    @property
    def principal(self) -> str:
        """The identity without its scheme, which is how policies spell it."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def __str__(self) -> str:
        return f"spiffe://{self.principal}"
