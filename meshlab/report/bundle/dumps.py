"""Configuration as text: what the control plane sent, with addresses that people can read."""

from __future__ import annotations

import base64
import binascii
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict

from meshlab.lab.site import enrolled_keys
from meshlab.protocols.messages import pool
from meshlab.translate import resources

if TYPE_CHECKING:
    from meshlab.lab import Lab


def resources_as_json(lab: Lab) -> dict[str, dict[str, Any]]:
    """Type URL -> resource name -> the message, of what is in effect now."""
    return {
        kind: {
            name: readable(MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool()))
            for name, message in named.items()
        }
        for kind, named in resources(lab.mesh, enrolled_keys(lab.mesh)).items()
    }


def readable(value: Any, key: str = "") -> Any:
    """The same, with each packed ``address`` as text."""
    match value:
        case dict():
            return {name: readable(inner, name) for name, inner in value.items()}
        case list():
            return [readable(inner, key) for inner in value]
        case str() if key in {"address", "addresses"}:
            return _address(value)
    return value


def _address(packed: str) -> str:
    try:
        return str(ip_address(base64.b64decode(packed, validate=True)))
    except (binascii.Error, ValueError):
        return packed
