"""The protobuf messages of Istio's and Envoy's that meshlab speaks, by their full name.

They come from one checked-in descriptor set (``protos.binpb``, compiled by ``compile.py``), loaded at first use into a
pool of our own: a user's own Istio or Envoy classes live in protobuf's global pool, where a second definition of
``istio.workload.Address`` is an error. Never mix messages of the two pools.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

    from meshlab.protocols.stubs import message as message

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"
MANIFESTS_TYPE = "type.googleapis.com/google.protobuf.StringValue"
"""What the reference waypoint subscribes to: the manifests, as text."""


@functools.cache
def pool() -> DescriptorPool:
    """The private pool; for ``json_format`` and other functions that take one."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool

    descriptors = FileDescriptorSet.FromString(files("meshlab.protocols").joinpath("protos.binpb").read_bytes())
    result = DescriptorPool()
    for file in descriptors.file:
        result.AddSerializedFile(file.SerializeToString())
    return result


@functools.cache
def _message(full_name: str) -> type[Any]:
    """The message class, e.g. ``message("istio.workload.Address")``; enums can be given by name.

    Raises:
        KeyError: there is no such message in ``proto/``.
    """
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(pool().FindMessageTypeByName(full_name))


if not TYPE_CHECKING:  # mypy has a type for each name: ``stubs``, also made by ``compile.py``
    message = _message
