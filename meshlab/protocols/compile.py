"""Compile ``proto/*.proto`` into ``protos.binpb``: ``python -m meshlab.protocols.compile``.

For who changes a message; needs grpcio-tools (extra ``test``), which nothing else of meshlab does. A test recompiles
and compares.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

PROTO = Path(__file__).parent / "proto"
DESCRIPTORS = Path(__file__).parent / "protos.binpb"


def compile_to(target: Path) -> None:
    """Write the descriptor set of every message we speak, with what they import, to ``target``."""
    from grpc_tools import protoc

    includes = [f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}"]
    sources = sorted(path.name for path in PROTO.glob("*.proto"))
    status = protoc.main(["protoc", *includes, f"--descriptor_set_out={target}", "--include_imports", *sources])
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    compile_to(DESCRIPTORS)
