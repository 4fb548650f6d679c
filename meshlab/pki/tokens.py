"""An issuer of tokens for tests: its public keys go into a RequestAuthentication, and a request bears what it signs."""

from __future__ import annotations

import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

_ALGORITHM = "ES256"
_KEY = "meshlab"


class TokenIssuer:
    """Signs JWTs (RFC 7519) under one name, with a key of its own."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: what its tokens and a JwtRule have as ``iss`` and ``issuer``.
        """
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwks(self) -> str:
        """Its public keys, as the ``jwks`` of a JwtRule."""
        public = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**public, "kid": _KEY, "alg": _ALGORITHM, "use": "sig"}]})

    def token(self, subject: str = "someone", **claims: Any) -> str:
        """A token of ``subject``: ``token("me", exp=now_s + 60, aud=["shop"])``. Without ``exp`` it never expires."""
        payload = {"iss": self.name, "sub": subject, **claims}
        return jwt.encode(payload, self._key, algorithm=_ALGORITHM, headers={"kid": _KEY})
