"""SPIFFE identities as Istio writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9._-]+"
_SHAPE = re.compile(rf"spiffe://([a-z0-9._-]{{1,255}})/ns/({_SEGMENT})/sa/({_SEGMENT})")
_MAX_CHARACTERS = 2048


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
            ValueError: ``uri`` has another shape, or characters that no SPIFFE id has: a query, a percent sign.

        Source: https://istio.io/latest/docs/concepts/security/#istio-identity
        https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#2-spiffe-identity
        """
        match = _SHAPE.fullmatch(uri)
        if match is None or len(uri) > _MAX_CHARACTERS:
            raise ValueError(f"{uri!r} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")
        return cls(*match.groups())

    @property
    def principal(self) -> str:
        """The identity without its scheme, which is how policies spell it."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def __str__(self) -> str:
        return f"spiffe://{self.principal}"
