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
KEEPALIVE = (("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000))


class CaClient:
    """One channel to the CA."""

    def __init__(self, config: Config) -> None:
        credentials = grpc.ssl_channel_credentials(config.ca_root_pem)
        self._channel = grpc.aio.secure_channel(config.ca_address, credentials, options=KEEPALIVE)
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
