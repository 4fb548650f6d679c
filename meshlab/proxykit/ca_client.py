"""The call to the Istio CA: a CSR in, a chain out.

Source: https://github.com/istio/istio/blob/master/security/proto/istio/v1/auth/ca.proto
"""

from __future__ import annotations

import grpc
import grpc.aio

from meshlab.model import SpiffeId
from meshlab.protocols.messages import message
from meshlab.proxykit.certificates import CertificateError
from meshlab.proxykit.config import Config
from meshlab.proxykit.credentials import Credentials, KeyRequest

_METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_TIMEOUT_S = 10.0
FIRST_BACKOFF_S = 0.01
MAX_BACKOFF_S = 15.0
CHANNEL = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC waits before it connects again, too: by itself 1 s, and never less than 0.1 s.
    ("grpc.initial_reconnect_backoff_ms", int(FIRST_BACKOFF_S * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(MAX_BACKOFF_S * 1000)),
)
"""Options of a channel to istiod."""


class CaClient:
    """One channel to the CA."""

    def __init__(self, config: Config) -> None:
        credentials = grpc.ssl_channel_credentials(config.ca_root_pem)
        self._channel = grpc.aio.secure_channel(config.ca_address, credentials, options=CHANNEL)
        self._metadata = config.metadata
        self._ttl_s = config.secret_ttl_s
        self._keylog = config.keylog
        self._create = self._channel.unary_unary(
            _METHOD,
            request_serializer=message("istio.v1.auth.IstioCertificateRequest").SerializeToString,
            response_deserializer=message("istio.v1.auth.IstioCertificateResponse").FromString,
        )

    async def issue(self, identity: SpiffeId) -> Credentials:
        """A certificate for a workload of this node: the CA is told in whose name we ask.

        Raises:
            CertificateError: the CA refused, cannot be reached, or answered with something else.
        """
        asked = KeyRequest.new(identity)
        request = message("istio.v1.auth.IstioCertificateRequest")(
            csr=asked.csr_pem,
            validity_duration=self._ttl_s,
            metadata={"fields": {"ImpersonatedIdentity": {"string_value": str(identity)}}},
        )
        try:
            response = await self._create(request, metadata=self._metadata, timeout=_TIMEOUT_S)
            return Credentials.issued(identity, asked.key_pem, list(response.cert_chain), self._keylog)
        except grpc.aio.AioRpcError as error:
            raise CertificateError(f"CA: {error.code().name}: {error.details()}") from error
        except ValueError as error:
            raise CertificateError(f"CA: {error}") from error

    async def close(self) -> None:
        await self._channel.close()
