"""Compile ``proto/*.proto`` into ``protos.binpb`` and ``stubs/``: ``python -m meshlab.protocols.compile``.

For who changes a message; needs grpcio-tools (extra ``test``), which nothing else of meshlab does. A test recompiles
and compares.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

PROTO = Path(__file__).parent / "proto"
DESCRIPTORS = Path(__file__).parent / "protos.binpb"
STUBS = Path(__file__).parent / "stubs"

_PACKAGE = "meshlab.protocols.stubs"
_HEAD = '''"""Types of our messages, for mypy only. Written by ``python -m meshlab.protocols.compile``, {tools}."""

from typing import Any, Literal, overload

'''
_OVERLOAD = """@overload
def message(full_name: {name}) -> type[{kind}]: ...
"""


def compile_to(target: Path) -> None:
    """Write the descriptor set of every message we speak, with what they import, to ``target``."""
    _protoc(f"--descriptor_set_out={target}", "--include_imports", *_sources())


def stubs_to(folder: Path) -> None:
    """Write a stub for each of our files into ``folder``, and one of ``message`` that knows all their messages."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    folder.mkdir(exist_ok=True)
    sources = _sources()
    with tempfile.TemporaryDirectory() as made:
        _protoc(f"--pyi_out={made}", *sources)
        for source in sources:
            stub = Path(made, source.replace(".proto", "_pb2.pyi"))
            (folder / stub.name).write_text(_with_our_imports(stub.read_text()))
    known = {file.name: file for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file}
    (folder / "__init__.pyi").write_text("".join(_index([known[source] for source in sources])))


def tools() -> str:
    """What writes stubs: another version may write them otherwise."""
    return f"grpcio-tools {version('grpcio-tools')}"


def _sources() -> list[str]:
    return sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))


def _protoc(*arguments: str) -> None:
    from grpc_tools import protoc

    if status := protoc.main(["protoc", f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}", *arguments]):
        raise SystemExit(status)


def _with_our_imports(stub: str) -> str:
    """Import our own files from where they are: protoc takes their folder for one of ``sys.path``."""
    ours = "|".join(_module(source) for source in _sources())
    imported = rf"^(?:import|from [\w.]+ import) ({ours}) as"
    return re.sub(imported, rf"from {_PACKAGE} import \1 as", stub, flags=re.MULTILINE)


def _module(source: str) -> str:
    return f"{Path(source).stem}_pb2"


def _index(ours: Sequence[FileDescriptorProto]) -> Iterator[str]:
    yield _HEAD.format(tools=tools())
    yield f"from {_PACKAGE} import {', '.join(_module(file.name) for file in ours)}\n\n"
    for file in ours:
        for kind in file.message_type:
            name = f'Literal["{file.package}.{kind.name}"]'
            yield _OVERLOAD.format(name=name, kind=f"{_module(file.name)}.{kind.name}")
    yield _OVERLOAD.format(name="str", kind="Any")


if __name__ == "__main__":
    compile_to(DESCRIPTORS)
    stubs_to(STUBS)
